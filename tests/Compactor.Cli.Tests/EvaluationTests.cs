using System.Text.Json;
using Xunit;

namespace Compactor.Cli.Tests;

public sealed class EvaluationTests : TemporaryFolder
{
    private static readonly string[] s_short = ["--length", "256", "--samples", "1", "--seeds", "3", "--tasks", "multi-key,single-keys"];

    [Fact]
    public void Eval_tells_shares_of_the_full_score_in_figures_pictures_and_tables()
    {
        string[] arguments = ["eval", .. s_short, "--policies", "compactor,streaming", "--retention", "1,0.5,0.2"];
        var json = Tool.Run([.. arguments, "--json", "--report", At("report")]).Json;
        Assert.Equal(8, json.GetProperty("questions").GetInt32());
        var results = json.GetProperty("results").EnumerateArray().ToArray();
        Assert.Equal([("compactor", 0.5), ("compactor", 0.2), ("streaming", 0.5), ("streaming", 0.2)],
            results.Select(result => (result.GetProperty("policy").GetString()!, result.GetProperty("retention").GetDouble())));
        Assert.All(results, result =>
        {
            var share = result.GetProperty("share_of_full_score");
            Assert.InRange(share.GetProperty("value").GetDouble(), share.GetProperty("low").GetDouble(), share.GetProperty("high").GetDouble());
        });
        Assert.Equal(["index.html", "report.json", "shares.png"], Directory.GetFiles(At("report")).Select(file => Path.GetFileName(file)!).Order());
        using var written = JsonDocument.Parse(File.ReadAllText(At("report/report.json")));
        Assert.Equal(results[0].GetRawText(), written.RootElement.GetProperty("results")[0].GetRawText());

        string text = Tool.Run([.. arguments, "--markdown"]).Output;
        Assert.Contains("| Policy | 50% | 20% |", text);
        Assert.Matches(@"\| compactor \| \d+\.\d \[\d+\.\d, \d+\.\d\] \|", text);
        Assert.Contains("8 questions", text);
    }

    [Fact]
    public void Calibrate_writes_a_calibration_that_generate_uses()
    {
        File.WriteAllText(At("prompt.txt"), string.Concat(Enumerable.Repeat("The grass is green . The sky is blue . ", 20)) + "One special magic number for zole is 64 85 . " + string.Concat(Enumerable.Repeat("Here we go . ", 30)));
        var json = Tool.Run(["calibrate", .. s_short, "--fit-samples", "2", "--fit-tasks", "single-noise,single-keys", "--fit-retention", "0.1,0.5", "--out", At("c.json"), "--json", "--report", At("report")]).Json;
        Assert.Equal(8, json.GetProperty("fit_samples").GetInt32());
        Assert.Equal([false, true], json.GetProperty("tasks").EnumerateArray().Select(task => task.GetProperty("fitted_on").GetBoolean()));
        Assert.Equal(["curves.png", "index.html", "report.json", "retained.png"], Directory.GetFiles(At("report")).Select(file => Path.GetFileName(file)!).Order());

        using var file = JsonDocument.Parse(File.ReadAllText(At("c.json")));
        Assert.Equal(json.GetProperty("alpha").GetDouble(), file.RootElement.GetProperty("alpha").GetDouble());
        var answered = Tool.Run("generate", "--prompt", At("prompt.txt"), "--question", "What is the special magic number for zole ? The special magic number for zole is", "--quality", "0.9", "--calibration", At("c.json"), "--stop", ".");
        Assert.True(answered.ExitCode == 0, answered.Error);
        Assert.Contains("64 85", answered.Output);
    }

    [Theory]
    [InlineData("--policies", "snap", "snapkv")]
    [InlineData("--tasks", "niah", "single-noise")]
    [InlineData("--tasks", "variables,variables", "twice")]
    [InlineData("--retention", "0.5,2", "'2'")]
    [InlineData("--seeds", "1,-2", "'-2'")]
    [InlineData("--samples", "0", "--samples is 0")]
    [InlineData("--length", "4096", "1024")]
    [InlineData("--threads", "-1", "--threads is -1")]
    public void A_wrong_value_is_named_with_what_is_accepted(string option, string value, string mention) => Tool.Run("eval", option, value).FailsWith(2, mention);

    [Fact]
    public void A_length_too_short_for_a_task_fails_and_writes_nothing()
    {
        Tool.Run("eval", "--length", "60", "--tasks", "multi-value", "--policies", "random", "--report", At("report")).FailsWith(1, "does not hold");
        Assert.False(Directory.Exists(At("report")));
        Tool.Run("calibrate", "--out", At("none/c.json")).FailsWith(1, "does not exist");
    }
}
