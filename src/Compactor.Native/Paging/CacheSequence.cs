using System.Runtime.InteropServices;

namespace Compactor.Native.Paging;

/// <summary>
/// One sequence of a paged cache: per layer a block table <c>[Hkv, blocks]</c> and lengths <c>[Hkv]</c>, which need not be equal. Keys and values keep the
/// position they were stored with; the next position is not the number of slots. Every operation that needs blocks either gets all of them or throws
/// <see cref="CompactorStatus.OutOfBlocks"/> and leaves cache and sequence exactly as they were.
/// Tokens are copied by the cache's backend, which may do so after the call returns; tables and lengths are up to date at once.
/// </summary>
public sealed class CacheSequence : IDisposable
{
    private readonly LayerTable[] _layers;
    private SharedPrefix? _prefix;
    private bool _freed;

    internal CacheSequence(PagedCache cache)
    {
        Cache = cache;
        _layers = [.. Enumerable.Range(0, cache.Options.Layers).Select(_ => new LayerTable(cache.Options.KvHeads))];
    }

    /// <summary>The cache it is part of.</summary>
    public PagedCache Cache { get; }

    /// <summary>Tokens each head of a layer holds, <c>[Hkv]</c>.</summary>
    public ReadOnlySpan<int> Lengths(int layer) => Table(layer).Lengths;

    /// <summary>Block ids of one head, in the order of its slots.</summary>
    public ReadOnlySpan<int> Blocks(int layer, int head) => CollectionsMarshal.AsSpan(Table(layer).Rows[head]);

    /// <summary>Blocks the sequence would give back if it were freed now; a prefix that others share is not among them.</summary>
    public int OwnBlocks => _layers.Sum(layer => layer.OwnBlocks().Length);

    /// <summary>Slots of the sequence's blocks, shared ones included, that hold no token.</summary>
    public long UnusedSlots => _layers.Sum(layer => layer.Rows.Select((row, head) => (long)row.Count * Cache.Options.BlockSize - layer.Lengths[head]).Sum());

    /// <summary>A position above every one stored in a layer: where decoding goes on.</summary>
    public int PositionEnd(int layer) => Table(layer).PositionEnd;

    /// <summary>Whether the blocks that <paramref name="tokens"/> more tokens in every head of a layer take are free at this moment.</summary>
    /// <exception cref="CompactorException">There is no such layer, or the number is negative.</exception>
    public bool CanStore(int layer, int tokens)
    {
        var table = Table(layer);
        if (tokens < 0)
            throw CompactorException.Argument($"There is no room for {tokens} tokens; use 0 or more.");
        return Enumerable.Range(0, table.Rows.Length).Sum(head => (long)MissingBlocks(table, head, tokens)) <= Cache.FreeBlocks;
    }

    /// <summary>Takes the blocks that <paramref name="tokens"/> more tokens in every head of a layer need, so that storing them cannot run out.</summary>
    /// <exception cref="CompactorException"><see cref="CompactorStatus.OutOfBlocks"/>, or a negative number of tokens.</exception>
    public void Reserve(int layer, int tokens)
    {
        if (tokens < 0)
            throw CompactorException.Argument($"Room for {tokens} tokens cannot be reserved; use 0 or more.");
        int[] counts = new int[Cache.Options.KvHeads];
        Array.Fill(counts, tokens);
        Extend(layer, counts, $"Reserving room for {tokens} tokens in layer {layer}");
    }

    /// <summary>Adds tokens to every head of a layer: a prefill, a chunk of one, or (with one token) a decode step.</summary>
    /// <param name="layer">Layer.</param>
    /// <param name="key">Keys after RoPE, <c>[., Hkv, D]</c>.</param>
    /// <param name="value">Values, <c>[., Hkv, D]</c>.</param>
    /// <param name="firstToken">Packed index in the tensors of the first token to add.</param>
    /// <param name="tokens">Tokens to add.</param>
    /// <param name="firstPosition">Position of the first; the others follow.</param>
    /// <exception cref="CompactorException">The tensors do not fit, or <see cref="CompactorStatus.OutOfBlocks"/>.</exception>
    public void Store(int layer, in TensorView key, in TensorView value, int firstToken, int tokens, int firstPosition)
    {
        Check(key, value, firstToken, tokens);
        StoreTokens([this], layer, key, value, [firstToken], [tokens], [firstPosition]);
    }

    /// <summary>A decode step of a batch: adds token b of the tensors to sequence b, in every head of a layer; to all sequences or to none.</summary>
    /// <param name="sequences">The B sequences, all of one cache, each once.</param>
    /// <param name="layer">Layer.</param>
    /// <param name="key">Keys after RoPE, packed <c>[B, Hkv, D]</c>.</param>
    /// <param name="value">Values, packed <c>[B, Hkv, D]</c>.</param>
    /// <param name="positions"><c>[B]</c> position of each token.</param>
    /// <exception cref="CompactorException">Something does not fit, or <see cref="CompactorStatus.OutOfBlocks"/>; nothing has changed then.</exception>
    public static void Append(IReadOnlyList<CacheSequence> sequences, int layer, in TensorView key, in TensorView value, ReadOnlySpan<int> positions)
    {
        if (positions.Length != sequences.Count)
            throw CompactorException.Argument($"There are {positions.Length} positions for {sequences.Count} sequences; give one a sequence.");
        RequireBatch(sequences);
        var tokens = new int[sequences.Count];
        for (int b = 0; b < tokens.Length; b++)
        {
            tokens[b] = b;
            sequences[b].Check(key, value, b, 1);
        }
        var counts = new int[tokens.Length];
        Array.Fill(counts, 1);
        StoreTokens(sequences, layer, key, value, tokens, counts, positions);
    }

    /// <summary>Adds tokens to every head of a layer of every sequence of a batch, or to none.</summary>
    internal static void StoreTokens(IReadOnlyList<CacheSequence> sequences, int layer, in TensorView key, in TensorView value,
        ReadOnlySpan<int> firstTokens, ReadOnlySpan<int> counts, ReadOnlySpan<int> firstPositions)
    {
        if (RequireBatch(sequences) is not { } cache)
            return;
        var tables = new LayerTable[sequences.Count];
        int heads = cache.Options.KvHeads, most = 0;
        long missing = 0, tokens = 0;
        for (int b = 0; b < tables.Length; b++)
        {
            tables[b] = sequences[b].ChangeableTable(layer);
            CheckPositions(firstPositions[b], counts[b]);
            for (int head = 0; head < heads; head++)
                missing += sequences[b].MissingBlocks(tables[b], head, counts[b]);
            most = Math.Max(most, counts[b]);
            tokens += counts[b];
        }
        int[] blocks = cache.Take(missing, $"Storing {tokens} tokens in layer {layer}");
        var held = Array.ConvertAll(tables, table => Array.ConvertAll(table.Rows, row => row.Count));
        int next = 0;
        for (int b = 0; b < tables.Length; b++)
            for (int head = 0; head < heads; head++)
            {
                int more = sequences[b].MissingBlocks(tables[b], head, counts[b]);
                tables[b].Rows[head].AddRange(blocks.AsSpan(next, more));
                next += more;
            }
        try
        {
            using var call = CallTables.Targets(cache.Backend, tables, cache.Options.BlockSize, replace: false, counts, [], new int[tables.Length], out var targets);
            using var runs = CallTables.Of(cache.Backend, firstTokens, firstPositions, counts, out var first, out var position, out var countsView);
            cache.Backend.StoreTokens(cache.Slots, key, value, new TokenRuns(first, position), countsView, most, targets);
        }
        catch
        {
            for (int b = 0; b < tables.Length; b++)
                for (int head = 0; head < heads; head++)
                    tables[b].Rows[head].RemoveRange(held[b][head], tables[b].Rows[head].Count - held[b][head]);
            cache.Give(blocks, 0);
            throw;
        }
        for (int b = 0; b < tables.Length; b++)
        {
            for (int head = 0; head < heads; head++)
                tables[b].Lengths[head] += counts[b];
            tables[b].PositionEnd = Math.Max(tables[b].PositionEnd, firstPositions[b] + counts[b]);
        }
        cache.AddPairs(tokens * heads);
    }

    /// <summary>Adds survivors only: the kept tokens of one sequence of a selection.</summary>
    /// <param name="layer">Layer.</param>
    /// <param name="key">Keys after RoPE, <c>[., Hkv, D]</c>.</param>
    /// <param name="value">Values, <c>[., Hkv, D]</c>.</param>
    /// <param name="firstToken">Packed index in the tensors of the sequence's token 0.</param>
    /// <param name="keptIndices">Kept tokens within the sequence, as a selection gives them.</param>
    /// <param name="keptOffsets"><c>[Hkv + 1]</c>: where each head's tokens start in <paramref name="keptIndices"/>.</param>
    /// <param name="firstPosition">Position of the sequence's token 0.</param>
    /// <exception cref="CompactorException">The tensors or offsets do not fit, or <see cref="CompactorStatus.OutOfBlocks"/>.</exception>
    public void StoreSurvivors(int layer, in TensorView key, in TensorView value, int firstToken,
        ReadOnlySpan<int> keptIndices, ReadOnlySpan<int> keptOffsets, int firstPosition)
    {
        int[] counts = Counts(keptIndices, keptOffsets, Cache.Options.KvHeads);
        int last = -1;
        foreach (int token in keptIndices[keptOffsets[0]..keptOffsets[^1]])
        {
            if (token < 0)
                throw CompactorException.Argument($"Kept token {token} is negative.");
            last = Math.Max(last, token);
        }
        Check(key, value, firstToken, last + 1);
        CheckPositions(firstPosition, last + 1);
        var table = Extend(layer, counts, $"Storing {keptOffsets[^1] - keptOffsets[0]} survivors in layer {layer}");
        using (var call = CallTables.Targets(Cache.Backend, [table], Cache.Options.BlockSize, replace: false, [keptIndices.Length], [], [0], out var targets))
        using (CallTables.Of(Cache.Backend, [firstToken], [firstPosition], out var first, out var position))
        using (CallTables.Of(Cache.Backend, keptIndices, keptOffsets, out var kept, out var offsets))
            Cache.Backend.StoreSurvivors(Cache.Slots, key, value, new TokenRuns(first, position), kept, offsets, targets);
        for (int head = 0; head < counts.Length; head++)
            table.Lengths[head] += counts[head];
        table.PositionEnd = Math.Max(table.PositionEnd, firstPosition + last + 1);
        Cache.AddPairs(keptOffsets[^1] - keptOffsets[0]);
    }

    /// <summary>
    /// First phase of a compaction: reserves floor(K / block size) + Hkv blocks, which suffice however K survivors are spread over the heads.
    /// </summary>
    /// <param name="layer">Layer.</param>
    /// <param name="survivors">Survivors K of all heads.</param>
    /// <exception cref="CompactorException">More survivors than the layer holds, or <see cref="CompactorStatus.OutOfBlocks"/>.</exception>
    public PendingCompaction BeginCompaction(int layer, int survivors)
    {
        long held = Table(layer).Pairs;
        if (survivors < 0 || survivors > held)
            throw CompactorException.Argument($"Layer {layer} holds {held} (token, head) pairs; {survivors} cannot survive.");
        return new PendingCompaction([this], layer, [survivors], replaces: true);
    }

    /// <summary>Both phases of a compaction at once.</summary>
    /// <param name="layer">Layer.</param>
    /// <param name="keptSlots">Slots that survive, ascending per head.</param>
    /// <param name="keptOffsets"><c>[Hkv + 1]</c>: where each head's slots start in <paramref name="keptSlots"/>.</param>
    /// <exception cref="CompactorException">Slots that are not held or do not ascend, or <see cref="CompactorStatus.OutOfBlocks"/>.</exception>
    public void Compact(int layer, ReadOnlySpan<int> keptSlots, ReadOnlySpan<int> keptOffsets)
    {
        Counts(keptSlots, keptOffsets, Cache.Options.KvHeads);
        using var pending = BeginCompaction(layer, keptOffsets[^1] - keptOffsets[0]);
        pending.Move(keptSlots, keptOffsets);
        pending.Complete();
    }

    /// <summary>
    /// A sequence with the same content. Full blocks become a prefix that both share, whatever either does later; only the partial last block of each head is copied.
    /// </summary>
    /// <exception cref="CompactorException"><see cref="CompactorStatus.OutOfBlocks"/>.</exception>
    public CacheSequence Fork()
    {
        ThrowIfFreed();
        int blockSize = Cache.Options.BlockSize, heads = Cache.Options.KvHeads, partial = 0, full = 0;
        for (int layer = 0; layer < _layers.Length; layer++)
        {
            var table = ChangeableTable(layer);
            for (int head = 0; head < heads; head++)
            {
                partial += table.Lengths[head] % blockSize != 0 ? 1 : 0;
                full += table.Lengths[head] / blockSize - table.Shared[head];
            }
        }
        int[] copies = Cache.Take(partial, "Forking a sequence"), sources = new int[partial], slots = new int[partial], newlyShared = new int[full];
        var fork = new CacheSequence(Cache);
        partial = full = 0;
        long copied = 0;
        for (int layer = 0; layer < _layers.Length; layer++)
        {
            var table = _layers[layer];
            var rows = new List<int>[heads];
            for (int head = 0; head < heads; head++)
            {
                int shared = table.Lengths[head] / blockSize, rest = table.Lengths[head] % blockSize;
                table.Rows[head].CopyTo(table.Shared[head], newlyShared, full, shared - table.Shared[head]);
                full += shared - table.Shared[head];
                table.Shared[head] = shared;
                rows[head] = table.Rows[head][..shared];
                if (rest == 0)
                    continue;
                (sources[partial], slots[partial]) = (table.Rows[head][shared], rest);
                copied += rest;
                rows[head].Add(copies[partial++]);
            }
            fork._layers[layer].Become(rows, [.. table.Lengths], [.. table.Shared]);
            fork._layers[layer].PositionEnd = table.PositionEnd;
        }
        if (newlyShared.Length > 0)
            _prefix = new SharedPrefix(newlyShared, _prefix);
        if (_prefix is not null)
        {
            Cache.Hold(_prefix);
            fork._prefix = _prefix;
        }
        Cache.AddPairs(copied);
        if (copies.Length == 0)
            return fork;
        try
        {
            using var call = CallTables.Of(Cache.Backend, sources, copies, slots, out var from, out var to, out var counts);
            Cache.Backend.CopyBlocks(Cache.Slots, from, to, counts);
            return fork;
        }
        catch
        {
            fork.Dispose();
            throw;
        }
    }

    /// <summary>Gives the sequence's blocks back, and its share of a prefix. Freeing twice does nothing.</summary>
    public void Dispose()
    {
        if (_freed)
            return;
        _freed = true;
        foreach (var layer in _layers)
            Cache.Give(layer.OwnBlocks(), layer.OwnPairs(Cache.Options.BlockSize));
        Cache.Release(_prefix);
        _prefix = null;
    }

    /// <summary>Copies out what one head holds, and waits for it.</summary>
    /// <returns>Positions <c>[n]</c>, keys and values <c>[n, D]</c> as bytes.</returns>
    public (int[] Positions, byte[] Keys, byte[] Values) Read(int layer, int head)
    {
        var table = Table(layer);
        var backend = Cache.Backend;
        int length = table.Lengths[head];
        long held = (long)length * Cache.Options.HeadDim * Cache.Options.ElementType.Size();
        if (held > Array.MaxLength)
            throw CompactorException.Unsupported($"Head {head} of layer {layer} holds {held} bytes of keys; at most {Array.MaxLength} are read at once. Read the blocks of the exported tables instead.");
        int bytes = (int)held;
        using var row = CallTables.Of(backend, Blocks(layer, head)[..BlocksFor(length)], [length], [0], out var blocks, out var lengths, out var offsets);
        using var keys = backend.Allocate<byte>(bytes);
        using var values = backend.Allocate<byte>(bytes);
        using var positions = backend.Allocate<int>(length);
        backend.GatherSlots(Cache.Slots, new PagedTables(blocks, BlocksFor(length), lengths), offsets, keys.View, values.View, positions.View);
        using var hostKeys = backend.AllocateHost<byte>(bytes);
        using var hostValues = backend.AllocateHost<byte>(bytes);
        using var hostPositions = backend.AllocateHost<int>(length);
        backend.Download(keys.View, hostKeys.View);
        backend.Download(values.View, hostValues.View);
        backend.Download(positions.View, hostPositions.View);
        using var read = backend.Record();
        read.Wait();
        return (hostPositions.View.AsSpan().ToArray(), hostKeys.View.AsSpan().ToArray(), hostValues.View.AsSpan().ToArray());
    }

    /// <summary>The prefix it shares with others, if any.</summary>
    internal SharedPrefix? Prefix => _prefix;

    internal LayerTable Table(int layer)
    {
        ThrowIfFreed();
        return (uint)layer < (uint)_layers.Length ? _layers[layer] : throw CompactorException.Argument($"There is no layer {layer}; the cache has {_layers.Length}.");
    }

    /// <summary>The one cache that all sequences are of, each given once; null where there are none.</summary>
    internal static PagedCache? RequireBatch(IReadOnlyList<CacheSequence> sequences)
    {
        for (int b = 0; b < sequences.Count; b++)
        {
            if (sequences[b].Cache != sequences[0].Cache)
                throw CompactorException.Argument("The sequences are of different caches; compress those of each cache by themselves.");
            for (int other = 0; other < b; other++)
                if (sequences[other] == sequences[b])
                    throw CompactorException.Argument($"Sequences {other} and {b} of the batch are the same; give each once.");
        }
        return sequences.Count == 0 ? null : sequences[0].Cache;
    }

    /// <summary>The layer's table, which nothing is pending on.</summary>
    internal LayerTable ChangeableTable(int layer) => Table(layer) is { IsPending: false } table
        ? table
        : throw CompactorException.Argument($"Layer {layer} has a compaction under way; complete or cancel it first.");

    internal int BlocksFor(long tokens) => (int)((tokens + Cache.Options.BlockSize - 1) / Cache.Options.BlockSize);

    /// <summary>Counts per head of a list in the form of a selection.</summary>
    internal static int[] Counts(ReadOnlySpan<int> indices, ReadOnlySpan<int> offsets, int rows)
    {
        if (offsets.Length != rows + 1)
            throw CompactorException.Argument($"There are {offsets.Length} offsets; expected {rows + 1}, one more than KV heads.");
        var counts = new int[rows];
        for (int row = 0; row < rows; row++)
            if (offsets[row] < 0 || (counts[row] = offsets[row + 1] - offsets[row]) < 0 || offsets[row + 1] > indices.Length)
                throw CompactorException.Argument($"Offsets of head {row} are {offsets[row]} to {offsets[row + 1]}; they must ascend within the {indices.Length} indices.");
        return counts;
    }

    /// <summary>Drops the share of the prefix once no layer uses it.</summary>
    internal void ReleaseUnusedPrefix()
    {
        if (_prefix is null || _layers.Any(layer => layer.UsesPrefix))
            return;
        Cache.Release(_prefix);
        _prefix = null;
    }

    /// <summary>Grows the tables by what the new tokens take. The last, partial block of a head is never shared.</summary>
    private LayerTable Extend(int layer, int[] counts, string purpose)
    {
        var table = ChangeableTable(layer);
        long total = 0;
        for (int head = 0; head < counts.Length; head++)
            total += MissingBlocks(table, head, counts[head]);
        var blocks = Cache.Take(total, purpose).AsSpan();
        for (int head = 0; head < counts.Length; head++)
        {
            int more = MissingBlocks(table, head, counts[head]);
            table.Rows[head].AddRange(blocks[..more]);
            blocks = blocks[more..];
        }
        return table;
    }

    internal int MissingBlocks(LayerTable table, int head, int tokens) =>
        Math.Max(0, BlocksFor((long)table.Lengths[head] + tokens) - table.Rows[head].Count);

    internal void Check(in TensorView key, in TensorView value, int firstToken, int tokens, bool padded = false)
    {
        var options = Cache.Options;
        foreach (var (name, view) in ((string, TensorView)[])[("key", key), ("value", value)])
        {
            if (view.Heads != options.KvHeads || view.Dim != options.HeadDim || view.ElementType != options.ElementType)
                throw CompactorException.Argument(
                    $"{name} has {view.Heads} heads of {view.Dim} {view.ElementType} elements; the cache holds {options.KvHeads} of {options.HeadDim} {options.ElementType}.");
            if (view.SequenceStride != 0 && !padded)
                throw CompactorException.Argument($"{name} is a padded batch; pass the view of one sequence (its address, sequence stride 0).");
            if (firstToken < 0 || tokens < 0 || (long)firstToken + tokens > view.Tokens)
                throw CompactorException.Argument($"{name} has {view.Tokens} tokens; {tokens} from token {firstToken} on are not there.");
        }
    }

    internal static void CheckPositions(int first, int count)
    {
        if (first < 0 || first > int.MaxValue - count)
            throw CompactorException.Argument($"{count} tokens from position {first} on do not have positions from 0 to {int.MaxValue}.");
    }

    private void ThrowIfFreed() => ObjectDisposedException.ThrowIf(_freed, this);
}
