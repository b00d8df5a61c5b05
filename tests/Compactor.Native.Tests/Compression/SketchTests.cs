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

    [Fact]
    public void What_keys_a_sketch_must_fit_its_key()
    {
        Refused("Layer is -1", () => Shape with { Layer = -1 });
        Refused("Layer is 65535", () => Shape with { Layer = 65535 });
        Refused("FirstHead is -1", () => Shape with { FirstHead = -1 });
        Refused("FirstHead is 65534; with 2 KV heads use 0 to 65533", () => Shape with { FirstHead = 65534 });
        Refused("1 SequenceIds for 2 sequences", () => Shape with { SequenceIds = [4] });
        Refused("3 SequenceIds for 2 sequences", () => new LayerShape([0, 10, 20], 4, 2, 128, ElementType.Float32) { SequenceIds = [1, 2, 3] });
        Refused("3 SequenceIds for 2 sequences", () => LayerShape.Ragged([1, 2, 3, 4], 2, 128, ElementType.Float32) with { SequenceIds = [1, 2, 3] });
        Refused("FirstHead is 65534; with 2 KV heads", () => LayerShape.Ragged([1, 2, 3, 4], 2, 128, ElementType.Float32) with { FirstHead = 65534 });
        Refused("70000 KV heads", () => LayerShape.Ragged(new int[70000], 70000, 128, ElementType.Float32));

        // The last layer and head have a Phi of their own: neither wraps around to another's.
        var options = CompressionPresets.Paper with { SketchSharing = SketchSharing.PerSequenceHead };
        var last = Sketch.Draw(Shape with { Layer = 65534, FirstHead = 65533, SequenceIds = [long.MinValue, -1] }, options);
        var first = Sketch.Draw(Shape, options);
        float[][] all = [last.Of(0, 0).ToArray(), last.Of(0, 1).ToArray(), last.Of(1, 0).ToArray(), last.Of(1, 1).ToArray(), first.Of(0, 0).ToArray(), first.Of(0, 1).ToArray()];
        Assert.Equal(all.Length, all.DistinctBy(phi => string.Join(' ', phi)).Count());
    }

    [Fact]
    public void The_ids_of_a_shape_do_not_change_behind_it()
    {
        var ids = new List<long> { 7, 8 };
        var shape = Shape with { SequenceIds = ids };
        ids.Clear();
        Assert.Equal(8, shape.IdOf(1));
    }

    [Fact]
    public void Batches_whose_sketches_do_not_fit_are_to_be_split()
    {
        var options = CompressionPresets.Paper with { SketchSharing = SketchSharing.PerSequenceHead };
        // 2^32 + 2^15 entries: in 32 bits, the size of one Phi of 256 x 128.
        var shape = new LayerShape(new int[131074], 0, 1, 256, ElementType.Float32);
        Refused("Split the batch", () => Sketch.Draw(shape, options with { SketchDimension = 128 }), CompactorStatus.Unsupported);
        Refused("split the batch", () => new LayerShape(new int[40001], 0, 60000, 128, ElementType.Float32), CompactorStatus.Unsupported);
    }

    private static void Refused(string message, Func<object> action, CompactorStatus status = CompactorStatus.InvalidArgument)
    {
        var e = Assert.Throws<CompactorException>(action);
        Assert.Equal(status, e.Status);
        Assert.Contains(message, e.Message);
    }
}
