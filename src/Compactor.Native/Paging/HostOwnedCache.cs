using Compactor.Native.Compression;

namespace Compactor.Native.Paging;

/// <summary>
/// Compaction inside a cache that its host owns, with one block table for all heads of a sequence (NHD or HND). Every head must keep equally many tokens, as in head
/// and token scope; the host gets whole blocks back.
/// </summary>
public static class HostOwnedCache
{
    /// <summary>Queues the move of survivors to the front of a sequence's own blocks.</summary>
    /// <param name="backend">Whose memory the cache is in.</param>
    /// <param name="cache">The host's keys and values.</param>
    /// <param name="kvHeads">KV heads Hkv.</param>
    /// <param name="table">Block ids of the sequence in this layer, shared by its heads.</param>
    /// <param name="length">Tokens it holds.</param>
    /// <param name="keptSlots">Slots that survive, ascending per head.</param>
    /// <param name="keptOffsets"><c>[Hkv + 1]</c>: where each head's slots start in <paramref name="keptSlots"/>.</param>
    /// <returns>Tokens held afterwards, and how many blocks at the front of <paramref name="table"/> hold them: the host may reuse the others.</returns>
    /// <exception cref="CompactorException">Heads keep different numbers (ragged), slots do not ascend within the length, or the cache's strides or blocks cannot be; nothing has changed then.</exception>
    public static (int Length, int Blocks) Compact(KvBackend backend, in PagedView cache, int kvHeads, ReadOnlySpan<int> table, int length, ReadOnlySpan<int> keptSlots, ReadOnlySpan<int> keptOffsets)
    {
        cache.Validate(kvHeads);
        RequireRoom(cache, table, length);
        int[] counts = CacheSequence.Counts(keptSlots, keptOffsets, kvHeads);
        int kept = counts[0];
        for (int head = 0; head < kvHeads; head++)
        {
            int previous = -1;
            if (counts[head] != kept)
                throw Ragged($"Head {head} keeps {counts[head]} tokens and head 0 keeps {kept}");
            foreach (int slot in keptSlots[keptOffsets[head]..keptOffsets[head + 1]])
            {
                if (slot <= previous || slot >= length)
                    throw CompactorException.Argument($"Kept slot {slot} of head {head} follows {previous}; slots must ascend below {length}.");
                previous = slot;
            }
        }
        using var lists = CallTables.Of(backend, table, keptSlots, keptOffsets, out var tables, out var slots, out var offsets);
        backend.CompactInPlace(cache, kvHeads, tables, table.Length, slots, offsets);
        return (kept, Blocks(cache, kept));
    }

    /// <summary>Queues the same for a batch, from a selection that stays in backend memory; what each sequence keeps is known from its plan.</summary>
    /// <param name="backend">Whose memory cache and selection are in.</param>
    /// <param name="cache">The host's keys and values.</param>
    /// <param name="tables">Block ids of each sequence in this layer; they hold the tokens the selection was made from, in order.</param>
    /// <param name="selection">What is kept, in head or token scope.</param>
    /// <returns><c>[B]</c> tokens held afterwards, and how many blocks at the front of each table hold them.</returns>
    /// <exception cref="CompactorException">The selection is ragged, or the tables are too short; nothing has changed then.</exception>
    public static (int Length, int Blocks)[] Compact(KvBackend backend, in PagedView cache, IReadOnlyList<ReadOnlyMemory<int>> tables, LayerSelection selection)
    {
        var plan = selection.Plan;
        if (tables.Count != plan.Shape.Sequences)
            throw CompactorException.Argument($"There are {tables.Count} tables for {plan.Shape.Sequences} sequences; give one a sequence.");
        if (plan.Shape.IsRagged || (plan.Options.SelectionScope == SelectionScope.Sequence && !plan.KeepsEverything))
            throw Ragged("Heads of a selection in sequence scope keep different numbers of tokens");
        cache.Validate(plan.Shape.KvHeads);
        int stride = 0;
        var results = new (int, int)[tables.Count];
        for (int b = 0; b < tables.Count; b++)
        {
            RequireRoom(cache, tables[b].Span, plan.Shape.LengthOf(b));
            stride = Math.Max(stride, tables[b].Length);
            results[b] = (plan.KeptTokensOf(b, 0), Blocks(cache, plan.KeptTokensOf(b, 0)));
        }
        var padded = new int[tables.Count * stride];
        for (int b = 0; b < tables.Count; b++)
            tables[b].Span.CopyTo(padded.AsSpan(b * stride));
        using var lists = CallTables.Of(backend, padded, [], out var view, out _);
        backend.CompactInPlace(cache, plan.Shape.KvHeads, view, stride, selection.KeptIndices.View, selection.KeptOffsets.View);
        return results;
    }

    private static int Blocks(in PagedView cache, int tokens) => (tokens + cache.BlockSize - 1) / cache.BlockSize;

    private static void RequireRoom(in PagedView cache, ReadOnlySpan<int> table, int length)
    {
        if (length < 0 || length > (long)table.Length * cache.BlockSize)
            throw CompactorException.Argument($"The sequence holds {length} tokens; its {table.Length} blocks of {cache.BlockSize} hold 0 to {(long)table.Length * cache.BlockSize}.");
        foreach (int block in table[..Blocks(cache, length)])
            if (block < 0)
                throw CompactorException.Argument($"Block {block} is among those that hold the sequence's {length} tokens; ids are 0 or more.");
    }

    private static CompactorException Ragged(string reason) => CompactorException.Unsupported(
        $"{reason}: a cache with one block table for all heads cannot hold heads of different lengths. Select in head or token scope, or use a PagedCache, which has a table for each head.");
}
