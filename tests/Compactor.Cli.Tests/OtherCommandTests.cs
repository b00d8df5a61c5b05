using System.Runtime.InteropServices;
using System.Runtime.Intrinsics.X86;
using Xunit;

namespace Compactor.Cli.Tests;

public class OtherCommandTests : TemporaryFolder
{
    [Fact]
    public void Demo_needs_no_options_and_explains_itself()
    {
        var result = Tool.Run("demo", "--report", At("report"));
        Assert.True(result.ExitCode == 0, result.Error);
        Assert.Empty(result.Error);
        Assert.StartsWith("The KV cache of a small language model", result.Output);
        Assert.Contains("Random", result.Output);
        Assert.Contains("Kept 53.2% of the cache", result.Output);
        Assert.Contains("blocks of 128 tokens", result.Output);
        Assert.Contains("freeing", result.Output);
    }

    /// <summary>All but headers and times, which a narrow terminal has one column of.</summary>
    [Fact]
    public void The_README_shows_what_the_demo_prints()
    {
        var shown = Rows(File.ReadAllText(Path.Combine(AppContext.BaseDirectory, "README.md")));
        Assert.Equal(6, shown.Length);
        Assert.Equal(shown, Rows(Tool.Run("demo", "--report", At("report")).Output));

        static string[] Rows(string text) => [.. text.Split('\n').Where(line => line.StartsWith('│')).Skip(1)
            .Select(line => line.Trim('│').Split('│', StringSplitOptions.TrimEntries)).Select(cells => string.Join(" | ", [.. cells[..5], .. cells[^3..]]))];
    }

    [Fact]
    public void Demo_as_json_beats_both_baselines_on_average()
    {
        var total = Tool.Run("demo", "--json", "--report", At("report")).Json.GetProperty("total");
        Assert.True(total.GetProperty("error").GetDouble() < total.GetProperty("error_random").GetDouble());
        Assert.True(total.GetProperty("error").GetDouble() < total.GetProperty("error_recent").GetDouble());
    }

    [Fact]
    public void Inspect_shows_shapes_and_statistics()
    {
        string input = new TestDump().With("layers.0.value", 3, Half.NaN).With("layers.0.value", 4, Half.PositiveInfinity).Save(At("in.safetensors"));
        var tensors = Tool.Run("inspect", input, "--json").Json.GetProperty("tensors").EnumerateArray().ToDictionary(t => t.GetProperty("name").GetString()!);
        Assert.Equal(8, tensors.Count);
        var value = tensors["layers.0.value"];
        Assert.Equal("F16", value.GetProperty("dtype").GetString());
        Assert.Equal([200, 2, 32], value.GetProperty("shape").EnumerateArray().Select(d => d.GetInt32()));
        Assert.Equal(2, value.GetProperty("non_finite").GetInt64());
        Assert.Equal(1, value.GetProperty("std").GetDouble(), 0.05);
        Assert.Contains("layers.0.value", Tool.Run("inspect", input).Output);
    }

    [Fact]
    public void Statistics_keep_their_digits_far_from_zero()
    {
        var dump = new TestDump(1, numbered: false);
        dump.Tensors["far"] = (Native.Io.SafetensorsType.F64, [3], MemoryMarshal.AsBytes<double>([1e9 + 1, 1e9 + 2, 1e9 + 3]).ToArray());
        var far = Tool.Run("inspect", dump.Save(At("in.safetensors")), "--json").Json.GetProperty("tensors").EnumerateArray().Single(t => t.GetProperty("name").GetString() == "far");
        Assert.Equal(Math.Sqrt(2.0 / 3), far.GetProperty("std").GetDouble(), 1e-9);
        Assert.Equal(1e9 + 2, far.GetProperty("mean").GetDouble());
    }

    [Fact]
    public void Inspect_refuses_what_is_not_safetensors()
    {
        File.WriteAllText(At("text"), "no tensors here, only words");
        Tool.Run("inspect", At("text")).FailsWith(1, "header");
    }

    [Fact]
    public void Doctor_succeeds_on_any_machine_and_lists_every_place()
    {
        var json = Tool.Run("doctor", "--json").Json;
        Assert.True(json.GetProperty("cpu_cores").GetInt32() > 0);
        Assert.NotEmpty(json.GetProperty("cuda_driver").GetProperty("places").EnumerateArray());
        Assert.True(json.GetProperty("nvrtc").GetProperty("places").GetArrayLength() > 5);
        var text = Tool.Run("doctor");
        Assert.Equal(0, text.ExitCode);
        Assert.Contains("libcuda.so.1", text.Output);
        // the published tool is compiled for AVX2
        bool less = Environment.GetEnvironmentVariable("COMPACTOR_TOOL") is not null && Avx512F.IsSupported;
        Assert.Equal(less, json.GetProperty("compiled_for_less").GetBoolean());
        Assert.Equal(less, text.Output.ReplaceLineEndings(" ").Contains("for which this executable was not compiled"));
        Assert.False(Tool.RunBuilt("doctor", "--json").Json.GetProperty("compiled_for_less").GetBoolean());
    }

    [Fact]
    public void Doctor_gives_the_loaders_reason_for_what_does_not_load()
    {
        File.WriteAllText(At("libnvrtc.so"), "no library at all");
        var result = Tool.Run("doctor", "--nvrtc", At("libnvrtc.so"), "--json").Json.GetProperty("nvrtc");
        Assert.Contains("cannot be used", result.GetProperty("error").GetString());
        Assert.Equal("failed", result.GetProperty("places")[0].GetProperty("outcome").GetString());
        Assert.Contains("libnvrtc.so", result.GetProperty("places")[0].GetProperty("reason").GetString());
    }

    [Fact]
    public void Doctor_shows_an_explicit_path_that_does_not_load()
    {
        var result = Tool.Run([("COMPACTOR_NVRTC", "/nowhere/libnvrtc.so")], ["doctor"]);
        Assert.Equal(0, result.ExitCode);
        Assert.Contains("COMPACTOR_NVRTC is '/nowhere/libnvrtc.so', which does not exist", result.Output);
    }

    [Theory]
    [InlineData("demo", "--retention")]
    [InlineData("doctor", "extra")]
    [InlineData("frobnicate")]
    [InlineData("inspect")]
    public void Wrong_usage_exits_with_2(params string[] arguments)
    {
        var result = Tool.Run(arguments);
        result.FailsWith(2, "See 'compactor --help'");
        Assert.StartsWith("compactor: ", result.Error);
        Assert.Equal(2, result.Error.TrimEnd('\n').Split('\n').Length);
    }

    [Fact]
    public void Help_and_version_succeed()
    {
        var help = Tool.Run("compress", "--help");
        Assert.Equal(0, help.ExitCode);
        Assert.Contains("--retention", help.Output);
        Assert.Equal(0, Tool.Run("--version").ExitCode);
    }
}
