using Compactor.Native.Compression;
using Compactor.Native.Tests.Support;
using FsCheck;
using FsCheck.Fluent;
using Xunit;

namespace Compactor.Native.Tests.Compression;

/// <summary>The facts that hold for non-causal attention scores whatever the cache is.</summary>
public class AttentionTests
{
    public static TheoryData<string> All => Backends.All;

    [Theory]
    [MemberData(nameof(All))]
    public void Scores_of_a_chunk_sum_to_its_queries(string backendName)
    {
        var property = Prop.ForAll(
            (from seed in Gen.Choose(0, 1 << 20)
             from n in Gen.Choose(1, 300)
             from dim in Gen.Elements(16, 64, 80, 96, 256)
             from heads in Gen.Elements((1, 1), (4, 2), (6, 2), (16, 1), (5, 1), (14, 2))
             from chunk in Gen.Elements(64, 100, 128, 256)
             from mean in Gen.Elements(GroupReduction.Sum, GroupReduction.Mean)
             select (seed, n, dim, heads, chunk, mean)).ToArbitrary(),
            c =>
            {
                var (hq, hkv) = c.heads;
                var layer = TestLayer.Random(c.seed, [c.n], hq, hkv, c.dim);
                float[] a = Attention(backendName, layer, CompressionPresets.Paper with { AttentionChunk = c.chunk, GroupReduction = c.mean });
                for (int h = 0; h < hkv; h++)
                    for (int t = 0; t < c.n; t += c.chunk)
                    {
                        int rows = Math.Min(c.chunk, c.n - t);
                        double sum = Enumerable.Range(t, rows).Sum(i => (double)a[i * hkv + h]);
                        double expected = rows * (c.mean == GroupReduction.Sum ? hq / hkv : 1);
                        Assert.InRange(sum, expected * (1 - 1e-5), expected * (1 + 1e-5));
                    }
            });
        Check.One(Config.QuickThrowOnFailure.WithMaxTest(backendName == "reference" ? 15 : 60).WithReplay(20250708, 3), property);
    }

    /// <summary>Heads of a group that no tile of query rows is a multiple of.</summary>
    [Theory]
    [InlineData(5, 1)]
    [InlineData(14, 2)]
    [InlineData(33, 3)]
    public void Groups_of_any_size_give_the_scores_of_the_reference(int queryHeads, int kvHeads)
    {
        var layer = TestLayer.Random(9, [150, 260], queryHeads, kvHeads, 48);
        float[] expected = Attention("reference", layer, CompressionPresets.Paper);
        foreach (string backend in Backends.Names.Where(name => name != "reference"))
            Assert.InRange(Arrays.RelativeError(Attention(backend, layer, CompressionPresets.Paper), expected), 0, 1e-5);
    }

    [Theory]
    [MemberData(nameof(All))]
    public void Equal_keys_share_attention_equally(string backendName)
    {
        var shape = new LayerShape([0, 100], 2, 2, 32, ElementType.Float32);
        float[] same = [.. Enumerable.Range(0, 100 * 2 * 32).Select(i => i % 32 / 9f)];
        var layer = TestLayer.From(shape, same, [.. same.Select((x, i) => x * (i % 5 - 2))], same, same);
        Assert.All(Attention(backendName, layer, CompressionPresets.Paper), a => Assert.Equal(1, a, 1e-5));
    }

    [Theory]
    [MemberData(nameof(All))]
    public void Large_logits_do_not_overflow(string backendName)
    {
        var shape = new LayerShape([0, 70], 1, 1, 16, ElementType.Float32);
        float[] keys = [.. Enumerable.Range(0, 70 * 16).Select(i => i / 16 == 33 ? 1000f : 0f)];
        var layer = TestLayer.From(shape, keys, [.. keys.Select(_ => 1000f)], keys, keys);
        float[] a = Attention(backendName, layer, CompressionPresets.Paper);
        for (int t = 0; t < 70; t++)
            Assert.Equal(t == 33 ? 70 : 0, a[t], 1e-4);
    }

    private static float[] Attention(string backendName, TestLayer layer, CompressionOptions options)
    {
        using var backend = Backends.Create(backendName);
        using var attention = backend.Allocate<float>(layer.Shape.Tokens * layer.Shape.KvHeads);
        backend.AttentionScores(new LayerPlan(layer.Shape, options, Budget.Retention(0.5)), layer.Inputs.Query!.Value, layer.Inputs.Key, attention.View);
        GC.KeepAlive(layer);
        return Arrays.Copy(attention);
    }
}
