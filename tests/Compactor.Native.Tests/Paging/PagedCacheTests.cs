using System.Diagnostics.Metrics;
using Compactor.Native.Compression;
using Compactor.Native.Cpu;
using Compactor.Native.Paging;
using Compactor.Native.Tests.Support;
using Xunit;

namespace Compactor.Native.Tests.Paging;

public class PagedCacheTests
{
    private const int BlockSize = 16;

    private static PagedCacheOptions Options(int layers, int heads, int dim, int blocks) => new()
    {
        Layers = layers,
        KvHeads = heads,
        HeadDim = dim,
        ElementType = ElementType.Float32,
        Blocks = blocks,
        BlockSize = BlockSize,
    };

    [Theory]
    [InlineData("store")]
    [InlineData("append")]
    [InlineData("survivors")]
    [InlineData("compact")]
    [InlineData("fork")]
    public void Out_of_blocks_changes_nothing_whatever_is_free(string operation)
    {
        var layer = TestLayer.Random(1, [100], 2, 2, 32);
        using var backend = new CpuBackend(1);
        int needed = operation switch { "store" => 8, "append" => 2, "survivors" => 3, "compact" => 5, _ => 2 };
        for (int free = 0; free <= needed; free++)
        {
            using var cache = new PagedCache(backend, Options(1, 2, 32, 60));
            using var sequence = cache.CreateSequence();
            sequence.Store(0, layer.Inputs.Key, layer.Inputs.Value, 0, operation == "append" ? 32 : 40, 0);
            using var filler = Fill(cache, layer, cache.FreeBlocks - free);
            Assert.Equal(free, cache.FreeBlocks);
            var before = State(sequence);
            Action act = operation switch
            {
                "store" => () => sequence.Store(0, layer.Inputs.Key, layer.Inputs.Value, 40, 60, 40),
                "append" => () => sequence.Store(0, layer.Inputs.Key, layer.Inputs.Value, 32, 1, 32),
                "survivors" => () => sequence.StoreSurvivors(0, layer.Inputs.Key, layer.Inputs.Value, 0, [.. Enumerable.Range(0, 30), .. Enumerable.Range(0, 9)], [0, 30, 39], 0),
                "compact" => () => sequence.Compact(0, [.. Enumerable.Range(0, 40), .. Enumerable.Range(0, 10)], [0, 40, 50]),
                _ => () => sequence.Fork().Dispose(),
            };
            if (free < needed)
            {
                var e = Assert.Throws<CompactorException>(act);
                Assert.Equal(CompactorStatus.OutOfBlocks, e.Status);
                Assert.Contains($"takes {needed} more blocks; {free} of 60 are free", e.Message);
                Assert.Equal(before, State(sequence));
                Assert.Equal(free, cache.FreeBlocks);
                filler.Dispose();
            }
            act();
            sequence.Dispose();
            filler.Dispose();
            Assert.Equal(60, cache.FreeBlocks);
        }
        GC.KeepAlive(layer);
    }

    [Fact]
    public void Compaction_frees_blocks_that_another_head_and_sequence_use()
    {
        var layer = TestLayer.Random(2, [96], 2, 2, 32);
        using var backend = new CpuBackend(1);
        using var cache = new PagedCache(backend, Options(1, 2, 32, 16));
        using var first = cache.CreateSequence();
        using var second = cache.CreateSequence();
        first.Store(0, layer.Inputs.Key, layer.Inputs.Value, 0, 96, 0);
        Assert.Equal(4, cache.FreeBlocks);
        Assert.False(second.CanStore(0, 64));
        first.Compact(0, [.. Enumerable.Range(0, 16).Select(i => i * 6), 95], [0, 16, 17]);
        Assert.Equal([16, 1], first.Lengths(0).ToArray());
        Assert.Equal(14, cache.FreeBlocks);
        Assert.Equal(15, first.UnusedSlots);
        Assert.True(second.CanStore(0, 64));
        second.Store(0, layer.Inputs.Key, layer.Inputs.Value, 0, 64, 0);
        Assert.Equal([.. Enumerable.Range(0, 16).Select(i => i * 6)], first.Read(0, 0).Positions);
        GC.KeepAlive(layer);
    }

    [Fact]
    public void Decoding_from_the_cache_equals_dense_attention_over_the_survivors()
    {
        const int heads = 2, group = 3, dim = 64, n = 500;
        var layer = TestLayer.Random(3, [n], heads * group, heads, dim);
        foreach (double retention in new[] { 1, 0.5, 0.1 })
            foreach (string name in Backends.Names)
            {
                using var backend = Backends.Create(name);
                using var cache = new PagedCache(backend, Options(1, heads, dim, 200));
                using var sequence = cache.CreateSequence();
                var plan = new LayerPlan(layer.Shape, CompressionPresets.Paper, Budget.Retention(retention));
                var run = Run.Of(backend, plan, layer.Inputs);
                sequence.StoreSurvivors(0, layer.Inputs.Key, layer.Inputs.Value, 0, run.Indices, run.Offsets, 0);
                // A decode step afterwards: the new token is at position n, whatever the number of slots.
                sequence.Store(0, layer.Inputs.Key, layer.Inputs.Value, 7, 1, n);
                float[] actual = Decode(backend, cache, [sequence], layer.Inputs.Query!.Value with { Tokens = 1 });
                var kept = run.Kept(0, heads);
                for (int head = 0; head < heads * group; head++)
                {
                    int h = head / group;
                    int[] tokens = [.. Enumerable.Range(0, n).Where(t => retention == 1 || kept.Contains((t, h))), 7];
                    double[,] keys = new double[tokens.Length, dim], values = new double[tokens.Length, dim];
                    for (int i = 0; i < tokens.Length; i++)
                        for (int d = 0; d < dim; d++)
                            (keys[i, d], values[i, d]) = (layer.KeyValues[(tokens[i] * heads + h) * dim + d], layer.ValueValues[(tokens[i] * heads + h) * dim + d]);
                    var (expected, _) = Reference.ReferenceDecodeAttention.Attend([.. layer.QueryValues[(head * dim)..((head + 1) * dim)].Select(x => (double)x)], keys, values, new DecodeOptions());
                    Assert.InRange(Arrays.RelativeError(actual.AsSpan(head * dim, dim), [.. expected.Select(x => (float)x)]), 0, 1e-5);
                }
            }
        GC.KeepAlive(layer);
    }

    [Fact]
    public void Forks_decode_as_their_origin_and_share_its_blocks()
    {
        var layer = TestLayer.Random(4, [100], 4, 2, 32);
        using var backend = new CpuBackend(1);
        using var cache = new PagedCache(backend, Options(2, 2, 32, 100));
        using var origin = cache.CreateSequence();
        for (int l = 0; l < 2; l++)
            origin.Store(l, layer.Inputs.Key, layer.Inputs.Value, 0, 100, 0);
        int used = cache.Blocks - cache.FreeBlocks;
        using var fork = origin.Fork();
        using var second = fork.Fork();
        Assert.Equal(used + 2 * 4, cache.Blocks - cache.FreeBlocks);
        var query = layer.Inputs.Query!.Value with { Tokens = 1 };
        Assert.Equal(Decode(backend, cache, [origin], query, 1), Decode(backend, cache, [second], query, 1));
        fork.Store(0, layer.Inputs.Key, layer.Inputs.Value, 3, 1, 100);
        origin.Dispose();
        Assert.Equal(101, fork.Read(0, 0).Positions.Length);
        Assert.Equal(100, second.Read(0, 0).Positions.Length);
        fork.Dispose();
        second.Dispose();
        Assert.Equal(100, cache.FreeBlocks);
        GC.KeepAlive(layer);
    }

    [Fact]
    public void Two_threads_use_different_sequences_of_one_cache()
    {
        var layer = TestLayer.Random(5, [64], 2, 2, 16);
        using var backend = new CpuBackend(1);
        using var cache = new PagedCache(backend, Options(1, 2, 16, 64));
        using (var origin = cache.CreateSequence())
        {
            origin.Store(0, layer.Inputs.Key, layer.Inputs.Value, 0, 40, 0);
            CacheSequence[] forks = [origin.Fork(), origin.Fork(), origin.Fork(), origin.Fork()];
            Parallel.For(0, 4, new ParallelOptions { MaxDegreeOfParallelism = 4 }, worker =>
            {
                var random = new Random(worker);
                using var shared = forks[worker];
                for (int i = 0; i < 3000; i++)
                {
                    using var own = cache.CreateSequence();
                    int count = random.Next(1, 33), first = random.Next(64 - count);
                    try
                    {
                        own.Store(0, layer.Inputs.Key, layer.Inputs.Value, first, count, first);
                        own.Compact(0, [.. Enumerable.Range(0, (count + 1) / 2).Select(s => 2 * s)], [0, (count + 1) / 2, (count + 1) / 2]);
                        using var fork = (i % 2 == 0 ? own : shared).Fork();
                        Assert.Equal([.. Enumerable.Range(0, (count + 1) / 2).Select(s => first + 2 * s)], own.Read(0, 0).Positions);
                        Assert.Equal(i % 2 == 0 ? (count + 1) / 2 : 40, fork.Lengths(0)[0]);
                    }
                    catch (CompactorException e) when (e.Status == CompactorStatus.OutOfBlocks)
                    {
                        Thread.Yield();
                    }
                }
            });
        }
        Assert.Equal(64, cache.FreeBlocks);
        GC.KeepAlive(layer);
    }

    [Fact]
    public void Exported_tables_name_the_blocks()
    {
        var layer = TestLayer.Random(6, [70], 2, 2, 16);
        using var backend = new CpuBackend(1);
        using var cache = new PagedCache(backend, Options(1, 2, 16, 40));
        using var ragged = cache.CreateSequence();
        using var empty = cache.CreateSequence();
        ragged.StoreSurvivors(0, layer.Inputs.Key, layer.Inputs.Value, 0, [.. Enumerable.Range(0, 33), .. Enumerable.Range(0, 16)], [0, 33, 49], 0);
        var (tables, stride, lengths) = CacheExport.Padded([ragged, empty], 0);
        Assert.Equal(3, stride);
        Assert.Equal([33, 16, 0, 0], lengths);
        Assert.Equal([.. ragged.Blocks(0, 0), ragged.Blocks(0, 1)[0], -1, -1, -1, -1, -1, -1, -1, -1], tables);
        var (indptr, indices, last) = CacheExport.FlashInfer([ragged, empty], 0);
        Assert.Equal([0, 3, 4, 4, 4], indptr);
        Assert.Equal([.. ragged.Blocks(0, 0), ragged.Blocks(0, 1)[0]], indices);
        Assert.Equal([1, 16, 0, 0], last);
        GC.KeepAlive(layer);
    }

    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public void A_host_s_own_cache_is_compacted_in_place(bool nhd)
    {
        const int heads = 2, dim = 16, blocks = 6;
        var random = new Random(7);
        float[] before = [.. Enumerable.Range(0, blocks * BlockSize * heads * dim).Select(_ => random.NextSingle())];
        byte[] keys = Arrays.Encode(before, ElementType.Float32), values = Arrays.Encode(before, ElementType.Float32);
        nint k = Arrays.Address(keys), v = Arrays.Address(values);
        var cache = nhd ? PagedView.Nhd(k, v, ElementType.Float32, BlockSize, heads, dim) : PagedView.Hnd(k, v, ElementType.Float32, BlockSize, heads, dim);
        int[] table = [4, 0, 5];
        int[] slots = [.. Enumerable.Range(0, 20).Select(i => 2 * i), .. Enumerable.Range(0, 20).Select(i => 2 * i + 1)];
        var (length, kept) = HostOwnedCache.Compact(cache, heads, table, 41, slots, [0, 20, 40]);
        Assert.Equal((20, 2), (length, kept));
        for (int head = 0; head < heads; head++)
            for (int i = 0; i < 20; i++)
                for (int d = 0; d < dim; d++)
                    Assert.Equal(before[At(slots[head * 20 + i], head, d)], BitConverter.ToSingle(values, 4 * At(i, head, d)));

        var ragged = Assert.Throws<CompactorException>(() => HostOwnedCache.Compact(cache, heads, table, 20, [0, 1, 2], [0, 2, 3]));
        Assert.Equal(CompactorStatus.Unsupported, ragged.Status);
        Assert.Contains("one block table for all heads cannot hold heads of different lengths", ragged.Message);
        Assert.Throws<CompactorException>(() => HostOwnedCache.Compact(cache, heads, table, 20, [0, 20], [0, 1, 2]));
        GC.KeepAlive((keys, values));

        int At(int slot, int head, int d) => (int)(table[slot / BlockSize] * cache.BlockStride + slot % BlockSize * cache.SlotStride + head * cache.HeadStride) + d;
    }

    [Fact]
    public void Bad_calls_are_named_and_change_nothing()
    {
        var layer = TestLayer.Random(8, [64], 2, 2, 32);
        using var backend = new CpuBackend(1);
        using var cache = new PagedCache(backend, Options(1, 2, 32, 40));
        var sequence = cache.CreateSequence();
        var (key, value) = (layer.Inputs.Key, layer.Inputs.Value);
        sequence.Store(0, key, value, 0, 20, 0);
        var before = State(sequence);
        Refused("There is no layer 1", () => sequence.Store(1, key, value, 0, 1, 0));
        Refused("60 from token 5 on are not there", () => sequence.Store(0, key, value, 5, 60, 0));
        Refused("the cache holds 2 of 32 Float32", () => sequence.Store(0, key with { Dim = 16 }, value, 0, 1, 0));
        Refused("There are 2 offsets", () => sequence.Compact(0, [0], [0, 1]));
        Refused("slots must ascend below 20", () => sequence.Compact(0, [3, 3], [0, 2, 2]));
        Refused("slots must ascend below 20", () => sequence.Compact(0, [20], [0, 1, 1]));
        Refused("41 cannot survive", () => sequence.BeginCompaction(0, 41));
        using (var pending = sequence.BeginCompaction(0, 2))
        {
            Refused("Complete was called before Move", pending.Complete);
            Refused("blocks were reserved for 2", () => pending.Move([1], [0, 1, 1]));
        }
        Refused("BlockSize is 8; use 16 to 256", () => new PagedCache(backend, Options(1, 2, 32, 40) with { BlockSize = 8 }));
        Assert.Equal(before, State(sequence));
        var pool = new BlockPool(3);
        Refused("Block 1 cannot be given back: it is free", () => pool.Give([1]));
        Refused("Block 3 cannot be given back: the pool has 3", () => pool.Give([3]));
        sequence.Dispose();
        sequence.Dispose();
        Assert.Throws<ObjectDisposedException>(() => sequence.Lengths(0).ToArray());
        Assert.Equal(40, cache.FreeBlocks);
        GC.KeepAlive(layer);

        static void Refused(string part, Action action) => Assert.Contains(part, Assert.Throws<CompactorException>(action).Message);
    }

    [Fact]
    public void Metrics_report_blocks()
    {
        var layer = TestLayer.Random(9, [64], 2, 2, 32);
        using var backend = new CpuBackend(1);
        using var listener = new MeterListener();
        var seen = new Dictionary<string, long>();
        listener.InstrumentPublished = (instrument, l) =>
        {
            if (instrument.Meter.Name == "Compactor.Native")
                l.EnableMeasurementEvents(instrument);
        };
        using var cache = new PagedCache(backend, Options(1, 2, 32, 77));
        listener.SetMeasurementEventCallback<long>((instrument, measurement, _, _) => seen[instrument.Name] = seen.GetValueOrDefault(instrument.Name) + measurement);
        listener.SetMeasurementEventCallback<int>((instrument, measurement, _, _) => seen[instrument.Name + measurement] = 1);
        listener.Start();
        using (var sequence = cache.CreateSequence())
        {
            sequence.Store(0, layer.Inputs.Key, layer.Inputs.Value, 0, 33, 0);
            listener.RecordObservableInstruments();
        }
        Assert.Equal(1, seen["compactor.cache.blocks.used6"]);
        Assert.Equal(1, seen["compactor.cache.blocks.free71"]);
        Assert.True(seen["compactor.cache.blocks.taken"] >= 6);
        GC.KeepAlive(layer);
    }

    private static CacheSequence Fill(PagedCache cache, TestLayer layer, int blocks)
    {
        var filler = cache.CreateSequence();
        for (int i = 0; i < blocks; i++)
            filler.StoreSurvivors(0, layer.Inputs.Key, layer.Inputs.Value, 0, [.. Enumerable.Range(0, 16)], [0, 16, 16], 0);
        return filler;
    }

    private static string State(CacheSequence sequence) => string.Join("; ", Enumerable.Range(0, 2).Select(head =>
        $"{string.Join(",", sequence.Blocks(0, head).ToArray())}: {string.Join(",", sequence.Read(0, head).Positions)} {Convert.ToHexString(System.Security.Cryptography.SHA256.HashData(sequence.Read(0, head).Keys))}"));

    private static float[] Decode(KvBackend backend, PagedCache cache, CacheSequence[] sequences, TensorView query, int layer = 0)
    {
        var (tables, stride, lengths) = CacheExport.Padded(sequences, layer);
        using var tableMemory = backend.Allocate<int>(tables.Length);
        using var lengthMemory = backend.Allocate<int>(lengths.Length);
        using var output = backend.Allocate<float>(query.Tokens * query.Heads * query.Dim);
        tables.CopyTo(tableMemory.View.AsSpan());
        lengths.CopyTo(lengthMemory.View.AsSpan());
        backend.DecodeAttention(cache.View, query, cache.Options.KvHeads, new PagedTables(tableMemory.View, stride, lengthMemory.View), new DecodeOptions(), output.View);
        return Arrays.Copy(output);
    }
}
