using Compactor.Native.Compression;
using Compactor.Native.Tests.Support;
using Xunit;

namespace Compactor.Native.Tests.Compression;

public class FusionTests
{
    public static TheoryData<string> All => Backends.All;

    private static readonly CompressionOptions Plain = CompressionPresets.Paper with { ProtectFirst = 0, ProtectLast = 0, PoolWidth = 1 };

    [Theory]
    [MemberData(nameof(All))]
    public void Nearly_constant_scores_become_zero_and_never_NaN(string backend)
    {
        float[] constant = [.. Enumerable.Repeat(0.75f, 64)], barely = [.. constant.Select((x, i) => x + (i % 2 == 0 ? 0 : 1e-6f))];
        foreach (float[] a in new[] { constant, barely, new float[64] })
            Assert.All(Fuse(backend, Plain, [0, 64], 1, a, constant).Scores, s => Assert.Equal(0, s));
        Assert.All(Fuse(backend, Plain with { UnbiasedStandardDeviation = true }, [0, 1], 1, [3], [4]).Scores, s => Assert.Equal(0, s));
    }

    [Theory]
    [MemberData(nameof(All))]
    public void Z_scores_have_mean_0_and_deviation_1_over_their_scope(string backend)
    {
        var random = new Random(2);
        const int n = 210, heads = 3;
        float[] x = [.. Enumerable.Range(0, n * heads).Select(i => (float)(random.NextDouble() * (1 + i % heads) + i / heads))];
        foreach (var scope in Enum.GetValues<NormalizationScope>())
        {
            var options = Plain with { LeverageScope = scope, LeverageChunk = 64 };
            float[] z = Fuse(backend, options, [0, n], heads, null, x).Scores;
            foreach (var group in Enumerable.Range(0, n * heads).GroupBy(i => scope switch { NormalizationScope.Head => i % heads, NormalizationScope.Sequence => 0, _ => i / heads / 64 }))
            {
                Assert.Equal(0, group.Average(i => (double)z[i]), 1e-5);
                Assert.Equal(1, group.Average(i => (double)z[i] * z[i]), 1e-5);
            }
        }
    }

    [Theory]
    [MemberData(nameof(All))]
    public void Non_finite_scores_become_the_lowest_and_are_reported(string backend)
    {
        float[] a = [.. Enumerable.Range(0, 40).Select(i => (float)i)];
        (a[14], a[25], a[26]) = (float.NaN, float.PositiveInfinity, float.NegativeInfinity);
        var (scores, status) = Fuse(backend, Plain, [0, 5, 20], 2, a, [.. a.Select(_ => 1f)]);
        Assert.Equal(new FuseStatus(3, 1, 2, 0), status);
        Assert.Equal([14, 25, 26], Enumerable.Range(0, 40).Where(i => scores[i] == float.MinValue));
        Assert.All(scores, s => Assert.True(float.IsFinite(s)));
    }

    [Theory]
    [MemberData(nameof(All))]
    public void Pooling_averages_over_a_zero_padded_window(string backend)
    {
        float[] impulse = new float[9];
        impulse[4] = 1;
        float[] pooled = Fuse(backend, Plain with { PoolWidth = 5 }, [0, 9], 1, impulse, null).Scores;
        Assert.Single(pooled[2..7].Distinct());
        Assert.Single(pooled[..2].Concat(pooled[7..]).Distinct());
        Assert.True(pooled[2] > pooled[0]);
        float[] ones = Fuse(backend, Plain with { PoolWidth = 3 }, [0, 9], 1, [.. Enumerable.Repeat(1f, 9)], null).Scores;
        Assert.True(ones[0] < ones[1] && ones[8] == ones[0], "edges average zeros in");
    }

    [Theory]
    [MemberData(nameof(All))]
    public void Values_weight_attention_by_their_norm(string backend)
    {
        float[] values = [.. Enumerable.Range(0, 6 * 16).Select(i => i % 16 == 0 ? i / 16 : 0f)], ones = [.. Enumerable.Repeat(1f, 6)];
        float[] z = Fuse(backend, Plain with { WeightByValueNorm = true }, [0, 6], 1, ones, null, values).Scores;
        float[] expected = Fuse(backend, Plain, [0, 6], 1, [0, 1, 2, 3, 4, 5], null).Scores;
        Assert.Equal(expected, z);
    }

    private static (float[] Scores, FuseStatus Status) Fuse(string backendName, CompressionOptions options, int[] cuSeqlens, int heads, float[]? a, float[]? o, float[]? values = null)
    {
        using var backend = Backends.Create(backendName);
        var shape = new LayerShape(cuSeqlens, 0, heads, 16, ElementType.Float32);
        byte[] value = Arrays.Encode(values ?? new float[shape.Tokens * heads * 16], ElementType.Float32);
        using var attention = Buffer(a);
        using var leverage = Buffer(o);
        using var scores = backend.Allocate<float>(shape.Tokens * heads);
        var status = backend.Fuse(new LayerPlan(shape, options, Budget.Retention(0.5)), leverage?.View, attention?.View,
            TensorView.Packed(Arrays.Address(value), ElementType.Float32, shape.Tokens, heads, 16), scores.View);
        GC.KeepAlive(value);
        return (Arrays.Copy(scores), status);

        BackendBuffer<float>? Buffer(float[]? x)
        {
            if (x is null)
                return null;
            var buffer = backend.Allocate<float>(x.Length);
            x.CopyTo(buffer.View.AsSpan());
            return buffer;
        }
    }
}
