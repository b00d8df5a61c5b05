using System.Diagnostics;
using System.Text.Json.Nodes;
using Compactor.Native.Cpu;

namespace Compactor.Bench.Peers;

/// <summary>
/// Ours and the peers', taking turns in one run: results are checked to agree first, then rounds are timed, and the median of the ratios of a round is what counts.
/// </summary>
/// <param name="Threads">Of the library.</param>
/// <param name="Python">For PyTorch, and to export graphs.</param>
/// <param name="Pairs">Rounds.</param>
internal sealed record PeerComparison(int Threads, Python Python, int Pairs)
{
    /// <summary>Untimed runs of ours: the JIT replaces its first, quick code only after some calls. Tuning warms a peer up.</summary>
    private const int WarmUps = 20;

    /// <summary>Of the order of sides, drawn anew for each round.</summary>
    private const int Seed = 1;

    /// <summary>A peer whose median is so many times what its tuning found was disturbed.</summary>
    private const double Disturbed = 1.5;

    /// <summary>Untimed rounds.</summary>
    private const int WarmUpRounds = 3;

    /// <summary>Compares subjects one after the other, disposes them, and writes one result of them all.</summary>
    /// <returns>An exit code: 1 where results disagree; nothing is written then.</returns>
    public int Execute(IEnumerable<Func<CpuBackend, Subject>> subjects, string? json)
    {
        var result = BenchResult.New("CPU stages beside peers");
        result["openblas_seconds"] = Python.OpenBlas;
        var comparisons = new JsonArray();
        result["comparisons"] = comparisons;
        foreach (var make in subjects)
        {
            using var backend = new CpuBackend(Threads);
            using var subject = make(backend);
            (result["threads"], result["simd_bits"]) = (backend.Threads, (int)backend.Width);
            if (Compare(subject, backend) is not { } compared)
                return 1;
            compared.ForEach(comparison => comparisons.Add((JsonNode)comparison));
        }
        if (json is not null)
            BenchResult.Save(result, json);
        return 0;
    }

    private List<JsonObject>? Compare(Subject subject, CpuBackend backend)
    {
        Console.WriteLine($"\n{subject.Name}; ours: {backend.Description}");
        using var folder = new PeerFolder(subject, backend.Threads);
        var pyTorch = new PyTorchPeer(Python, folder, subject.Script);
        List<Peer> peers = [pyTorch];
        try
        {
            if (subject.HasOnnxGraph)
                peers.Add(new OnnxRuntimePeer(pyTorch, folder, subject, backend.Threads));
            else
                Console.WriteLine("ONNX Runtime: not compared; the Cholesky factorisation of leverage is no standard operator");
            return Compare(subject, backend, peers);
        }
        finally
        {
            peers.ForEach(peer => peer.Dispose());
        }
    }

    private List<JsonObject>? Compare(Subject subject, CpuBackend backend, List<Peer> peers)
    {
        for (int warmUp = 0; warmUp < WarmUps; warmUp++)
            subject.Run();
        float[] ours = subject.Outputs();
        var compared = new List<JsonObject>();
        foreach (var peer in peers)
        {
            var tuned = peer.Tune();
            Console.WriteLine($"{peer.Name} {tuned["version"]}, {tuned["threads"]} thread(s){(tuned["vectors"] is { } vectors ? $", vectors of {vectors}" : "")}, {tuned["variant"]}: the fastest of {tuned["timings"]!.AsArray().Count} timed");
            double difference = RelativeDifference(ours, peer.Outputs());
            if (!(difference <= subject.Tolerance))
            {
                Console.Error.WriteLine($"{subject.Name}: ours and {peer.Name}'s differ by {difference:E1} (relative L2), more than {subject.Tolerance}; nothing was timed.");
                return null;
            }
            Console.WriteLine($"agreement: relative L2 difference {difference:E1}");
            tuned.Insert(0, "name", peer.Name);
            compared.Add(new() { ["benchmark"] = subject.Name, ["dimensions"] = subject.Dimensions.DeepClone(), ["peer"] = tuned, ["relative_difference"] = difference });
        }
        var mine = new double[Pairs];
        double[][] theirs = [.. peers.Select(_ => new double[Pairs])];
        int[] order = [.. Enumerable.Range(-1, peers.Count + 1)]; // -1 is ours
        var random = new Random(Seed);
        for (int pair = -WarmUpRounds; pair < Pairs; pair++)
        {
            random.Shuffle(order);
            foreach (int side in order)
            {
                Thread.Sleep(Peer.Pause);
                double seconds = side < 0 ? Seconds(subject) : peers[side].Seconds();
                if (pair >= 0)
                    (side < 0 ? mine : theirs[side])[pair] = seconds;
            }
            if (pair < 0)
                continue;
            Console.WriteLine($"round {pair + 1,2}: ours {mine[pair] * 1e3,8:F2} ms" + string.Concat(peers.Select((peer, i) => $", {peer.Name} {theirs[i][pair] * 1e3,8:F2} ms ({theirs[i][pair] / mine[pair]:F2})")));
        }
        for (int i = 0; i < peers.Count; i++)
        {
            double[] ratios = [.. theirs[i].Zip(mine, (their, my) => their / my)];
            compared[i]["workspace_bytes"] = backend.PeakWorkspaceBytes;
            compared[i]["ours_seconds"] = BenchResult.Values(mine);
            compared[i]["peer_seconds"] = BenchResult.Values(theirs[i]);
            compared[i]["ratios"] = BenchResult.Values(ratios);
            compared[i]["median_ratio"] = BenchResult.Median(ratios);
            double overTuned = BenchResult.Median(theirs[i]) / compared[i]["peer"]!["seconds"]!.GetValue<double>();
            compared[i]["peer_over_tuned"] = overTuned;
            if (overTuned > Disturbed)
                Console.Error.WriteLine($"{subject.Name}: {peers[i].Name} took {overTuned:F1} times what it took while its way was chosen; the machine does other work, and the ratio says little.");
            Console.WriteLine($"median ratio {BenchResult.Median(ratios):F2} (smallest {ratios.Min():F2}, largest {ratios.Max():F2}, {Pairs} rounds): {peers[i].Name} takes that many times as long");
        }
        return compared;
    }

    private static double Seconds(Subject subject)
    {
        long start = Stopwatch.GetTimestamp();
        subject.Run();
        return Stopwatch.GetElapsedTime(start).TotalSeconds;
    }

    private static double RelativeDifference(float[] a, float[] b)
    {
        if (a.Length != b.Length)
            return double.PositiveInfinity;
        double difference = 0, norm = 0;
        for (int i = 0; i < a.Length; i++)
            if (!float.IsPositiveInfinity(a[i]) || !float.IsPositiveInfinity(b[i]))
            {
                difference += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
                norm += (double)b[i] * b[i];
            }
        return Math.Sqrt(difference / norm);
    }
}
