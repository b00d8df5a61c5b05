using Compactor.Native.Compression;
using Compactor.Native.Cpu;
using Compactor.Native.Paging;
using Compactor.Native.Tests.Support;
using Xunit;

namespace Compactor.Native.Tests.Paging;

/// <summary>What a host may do wrong, and in odd orders, with the paged cache: one clear error, and everything as it was.</summary>
public class PagingMisuseTests
{
    private static PagedCacheOptions Options(int layers = 1, int heads = 2, int dim = 32, int blocks = 60, int blockSize = 16, ElementType type = ElementType.Float32) => new()
    {
        Layers = layers,
        KvHeads = heads,
        HeadDim = dim,
        ElementType = type,
        Blocks = blocks,
        BlockSize = blockSize,
    };

    [Theory]
    [InlineData(1.0)]
    [InlineData(0.5)]
    public void A_batch_takes_each_sequence_once_and_all_of_one_cache(double retention)
    {
        var layer = TestLayer.Random(1, [40, 60], 2, 2, 32);
        var options = CompressionPresets.Paper with { ProtectLast = 4 };
        using var backend = new CpuBackend(1);
        using PagedCache cache = new(backend, Options()), other = new(backend, Options());
        using CacheSequence sequence = cache.CreateSequence(), stranger = other.CreateSequence();
        var plan = new LayerPlan(layer.Shape, options, Budget.Retention(retention));
        Refused("are the same", () => CacheCompressor.StorePrefill([sequence, sequence], 0, plan, layer.Inputs));
        Refused("different caches", () => CacheCompressor.StorePrefill([sequence, stranger], 0, plan, layer.Inputs));
        Refused("different caches", () => CacheCompressor.StorePrefill([stranger, sequence], 0, plan, layer.Inputs));
        Assert.Equal((60, 60, 0, 0), (cache.FreeBlocks, other.FreeBlocks, sequence.Lengths(0)[0], stranger.Lengths(0)[0]));
        GC.KeepAlive(layer);
    }

    [Fact]
    public void Room_is_not_promised_for_numbers_that_overflow_or_are_negative()
    {
        using var backend = new CpuBackend(1);
        using var cache = new PagedCache(backend, Options(layers: 3));
        using var sequence = cache.CreateSequence();
        Assert.False(cache.CanStore(long.MaxValue, 1));
        Assert.False(cache.CanStore(long.MaxValue / 4, 3));
        Assert.False(cache.CanStore(1L << 62, int.MaxValue));
        Assert.True(cache.CanStore(160, 3));
        Assert.False(cache.CanStore(161, 3));
        Assert.False(sequence.CanStore(0, int.MaxValue));
        Assert.True(sequence.CanStore(0, 480));
        Assert.False(sequence.CanStore(0, 481));
        Refused("-1 tokens", () => cache.CanStore(-1, 1));
        Refused("-2 layers", () => cache.CanStore(1, -2));
        Refused("-1 tokens", () => cache.BlocksFor(-1));
        Refused("-1 tokens", () => sequence.CanStore(0, -1));
        Refused("There is no layer 3", () => sequence.CanStore(3, 1));
    }

    [Fact]
    public void Things_may_be_disposed_in_any_order()
    {
        var layer = TestLayer.Random(2, [40], 2, 2, 32);
        var (key, value) = (layer.Inputs.Key, layer.Inputs.Value);
        using var backend = new CpuBackend(1);
        var cache = new PagedCache(backend, Options());
        CacheSequence freed = Stored(), forked = Stored(), kept = Stored();
        PendingCompaction ofFreed = Moved(freed), ofKept = Moved(kept);
        freed.Dispose();
        Assert.Throws<ObjectDisposedException>(ofFreed.Complete);
        ofFreed.Dispose();
        ofFreed.Dispose();
        var fork = forked.Fork();
        forked.Dispose();
        ofKept.Complete();
        Assert.Throws<ObjectDisposedException>(ofKept.Complete);
        ofKept.Dispose();
        Assert.Equal((2, 1), (kept.Lengths(0)[0], kept.Lengths(0)[1]));
        // A fork's 6 blocks, one for each head of what was compacted.
        Assert.Equal(60 - 6 - 2, cache.FreeBlocks);
        var ofFork = fork.BeginCompaction(0, 3);
        cache.Dispose();
        cache.Dispose();
        Assert.Throws<ObjectDisposedException>(() => kept.Store(0, key, value, 0, 1, 50));
        Assert.Throws<ObjectDisposedException>(() => kept.Read(0, 0));
        Assert.Throws<ObjectDisposedException>(() => ofFork.Move([0, 5, 8], [0, 2, 3]));
        Assert.Throws<ObjectDisposedException>(() => new PagedCacheUse(cache).Slots());
        ofFork.Dispose();
        kept.Dispose();
        fork.Dispose();
        Assert.Equal(60, cache.FreeBlocks);
        GC.KeepAlive(layer);

        CacheSequence Stored()
        {
            var sequence = cache.CreateSequence();
            sequence.Store(0, key, value, 0, 40, 0);
            return sequence;
        }

        static PendingCompaction Moved(CacheSequence sequence)
        {
            var pending = sequence.BeginCompaction(0, 3);
            pending.Move([0, 5, 8], [0, 2, 3]);
            return pending;
        }
    }

    private readonly record struct PagedCacheUse(PagedCache Cache)
    {
        public PagedSlots Slots() => Cache.Slots;
    }

    [Fact]
    public void A_host_s_cache_of_impossible_form_is_refused()
    {
        using var backend = new CpuBackend(1);
        float[] keys = new float[4 * 16 * 2 * 32], values = new float[keys.Length];
        unsafe
        {
            fixed (float* k = keys, v = values)
            {
                var (key, value) = ((nint)k, (nint)v);
                var nhd = PagedView.Nhd(key, value, ElementType.Float32, 16, 2, 32);
                Compact(nhd);
                Compact(PagedView.Hnd(key, value, ElementType.Float32, 16, 2, 32));
                // Keys and values of a block side by side, as some hosts lay them out.
                Compact(nhd with { BlockStride = 2 * nhd.BlockStride });
                Refused("strides", () => Compact(nhd with { HeadStride = 0 }));
                Refused("strides", () => Compact(nhd with { HeadStride = 16 }));
                Refused("strides", () => Compact(nhd with { SlotStride = 32 }));
                Refused("strides", () => Compact(nhd with { SlotStride = -64 }));
                Refused("strides", () => Compact(nhd with { BlockStride = 16 * 32 }));
                Refused("strides", () => Compact(nhd with { Dim = 64 }));
                Refused("block size is 0", () => Compact(nhd with { BlockSize = 0 }));
                Refused("dimension is 0", () => Compact(nhd with { Dim = 0 }));
                Refused("null address", () => Compact(nhd with { Keys = 0 }));
                Refused("null address", () => Compact(nhd with { Values = 0 }));
                Refused("not aligned", () => Compact(nhd with { Values = value + 2 }));
                Refused("There are 0 KV heads", () => Compact(nhd, heads: 0, offsets: [0]));
                Refused("Block -1", () => Compact(nhd, table: [0, -1]));
                // What lies beyond the blocks that hold tokens is the host's.
                Compact(nhd, table: [0, 1, -1]);
                Refused("Offsets of head 0 are 0 to 10", () => Compact(nhd, offsets: [0, 10, 4]));
                Refused("Offsets of head 1 are 2 to 1", () => Compact(nhd, offsets: [0, 2, 1]));
                Refused("Offsets of head 0 are -1 to 2", () => Compact(nhd, offsets: [-1, 2, 4]));
                Refused("one more than KV heads", () => Compact(nhd, offsets: [0, 2, 4, 4]));
                Refused("different lengths", () => Compact(nhd, offsets: [0, 3, 4]), CompactorStatus.Unsupported);
            }
        }

        void Compact(PagedView view, int heads = 2, int[]? table = null, int[]? offsets = null) =>
            HostOwnedCache.Compact(backend, view, heads, table ?? [0, 1], 20, [3, 7, 8, 19], offsets ?? [0, 2, 4]);
    }

    [Fact]
    public void Opaque_queries_are_refused()
    {
        using var backend = new CpuBackend(1);
        using var cache = new PagedCache(backend, Options(type: ElementType.BFloat16));
        using var output = backend.Allocate<float>(2 * 32);
        using var tables = backend.Allocate<int>(2);
        using var lengths = backend.Allocate<int>(2);
        tables.View.AsSpan().Clear();
        lengths.View.AsSpan().Fill(1);
        var query = TensorView.Packed(output.View.Address, ElementType.Opaque8, 1, 2, 32);
        Refused("opaque", () => backend.DecodeAttention(cache.View, query, 2, new PagedTables(tables.View, 1, lengths.View), new DecodeOptions(), output.View), CompactorStatus.Unsupported);
    }

    private static void Refused(string part, Action action, CompactorStatus status = CompactorStatus.InvalidArgument)
    {
        var e = Assert.Throws<CompactorException>(action);
        Assert.Contains(part, e.Message);
        Assert.Equal(status, e.Status);
    }
}
