using System.Runtime.InteropServices;

namespace Compactor.Native.Paging;

/// <summary>
/// Compaction inside a cache that its host owns, with one block table for all heads of a sequence (NHD or HND). Every head must keep equally many tokens, as in head
/// and token scope; the host gets whole blocks back.
/// </summary>
public static unsafe class HostOwnedCache
{
    /// <summary>Moves survivors to the front of a sequence's own blocks.</summary>
    /// <param name="cache">The host's keys and values, in host memory.</param>
    /// <param name="kvHeads">KV heads Hkv.</param>
    /// <param name="table">Block ids of the sequence in this layer, shared by its heads.</param>
    /// <param name="length">Tokens it holds.</param>
    /// <param name="keptSlots">Slots that survive, ascending per head.</param>
    /// <param name="keptOffsets"><c>[Hkv + 1]</c>: where each head's slots start in <paramref name="keptSlots"/>.</param>
    /// <returns>Tokens held now, and how many blocks at the front of <paramref name="table"/> hold them: the host may reuse the others.</returns>
    /// <exception cref="CompactorException">Heads keep different numbers (ragged), or slots do not ascend within the length; nothing has changed then.</exception>
    public static (int Length, int Blocks) Compact(in PagedView cache, int kvHeads, ReadOnlySpan<int> table, int length, ReadOnlySpan<int> keptSlots, ReadOnlySpan<int> keptOffsets)
    {
        if (length < 0 || length > (long)table.Length * cache.BlockSize)
            throw CompactorException.Argument($"The sequence holds {length} tokens; its {table.Length} blocks of {cache.BlockSize} hold 0 to {(long)table.Length * cache.BlockSize}.");
        if (keptOffsets.Length != kvHeads + 1 || keptOffsets[0] < 0 || keptOffsets[^1] > keptSlots.Length)
            throw CompactorException.Argument($"There are {keptOffsets.Length} offsets into {keptSlots.Length} slots; expected {kvHeads + 1} within them.");
        int kept = keptOffsets[1] - keptOffsets[0];
        for (int head = 0; head < kvHeads; head++)
        {
            int count = keptOffsets[head + 1] - keptOffsets[head], previous = -1;
            if (count != kept || count < 0)
                throw CompactorException.Unsupported(
                    $"Head {head} keeps {count} tokens and head 0 keeps {kept}: a cache with one block table for all heads cannot hold heads of different lengths. " +
                    "Select in head or token scope, or use a PagedCache, which has a table for each head.");
            foreach (int slot in keptSlots[keptOffsets[head]..keptOffsets[head + 1]])
            {
                if (slot <= previous || slot >= length)
                    throw CompactorException.Argument($"Kept slot {slot} of head {head} follows {previous}; slots must ascend below {length}.");
                previous = slot;
            }
        }
        nuint rowBytes = (nuint)(cache.Dim * cache.ElementType.Size());
        for (int head = 0; head < kvHeads; head++)
            for (int i = 0; i < kept; i++)
            {
                int slot = keptSlots[keptOffsets[head] + i];
                nint from = (nint)cache.Offset(table[slot / cache.BlockSize], slot % cache.BlockSize, head);
                nint to = (nint)cache.Offset(table[i / cache.BlockSize], i % cache.BlockSize, head);
                NativeMemory.Copy((void*)(cache.Keys + from), (void*)(cache.Keys + to), rowBytes);
                NativeMemory.Copy((void*)(cache.Values + from), (void*)(cache.Values + to), rowBytes);
            }
        return (kept, (kept + cache.BlockSize - 1) / cache.BlockSize);
    }
}
