using System.CommandLine;
using System.Diagnostics;
using System.Globalization;
using System.Text.Json.Nodes;
using Compactor.Native;
using Compactor.Native.Compression;
using Compactor.Native.Cpu;

namespace Compactor.Bench.Scaling;

/// <summary>A stage's time at every length, and the law fitted to the medians of the longer ones.</summary>
/// <param name="Name">The stage.</param>
/// <param name="Points">Tokens, and seconds of every repeat.</param>
/// <param name="Law">Fitted to lengths from <see cref="ScalingBenchmark.FittedFrom"/> on.</param>
internal sealed record StageScaling(string Name, IReadOnlyList<(int Tokens, double[] Seconds)> Points, PowerLaw Law);

/// <summary>Time of each CPU stage, and of all of them, against the number of tokens: reference layer, doubling.</summary>
internal static class ScalingBenchmark
{
    /// <summary>Untimed repeats of every length, and of the shortest before all: the JIT replaces its first, quick code only after tens of calls.</summary>
    private const int WarmUps = 3, FirstWarmUps = 50;

    /// <summary>Lengths below a sixteenth of the longest show what a call costs, not how a stage grows, and are not fitted.</summary>
    private const int FittedShare = 16;

    private const double CommonExponent = 1.1;

    public static Command NewCommand()
    {
        var from = BenchOptions.Count("--from", "Fewest tokens.", 1024, least: 64);
        var to = BenchOptions.Count("--to", "Most tokens; lengths double up to it.", 65_536, least: 256, most: BenchLayer.MostTokens);
        var repeats = BenchOptions.Count("--repeats", "Timed repeats of every length.", 7);
        var threads = BenchOptions.Threads();
        var width = BenchOptions.Number("--simd-bits", "Bits of a vector, 0 for the widest.", 0, bits => bits is 0 or 128 or 256 or 512 && CpuBackend.Supports((SimdWidth)bits), "0, 128, 256 or 512, as far as this machine has it");
        var type = new Option<ElementType>("--type") { Description = "Element type.", DefaultValueFactory = _ => ElementType.Float32 };
        type.AcceptOnlyFromAmong(nameof(ElementType.Float32), nameof(ElementType.Float16), nameof(ElementType.BFloat16));
        var json = BenchOptions.Json();
        var picture = BenchOptions.File("--picture", "Draw it to this file, a PNG.");
        var command = new Command("scaling", "Time of each CPU stage against the number of tokens.") { from, to, repeats, threads, width, type, json, picture };
        command.SetAction(parsed =>
        {
            var (first, last, count) = (parsed.GetValue(from), parsed.GetValue(to), parsed.GetValue(repeats));
            if (last < 4L * first)
            {
                Console.Error.WriteLine($"--from is {first}, --to is {last}; use four times as many at least as the most, so that there are three lengths to fit.");
                return 1;
            }
            return Run(first, last, count, parsed.GetValue(threads), (SimdWidth)parsed.GetValue(width), parsed.GetValue(type), parsed.GetValue(json), parsed.GetValue(picture));
        });
        return command;
    }

    /// <summary>The least number of tokens that is fitted: a sixteenth of the most, where that leaves three lengths.</summary>
    public static int FittedFrom(IReadOnlyList<int> lengths) => lengths.Where(n => n >= lengths[^1] / FittedShare).Min();

    private static int Run(int from, int to, int repeats, int threads, SimdWidth width, ElementType type, string? json, string? picture)
    {
        var lengths = new List<int>();
        for (long n = from; n <= to; n *= 2)
            lengths.Add((int)n);
        using var backend = new CpuBackend(threads, width);
        var samples = new Dictionary<string, List<(int Tokens, double[] Seconds)>>();
        Measure(backend, from, type, FirstWarmUps);
        foreach (int tokens in lengths)
        {
            Console.Error.WriteLine($"N {tokens} ...");
            foreach (var (name, seconds) in Measure(backend, tokens, type, repeats))
                (samples.TryGetValue(name, out var points) ? points : samples[name] = []).Add((tokens, seconds));
        }
        int fitted = FittedFrom(lengths);
        var stages = samples.Select(s => new StageScaling(s.Key, s.Value, PowerLaw.Fit([.. s.Value.Where(p => p.Tokens >= fitted).Select(p => ((double)p.Tokens, BenchResult.Median(p.Seconds)))]))).ToList();

        Console.WriteLine($"{backend.Description}, {type}; ms, medians of {repeats}, and the exponent of N from {fitted} on with its standard error");
        Console.WriteLine($"{"stage",-28}{string.Concat(lengths.Select(n => $"{n,10}"))}   exponent");
        foreach (var stage in stages)
            Console.WriteLine(string.Create(CultureInfo.InvariantCulture, $"{stage.Name,-28}{string.Concat(stage.Points.Select(p => $"{BenchResult.Median(p.Seconds) * 1e3,10:F3}"))}   ") +
                string.Create(CultureInfo.InvariantCulture, $"{stage.Law.Exponent:F2} +- {stage.Law.StandardError:F2}{(stage.Law.Exponent > CommonExponent ? "  more than linear" : "")}"));
        if (json is not null)
            BenchResult.Save(Result(backend, type, lengths, repeats, fitted, stages), json);
        if (picture is not null)
            File.WriteAllBytes(picture, ScalingPicture.Draw(stages, fitted, backend.Description, type));
        return 0;
    }

    /// <summary>Stages take turns, so that a slow moment hurts all of them.</summary>
    private static List<(string Name, double[] Seconds)> Measure(CpuBackend backend, int tokens, ElementType type, int repeats)
    {
        using var layer = new BenchLayer(backend, tokens, type);
        using var stages = new LayerStages(backend, layer, CompressionPresets.Paper);
        using var chunked = new LayerStages(backend, layer, CompressionPresets.Paper with { LeverageChunk = 512 });
        (string Name, Action Run)[] all =
        [
            ("leverage, whole sequence", stages.Leverage),
            ("leverage, chunk 512", chunked.Leverage),
            ("attention scores, C 256", stages.Attention),
            ("fuse", stages.Fuse),
            ("select", stages.Select),
            ("compact, r 0.5", stages.Compact),
            ("whole layer, paper, r 0.5", stages.WholeLayer),
        ];
        var seconds = all.Select(stage => (stage.Name, new double[repeats])).ToList();
        for (int repeat = -WarmUps; repeat < repeats; repeat++)
            for (int i = 0; i < all.Length; i++)
            {
                long start = Stopwatch.GetTimestamp();
                all[i].Run();
                if (repeat >= 0)
                    seconds[i].Item2[repeat] = Stopwatch.GetElapsedTime(start).TotalSeconds;
            }
        return seconds;
    }

    private static JsonObject Result(CpuBackend backend, ElementType type, List<int> lengths, int repeats, int fitted, List<StageScaling> stages)
    {
        var result = BenchResult.New($"time of CPU stages against tokens: Hq 32, Hkv 8, D 128, {type.ToString().ToLowerInvariant()}");
        result["threads"] = backend.Threads;
        result["simd_bits"] = (int)backend.Width;
        result["repeats"] = repeats;
        result["lengths"] = new JsonArray([.. lengths.Select(n => (JsonNode)n)]);
        result["fitted_from"] = fitted;
        result["stages"] = new JsonObject(stages.Select(stage => KeyValuePair.Create(stage.Name, (JsonNode?)new JsonObject
        {
            ["exponent"] = stage.Law.Exponent,
            ["exponent_standard_error"] = stage.Law.StandardError,
            ["lengths"] = new JsonObject(stage.Points.Select(p => KeyValuePair.Create($"N {p.Tokens}", (JsonNode?)new JsonObject { ["seconds"] = BenchResult.Values(p.Seconds) }))),
        })));
        return result;
    }
}
