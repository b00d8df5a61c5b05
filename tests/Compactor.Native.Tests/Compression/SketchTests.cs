using Compactor.Native.Compression;
using MathNet.Numerics.Distributions;
using MathNet.Numerics.Statistics;
using Xunit;

namespace Compactor.Native.Tests.Compression;

public class SketchTests
{
    private static readonly LayerShape Shape = new([0, 10, 20], 4, 2, 128, ElementType.Float32);

    /// <summary>Known answers of the Random123 distribution (kat_vectors, philox4x32 10 rounds).</summary>
    [Theory]
    [InlineData(0u, 0u, 0u, 0u, 0ul, 0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u)]
    [InlineData(uint.MaxValue, uint.MaxValue, uint.MaxValue, uint.MaxValue, ulong.MaxValue, 0x408f276du, 0x41c83b0eu, 0xa20bc7c6u, 0x6d5451fdu)]
    [InlineData(0x243f6a88u, 0x85a308d3u, 0x13198a2eu, 0x03707344u, 0x299f31d0a4093822ul, 0xd16cfe09u, 0x94fdccebu, 0x5001e420u, 0x24126ea1u)]
    public void Philox_gives_the_published_answers(uint c0, uint c1, uint c2, uint c3, ulong key, uint x0, uint x1, uint x2, uint x3) =>
        Assert.Equal((x0, x1, x2, x3), Philox.Block(c0, c1, c2, c3, key));

    [Fact]
    public void Entries_are_normal_with_variance_one_over_k()
    {
        double[] entries = [.. Enumerable.Range(0, 40).SelectMany(layer =>
            Sketch.Draw(Shape with { Layer = layer }, CompressionPresets.Paper).Of(0, 0).ToArray()).Select(x => x * Math.Sqrt(48)).Order()];
        Assert.Equal(0, entries.Mean(), 0.01);
        Assert.Equal(1, entries.StandardDeviation(), 0.01);
        // Kolmogorov-Smirnov distance; bfloat16 rounding alone moves a quantile by less than 2^-9 relative.
        double distance = entries.Select((x, i) => Math.Abs(Normal.CDF(0, 1, x) - (i + 0.5) / entries.Length)).Max();
        Assert.InRange(distance, 0, 1.63 / Math.Sqrt(entries.Length) + 1.0 / 1024);
    }

    [Fact]
    public void Entries_are_bfloat16()
    {
        foreach (float x in Sketch.Draw(Shape, CompressionPresets.Paper).Of(0, 0))
            Assert.Equal(0u, BitConverter.SingleToUInt32Bits(x) & 0xFFFF);
    }

    [Fact]
    public void The_first_entries_are_pinned() =>
        Assert.Equal(Pinned, string.Join(", ", Sketch.Draw(Shape, CompressionPresets.CompactorVllm with { Seed = 42 }).Of(0, 0)[..6].ToArray()));

    private const string Pinned = "-0.13964844, 0.027954102, -0.17871094, 0.27734375, -0.010559082, 0.020141602";

    [Fact]
    public void Sharing_decides_what_differs()
    {
        float[] Phi(SketchSharing sharing, int layer, int b, int h, LayerShape? shape = null) =>
            Sketch.Draw((shape ?? Shape) with { Layer = layer }, CompressionPresets.Paper with { SketchSharing = sharing }).Of(b, h).ToArray();

        Assert.Equal(Phi(SketchSharing.Shared, 0, 0, 0), Phi(SketchSharing.Shared, 5, 1, 1));
        Assert.NotEqual(Phi(SketchSharing.PerLayer, 0, 0, 0), Phi(SketchSharing.PerLayer, 1, 0, 0));
        Assert.Equal(Phi(SketchSharing.PerLayer, 3, 0, 0), Phi(SketchSharing.PerLayer, 3, 1, 1));
        Assert.NotEqual(Phi(SketchSharing.PerSequenceHead, 0, 0, 0), Phi(SketchSharing.PerSequenceHead, 0, 0, 1));
        Assert.NotEqual(Phi(SketchSharing.PerSequenceHead, 0, 0, 0), Phi(SketchSharing.PerSequenceHead, 0, 1, 0));

        // The key is the sequence's id and the global head, not where they stand in a batch or on a rank.
        var moved = new LayerShape([0, 10], 2, 1, 128, ElementType.Float32) { SequenceIds = [1], FirstHead = 1 };
        Assert.Equal(Phi(SketchSharing.PerSequenceHead, 0, 1, 1), Phi(SketchSharing.PerSequenceHead, 0, 0, 0, moved));
    }
}
