namespace Compactor.Native.Paging;

/// <summary>
/// A compaction, or a store of survivors, between its two phases, of one layer of a batch of sequences. First phase: for K survivors of a sequence,
/// floor(K / block size) + Hkv blocks are reserved (where every token is stored, what they take), which suffice however the survivors are spread over heads; the backend deals them to heads and copies survivors while
/// the old blocks stay readable. Second phase, <see cref="Complete"/>, once the backend's event has passed: the new tables become the sequences' and the old blocks,
/// and those reserved too much, are free. Disposing it before that cancels it. The layer refuses other changes in between.
/// </summary>
public sealed class PendingCompaction : IDisposable
{
    private readonly CacheSequence[] _sequences;
    private readonly LayerTable[] _tables;
    private readonly int _layer;
    private readonly bool _replaces;
    private readonly long[] _survivors;
    private readonly int[] _reserved, _reservedStarts;
    private readonly PagedCache? _cache;
    private BackendBuffer<int>? _offsets;
    private int[]? _counts;
    private BackendEvent? _moved;
    private int _positionEnd;
    private bool _ended;
    private ScoringStatus _status = ScoringStatus.Fine;
    private bool _ownsStatus;

    /// <summary>Reserves the blocks of the whole batch, or throws and reserves none.</summary>
    internal PendingCompaction(IReadOnlyList<CacheSequence> sequences, int layer, IReadOnlyList<long> survivors, bool replaces, bool everyToken = false)
    {
        (_sequences, _layer, _replaces, _survivors) = ([.. sequences], layer, replaces, [.. survivors]);
        _tables = new LayerTable[sequences.Count];
        _reservedStarts = new int[sequences.Count];
        long total = 0, pairs = 0;
        _cache = CacheSequence.RequireBatch(sequences);
        for (int b = 0; b < sequences.Count; b++)
        {
            _tables[b] = sequences[b].ChangeableTable(layer);
            _reservedStarts[b] = checked((int)total);
            int heads = _cache!.Options.KvHeads;
            if (everyToken)
                for (int head = 0; head < heads; head++)
                    total += sequences[b].MissingBlocks(_tables[b], head, checked((int)(survivors[b] / heads)));
            else
                total += survivors[b] / _cache.Options.BlockSize + heads;
            pairs += survivors[b];
        }
        _reserved = _cache?.Take(total, $"{(replaces ? "Compacting" : "Storing survivors in")} layer {layer} to {pairs} pairs") ?? [];
        foreach (var table in _tables)
            table.IsPending = true;
    }

    /// <summary>Blocks reserved.</summary>
    public int ReservedBlocks => _reserved.Length;

    /// <summary>Whether survivors have been moved and the backend's event has passed, so that <see cref="Complete"/> does not wait.</summary>
    public bool IsReady => _sequences.Length == 0 || _moved is { HasPassed: true };

    /// <summary>
    /// What decided: the name of a <see cref="Compression.SelectionPolicy"/>, "leverage" where a policy that also uses queries was given none; null where nothing was scored.
    /// </summary>
    public string? ScoredBy { get; internal set; }

    /// <summary><see cref="Complete"/> asks what scoring found.</summary>
    internal void Watch(ScoringStatus status) => _status = status;

    /// <summary>The same, of a status that nobody else disposes.</summary>
    internal void Own(ScoringStatus status) => (_status, _ownsStatus) = (status, true);

    /// <summary>Deals reserved blocks to heads, by a scan over their counts, and copies the survivors with their positions.</summary>
    /// <param name="keptSlots">Slots that survive, ascending per head, sequence by sequence.</param>
    /// <param name="keptOffsets"><c>[B·Hkv + 1]</c>: where each head's slots start in <paramref name="keptSlots"/>.</param>
    /// <exception cref="CompactorException">Slots that are not held or do not ascend, or another number than was reserved for; nothing has changed then.</exception>
    public void Move(ReadOnlySpan<int> keptSlots, ReadOnlySpan<int> keptOffsets)
    {
        var cache = RequireMovable(replaces: true);
        int heads = cache.Options.KvHeads;
        int[] counts = CacheSequence.Counts(keptSlots, keptOffsets, _tables.Length * heads);
        for (int row = 0; row < counts.Length; row++)
        {
            int previous = -1, length = _tables[row / heads].Lengths[row % heads];
            foreach (int slot in keptSlots[keptOffsets[row]..keptOffsets[row + 1]])
            {
                if (slot <= previous || slot >= length)
                    throw CompactorException.Argument($"Kept slot {slot} of layer {_layer}, head {row % heads} follows {previous}; slots must ascend below {length}.");
                previous = slot;
            }
        }
        RequireReserved(counts);
        using var lists = CallTables.Of(cache.Backend, keptSlots, keptOffsets, out var slots, out var offsets);
        QueueMove(slots, offsets);
        _counts = counts;
    }

    /// <summary>
    /// The same with lists in backend memory, as a selection holds them: nothing is read on the calling thread, and the lengths of the heads come back behind the event.
    /// </summary>
    /// <param name="keptSlots">Slots that survive, ascending per head, below its length; as many as were reserved for.</param>
    /// <param name="keptOffsets"><c>[B·Hkv + 1]</c>: where each head's slots start.</param>
    /// <exception cref="CompactorException">The lists have another length than was reserved for.</exception>
    public void Move(BufferView<int> keptSlots, BufferView<int> keptOffsets)
    {
        RequireMovable(replaces: true);
        RequireLists(keptSlots, keptOffsets);
        QueueMove(keptSlots, keptOffsets);
        ReadBack(keptOffsets);
    }

    /// <summary>Copies survivors from dense tensors.</summary>
    internal void Store(in TensorView key, in TensorView value, ReadOnlySpan<int> firstTokens, ReadOnlySpan<int> firstPositions, int positionEnd,
        BufferView<int> keptIndices, BufferView<int> keptOffsets)
    {
        var cache = RequireMovable(replaces: false);
        RequireLists(keptIndices, keptOffsets);
        var most = new int[_tables.Length];
        for (int b = 0; b < most.Length; b++)
            most[b] = (int)Math.Min(int.MaxValue, _survivors[b]);
        using var call = CallTables.Targets(cache.Backend, _tables, cache.Options.BlockSize, replace: false, most, _reserved, _reservedStarts, out var targets);
        using var runs = CallTables.Of(cache.Backend, firstTokens, firstPositions, out var first, out var position);
        cache.Backend.StoreSurvivors(cache.Slots, key, value, new TokenRuns(first, position), keptIndices, keptOffsets, targets);
        _positionEnd = positionEnd;
        ReadBack(keptOffsets);
    }

    /// <summary>Second phase: waits for the move; then the sequences have the survivors, and what is left over is free.</summary>
    /// <exception cref="CompactorException">
    /// Nothing has been moved yet, the lists had other counts than were reserved for, or scoring met data that is not finite; the sequences are as they were then.
    /// </exception>
    public void Complete()
    {
        ObjectDisposedException.ThrowIf(_ended, this);
        if (_cache is not { } cache)
        {
            _ended = true;
            return;
        }
        if (_moved is null)
            throw CompactorException.Argument("Complete was called before Move; move the survivors first.");
        foreach (var sequence in _sequences)
            sequence.Table(_layer);
        _moved.Wait();
        _status.ThrowIfFailed();
        int[] counts = _counts ?? ReadCounts();
        RequireReserved(counts);
        for (int b = 0; b < _tables.Length; b++)
            Become(cache, b, counts.AsSpan(b * cache.Options.KvHeads, cache.Options.KvHeads));
        End();
    }

    /// <summary>Cancels what is not complete: the reserved blocks are free again, the sequences are as they were.</summary>
    /// <exception cref="CompactorException">The device has failed; the compaction is cancelled all the same.</exception>
    public void Dispose()
    {
        if (_ended)
            return;
        try
        {
            _moved?.Wait();
        }
        finally
        {
            _cache?.Give(_reserved, 0);
            End();
        }
    }

    private void End()
    {
        _ended = true;
        foreach (var table in _tables)
            table.IsPending = false;
        _moved?.Dispose();
        _offsets?.Dispose();
        if (_ownsStatus)
            _status.Dispose();
    }

    /// <summary>Repeats the backend's dealing on the sequence's table.</summary>
    private void Become(PagedCache cache, int b, ReadOnlySpan<int> counts)
    {
        var table = _tables[b];
        int blockSize = cache.Options.BlockSize, at = _reservedStarts[b], end = b + 1 < _tables.Length ? _reservedStarts[b + 1] : _reserved.Length;
        int[] old = _replaces ? table.OwnBlocks() : [];
        long oldPairs = _replaces ? table.OwnPairs(blockSize) : 0;
        if (_replaces)
        {
            var rows = new List<int>[counts.Length];
            for (int head = 0; head < rows.Length; head++)
                rows[head] = [];
            table.Become(rows, new int[counts.Length], new int[counts.Length]);
        }
        for (int head = 0; head < counts.Length; head++)
        {
            int length = table.Lengths[head], listed = table.Rows[head].Count - length / blockSize;
            int dealt = PagedTargets.Dealt(length % blockSize, counts[head], listed, blockSize);
            table.Rows[head].AddRange(_reserved.AsSpan(at, dealt));
            table.Lengths[head] += counts[head];
            at += dealt;
        }
        table.PositionEnd = Math.Max(table.PositionEnd, _positionEnd);
        cache.AddPairs(_survivors[b]);
        cache.Give(old, oldPairs);
        cache.Give(_reserved.AsSpan(at, end - at), 0);
        if (_replaces)
            _sequences[b].ReleaseUnusedPrefix();
    }

    private int[] ReadCounts()
    {
        var offsets = _offsets!.View.AsSpan();
        var counts = new int[offsets.Length - 1];
        for (int row = 0; row < counts.Length; row++)
            counts[row] = offsets[row + 1] - offsets[row];
        return counts;
    }

    private PagedCache RequireMovable(bool replaces)
    {
        ObjectDisposedException.ThrowIf(_ended, this);
        if (_replaces != replaces || _moved is not null || _cache is not { } cache)
            throw CompactorException.Argument("Survivors have been moved already; complete or cancel the compaction.");
        foreach (var sequence in _sequences)
            sequence.Table(_layer);
        return cache;
    }

    private void RequireLists(BufferView<int> kept, BufferView<int> offsets)
    {
        long survivors = 0;
        foreach (long ofSequence in _survivors)
            survivors += ofSequence;
        int rows = _tables.Length * _cache!.Options.KvHeads;
        if (kept.Length != survivors || offsets.Length != rows + 1)
            throw CompactorException.Argument($"There are {kept.Length} kept indices and {offsets.Length} offsets; blocks were reserved for {survivors}, in {rows} heads.");
    }

    private void RequireReserved(int[] counts)
    {
        int heads = _cache!.Options.KvHeads;
        for (int b = 0; b < _survivors.Length; b++)
        {
            long kept = 0;
            for (int head = 0; head < heads; head++)
                kept += counts[b * heads + head];
            if (kept != _survivors[b])
                throw CompactorException.Argument($"{kept} slots are kept; blocks were reserved for {_survivors[b]}.");
        }
    }

    private void QueueMove(BufferView<int> keptSlots, BufferView<int> keptOffsets)
    {
        var cache = _cache!;
        using var call = CallTables.Targets(cache.Backend, _tables, cache.Options.BlockSize, replace: true, [], _reserved, _reservedStarts, out var targets);
        using var held = CallTables.Held(cache.Backend, _tables, cache.Options.BlockSize, out var from);
        cache.Backend.MoveSurvivors(cache.Slots, from, keptSlots, keptOffsets, targets);
        _moved = cache.Backend.Record();
    }

    private void ReadBack(BufferView<int> keptOffsets)
    {
        _offsets = _cache!.Backend.AllocateHost<int>(keptOffsets.Length);
        _cache.Backend.Download(keptOffsets, _offsets.View);
        _moved?.Dispose();
        _moved = _cache.Backend.Record();
    }
}
