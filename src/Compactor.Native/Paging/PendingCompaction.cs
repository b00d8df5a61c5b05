namespace Compactor.Native.Paging;

/// <summary>
/// A compaction between its two phases: survivors move into reserved blocks while the old ones are still readable; <see cref="Complete"/>, to be called once
/// the move has been done, makes the new table the sequence's and gives back the old blocks and what was reserved too much. Disposing it before that cancels it.
/// The sequence must not be changed in between.
/// </summary>
public sealed class PendingCompaction : IDisposable
{
    private readonly CacheSequence _sequence;
    private readonly int _layer, _survivors;
    private readonly int[] _reserved;
    private (List<int>[] Rows, int[] Lengths)? _moved;
    private int _dealt;
    private bool _ended;

    internal PendingCompaction(CacheSequence sequence, int layer, int survivors, int[] reserved) =>
        (_sequence, _layer, _survivors, _reserved) = (sequence, layer, survivors, reserved);

    /// <summary>Blocks reserved.</summary>
    public int ReservedBlocks => _reserved.Length;

    /// <summary>Deals reserved blocks to heads, by a scan over their counts, and copies the survivors with their positions.</summary>
    /// <param name="keptSlots">Slots that survive, ascending per head.</param>
    /// <param name="keptOffsets"><c>[Hkv + 1]</c>: where each head's slots start in <paramref name="keptSlots"/>.</param>
    /// <exception cref="CompactorException">Slots that are not held or do not ascend, or another number than was reserved for; nothing has changed then.</exception>
    public void Move(ReadOnlySpan<int> keptSlots, ReadOnlySpan<int> keptOffsets)
    {
        ObjectDisposedException.ThrowIf(_ended, this);
        var table = _sequence.Table(_layer);
        int[] counts = _sequence.Counts(keptSlots, keptOffsets);
        if (counts.Sum() != _survivors)
            throw CompactorException.Argument($"{counts.Sum()} slots are kept; blocks were reserved for {_survivors}.");
        for (int head = 0; head < counts.Length; head++)
        {
            int previous = -1;
            foreach (int slot in keptSlots[keptOffsets[head]..keptOffsets[head + 1]])
            {
                if (slot <= previous || slot >= table.Lengths[head])
                    throw CompactorException.Argument($"Kept slot {slot} of layer {_layer}, head {head} follows {previous}; slots must ascend below {table.Lengths[head]}.");
                previous = slot;
            }
        }

        int blockSize = _sequence.Cache.Options.BlockSize;
        _dealt = 0;
        var rows = new List<int>[counts.Length];
        for (int head = 0; head < counts.Length; head++)
        {
            int blocks = _sequence.BlocksFor(counts[head]), to = 0;
            rows[head] = [.. _reserved.AsSpan(_dealt, blocks)];
            _dealt += blocks;
            foreach (int slot in keptSlots[keptOffsets[head]..keptOffsets[head + 1]])
            {
                _sequence.CopySlot(table.Rows[head][slot / blockSize], slot % blockSize, rows[head][to / blockSize], to % blockSize);
                to++;
            }
        }
        _moved = (rows, counts);
    }

    /// <summary>Second phase: the sequence has the survivors; the old blocks and the rest of the reserved ones are free.</summary>
    /// <exception cref="CompactorException">Nothing has been moved yet.</exception>
    public void Complete()
    {
        ObjectDisposedException.ThrowIf(_ended, this);
        if (_moved is not { } moved)
            throw CompactorException.Argument("Complete was called before Move; move the survivors first.");
        _ended = true;
        var table = _sequence.Table(_layer);
        int[] old = [.. table.OwnBlocks];
        table.Become(moved.Rows, moved.Lengths, new int[moved.Lengths.Length]);
        _sequence.Cache.Give(old);
        _sequence.Cache.Give(_reserved.AsSpan(_dealt));
        _sequence.ReleaseUnusedPrefix();
    }

    /// <summary>Cancels a compaction that is not complete: the reserved blocks are free again, the sequence is as it was.</summary>
    public void Dispose()
    {
        if (_ended)
            return;
        _ended = true;
        _sequence.Cache.Give(_reserved);
    }
}
