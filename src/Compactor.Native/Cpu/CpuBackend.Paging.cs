using Compactor.Native.Paging;

namespace Compactor.Native.Cpu;

/// <summary>Memory, copies and events of host memory, and what moves tokens of a paged cache. All is done when it returns.</summary>
public sealed unsafe partial class CpuBackend
{
    /// <inheritdoc/>
    public override BackendBuffer<T> AllocateHost<T>(long length) => new HostBuffer<T>(length);

    /// <inheritdoc/>
    public override void Upload<T>(ReadOnlySpan<T> source, BufferView<T> destination) => source.CopyTo(destination.AsSpan());

    /// <inheritdoc/>
    public override void Download<T>(BufferView<T> source, BufferView<T> destination)
    {
        if (source.Length != destination.Length)
            throw CompactorException.Argument($"{source.Length} elements cannot be copied to {destination.Length}.");
        long bytes = source.Length * sizeof(T);
        Buffer.MemoryCopy((void*)source.Address, (void*)destination.Address, bytes, bytes);
    }

    /// <inheritdoc/>
    public override BackendEvent Record() => new PassedEvent();

    /// <inheritdoc/>
    public override void StoreTokens(in PagedSlots slots, in TensorView key, in TensorView value, TokenRuns tokens, BufferView<int> counts, int mostTokens, PagedTargets targets) =>
        CpuPagedMoves.StoreTokens(_workers, slots, key, value, tokens, counts, targets);

    /// <inheritdoc/>
    public override void StoreSurvivors(in PagedSlots slots, in TensorView key, in TensorView value, TokenRuns tokens,
        BufferView<int> keptIndices, BufferView<int> keptOffsets, PagedTargets targets) =>
        CpuPagedMoves.StoreSurvivors(_workers, slots, key, value, tokens, keptIndices, keptOffsets, targets);

    /// <inheritdoc/>
    public override void MoveSurvivors(in PagedSlots slots, PagedTables from, BufferView<int> keptSlots, BufferView<int> keptOffsets, PagedTargets targets) =>
        CpuPagedMoves.MoveSurvivors(_workers, slots, from, keptSlots, keptOffsets, targets);

    /// <inheritdoc/>
    public override void CopyBlocks(in PagedSlots slots, BufferView<int> from, BufferView<int> to, BufferView<int> counts) =>
        CpuPagedMoves.CopyBlocks(_workers, slots, from, to, counts);

    /// <inheritdoc/>
    public override void CompactInPlace(in PagedView cache, int kvHeads, BufferView<int> tables, int rowStride, BufferView<int> keptSlots, BufferView<int> keptOffsets) =>
        CpuPagedMoves.CompactInPlace(_workers, cache, kvHeads, tables, rowStride, keptSlots, keptOffsets);

    /// <inheritdoc/>
    public override void GatherSlots(in PagedSlots slots, PagedTables tables, BufferView<int> offsets, BufferView<byte> keys, BufferView<byte> values, BufferView<int> positions) =>
        CpuPagedMoves.GatherSlots(_workers, slots, tables, offsets, keys, values, positions);
}
