using System.Text.Json;
using Xunit;

namespace Compactor.Abi.Tests;

/// <summary>The CPU's benchmarks at small sizes, where times mean nothing: peers agree with the library, and the JSON holds what was measured.</summary>
public class CpuBenchmarkTests
{
    private static readonly string s_benchmarks = Path.Combine(NativeBuild.Root, "bench", "Compactor.Bench", "bin", new DirectoryInfo(AppContext.BaseDirectory).Parent!.Name, "net10.0", "Compactor.Bench.dll");

    [Fact(Explicit = true)]
    public void Every_stage_agrees_with_PyTorch_and_ONNX_Runtime()
    {
        string file = Path.GetTempFileName();
        try
        {
            Command.Run("dotnet", [s_benchmarks, "peers", "all", "--tokens", "512", "--pairs", "2", "--python", Command.Python("torch"), "--json", file]);
            using var json = JsonDocument.Parse(File.ReadAllText(file));
            var comparisons = json.RootElement.GetProperty("comparisons").EnumerateArray().ToList();
            string[] leverage = ["scores", "scores", "scores", "leverage", "leverage"], graphs = ["attention", "select", "compact", "decode"];
            Assert.Equal([.. leverage.Concat(graphs).Select(stage => ("PyTorch", stage)), .. graphs.Select(stage => ("ONNX Runtime", stage))],
                comparisons.Select(c => (Name: c.GetProperty("peer").GetProperty("name").GetString()!, c.GetProperty("dimensions").GetProperty("stage").GetString()!)).OrderBy(c => c.Name == "ONNX Runtime"));
            Assert.All(comparisons, comparison =>
            {
                Assert.InRange(comparison.GetProperty("relative_difference").GetDouble(), 0, 1e-4);
                double[] ours = Samples(comparison, "ours_seconds"), peer = Samples(comparison, "peer_seconds"), ratios = Samples(comparison, "ratios");
                Assert.Equal(ratios, peer.Zip(ours, (their, my) => their / my));
                Assert.Equal(ratios.Average(), comparison.GetProperty("median_ratio").GetDouble(), 1e-9);
                Assert.True(ours.Min() > 0 && peer.Min() > 0);
            });
        }
        finally
        {
            File.Delete(file);
        }

        static double[] Samples(JsonElement comparison, string name)
        {
            double[] samples = [.. comparison.GetProperty(name).EnumerateArray().Select(sample => sample.GetDouble())];
            Assert.Equal(2, samples.Length);
            return samples;
        }
    }

    [Fact(Explicit = true)]
    public void Exponents_are_fitted_to_the_medians()
    {
        string file = Path.GetTempFileName(), picture = Path.GetTempFileName();
        try
        {
            Command.Run("dotnet", [s_benchmarks, "scaling", "--from", "128", "--to", "512", "--repeats", "3", "--json", file, "--picture", picture]);
            using var json = JsonDocument.Parse(File.ReadAllText(file));
            var stages = json.RootElement.GetProperty("stages").EnumerateObject().Select(stage => stage.Value).ToList();
            Assert.Equal(7, stages.Count);
            Assert.All(stages, stage =>
            {
                // With three equally spaced lengths the slope is half the difference of the ends, and the residuals are (1, -2, 1) d.
                double[] log = [.. stage.GetProperty("lengths").EnumerateObject().Select(length => Math.Log2(length.Value.GetProperty("seconds").EnumerateArray().Select(s => s.GetDouble()).Order().ElementAt(1)))];
                Assert.Equal(3, log.Length);
                Assert.Equal((log[2] - log[0]) / 2, stage.GetProperty("exponent").GetDouble(), 1e-9);
                Assert.Equal(Math.Abs(log[0] - 2 * log[1] + log[2]) / Math.Sqrt(12), stage.GetProperty("exponent_standard_error").GetDouble(), 1e-9);
            });
            Assert.Equal((byte[])[0x89, (byte)'P', (byte)'N', (byte)'G'], File.ReadAllBytes(picture)[..4]);
        }
        finally
        {
            File.Delete(file);
            File.Delete(picture);
        }
    }

    [Fact(Explicit = true)]
    public void Suites_measure_stages_the_paged_cache_and_the_boundary()
    {
        string folder = Directory.CreateTempSubdirectory("compactor-suites-").FullName;
        try
        {
            Command.Run("dotnet", [s_benchmarks, "suites", "--library", NativeBuild.Library, "--inProcess", "--job", "dry", "--exporters", "json", "--artifacts", folder,
                "--filter", "*StageBenchmarks*N: 1024, Type: BFloat16, Threads: 2*", "*PagedCacheBenchmarks*", "*AbiBenchmarks*"]);
            var measured = Directory.GetFiles(Path.Combine(folder, "results"), "*-report-full-compressed.json").SelectMany(file =>
            {
                using var json = JsonDocument.Parse(File.ReadAllText(file));
                return json.RootElement.GetProperty("Benchmarks").EnumerateArray()
                    .Select(b => (Suite: b.GetProperty("Type").GetString(), Name: b.GetProperty("Method").GetString(), Median: b.GetProperty("Statistics") is { ValueKind: JsonValueKind.Object } found ? found.GetProperty("Median").GetDouble() : 0)).ToList();
            }).ToList();
            Assert.Equal(["AbiBenchmarks", "PagedCacheBenchmarks", "StageBenchmarks"], measured.Select(m => m.Suite).Distinct().Order());
            Assert.All(measured, m => Assert.True(m.Median > 0, $"{m.Suite}.{m.Name} was not measured"));
            Assert.All(["LeverageWhole", "AttentionScores", "Fuse", "SelectSequence", "CompactKeysAndValues"], stage => Assert.Contains(stage, measured.Select(m => m.Name)));
        }
        finally
        {
            Directory.Delete(folder, recursive: true);
        }
    }

    [Fact]
    public void Suites_that_were_not_built_are_a_failure()
    {
        string folder = Directory.CreateTempSubdirectory("compactor-suites-").FullName;
        try
        {
            // no project lies in that folder
            Assert.Contains("Not measured: PagedCacheBenchmarks.CreateAndFree:", Command.Run("dotnet", [s_benchmarks, "suites", "--job", "dry", "--filter", "*PagedCacheBenchmarks.CreateAndFree*"], folder, exitCode: 1));
        }
        finally
        {
            Directory.Delete(folder, recursive: true);
        }
    }

    [Theory]
    [InlineData("--tokens is 100; use a multiple of 256", "peers", "attention", "--tokens", "100")]
    [InlineData("--pairs is 0; use 1 or more", "peers", "select", "--pairs", "0")]
    [InlineData("--from is 1024, --to is 2048", "scaling", "--to", "2048")]
    [InlineData("--threads is -1; use 0 to", "scaling", "--threads", "-1")]
    [InlineData("--simd-bits is 64; use 0, 128, 256 or 512", "scaling", "--simd-bits", "64")]
    [InlineData("--repeats is 0; use 1 or more", "paging", "--repeats", "0")]
    [InlineData("Cannot parse argument 'many'", "launch-cost", "--repeats", "many")]
    [InlineData("--json is /dev/null/result.json, which cannot be written", "capacity", "--json", "/dev/null/result.json")]
    [InlineData("no-python does not start", "peers", "select", "--python", "no-python")]
    [InlineData("--chunk is 10; use 64 to 4096", "peers", "leverage", "--chunk", "10")]
    [InlineData("No benchmark has such a name", "suites", "--filter", "nothing")]
    [InlineData("There is no shared library at none.so", "suites", "--library", "none.so")]
    public void Bad_input_is_named(string said, params string[] arguments) => Assert.Contains(said, Command.Run("dotnet", [s_benchmarks, .. arguments], exitCode: 1));
}
