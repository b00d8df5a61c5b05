using Compactor.Native.Compression;
using Compactor.Native.Tests.Support;
using FsCheck;
using FsCheck.Fluent;
using Xunit;

namespace Compactor.Native.Tests.Compression;

public class SelectionTests
{
    private static readonly CompressionOptions Unprotected = CompressionPresets.Paper with { ProtectFirst = 0, ProtectLast = 0, RetentionCount = RetentionCount.FloorOfTokens };

    [Fact]
    public void All_backends_keep_what_sorting_keeps()
    {
        // Few distinct values, both zeros, infinities and signs of NaN: ties everywhere.
        float[] values = [0f, -0f, 1f, -1f, 0.5f, float.PositiveInfinity, float.NegativeInfinity, float.MinValue, float.Epsilon, -float.Epsilon, float.NaN, BitConverter.Int32BitsToSingle(0x7FC00000)];
        var property = Prop.ForAll(
            (from seed in Gen.Choose(0, 1 << 20)
             from lengths in Gen.Choose(0, 60).ListOf()
             from heads in Gen.Choose(1, 5)
             from scope in Gen.Elements(Enum.GetValues<SelectionScope>())
             from retention in Gen.Choose(0, 99)
             from minimum in Gen.Elements(0, 0, 3, 17)
             from ties in Gen.Elements(true, false)
             select (seed, lengths: lengths.Take(4).ToArray(), heads, scope, retention, minimum, ties)).ToArbitrary(),
            c =>
            {
                var random = new Random(c.seed);
                var shape = new LayerShape(TestLayer.Offsets(c.lengths), 0, c.heads, 16, ElementType.Float32);
                var plan = new LayerPlan(shape, Unprotected with { SelectionScope = c.scope, MinTokensPerHead = c.minimum }, Budget.Retention(c.retention / 100.0));
                float[] scores = [.. Enumerable.Range(0, shape.Tokens * c.heads).Select(_ =>
                    c.ties ? values[random.Next(c.scope == SelectionScope.Token ? 5 : values.Length)] : (float)(random.NextDouble() - 0.5))];
                var expected = Select("reference", plan, scores);
                foreach (string backend in Backends.Names)
                {
                    var actual = Select(backend, plan, scores);
                    Assert.Equal(expected.Offsets, actual.Offsets);
                    Assert.Equal(expected.Indices, actual.Indices);
                }
            });
        Check.One(Config.QuickThrowOnFailure.WithMaxTest(400).WithReplay(20250708, 7), property);
    }

    [Fact]
    public void Ties_go_to_the_lower_token_then_the_lower_head()
    {
        var shape = new LayerShape([0, 3], 0, 2, 16, ElementType.Float32);
        var plan = new LayerPlan(shape, Unprotected, Budget.Bytes(3 * shape.BytesPerPair));
        foreach (string backend in Backends.Names)
        {
            var (indices, offsets) = Select(backend, plan, [1, 2, 1, -0f, 0, 1]);
            Assert.Equal([0, 1, 0], indices);
            Assert.Equal([0, 2, 3], offsets);
        }
    }

    private static (int[] Indices, int[] Offsets) Select(string backendName, LayerPlan plan, float[] values)
    {
        using var backend = Backends.Create(backendName);
        using var scores = backend.Allocate<float>(values.Length);
        using var indices = backend.Allocate<int>(plan.KeptPairs);
        using var offsets = backend.Allocate<int>(plan.Shape.Sequences * plan.Shape.KvHeads + 1);
        values.CopyTo(scores.View.AsSpan());
        backend.Select(plan, scores.View, indices.View, offsets.View);
        return (Arrays.Copy(indices), Arrays.Copy(offsets));
    }
}
