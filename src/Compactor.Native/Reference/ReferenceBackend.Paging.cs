using Compactor.Native.Compression;
using Compactor.Native.Paging;

namespace Compactor.Native.Reference;

/// <summary>What moves tokens of a paged cache, one row at a time.</summary>
public sealed partial class ReferenceBackend
{
    /// <inheritdoc/>
    public override BackendBuffer<T> AllocateHost<T>(long length) => new PinnedArray<T>(length);

    /// <inheritdoc/>
    public override void Upload<T>(ReadOnlySpan<T> source, BufferView<T> destination) => source.CopyTo(destination.AsSpan());

    /// <inheritdoc/>
    public override void Download<T>(BufferView<T> source, BufferView<T> destination) => source.AsSpan().CopyTo(destination.AsSpan());

    /// <inheritdoc/>
    public override BackendEvent Record() => new PassedEvent();

    /// <inheritdoc/>
    public override void StoreTokens(in PagedSlots slots, in TensorView key, in TensorView value, TokenRuns tokens, BufferView<int> counts, int mostTokens, PagedTargets targets)
    {
        int[] rowCounts = [.. Enumerable.Range(0, targets.Rows).Select(row => counts.AsSpan()[row / targets.KvHeads])];
        for (int row = 0; row < targets.Rows; row++)
            for (int i = 0; i < rowCounts[row]; i++)
                Store(slots, key, value, tokens, row, targets.KvHeads, i, Slot(targets, rowCounts, row, i, slots.Cache.BlockSize));
    }

    /// <inheritdoc/>
    public override void StoreSurvivors(in PagedSlots slots, in TensorView key, in TensorView value, TokenRuns tokens,
        BufferView<int> keptIndices, BufferView<int> keptOffsets, PagedTargets targets)
    {
        int[] counts = Counts(keptOffsets);
        for (int row = 0; row < targets.Rows; row++)
            for (int i = 0; i < counts[row]; i++)
                Store(slots, key, value, tokens, row, targets.KvHeads, keptIndices.AsSpan()[keptOffsets.AsSpan()[row] + i], Slot(targets, counts, row, i, slots.Cache.BlockSize));
    }

    /// <inheritdoc/>
    public override void MoveSurvivors(in PagedSlots slots, PagedTables from, BufferView<int> keptSlots, BufferView<int> keptOffsets, PagedTargets targets)
    {
        int[] counts = Counts(keptOffsets);
        for (int row = 0; row < targets.Rows; row++)
            for (int i = 0; i < counts[row]; i++)
                Copy(slots, Slot(from, row, keptSlots.AsSpan()[keptOffsets.AsSpan()[row] + i], slots.Cache.BlockSize), Slot(targets, counts, row, i, slots.Cache.BlockSize));
    }

    /// <inheritdoc/>
    public override void CopyBlocks(in PagedSlots slots, BufferView<int> from, BufferView<int> to, BufferView<int> counts)
    {
        for (int n = 0; n < from.Length; n++)
            for (int slot = 0; slot < counts.AsSpan()[n]; slot++)
                Copy(slots, (from.AsSpan()[n], slot), (to.AsSpan()[n], slot));
    }

    /// <inheritdoc/>
    public override unsafe void CompactInPlace(in PagedView cache, int kvHeads, BufferView<int> tables, int rowStride, BufferView<int> keptSlots, BufferView<int> keptOffsets)
    {
        int[] counts = Counts(keptOffsets);
        for (int row = 0; row < counts.Length; row++)
            for (int i = 0; i < counts[row]; i++)
            {
                int slot = keptSlots.AsSpan()[keptOffsets.AsSpan()[row] + i], table = row / kvHeads * rowStride;
                nint from = (nint)cache.Offset(tables.AsSpan()[table + slot / cache.BlockSize], slot % cache.BlockSize, row % kvHeads);
                nint to = (nint)cache.Offset(tables.AsSpan()[table + i / cache.BlockSize], i % cache.BlockSize, row % kvHeads);
                CopyRow(cache.Keys + from, cache.Keys + to, cache);
                CopyRow(cache.Values + from, cache.Values + to, cache);
            }
    }

    /// <inheritdoc/>
    public override void GatherSlots(in PagedSlots slots, PagedTables tables, BufferView<int> offsets, BufferView<byte> keys, BufferView<byte> values, BufferView<int> positions)
    {
        var cache = slots.Cache;
        for (int row = 0; row < tables.Lengths.Length; row++)
            for (int slot = 0; slot < tables.Lengths.AsSpan()[row]; slot++)
            {
                var (block, inBlock) = Slot(tables, row, slot, cache.BlockSize);
                int to = offsets.AsSpan()[row] + slot, rowBytes = cache.Dim * cache.ElementType.Size();
                CopyRow(cache.Keys + (nint)cache.Offset(block, inBlock, 0), keys.Address + (nint)to * rowBytes, cache);
                CopyRow(cache.Values + (nint)cache.Offset(block, inBlock, 0), values.Address + (nint)to * rowBytes, cache);
                positions.AsSpan()[to] = slots.Positions.AsSpan()[block * cache.BlockSize + inBlock];
            }
    }

    /// <inheritdoc/>
    public override void LeverageOfSlots(LayerPlan plan, in PagedSlots slots, PagedTables tables, RotaryEmbedding? undo, int positionEnd, Sketch sketch, BufferView<float> leverage)
    {
        CheckRagged(plan, slots, tables, undo);
        leverage.AsSpan().Clear();
        var options = plan.Options;
        for (int row = 0; row < plan.Shape.Sequences * plan.Shape.KvHeads; row++)
        {
            int b = row / plan.Shape.KvHeads, h = row % plan.Shape.KvHeads;
            var rows = new double[plan.Shape.LengthOf(b, h), plan.Shape.HeadDim];
            for (int slot = 0; slot < rows.GetLength(0); slot++)
            {
                var (block, inBlock) = Slot(tables, row, slot, slots.Cache.BlockSize);
                ReferenceTensor.Read(slots.Cache.Keys + (nint)slots.Cache.Offset(block, inBlock, 0), slots.Cache.ElementType, rows, slot);
                int position = slots.Positions.AsSpan()[block * slots.Cache.BlockSize + inBlock];
                if (undo is not null)
                    ReferenceTensor.UnrotateRow(rows, slot, undo, position, position);
            }
            var (first, end) = plan.ScoredTokens(b, h);
            int chunk = options.LeverageChunk > 0 ? options.LeverageChunk : Math.Max(1, end - first);
            for (int slot = first; slot < end; slot += chunk)
            {
                double[] o = ReferenceLeverage.Scores(ReferenceTensor.Slice(rows, slot, Math.Min(chunk, end - slot)), sketch.Of(b, h), sketch.Columns, options.Epsilon, options.CenterKeys);
                for (int i = 0; i < o.Length; i++)
                    leverage.AsSpan()[plan.Shape.CuSeqlens[row] + slot + i] = (float)o[i];
            }
        }
    }

    private static int[] Counts(BufferView<int> offsets) =>
        [.. Enumerable.Range(0, (int)offsets.Length - 1).Select(row => offsets.AsSpan()[row + 1] - offsets.AsSpan()[row])];

    private static (int Block, int InBlock) Slot(PagedTables tables, int row, int slot, int blockSize) =>
        (tables.Tables.AsSpan()[row * tables.RowStride + slot / blockSize], slot % blockSize);

    /// <summary>Where new slot i of a row is: in the blocks it lists, or in those dealt to it.</summary>
    private static (int Block, int InBlock) Slot(PagedTargets targets, int[] counts, int row, int i, int blockSize)
    {
        int slot = targets.Starts.AsSpan()[row] + i, block = slot / blockSize, listed = targets.Listed.AsSpan()[row];
        if (block < listed)
            return (targets.Blocks.AsSpan()[row * targets.RowStride + block], slot % blockSize);
        int sequence = row / targets.KvHeads, at = targets.ReservedStarts.AsSpan()[sequence];
        for (int other = sequence * targets.KvHeads; other < row; other++)
            at += PagedTargets.Dealt(targets.Starts.AsSpan()[other], counts[other], targets.Listed.AsSpan()[other], blockSize);
        return (targets.Reserved.AsSpan()[at + block - listed], slot % blockSize);
    }

    private static void Store(in PagedSlots slots, in TensorView key, in TensorView value, TokenRuns tokens, int row, int kvHeads, int token, (int Block, int InBlock) to)
    {
        int b = row / kvHeads;
        nint offset = (nint)slots.Cache.Offset(to.Block, to.InBlock, 0);
        CopyRow(key.Row(b, tokens.First.AsSpan()[b], token, row % kvHeads), slots.Cache.Keys + offset, slots.Cache);
        CopyRow(value.Row(b, tokens.First.AsSpan()[b], token, row % kvHeads), slots.Cache.Values + offset, slots.Cache);
        slots.Positions.AsSpan()[to.Block * slots.Cache.BlockSize + to.InBlock] = tokens.FirstPosition.AsSpan()[b] + token;
    }

    private static void Copy(in PagedSlots slots, (int Block, int InBlock) from, (int Block, int InBlock) to)
    {
        var cache = slots.Cache;
        nint source = (nint)cache.Offset(from.Block, from.InBlock, 0), target = (nint)cache.Offset(to.Block, to.InBlock, 0);
        CopyRow(cache.Keys + source, cache.Keys + target, cache);
        CopyRow(cache.Values + source, cache.Values + target, cache);
        slots.Positions.AsSpan()[to.Block * cache.BlockSize + to.InBlock] = slots.Positions.AsSpan()[from.Block * cache.BlockSize + from.InBlock];
    }

    private static unsafe void CopyRow(nint from, nint to, PagedView cache)
    {
        int bytes = cache.Dim * cache.ElementType.Size();
        new ReadOnlySpan<byte>((void*)from, bytes).CopyTo(new Span<byte>((void*)to, bytes));
    }
}
