using System.CommandLine;
using Compactor.Native.Compression;
using Compactor.Native.Cpu;

namespace Compactor.Bench.Peers;

/// <summary><c>peers NAME</c>: a stage, or all of them, beside PyTorch and ONNX Runtime.</summary>
internal static class PeerCommand
{
    private const int Multiple = 256, DefaultSequences = 4;

    public static Command New()
    {
        var tokens = Length("Tokens N", Multiple, 8192);
        var kept = Length("Kept tokens of a head", DecodeSubject.BlockSize, 4096);
        var sequences = BenchOptions.Count("--sequences", "Sequences of the batch.", DefaultSequences);
        var chunk = BenchOptions.Number("--chunk", "Tokens of a leverage chunk, 0 for the whole sequence.", 0, value => value is 0 or (>= 64 and <= 4096), "64 to 4096, or 0 for the whole sequence");
        var preset = new Option<string>("--preset") { Description = "Formulas of a published preset.", DefaultValueFactory = _ => "paper" };
        preset.AcceptOnlyFromAmong([.. CompressionPresets.ByName.Keys]);
        var pairs = BenchOptions.Count("--pairs", "Rounds to time.", 10);
        var threads = BenchOptions.Threads();
        var python = new Option<string>("--python") { Description = "Python with PyTorch.", DefaultValueFactory = _ => "/usr/bin/python3" };
        var json = BenchOptions.Json();

        return new Command("peers", "Stages of the CPU backend beside PyTorch and ONNX Runtime, taking turns in one run.")
        {
            Stage("scores", "Scores of one layer.", tokens, [preset], (n, parsed) => [backend => LayerSubjects.Scores(backend, n, parsed.GetValue(preset)!)]),
            Stage("leverage", "Leverage scores.", tokens, [chunk], (n, parsed) => [backend => LayerSubjects.Leverage(backend, n, parsed.GetValue(chunk))]),
            Stage("attention", "Attention scores.", tokens, [], (n, _) => [backend => LayerSubjects.Attention(backend, n)]),
            Stage("select", "Selection over a sequence's heads.", tokens, [], (n, _) => [backend => LayerSubjects.Select(backend, n)]),
            Stage("compact", "Gathering of kept keys and values.", tokens, [], (n, _) => [backend => LayerSubjects.Compact(backend, n)]),
            Stage("decode", "Decode attention over paged survivors; peers have a dense cache.", kept, [sequences], (n, parsed) => [backend => DecodeSubject.Make(backend, n, parsed.GetValue(sequences))]),
            Stage("all", "All of these, and all presets; half of the tokens are decoded from.", tokens, [], (n, _) =>
            [
                .. CompressionPresets.ByName.Keys.Select(name => (Func<CpuBackend, Subject>)(backend => LayerSubjects.Scores(backend, n, name))),
                backend => LayerSubjects.Leverage(backend, n, 0),
                backend => LayerSubjects.Leverage(backend, n, 512),
                backend => LayerSubjects.Attention(backend, n),
                backend => LayerSubjects.Select(backend, n),
                backend => LayerSubjects.Compact(backend, n),
                backend => DecodeSubject.Make(backend, n / 2, DefaultSequences),
            ]),
        };

        static Option<int> Length(string what, int multiple, int otherwise) => BenchOptions.Number("--tokens", $"{what}, a multiple of {multiple}.", otherwise,
            n => n >= multiple && n % multiple == 0 && n <= BenchLayer.MostTokens, $"a multiple of {multiple}, at most {BenchLayer.MostTokens / multiple * multiple}");

        Command Stage(string name, string description, Option<int> length, Option[] own, Func<int, ParseResult, IEnumerable<Func<CpuBackend, Subject>>> subjects)
        {
            var command = new Command(name, description) { length, pairs, threads, python, json };
            foreach (var option in own)
                command.Add(option);
            command.SetAction(parsed =>
            {
                int n = parsed.GetValue(length);
                if (Python.Find(parsed.GetValue(python)!) is not { } found)
                    return 1;
                return new PeerComparison(parsed.GetValue(threads), found, parsed.GetValue(pairs)).Execute(subjects(n, parsed), parsed.GetValue(json));
            });
            return command;
        }
    }
}
