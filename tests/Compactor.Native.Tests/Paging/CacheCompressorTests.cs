using Compactor.Native.Compression;
using Compactor.Native.Paging;
using Compactor.Native.Reference;
using Compactor.Native.Tests.Support;
using Xunit;

namespace Compactor.Native.Tests.Paging;

public class CacheCompressorTests
{
    private const int Heads = 3, Dim = 32;

    private static readonly RotaryEmbedding s_rotary = RotaryEmbedding.FromTheta(10000, Dim);

    public static TheoryData<string, SelectionScope, ElementType> EqualLengths => new(
        from preset in CompressionPresets.ByName.Keys
        from scope in new[] { SelectionScope.Sequence, SelectionScope.Head }
        from type in new[] { ElementType.Float32, ElementType.BFloat16 }
        select (preset, scope, type));

    [Theory]
    [MemberData(nameof(EqualLengths))]
    public void Equal_heads_are_recompressed_as_dense_leverage_selects(string preset, SelectionScope scope, ElementType type)
    {
        // Long enough for whole-sequence blocks and for several chunks with a tail.
        var layer = TestLayer.Random(1, [700, 1, 130, 1100], Heads, Heads, Dim, type);
        foreach (string name in Backends.Names.Where(n => n != "reference"))
            foreach (double retention in new[] { 0.1, 0.5, 0.9 })
            {
                using var backend = Backends.Create(name);
                using var cache = NewCache(backend, type);
                CacheSequence[] sequences = [.. Enumerable.Range(0, 4).Select(_ => cache.CreateSequence())];
                var options = CompressionPresets.ByName[preset] with { SelectionScope = scope, MinTokensPerHead = 3 };
                Complete(CacheCompressor.StorePrefill(sequences, 0, new LayerPlan(layer.Shape, options, Budget.Retention(1)), layer.Inputs));
                var dense = new LayerPlan(layer.Shape, options, Budget.Retention(retention));
                var expected = Run.Of(backend, dense, layer.Inputs with { KeyPreRope = null, Rotary = s_rotary }, SelectionPolicy.LeverageOnly);
                var plan = new LayerPlan(CacheCompressor.HeldShape(sequences, 0), options, Budget.Retention(retention));
                using (var actual = CacheCompressor.SelectHeld(sequences, 0, plan, s_rotary))
                {
                    Assert.Equal(expected.Offsets, Arrays.Copy(actual.KeptOffsets));
                    Assert.Equal(expected.Indices, Arrays.Copy(actual.KeptIndices));
                }
                using (var pending = CacheCompressor.Recompress(sequences, 0, plan, s_rotary))
                {
                    Assert.True(pending.IsReady);
                    Assert.Equal("leverage", pending.ScoredBy);
                    pending.Complete();
                }
                for (int row = 0; row < 4 * Heads; row++)
                    Assert.Equal(expected.Indices[expected.Offsets[row]..expected.Offsets[row + 1]], sequences[row / Heads].Read(0, row % Heads).Positions);
            }
        GC.KeepAlive(layer);
    }

    [Theory]
    [InlineData("paper", SelectionScope.Sequence)]
    [InlineData("paper", SelectionScope.Head)]
    [InlineData("kvpress", SelectionScope.Sequence)]
    [InlineData("kvpress", SelectionScope.Head)]
    [InlineData("compactor-vllm", SelectionScope.Sequence)]
    public void Backends_agree_on_ragged_heads(string preset, SelectionScope scope)
    {
        var layer = TestLayer.Random(2, [400, 170], Heads, Heads, Dim);
        var options = CompressionPresets.ByName[preset] with { SelectionScope = scope, MinTokensPerHead = 5, LeverageChunk = preset == "compactor-vllm" ? 64 : 0 };
        (float[] Leverage, float[] Scores, int[] Indices, int[] Offsets) reference = ([], [], [], []);
        foreach (string name in Backends.Names)
        {
            using var backend = Backends.Create(name);
            using var cache = NewCache(backend, ElementType.Float32);
            CacheSequence[] sequences = [cache.CreateSequence(), cache.CreateSequence()];
            StoreRagged(layer, sequences);
            var plan = new LayerPlan(CacheCompressor.HeldShape(sequences, 0) with { SequenceIds = [7, 3] }, options, Budget.Retention(0.4));
            using var selection = CacheCompressor.SelectHeld(sequences, 0, plan, s_rotary);
            Assert.Null(selection.Attention);
            var run = (Arrays.Copy(selection.Leverage), Arrays.Copy(selection.Scores), Arrays.Copy(selection.KeptIndices), Arrays.Copy(selection.KeptOffsets));
            if (name == "reference")
                reference = run;
            Assert.InRange(Arrays.RelativeError(run.Item1, reference.Leverage), 0, 1e-4);
            for (int i = 0; i < run.Item2.Length; i++)
                Assert.True(run.Item2[i] == reference.Scores[i] || Math.Abs(run.Item2[i] - reference.Scores[i]) < 2e-3, $"{name}: score {i} is {run.Item2[i]}, not {reference.Scores[i]}");
            Assert.Equal(plan.KeptPairs, run.Item3.Length);
            // Scores that differ in their last bits may swap a few pairs at the threshold.
            int different = Pairs(run.Item3, run.Item4).Except(Pairs(reference.Indices, reference.Offsets)).Count();
            Assert.InRange(different, 0, 1);
        }
        GC.KeepAlive(layer);

        static IEnumerable<(int, int)> Pairs(int[] indices, int[] offsets) =>
            Enumerable.Range(0, offsets.Length - 1).SelectMany(row => indices[offsets[row]..offsets[row + 1]].Select(slot => (row, slot)));
    }

    [Fact]
    public void Leverage_reads_stored_positions_and_not_slots()
    {
        // The same rows before RoPE, stored rotated by their own positions, give the leverage of the rows themselves.
        var layer = TestLayer.Random(3, [200], 1, 1, Dim);
        int[] positions = [.. Enumerable.Range(0, 200).Select(t => 5 * t + t % 3)];
        var (cos, sin) = (new double[Dim / 2], new double[Dim / 2]);
        var rotated = new float[200 * Dim];
        for (int t = 0; t < 200; t++)
        {
            s_rotary.Angles(positions[t], positions[t], cos, sin);
            for (int p = 0; p < Dim / 2; p++)
            {
                float x = layer.KeyPreRopeValues[t * Dim + p], y = layer.KeyPreRopeValues[t * Dim + p + Dim / 2];
                (rotated[t * Dim + p], rotated[t * Dim + p + Dim / 2]) = ((float)(cos[p] * x - sin[p] * y), (float)(sin[p] * x + cos[p] * y));
            }
        }
        byte[] bytes = Arrays.Encode(rotated, ElementType.Float32);
        var view = TensorView.Packed(Arrays.Address(bytes), ElementType.Float32, 200, 1, Dim);
        foreach (string name in Backends.Names)
        {
            using var backend = Backends.Create(name);
            using var cache = NewCache(backend, ElementType.Float32, heads: 1);
            using var sequence = cache.CreateSequence();
            for (int t = 0; t < 200; t++)
                sequence.Store(0, view, view, t, 1, positions[t]);
            var options = CompressionPresets.Paper;
            var plan = new LayerPlan(CacheCompressor.HeldShape([sequence], 0), options, Budget.Retention(0.5));
            using var held = CacheCompressor.SelectHeld([sequence], 0, plan, s_rotary);
            var dense = Run.Of(backend, new LayerPlan(layer.Shape, options, Budget.Retention(0.5)), layer.Inputs, SelectionPolicy.LeverageOnly);
            Assert.InRange(Arrays.RelativeError(Arrays.Copy(held.Leverage), dense.Leverage), 0, 1e-4);
            Assert.Equal(5 * 199 + 1 + 1, sequence.PositionEnd(0));

            // Tables of a row a position say the same as frequencies.
            float[] cosines = new float[997 * Dim / 2], sines = new float[997 * Dim / 2];
            for (int p = 0; p < 997; p++)
            {
                s_rotary.Angles(p, p, cos, sin);
                for (int i = 0; i < Dim / 2; i++)
                    (cosines[p * Dim / 2 + i], sines[p * Dim / 2 + i]) = ((float)cos[i], (float)sin[i]);
            }
            using var fromTables = CacheCompressor.SelectHeld([sequence], 0, plan, RotaryEmbedding.FromTables(cosines, sines, Dim));
            Assert.InRange(Arrays.RelativeError(Arrays.Copy(fromTables.Leverage), dense.Leverage), 0, 1e-4);
            Assert.Contains("cover 10 positions; the cache holds positions up to 996",
                Assert.Throws<CompactorException>(() => CacheCompressor.Recompress([sequence], 0, plan, RotaryEmbedding.FromTables(cosines[..160], sines[..160], Dim))).Message);
        }
        GC.KeepAlive((layer, bytes));
    }

    [Fact]
    public void Ragged_budgets_count_the_average_over_heads()
    {
        // Heads of 100, 10 and 40 slots: N = 50.
        var shape = LayerShape.Ragged([100, 10, 40], 3, Dim, ElementType.Float16);
        var paper = CompressionPresets.Paper with { ProtectFirst = 2, ProtectLast = 3 };
        Assert.Equal(3 * 25 + 3 * 5, Kept(paper, Budget.Retention(0.5)));
        Assert.Equal(3 * 25, Kept(paper with { ProtectedBudget = ProtectedBudget.Inside }, Budget.Retention(0.5)));
        Assert.Equal(3 * 20, Kept(paper, Budget.Tokens(20)));
        Assert.Equal(11, Kept(paper with { ProtectFirst = 0 }, Budget.Bytes(11 * shape.BytesPerPair + 5)));
        Assert.Equal(15, Kept(paper, Budget.Tokens(1)));
        Assert.Equal(Math.Round(0.3 * (150 - 15)), Kept(CompressionPresets.CompactorVllm with { ProtectFirst = 2, ProtectLast = 3 }, Budget.Retention(0.3)));
        Assert.Equal(150, Kept(paper, Budget.Retention(1)));
        var head = new LayerPlan(shape, paper with { SelectionScope = SelectionScope.Head }, Budget.Tokens(30));
        Assert.Equal([30, 10, 30], Enumerable.Range(0, 3).Select(h => head.KeptTokensOf(0, h)));
        Assert.Equal(70, head.KeptPairs);
        Assert.Contains("SelectionScope is Token", Assert.Throws<CompactorException>(() => Kept(paper with { SelectionScope = SelectionScope.Token }, Budget.Tokens(30))).Message);
        Assert.Equal(CompactorStatus.BudgetNotMet, Assert.Throws<CompactorException>(() => Kept(paper, Budget.Bytes(14 * shape.BytesPerPair))).Status);

        long Kept(CompressionOptions options, Budget budget) => new LayerPlan(shape, options, budget).KeptPairs;
    }

    [Theory]
    [InlineData(1)]
    [InlineData(0.6)]
    [InlineData(0.2)]
    public void Decoding_after_recompression_equals_dense_attention_over_the_survivors(double retention)
    {
        const int group = 2, queryHeads = Heads * group;
        var layer = TestLayer.Random(4, [300, 90], queryHeads, Heads, Dim);
        foreach (string name in Backends.Names)
        {
            using var backend = Backends.Create(name);
            using var cache = NewCache(backend, ElementType.Float32);
            CacheSequence[] sequences = [cache.CreateSequence(), cache.CreateSequence()];
            Complete(CacheCompressor.StorePrefill(sequences, 0, new LayerPlan(layer.Shape, CompressionPresets.Paper, Budget.Retention(retention)), layer.Inputs));
            var plan = new LayerPlan(CacheCompressor.HeldShape(sequences, 0), CompressionPresets.Paper, Budget.Retention(retention));
            Complete(CacheCompressor.Recompress(sequences, 0, plan, s_rotary));
            float[] actual = PagedDecode.Of(cache, sequences, layer.Inputs.Query!.Value with { Tokens = 2 }, 0);
            for (int b = 0; b < 2; b++)
                for (int head = 0; head < queryHeads; head++)
                {
                    int[] tokens = sequences[b].Read(0, head / group).Positions;
                    Assert.Equal(retention == 1, tokens.Length == layer.Shape.LengthOf(b));
                    double[,] keys = new double[tokens.Length, Dim], values = new double[tokens.Length, Dim];
                    for (int i = 0; i < tokens.Length; i++)
                        for (int d = 0; d < Dim; d++)
                        {
                            int at = ((layer.Shape.CuSeqlens[b] + tokens[i]) * Heads + head / group) * Dim + d;
                            (keys[i, d], values[i, d]) = (layer.KeyValues[at], layer.ValueValues[at]);
                        }
                    int row = (b * queryHeads + head) * Dim;
                    var (expected, _) = ReferenceDecodeAttention.Attend([.. layer.QueryValues[row..(row + Dim)].Select(x => (double)x)], keys, values, new AttentionOptions());
                    Assert.InRange(Arrays.RelativeError(actual.AsSpan(row, Dim), [.. expected.Select(x => (float)x)]), 0, 1e-5);
                }
        }
        GC.KeepAlive(layer);
    }

    [Theory]
    [InlineData("paper")]
    [InlineData("kvpress")]
    public void A_prefill_is_stored_compressed_or_compacted_in_place_to_the_same(string preset)
    {
        // A padded batch, as Hugging Face caches are, of equal lengths.
        var layer = TestLayer.Random(5, [200, 200], Heads, Heads, Dim);
        var options = CompressionPresets.ByName[preset];
        foreach (string name in Backends.Names)
        {
            using var backend = Backends.Create(name);
            using var cache = NewCache(backend, ElementType.Float32);
            CacheSequence[] stored = [cache.CreateSequence(), cache.CreateSequence()], compacted = [cache.CreateSequence(), cache.CreateSequence()];
            var plan = new LayerPlan(layer.Shape, options, Budget.Retention(0.3));
            var selected = Run.Of(backend, plan, layer.Inputs);
            using (var pending = CacheCompressor.StorePrefill(stored, 0, plan, layer.Inputs, [1000, 0]))
            {
                Assert.Equal(0, stored[0].Lengths(0)[0]);
                Assert.Equal("compactor", pending.ScoredBy);
                pending.Complete();
            }
            CacheSequence.StoreTokens(compacted, 0, layer.Inputs.Key, layer.Inputs.Value, [0, 200], [200, 200], [0, 0]);
            int before = cache.FreeBlocks;
            Complete(CacheCompressor.CompactPrefill(compacted, 0, plan, layer.Inputs));
            Assert.True(cache.FreeBlocks > before + Heads * 10);
            for (int row = 0; row < 2 * Heads; row++)
            {
                int[] kept = selected.Indices[selected.Offsets[row]..selected.Offsets[row + 1]];
                var (a, b) = (stored[row / Heads].Read(0, row % Heads), compacted[row / Heads].Read(0, row % Heads));
                Assert.Equal(kept, b.Positions);
                Assert.Equal(kept.Select(t => t + (row < Heads ? 1000 : 0)), a.Positions);
                Assert.Equal(b.Keys, a.Keys);
                Assert.Equal(b.Values, a.Values);
            }

            // A second store goes on in the partial last blocks; a cancelled one leaves no trace.
            var lengths = stored[0].Lengths(0).ToArray();
            int free = cache.FreeBlocks;
            CacheCompressor.StorePrefill(stored, 0, plan, layer.Inputs, [1200, 200]).Dispose();
            Assert.Equal(free, cache.FreeBlocks);
            Assert.Equal(lengths, stored[0].Lengths(0));
            Complete(CacheCompressor.StorePrefill(stored, 0, plan, layer.Inputs with { Query = null }, [1200, 200]));
            Assert.Equal(1400, stored[0].PositionEnd(0));
            Assert.Equal(lengths.Sum() * 2, stored[0].Lengths(0).ToArray().Sum());
            foreach (var sequence in stored.Concat(compacted))
                sequence.Dispose();
            Assert.Equal((cache.Blocks, 0), (cache.FreeBlocks, cache.UnusedSlots));
        }
        GC.KeepAlive(layer);
    }

    [Fact]
    public void What_does_not_fit_is_named_and_changes_nothing()
    {
        var layer = TestLayer.Random(6, [60, 60], Heads, Heads, Dim);
        using var backend = Backends.Cpu(2);
        using var cache = NewCache(backend, ElementType.Float32);
        CacheSequence[] sequences = [cache.CreateSequence(), cache.CreateSequence()];
        var plan = new LayerPlan(layer.Shape, CompressionPresets.Paper, Budget.Retention(0.3));
        Refused("There are 1 sequences; the plan is of 2", () => CacheCompressor.StorePrefill([sequences[0]], 0, plan, layer.Inputs));
        Refused("are the same", () => CacheCompressor.StorePrefill([sequences[0], sequences[0]], 0, plan, layer.Inputs));
        Refused("holds 0 slots in layer 0; the plan is of 60", () => CacheCompressor.CompactPrefill(sequences, 0, plan, layer.Inputs));
        Refused("The plan is not of the shape that sequences hold", () => CacheCompressor.SelectHeld(sequences, 0, plan, s_rotary));
        Complete(CacheCompressor.StorePrefill(sequences, 0, plan, layer.Inputs));
        var held = new LayerPlan(CacheCompressor.HeldShape(sequences, 0), CompressionPresets.Paper, Budget.Retention(0.3));
        int free = cache.FreeBlocks;
        Refused("has positions of its own", () => CacheCompressor.Recompress(sequences, 0, held, RotaryEmbedding.FromTheta(10000, Dim, positions: [1, 2])));
        Refused("a prefill is of tokens", () => CacheCompressor.StorePrefill(sequences, 0, held, layer.Inputs));
        Assert.Equal(free, cache.FreeBlocks);

        byte[] infinite = Arrays.Encode([.. Enumerable.Repeat(float.PositiveInfinity, Heads * Dim)], ElementType.Float32);
        var view = TensorView.Packed(Arrays.Address(infinite), ElementType.Float32, 1, Heads, Dim);
        int slot = sequences[1].Lengths(0)[0];
        sequences[1].Store(0, view, view, 0, 1, 60);
        free = cache.FreeBlocks;
        Refused("the plan is of", () => CacheCompressor.Recompress(sequences, 0, held, s_rotary));
        var now = new LayerPlan(CacheCompressor.HeldShape(sequences, 0), CompressionPresets.Paper with { ProtectLast = 0 }, Budget.Retention(0.3));
        Refused($"at token {slot} of sequence 1, head 0", () => CacheCompressor.Recompress(sequences, 0, now, s_rotary));
        Assert.Equal(free, cache.FreeBlocks);

        using var opaque = NewCache(backend, ElementType.Opaque8);
        using var unread = opaque.CreateSequence();
        Refused("opaque bytes cannot be scored", () => CacheCompressor.HeldShape([unread], 0));
        GC.KeepAlive((layer, infinite));

        static void Refused(string part, Action action) => Assert.Contains(part, Assert.Throws<CompactorException>(action).Message);
    }

    private static PagedCache NewCache(KvBackend backend, ElementType type, int heads = Heads) =>
        new(backend, new PagedCacheOptions { Layers = 1, KvHeads = heads, HeadDim = Dim, ElementType = type, Blocks = 900, BlockSize = 16 });

    /// <summary>Stores different tokens of every head.</summary>
    private static void StoreRagged(TestLayer layer, CacheSequence[] sequences)
    {
        for (int b = 0; b < sequences.Length; b++)
        {
            var random = new Random(b);
            int[][] kept = [.. Enumerable.Range(0, Heads).Select(h => Enumerable.Range(0, layer.Shape.LengthOf(b)).Where(_ => random.NextDouble() < 0.9 / (1 + h)).ToArray())];
            sequences[b].StoreSurvivors(0, layer.Inputs.Key, layer.Inputs.Value, layer.Shape.CuSeqlens[b], [.. kept.SelectMany(k => k)], TestLayer.Offsets([.. kept.Select(k => k.Length)]), 17);
        }
    }

    private static void Complete(PendingCompaction pending)
    {
        using (pending)
            pending.Complete();
    }
}
