using Compactor.Native.Compression;
using Compactor.Native.Cpu;
using Compactor.Native.Tests.Support;
using FsCheck;
using FsCheck.Fluent;
using Xunit;

namespace Compactor.Native.Tests.Compression;

/// <summary>Facts about whole runs: agreement with the reference, and what must not change the result.</summary>
public class PipelineTests
{
    public static TheoryData<string> All => Backends.All;

    private static readonly (string Name, CompressionOptions Options)[] Variants =
    [
        ("paper", CompressionPresets.Paper),
        ("kvpress", CompressionPresets.KvPress),
        ("compactor-vllm", CompressionPresets.CompactorVllm),
        ("token scope", CompressionPresets.Paper with { SelectionScope = SelectionScope.Token }),
        ("chunk normalised attention", CompressionPresets.CompactorVllm with { AttentionScope = NormalizationScope.Chunk, PoolWidth = 5, WeightByValueNorm = true }),
        ("minimum a head", CompressionPresets.Paper with { MinTokensPerHead = 40, SketchDimension = 128, AttentionChunk = 512 }),
        ("unscored, on top", CompressionPresets.KvPress with { ProtectedBudget = ProtectedBudget.OnTop, SketchSharing = SketchSharing.Shared, LeverageChunk = 100, CenterKeys = false }),
    ];

    public static IEnumerable<TheoryDataRow<string, string>> VariantsAndTypes =>
        from v in Variants from type in Arrays.FloatTypes select new TheoryDataRow<string, string>(v.Name, type.ToString());

    [Theory]
    [MemberData(nameof(VariantsAndTypes))]
    public void Cpu_agrees_with_the_reference(string variant, string type)
    {
        var options = Variants.Single(v => v.Name == variant).Options;
        // Uncentred keys are compared without a bias: squaring it is what costs digits.
        var layer = TestLayer.Random(21, [333, 1, 90, 600], 6, 2, 80, Enum.Parse<ElementType>(type), bias: options.CenterKeys ? 1 : 0);
        var expected = Run.Of("reference", layer, options, 0.4);
        foreach (string backend in Backends.Names.Where(n => n != "reference"))
        {
            var actual = Run.Of(backend, layer, options, 0.4);
            Assert.InRange(Arrays.RelativeError(actual.Leverage, expected.Leverage), 0, 1e-5);
            Assert.InRange(Arrays.RelativeError(actual.Attention, expected.Attention), 0, 1e-5);
            for (int i = 0; i < expected.Scores!.Length; i++)
                if (float.IsPositiveInfinity(expected.Scores[i]))
                    Assert.Equal(float.PositiveInfinity, actual.Scores![i]);
                else
                    Assert.Equal(expected.Scores[i], actual.Scores![i], 2e-3);
            Assert.Equal(expected.Offsets[^1], actual.Offsets[^1]);
            int differing = expected.Kept(3, 2).Except(actual.Kept(3, 2)).Count();
            Assert.InRange(differing, 0, 2);
        }
    }

    [Theory]
    [MemberData(nameof(VariantsAndTypes))]
    public void Threads_change_no_bit(string variant, string type)
    {
        var options = Variants.Single(v => v.Name == variant).Options;
        var layer = TestLayer.Random(22, [1500, 700], 4, 2, 64, Enum.Parse<ElementType>(type));
        foreach (string backend in Backends.Names.Where(n => n != "reference"))
        {
            var one = Run.Of(backend, layer, options, threads: 1);
            foreach (int threads in new[] { 2, 5 })
                AssertSame(one, Run.Of(backend, layer, options, threads: threads));
        }
    }

    [Theory]
    [MemberData(nameof(All))]
    public void Concatenated_sequences_score_as_they_do_alone(string backend)
    {
        int[] lengths = [700, 5, 1300, 64];
        var all = TestLayer.Random(23, lengths, 4, 2, 64);
        foreach (var options in new[] { CompressionPresets.Paper, CompressionPresets.CompactorVllm })
        {
            var together = Run.Of(backend, all, options);
            for (int b = 0; b < lengths.Length; b++)
            {
                int start = all.Shape.CuSeqlens[b], n = lengths[b];
                var alone = Run.Of(backend, TestLayer.From(new LayerShape([0, n], 4, 2, 64, ElementType.Float32),
                    Part(all.KeyPreRopeValues, 2), Part(all.QueryValues, 4), Part(all.KeyValues, 2), Part(all.ValueValues, 2)), options);
                // All of a sequence can be kept by its length alone; its scores are still the same bits when others are compressed.
                Assert.Equal(together.Kept(b, 2).Order(), alone.Kept(0, 2).Order());
                if (alone.Scores is not null)
                {
                    Assert.Equal(together.Leverage![(start * 2)..((start + n) * 2)], alone.Leverage);
                    Assert.Equal(together.Attention![(start * 2)..((start + n) * 2)], alone.Attention);
                    Assert.Equal(together.Scores![(start * 2)..((start + n) * 2)], alone.Scores);
                }

                float[] Part(float[] values, int heads) => values[(start * heads * 64)..((start + n) * heads * 64)];
            }
        }
    }

    [Theory]
    [MemberData(nameof(All))]
    public void Permuting_heads_permutes_results(string backend)
    {
        const int n = 400, heads = 4, dim = 64;
        int[] order = [2, 0, 3, 1];
        var layer = TestLayer.Random(24, [n], heads, heads, dim);
        var permuted = TestLayer.From(layer.Shape, Permute(layer.KeyPreRopeValues), Permute(layer.QueryValues), Permute(layer.KeyValues), Permute(layer.ValueValues));
        foreach (var options in new[] { CompressionPresets.Paper, CompressionPresets.CompactorVllm, CompressionPresets.KvPress with { SketchSharing = SketchSharing.Shared } })
        {
            Run a = Run.Of(backend, layer, options), b = Run.Of(backend, permuted, options);
            for (int t = 0; t < n; t++)
                for (int h = 0; h < heads; h++)
                {
                    Assert.Equal(a.Leverage![t * heads + order[h]], b.Leverage![t * heads + h]);
                    Assert.Equal(a.Attention![t * heads + order[h]], b.Attention![t * heads + h]);
                    Assert.Equal(a.Scores![t * heads + order[h]], b.Scores![t * heads + h], 1e-4);
                }
            var kept = b.Kept(0, heads).Select(p => (p.Token, order[p.Head])).ToHashSet();
            Assert.InRange(kept.Except(a.Kept(0, heads)).Count(), 0, options.AttentionScope == NormalizationScope.Head ? 0 : 1);
        }

        float[] Permute(float[] values) =>
            [.. Enumerable.Range(0, values.Length).Select(i => values[i / (heads * dim) * heads * dim + order[i / dim % heads] * dim + i % dim])];
    }

    [Theory]
    [MemberData(nameof(All))]
    public void Smaller_budgets_keep_subsets(string backendName)
    {
        var layer = TestLayer.Random(25, [300, 41], 4, 2, 64);
        foreach (var options in new[]
                 {
                     CompressionPresets.Paper, CompressionPresets.CompactorVllm, CompressionPresets.KvPress with { LeverageWeight = 0.5 },
                     CompressionPresets.Paper with { SelectionScope = SelectionScope.Token }, CompressionPresets.Paper with { MinTokensPerHead = 9 },
                 })
        {
            Run? larger = null;
            foreach (double retention in new[] { 1, 0.9, 0.7, 0.5, 0.3, 0.25, 0.1, 0.02, 0 })
            {
                var run = Run.Of(backendName, layer, options, retention);
                for (int b = 0; b < 2 && larger is not null; b++)
                    Assert.Subset(larger.Kept(b, 2), run.Kept(b, 2));
                larger = run;
            }
        }
    }

    [Theory]
    [MemberData(nameof(All))]
    public void Retention_1_keeps_everything_and_scores_nothing(string backendName)
    {
        var layer = TestLayer.Random(26, [100, 0, 30], 4, 2, 64);
        foreach (var options in CompressionPresets.ByName.Values)
        {
            var run = Run.Of(backendName, layer, options, retention: 1);
            Assert.Null(run.Scores);
            for (int b = 0; b < 3; b++)
                Assert.Equal(layer.Shape.LengthOf(b) * 2, run.Kept(b, 2).Count);
        }
    }

    [Theory]
    [MemberData(nameof(All))]
    public void Survivors_are_the_rows_their_indices_name(string backendName)
    {
        foreach (var type in Arrays.FloatTypes)
        {
            var layer = TestLayer.Random(27, [120, 77], 4, 2, 48, type);
            using var backend = Backends.Create(backendName);
            var plan = new LayerPlan(layer.Shape, CompressionPresets.Paper, Budget.Retention(0.3));
            using var selection = LayerCompressor.Select(backend, plan, layer.Inputs);
            using var values = selection.Compact(layer.Inputs.Value);
            byte[] source = Arrays.Encode(layer.ValueValues, type);
            int rowBytes = 48 * type.Size();
            int[] indices = Arrays.Copy(selection.KeptIndices), offsets = Arrays.Copy(selection.KeptOffsets);
            for (int segment = 0; segment < 4; segment++)
                for (int i = offsets[segment]; i < offsets[segment + 1]; i++)
                {
                    Assert.True(i == offsets[segment] || indices[i] > indices[i - 1], "indices ascend");
                    int row = (layer.Shape.CuSeqlens[segment / 2] + indices[i]) * 2 + segment % 2;
                    Assert.Equal(source.AsSpan(row * rowBytes, rowBytes), values.View.AsSpan().Slice(i * rowBytes, rowBytes));
                }
            GC.KeepAlive(layer);
        }
    }

    [Theory]
    [MemberData(nameof(All))]
    public void Any_head_dimension_length_and_group_runs(string backendName) => RunAnything(backendName, backendName == "reference" ? 15 : 60, 5);

    [Theory(Explicit = true)]
    [MemberData(nameof(All))]
    public void Any_head_dimension_length_and_group_runs_at_length(string backendName) => RunAnything(backendName, backendName == "reference" ? 60 : 600, 9);

    [Theory(Explicit = true)]
    [InlineData(40_000, ElementType.BFloat16)]
    [InlineData(65_536, ElementType.Float32)]
    public void Long_sequences_agree_over_widths_and_threads(int tokens, ElementType type)
    {
        var layer = TestLayer.Random(41, [tokens], 4, 2, 64, type);
        foreach (var (_, options) in Variants)
        {
            Run? first = null;
            foreach (string backend in Backends.Names.Where(n => n != "reference"))
            {
                var run = Run.Of(backend, layer, options, 0.2, threads: 1);
                AssertSame(run, Run.Of(backend, layer, options, 0.2, threads: 3));
                first ??= run;
                Assert.InRange(Arrays.RelativeError(run.Leverage, first.Leverage), 0, 1e-5);
                Assert.InRange(Arrays.RelativeError(run.Attention, first.Attention), 0, 1e-5);
            }
        }
    }

    private static void RunAnything(string backendName, int cases, ulong replay)
    {
        var property = Prop.ForAll(
            (from seed in Gen.Choose(0, 1 << 20)
             from dim in Gen.Choose(1, 16)
             from lengths in Gen.Choose(0, 150).ListOf()
             from share in Gen.Choose(1, 16)
             from heads in Gen.Choose(1, 3)
             from preset in Gen.Elements(Variants)
             from retention in Gen.Choose(0, 100)
             select (seed, dim: dim * 16, lengths: lengths.Take(4).ToArray(), share, heads, preset, retention: retention / 100.0)).ToArbitrary(),
            c =>
            {
                var layer = TestLayer.Random(c.seed, c.lengths, c.share * c.heads, c.heads, c.dim);
                var options = c.preset.Options;
                var run = Run.Of(backendName, layer, options, c.retention);
                for (int b = 0; b < c.lengths.Length; b++)
                {
                    var kept = run.Kept(b, c.heads);
                    Assert.All(kept, p => Assert.InRange(p.Token, 0, c.lengths[b] - 1));
                    for (int t = 0; t < c.lengths[b]; t++)
                        if (t < options.ProtectFirst || t >= c.lengths[b] - options.ProtectLast)
                            for (int h = 0; h < c.heads; h++)
                                Assert.Contains((t, h), kept);
                    if (options.SelectionScope != SelectionScope.Sequence)
                        Assert.Single(Enumerable.Range(0, c.heads).Select(h => kept.Count(p => p.Head == h)).Distinct());
                    for (int h = 0; h < c.heads; h++)
                        Assert.True(kept.Count(p => p.Head == h) >= Math.Min(options.MinTokensPerHead, c.lengths[b]));
                }
            });
        Check.One(Config.QuickThrowOnFailure.WithMaxTest(cases).WithReplay(20250708, replay), property);
    }

    [Fact]
    public void Strided_and_padded_layouts_give_the_same_bits()
    {
        const int n = 150, heads = 2, dim = 64, batch = 2;
        var layer = TestLayer.Random(28, [n, n], heads, heads, dim);
        var packed = Run.Of("cpu128", layer, CompressionPresets.Paper);
        byte[] keyPreRope = Bhsd(layer.KeyPreRopeValues), query = Bhsd(layer.QueryValues), key = Bhsd(layer.KeyValues), value = Bhsd(layer.ValueValues);
        using var backend = Backends.Cpu(2, SimdWidth.Bits128);
        var bhsd = Run.Of(backend, new LayerPlan(layer.Shape, CompressionPresets.Paper, Budget.Retention(0.5)),
            new LayerInputs { KeyPreRope = View(keyPreRope), Query = View(query), Key = View(key), Value = View(value) });
        GC.KeepAlive((keyPreRope, query, key, value));
        AssertSame(packed, bhsd);

        static TensorView View(byte[] bytes) => TensorView.BatchHeadSequence(Arrays.Address(bytes), ElementType.Float32, batch, heads, n, dim);

        static byte[] Bhsd(float[] values) => Arrays.Encode([.. from b in Enumerable.Range(0, batch)
                                                                from h in Enumerable.Range(0, heads)
                                                                from t in Enumerable.Range(0, n)
                                                                from d in Enumerable.Range(0, dim)
                                                                select values[((b * n + t) * heads + h) * dim + d]], ElementType.Float32);
    }

    [Fact]
    public void A_layer_of_8192_tokens_takes_at_most_64_MB_of_workspace()
    {
        var layer = TestLayer.Random(29, [8192], 32, 8, 128);
        using var backend = new CpuBackend(2);
        long managed = GC.GetAllocatedBytesForCurrentThread();
        using var selection = LayerCompressor.Select(backend, new LayerPlan(layer.Shape, CompressionPresets.Paper, Budget.Retention(0.5)), layer.Inputs);
        Assert.InRange(backend.PeakWorkspaceBytes + GC.GetAllocatedBytesForCurrentThread() - managed, 1, 64_000_000);
        GC.KeepAlive(layer);
    }

    private static void AssertSame(Run expected, Run actual)
    {
        Assert.Equal(expected.Leverage, actual.Leverage);
        Assert.Equal(expected.Attention, actual.Attention);
        Assert.Equal(expected.Scores, actual.Scores);
        Assert.Equal(expected.Indices, actual.Indices);
        Assert.Equal(expected.Offsets, actual.Offsets);
    }
}
