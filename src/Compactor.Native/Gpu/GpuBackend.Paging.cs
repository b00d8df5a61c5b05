using Compactor.Native.Paging;

namespace Compactor.Native.Gpu;

/// <summary>What moves tokens of a paged cache.</summary>
public sealed unsafe partial class GpuBackend
{
    /// <inheritdoc/>
    public override void StoreTokens(in PagedSlots slots, in TensorView key, in TensorView value, TokenRuns tokens, BufferView<int> counts, int mostTokens, PagedTargets targets)
    {
        var cache = slots.Cache;
        long all = (long)targets.Rows * mostTokens;
        Follow();
        Launch(RowMoves.Variant("store.cu", "store_tokens", cache.Dim, cache.ElementType), RowMoves.OverSlots(all), new StoreTokensParams
        {
            Key = new(key),
            Value = new(value),
            Cache = new(cache, slots.Positions),
            Targets = new(targets),
            First = (ulong)tokens.First.Address,
            FirstPosition = (ulong)tokens.FirstPosition.Address,
            Counts = (ulong)counts.Address,
            Slots = all,
            MostTokens = mostTokens,
            BlockSize = cache.BlockSize,
        });
    }

    /// <inheritdoc/>
    public override void StoreSurvivors(in PagedSlots slots, in TensorView key, in TensorView value, TokenRuns tokens,
        BufferView<int> keptIndices, BufferView<int> keptOffsets, PagedTargets targets)
    {
        var cache = slots.Cache;
        Follow();
        using var turn = _workspace.Turn.EnterScope();
        ulong dealt = Deal(cache, keptOffsets, targets);
        Launch(RowMoves.Variant("compact.cu", "store_survivors", cache.Dim, cache.ElementType), RowMoves.OverSlots(keptIndices.Length), new StoreSurvivorsParams
        {
            Key = new(key),
            Value = new(value),
            Cache = new(cache, slots.Positions),
            Targets = new(targets),
            First = (ulong)tokens.First.Address,
            FirstPosition = (ulong)tokens.FirstPosition.Address,
            Kept = (ulong)keptIndices.Address,
            KeptOffsets = (ulong)keptOffsets.Address,
            Dealt = dealt,
            Survivors = keptIndices.Length,
            Rows = targets.Rows,
            BlockSize = cache.BlockSize,
        });
    }

    /// <inheritdoc/>
    public override void MoveSurvivors(in PagedSlots slots, PagedTables from, BufferView<int> keptSlots, BufferView<int> keptOffsets, PagedTargets targets)
    {
        var cache = slots.Cache;
        Follow();
        using var turn = _workspace.Turn.EnterScope();
        ulong dealt = Deal(cache, keptOffsets, targets);
        Launch(RowMoves.Variant("compact.cu", "move_survivors", cache.Dim, cache.ElementType), RowMoves.OverSlots(keptSlots.Length), new MoveSurvivorsParams
        {
            Cache = new(cache, slots.Positions),
            From = new(from),
            Targets = new(targets),
            Kept = (ulong)keptSlots.Address,
            KeptOffsets = (ulong)keptOffsets.Address,
            Dealt = dealt,
            Survivors = checked((int)keptSlots.Length),
            BlockSize = cache.BlockSize,
        });
    }

    /// <inheritdoc/>
    public override void CopyBlocks(in PagedSlots slots, BufferView<int> from, BufferView<int> to, BufferView<int> counts)
    {
        var cache = slots.Cache;
        Follow();
        Launch(RowMoves.Variant("copy_blocks.cu", "copy_blocks", cache.Dim, cache.ElementType), RowMoves.OverSlots(from.Length * cache.BlockSize), new CopyBlocksParams
        {
            Cache = new(cache, slots.Positions),
            From = (ulong)from.Address,
            To = (ulong)to.Address,
            Counts = (ulong)counts.Address,
            Blocks = (int)from.Length,
            BlockSize = cache.BlockSize,
        });
    }

    /// <inheritdoc/>
    public override void CompactInPlace(in PagedView cache, int kvHeads, BufferView<int> tables, int rowStride, BufferView<int> keptSlots, BufferView<int> keptOffsets)
    {
        Follow();
        Launch(RowMoves.Variant("compact.cu", "compact_in_place", cache.Dim, cache.ElementType),
            RowMoves.InPlace((int)keptOffsets.Length - 1, cache.Dim * cache.ElementType.Size()), new CompactInPlaceParams
            {
                Cache = new(cache, default),
                Tables = (ulong)tables.Address,
                Kept = (ulong)keptSlots.Address,
                KeptOffsets = (ulong)keptOffsets.Address,
                RowStride = rowStride,
                KvHeads = kvHeads,
                BlockSize = cache.BlockSize,
            });
    }

    /// <inheritdoc/>
    public override void GatherSlots(in PagedSlots slots, PagedTables tables, BufferView<int> offsets, BufferView<byte> keys, BufferView<byte> values, BufferView<int> positions)
    {
        var cache = slots.Cache;
        int room = checked(tables.RowStride * cache.BlockSize);
        Follow();
        Launch(RowMoves.Variant("gather.cu", "gather_slots", cache.Dim, cache.ElementType), RowMoves.OverSlots(tables.Lengths.Length * room), new GatherSlotsParams
        {
            Cache = new(cache, slots.Positions),
            Tables = new(tables),
            Offsets = (ulong)offsets.Address,
            Keys = (ulong)keys.Address,
            Values = (ulong)values.Address,
            Positions = (ulong)positions.Address,
            BlockSize = cache.BlockSize,
            Room = room,
        });
    }

    private static WorkspaceLayout DealWorkspace(int rows) => new(sizeof(int) * (long)rows);

    /// <summary>Where the blocks dealt to each row start among the reserved, in the workspace.</summary>
    private ulong Deal(in PagedView cache, BufferView<int> keptOffsets, PagedTargets targets)
    {
        ulong dealt = _workspace.Take(DealWorkspace(targets.Rows));
        int sequences = (int)targets.ReservedStarts.Length;
        Launch(RowMoves.Deal(cache.Dim, cache.ElementType), RowMoves.OverSequences(sequences), new DealBlocksParams
        {
            Targets = new(targets),
            KeptOffsets = (ulong)keptOffsets.Address,
            Dealt = dealt,
            Sequences = sequences,
            BlockSize = cache.BlockSize,
        });
        return dealt;
    }
}
