using Compactor.Native.Paging;

namespace Compactor.Native.Cpu;

/// <summary>
/// Copies of a paged cache's rows. A work item is a run of at most 512 new slots of one row, so that items write disjoint slots; small calls run on
/// the calling thread alone. Bytes: 2·D elements and a position read and written a slot.
/// </summary>
internal static unsafe class CpuPagedMoves
{
    private const int RunSlots = 512;

    /// <summary>Below this many bytes a call costs less than waking a thread.</summary>
    private const long SmallBytes = 256 << 10;

    private readonly record struct Run(int Row, int First, int Count);

    /// <summary>Where the new slots of rows are: listed blocks, then dealt ones.</summary>
    private readonly struct Targets(PagedTargets targets, int[] dealt, int blockSize)
    {
        public int Block(int row, int i, out int slot)
        {
            int at = ((int*)targets.Starts.Address)[row] + i, block = at / blockSize, listed = ((int*)targets.Listed.Address)[row];
            slot = at - block * blockSize;
            return block < listed
                ? ((int*)targets.Blocks.Address)[(long)row * targets.RowStride + block]
                : ((int*)targets.Reserved.Address)[dealt[row] + block - listed];
        }
    }

    public static void StoreTokens(Workers workers, PagedSlots slots, TensorView key, TensorView value, TokenRuns tokens, BufferView<int> counts, PagedTargets targets)
    {
        var rowCounts = new int[targets.Rows];
        for (int row = 0; row < rowCounts.Length; row++)
            rowCounts[row] = counts.AsSpan()[row / targets.KvHeads];
        Store(workers, slots, key, value, tokens, null, null, rowCounts, targets);
    }

    public static void StoreSurvivors(Workers workers, PagedSlots slots, TensorView key, TensorView value, TokenRuns tokens,
        BufferView<int> keptIndices, BufferView<int> keptOffsets, PagedTargets targets) =>
        Store(workers, slots, key, value, tokens, (int*)keptIndices.Address, (int*)keptOffsets.Address, Counts(keptOffsets), targets);

    private static void Store(Workers workers, PagedSlots slots, TensorView key, TensorView value, TokenRuns tokens, int* indices, int* offsets, int[] counts, PagedTargets targets)
    {
        var to = Deal(targets, counts, slots.Cache.BlockSize);
        var view = slots.Cache;
        nuint rowBytes = RowBytes(view);
        int kvHeads = targets.KvHeads;
        ForEachRun(workers, counts, rowBytes, run =>
        {
            int b = run.Row / kvHeads, head = run.Row % kvHeads, start = ((int*)tokens.First.Address)[b], position = ((int*)tokens.FirstPosition.Address)[b];
            for (int i = run.First; i < run.First + run.Count; i++)
            {
                int token = indices == null ? i : indices[offsets[run.Row] + i], block = to.Block(run.Row, i, out int slot);
                nint offset = (nint)view.Offset(block, slot, 0);
                Copy(key.Row(b, start, token, head), view.Keys + offset, rowBytes);
                Copy(value.Row(b, start, token, head), view.Values + offset, rowBytes);
                ((int*)slots.Positions.Address)[(long)block * view.BlockSize + slot] = position + token;
            }
        });
    }

    public static void MoveSurvivors(Workers workers, PagedSlots slots, PagedTables from, BufferView<int> keptSlots, BufferView<int> keptOffsets, PagedTargets targets)
    {
        int[] counts = Counts(keptOffsets);
        var to = Deal(targets, counts, slots.Cache.BlockSize);
        var view = slots.Cache;
        nuint rowBytes = RowBytes(view);
        int* kept = (int*)keptSlots.Address, offsets = (int*)keptOffsets.Address, positions = (int*)slots.Positions.Address;
        ForEachRun(workers, counts, rowBytes, run =>
        {
            int* table = (int*)from.Tables.Address + (long)run.Row * from.RowStride;
            for (int i = run.First; i < run.First + run.Count; i++)
            {
                int old = kept[offsets[run.Row] + i], oldBlock = table[old / view.BlockSize], oldSlot = old % view.BlockSize;
                int block = to.Block(run.Row, i, out int slot);
                CopySlot(view, positions, oldBlock, oldSlot, block, slot, rowBytes);
            }
        });
    }

    public static void CopyBlocks(Workers workers, PagedSlots slots, BufferView<int> from, BufferView<int> to, BufferView<int> counts)
    {
        var view = slots.Cache;
        nuint rowBytes = RowBytes(view);
        int* positions = (int*)slots.Positions.Address, source = (int*)from.Address, target = (int*)to.Address;
        ForEachRun(workers, counts.AsSpan().ToArray(), rowBytes, run =>
        {
            for (int slot = run.First; slot < run.First + run.Count; slot++)
                CopySlot(view, positions, source[run.Row], slot, target[run.Row], slot, rowBytes);
        });
    }

    /// <summary>A (sequence, head) is one item: its rows move forward in order.</summary>
    public static void CompactInPlace(Workers workers, PagedView cache, int kvHeads, BufferView<int> tables, int rowStride, BufferView<int> keptSlots, BufferView<int> keptOffsets)
    {
        nuint rowBytes = RowBytes(cache);
        int* kept = (int*)keptSlots.Address, offsets = (int*)keptOffsets.Address;
        workers.Run((int)keptOffsets.Length - 1, 0, (row, _) =>
        {
            int* table = (int*)tables.Address + (long)(row / kvHeads) * rowStride;
            for (int i = 0; i < offsets[row + 1] - offsets[row]; i++)
            {
                int slot = kept[offsets[row] + i];
                if (slot == i)
                    continue;
                nint from = (nint)cache.Offset(table[slot / cache.BlockSize], slot % cache.BlockSize, row % kvHeads);
                nint to = (nint)cache.Offset(table[i / cache.BlockSize], i % cache.BlockSize, row % kvHeads);
                Copy(cache.Keys + from, cache.Keys + to, rowBytes);
                Copy(cache.Values + from, cache.Values + to, rowBytes);
            }
        });
    }

    /// <summary>Slots of a block lie together on both sides, so a run is copied block by block.</summary>
    public static void GatherSlots(Workers workers, PagedSlots slots, PagedTables tables, BufferView<int> offsets, BufferView<byte> keys, BufferView<byte> values, BufferView<int> positions)
    {
        var view = slots.Cache;
        nuint rowBytes = RowBytes(view);
        ForEachRun(workers, tables.Lengths.AsSpan().ToArray(), rowBytes, run =>
        {
            int* table = (int*)tables.Tables.Address + (long)run.Row * tables.RowStride;
            long start = ((int*)offsets.Address)[run.Row];
            for (int i = run.First, end = run.First + run.Count; i < end;)
            {
                int block = table[i / view.BlockSize], slot = i % view.BlockSize, here = Math.Min(view.BlockSize - slot, end - i);
                nint from = (nint)view.Offset(block, slot, 0), to = (nint)((start + i) * (long)rowBytes);
                Copy(view.Keys + from, keys.Address + to, (nuint)here * rowBytes);
                Copy(view.Values + from, values.Address + to, (nuint)here * rowBytes);
                Copy((nint)((int*)slots.Positions.Address + (long)block * view.BlockSize + slot), (nint)((int*)positions.Address + start + i), (nuint)here * sizeof(int));
                i += here;
            }
        });
    }

    private static Targets Deal(PagedTargets targets, int[] counts, int blockSize)
    {
        var dealt = new int[counts.Length];
        for (int row = 0, at = 0; row < counts.Length; row++)
        {
            if (row % targets.KvHeads == 0)
                at = targets.ReservedStarts.AsSpan()[row / targets.KvHeads];
            dealt[row] = at;
            at += PagedTargets.Dealt(targets.Starts.AsSpan()[row], counts[row], targets.Listed.AsSpan()[row], blockSize);
        }
        return new Targets(targets, dealt, blockSize);
    }

    private static int[] Counts(BufferView<int> offsets)
    {
        var from = offsets.AsSpan();
        var counts = new int[from.Length - 1];
        for (int row = 0; row < counts.Length; row++)
            counts[row] = from[row + 1] - from[row];
        return counts;
    }

    private static void ForEachRun(Workers workers, int[] counts, nuint rowBytes, Action<Run> body)
    {
        long slots = 0;
        int items = 0;
        foreach (int count in counts)
        {
            slots += count;
            items += (count + RunSlots - 1) / RunSlots;
        }
        if (workers.Threads == 1 || items < 2 || 2 * slots * (long)rowBytes < SmallBytes)
        {
            for (int row = 0; row < counts.Length; row++)
                body(new Run(row, 0, counts[row]));
            return;
        }
        var runs = new Run[items];
        for (int row = 0, n = 0; row < counts.Length; row++)
            for (int first = 0; first < counts[row]; first += RunSlots)
                runs[n++] = new Run(row, first, Math.Min(RunSlots, counts[row] - first));
        workers.Run(items, 0, (item, _) => body(runs[item]));
    }

    private static void CopySlot(PagedView view, int* positions, int fromBlock, int fromSlot, int toBlock, int toSlot, nuint rowBytes)
    {
        nint from = (nint)view.Offset(fromBlock, fromSlot, 0), to = (nint)view.Offset(toBlock, toSlot, 0);
        Copy(view.Keys + from, view.Keys + to, rowBytes);
        Copy(view.Values + from, view.Values + to, rowBytes);
        positions[(long)toBlock * view.BlockSize + toSlot] = positions[(long)fromBlock * view.BlockSize + fromSlot];
    }

    private static nuint RowBytes(PagedView view) => (nuint)(view.Dim * view.ElementType.Size());

    private static void Copy(nint from, nint to, nuint bytes) => Buffer.MemoryCopy((void*)from, (void*)to, bytes, bytes);
}
