using Compactor.Native.Compression;
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

    [Fact]
    public void A_cache_whose_sequences_could_not_hold_their_tables_is_refused()
    {
        using var backend = Backends.Cpu(1);
        Refused("4294836225 block rows", () => new PagedCache(backend, Options(layers: 65535, heads: 65535)));
        Refused("1114095 block rows", () => new PagedCache(backend, Options(layers: 65535, heads: 17)));
        using var largest = new PagedCache(backend, Options(layers: 65535, heads: 16));
    }

    [Theory]
    [InlineData(1.0)]
    [InlineData(0.5)]
    public void A_batch_takes_each_sequence_once_and_all_of_one_cache(double retention)
    {
        var layer = TestLayer.Random(1, [40, 60], 2, 2, 32);
        var options = CompressionPresets.Paper with { ProtectLast = 4 };
        using var backend = Backends.Cpu(1);
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
        using var backend = Backends.Cpu(1);
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
        using var backend = Backends.Cpu(1);
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
        // What a fork that fails half-way has taken comes back.
        Assert.Throws<ObjectDisposedException>(kept.Fork);
        Assert.Throws<ObjectDisposedException>(() => cache.Slots.Positions);
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

    [Fact]
    public void A_host_s_cache_of_impossible_form_is_refused()
    {
        using var backend = Backends.Cpu(1);
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
        using var backend = Backends.Cpu(1);
        using var cache = new PagedCache(backend, Options(type: ElementType.BFloat16));
        using var output = backend.Allocate<float>(2 * 32);
        using var tables = backend.Allocate<int>(2);
        using var lengths = backend.Allocate<int>(2);
        tables.View.AsSpan().Clear();
        lengths.View.AsSpan().Fill(1);
        var query = TensorView.Packed(output.View.Address, ElementType.Opaque8, 1, 2, 32);
        Refused("opaque", () => backend.DecodeAttention(cache.View, query, 2, new PagedTables(tables.View, 1, lengths.View), new AttentionOptions(), output.View), CompactorStatus.Unsupported);
    }

    [Theory]
    [InlineData(NormalizationScope.Head)]
    [InlineData(NormalizationScope.Sequence)]
    [InlineData(NormalizationScope.Chunk)]
    public void What_is_held_is_recompressed_in_any_state(NormalizationScope scope)
    {
        var layer = TestLayer.Random(3, [300], 2, 2, 32);
        var options = CompressionPresets.Paper with { LeverageScope = scope, LeverageChunk = scope == NormalizationScope.Chunk ? 64 : 0, ProtectFirst = 4, ProtectLast = 16 };
        using var backend = Backends.Cpu(2);
        using var cache = new PagedCache(backend, Options(layers: 2, blocks: 200));
        using CacheSequence sequence = cache.CreateSequence(), empty = cache.CreateSequence(), few = cache.CreateSequence();
        sequence.Store(0, layer.Inputs.Key, layer.Inputs.Value, 0, 300, 0);
        few.Store(0, layer.Inputs.Key, layer.Inputs.Value, 0, 7, 100);
        using var fork = sequence.Fork();
        var original = Positions(sequence, 0);

        // Once, twice, thrice: what is left is a part of what was, in order, with the protected slots of each head.
        var before = Positions(fork, 0);
        foreach (double retention in (double[])[0.5, 0.5, 0.01, 0])
        {
            Recompress([fork, empty, few], retention);
            var after = Positions(fork, 0);
            for (int head = 0; head < 2; head++)
            {
                Assert.Empty(after[head].Except(before[head]));
                Assert.Equal(after[head].Order(), after[head]);
                Assert.Equal(before[head][..4], after[head][..4]);
                Assert.Equal(before[head][^16..], after[head][^16..]);
            }
            before = after;
            Assert.Equal([0, 0], empty.Lengths(0).ToArray());
            Assert.Equal([7, 7], few.Lengths(0).ToArray());
            Assert.Equal(original, Positions(sequence, 0));
        }
        Assert.Equal([20, 20], fork.Lengths(0).ToArray());
        // The layer that holds nothing, alone and in a batch of such.
        using (var pending = CacheCompressor.Recompress([sequence, fork], 1, new LayerPlan(CacheCompressor.HeldShape([sequence, fork], 1), options, Budget.Retention(0.5)), null))
            pending.Complete();
        Assert.Equal(2 * 19 + 2 * 2 + 2 * 1, 200 - cache.FreeBlocks);
        // What its own fork has compacted away, the origin still has, and the other way round.
        sequence.Dispose();
        Assert.Equal(before, Positions(fork, 0));
        Assert.Equal(2 * 2 + 2 * 1, 200 - cache.FreeBlocks);
        GC.KeepAlive(layer);

        void Recompress(CacheSequence[] sequences, double retention)
        {
            using var pending = CacheCompressor.Recompress(sequences, 0, new LayerPlan(CacheCompressor.HeldShape(sequences, 0), options, Budget.Retention(retention)), null);
            pending.Complete();
        }

        static int[][] Positions(CacheSequence s, int layer) => [s.Read(layer, 0).Positions, s.Read(layer, 1).Positions];
    }

    [Fact]
    public void A_held_slot_that_is_not_finite_and_a_head_without_factor_are_named()
    {
        foreach (int blockSize in (int[])[16, 100])
        {
            var layer = TestLayer.Random(4, [90], 2, 2, 32);
            using var backend = Backends.Cpu(2);
            using var cache = new PagedCache(backend, Options(layers: 3, blockSize: blockSize));
            using CacheSequence first = cache.CreateSequence(), second = cache.CreateSequence();
            float[] nan = [.. layer.KeyValues], huge = [.. layer.KeyValues.Select(x => x * 1e25f)];
            nan[(77 * 2 + 1) * 32 + 31] = float.NaN;
            byte[] nanBytes = Arrays.Encode(nan, ElementType.Float32), hugeBytes = Arrays.Encode(huge, ElementType.Float32);
            first.Store(2, layer.Inputs.Key, layer.Inputs.Value, 0, 50, 0);
            second.Store(2, Packed(nanBytes), layer.Inputs.Value, 60, 30, 500);
            var plan = new LayerPlan(CacheCompressor.HeldShape([first, second], 2), CompressionPresets.Paper, Budget.Tokens(25));
            int free = cache.FreeBlocks;
            // Token 77 is slot 17 of its head.
            Refused("Layer 2: the cache (slots count as tokens) holds NaN at token 17 of sequence 1, head 1.",
                () => CacheCompressor.Recompress([first, second], 2, plan, RotaryEmbedding.FromTheta(10000, 32)), CompactorStatus.NonFinite);
            Assert.Equal((free, 50, 30), (cache.FreeBlocks, first.Lengths(2)[1], second.Lengths(2)[1]));

            // Squares of the second sequence's keys overflow; the first head is named.
            first.Store(1, layer.Inputs.Key, layer.Inputs.Value, 0, 50, 0);
            second.Store(1, Packed(hugeBytes), layer.Inputs.Value, 60, 30, 500);
            plan = new LayerPlan(CacheCompressor.HeldShape([first, second], 1), CompressionPresets.Paper, Budget.Tokens(25));
            Refused("Layer 1: the Gram matrix of sequence 1, head 0 has no Cholesky factor", () => CacheCompressor.Recompress([first, second], 1, plan, null), CompactorStatus.FactorizationFailed);
            GC.KeepAlive((layer, nanBytes, hugeBytes));

            static TensorView Packed(byte[] bytes) => TensorView.Packed(Arrays.Address(bytes), ElementType.Float32, 90, 2, 32);
        }
    }

    public static TheoryData<int, ElementType, int> Forms => new(
        from blockSize in (int[])[16, 17, 100, 128, 255, 256]
        from form in ((ElementType, int)[])[(ElementType.Opaque8, 1), (ElementType.Opaque8, 17), (ElementType.Opaque8, 256), (ElementType.BFloat16, 33), (ElementType.Float16, 80), (ElementType.Float32, 256)]
        select (blockSize, form.Item1, form.Item2));

    /// <summary>What exported tables lead to is what was stored, for any size of block and row.</summary>
    [Theory]
    [MemberData(nameof(Forms))]
    public unsafe void Exports_after_compaction_lead_to_the_survivors(int blockSize, ElementType type, int dim)
    {
        const int Tokens = 700, Heads = 3;
        int row = dim * type.Size();
        var random = new Random(blockSize + dim);
        byte[] keys = GC.AllocateArray<byte>(Tokens * Heads * row, pinned: true), values = GC.AllocateArray<byte>(keys.Length, pinned: true);
        random.NextBytes(keys);
        random.NextBytes(values);
        using var backend = Backends.Cpu(2);
        using var cache = new PagedCache(backend, Options(layers: 2, heads: Heads, dim: dim, blocks: 400, blockSize: blockSize, type: type));
        using CacheSequence origin = cache.CreateSequence(), empty = cache.CreateSequence();
        TensorView key = TensorView.Packed(Arrays.Address(keys), type, Tokens, Heads, dim), value = TensorView.Packed(Arrays.Address(values), type, Tokens, Heads, dim);
        origin.Store(1, key, value, 0, Tokens, 40);
        origin.Reserve(1, 300);
        using var sequence = origin.Fork();
        int[][] kept = [.. Enumerable.Range(0, Heads).Select(head => Enumerable.Range(0, Tokens).Where(_ => random.Next(3) > head).ToArray())];
        sequence.Compact(1, [.. kept.SelectMany(k => k)], [0, kept[0].Length, kept[0].Length + kept[1].Length, kept.Sum(k => k.Length)]);
        sequence.Store(1, key, value, 5, 1, 740);

        CacheSequence[] batch = [sequence, empty, origin];
        var (indptr, indices, last) = CacheExport.FlashInfer(batch, 1);
        var (tables, stride, lengths) = CacheExport.Padded(batch, 1);
        Assert.Equal(3 * Heads + 1, indptr.Length);
        Assert.Equal(indices.Length, indptr[^1]);
        for (int r = 0; r < 3 * Heads; r++)
        {
            int head = r % Heads, pages = indptr[r + 1] - indptr[r];
            int[] expected = (r / Heads) switch { 0 => [.. kept[head], 5], 1 => [], _ => [.. Enumerable.Range(0, Tokens)] };
            Assert.Equal(expected.Length, lengths[r]);
            Assert.Equal(expected.Length, pages == 0 ? 0 : (pages - 1) * blockSize + last[r]);
            Assert.Equal(indices[indptr[r]..indptr[r + 1]], tables[(r * stride)..(r * stride + pages)]);
            Assert.All(tables[(r * stride + pages)..((r + 1) * stride)], block => Assert.Equal(-1, block));
            for (int slot = 0; slot < expected.Length; slot++)
            {
                int block = indices[indptr[r] + slot / blockSize], from = (expected[slot] * Heads + head) * row;
                long at = ((long)block * blockSize + slot % blockSize) * row;
                Assert.True(keys.AsSpan(from, row).SequenceEqual(new ReadOnlySpan<byte>((byte*)cache.View.Keys + at, row)), $"key of slot {slot} in row {r}");
                Assert.True(values.AsSpan(from, row).SequenceEqual(new ReadOnlySpan<byte>((byte*)cache.View.Values + at, row)), $"value of slot {slot} in row {r}");
                int position = r < Heads && slot == kept[head].Length ? 740 : 40 + expected[slot];
                Assert.Equal(position, cache.Positions.AsSpan()[block * blockSize + slot % blockSize]);
            }
        }
    }

    [Fact]
    public void Scoring_from_several_threads_gives_the_bits_of_one()
    {
        TestLayer[] layers = [.. Enumerable.Range(0, 4).Select(seed => TestLayer.Random(seed, [900 + seed, 70], 4, 2, 64))];
        using var backend = Backends.Cpu(2);
        float[][] alone = [.. layers.Select(Scores)];
        Parallel.For(0, 24, i => Assert.Equal(alone[i % 4], Scores(layers[i % 4])));
        GC.KeepAlive(layers);

        float[] Scores(TestLayer layer)
        {
            using var selection = LayerCompressor.Select(backend, new LayerPlan(layer.Shape, CompressionPresets.KvPress, Budget.Retention(0.3)), layer.Inputs);
            return [.. selection.Scores!.View.AsSpan(), .. selection.KeptIndices.View.AsSpan().ToArray()];
        }
    }

    private static void Refused(string part, Action action, CompactorStatus status = CompactorStatus.InvalidArgument)
    {
        var e = Assert.Throws<CompactorException>(action);
        Assert.Contains(part, e.Message);
        Assert.Equal(status, e.Status);
    }
}
