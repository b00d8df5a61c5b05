using System.Diagnostics.Metrics;

namespace Compactor.Native.Paging;

/// <summary>
/// One pool of head-blocks for all layers, heads and sequences: keys and values <c>[blocks, block_size, D]</c> and the position of every slot
/// <c>[blocks, block_size]</c>, in the backend's memory. Any (layer, head) may take any block, so what one head frees another uses.
/// Different sequences may be used on different threads at the same time; one sequence by one thread at a time.
/// Its meter, "Compactor.Native", reports blocks in use and free, slots of used blocks that hold no token, blocks taken and given back, and requests refused.
/// </summary>
public sealed class PagedCache : IDisposable
{
    private readonly Lock _lock = new();
    private readonly BlockPool _pool;
    private readonly BackendBuffer<byte> _keys, _values;
    private readonly BackendBuffer<int> _positions;
    private long _pairs;
    private readonly Counter<long> _taken, _given, _refused;

    /// <summary>Allocates a cache whose blocks are all free.</summary>
    /// <param name="backend">Whose memory to use. It must outlive the cache.</param>
    /// <param name="options">Shape.</param>
    /// <exception cref="CompactorException">An option is out of range.</exception>
    public PagedCache(KvBackend backend, PagedCacheOptions options)
    {
        options.Validate();
        (Backend, Options) = (backend, options);
        try
        {
            _keys = backend.Allocate<byte>(options.Blocks * options.BlockBytes / 2);
            _values = backend.Allocate<byte>(options.Blocks * options.BlockBytes / 2);
            _positions = backend.Allocate<int>((long)options.Blocks * options.BlockSize);
        }
        catch
        {
            _keys?.Dispose();
            _values?.Dispose();
            throw;
        }
        // what the process registers comes last: a cache that cannot be had leaves nothing behind
        _pool = new BlockPool(options.Blocks);
        Meter = new Meter("Compactor.Native");
        Meter.CreateObservableGauge("compactor.cache.blocks.used", () => Blocks - FreeBlocks, "{block}");
        Meter.CreateObservableGauge("compactor.cache.blocks.free", () => FreeBlocks, "{block}");
        Meter.CreateObservableGauge("compactor.cache.slots.unused", () => UnusedSlots, "{slot}", "Slots of blocks in use that hold no token: internal fragmentation and room reserved.");
        _taken = Meter.CreateCounter<long>("compactor.cache.blocks.taken", "{block}");
        _given = Meter.CreateCounter<long>("compactor.cache.blocks.given", "{block}");
        _refused = Meter.CreateCounter<long>("compactor.cache.refused", "{request}");
    }

    /// <summary>Whose memory it is in.</summary>
    public KvBackend Backend { get; }

    /// <summary>Shape.</summary>
    public PagedCacheOptions Options { get; }

    /// <summary>Blocks in all.</summary>
    public int Blocks => _pool.Blocks;

    /// <summary>Blocks that are free.</summary>
    public int FreeBlocks
    {
        get
        {
            lock (_lock)
                return _pool.FreeBlocks;
        }
    }

    /// <summary>Slots of blocks in use that hold no token; a block that several sequences share counts once.</summary>
    public long UnusedSlots
    {
        get
        {
            lock (_lock)
                return (long)(_pool.Blocks - _pool.FreeBlocks) * Options.BlockSize - _pairs;
        }
    }

    /// <summary>Keys and values, as attention reads them.</summary>
    public PagedView View => PagedView.HeadBlocks(_keys.View.Address, _values.View.Address, Options.ElementType, Options.BlockSize, Options.HeadDim);

    /// <summary>Position of every slot, <c>[blocks, block_size]</c>.</summary>
    public BufferView<int> Positions => _positions.View;

    /// <summary>Both, as operations on the cache take them.</summary>
    public PagedSlots Slots => new(View, Positions);

    internal Meter Meter { get; }

    /// <summary>An empty sequence.</summary>
    public CacheSequence CreateSequence() => new(this);

    /// <summary>Blocks that <paramref name="tokens"/> tokens take in every head of one layer of a new sequence; no more than fit 63 bits.</summary>
    /// <exception cref="CompactorException">The number is negative.</exception>
    public long BlocksFor(long tokens) => tokens >= 0
        ? (long)Int128.Min(long.MaxValue, ((Int128)tokens + Options.BlockSize - 1) / Options.BlockSize * Options.KvHeads)
        : throw CompactorException.Argument($"There is no room for {tokens} tokens; use 0 or more.");

    /// <summary>
    /// Whether there is room, at this moment, for <paramref name="tokens"/> tokens in every head of <paramref name="layers"/> layers of a new sequence.
    /// </summary>
    /// <exception cref="CompactorException">A number is negative.</exception>
    public bool CanStore(long tokens, int layers) => layers >= 0
        ? (Int128)BlocksFor(tokens) * layers <= FreeBlocks
        : throw CompactorException.Argument($"There is no room in {layers} layers; use 0 or more.");

    /// <summary>Takes blocks, or throws and takes none.</summary>
    internal int[] Take(long count, string purpose)
    {
        int[]? ids = count <= Blocks ? new int[count] : null;
        int free;
        lock (_lock)
        {
            if (ids is not null && !_pool.TryTake(ids))
                ids = null;
            free = _pool.FreeBlocks;
        }
        if (ids is null)
        {
            _refused.Add(1);
            throw new CompactorException(CompactorStatus.OutOfBlocks,
                $"{purpose} takes {count} more blocks; {free} of {Blocks} are free. Free or compact a sequence, or make the cache larger. Nothing was changed.");
        }
        _taken.Add(count);
        return ids;
    }

    /// <summary>Counts tokens of heads that were stored in taken blocks.</summary>
    internal void AddPairs(long pairs)
    {
        lock (_lock)
            _pairs += pairs;
    }

    /// <summary>Gives blocks back, with the tokens of heads they hold.</summary>
    internal void Give(ReadOnlySpan<int> ids, long pairs)
    {
        lock (_lock)
        {
            _pool.Give(ids);
            _pairs -= pairs;
        }
        _given.Add(ids.Length);
    }

    internal void Hold(SharedPrefix prefix)
    {
        lock (_lock)
            prefix.Holders++;
    }

    /// <summary>Gives up a share; a prefix without holders gives its blocks back, and its share of what it continues.</summary>
    internal void Release(SharedPrefix? prefix)
    {
        lock (_lock)
            for (; prefix is not null && --prefix.Holders == 0; prefix = prefix.Continues)
            {
                _pool.Give(prefix.Blocks);
                _pairs -= (long)prefix.Blocks.Length * Options.BlockSize;
                _given.Add(prefix.Blocks.Length);
            }
    }

    /// <summary>Gives the memory back. Sequences of the cache must not be used afterwards.</summary>
    public void Dispose()
    {
        Meter.Dispose();
        _keys.Dispose();
        _values.Dispose();
        _positions.Dispose();
    }
}
