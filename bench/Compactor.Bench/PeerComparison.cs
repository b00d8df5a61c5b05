using System.Text.Json;
using System.Text.Json.Nodes;
using Compactor.Native.Cpu;

namespace Compactor.Bench;

/// <summary>
/// Ours against PyTorch's, taking turns in one run: results are checked to agree first, then pairs are timed and the ratios' median is what counts.
/// </summary>
internal static class PeerComparison
{
    /// <summary>Untimed runs of ours: the JIT replaces its first, quick code only after some calls. The peer's tuning warms it up.</summary>
    private const int WarmUps = 20;

    /// <summary>What a comparison needs to know of its subject.</summary>
    /// <param name="Name">What is computed, on what.</param>
    /// <param name="Dimensions">Dimensions, for the result file.</param>
    /// <param name="Run">Runs ours once and returns its seconds and result.</param>
    /// <param name="Tolerance">Largest relative L2 difference of the two results.</param>
    public sealed record Subject(string Name, JsonObject Dimensions, Func<(double Seconds, float[] Outputs)> Run, double Tolerance);

    /// <returns>An exit code: 1 when the two disagree.</returns>
    public static int Execute(Subject subject, CpuBackend backend, PyTorchPeer peer, int pairs, string? json)
    {
        Console.WriteLine($"{subject.Name}\nours: {backend.Description}");
        var tuned = peer.Tune();
        Console.WriteLine($"peer: PyTorch {tuned.GetProperty("torch")}, {tuned.GetProperty("threads")} thread(s), {tuned.GetProperty("variant")}: the fastest of {tuned.GetProperty("timings").GetArrayLength()} timed");
        float[] ours = [];
        for (int warmUp = 0; warmUp < WarmUps; warmUp++)
            ours = subject.Run().Outputs;
        double difference = RelativeDifference(ours, peer.Outputs());
        Console.WriteLine($"agreement: relative L2 difference {difference:E1}");
        if (!(difference < subject.Tolerance))
        {
            Console.Error.WriteLine("The two disagree; nothing was timed.");
            return 1;
        }
        var (mine, theirs, ratios) = (new List<double>(), new List<double>(), new List<double>());
        for (int pair = 0; pair < pairs; pair++)
        {
            mine.Add(subject.Run().Seconds);
            theirs.Add(peer.Seconds());
            ratios.Add(theirs[^1] / mine[^1]);
            Console.WriteLine($"pair {pair + 1,2}: ours {mine[^1] * 1e3,7:F1} ms, PyTorch {theirs[^1] * 1e3,7:F1} ms, ratio {ratios[^1]:F2}");
        }
        Console.WriteLine($"our workspace: at most {backend.PeakWorkspaceBytes / 1e6:F1} MB");
        Console.WriteLine($"median ratio {BenchResult.Median(ratios):F2} (smallest {ratios.Min():F2}, largest {ratios.Max():F2}, {pairs} pairs): PyTorch takes that many times as long");
        if (json is not null)
            BenchResult.Save(Result(subject, backend, tuned, difference, mine, theirs, ratios), json);
        return 0;
    }

    private static double RelativeDifference(float[] a, float[] b)
    {
        double difference = 0, norm = 0;
        for (int i = 0; i < a.Length; i++)
            if (!float.IsPositiveInfinity(a[i]) || !float.IsPositiveInfinity(b[i]))
            {
                difference += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
                norm += (double)b[i] * b[i];
            }
        return a.Length == b.Length ? Math.Sqrt(difference / norm) : double.PositiveInfinity;
    }

    private static JsonObject Result(Subject subject, CpuBackend backend, JsonElement tuned, double difference, List<double> mine, List<double> theirs, List<double> ratios)
    {
        var result = BenchResult.New(subject.Name);
        result["dimensions"] = subject.Dimensions.DeepClone();
        result["threads"] = backend.Threads;
        result["simd_bits"] = (int)backend.Width;
        result["peer"] = JsonNode.Parse(tuned.GetRawText());
        result["relative_difference"] = difference;
        result["workspace_bytes"] = backend.PeakWorkspaceBytes;
        result["ours_seconds"] = BenchResult.Values(mine);
        result["peer_seconds"] = BenchResult.Values(theirs);
        result["ratios"] = BenchResult.Values(ratios);
        result["median_ratio"] = BenchResult.Median(ratios);
        return result;
    }
}
