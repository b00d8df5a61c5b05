using Compactor.Native.Compression;
using Compactor.Native.Reference;
using Compactor.Native.Tests.Support;
using FsCheck;
using FsCheck.Fluent;
using MathNet.Numerics.LinearAlgebra;
using Xunit;

namespace Compactor.Native.Tests.Compression;

/// <summary>The facts that hold for leverage scores whatever the keys are.</summary>
public class LeverageTests
{
    public static TheoryData<string> All => Backends.All;

    private static readonly CompressionOptions Whole = CompressionPresets.Paper;

    [Theory]
    [MemberData(nameof(All))]
    public void Scores_lie_in_0_1_and_sum_to_the_trace(string backend)
    {
        var property = Prop.ForAll(
            (from seed in Gen.Choose(0, 1 << 20)
             from n in Gen.Choose(1, 300)
             from dim in Gen.Elements(16, 48, 64, 80, 96, 128)
             from k in Gen.Elements(16, 48, 64)
             from chunk in Gen.Elements(0, 64, 128)
             select (seed, n, dim, k, chunk)).ToArbitrary(),
            c =>
            {
                var layer = TestLayer.Random(c.seed, [c.n], 2, 2, c.dim);
                float[] o = Leverage(backend, layer, Whole with { SketchDimension = c.k, LeverageChunk = c.chunk, ProtectFirst = 0, ProtectLast = 0 });
                Assert.All(o, x => Assert.InRange(x, 0, 1 + 1e-6));
                int chunk = c.chunk == 0 ? c.n : c.chunk;
                for (int h = 0; h < 2; h++)
                    for (int t = 0; t < c.n; t += chunk)
                    {
                        int rows = Math.Min(chunk, c.n - t);
                        double sum = Enumerable.Range(t, rows).Sum(i => (double)o[i * 2 + h]);
                        Assert.InRange(sum, 0, Math.Min(Math.Min(c.k, c.dim), Math.Max(0, rows - 1)) + 1e-4);
                    }
            });
        Check.One(Config.QuickThrowOnFailure.WithMaxTest(backend == "reference" ? 15 : 60).WithReplay(20250708, 1), property);
    }

    /// <summary>More rows of one head, and more heads, than their sketches have memory for.</summary>
    [Theory]
    [InlineData(70_000, 2, 128)]
    [InlineData(17_000, 32, 16)]
    [InlineData(4_096, 48, 48)]
    public void Sketches_that_are_not_kept_together_give_the_scores_of_the_reference(int tokens, int heads, int k)
    {
        var layer = TestLayer.Random(5, [tokens], heads, heads, 64);
        var options = Whole with { SketchDimension = k, SketchSharing = SketchSharing.PerSequenceHead };
        float[] expected = Leverage("reference", layer, options);
        foreach (string backend in Backends.Names.Where(name => name != "reference"))
            Assert.InRange(Arrays.RelativeError(Leverage(backend, layer, options), expected), 0, 1e-5);
    }

    /// <summary>Random shapes under every preset: sequences of any length, also shorter than the sketch is wide, and every element type.</summary>
    [Theory]
    [MemberData(nameof(All))]
    public void Scores_agree_with_singular_vectors(string backendName)
    {
        var property = Prop.ForAll(
            (from seed in Gen.Choose(0, 1 << 20)
             from lengths in Gen.Choose(1, 700).NonEmptyListOf()
             from heads in Gen.Choose(1, 3)
             from dim in Gen.Elements(16, 64, 80, 96, 128, 256)
             from k in Gen.Elements(16, 48, 64, 128)
             from preset in Gen.Elements(CompressionPresets.ByName.Keys.ToArray())
             from type in Gen.Elements(ElementType.Float32, ElementType.BFloat16, ElementType.Float16)
             select (seed, lengths: lengths.Take(3).ToArray(), heads, dim, k, preset, type)).ToArbitrary(),
            c =>
            {
                var layer = TestLayer.Random(c.seed, c.lengths, 2 * c.heads, c.heads, c.dim, c.type);
                var options = CompressionPresets.ByName[c.preset] with { SketchDimension = c.k, Seed = (ulong)c.seed };
                var plan = new LayerPlan(layer.Shape, options, Budget.Retention(0.5));
                var sketch = Sketch.Draw(layer.Shape, options);
                float[] stored = Arrays.Decode(Arrays.Encode(layer.KeyPreRopeValues, c.type), c.type);
                double error = Arrays.RelativeError(Leverage(backendName, layer, options), SingularValueLeverage.Of(plan, stored, sketch));
                Assert.True(error <= 1e-5, $"{c}, lengths {string.Join(' ', c.lengths)}: {error}");
            });
        Check.One(Config.QuickThrowOnFailure.WithMaxTest(backendName == "reference" ? 10 : 25).WithReplay(20251125, 1), property);
    }

    /// <summary>As many columns as dimensions, where X is worst conditioned, from one token to 79 pieces.</summary>
    [Theory]
    [InlineData(16, 16)]
    [InlineData(32, 16)]
    [InlineData(32, 32)]
    [InlineData(48, 48)]
    public void Few_dimensions_cost_no_digits_at_any_length(int dim, int k)
    {
        int[] lengths = [1, 2, 15, 16, 17, 18, 33, 100, 127, 513, 1_000, 4_097, 12_000, 33_000, 40_000];
        for (int i = 0; i < lengths.Length; i++)
            foreach (int chunk in (int[])[0, 512])
            {
                var layer = TestLayer.Random(20 + i, [lengths[i]], 1, 1, dim);
                var options = Whole with { SketchDimension = k, LeverageChunk = chunk, Seed = (ulong)i };
                float[] expected = Leverage("reference", layer, options);
                foreach (string backend in Backends.Names.Where(name => name != "reference"))
                {
                    double error = Arrays.RelativeError(Leverage(backend, layer, options), expected);
                    Assert.True(error <= 1e-5, $"{backend}, {lengths[i]} tokens, chunk {chunk}: {error}");
                }
            }
    }

    [Fact]
    public void Scores_do_not_change_under_an_invertible_right_multiplication()
    {
        var random = new Random(3);
        const int n = 120, dim = 32, k = 16;
        var keys = Matrix<double>.Build.Dense(n, dim, (_, _) => random.NextDouble() - 0.5);
        var phi = Matrix<double>.Build.Dense(dim, k, (_, _) => (float)(random.NextDouble() - 0.5));
        var mix = Matrix<double>.Build.Dense(k, k, (i, j) => (i == j ? 2 : 0) + random.NextDouble());
        double[] plain = Scores(phi), mixed = Scores(phi * mix);
        for (int i = 0; i < n; i++)
            Assert.Equal(plain[i], mixed[i], 1e-5);

        double[] Scores(Matrix<double> sketch) => ReferenceLeverage.Scores(keys.ToArray(),
            [.. sketch.ToRowMajorArray().Select(x => (float)x)], k, epsilon: 1e-12, center: true, epsilonFloor: 0);
    }

    [Fact]
    public void Repeating_a_row_takes_its_score_from_o_to_o_over_1_plus_o()
    {
        var random = new Random(4);
        const int n = 90, dim = 32, k = 16;
        var keys = new double[n + 1, dim];
        for (int i = 0; i < n; i++)
            for (int d = 0; d < dim; d++)
                keys[i, d] = random.NextDouble() - 0.5;
        for (int d = 0; d < dim; d++)
            keys[n, d] = keys[7, d];
        float[] phi = [.. Enumerable.Range(0, dim * k).Select(_ => (float)(random.NextDouble() - 0.5))];
        var once = new double[n, dim];
        Array.Copy(keys, once, once.Length);
        double o = ReferenceLeverage.Scores(once, phi, k, 1e-12, center: false, epsilonFloor: 0)[7];
        double[] twice = ReferenceLeverage.Scores(keys, phi, k, 1e-12, center: false, epsilonFloor: 0);
        Assert.Equal(o / (1 + o), twice[7], 1e-9);
        Assert.Equal(twice[7], twice[n], 1e-12);
    }

    /// <summary>
    /// The CPU backend centres pieces of a sequence or chunk around their own means; these lie several standard deviations apart. Last chunks have fewer pieces than the others.
    /// </summary>
    [Theory]
    [InlineData(0, true)]
    [InlineData(700, true)]
    [InlineData(4096, true)]
    [InlineData(0, false)]
    [InlineData(1300, false)]
    public void Means_that_drift_along_the_sequence_cost_no_digits(int chunk, bool center)
    {
        const int Heads = 2, Dim = 64;
        int[] lengths = [2_150, 90, 1_300];
        int tokens = lengths.Sum();
        var layer = TestLayer.Random(7, lengths, Heads, Heads, Dim);
        float[] drifting = [.. layer.KeyPreRopeValues.Select((x, i) => x + (center ? i / (Heads * Dim) * 4f / tokens * (1 + i % 3) : 0))];
        layer = TestLayer.From(layer.Shape, drifting, layer.QueryValues, layer.KeyValues, layer.ValueValues);
        var options = Whole with { LeverageChunk = chunk, CenterKeys = center, SketchDimension = 16, SketchSharing = SketchSharing.PerSequenceHead };
        float[] expected = Leverage("reference", layer, options);
        foreach (string backend in Backends.Names.Where(name => name != "reference"))
            Assert.InRange(Arrays.RelativeError(Leverage(backend, layer, options), expected), 0, 1e-5);
    }

    [Theory]
    [MemberData(nameof(All))]
    public void A_large_common_bias_costs_no_digits(string backend)
    {
        // Half-integers and a bias that is a power of two stay exact in float32, so both caches hold the same centred keys.
        var random = new Random(5);
        float[] keys = [.. Enumerable.Range(0, 700 * 2 * 64).Select(_ => random.Next(-8, 9) / 2f)];
        float[] biased = [.. keys.Select(x => x + 512)];
        var shape = new LayerShape([0, 700], 2, 2, 64, ElementType.Float32);
        float[] expected = Leverage("reference", TestLayer.From(shape, keys, keys, keys, keys), Whole);
        float[] actual = Leverage(backend, TestLayer.From(shape, biased, keys, keys, keys), Whole);
        Assert.InRange(Arrays.RelativeError(actual, expected), 0, 2e-5);
    }

    [Theory]
    [MemberData(nameof(All))]
    public void Identical_keys_score_zero(string backend)
    {
        var shape = new LayerShape([0, 200], 1, 1, 64, ElementType.Float32);
        float[] same = [.. Enumerable.Range(0, 200 * 64).Select(i => i % 64 / 7f)];
        float[] o = Leverage(backend, TestLayer.From(shape, same, same, same, same), Whole with { Epsilon = 0 });
        Assert.All(o, x => Assert.InRange(x, 0, 1e-3));
    }

    [Theory]
    [MemberData(nameof(All))]
    public void Eps_escalates_where_the_gram_matrix_is_singular(string backend)
    {
        // Rank one keys: without a ridge there is no factor.
        var shape = new LayerShape([0, 300], 1, 1, 64, ElementType.Float32);
        float[] rankOne = [.. Enumerable.Range(0, 300 * 64).Select(i => MathF.Sin(i / 64) * (1 + i % 64))];
        float[] o = Leverage(backend, TestLayer.From(shape, rankOne, rankOne, rankOne, rankOne), Whole with { Epsilon = 0 });
        Assert.All(o, x => Assert.True(float.IsFinite(x)));
        Assert.InRange(o.Sum(), 0.9, 1.01);
    }

    /// <summary>A Gram matrix with the eigenvalue -lowest has a factor once eps exceeds that.</summary>
    [Theory]
    [InlineData(0.0, 0.01, 0.01)]
    [InlineData(0.05, 0.01, 0.1)]
    [InlineData(0.5, 0.01, 1.0)]
    [InlineData(500.0, 0.01, 1000.0)]
    [InlineData(5000.0, 0.01, null)]
    public void Eps_grows_by_10_at_most_5_times(double lowest, double epsilon, double? effective)
    {
        double? eps = GramFactor.InvertFactor([-lowest, 0, 0, -lowest], 2, epsilon, new double[4]);
        Assert.Equal(effective is null, eps is null);
        Assert.Equal(effective ?? 0, eps ?? 0, 1e-9);
    }

    [Theory]
    [InlineData(RotaryStyle.HalfRotation, 64)]
    [InlineData(RotaryStyle.Interleaved, 64)]
    [InlineData(RotaryStyle.HalfRotation, 32)]
    [InlineData(RotaryStyle.Interleaved, 16)]
    public void Undoing_rope_on_load_gives_the_scores_of_keys_before_rope(RotaryStyle style, int rotaryDim)
    {
        const int dim = 64, heads = 2;
        var layer = TestLayer.Random(11, [130, 700], 2, heads, dim);
        int pairs = rotaryDim / 2, tokens = layer.Shape.Tokens;
        float[] rotated = [.. layer.KeyPreRopeValues], cos = new float[tokens * pairs], sin = new float[tokens * pairs];
        for (int row = 0; row < tokens; row++)
            for (int p = 0; p < pairs; p++)
            {
                int position = row < 130 ? row : row - 130;
                double angle = position * Math.Pow(10000, -2.0 * p / rotaryDim);
                (cos[row * pairs + p], sin[row * pairs + p]) = ((float)Math.Cos(angle), (float)Math.Sin(angle));
                for (int h = 0; h < heads; h++)
                {
                    int origin = (row * heads + h) * dim;
                    var (i, j) = style == RotaryStyle.HalfRotation ? (origin + p, origin + p + pairs) : (origin + 2 * p, origin + 2 * p + 1);
                    (rotated[i], rotated[j]) = ((float)(Math.Cos(angle) * rotated[i] - Math.Sin(angle) * rotated[j]), (float)(Math.Sin(angle) * rotated[i] + Math.Cos(angle) * rotated[j]));
                }
            }
        float[] expected = Leverage("reference", layer, Whole);
        int[] positions = [.. Enumerable.Range(0, tokens).Select(row => row < 130 ? row : row - 130)];
        foreach (string backend in Backends.Names)
            foreach (var rotary in new[] { RotaryEmbedding.FromTheta(10000, rotaryDim, style), RotaryEmbedding.FromTheta(10000, rotaryDim, style, positions), RotaryEmbedding.FromTables(cos, sin, rotaryDim, style) })
            {
                var withRope = TestLayer.From(layer.Shape, rotated, layer.QueryValues, rotated, layer.ValueValues);
                using var b = Backends.Create(backend);
                var run = Run.Of(b, new LayerPlan(layer.Shape, Whole, Budget.Retention(0.5)), withRope.Inputs with { KeyPreRope = null, Rotary = rotary }, SelectionPolicy.LeverageOnly);
                GC.KeepAlive(withRope);
                Assert.InRange(Arrays.RelativeError(run.Leverage, expected), 0, 2e-5);
            }
    }

    private static float[] Leverage(string backendName, TestLayer layer, CompressionOptions options)
    {
        using var backend = Backends.Create(backendName);
        var plan = new LayerPlan(layer.Shape, options, Budget.Retention(0.5));
        using var leverage = backend.Allocate<float>(layer.Shape.Tokens * layer.Shape.KvHeads);
        backend.Leverage(plan, layer.Inputs.KeyPreRope!.Value, null, Sketch.Draw(layer.Shape, options), leverage.View);
        GC.KeepAlive(layer);
        return Arrays.Copy(leverage);
    }
}
