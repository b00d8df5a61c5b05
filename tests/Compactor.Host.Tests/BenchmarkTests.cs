using System.Diagnostics;
using System.Text.Json;
using Xunit;

namespace Compactor.Host.Tests;

/// <summary>The benchmarks that run a host: both commands, as they are called.</summary>
public sealed class BenchmarkTests : IDisposable
{
    // beside the repository's tests, built in the same way
    private static readonly string s_bench = Path.GetFullPath(Path.Combine(AppContext.BaseDirectory, "../../../../../bench"));
    private static readonly string s_tool = Path.Combine(s_bench, "Compactor.Bench", Path.GetRelativePath(Path.Combine(s_bench, "../tests/Compactor.Host.Tests"), AppContext.BaseDirectory), "Compactor.Bench.dll");

    private readonly DirectoryInfo _folder = Directory.CreateTempSubdirectory("compactor-bench-");

    [Fact(Explicit = true)]
    public void Fewer_tokens_kept_never_admit_fewer_sequences_and_the_committed_result_is_what_is_found()
    {
        var result = Measure("capacity");
        var models = result.GetProperty("models").EnumerateArray().ToDictionary(model => model.GetProperty("name").GetString()!);
        var pools = result.GetProperty("results").EnumerateArray().GroupBy(r => (Model: r.GetProperty("model").GetString()!, Memory: r.GetProperty("memory_gigabytes").GetInt32(), Block: Int(r, "block_size"))).ToArray();
        Assert.Equal(8, pools.Length);
        foreach (var pool in pools)
        {
            var byRetention = pool.OrderByDescending(r => r.GetProperty("retention").GetDouble()).ToArray();
            var (model, whole) = (models[pool.Key.Model], byRetention[0]);
            int rows = Int(model, "layers") * Int(model, "kv_heads"), wholeBlocks = rows * (32_768 / pool.Key.Block);
            long slotBytes = 2L * 2 * Int(model, "head_dim") + 4, room = (long)(pool.Key.Memory * 0.9e9) - model.GetProperty("weight_bytes").GetInt64();
            Assert.Equal((5, 1.0), (byRetention.Length, whole.GetProperty("retention").GetDouble()));
            Assert.Equal((wholeBlocks, Int(whole, "blocks") / wholeBlocks), (Int(whole, "blocks_a_sequence"), Int(whole, "sequences")));
            Assert.Equal(room / (slotBytes * pool.Key.Block), Int(whole, "blocks"));
            Assert.Equal(0, whole.GetProperty("unused_slots_share").GetDouble());
            for (int i = 1; i < byRetention.Length; i++)
            {
                var (r, retention) = (byRetention[i], byRetention[i].GetProperty("retention").GetDouble());
                Assert.True(Int(r, "sequences") >= Int(byRetention[i - 1], "sequences"), $"{pool.Key}, retention {retention}");
                // 4 first and 16 last tokens besides; what a partly used last block leaves is less than a block a head
                double kept = rows * (Math.Ceiling(retention * 32_768) + 20) / pool.Key.Block;
                Assert.InRange(Int(r, "blocks_a_sequence"), kept, kept + rows);
                Assert.Equal(1 - kept / Int(r, "blocks_a_sequence"), r.GetProperty("unused_slots_share").GetDouble(), 9);
                // while one is admitted, a layer is there whole and compacted: the pool refuses only what does not fit
                int peak = Int(r, "peak_blocks_of_an_admission"), held = Int(r, "sequences") * Int(r, "blocks_a_sequence");
                Assert.InRange(peak, Int(r, "blocks_a_sequence") + wholeBlocks / Int(model, "layers"), Int(r, "blocks_a_sequence") + wholeBlocks / Int(model, "layers") + Int(model, "kv_heads"));
                Assert.InRange(held, Int(r, "blocks") - peak + 1, Int(r, "blocks"));
            }
        }
        var committed = JsonDocument.Parse(File.ReadAllBytes(Directory.GetFiles(Path.Combine(s_bench, "results"), "*-capacity.json").Max(StringComparer.Ordinal)!)).RootElement;
        foreach (string part in (string[])["assumptions", "models", "kept_of_demo", "results"])
            Assert.True(JsonElement.DeepEquals(committed.GetProperty(part), result.GetProperty(part)), $"bench/results holds other {part} than capacity finds; measure again, and run bench/tables --write");
    }

    [Fact(Explicit = true)]
    public void A_host_is_measured_at_every_retention_after_its_results_agree()
    {
        var result = Measure("host", "--tokens", "256", "--repeats", "1");
        var ways = result.GetProperty("contexts").GetProperty("256 tokens");
        Assert.Equal(["full cache", "retention 1", "retention 0.5", "retention 0.25", "retention 0.1"], ways.EnumerateObject().Select(way => way.Name));
        var (full, everything) = (ways.GetProperty("full cache"), ways.GetProperty("retention 1"));
        // 4 layers of 2 heads of 64 elements, float32; a position a slot
        foreach (string measure in (string[])["kept_pairs", "held_blocks", "cache_bytes"])
            Assert.Equal(full.GetProperty(measure).GetInt64(), everything.GetProperty(measure).GetInt64());
        Assert.Equal((256 * 8, 2 * 8), (Int(full, "kept_pairs"), Int(full, "held_blocks")));
        int before = int.MaxValue;
        foreach (var way in ways.EnumerateObject().Select(way => way.Value))
        {
            Assert.InRange(Int(way, "held_blocks"), 1, Math.Min(before, Int(way, "peak_blocks")));
            Assert.Equal(Int(way, "held_blocks") * 128L * (2 * 64 * 4 + 4), way.GetProperty("cache_bytes").GetInt64());
            Assert.True(Assert.Single(way.GetProperty("first_token_milliseconds").EnumerateArray()).GetDouble() > 0);
            Assert.True(Assert.Single(way.GetProperty("tokens_per_second").EnumerateArray()).GetDouble() > 0);
            before = Int(way, "held_blocks");
        }
        Assert.Equal((int)(Math.Ceiling(0.1 * 256) + 20) * 8, Int(ways.GetProperty("retention 0.1"), "kept_pairs"));
    }

    [Theory]
    [InlineData("--tokens is 961; needle has 1024 positions, 64 of them for decoding: use 128 to 960.", "--tokens", "256", "961")]
    [InlineData("--tokens is 0; needle has 1024 positions, 64 of them for decoding: use 128 to 960.", "--tokens", "0")]
    [InlineData("llama2 has 64 positions; use a model with 192 or more.", "--model", "data/host/llama2")]
    [InlineData("'nowhere/config.json' does not exist; give the folder of a checkpoint in Hugging Face layout.", "--model", "nowhere")]
    [InlineData("--repeats is 0; use 1 or more.", "--repeats", "0")]
    public void What_cannot_be_measured_is_refused(string message, params string[] arguments)
    {
        var (exitCode, output, error) = Run(["host", .. arguments]);
        Assert.Equal((1, "", message + "\n"), (exitCode, output, error));
    }

    [Fact]
    public void A_result_is_not_touched_before_it_is_measured()
    {
        string old = Path.Combine(_folder.FullName, "old.json"), none = Path.Combine(_folder.FullName, "none.json");
        File.WriteAllText(old, "old");
        foreach (string path in (string[])[old, none])
            Assert.Equal(1, Run(["host", "--repeats", "0", "--json", path]).ExitCode);
        Assert.Equal("old", File.ReadAllText(old));
        Assert.False(File.Exists(none));
    }

    public void Dispose() => _folder.Delete(recursive: true);

    private static int Int(JsonElement element, string name) => element.GetProperty(name).GetInt32();

    private JsonElement Measure(params string[] arguments)
    {
        string path = Path.Combine(_folder.FullName, "result.json");
        var (exitCode, _, error) = Run([.. arguments, "--json", path]);
        Assert.True(exitCode == 0, error);
        return JsonDocument.Parse(File.ReadAllBytes(path)).RootElement;
    }

    private static (int ExitCode, string Output, string Error) Run(string[] arguments)
    {
        using var process = Process.Start(new ProcessStartInfo("dotnet", [s_tool, .. arguments]) { RedirectStandardOutput = true, RedirectStandardError = true, WorkingDirectory = AppContext.BaseDirectory })!;
        var error = process.StandardError.ReadToEndAsync();
        string output = process.StandardOutput.ReadToEnd();
        process.WaitForExit();
        return (process.ExitCode, output, error.Result);
    }
}
