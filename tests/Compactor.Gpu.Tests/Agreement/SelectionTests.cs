using Compactor.Gpu.Tests.Support;
using Compactor.Native;
using Compactor.Native.Compression;
using Compactor.Native.Cpu;
using Compactor.Native.Reference;
using Compactor.Native.Tests.Support;
using Xunit;

namespace Compactor.Gpu.Tests.Agreement;

/// <summary>Fusion and selection of the kernels beside the reference: fused scores to rounding, kept tokens exactly, on the same scores.</summary>
public class SelectionTests
{
    private static readonly int[] s_lengths = [700, 0, 1, 33, 25];

    public static TheoryData<string, SelectionScope> Presets => [.. from preset in CompressionPresets.ByName.Keys from scope in Enum.GetValues<SelectionScope>() select (preset, scope)];

    [Fact]
    public void More_heads_than_a_block_has_threads_are_refused_by_name()
    {
        var layer = TestLayer.Random(1, [3], 257, 257, 64, ElementType.BFloat16);
        var plan = new LayerPlan(layer.Shape, CompressionPresets.Paper, Budget.Retention(0.5));
        using var device = new Device();
        var scores = device.New<float>(plan.Shape.Pairs);
        var (indices, offsets) = KeptLists(device, plan);
        Assert.Contains("257 KV heads; the cuda backend fuses and selects the scores of up to 256",
            Assert.Throws<CompactorException>(() => device.Backend.Select(plan, scores, indices, offsets)).Message);
    }

    [Theory]
    [MemberData(nameof(Presets))]
    public void Fused_scores_agree_and_selection_is_identical(string preset, SelectionScope scope)
    {
        var layer = TestLayer.Random(1, s_lengths, 4, 2, 64, ElementType.BFloat16);
        var options = CompressionPresets.ByName[preset] with { SelectionScope = scope };
        var plan = new LayerPlan(layer.Shape, options, Budget.Retention(0.3));
        var random = new Random(3);
        float[] leverage = Draw(random, plan.Shape.Pairs), attention = Draw(random, plan.Shape.Pairs);
        using var device = new Device();
        using var reference = new ReferenceBackend();
        foreach (var (withLeverage, withAttention) in ((bool, bool)[])[(true, true), (true, false), (false, true)])
        {
            var scores = device.New<float>(plan.Shape.Pairs);
            device.Backend.Fuse(plan, withLeverage ? device.Copy<float>(leverage) : null, withAttention ? device.Copy<float>(attention) : null, device.Copy(layer.Inputs.Value), scores);
            var (indices, offsets) = KeptLists(device, plan);
            device.Backend.SelectFused(plan, scores, indices, offsets);
            using var status = device.Backend.TakeStatus(plan);
            status.ThrowIfFailed();
            float[] actual = device.Backend.Read(scores);
            AssertKept(device, plan, actual, indices, offsets);
            float[] expected = Fuse(reference, plan, withLeverage ? leverage : null, withAttention ? attention : null, layer.Inputs.Value);
            Assert.Equal(expected.Select(float.IsPositiveInfinity), actual.Select(float.IsPositiveInfinity));
            Assert.InRange(Arrays.RelativeError([.. actual.Where(float.IsFinite)], [.. expected.Where(float.IsFinite)]), 0, 1e-6);
            AssertSelection(device, plan, actual);
        }
        GC.KeepAlive(layer);
    }

    [Theory]
    [InlineData(SelectionScope.Sequence, 0)]
    [InlineData(SelectionScope.Sequence, 7)]
    [InlineData(SelectionScope.Head, 0)]
    [InlineData(SelectionScope.Token, 0)]
    public void Equal_scores_go_to_the_lower_token_and_head(SelectionScope scope, int minimum)
    {
        var shape = new LayerShape(TestLayer.Offsets(s_lengths), 0, 3, 64, ElementType.BFloat16);
        var random = new Random(4);
        foreach (double retention in (double[])[0, 0.01, 0.5, 0.99])
        {
            var plan = new LayerPlan(shape, CompressionPresets.Paper with { SelectionScope = scope, MinTokensPerHead = minimum, ProtectFirst = 1, ProtectLast = 2 }, Budget.Retention(retention));
            using var device = new Device(seed: 5);
            AssertSelection(device, plan, new float[shape.Pairs]);
            AssertSelection(device, plan, [.. Enumerable.Range(0, shape.Pairs).Select(_ => (float)random.Next(-1, 2))]);
            AssertSelection(device, plan, [.. Enumerable.Range(0, shape.Pairs).Select(_ => random.Next(5) switch { 0 => -0f, 1 => 0f, 2 => float.NaN, 3 => float.PositiveInfinity, _ => float.NegativeInfinity })]);
        }
    }

    [Fact]
    public void Scores_that_are_not_finite_are_counted_and_the_first_is_named()
    {
        var shape = new LayerShape([0, 50, 90], 0, 2, 64, ElementType.BFloat16) { Layer = 4 };
        var plan = new LayerPlan(shape, CompressionPresets.Paper, Budget.Retention(0.5));
        float[] leverage = Draw(new Random(5), shape.Pairs);
        leverage[(50 + 30) * 2 + 1] = float.PositiveInfinity;
        leverage[(50 + 12) * 2 + 1] = float.NaN;
        using var device = new Device();
        device.Backend.Fuse(plan, device.Copy<float>(leverage), null, default, device.New<float>(shape.Pairs));
        using var status = device.Backend.TakeStatus(plan);
        Assert.Contains("Layer 4: 2 scores are not finite, the first at token 12 of sequence 1, head 1", Assert.Throws<CompactorException>(status.ThrowIfFailed).Message);
    }

    [Fact]
    public void Heads_of_different_lengths_are_fused_and_selected()
    {
        var shape = LayerShape.Ragged([600, 0, 31, 5, 77, 1], 3, 64, ElementType.BFloat16);
        var random = new Random(6);
        foreach (var scope in (SelectionScope[])[SelectionScope.Sequence, SelectionScope.Head])
            foreach (var normalization in Enum.GetValues<NormalizationScope>())
            {
                var options = CompressionPresets.Paper with { SelectionScope = scope, LeverageScope = normalization, LeverageChunk = 64, ProtectFirst = 2, ProtectLast = 1, MinTokensPerHead = 3 };
                var plan = new LayerPlan(shape, options, Budget.Retention(0.4));
                float[] leverage = Draw(random, shape.Pairs);
                using var device = new Device();
                using var cpu = new CpuBackend(1);
                var scores = device.New<float>(shape.Pairs);
                var (indices, offsets) = KeptLists(device, plan);
                device.Backend.Fuse(plan, device.Copy<float>(leverage), null, default, scores);
                device.Backend.SelectFused(plan, scores, indices, offsets);
                AssertKept(device, plan, device.Backend.Read(scores), indices, offsets);
                float[] actual = device.Backend.Read(scores), expected = Fuse(cpu, plan, leverage, null, default);
                Assert.Equal(expected.Select(float.IsPositiveInfinity), actual.Select(float.IsPositiveInfinity));
                Assert.InRange(Arrays.RelativeError([.. actual.Where(float.IsFinite)], [.. expected.Where(float.IsFinite)]), 0, 1e-6);
                AssertSelection(device, plan, actual);
            }
    }

    private static void AssertSelection(Device device, LayerPlan plan, float[] scores)
    {
        var (indices, offsets) = KeptLists(device, plan);
        device.Backend.Select(plan, device.Copy<float>(scores), indices, offsets);
        AssertKept(device, plan, scores, indices, offsets);
    }

    private static (BufferView<int> Indices, BufferView<int> Offsets) KeptLists(Device device, LayerPlan plan) =>
        (device.New<int>(plan.KeptPairs), device.New<int>(plan.Shape.Sequences * plan.Shape.KvHeads + 1));

    private static void AssertKept(Device device, LayerPlan plan, float[] scores, BufferView<int> indices, BufferView<int> offsets)
    {
        using var cpu = new CpuBackend(1);
        using var expectedScores = cpu.Allocate<float>(scores.Length);
        using var expectedIndices = cpu.Allocate<int>(plan.KeptPairs);
        using var expectedOffsets = cpu.Allocate<int>(offsets.Length);
        scores.CopyTo(expectedScores.View.AsSpan());
        cpu.Select(plan, expectedScores.View, expectedIndices.View, expectedOffsets.View);
        Assert.Equal(expectedOffsets.View.AsSpan().ToArray(), device.Backend.Read(offsets));
        Assert.Equal(expectedIndices.View.AsSpan().ToArray(), device.Backend.Read(indices));
    }

    private static float[] Fuse(KvBackend backend, LayerPlan plan, float[]? leverage, float[]? attention, TensorView value)
    {
        using var o = leverage is null ? null : Copy(leverage);
        using var a = attention is null ? null : Copy(attention);
        using var scores = backend.Allocate<float>(plan.Shape.Pairs);
        backend.Fuse(plan, o?.View, a?.View, value, scores.View);
        return scores.View.AsSpan().ToArray();

        BackendBuffer<float> Copy(float[] values)
        {
            var buffer = backend.Allocate<float>(values.Length);
            values.CopyTo(buffer.View.AsSpan());
            return buffer;
        }
    }

    private static float[] Draw(Random random, int count) => [.. Enumerable.Range(0, count).Select(_ => (float)(random.NextDouble() * random.NextDouble()))];
}
