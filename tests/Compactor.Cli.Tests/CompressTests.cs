using System.Runtime.InteropServices;
using Compactor.Native.Io;
using Xunit;

namespace Compactor.Cli.Tests;

public class CompressTests : TemporaryFolder
{
    private const string Golden = "kvpress_compactor_hq4hk2s524d64c256removed0.5.safetensors";

    private static string GoldenPath => Path.Combine(AppContext.BaseDirectory, "data", "golden", Golden);

    [Theory]
    [InlineData("paper", true)]
    [InlineData("kvpress", true)]
    [InlineData("compactor-vllm", true)]
    [InlineData("paper", false)]
    public void Every_preset_writes_scores_kept_indices_and_survivors(string preset, bool numbered)
    {
        string input = new TestDump(numbered ? 2 : 1, [0, 300, 300, 341], numbered).Save(At("in.safetensors"));
        var result = Tool.Run("compress", input, "--preset", preset, "--retention", "0.5", "--out", At("out.safetensors"));
        Assert.True(result.ExitCode == 0, result.Error);

        using var dump = KvDump.Open(input);
        using var output = SafetensorsFile.Open(At("out.safetensors"));
        Assert.Equal([0, 300, 300, 341], output.Tensors["cu_seqlens"].ToInt32());
        Assert.Equal(preset, output.Metadata["preset"]);
        Assert.Equal("retention 0.5", output.Metadata["budget"]);
        Assert.Equal("48", output.Metadata["sketch"]);
        Assert.StartsWith("compactor ", output.Metadata["tool"]);
        foreach (var layer in dump.Layers)
        {
            string prefix = numbered ? $"layers.{layer.Index}." : "";
            foreach (string name in (string[])["leverage", "attention", "scores"])
            {
                Assert.Equal(SafetensorsType.F32, output.Tensors[prefix + name].Type);
                Assert.Equal([341, TestDump.KvHeads], output.Tensors[prefix + name].Shape);
                Assert.DoesNotContain(output.Tensors[prefix + name].ToFloat32(), float.IsNaN);
            }
            CheckSurvivors(output, prefix, dump, layer);
        }
        Assert.Equal(1 + 7 * dump.Layers.Count, output.Tensors.Count);
    }

    /// <summary>Offsets and indices are consistent, and survivors are the bytes of the input at them.</summary>
    private static void CheckSurvivors(SafetensorsFile output, string prefix, KvDump dump, KvDumpLayer layer)
    {
        var shape = layer.Shape;
        int[] indices = output.Tensors[prefix + "kept_indices"].ToInt32(), offsets = output.Tensors[prefix + "kept_offsets"].ToInt32();
        Assert.Equal(SafetensorsType.I32, output.Tensors[prefix + "kept_indices"].Type);
        Assert.Equal(SafetensorsType.I32, output.Tensors[prefix + "kept_offsets"].Type);
        Assert.Equal(shape.Sequences * shape.KvHeads + 1, offsets.Length);
        Assert.Equal(0, offsets[0]);
        Assert.Equal(indices.Length, offsets[^1]);
        foreach (string role in (string[])["key", "value"])
        {
            var (source, survivors) = (layer.Tensors[role], output.Tensors[prefix + role]);
            Assert.Equal(source.Type, survivors.Type);
            Assert.Equal([indices.Length, shape.HeadDim], survivors.Shape);
            int rowBytes = shape.HeadDim * source.Type.Size();
            for (int b = 0; b < shape.Sequences; b++)
                for (int h = 0; h < shape.KvHeads; h++)
                {
                    int segment = b * shape.KvHeads + h;
                    Assert.InRange(offsets[segment + 1], offsets[segment], indices.Length);
                    for (int i = offsets[segment]; i < offsets[segment + 1]; i++)
                    {
                        Assert.InRange(indices[i], i == offsets[segment] ? 0 : indices[i - 1] + 1, shape.LengthOf(b) - 1);
                        long row = dump.Layout == KvLayout.PackedTokens
                            ? (long)(shape.CuSeqlens[b] + indices[i]) * shape.KvHeads + h
                            : ((long)b * shape.KvHeads + h) * shape.LengthOf(b) + indices[i];
                        Assert.True(source.Bytes(row * rowBytes, rowBytes).SequenceEqual(survivors.Bytes((long)i * rowBytes, rowBytes)), $"{prefix}{role}, pair {i}");
                    }
                }
        }
    }

    [Fact]
    public void The_bhsd_layout_agrees_with_kvpress()
    {
        var result = Tool.Run("compress", GoldenPath, "--layout", "bhsd", "--preset", "kvpress", "--retention", "0.5", "--out", At("out.safetensors"), "--json");
        Assert.Contains("phi", string.Concat(result.Json.GetProperty("notes").EnumerateArray()));
        using var dump = KvDump.Open(GoldenPath, KvLayout.BatchHeadSequence);
        using var output = SafetensorsFile.Open(At("out.safetensors"));
        CheckSurvivors(output, "", dump, dump.Layers[0]);
        int[] expected = dump.File.Tensors["kept_per_head"].ToInt32(), kept = output.Tensors["kept_indices"].ToInt32();
        int heads = dump.Layers[0].Shape.KvHeads, each = expected.Length / heads;
        Assert.Equal(expected.Length, kept.Length);
        for (int h = 0; h < heads; h++)
            Assert.Equal(expected[(h * each)..((h + 1) * each)].Order(), kept[(h * each)..((h + 1) * each)]);
    }

    [Fact]
    public void The_wrong_layout_says_which_to_use() =>
        Tool.Run("compress", GoldenPath).FailsWith(1, "dimensions", "layout bhsd");

    [Fact]
    public void Json_is_one_document_with_errors_of_both_baselines()
    {
        var json = Tool.Run("compress", new TestDump().Save(At("in.safetensors")), "--json", "--tokens", "60").Json;
        Assert.Equal("60 tokens a head", json.GetProperty("budget").GetString());
        Assert.Equal(2, json.GetProperty("layers").GetArrayLength());
        var layer = json.GetProperty("layers")[1];
        Assert.Equal("layers.1", layer.GetProperty("name").GetString());
        Assert.Equal(120, layer.GetProperty("kept_pairs").GetInt64());
        Assert.Equal(400, layer.GetProperty("pairs").GetInt64());
        Assert.Equal(120, layer.GetProperty("kept_tokens_per_head").EnumerateArray().Sum(length => length.GetInt32()));
        foreach (string error in (string[])["error", "error_random", "error_recent"])
            Assert.InRange(layer.GetProperty(error).GetDouble(), 0.01, 2);
        Assert.Equal(2 * 120 * 2 * TestDump.Dim * 2, json.GetProperty("total").GetProperty("kept_bytes").GetInt64());
    }

    [Fact]
    public void Keeping_everything_scores_nothing_and_has_no_error()
    {
        string input = new TestDump().Save(At("in.safetensors"));
        var json = Tool.Run("compress", input, "--retention", "1", "--out", At("out.safetensors"), "--json").Json;
        Assert.Equal(0, json.GetProperty("total").GetProperty("error").GetDouble());
        using var dump = KvDump.Open(input);
        using var output = SafetensorsFile.Open(At("out.safetensors"));
        Assert.DoesNotContain("layers.0.scores", output.Tensors.Keys);
        CheckSurvivors(output, "layers.0.", dump, dump.Layers[0]);
    }

    [Fact]
    public void A_byte_budget_is_for_the_whole_file_and_not_exceeded()
    {
        var total = Tool.Run("compress", new TestDump(3, [0, 300, 500]).Save(At("in.safetensors")), "--bytes", "100000", "--json").Json.GetProperty("total");
        Assert.InRange(total.GetProperty("kept_bytes").GetInt64(), 98_000, 100_000);
    }

    [Fact]
    public void A_byte_budget_too_small_says_what_is_needed() =>
        Tool.Run("compress", new TestDump().Save(At("in.safetensors")), "--bytes", "4000").FailsWith(1, "leaves 2000 a layer", "Raise it to");

    [Fact]
    public void A_raised_budget_is_announced()
    {
        var result = Tool.Run("compress", new TestDump().Save(At("in.safetensors")), "--tokens", "7", "--json");
        Assert.Contains("raised to 40", result.Error);
        Assert.Contains("raised to 40", string.Concat(result.Json.GetProperty("notes").EnumerateArray()));
    }

    [Fact]
    public void Budgets_exclude_each_other() =>
        Tool.Run("compress", new TestDump().Save(At("in.safetensors")), "--retention", "0.5", "--bytes", "100000")
            .FailsWith(2, "--retention and --bytes exclude each other");

    [Theory]
    [InlineData("--no-such-option", "--no-such-option")]
    [InlineData("--retention=half", "--retention is 'half'; use a number")]
    [InlineData("--retention=1.5", "1.5")]
    [InlineData("--scope=world", "--scope is 'world'; use sequence or head or token")]
    [InlineData("--sketch=20", "16 to 128 in steps of 16")]
    [InlineData("--preset=best", "best")]
    [InlineData("--tokens=99999999999", "a whole number up to 2147483647")]
    [InlineData("--lambda=much", "a number or auto")]
    [InlineData("--threads=-1", "--threads is -1")]
    [InlineData("--rope-theta=0.5", "0.5")]
    [InlineData("--block-size=15", "--block-size is 15; use 16 to 256")]
    [InlineData("--block-size=257", "--block-size is 257; use 16 to 256")]
    [InlineData("--block-size=big", "--block-size is 'big'; use a whole number")]
    public void A_wrong_option_is_a_usage_error(string option, string mention) =>
        Tool.Run("compress", "in.safetensors", option).FailsWith(2, mention);

    [Fact]
    public void Every_option_of_the_method_reaches_it()
    {
        string[] changed =
        [
            "--sketch", "32", "--sketch-sharing", "shared", "--center", "false", "--leverage-chunk", "128", "--eps", "0.02", "--leverage-scope", "chunk",
            "--attention-chunk", "64", "--attention-scale", "0.5", "--group", "mean", "--value-norm", "true", "--pool", "5", "--attention-scope", "sequence",
            "--std", "unbiased", "--std-floor", "1E-05", "--lambda", "auto", "--protect-first", "3", "--protect-last", "5", "--score-protected", "false",
            "--protected", "inside", "--scope", "token", "--count", "floor", "--min-tokens-per-head", "9", "--seed", "18446744073709551615",
        ];
        var json = Tool.Run(["compress", new TestDump().Save(At("in.safetensors")), "--json", "--retention", "0.25", .. changed]).Json;
        var options = json.GetProperty("options").EnumerateObject().ToDictionary(o => "--" + o.Name, o => o.Value.GetString());
        Assert.Equal(changed.Length / 2, options.Count);
        for (int i = 0; i < changed.Length; i += 2)
            Assert.Equal(changed[i + 1], options[changed[i]]);
        Assert.Equal(2 * 2 * 50, json.GetProperty("total").GetProperty("kept_pairs").GetInt64());
    }

    [Theory]
    [InlineData(1, "does not exist", "compress", "absent.safetensors", "--json")]
    [InlineData(1, "does not exist", "inspect", "absent.safetensors", "--json")]
    [InlineData(2, "Retention is 2", "compress", "absent.safetensors", "--json", "--retention", "2")]
    [InlineData(2, "Must be one of", "compress", "absent.safetensors", "--json", "--preset", "best")]
    public void A_failure_with_json_is_one_document_too(int exitCode, string mention, params string[] arguments)
    {
        var result = Tool.Run(arguments);
        Assert.Equal(exitCode, result.ExitCode);
        var json = System.Text.Json.JsonDocument.Parse(result.Output).RootElement;
        Assert.Equal(exitCode, json.GetProperty("exit_code").GetInt32());
        Assert.Contains(mention, json.GetProperty("error").GetString());
        Assert.StartsWith($"compactor: {json.GetProperty("error").GetString()}\n", result.Error);
    }

    [Fact]
    public void Empty_paths_are_named()
    {
        Tool.Run("compress", "").FailsWith(1, "'' cannot be opened");
        string input = new TestDump().Save(At("in.safetensors"));
        Tool.Run("compress", input, "--out", "").FailsWith(1, "'' cannot be written");
        Tool.Run("compress", "", "--out", At("out.safetensors")).FailsWith(1, "'' cannot be opened");
    }

    [Fact]
    public void A_missing_file_is_one_line() => Tool.Run("compress", At("absent.safetensors")).FailsWith(1, "absent.safetensors", "does not exist");

    [Fact]
    public void Verbose_prints_the_stack()
    {
        var result = Tool.Run("compress", At("absent.safetensors"), "--verbose");
        Assert.Equal(1, result.ExitCode);
        Assert.Contains("   at ", result.Error);
    }

    [Theory]
    [InlineData("layers.1.key", "key")]
    [InlineData("layers.1.value", "value")]
    [InlineData("layers.1.key_pre_rope", "key_pre_rope")]
    public void NaN_is_named_and_an_existing_result_stays(string tensor, string role)
    {
        string input = new TestDump(2, [0, 60, 200]).With(tensor, ((60 + 7) * TestDump.KvHeads + 1) * TestDump.Dim + 5, Half.NaN).Save(At("in.safetensors"));
        Tool.Run("compress", input, "--out", At("new.safetensors")).FailsWith(1, "Layer 1", role, "token 7 of sequence 1, head 1");
        Assert.False(File.Exists(At("new.safetensors")));

        File.WriteAllText(At("old.safetensors"), "as it was");
        Tool.Run("compress", input, "--out", At("old.safetensors")).FailsWith(1, "Layer 1");
        Assert.Equal("as it was", File.ReadAllText(At("old.safetensors")));
        Assert.Equal(2, Directory.GetFiles(Path.GetDirectoryName(At("x"))!).Length);
    }

    [Fact]
    public void A_dump_without_queries_is_scored_by_leverage_alone_and_says_so()
    {
        string input = new TestDump().Without("query").Save(At("in.safetensors"));
        var result = Tool.Run("compress", input, "--out", At("out.safetensors"), "--json");
        Assert.Contains("leverage alone", result.Error);
        Assert.Contains("leverage alone", string.Concat(result.Json.GetProperty("notes").EnumerateArray()));
        Assert.Equal(System.Text.Json.JsonValueKind.Null, result.Json.GetProperty("total").GetProperty("error").ValueKind);
        using var output = SafetensorsFile.Open(At("out.safetensors"));
        Assert.DoesNotContain("layers.0.attention", output.Tensors.Keys);
        Assert.Contains("layers.0.leverage", output.Tensors.Keys);
        Assert.Contains("n/a", Tool.Run("compress", input).Output);
    }

    [Fact]
    public void Keys_after_RoPE_are_enough_with_theta_or_tables_and_refused_without()
    {
        string whole = new TestDump().Save(At("whole.safetensors")), input = new TestDump().Without("key_pre_rope").Save(At("in.safetensors"));
        Tool.Run("compress", input, "--out", At("out.safetensors")).FailsWith(1, "key_pre_rope", "--rope-theta");
        Assert.False(File.Exists(At("out.safetensors")));

        Assert.Equal(0, Tool.Run("compress", whole, "--out", At("expected.safetensors")).ExitCode);
        var result = Tool.Run("compress", input, "--rope-theta", "10000", "--out", At("out.safetensors"));
        Assert.True(result.ExitCode == 0, result.Error);
        CompareLeverage(At("expected.safetensors"), At("out.safetensors"), 2e-3f);

        var tables = new TestDump().Without("key_pre_rope");
        var angles = Enumerable.Range(0, 200).SelectMany(t => Enumerable.Range(0, TestDump.Dim / 2).Select(i => t * Math.Pow(TestDump.Theta, -2.0 * i / TestDump.Dim))).ToArray();
        tables.Tensors["cos"] = (SafetensorsType.F32, [200, TestDump.Dim / 2], MemoryMarshal.AsBytes<float>(angles.Select(a => (float)Math.Cos(a)).ToArray()).ToArray());
        tables.Tensors["sin"] = (SafetensorsType.F32, [200, TestDump.Dim / 2], MemoryMarshal.AsBytes<float>(angles.Select(a => (float)Math.Sin(a)).ToArray()).ToArray());
        result = Tool.Run("compress", tables.Save(At("tables.safetensors")), "--out", At("out.safetensors"));
        Assert.True(result.ExitCode == 0, result.Error);
        CompareLeverage(At("expected.safetensors"), At("out.safetensors"), 2e-3f);
    }

    private static void CompareLeverage(string expected, string actual, float tolerance)
    {
        using SafetensorsFile a = SafetensorsFile.Open(expected), b = SafetensorsFile.Open(actual);
        foreach (var (x, y) in a.Tensors["layers.1.leverage"].ToFloat32().Zip(b.Tensors["layers.1.leverage"].ToFloat32()))
            Assert.Equal(x, y, tolerance);
    }

    [Fact]
    public void The_result_does_not_depend_on_threads()
    {
        string input = new TestDump(2, [0, 300, 341]).Save(At("in.safetensors"));
        foreach (string threads in (string[])["1", "2"])
            Assert.Equal(0, Tool.Run("compress", input, "--threads", threads, "--out", At(threads)).ExitCode);
        Assert.Equal(File.ReadAllBytes(At("1")), File.ReadAllBytes(At("2")));
    }

    [Theory]
    [InlineData("paper")]
    [InlineData("kvpress")]
    [InlineData("compactor-vllm")]
    public void The_built_tool_keeps_what_the_tool_that_is_tested_keeps(string preset)
    {
        string input = new TestDump(2, [0, 300, 341]).Save(At("in.safetensors"));
        Assert.Equal(0, Tool.Run("compress", input, "--preset", preset, "--out", At("tested")).ExitCode);
        Assert.Equal(0, Tool.RunBuilt("compress", input, "--preset", preset, "--out", At("built")).ExitCode);
        using SafetensorsFile tested = SafetensorsFile.Open(At("tested")), built = SafetensorsFile.Open(At("built"));
        Assert.Equal(tested.Tensors.Keys.Order(), built.Tensors.Keys.Order());
        foreach (string name in tested.Tensors.Keys.Where(name => name.Contains("kept_", StringComparison.Ordinal)))
            Assert.Equal(tested.Tensors[name].ToInt32(), built.Tensors[name].ToInt32());
    }

    [Fact]
    public void The_input_is_not_overwritten()
    {
        string input = new TestDump().Save(At("in.safetensors"));
        File.CreateSymbolicLink(At("link.safetensors"), input);
        byte[] before = File.ReadAllBytes(input);
        Tool.Run("compress", input, "--out", At("link.safetensors")).FailsWith(1, "the input itself");
        Directory.CreateSymbolicLink(At("folder"), Path.GetDirectoryName(input)!);
        Tool.Run("compress", input, "--out", At("folder/in.safetensors")).FailsWith(1, "the input itself");
        Tool.Run("compress", At("folder/link.safetensors"), "--out", input).FailsWith(1, "the input itself");
        File.CreateSymbolicLink(At("circle"), "circle");
        Tool.Run("compress", input, "--out", At("circle")).FailsWith(1, "circle");
        Assert.Equal(before, File.ReadAllBytes(input));
    }

    [Fact]
    public void Without_a_gpu_cuda_is_refused_and_auto_says_why_the_cpu_computes()
    {
        string input = new TestDump().Save(At("in.safetensors"));
        (string, string)[] noDevice = [("CUDA_VISIBLE_DEVICES", "")];
        Tool.Run(noDevice, ["compress", input, "--backend", "cuda"]).FailsWith(1, "CUDA");
        var result = Tool.Run(noDevice, ["compress", input, "--backend", "auto", "--out", At("auto.safetensors")]);
        Assert.Equal(0, result.ExitCode);
        Assert.Contains("note: the cpu computes:", result.Error);
        Assert.Contains("CUDA", result.Error);
        Tool.Run("compress", input, "--out", At("cpu.safetensors"));
        Assert.Equal(File.ReadAllBytes(At("cpu.safetensors")), File.ReadAllBytes(At("auto.safetensors")));
    }
}
