using System.Diagnostics;
using System.Globalization;
using System.Security.Cryptography;
using System.Text.Json;
using Compactor.Native.Calibration;
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

        var saved = RetentionCalibration.Load(At("c.json"));
        Assert.Equal(json.GetProperty("alpha").GetDouble(), saved.Alpha);
        Assert.Equal((json.GetProperty("model_fingerprint").GetString(), json.GetProperty("method").GetString()), (saved.Model, saved.Method));
        string[] generate = ["generate", "--prompt", At("prompt.txt"), "--question", "What is the special magic number for zole ? The special magic number for zole is", "--quality", "0.9", "--calibration", At("c.json"), "--stop", "."];
        var answered = Tool.Run([.. generate, "--seed", "7"]);
        Assert.True(answered.ExitCode == 0, answered.Error);
        Assert.Contains("64 85", answered.Output);
        Assert.Empty(answered.Error);
        Tool.Run([.. generate, "--lambda", "1"]).FailsWith(1, At("c.json"), "compactor lambda=0.3;", "compactor lambda=1.", "--retention");
    }

    [Theory]
    [InlineData("compactor", "Use it with generate --quality.")]
    [InlineData("compactor", "options of the method given here", "--lambda", "1")]
    [InlineData("kvpress", "--preset kvpress")]
    [InlineData("leverage", "generate does not compress")]
    public void Calibrate_says_what_its_calibration_is_for(string policy, string use, params string[] options)
    {
        var fitted = Tool.Run(["calibrate", "--length", "256", "--samples", "1", "--seeds", "3", "--tasks", "single-keys", "--fit-samples", "1", "--fit-tasks", "single-noise,single-keys", "--fit-retention", "0.1,0.5",
            "--out", At("c.json"), "--policy", policy, .. options]);
        Assert.True(fitted.ExitCode == 0, fitted.Error);
        Assert.Contains(use, fitted.Output);
        string method = RetentionCalibration.Load(At("c.json")).Method!;
        Assert.StartsWith(policy == "leverage" ? "leverage " : "compactor ", method);
        Assert.DoesNotContain("seed", method);
        string[] generate = ["generate", "--prompt", At("prompt.txt"), "--quality", "0.9", "--max-tokens", "2", "--calibration", At("c.json")];
        File.WriteAllText(At("prompt.txt"), string.Concat(Enumerable.Repeat("Here we go . ", 30)));
        var same = Tool.Run([.. generate, .. policy == "kvpress" ? ["--preset", policy] : options]);
        if (policy == "leverage")
            same.FailsWith(1, "fitted for leverage; this is compactor.");
        else
            Assert.True(same.ExitCode == 0, same.Error);
    }

    [Fact]
    public void Reports_say_with_what_and_when_they_were_made()
    {
        var calibrated = Tool.Run(["calibrate", .. s_short, "--fit-samples", "2", "--fit-tasks", "single-noise,single-keys", "--fit-retention", "0.1,0.5", "--out", At("c.json"), "--json"]).Json;
        var compared = Tool.Run(["eval", .. s_short, "--policies", "random", "--retention", "0.5", "--json"]).Json;
        string fingerprint = Convert.ToHexStringLower(SHA256.HashData(File.ReadAllBytes(Path.Combine(AppContext.BaseDirectory, "Models", "needle", "model.safetensors"))))[..16];
        foreach (var json in (JsonElement[])[calibrated, compared])
        {
            Assert.InRange(DateTime.ParseExact(json.GetProperty("date").GetString()!, "yyyy-MM-dd", CultureInfo.InvariantCulture), DateTime.UtcNow.AddDays(-1), DateTime.UtcNow);
            Assert.Equal(Environment.ProcessorCount, json.GetProperty("processor_cores").GetInt32());
            Assert.Equal(("needle", fingerprint), (json.GetProperty("model").GetString(), json.GetProperty("model_fingerprint").GetString()));
            Assert.Equal([3], json.GetProperty("seeds").EnumerateArray().Select(seed => seed.GetInt32()));
        }
        Assert.Equal(["single-noise", "single-keys"], calibrated.GetProperty("fit_tasks").EnumerateArray().Select(task => task.GetString()));
        Assert.StartsWith("compactor sketch=48 ", calibrated.GetProperty("method").GetString());
        var tasks = calibrated.GetProperty("tasks").EnumerateArray().ToArray();
        Assert.Equal(1 - tasks.Average(task => task.GetProperty("kept_share").GetDouble()), calibrated.GetProperty("dropped_share").GetDouble(), 12);
        Assert.True(JsonElement.DeepEquals(tasks[0].GetProperty("loss"), calibrated.GetProperty("loss_on_tasks_not_fitted_on")));
    }

    [Fact]
    public void Questions_in_one_conversation_are_told_in_figures_picture_and_table()
    {
        string[] arguments = ["eval", "--multi-turn", .. s_short, "--policies", "compactor,leverage", "--retention", "0.5"];
        var json = Tool.Run([.. arguments, "--json", "--report", At("report")]).Json;
        Assert.True(json.GetProperty("multi_turn").GetBoolean());
        Assert.Equal(8, json.GetProperty("questions").GetInt32());
        Assert.All(json.GetProperty("results").EnumerateArray(), result => Assert.InRange(result.GetProperty("share_of_full_score").GetProperty("value").GetDouble(), 0, 2));
        Assert.Equal(["index.html", "report.json", "shares.png"], Directory.GetFiles(At("report")).Select(file => Path.GetFileName(file)!).Order());
        Assert.Contains("questions in conversations", File.ReadAllText(At("report/index.html")));
        Assert.Contains("questions in conversations", Tool.Run(arguments).Output);
    }

    [Theory]
    [InlineData("--policies", "snap", "snapkv")]
    [InlineData("--tasks", "niah", "single-noise")]
    [InlineData("--tasks", "variables,variables", "twice")]
    [InlineData("--retention", "0.5,2", "'2'")]
    [InlineData("--retention", "1", "--retention is 1")]
    [InlineData("--lambda", "0,3", "--lambda is '0,3'")]
    [InlineData("--seeds", "1,-2", "'-2'")]
    [InlineData("--samples", "0", "--samples is 0")]
    [InlineData("--length", "4096", "1024")]
    [InlineData("--threads", "-1", "--threads is -1")]
    public void A_wrong_value_is_named_with_what_is_accepted(string option, string value, string mention) => Tool.Run("eval", option, value).FailsWith(2, mention);

    [Fact]
    public void Shares_that_teach_nothing_are_refused_before_the_work() =>
        Tool.Run("calibrate", "--out", At("c.json"), "--fit-retention", "0.5,1").FailsWith(2, "--fit-retention holds 1");

    [Fact]
    public void A_preset_among_the_policies_takes_no_other_options() =>
        Tool.Run("calibrate", "--out", At("c.json"), "--policy", "kvpress", "--lambda", "1").FailsWith(2, "--policy kvpress", "--preset kvpress");

    [Fact]
    public void A_length_too_short_for_a_task_fails_and_writes_nothing()
    {
        Tool.Run("eval", "--length", "60", "--tasks", "multi-value", "--policies", "random", "--report", At("report")).FailsWith(1, "does not hold");
        Assert.False(Directory.Exists(At("report")));
    }

    [Fact]
    public void A_calibration_that_could_not_be_written_is_refused_before_the_work()
    {
        Directory.CreateDirectory(At("folder"));
        // Too short for its task: were the file not looked at first, that would be the failure.
        void Refused(string output, params string[] mentions) =>
            Tool.Run("calibrate", "--length", "60", "--fit-tasks", "multi-value", "--report", At("report"), "--out", output).FailsWith(1, ["--out is", output, .. mentions]);
        Refused("", "empty; name a file");
        Refused(At("none/c.json"), "does not exist");
        Refused(At("folder"), "a folder; name a file in it");
        Refused(At("report/c.json"), "within the folder of --report");
        if (OperatingSystem.IsLinux())
        {
            Refused("/proc/c.json", "cannot be written");
            Tool.Run("calibrate", "--length", "60", "--fit-tasks", "multi-value", "--out", "/dev/fd/1").FailsWith(1, "/dev/fd/1", "not a regular file");
        }
        Assert.Equal([At("folder")], Directory.GetFileSystemEntries(At(".")).Select(Path.GetFullPath));
        Assert.Empty(Directory.GetFileSystemEntries(At("folder")));
    }

    [Fact]
    public void No_calibration_is_written_without_the_report_it_was_asked_with()
    {
        Assert.SkipUnless(OperatingSystem.IsLinux(), "a named pipe shows when the model is opened");
        Directory.CreateDirectory(At("model"));
        string bundled = Path.Combine(AppContext.BaseDirectory, "Models", "needle");
        foreach (string name in (string[])["config.json", "model.safetensors"])
            File.CreateSymbolicLink(At($"model/{name}"), Path.Combine(bundled, name));
        using (var mkfifo = Process.Start("mkfifo", [At("model/tokenizer.json")]))
            mkfifo.WaitForExit();
        using var process = Tool.Start(["calibrate", .. s_short, "--fit-samples", "1", "--model", At("model"), "--out", At("c.json"), "--report", At("report")]);
        var error = process.StandardError.ReadToEndAsync();
        using (var tokenizer = new FileStream(At("model/tokenizer.json"), FileMode.Open, FileAccess.Write))
        {
            // The tool has found the report's folder free, and waits for the tokenizer.
            Directory.CreateDirectory(At("report"));
            File.WriteAllText(At("report/photo.png"), "mine");
            tokenizer.Write(File.ReadAllBytes(Path.Combine(bundled, "tokenizer.json")));
        }
        process.WaitForExit();
        Assert.Equal(1, process.ExitCode);
        Assert.Contains("'photo.png'", error.Result);
        Assert.False(File.Exists(At("c.json")), "the calibration was written");
        Assert.Equal("mine", File.ReadAllText(At("report/photo.png")));
    }
}
