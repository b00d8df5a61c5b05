using Compactor.Gpu.Tests.Support;
using Compactor.Native;
using Compactor.Native.Compression;
using Compactor.Native.Cpu;
using Compactor.Native.Gpu;
using Compactor.Native.Reference;
using Compactor.Native.Tests.Support;
using Xunit;

namespace Compactor.Gpu.Tests.Agreement;

/// <summary>
/// Scores of the kernels beside the float64 reference and the CPU backend, over element types, head dimensions, groups and lengths. Inputs are exact in all three, so that one
/// bound serves every type: products and sums are float32 or better, and sketches enter the Gram product as two bfloat16 parts, 2^-17.
/// </summary>
public class ScoringTests
{
    private const double Bound = 2e-5;

    private static readonly int[] s_lengths = [67, 0, 1, 33];

    public static TheoryData<ElementType, int, int> LeverageCases => new()
    {
        { ElementType.BFloat16, 128, 48 },
        { ElementType.Float16, 64, 16 },
        { ElementType.Float32, 80, 48 },
        { ElementType.BFloat16, 96, 128 },
    };

    public static TheoryData<ElementType, int, int> MoreLeverageCases =>
    [
        .. from type in Arrays.FloatTypes
           from dim in (int[])[64, 80, 96, 128, 256]
           from k in (int[])[16, 48, 64, 128]
           select (type, dim, k),
    ];

    [Theory]
    [MemberData(nameof(LeverageCases))]
    public void Leverage_agrees(ElementType type, int dim, int k) => CheckLeverage(type, dim, k);

    [Theory(Explicit = true)]
    [MemberData(nameof(MoreLeverageCases))]
    public void Leverage_agrees_everywhere(ElementType type, int dim, int k) => CheckLeverage(type, dim, k);

    [Theory]
    [InlineData(RotaryStyle.HalfRotation, 0)]
    [InlineData(RotaryStyle.Interleaved, 64)]
    public void Rotation_is_undone_while_keys_are_read(RotaryStyle style, int chunk)
    {
        var layer = TestLayer.Random(5, s_lengths, 2, 2, 64, ElementType.BFloat16);
        var options = CompressionPresets.Paper with { SketchDimension = 16, LeverageChunk = chunk };
        var plan = new LayerPlan(layer.Shape, options, Budget.Retention(0.5));
        var rotary = RotaryEmbedding.FromTheta(10000, 48, style);
        AssertLeverage(plan, layer.Inputs.Key, rotary, Sketch.Draw(layer.Shape, options));
    }

    [Fact]
    public void Every_sequence_and_head_may_have_a_sketch()
    {
        var layer = TestLayer.Random(6, s_lengths, 2, 2, 64, ElementType.BFloat16);
        var options = CompressionPresets.KvPress with { SketchDimension = 32 };
        AssertLeverage(new LayerPlan(layer.Shape, options, Budget.Retention(0.5)), layer.Inputs.KeyPreRope!.Value, null, Sketch.Draw(layer.Shape, options));
    }

    [Fact]
    public void A_common_bias_of_keys_costs_no_digits()
    {
        var layer = TestLayer.Random(7, [150], 1, 1, 64, ElementType.Float32, bias: 300);
        foreach (int chunk in (int[])[0, 128])
        {
            var options = CompressionPresets.Paper with { LeverageChunk = chunk };
            AssertLeverage(new LayerPlan(layer.Shape, options, Budget.Retention(0.5)), layer.Inputs.KeyPreRope!.Value, null, Sketch.Draw(layer.Shape, options), 5e-5);
        }
    }

    public static TheoryData<ElementType, int, int, int> AttentionCases => new()
    {
        { ElementType.BFloat16, 128, 4, 64 },
        { ElementType.Float16, 80, 1, 100 },
        { ElementType.Float32, 64, 2, 64 },
    };

    public static TheoryData<ElementType, int, int, int> MoreAttentionCases =>
    [
        .. from type in Arrays.FloatTypes
           from dim in (int[])[64, 80, 96, 128, 256]
           from shape in ((int, int)[])[(1, 64), (3, 130), (16, 256), (2, 512)]
           select (type, dim, shape.Item1, shape.Item2),
    ];

    [Theory]
    [MemberData(nameof(AttentionCases))]
    public void Attention_scores_agree(ElementType type, int dim, int group, int chunk) => CheckAttention(type, dim, group, chunk, 90);

    [Theory]
    [InlineData(ElementType.BFloat16, 128, 4, 256)]
    [InlineData(ElementType.Float16, 64, 3, 64)]
    [InlineData(ElementType.BFloat16, 64, 1, 130)]
    public void Attention_scores_of_the_kernel_for_Hopper_agree(ElementType type, int dim, int group, int chunk)
    {
        Assert.Equal("attention_scores_hopper", AttentionScoresLaunch.Variant(dim, type, chunk, Occupancy.LimitsOf(90) with { HopperKernels = true }).Entry);
        CheckAttention(type, dim, group, chunk, 90, hopper: true);
    }

    [Theory]
    [InlineData(ElementType.Float32, 128, 256)]
    [InlineData(ElementType.BFloat16, 96, 256)]
    [InlineData(ElementType.BFloat16, 128, 257)]
    public void What_the_kernel_for_Hopper_is_not_written_for_takes_the_portable_one(ElementType type, int dim, int chunk) =>
        Assert.Equal("attention_scores", AttentionScoresLaunch.Variant(dim, type, chunk, Occupancy.LimitsOf(90) with { HopperKernels = true }).Entry);

    [Theory(Explicit = true)]
    [MemberData(nameof(MoreAttentionCases))]
    public void Attention_scores_agree_everywhere(ElementType type, int dim, int group, int chunk)
    {
        CheckAttention(type, dim, group, chunk, 90);
        CheckAttention(type, dim, group, chunk, 86);
    }

    [Fact]
    public void A_padded_batch_scores_as_a_packed_one()
    {
        var layer = TestLayer.Random(9, [70, 70], 2, 2, 64, ElementType.BFloat16);
        var plan = new LayerPlan(layer.Shape, CompressionPresets.CompactorVllm with { SketchDimension = 16 }, Budget.Retention(0.5));
        var packed = layer.Inputs.KeyPreRope!.Value;
        // [B, H, S, D]: the same rows in another order.
        var rows = new float[packed.Tokens * 2 * 64];
        for (int t = 0; t < packed.Tokens; t++)
            for (int h = 0; h < 2; h++)
                layer.KeyPreRopeValues.AsSpan((t * 2 + h) * 64, 64).CopyTo(rows.AsSpan(((t / 70 * 2 + h) * 70 + t % 70) * 64));
        byte[] bytes = Arrays.Encode(rows, ElementType.BFloat16);
        using var device = new Device();
        var sketch = Sketch.Draw(layer.Shape, plan.Options);
        float[] a = Leverage(device, plan, device.Copy(packed), null, sketch);
        float[] b = Leverage(device, plan, device.Copy(TensorView.BatchHeadSequence(Arrays.Address(bytes), ElementType.BFloat16, 2, 2, 70, 64)), null, sketch);
        Assert.Equal(a, b);
    }

    [Fact]
    public void A_sequence_scores_the_same_bits_whatever_its_neighbours()
    {
        var layer = TestLayer.Random(10, [90, 41], 4, 2, 64, ElementType.BFloat16);
        var alone = new LayerShape([0, 90], 4, 2, 64, ElementType.BFloat16);
        foreach (int chunk in (int[])[0, 64])
        {
            var options = CompressionPresets.Paper with { SketchDimension = 16, LeverageChunk = chunk, AttentionChunk = 64 };
            LayerPlan both = new(layer.Shape, options, Budget.Retention(0.5)), one = new(alone, options, Budget.Retention(0.5));
            var sketch = Sketch.Draw(layer.Shape, options);
            using var device = new Device(seed: 2);
            var inputs = device.Copy(layer.Inputs);
            var (keys, query, key) = (inputs.KeyPreRope!.Value, inputs.Query!.Value, inputs.Key);
            Assert.Equal(Leverage(device, one, keys with { Tokens = 90 }, null, sketch), Leverage(device, both, keys, null, sketch)[..180]);
            Assert.Equal(Attention(device, one, query with { Tokens = 90 }, key with { Tokens = 90 }), Attention(device, both, query, key)[..180]);
        }
    }

    [Theory]
    [InlineData(0)]
    [InlineData(64)]
    public void The_first_key_that_is_not_finite_is_named(int chunk)
    {
        var layer = TestLayer.Random(11, [70, 50], 2, 2, 64);
        float[] keys = [.. layer.KeyPreRopeValues];
        keys[((70 + 20) * 2 + 1) * 64 + 7] = float.NaN;
        keys[((70 + 33) * 2 + 0) * 64 + 9] = float.PositiveInfinity;
        var broken = TestLayer.From(layer.Shape with { Layer = 3 }, keys, layer.QueryValues, layer.KeyValues, layer.ValueValues);
        var options = CompressionPresets.Paper with { SketchDimension = 16, LeverageChunk = chunk };
        using var device = new Device();
        using var selection = LayerCompressor.Select(device.Backend, new LayerPlan(broken.Shape, options, Budget.Retention(0.5)), device.Copy(broken.Inputs));
        var exception = Assert.Throws<CompactorException>(selection.Status.ThrowIfFailed);
        Assert.Equal(CompactorStatus.NonFinite, exception.Status);
        Assert.Contains("Layer 3: key holds NaN or infinity at token 20 of sequence 1, head 1.", exception.Message);
        // The next layer starts afresh.
        using var next = LayerCompressor.Select(device.Backend, new LayerPlan(layer.Shape, options, Budget.Retention(0.5)), device.Copy(layer.Inputs));
        next.Status.ThrowIfFailed();
    }

    [Fact]
    public void A_query_that_is_not_finite_is_named()
    {
        var layer = TestLayer.Random(12, [70, 50], 4, 2, 64);
        float[] query = [.. layer.QueryValues];
        query[((70 + 20) * 4 + 3) * 64 + 7] = float.NegativeInfinity;
        var broken = TestLayer.From(layer.Shape, layer.KeyPreRopeValues, query, layer.KeyValues, layer.ValueValues);
        var options = CompressionPresets.Paper with { SketchDimension = 16, AttentionChunk = 64 };
        using var device = new Device();
        using var selection = LayerCompressor.Select(device.Backend, new LayerPlan(broken.Shape, options, Budget.Retention(0.5)), device.Copy(broken.Inputs));
        Assert.Contains("query holds NaN or infinity at token 20 of sequence 1, head 3.", Assert.Throws<CompactorException>(selection.Status.ThrowIfFailed).Message);
    }

    private static void CheckLeverage(ElementType type, int dim, int k)
    {
        var layer = TestLayer.Random(dim + k, s_lengths, 2, 2, dim, type);
        foreach (int chunk in (int[])[0, 64])
            foreach (bool scoreProtected in (bool[])[true, false])
            {
                var options = CompressionPresets.Paper with { SketchDimension = k, LeverageChunk = chunk, ScoreProtected = scoreProtected, ProtectFirst = 3, ProtectLast = 5 };
                AssertLeverage(new LayerPlan(layer.Shape, options, Budget.Retention(0.5)), layer.Inputs.KeyPreRope!.Value, null, Sketch.Draw(layer.Shape, options));
            }
        GC.KeepAlive(layer);
    }

    private static void CheckAttention(ElementType type, int dim, int group, int chunk, int architecture, bool hopper = false)
    {
        var layer = TestLayer.Random(dim + group, s_lengths, 2 * group, 2, dim, type);
        var options = CompressionPresets.KvPress with { AttentionChunk = chunk, ProtectFirst = 2, ProtectLast = 3 };
        var plan = new LayerPlan(layer.Shape, options, Budget.Retention(0.5));
        using var device = new Device(architecture: architecture, checksRaces: hopper, hopper: hopper);
        using KvBackend reference = new ReferenceBackend(), cpu = new CpuBackend(1);
        float[] actual = Attention(device, plan, device.Copy(layer.Inputs.Query!.Value), device.Copy(layer.Inputs.Key));
        foreach (var other in (KvBackend[])[reference, cpu])
        {
            using var expected = other.Allocate<float>(plan.Shape.Pairs);
            other.AttentionScores(plan, layer.Inputs.Query!.Value, layer.Inputs.Key, expected.View);
            Assert.InRange(Arrays.RelativeError(actual, expected.View.AsSpan()), 0, Bound);
        }
        GC.KeepAlive(layer);
    }

    private static void AssertLeverage(LayerPlan plan, TensorView keys, RotaryEmbedding? undo, Sketch sketch, double bound = Bound)
    {
        using var device = new Device();
        using KvBackend reference = new ReferenceBackend(), cpu = new CpuBackend(1);
        float[] actual = Leverage(device, plan, device.Copy(keys), undo, sketch);
        foreach (var other in (KvBackend[])[reference, cpu])
        {
            using var expected = other.Allocate<float>(plan.Shape.Pairs);
            other.Leverage(plan, keys, undo, sketch, expected.View);
            Assert.InRange(Arrays.RelativeError(actual, expected.View.AsSpan()), 0, bound);
        }
    }

    private static float[] Leverage(Device device, LayerPlan plan, TensorView keys, RotaryEmbedding? undo, Sketch sketch)
    {
        var leverage = device.New<float>(plan.Shape.Pairs);
        device.Backend.Leverage(plan, keys, undo, sketch, leverage);
        using var status = device.Backend.TakeStatus(plan);
        status.ThrowIfFailed();
        return device.Backend.Read(leverage);
    }

    private static float[] Attention(Device device, LayerPlan plan, TensorView query, TensorView key)
    {
        var attention = device.New<float>(plan.Shape.Pairs);
        device.Backend.AttentionScores(plan, query, key, attention);
        using var status = device.Backend.TakeStatus(plan);
        status.ThrowIfFailed();
        return device.Backend.Read(attention);
    }
}
