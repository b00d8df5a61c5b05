using System.Diagnostics;
using System.Text.Json;
using System.Text.Json.Nodes;
using Compactor.Native;
using Compactor.Native.Compression;
using Compactor.Native.Cpu;

namespace Compactor.Bench;

/// <summary>
/// One layer's scores, ours against PyTorch's, taking turns in one run: results are checked to agree first, then pairs are timed and the ratios'
/// median is what counts.
/// </summary>
internal static class PeerComparison
{
    /// <summary>Untimed runs of ours: the JIT replaces its first, quick code only after some calls. The peer's tuning warms it up.</summary>
    private const int WarmUps = 20;

    public static int Run(int tokens, int pairs, int threads, string python, string? json)
    {
        if (!PyTorchPeer.IsInstalled(python))
        {
            Console.Error.WriteLine($"{python} has no torch and numpy; install them with: apt-get install python3-torch python3-numpy libopenblas0-pthread");
            return 1;
        }
        var options = CompressionPresets.Paper;
        if (tokens % options.AttentionChunk != 0)
        {
            Console.Error.WriteLine($"--tokens is {tokens}; use a multiple of {options.AttentionChunk}, so that the PyTorch formula needs no padding.");
            return 1;
        }
        using var backend = new CpuBackend(threads);
        using var layer = new BenchLayer(backend, tokens);
        var plan = new LayerPlan(layer.Shape, options, Budget.Retention(0.5));
        var sketch = Sketch.Draw(layer.Shape, options);
        var folder = Directory.CreateTempSubdirectory("compactor-peer-");
        try
        {
            WriteInputs(folder.FullName, layer, options, sketch);
            using var peer = new PyTorchPeer(python, Path.Combine(AppContext.BaseDirectory, "peers", "pytorch_scores.py"), folder.FullName);
            Console.WriteLine($"ours: {backend.Description}; Hq {layer.Shape.QueryHeads}, Hkv {layer.Shape.KvHeads}, D {layer.Shape.HeadDim}, N {tokens}, C {options.AttentionChunk}, k {options.SketchDimension}, float32");
            var tuned = peer.Ask("tune");
            Console.WriteLine($"peer: PyTorch {tuned.GetProperty("torch")}, {tuned.GetProperty("threads")} thread(s), {tuned.GetProperty("variant")} over {tuned.GetProperty("chunks_at_once")} chunk(s) at once: the fastest of {tuned.GetProperty("timings").GetArrayLength()} timed");

            float[] ours = [];
            for (int warmUp = 0; warmUp < WarmUps; warmUp++)
                ours = Time(backend, plan, layer, sketch, new StageTimes()).Scores;
            peer.Ask("scores");
            double error = RelativeError(ours, ReadFloats(Path.Combine(folder.FullName, "peer_scores.bin")));
            Console.WriteLine($"agreement of fused scores: relative L2 difference {error:E1}");
            if (!(error < 1e-4))
            {
                Console.Error.WriteLine("The two disagree; nothing was timed.");
                return 1;
            }

            var ratios = new List<double>();
            var (mine, theirs, stages) = (new List<double>(), new List<double>(), new StageTimes());
            for (int pair = 0; pair < pairs; pair++)
            {
                mine.Add(Time(backend, plan, layer, sketch, stages).Seconds);
                theirs.Add(peer.Ask("run").GetProperty("seconds").GetDouble());
                ratios.Add(theirs[^1] / mine[^1]);
                Console.WriteLine($"pair {pair + 1,2}: ours {mine[^1] * 1e3,7:F1} ms, PyTorch {theirs[^1] * 1e3,7:F1} ms, ratio {ratios[^1]:F2}");
            }
            double total = (stages.Leverage + stages.Attention + stages.Fuse).TotalSeconds;
            string shares = $"leverage {stages.Leverage.TotalSeconds / total:P0}, attention {stages.Attention.TotalSeconds / total:P0}, fuse {stages.Fuse.TotalSeconds / total:P0}";
            Console.WriteLine($"our stages: {shares}; workspace at most {backend.PeakWorkspaceBytes / 1e6:F1} MB");
            Console.WriteLine($"median ratio {Median(ratios):F2} (smallest {ratios.Min():F2}, largest {ratios.Max():F2}, {pairs} pairs): PyTorch takes that many times as long");
            if (json is not null)
                WriteResult(json, tokens, threads, backend, tuned, error, ratios, mine, theirs);
            return 0;
        }
        finally
        {
            folder.Delete(recursive: true);
        }
    }

    private static (double Seconds, float[] Scores) Time(CpuBackend backend, LayerPlan plan, BenchLayer layer, Sketch sketch, StageTimes stages)
    {
        using var selection = LayerCompressor.Select(backend, plan, layer.Inputs, sketch: sketch);
        var times = selection.Times;
        stages.Leverage += times.Leverage;
        stages.Attention += times.Attention;
        stages.Fuse += times.Fuse;
        return ((times.Leverage + times.Attention + times.Fuse).TotalSeconds, selection.Scores!.View.AsSpan().ToArray());
    }

    private static unsafe void WriteInputs(string folder, BenchLayer layer, CompressionOptions options, Sketch sketch)
    {
        Write("key_pre_rope", layer.Inputs.KeyPreRope!.Value);
        Write("query", layer.Inputs.Query!.Value);
        Write("key", layer.Inputs.Key);
        using (var phi = File.Create(Path.Combine(folder, "phi.bin")))
            phi.Write(System.Runtime.InteropServices.MemoryMarshal.AsBytes(sketch.Of(0, 0)));
        File.WriteAllText(Path.Combine(folder, "shape.json"), new JsonObject
        {
            ["tokens"] = layer.Shape.Tokens,
            ["query_heads"] = layer.Shape.QueryHeads,
            ["kv_heads"] = layer.Shape.KvHeads,
            ["head_dim"] = layer.Shape.HeadDim,
            ["sketch"] = options.SketchDimension,
            ["chunk"] = options.AttentionChunk,
            ["epsilon"] = options.Epsilon,
            ["lambda"] = options.LeverageWeight.Fixed,
            ["protect_first"] = options.ProtectFirst,
            ["protect_last"] = options.ProtectLast,
        }.ToJsonString());

        void Write(string name, TensorView view)
        {
            using var file = File.Create(Path.Combine(folder, name + ".bin"));
            file.Write(new ReadOnlySpan<byte>((void*)view.Address, checked(view.Tokens * view.Heads * view.Dim * sizeof(float))));
        }
    }

    private static float[] ReadFloats(string path) => System.Runtime.InteropServices.MemoryMarshal.Cast<byte, float>(File.ReadAllBytes(path)).ToArray();

    private static double RelativeError(float[] a, float[] b)
    {
        double difference = 0, norm = 0;
        for (int i = 0; i < a.Length; i++)
        {
            if (float.IsPositiveInfinity(a[i]) && float.IsPositiveInfinity(b[i]))
                continue;
            difference += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
            norm += (double)b[i] * b[i];
        }
        return Math.Sqrt(difference / norm);
    }

    private static double Median(List<double> values)
    {
        double[] sorted = [.. values.Order()];
        return (sorted[(sorted.Length - 1) / 2] + sorted[sorted.Length / 2]) / 2;
    }

    private static void WriteResult(string path, int tokens, int threads, CpuBackend backend, JsonElement tuned, double error,
        List<double> ratios, List<double> mine, List<double> theirs)
    {
        var result = new JsonObject
        {
            ["benchmark"] = "scores of one layer, float32, Paper preset, against PyTorch",
            ["date"] = DateTime.UtcNow.ToString("yyyy-MM-dd"),
            ["commit"] = Commit(),
            ["cpu"] = File.ReadLines("/proc/cpuinfo").FirstOrDefault(l => l.StartsWith("model name", StringComparison.Ordinal))?.Split(':', 2)[1].Trim(),
            ["cores"] = Environment.ProcessorCount,
            ["dotnet"] = Environment.Version.ToString(),
            ["tokens"] = tokens,
            ["threads"] = threads,
            ["simd_bits"] = (int)backend.Width,
            ["peer"] = JsonNode.Parse(tuned.GetRawText()),
            ["relative_difference"] = error,
            ["workspace_bytes"] = backend.PeakWorkspaceBytes,
            ["ours_seconds"] = new JsonArray([.. mine.Select(x => (JsonNode)x)]),
            ["peer_seconds"] = new JsonArray([.. theirs.Select(x => (JsonNode)x)]),
            ["ratios"] = new JsonArray([.. ratios.Select(x => (JsonNode)x)]),
            ["median_ratio"] = Median(ratios),
        };
        File.WriteAllText(path, result.ToJsonString(new JsonSerializerOptions { WriteIndented = true }) + "\n");
    }

    private static string? Commit()
    {
        using var git = Process.Start(new ProcessStartInfo("git", ["rev-parse", "--short", "HEAD"]) { RedirectStandardOutput = true, RedirectStandardError = true });
        string commit = git!.StandardOutput.ReadToEnd().Trim();
        git.WaitForExit();
        return git.ExitCode == 0 ? commit : null;
    }
}
