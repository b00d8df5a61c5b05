using System.Diagnostics.Metrics;
using Compactor.Native.Compression;
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
    [InlineData(1.0)]
    [InlineData(0.5)]
    public void A_prefill_that_is_cancelled_has_stored_nothing(double retention)
    {
        var layer = TestLayer.Random(1, [100], 2, 2, 32);
        using var backend = Backends.Cpu(1);
        using var cache = new PagedCache(backend, Options(1, 2, 32, 60));
        using var sequence = cache.CreateSequence();
        sequence.Store(0, layer.Inputs.Key, layer.Inputs.Value, 0, 40, 0);
        var before = State(sequence);
        int free = cache.FreeBlocks;
        using (var pending = CacheCompressor.StorePrefill([sequence], 0, new LayerPlan(layer.Shape, CompressionPresets.CompactorVllm, Budget.Retention(retention)), layer.Inputs))
            Assert.Equal(retention == 1, pending.ScoredBy is null);
        Assert.Equal(before, State(sequence));
        Assert.Equal(free, cache.FreeBlocks);
    }

    [Theory]
    [InlineData("store")]
    [InlineData("append")]
    [InlineData("survivors")]
    [InlineData("compact")]
    [InlineData("fork")]
    [InlineData("recompress")]
    [InlineData("prefill")]
    [InlineData("prefill, everything")]
    public void Out_of_blocks_changes_nothing_whatever_is_free(string operation)
    {
        var layer = TestLayer.Random(1, [100], 2, 2, 32);
        using var backend = Backends.Cpu(1);
        int needed = operation switch { "store" => 8, "append" => 2, "survivors" => 3, "compact" => 5, "recompress" => 4, "prefill" => 6, "prefill, everything" => 12, _ => 2 };
        var batch = TestLayer.Random(2, [40, 60], 2, 2, 32);
        var everything = new LayerPlan(batch.Shape, CompressionPresets.CompactorVllm, Budget.Retention(1));
        // 20 pairs of 40 tokens and 30 of 60 in blocks of 16: 1 + 2 and 1 + 2 blocks, without any that are always kept.
        var half = new LayerPlan(batch.Shape, CompressionPresets.Paper with { ProtectFirst = 0, ProtectLast = 0 }, [Budget.Tokens(10), Budget.Tokens(15)]);
        for (int free = 0; free <= needed; free++)
        {
            using var cache = new PagedCache(backend, Options(1, 2, 32, 60));
            using var sequence = cache.CreateSequence();
            sequence.Store(0, layer.Inputs.Key, layer.Inputs.Value, 0, operation == "append" ? 32 : 40, 0);
            using var filler = Fill(cache, layer, cache.FreeBlocks - free);
            Assert.Equal(free, cache.FreeBlocks);
            var before = State(sequence);
            using var other = cache.CreateSequence();
            Action act = operation switch
            {
                "recompress" => () => Complete(CacheCompressor.Recompress([sequence], 0,
                    new LayerPlan(CacheCompressor.HeldShape([sequence], 0), CompressionPresets.Paper with { ProtectLast = 0 }, Budget.Tokens(20)), RotaryEmbedding.FromTheta(10000, 32))),
                "prefill" => () => Complete(CacheCompressor.StorePrefill([sequence, other], 0, half, batch.Inputs)),
                "prefill, everything" => () => Complete(CacheCompressor.StorePrefill([sequence, other], 0, everything, batch.Inputs)),
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
            other.Dispose();
            sequence.Dispose();
            filler.Dispose();
            Assert.Equal(60, cache.FreeBlocks);
            Assert.Equal(0, cache.UnusedSlots);
        }
        GC.KeepAlive((layer, batch));
    }

    [Fact]
    public void Compaction_frees_blocks_that_another_head_and_sequence_use()
    {
        var layer = TestLayer.Random(2, [96], 2, 2, 32);
        using var backend = Backends.Cpu(1);
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
                float[] actual = PagedDecode.Of(cache, [sequence], layer.Inputs.Query!.Value with { Tokens = 1 }, 0);
                var kept = run.Kept(0, heads);
                for (int head = 0; head < heads * group; head++)
                {
                    int h = head / group;
                    int[] tokens = [.. Enumerable.Range(0, n).Where(t => retention == 1 || kept.Contains((t, h))), 7];
                    double[,] keys = new double[tokens.Length, dim], values = new double[tokens.Length, dim];
                    for (int i = 0; i < tokens.Length; i++)
                        for (int d = 0; d < dim; d++)
                            (keys[i, d], values[i, d]) = (layer.KeyValues[(tokens[i] * heads + h) * dim + d], layer.ValueValues[(tokens[i] * heads + h) * dim + d]);
                    var (expected, _) = Reference.ReferenceDecodeAttention.Attend([.. layer.QueryValues[(head * dim)..((head + 1) * dim)].Select(x => (double)x)], keys, values, new AttentionOptions());
                    Assert.InRange(Arrays.RelativeError(actual.AsSpan(head * dim, dim), [.. expected.Select(x => (float)x)]), 0, 1e-5);
                }
            }
        GC.KeepAlive(layer);
    }

    [Fact]
    public void Forks_decode_as_their_origin_and_share_its_blocks()
    {
        var layer = TestLayer.Random(4, [100], 4, 2, 32);
        using var backend = Backends.Cpu(1);
        using var cache = new PagedCache(backend, Options(2, 2, 32, 100));
        using var origin = cache.CreateSequence();
        for (int l = 0; l < 2; l++)
            origin.Store(l, layer.Inputs.Key, layer.Inputs.Value, 0, 100, 0);
        int used = cache.Blocks - cache.FreeBlocks;
        using var fork = origin.Fork();
        using var second = fork.Fork();
        Assert.Equal(used + 2 * 4, cache.Blocks - cache.FreeBlocks);
        var query = layer.Inputs.Query!.Value with { Tokens = 1 };
        Assert.Equal(PagedDecode.Of(cache, [origin], query, 1), PagedDecode.Of(cache, [second], query, 1));
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
        using var backend = Backends.Cpu(1);
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
        using var backend = Backends.Cpu(1);
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
        using var backend = Backends.Cpu(2);
        var random = new Random(7);
        float[] before = [.. Enumerable.Range(0, blocks * BlockSize * heads * dim).Select(_ => random.NextSingle())];
        byte[] keys = Arrays.Encode(before, ElementType.Float32), values = Arrays.Encode(before, ElementType.Float32);
        nint k = Arrays.Address(keys), v = Arrays.Address(values);
        var cache = nhd ? PagedView.Nhd(k, v, ElementType.Float32, BlockSize, heads, dim) : PagedView.Hnd(k, v, ElementType.Float32, BlockSize, heads, dim);
        int[] table = [4, 0, 5];
        int[] slots = [.. Enumerable.Range(0, 20).Select(i => 2 * i), .. Enumerable.Range(0, 20).Select(i => 2 * i + 1)];
        var (length, kept) = HostOwnedCache.Compact(backend, cache, heads, table, 41, slots, [0, 20, 40]);
        Assert.Equal((20, 2), (length, kept));
        for (int head = 0; head < heads; head++)
            for (int i = 0; i < 20; i++)
                for (int d = 0; d < dim; d++)
                    Assert.Equal(before[At(slots[head * 20 + i], head, d)], BitConverter.ToSingle(values, 4 * At(i, head, d)));

        var ragged = Assert.Throws<CompactorException>(() => HostOwnedCache.Compact(backend, cache, heads, table, 20, [0, 1, 2], [0, 2, 3]));
        Assert.Equal(CompactorStatus.Unsupported, ragged.Status);
        Assert.Contains("one block table for all heads cannot hold heads of different lengths", ragged.Message);
        Assert.Throws<CompactorException>(() => HostOwnedCache.Compact(backend, cache, heads, table, 20, [0, 20], [0, 1, 2]));
        GC.KeepAlive((keys, values));

        int At(int slot, int head, int d) => (int)(table[slot / BlockSize] * cache.BlockStride + slot % BlockSize * cache.SlotStride + head * cache.HeadStride) + d;
    }

    [Fact]
    public void Bad_calls_are_named_and_change_nothing()
    {
        var layer = TestLayer.Random(8, [64], 2, 2, 32);
        using var backend = Backends.Cpu(1);
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
        Refused("3 tokens from position 2147483646 on", () => sequence.Store(0, key, value, 0, 3, int.MaxValue - 1));
        Refused("1 tokens from position -1 on", () => sequence.Store(0, key, value, 0, 1, -1));
        using (var pending = sequence.BeginCompaction(0, 2))
        {
            Refused("has a compaction under way", () => sequence.Store(0, key, value, 0, 1, 0));
            Refused("has a compaction under way", () => sequence.BeginCompaction(0, 2));
            Refused("has a compaction under way", () => sequence.Fork());
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
    public void Meters_report_the_truth()
    {
        var layer = TestLayer.Random(9, [64], 2, 2, 32);
        using var backend = Backends.Cpu(1);
        using var cache = new PagedCache(backend, Options(1, 2, 32, 77));
        using var listener = new MeterListener();
        var (counters, gauges) = (new Dictionary<string, long>(), new Dictionary<string, long>());
        listener.InstrumentPublished = (instrument, l) =>
        {
            if (instrument.Meter == cache.Meter)
                l.EnableMeasurementEvents(instrument);
        };
        listener.SetMeasurementEventCallback<long>((instrument, value, _, _) =>
        {
            if (instrument.IsObservable)
                gauges[instrument.Name] = value;
            else
                counters[instrument.Name] = counters.GetValueOrDefault(instrument.Name) + value;
        });
        listener.SetMeasurementEventCallback<int>((instrument, value, _, _) => gauges[instrument.Name] = value);
        listener.Start();

        using (var sequence = cache.CreateSequence())
        {
            sequence.Store(0, layer.Inputs.Key, layer.Inputs.Value, 0, 33, 0);
            Expect(used: 6, unused: 2 * 15, taken: 6, given: 0, refused: 0);
            sequence.Reserve(0, 31);
            Expect(used: 8, unused: 2 * 31, taken: 8, given: 0, refused: 0);
            var fork = sequence.Fork();
            // Two full blocks of each head are shared, one of each is copied.
            Expect(used: 10, unused: 2 * 31 + 2 * 15, taken: 10, given: 0, refused: 0);
            using (var pending = fork.BeginCompaction(0, 3))
            {
                Expect(used: 12, unused: 2 * 31 + 2 * 15 + 2 * 16, taken: 12, given: 0, refused: 0);
                pending.Move([0, 5, 32], [0, 2, 3]);
                pending.Complete();
            }
            Expect(used: 10, unused: 2 * 31 + 14 + 15, taken: 12, given: 2, refused: 0);
            Assert.Throws<CompactorException>(() => sequence.Store(0, layer.Inputs.Key with { Tokens = 5000 }, layer.Inputs.Value with { Tokens = 5000 }, 0, 5000, 0));
            Expect(used: 10, unused: 2 * 31 + 14 + 15, taken: 12, given: 2, refused: 1);
            fork.Dispose();
            Expect(used: 8, unused: 2 * 31, taken: 12, given: 4, refused: 1);
        }
        Expect(used: 0, unused: 0, taken: 12, given: 12, refused: 1);
        GC.KeepAlive(layer);

        void Expect(int used, int unused, int taken, int given, int refused)
        {
            listener.RecordObservableInstruments();
            Assert.Equal((used, 77 - used, unused), (gauges["compactor.cache.blocks.used"], gauges["compactor.cache.blocks.free"], gauges["compactor.cache.slots.unused"]));
            Assert.Equal((taken, given, refused), (counters.GetValueOrDefault("compactor.cache.blocks.taken"), counters.GetValueOrDefault("compactor.cache.blocks.given"), counters.GetValueOrDefault("compactor.cache.refused")));
        }
    }

    [Fact]
    public void A_sequence_is_forked_and_freed_while_another_thread_works_on_its_sibling()
    {
        var layer = TestLayer.Random(10, [64], 2, 2, 16);
        using var backend = Backends.Cpu(1);
        using var cache = new PagedCache(backend, Options(1, 2, 16, 64));
        var cancellation = TestContext.Current.CancellationToken;
        for (int round = 0; round < 20; round++)
        {
            var origin = cache.CreateSequence();
            origin.Store(0, layer.Inputs.Key, layer.Inputs.Value, 0, 40, 0);
            var sibling = origin.Fork();
            var before = State(sibling);
            using var start = new Barrier(2);
            var freeing = new Thread(() =>
            {
                start.SignalAndWait(cancellation);
                for (int i = 0; i < 200; i++)
                    origin.Fork().Dispose();
                origin.Dispose();
            });
            freeing.Start();
            start.SignalAndWait(cancellation);
            for (int i = 0; i < 100; i++)
            {
                using var grandchild = sibling.Fork();
                grandchild.Store(0, layer.Inputs.Key, layer.Inputs.Value, i % 64, 1, 40);
                grandchild.Compact(0, [.. Enumerable.Range(0, 41), 3], [0, 41, 42]);
                Assert.Equal([.. Enumerable.Range(0, 41)], grandchild.Read(0, 0).Positions);
                Assert.Equal([3], grandchild.Read(0, 1).Positions);
            }
            freeing.Join();
            Assert.Equal(before[before.IndexOf(':')..], State(sibling)[State(sibling).IndexOf(':')..]);
            sibling.Dispose();
            Assert.Equal((64, 0), (cache.FreeBlocks, cache.UnusedSlots));
        }
        GC.KeepAlive(layer);
    }

    [Theory]
    [InlineData("reference")]
    [InlineData("cpu")]
    public void A_selection_compacts_a_host_s_batch_in_place(string backendName)
    {
        const int heads = 2, dim = 16;
        var layer = TestLayer.Random(11, [50, 0, 37], heads, heads, dim);
        using KvBackend backend = backendName == "cpu" ? Backends.Cpu(2) : new Reference.ReferenceBackend();
        ReadOnlyMemory<int>[] tables = [new int[] { 3, 0, 6, 1 }, Array.Empty<int>(), new int[] { 2, 5, 4 }];
        byte[] keys = GC.AllocateArray<byte>(7 * BlockSize * heads * dim * 4, pinned: true), values = GC.AllocateArray<byte>(keys.Length, pinned: true);
        var cache = PagedView.Nhd(Arrays.Address(keys), Arrays.Address(values), ElementType.Float32, BlockSize, heads, dim);
        for (int b = 0; b < 3; b++)
            for (int t = 0; t < layer.Shape.LengthOf(b); t++)
                for (int h = 0; h < heads; h++)
                    for (int d = 0; d < dim; d++)
                        BitConverter.TryWriteBytes(keys.AsSpan(At(b, t, h, d)), layer.KeyValues[((layer.Shape.CuSeqlens[b] + t) * heads + h) * dim + d]);
        var plan = new LayerPlan(layer.Shape, CompressionPresets.KvPress, Budget.Retention(0.4));
        using var selection = LayerCompressor.Select(backend, plan, layer.Inputs);
        int[] indices = Arrays.Copy(selection.KeptIndices), offsets = Arrays.Copy(selection.KeptOffsets);
        Assert.Equal([(20, 2), (0, 0), (14, 1)], HostOwnedCache.Compact(backend, cache, tables, selection));
        for (int b = 0; b < 3; b++)
            for (int h = 0; h < heads; h++)
                for (int i = offsets[b * heads + h]; i < offsets[b * heads + h + 1]; i++)
                    for (int d = 0; d < dim; d++)
                        Assert.Equal(layer.KeyValues[((layer.Shape.CuSeqlens[b] + indices[i]) * heads + h) * dim + d],
                            BitConverter.ToSingle(keys, At(b, i - offsets[b * heads + h], h, d)));

        using var ragged = LayerCompressor.Select(backend, new LayerPlan(layer.Shape, CompressionPresets.Paper, Budget.Retention(0.4)), layer.Inputs);
        Assert.Contains("one block table for all heads", Assert.Throws<CompactorException>(() => HostOwnedCache.Compact(backend, cache, tables, ragged)).Message);
        GC.KeepAlive((layer, keys, values));

        int At(int b, int slot, int h, int d) => 4 * (int)(tables[b].Span[slot / BlockSize] * cache.BlockStride + slot % BlockSize * cache.SlotStride + h * cache.HeadStride + d);
    }

    private static void Complete(PendingCompaction pending)
    {
        using (pending)
            pending.Complete();
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
}
