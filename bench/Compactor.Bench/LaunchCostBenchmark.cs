using System.Diagnostics;
using System.Text.Json.Nodes;
using Compactor.Native;
using Compactor.Native.Compression;
using Compactor.Native.Gpu;

namespace Compactor.Bench;

/// <summary>What compressing one layer on a GPU costs the host's thread: scores, fusion, selection and compaction of keys and values, on a device that does nothing.</summary>
internal static class LaunchCostBenchmark
{
    private const int Tokens = 32_768, QueryHeads = 32, KvHeads = 8, Dim = 128, WarmupRepeats = 50, Layers = 1000;

    public static int Run(int repeats, string? json)
    {
        var result = BenchResult.New($"host time of one layer's compression on a device that does nothing: N {Tokens}, Hq {QueryHeads}, Hkv {KvHeads}, D {Dim}, bfloat16");
        result["repeats"] = repeats;
        result["layers_a_repeat"] = Layers;
        var presets = new JsonObject();
        foreach (var (name, options) in CompressionPresets.ByName)
        {
            var (launches, bytes, microseconds) = Measure(options, repeats);
            Console.WriteLine($"{name}: {launches} launches, {BenchResult.Median(microseconds):F1} us a layer (median of {repeats} runs of {Layers}, {microseconds.Min():F1} to {microseconds.Max():F1}), {bytes} bytes allocated");
            presets[name] = new JsonObject { ["launches"] = launches, ["allocated_bytes"] = bytes, ["microseconds"] = BenchResult.Values(microseconds), ["median_microseconds"] = BenchResult.Median(microseconds) };
        }
        result["presets"] = presets;
        if (json is not null)
            BenchResult.Save(result, json);
        return 0;
    }

    private static (int Launches, long Bytes, List<double> Microseconds) Measure(CompressionOptions options, int repeats)
    {
        var driver = new NullDriver();
        using var backend = new GpuBackend(driver, driver.CreateStream());
        var plan = new LayerPlan(new LayerShape([0, Tokens], QueryHeads, KvHeads, Dim, ElementType.BFloat16), options, Budget.Retention(0.5));
        TensorView Rows(int heads) => TensorView.Packed(driver.Allocate(2L * Tokens * heads * Dim, null!), ElementType.BFloat16, Tokens, heads, Dim);
        var inputs = new LayerInputs { Key = Rows(KvHeads), KeyPreRope = Rows(KvHeads), Value = Rows(KvHeads), Query = Rows(QueryHeads) };
        using var workspace = backend.Allocate<byte>(LayerMemory.WorkspaceBytes(plan));
        using var indices = backend.Allocate<int>(plan.KeptPairs);
        using var offsets = backend.Allocate<int>(KvHeads + 1);
        using BackendBuffer<byte> keys = backend.Allocate<byte>(plan.KeptPairs * Dim * 2), values = backend.Allocate<byte>(plan.KeptPairs * Dim * 2);
        var memory = new LayerMemory(workspace.View, indices.View, offsets.View);
        backend.Prepare(plan, inputs);

        void Layer()
        {
            LayerCompressor.Queue(backend, plan, inputs, memory);
            backend.Compact(plan, inputs.Key, memory.KeptIndices, memory.KeptOffsets, keys.View);
            backend.Compact(plan, inputs.Value, memory.KeptIndices, memory.KeptOffsets, values.View);
        }

        int before = driver.Launches;
        Layer();
        int launches = driver.Launches - before;
        var microseconds = new List<double>();
        long bytes = 0;
        for (int repeat = -WarmupRepeats; repeat < repeats; repeat++)
        {
            long allocated = GC.GetAllocatedBytesForCurrentThread(), start = Stopwatch.GetTimestamp();
            for (int layer = 0; layer < Layers; layer++)
                Layer();
            double time = Stopwatch.GetElapsedTime(start).TotalMicroseconds / Layers;
            bytes = (GC.GetAllocatedBytesForCurrentThread() - allocated) / Layers;
            if (repeat >= 0)
                microseconds.Add(time);
        }
        backend.TakeStatus(plan).Dispose();
        return (launches, bytes, microseconds);
    }
}
