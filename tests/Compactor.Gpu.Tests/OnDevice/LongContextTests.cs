using System.Runtime.InteropServices;
using Compactor.Gpu.Tests.Support;
using Compactor.Native;
using Compactor.Native.Compression;
using Compactor.Native.Cpu;
using Compactor.Native.Tests.Support;
using Xunit;

namespace Compactor.Gpu.Tests.OnDevice;

/// <summary>Long sequences beside the CPU backend: scores within the bound of short ones, what is kept and moved exactly. A short one shows on the emulator that the test itself is right.</summary>
[Collection(WholeDevice.Name)]
public class LongContextTests
{
    private const int QueryHeads = 4, KvHeads = 2, HeadDim = 64, ShortTokens = 600;
    private const double Bound = 2e-5;

    public static TheoryData<int, string> Cases => [.. from tokens in (int[])[ShortTokens, 32_768, 131_072, 1_048_576] from preset in (string[])["paper", "compactor-vllm"] select (tokens, preset)];

    [Theory]
    [MemberData(nameof(Cases))]
    public void A_layer_agrees_with_the_cpu(int tokens, string preset)
    {
        if (tokens > ShortTokens)
            Device.RequireGpu($"computes {tokens} tokens in a moment");
        using var cpu = new CpuBackend();
        using var device = new Device();
        var shape = new LayerShape([0, tokens], QueryHeads, KvHeads, HeadDim, ElementType.BFloat16);
        var plan = new LayerPlan(shape, CompressionPresets.ByName[preset], Budget.Retention(0.25));
        byte[] preRope = Draw(1, tokens * KvHeads, 64), query = Draw(2, tokens * QueryHeads, 512), key = Draw(3, tokens * KvHeads, 64), value = Draw(4, tokens * KvHeads, 64);
        LayerInputs host = new()
        {
            KeyPreRope = View(preRope, tokens, KvHeads),
            Query = View(query, tokens, QueryHeads),
            Key = View(key, tokens, KvHeads),
            Value = View(value, tokens, KvHeads),
        }, inputs = device.Copy(host);

        using BackendBuffer<float> leverage = cpu.Allocate<float>(shape.Pairs), attention = cpu.Allocate<float>(shape.Pairs), scores = cpu.Allocate<float>(shape.Pairs);
        using BackendBuffer<int> indices = cpu.Allocate<int>(plan.KeptPairs), offsets = cpu.Allocate<int>(KvHeads + 1);
        using var survivors = cpu.Allocate<byte>(plan.KeptPairs * HeadDim * 2);
        cpu.Leverage(plan, host.KeyPreRope!.Value, null, plan.Sketch, leverage.View);
        cpu.AttentionScores(plan, host.Query!.Value, host.Key, attention.View);
        cpu.Fuse(plan, leverage.View, attention.View, host.Value, scores.View);
        cpu.Select(plan, scores.View, indices.View, offsets.View);
        cpu.Compact(plan, host.Key, indices.View, offsets.View, survivors.View);

        // Each stage on the CPU's results of the one before, so that one bound holds for each.
        BufferView<float> deviceLeverage = device.New<float>(shape.Pairs), deviceAttention = device.New<float>(shape.Pairs), deviceScores = device.New<float>(shape.Pairs);
        BufferView<int> deviceIndices = device.New<int>(plan.KeptPairs), deviceOffsets = device.New<int>(KvHeads + 1);
        var deviceSurvivors = device.New<byte>(plan.KeptPairs * HeadDim * 2);
        device.Backend.Leverage(plan, inputs.KeyPreRope!.Value, null, plan.Sketch, deviceLeverage);
        device.Backend.AttentionScores(plan, inputs.Query!.Value, inputs.Key, deviceAttention);
        device.Backend.Fuse(plan, device.Copy<float>(leverage.View.AsSpan()), device.Copy<float>(attention.View.AsSpan()), inputs.Value, deviceScores);
        device.Backend.Select(plan, device.Copy<float>(scores.View.AsSpan()), deviceIndices, deviceOffsets);
        device.Backend.Compact(plan, inputs.Key, deviceIndices, deviceOffsets, deviceSurvivors);
        using (var status = device.Backend.TakeStatus(plan))
            status.ThrowIfFailed();
        Assert.InRange(Arrays.RelativeError(device.Backend.Read(deviceLeverage), leverage.View.AsSpan()), 0, Bound);
        Assert.InRange(Arrays.RelativeError(device.Backend.Read(deviceAttention), attention.View.AsSpan()), 0, Bound);
        float[] fused = device.Backend.Read(deviceScores);
        Assert.Equal(scores.View.AsSpan().ToArray().Count(float.IsPositiveInfinity), fused.Count(float.IsPositiveInfinity));
        Assert.InRange(Arrays.RelativeError([.. fused.Where(float.IsFinite)], [.. scores.View.AsSpan().ToArray().Where(float.IsFinite)]), 0, Bound);
        Assert.True(device.Backend.Read(deviceOffsets).AsSpan().SequenceEqual(offsets.View.AsSpan()), "offsets of what is kept differ");
        Assert.True(device.Backend.Read(deviceIndices).AsSpan().SequenceEqual(indices.View.AsSpan()), "what is kept differs");
        Assert.True(device.Backend.Read(deviceSurvivors).AsSpan().SequenceEqual(survivors.View.AsSpan()), "survivors differ");
        GC.KeepAlive((preRope, query, key, value));
    }

    private static TensorView View(byte[] rows, int tokens, int heads) => TensorView.Packed(Arrays.Address(rows), ElementType.BFloat16, tokens, heads, HeadDim);

    /// <summary>Rows of multiples of <c>1 / divisor</c> from -128 to 127: exact in bfloat16, and drawn in any order.</summary>
    private static byte[] Draw(ulong seed, int rows, float divisor)
    {
        ushort[] levels = [.. Enumerable.Range(0, 256).Select(level => (ushort)(BitConverter.SingleToUInt32Bits((level - 128) / divisor) >> 16))];
        byte[] bytes = GC.AllocateUninitializedArray<byte>(checked(rows * HeadDim * 2), pinned: true);
        Parallel.For(0, rows, row =>
        {
            var elements = MemoryMarshal.Cast<byte, ushort>(bytes.AsSpan(row * HeadDim * 2, HeadDim * 2));
            var state = new SplitMix(seed << 32 | (uint)row);
            for (int i = 0; i < HeadDim; i += 8)
            {
                ulong bits = state.Next();
                for (int j = 0; j < 8; j++)
                    elements[i + j] = levels[(byte)(bits >> 8 * j)];
            }
        });
        return bytes;
    }
}
