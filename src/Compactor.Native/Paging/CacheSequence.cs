using System.Runtime.InteropServices;

namespace Compactor.Native.Paging;

/// <summary>
/// One sequence of a paged cache: per layer a block table <c>[Hkv, blocks]</c> and lengths <c>[Hkv]</c>, which need not be equal. Keys and values keep the
/// position they were stored with; the next position is not the number of slots. Every operation that needs blocks either gets all of them or throws
/// <see cref="CompactorStatus.OutOfBlocks"/> and leaves cache and sequence exactly as they were. Host memory.
/// </summary>
public sealed unsafe class CacheSequence : IDisposable
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
    public int OwnBlocks => _layers.Sum(layer => layer.OwnBlocks.Count());

    /// <summary>Slots of the sequence's blocks, shared ones included, that hold no token.</summary>
    public long UnusedSlots => _layers.Sum(layer => layer.Rows.Select((row, head) => (long)row.Count * Cache.Options.BlockSize - layer.Lengths[head]).Sum());

    /// <summary>Whether the blocks that <paramref name="tokens"/> more tokens in every head of a layer take are free at this moment.</summary>
    public bool CanStore(int layer, int tokens)
    {
        var table = Table(layer);
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
        int heads = Cache.Options.KvHeads;
        int[] counts = new int[heads];
        Array.Fill(counts, tokens);
        var table = Extend(layer, counts, $"Storing {tokens} tokens in layer {layer}");
        for (int head = 0; head < heads; head++)
            for (int t = 0; t < tokens; t++)
                Write(table, head, key, value, firstToken + t, firstPosition + t);
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
        int[] counts = Counts(keptIndices, keptOffsets);
        int last = -1;
        for (int head = 0; head < counts.Length; head++)
            foreach (int token in keptIndices[keptOffsets[head]..keptOffsets[head + 1]])
            {
                if (token < 0)
                    throw CompactorException.Argument($"Kept token {token} of head {head} is negative.");
                last = Math.Max(last, token);
            }
        Check(key, value, firstToken, last + 1);
        var table = Extend(layer, counts, $"Storing {keptOffsets[^1] - keptOffsets[0]} survivors in layer {layer}");
        for (int head = 0; head < counts.Length; head++)
            foreach (int token in keptIndices[keptOffsets[head]..keptOffsets[head + 1]])
                Write(table, head, key, value, firstToken + token, firstPosition + token);
    }

    /// <summary>
    /// First phase of a compaction: reserves floor(K / block size) + Hkv blocks, which suffice however K survivors are spread over the heads.
    /// </summary>
    /// <param name="layer">Layer.</param>
    /// <param name="survivors">Survivors K of all heads.</param>
    /// <exception cref="CompactorException">More survivors than the layer holds, or <see cref="CompactorStatus.OutOfBlocks"/>.</exception>
    public PendingCompaction BeginCompaction(int layer, int survivors)
    {
        long held = Table(layer).Lengths.Sum(length => (long)length);
        if (survivors < 0 || survivors > held)
            throw CompactorException.Argument($"Layer {layer} holds {held} (token, head) pairs; {survivors} cannot survive.");
        int blocks = survivors / Cache.Options.BlockSize + Cache.Options.KvHeads;
        return new PendingCompaction(this, layer, survivors, Cache.Take(blocks, $"Compacting layer {layer} to {survivors} pairs"));
    }

    /// <summary>Both phases of a compaction at once.</summary>
    /// <param name="layer">Layer.</param>
    /// <param name="keptSlots">Slots that survive, ascending per head.</param>
    /// <param name="keptOffsets"><c>[Hkv + 1]</c>: where each head's slots start in <paramref name="keptSlots"/>.</param>
    /// <exception cref="CompactorException">Slots that are not held or do not ascend, or <see cref="CompactorStatus.OutOfBlocks"/>.</exception>
    public void Compact(int layer, ReadOnlySpan<int> keptSlots, ReadOnlySpan<int> keptOffsets)
    {
        Counts(keptSlots, keptOffsets);
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
        int blockSize = Cache.Options.BlockSize;
        ThrowIfFreed();
        var partial = (from layer in Enumerable.Range(0, _layers.Length)
                       from head in Enumerable.Range(0, Cache.Options.KvHeads)
                       where _layers[layer].Lengths[head] % blockSize != 0
                       select (layer, head)).ToArray();
        int[] copies = Cache.Take(partial.Length, "Forking a sequence");
        int[] newlyShared = [.. _layers.SelectMany(layer => layer.Rows.SelectMany((row, head) => row.Take(layer.Lengths[head] / blockSize).Skip(layer.Shared[head])))];
        if (newlyShared.Length > 0)
            _prefix = new SharedPrefix(newlyShared, _prefix);
        var fork = new CacheSequence(Cache);
        if (_prefix is not null)
        {
            Cache.Hold(_prefix);
            fork._prefix = _prefix;
        }
        for (int layer = 0; layer < _layers.Length; layer++)
        {
            var table = _layers[layer];
            for (int head = 0; head < table.Rows.Length; head++)
                table.Shared[head] = table.Lengths[head] / blockSize;
            fork._layers[layer].Become([.. table.Rows.Select((row, head) => row.Take(table.Shared[head]).ToList())], [.. table.Lengths], [.. table.Shared]);
        }
        for (int i = 0; i < partial.Length; i++)
        {
            var (layer, head) = partial[i];
            int source = _layers[layer].Rows[head][_layers[layer].Lengths[head] / blockSize];
            fork._layers[layer].Rows[head].Add(copies[i]);
            for (int slot = 0; slot < _layers[layer].Lengths[head] % blockSize; slot++)
                CopySlot(source, slot, copies[i], slot);
        }
        return fork;
    }

    /// <summary>Gives the sequence's blocks back, and its share of a prefix. Freeing twice does nothing.</summary>
    public void Dispose()
    {
        if (_freed)
            return;
        _freed = true;
        Cache.Give([.. _layers.SelectMany(layer => layer.OwnBlocks)]);
        Cache.Release(_prefix);
        _prefix = null;
    }

    /// <summary>Copies out what one head holds.</summary>
    /// <returns>Positions <c>[n]</c>, keys and values <c>[n, D]</c> as bytes.</returns>
    public (int[] Positions, byte[] Keys, byte[] Values) Read(int layer, int head)
    {
        var table = Table(layer);
        int length = table.Lengths[head], rowBytes = RowBytes, blockSize = Cache.Options.BlockSize;
        var (positions, keys, values) = (new int[length], new byte[length * rowBytes], new byte[length * rowBytes]);
        var view = Cache.View;
        for (int slot = 0; slot < length; slot++)
        {
            int block = table.Rows[head][slot / blockSize], inBlock = slot % blockSize;
            nint offset = (nint)view.Offset(block, inBlock, 0);
            positions[slot] = ((int*)Cache.Positions.Address)[(long)block * blockSize + inBlock];
            new ReadOnlySpan<byte>((void*)(view.Keys + offset), rowBytes).CopyTo(keys.AsSpan(slot * rowBytes));
            new ReadOnlySpan<byte>((void*)(view.Values + offset), rowBytes).CopyTo(values.AsSpan(slot * rowBytes));
        }
        return (positions, keys, values);
    }

    /// <summary>The prefix it shares with others, if any.</summary>
    internal SharedPrefix? Prefix => _prefix;

    internal int RowBytes => Cache.Options.HeadDim * Cache.Options.ElementType.Size();

    internal LayerTable Table(int layer)
    {
        ThrowIfFreed();
        return (uint)layer < (uint)_layers.Length ? _layers[layer] : throw CompactorException.Argument($"There is no layer {layer}; the cache has {_layers.Length}.");
    }

    internal int BlocksFor(long tokens) => (int)((tokens + Cache.Options.BlockSize - 1) / Cache.Options.BlockSize);

    internal void CopySlot(int fromBlock, int fromSlot, int toBlock, int toSlot)
    {
        var view = Cache.View;
        nint from = (nint)view.Offset(fromBlock, fromSlot, 0), to = (nint)view.Offset(toBlock, toSlot, 0);
        NativeMemory.Copy((void*)(view.Keys + from), (void*)(view.Keys + to), (nuint)RowBytes);
        NativeMemory.Copy((void*)(view.Values + from), (void*)(view.Values + to), (nuint)RowBytes);
        int* positions = (int*)Cache.Positions.Address;
        positions[(long)toBlock * view.BlockSize + toSlot] = positions[(long)fromBlock * view.BlockSize + fromSlot];
    }

    /// <summary>Counts per head of a list in the form of a selection.</summary>
    internal int[] Counts(ReadOnlySpan<int> indices, ReadOnlySpan<int> offsets)
    {
        int heads = Cache.Options.KvHeads;
        if (offsets.Length != heads + 1)
            throw CompactorException.Argument($"There are {offsets.Length} offsets; expected {heads + 1}, one more than KV heads.");
        var counts = new int[heads];
        for (int head = 0; head < heads; head++)
            if (offsets[head] < 0 || (counts[head] = offsets[head + 1] - offsets[head]) < 0 || offsets[head + 1] > indices.Length)
                throw CompactorException.Argument($"Offsets of head {head} are {offsets[head]} to {offsets[head + 1]}; they must ascend within the {indices.Length} indices.");
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
        var table = Table(layer);
        int total = 0;
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

    private int MissingBlocks(LayerTable table, int head, int tokens) =>
        Math.Max(0, BlocksFor((long)table.Lengths[head] + tokens) - table.Rows[head].Count);

    private void Write(LayerTable table, int head, in TensorView key, in TensorView value, int token, int position)
    {
        int slot = table.Lengths[head]++, blockSize = Cache.Options.BlockSize, block = table.Rows[head][slot / blockSize];
        var view = Cache.View;
        nint offset = (nint)view.Offset(block, slot % blockSize, 0);
        NativeMemory.Copy((void*)key.Row(0, 0, token, head), (void*)(view.Keys + offset), (nuint)RowBytes);
        NativeMemory.Copy((void*)value.Row(0, 0, token, head), (void*)(view.Values + offset), (nuint)RowBytes);
        ((int*)Cache.Positions.Address)[(long)block * blockSize + slot % blockSize] = position;
    }

    private void Check(in TensorView key, in TensorView value, int firstToken, int tokens)
    {
        var options = Cache.Options;
        foreach (var (name, view) in ((string, TensorView)[])[("key", key), ("value", value)])
        {
            if (view.Heads != options.KvHeads || view.Dim != options.HeadDim || view.ElementType != options.ElementType)
                throw CompactorException.Argument(
                    $"{name} has {view.Heads} heads of {view.Dim} {view.ElementType} elements; the cache holds {options.KvHeads} of {options.HeadDim} {options.ElementType}.");
            if (view.SequenceStride != 0)
                throw CompactorException.Argument($"{name} is a padded batch; pass the view of one sequence (its address, sequence stride 0).");
            if (firstToken < 0 || tokens < 0 || (long)firstToken + tokens > view.Tokens)
                throw CompactorException.Argument($"{name} has {view.Tokens} tokens; {tokens} from token {firstToken} on are not there.");
        }
    }

    private void ThrowIfFreed() => ObjectDisposedException.ThrowIf(_freed, this);
}
