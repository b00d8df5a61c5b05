using Compactor.Native.Compression;
using Compactor.Native.Cpu;
using Compactor.Native.Tests.Support;
using Xunit;

namespace Compactor.Native.Tests.Compression;

/// <summary>Each baseline against its publication's definition, written in float64 over whole attention matrices.</summary>
public sealed class PublishedPolicyTests : IDisposable
{
    private static readonly int[] s_lengths = [70, 1, 33, 150];

    private readonly CpuBackend _backend = new(1);

    public void Dispose() => _backend.Dispose();

    private static CompressionOptions Unprotected(SelectionScope scope = SelectionScope.Head) => CompressionPresets.Paper with
    {
        ProtectFirst = 0,
        ProtectLast = 0,
        SelectionScope = scope,
    };

    private static LayerPlan Plan(TestLayer layer, double retention = 0.4, SelectionScope scope = SelectionScope.Head) =>
        new(layer.Shape, Unprotected(scope), Budget.Retention(retention));

    public static TheoryData<string> Published => ["snapkv", "tova", "h2o", "keydiff", "keynorm", "streaming", "recent"];

    [Theory]
    [MemberData(nameof(Published))]
    public void Scores_follow_the_published_definition(string name)
    {
        foreach (var (queryHeads, kvHeads) in ((int, int)[])[(2, 2), (6, 2), (4, 1)])
        {
            var layer = TestLayer.Random(7, s_lengths, queryHeads, kvHeads, 32);
            var plan = Plan(layer);
            float[] scores = Run.Of(_backend, plan, layer.Inputs, SelectionPolicy.Named(name, 0)).Scores!;
            for (int b = 0; b < s_lengths.Length; b++)
                for (int h = 0; h < kvHeads; h++)
                {
                    double[] expected = Definition(name, layer, plan, b, h);
                    for (int t = 0; t < expected.Length; t++)
                    {
                        double actual = scores[(layer.Shape.CuSeqlens[b] + t) * kvHeads + h];
                        if (double.IsPositiveInfinity(expected[t]))
                            Assert.True(actual >= 1e30f, $"{name}: token {t} of sequence {b} is always kept, but scores {actual}");
                        else
                            Assert.Equal(expected[t], actual, 2e-6 * Math.Max(1, Math.Abs(expected[t])));
                    }
                }
        }
    }

    [Theory]
    [MemberData(nameof(Published))]
    public void Layout_and_batch_change_no_bit(string name)
    {
        var policy = SelectionPolicy.Named(name, 0);
        var packed = TestLayer.Random(3, [60, 60, 60], 4, 2, 48);
        var run = Run.Of(_backend, Plan(packed), packed.Inputs, policy);

        byte[] Padded(float[] values, int heads)
        {
            var moved = new float[values.Length];
            for (int b = 0; b < 3; b++)
                for (int t = 0; t < 60; t++)
                    for (int h = 0; h < heads; h++)
                        values.AsSpan(((b * 60 + t) * heads + h) * 48, 48).CopyTo(moved.AsSpan(((b * heads + h) * 60 + t) * 48));
            return Arrays.Encode(moved, ElementType.Float32);
        }

        byte[] keys = Padded(packed.KeyValues, 2), values = Padded(packed.ValueValues, 2), queries = Padded(packed.QueryValues, 4);
        var padded = new LayerInputs
        {
            Key = TensorView.BatchHeadSequence(Arrays.Address(keys), ElementType.Float32, 3, 2, 60, 48),
            Value = TensorView.BatchHeadSequence(Arrays.Address(values), ElementType.Float32, 3, 2, 60, 48),
            Query = TensorView.BatchHeadSequence(Arrays.Address(queries), ElementType.Float32, 3, 4, 60, 48),
        };
        var strided = Run.Of(_backend, Plan(packed), padded, policy);
        Assert.Equal(run.Scores, strided.Scores);
        Assert.Equal(run.Indices, strided.Indices);

        var alone = TestLayer.From(new LayerShape([0, 60], 4, 2, 48, ElementType.Float32), packed.KeyPreRopeValues[..(60 * 96)], packed.QueryValues[(60 * 192)..(120 * 192)],
            packed.KeyValues[(60 * 96)..(120 * 96)], packed.ValueValues[(60 * 96)..(120 * 96)]);
        Assert.Equal(run.Scores![(60 * 2)..(120 * 2)], Run.Of(_backend, Plan(alone), alone.Inputs, policy).Scores);
        GC.KeepAlive(packed);
        GC.KeepAlive(alone);
    }

    [Theory]
    [MemberData(nameof(Published))]
    public void Half_precision_scores_are_those_of_the_rounded_values(string name)
    {
        var policy = SelectionPolicy.Named(name, 0);
        foreach (var type in (ElementType[])[ElementType.Float16, ElementType.BFloat16])
        {
            var layer = TestLayer.Random(3, [65], 4, 2, 32, type);
            float[] Rounded(float[] values) => [.. values.Select(x => type == ElementType.Float16 ? (float)(Half)x : Nearest(x))];
            var rounded = TestLayer.From(new LayerShape([0, 65], 4, 2, 32, ElementType.Float32), Rounded(layer.KeyPreRopeValues), Rounded(layer.QueryValues), Rounded(layer.KeyValues), Rounded(layer.ValueValues));
            Assert.Equal(Run.Of(_backend, Plan(rounded), rounded.Inputs, policy).Scores, Run.Of(_backend, Plan(layer), layer.Inputs, policy).Scores);
            GC.KeepAlive(layer);
            GC.KeepAlive(rounded);
        }

        static float Nearest(float x)
        {
            uint bits = BitConverter.SingleToUInt32Bits(x);
            return BitConverter.UInt32BitsToSingle(bits + 0x7FFF + (bits >> 16 & 1) & 0xFFFF0000);
        }
    }

    [Fact]
    public void Protected_tokens_are_kept_by_every_policy_that_all_lists_and_counts_are_equal()
    {
        var layer = TestLayer.Random(11, [90, 40], 4, 2, 32);
        var options = CompressionPresets.Paper with { ProtectFirst = 3, ProtectLast = 5 };
        foreach (var policy in SelectionPolicy.All(1))
            foreach (var scope in Enum.GetValues<SelectionScope>())
            {
                var plan = new LayerPlan(layer.Shape, options with { SelectionScope = scope }, Budget.Retention(0.2));
                var run = Run.Of(_backend, plan, layer.Inputs, policy);
                Assert.Equal(plan.KeptPairs, run.Indices.Length);
                for (int b = 0; b < 2; b++)
                    for (int h = 0; h < 2; h++)
                        for (int t = 0; t < layer.Shape.LengthOf(b); t++)
                            if (plan.IsProtected(b, t))
                                Assert.Contains((t, h), run.Kept(b, 2));
                Assert.Equal(run.Indices, Run.Of(_backend, plan, layer.Inputs, SelectionPolicy.Named(policy.Name, 1)).Indices);
            }
        GC.KeepAlive(layer);
    }

    [Fact]
    public void Streaming_keeps_sinks_and_the_most_recent_tokens()
    {
        var layer = TestLayer.Random(2, [100], 2, 2, 16);
        var run = Run.Of(_backend, Plan(layer, 0.1), layer.Inputs, SelectionPolicy.Streaming);
        Assert.Equal([0, 1, 2, 3, 94, 95, 96, 97, 98, 99], run.Indices[..10]);
        GC.KeepAlive(layer);
    }

    [Theory]
    [InlineData("snapkv")]
    [InlineData("tova")]
    [InlineData("h2o")]
    public void Without_queries_the_policy_says_that_it_needs_them(string name)
    {
        var layer = TestLayer.Random(2, [100], 2, 2, 16);
        var exception = Assert.Throws<CompactorException>(() => Run.Of(_backend, Plan(layer), layer.Inputs with { Query = null }, SelectionPolicy.Named(name, 0)));
        Assert.Contains(name, exception.Message);
        Assert.Contains("queries", exception.Message);
    }

    [Theory]
    [InlineData("snapkv", true)]
    [InlineData("keydiff", false)]
    [InlineData("keynorm", false)]
    public void An_infinity_is_named_by_token_and_head(string name, bool inQueries)
    {
        var source = TestLayer.Random(2, [100], 2, 2, 16);
        (inQueries ? source.QueryValues : source.KeyValues)[(17 * 2 + 1) * 16 + 5] = float.PositiveInfinity;
        var layer = TestLayer.From(source.Shape, source.KeyPreRopeValues, source.QueryValues, source.KeyValues, source.ValueValues);
        var exception = Assert.Throws<CompactorException>(() => Run.Of(_backend, Plan(layer), layer.Inputs, SelectionPolicy.Named(name, 0)));
        Assert.Equal(CompactorStatus.NonFinite, exception.Status);
        Assert.Contains("token 17 of sequence 0, head 1", exception.Message);
        GC.KeepAlive(layer);
    }

    [Fact]
    public void An_unknown_name_is_answered_with_the_known_ones() =>
        Assert.Contains("compactor, leverage, attention, snapkv", Assert.Throws<CompactorException>(() => SelectionPolicy.Named("snap", 0)).Message);

    /// <summary>Scores of one head; +inf where the definition always keeps the token.</summary>
    private static double[] Definition(string name, TestLayer layer, LayerPlan plan, int b, int head)
    {
        var shape = layer.Shape;
        int n = shape.LengthOf(b), group = shape.Group, d = shape.HeadDim;
        double[] Row(float[] values, int heads, int t, int h) => [.. values.Skip(((shape.CuSeqlens[b] + t) * heads + h) * d).Take(d).Select(x => (double)x)];
        double[][] keys = [.. Enumerable.Range(0, n).Select(t => Row(layer.KeyValues, shape.KvHeads, t, head))];

        // [query, key] of one query head, over the keys of its KV head.
        double[,] Attention(int queryHead)
        {
            var weights = new double[n, n];
            for (int i = 0; i < n; i++)
            {
                double[] q = Row(layer.QueryValues, shape.QueryHeads, i, queryHead);
                double sum = 0;
                for (int j = 0; j <= i; j++)
                    sum += weights[i, j] = Math.Exp(q.Zip(Row(layer.KeyValues, shape.KvHeads, j, queryHead / group), (x, y) => x * y).Sum() / Math.Sqrt(d));
                for (int j = 0; j <= i; j++)
                    weights[i, j] /= sum;
            }
            return weights;
        }

        double[][,] OfGroup() => [.. Enumerable.Range(head * group, group).Select(Attention)];

        switch (name)
        {
            case "recent":
                return [.. Enumerable.Range(0, n).Select(t => (double)t)];
            case "streaming":
                return [.. Enumerable.Range(0, n).Select(t => t < 4 ? double.PositiveInfinity : t)];
            case "keynorm":
                return [.. keys.Select(k => -Math.Sqrt(k.Sum(x => x * x)))];
            case "keydiff":
                double[] mean = new double[d];
                foreach (double[] k in keys)
                    for (int i = 0; i < d; i++)
                        mean[i] += k[i] / Math.Sqrt(k.Sum(x => x * x)) / n;
                return [.. keys.Select(k => -k.Zip(mean, (x, y) => x * y).Sum() / Math.Sqrt(k.Sum(x => x * x) * mean.Sum(x => x * x)))];
            case "tova":
                var all = Enumerable.Range(0, shape.QueryHeads).Select(Attention).ToArray();
                return [.. Enumerable.Range(0, n).Select(j => j == n - 1 ? 1 : all.Average(a => a[n - 1, j]))];
            case "h2o":
                var received = OfGroup();
                long recent = plan.KeptPairsOf(b) / shape.KvHeads / 2;
                return [.. Enumerable.Range(0, n).Select(j => j >= n - recent ? double.PositiveInfinity : received.Sum(a => Enumerable.Range(0, n).Sum(i => a[i, j])))];
            case "snapkv":
                var window = OfGroup();
                int first = Math.Max(0, n - 32);
                double[] votes = [.. Enumerable.Range(0, first).Select(j => window.Average(a => Enumerable.Range(first, n - first).Average(i => a[i, j])))];
                return [.. Enumerable.Range(0, n).Select(j => j >= first ? double.PositiveInfinity : Enumerable.Range(j - 2, 5).Sum(near => near >= 0 && near < first ? votes[near] : 0) / 5)];
            default:
                throw new ArgumentOutOfRangeException(nameof(name), name, "no definition");
        }
    }
}
