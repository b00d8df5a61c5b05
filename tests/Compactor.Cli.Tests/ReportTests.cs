using System.Text.RegularExpressions;
using Compactor.Native.Compression;
using Compactor.Native.Cpu;
using Compactor.Native.Io;
using SkiaSharp;
using Xunit;

namespace Compactor.Cli.Tests;

public partial class ReportTests : TemporaryFolder
{
    private const int Width = 1260;

    [GeneratedRegex("<img alt=\"([^\"]+)\" width=\"(\\d+)\" height=\"(\\d+)\" src=\"data:image/png;base64,([^\"]+)\">")]
    private static partial Regex Image();

    private string[] Files(string folder) => [.. Directory.GetFileSystemEntries(At(folder)).Select(entry => Path.GetFileName(entry)!).Order(StringComparer.Ordinal)];

    [Fact]
    public void The_report_is_pictures_figures_and_one_page_that_needs_nothing_else()
    {
        var result = Tool.Run("compress", new TestDump(2, [0, 150, 150, 200]).Save(At("in.safetensors")), "--report", At("r"), "--json");
        Assert.Equal(At("r"), result.Json.GetProperty("report").GetString());
        string[] pictures = ["error.png", .. Enumerable.Range(0, 2).SelectMany(i => (string[])[$"layer-{i}-error.png", $"layer-{i}-kept.png", $"layer-{i}-scores.png"]), "lengths.png"];
        Assert.Equal((string[])["error.png", "index.html", .. pictures[1..^1], "lengths.png", "report.json"], Files("r"));
        Assert.Equal(result.Output, File.ReadAllText(At("r/report.json")));

        string page = File.ReadAllText(At("r/index.html"));
        var images = Image().Matches(page);
        Assert.Equal(pictures.Length, images.Count);
        Assert.Equal(pictures.Length, Regex.Count(page, "<img"));
        Assert.DoesNotMatch("(?i)https?:|//|<script|<link|<iframe|@import|url\\(|href|src=", Image().Replace(page, ""));
        Assert.Contains("<h2>Layer 0</h2>", page);
        Assert.Contains("<h2>Layer 1</h2>", page);
        Assert.Contains("prefers-color-scheme: dark", page);
        Assert.Contains("name=\"viewport\"", page);

        var shown = images.ToDictionary(image => image.Groups[4].Value);
        foreach (string picture in pictures)
        {
            byte[] png = File.ReadAllBytes(At("r/" + picture));
            var image = shown[Convert.ToBase64String(png)];
            using var bitmap = SKBitmap.Decode(png);
            Assert.Equal(Width, bitmap.Width);
            Assert.InRange(bitmap.Height, 150, 700);
            Assert.Equal((image.Groups[2].Value, image.Groups[3].Value), ($"{bitmap.Width}", $"{bitmap.Height}"));
            // The title stands above the data: a machine without fonts must show it too.
            int dark = Enumerable.Range(0, bitmap.Width * 50).Count(i => bitmap.GetPixel(i % bitmap.Width, i / bitmap.Width).Red < 100);
            Assert.InRange(dark, 300, 20_000);
        }
    }

    [Theory]
    [InlineData(4, 100)]
    [InlineData(1, 400)]
    public void The_kept_map_has_every_token_of_every_head_in_its_place(int heads, int tokens)
    {
        var dump = new TestDump(1);
        foreach (string role in (string[])["key", "value", "key_pre_rope", "query"])
        {
            var (type, _, bytes) = dump.Tensors[$"layers.0.{role}"];
            dump.Tensors[$"layers.0.{role}"] = (type, [tokens, role == "query" ? 2 * heads : heads, TestDump.Dim], bytes);
        }
        var result = Tool.Run("compress", dump.Save(At("in.safetensors")), "--retention", "0.3", "--report", At("r"), "--out", At("out.safetensors"));
        Assert.True(result.ExitCode == 0, result.Error);
        using var output = SafetensorsFile.Open(At("out.safetensors"));
        int[] indices = output.Tensors["layers.0.kept_indices"].ToInt32(), offsets = output.Tensors["layers.0.kept_offsets"].ToInt32();
        using var bitmap = SKBitmap.Decode(At("r/layer-0-kept.png"));
        // The data lies within the margins that every picture has.
        double top = 63, bottom = bitmap.Height - 78, left = 111, right = Width - 252;
        for (int head = 0; head < heads; head++)
            for (int token = 0; token < tokens; token++)
            {
                var pixel = bitmap.GetPixel((int)(left + (token + 0.5) * (right - left) / tokens), (int)(top + (head + 0.25) * (bottom - top) / heads));
                Assert.True(pixel.Red < 100 == indices[offsets[head]..offsets[head + 1]].Contains(token), $"head {head}, token {token}: {pixel}");
            }
    }

    [Theory]
    [InlineData(16, 0.5)]
    [InlineData(50, 0.25)]
    [InlineData(128, 0.5)]
    [InlineData(256, 1.0)]
    public void Blocks_are_those_of_the_lengths(int blockSize, double retention)
    {
        int[] tokens = [150, 0, 351, 1];
        int[] offsets = [0, 150, 150, 501, 502];
        var json = Tool.Run("compress", new TestDump(2, offsets).Save(At("in.safetensors")), "--retention", FormattableString.Invariant($"{retention}"),
            "--block-size", $"{blockSize}", "--json").Json;
        Assert.Equal(blockSize, json.GetProperty("paged_cache").GetProperty("block_size").GetInt32());
        long blockBytes = 2L * blockSize * TestDump.Dim * 2, sumBefore = 0, sumAfter = 0;
        foreach (var layer in json.GetProperty("layers").EnumerateArray())
        {
            long before = tokens.Sum(n => (n + blockSize - 1) / blockSize) * TestDump.KvHeads;
            long after = layer.GetProperty("kept_tokens_per_head").EnumerateArray().Sum(length => (length.GetInt32() + blockSize - 1) / blockSize);
            Assert.Equal(before, layer.GetProperty("blocks_before").GetInt64());
            Assert.Equal(after, layer.GetProperty("blocks_after").GetInt64());
            Assert.Equal((before - after) * blockBytes, layer.GetProperty("bytes_returned").GetInt64());
            Assert.Equal(before * blockSize - layer.GetProperty("pairs").GetInt64(), layer.GetProperty("unused_slots_before").GetInt64());
            Assert.Equal(after * blockSize - layer.GetProperty("kept_pairs").GetInt64(), layer.GetProperty("unused_slots_after").GetInt64());
            (sumBefore, sumAfter) = (sumBefore + before, sumAfter + after);
        }
        var total = json.GetProperty("total");
        Assert.Equal(sumBefore, total.GetProperty("blocks_before").GetInt64());
        Assert.Equal(sumAfter, total.GetProperty("blocks_after").GetInt64());
        Assert.Equal((sumBefore - sumAfter) * blockBytes, total.GetProperty("bytes_returned").GetInt64());
    }

    [Fact]
    public void Many_layers_need_a_smaller_pool_than_all_of_them_whole()
    {
        var json = Tool.Run("compress", new TestDump(6, [0, 400]).Save(At("in.safetensors")), "--retention", "0.25", "--block-size", "16", "--json").Json;
        Assert.True(json.GetProperty("paged_cache").GetProperty("pool_blocks").GetInt64() < json.GetProperty("total").GetProperty("blocks_before").GetInt64() * 2 / 3);
    }

    [Fact]
    public void Layers_of_different_shapes_go_through_pools_of_their_own()
    {
        var dump = new TestDump();
        foreach (var (role, heads) in ((string, int)[])[("key", 1), ("value", 1), ("key_pre_rope", 1), ("query", 2)])
        {
            var (type, _, bytes) = dump.Tensors[$"layers.1.{role}"];
            dump.Tensors[$"layers.1.{role}"] = (type, [200, heads, 2 * TestDump.Dim], bytes);
        }
        var layers = Tool.Run("compress", dump.Save(At("in.safetensors")), "--report", At("r"), "--json").Json.GetProperty("layers");
        Assert.Equal([4, 2], layers.EnumerateArray().Select(layer => layer.GetProperty("blocks_before").GetInt32()));
    }

    [Theory]
    [InlineData("paper")]
    [InlineData("kvpress")]
    public void Curves_are_what_each_policy_costs(string preset)
    {
        string input = new TestDump(1).Save(At("in.safetensors"));
        // compiled as these tests are: machine code made ahead adds up in another order
        var curves = Tool.RunBuilt("compress", input, "--preset", preset, "--report", At("r"), "--json").Json.GetProperty("layers")[0].GetProperty("curves");
        using var dump = KvDump.Open(input);
        using var backend = new CpuBackend();
        var (shape, inputs) = (dump.Layers[0].Shape, dump.Layers[0].Inputs);
        var error = OutputError.OfLastTokens(shape, inputs.Key, inputs.Value, inputs.Query!.Value, 16);
        var options = CompressionPresets.ByName[preset];
        foreach (int point in (int[])[0, 3, 9, 16, 19])
        {
            var plan = new LayerPlan(shape, options, Budget.Retention((point + 1) / 20.0));
            Assert.Equal((point + 1) / 20.0, Curve("retention"), 1e-12);
            Assert.Equal(plan.KeptPairs / 400.0, Curve("kept_share"), 1e-12);
            Assert.Equal(Of(plan, SelectionPolicy.Compactor), Curve("compactor"), 1e-9);
            Assert.Equal(Of(plan, SelectionPolicy.LeverageOnly), Curve("leverage"), 1e-9);
            Assert.Equal(Of(plan, SelectionPolicy.AttentionOnly), Curve("attention"), 1e-9);
            Assert.Equal(Of(plan.WithoutProtection(), SelectionPolicy.Random(options.Seed)), Curve("random"), 1e-9);
            Assert.Equal(Of(plan.WithoutProtection(), SelectionPolicy.Recent), Curve("recent"), 1e-9);

            double Curve(string name) => curves.GetProperty(name)[point].GetDouble();
        }

        double Of(LayerPlan plan, SelectionPolicy policy)
        {
            using var selection = LayerCompressor.Select(backend, plan, inputs, policy);
            return error.Of((selection.KeptIndices.View.AsSpan().ToArray(), selection.KeptOffsets.View.AsSpan().ToArray()))[0];
        }
    }

    [Fact]
    public void Without_queries_there_is_no_error_to_draw_and_the_page_says_so()
    {
        Assert.Equal(0, Tool.Run("compress", new TestDump(1, numbered: false).Without("query").Save(At("in.safetensors")), "--report", At("r")).ExitCode);
        Assert.Equal((string[])["index.html", "layer-0-kept.png", "layer-0-scores.png", "lengths.png", "report.json"], Files("r"));
        Assert.Contains("cannot be measured", File.ReadAllText(At("r/index.html")));
    }

    [Fact]
    public void With_everything_kept_there_are_no_scores_to_draw_and_the_page_says_so()
    {
        Assert.Equal(0, Tool.Run("compress", new TestDump(1).Save(At("in.safetensors")), "--retention", "1", "--report", At("r")).ExitCode);
        Assert.Equal((string[])["index.html", "layer-0-kept.png", "lengths.png", "report.json"], Files("r"));
        Assert.Contains("nothing was scored", File.ReadAllText(At("r/index.html")));
    }

    [Fact]
    public void A_folder_that_cannot_be_a_report_is_refused_before_anything_is_computed()
    {
        // The input does not exist: were it looked for first, the message would be about it.
        void Refused(string folder, params string[] mentions) => Tool.Run("compress", At("absent"), "--report", folder).FailsWith(1, [folder, .. mentions]);
        File.WriteAllText(At("file"), "");
        Refused(At("file"), "a file; name a folder");
        Refused(At("no/such"), "does not exist; create that first");
        Refused("/", "root");
        Directory.CreateDirectory(At("mine"));
        File.WriteAllText(At("mine/photo.png"), "mine");
        Refused(At("mine"), "'photo.png'", "name a new folder");
        Directory.CreateDirectory(At("nested/sub.png"));
        File.WriteAllText(At("nested/index.html"), "mine");
        Refused(At("nested"), "'sub.png'");
        Directory.CreateDirectory(At("page"));
        File.WriteAllText(At("page/index.html"), "mine");
        Refused(At("page"), "'index.html'");
        Directory.CreateDirectory(At("shared"));
        File.WriteAllText(At("shared/index.html"), """<meta name="generator" content="compactor report">""");
        File.WriteAllText(At("shared/holiday.png"), "mine");
        Refused(At("shared"), "'holiday.png'");
        if (OperatingSystem.IsLinux())
            Refused("/proc/report", "cannot be written");
        Assert.Equal("mine", File.ReadAllText(At("mine/photo.png")));
        Assert.Equal("mine", File.ReadAllText(At("shared/holiday.png")));
        Assert.Equal(["file", "mine", "nested", "page", "shared"], Files("."));
    }

    [Fact]
    public void An_earlier_report_is_replaced_and_only_by_a_whole_one()
    {
        string input = new TestDump(2).Save(At("in.safetensors"));
        Directory.CreateDirectory(At("r"));
        Assert.Equal(0, Tool.Run("compress", input, "--report", At("r")).ExitCode);
        Assert.Contains("layer-1-kept.png", Files("r"));
        string before = File.ReadAllText(At("r/report.json"));

        string bad = new TestDump(2).With("layers.1.key", 5, Half.NaN).Save(At("bad.safetensors"));
        Tool.Run("compress", bad, "--report", At("r")).FailsWith(1, "Layer 1");
        Tool.Run("compress", input, "--report", At("r"), "--out", At("r/out.safetensors")).FailsWith(1, "within the folder of --report");
        Assert.Equal(before, File.ReadAllText(At("r/report.json")));

        Assert.Equal(0, Tool.Run("compress", new TestDump(1).Save(input), "--report", At("r")).ExitCode);
        Assert.DoesNotContain("layer-1-kept.png", Files("r"));
        Assert.Equal(["bad.safetensors", "in.safetensors", "r"], Files("."));
    }

    [Theory]
    [InlineData("1")]
    [InlineData("0.5")]
    public void A_cache_without_tokens_has_lengths_and_no_maps(string retention)
    {
        var result = Tool.Run("compress", new TestDump(2, [0, 0, 0]).Save(At("in.safetensors")), "--retention", retention, "--report", At("r"));
        Assert.True(result.ExitCode == 0, result.Error);
        Assert.Equal((string[])["index.html", "lengths.png", "report.json"], Files("r"));
    }

    [Fact]
    public void A_link_to_a_report_stays_one()
    {
        string input = new TestDump().Save(At("in.safetensors"));
        Directory.CreateDirectory(At("real"));
        Directory.CreateSymbolicLink(At("link"), "real");
        Directory.CreateSymbolicLink(At("dangling"), "new");
        foreach (var (link, folder) in ((string, string)[])[("link", "real"), ("link", "real"), ("dangling", "new")])
        {
            var result = Tool.Run("compress", input, "--report", At(link));
            Assert.True(result.ExitCode == 0, result.Error);
            Assert.Equal(folder, new FileInfo(At(link)).LinkTarget);
            Assert.Contains("index.html", Files(folder));
        }
        Tool.Run("compress", input, "--report", At("link"), "--out", At("real/out")).FailsWith(1, "within the folder of --report");
        Assert.Equal((string[])["dangling", "in.safetensors", "link", "new", "real"], Files(""));
    }

    [Fact]
    public void Demo_writes_its_report_to_the_current_folder_and_says_where()
    {
        var result = Tool.RunIn(At("."), "demo");
        Assert.True(result.ExitCode == 0, result.Error);
        Assert.Contains("open compactor-demo-report/index.html", result.Output.Replace('\\', '/'));
        Assert.Equal(3 + 1 + 3 * 4, Files("compactor-demo-report").Length);
        Assert.Contains("<h2>Layer 3</h2>", File.ReadAllText(At("compactor-demo-report/index.html")));
    }
}
