using System.Text.Json;
using System.Text.RegularExpressions;
using Compactor.Native.Calibration;
using Xunit;

namespace Compactor.Cli.Tests;

public partial class GenerateTests : TemporaryFolder
{
    private const string Needle = "One special magic number for vinu is 91 17 .";

    private static readonly string[] s_noise = ["The grass is green .", "The sky is blue .", "The sun is yellow .", "Here we go .", "There and back again ."];

    private string Prompt
    {
        get
        {
            string path = At("prompt.txt");
            File.WriteAllText(path, string.Join('\n', Enumerable.Range(0, 60).Select(i => i == 25 ? Needle : s_noise[i * 7 % 5])));
            return path;
        }
    }

    [Fact]
    public void A_question_is_answered_from_half_of_the_cache()
    {
        var json = Tool.Run("generate", "--prompt", Prompt, "--question", "What is the special magic number for vinu ?", "--stop", ".", "--retention", "0.5", "--json").Json;
        Assert.Equal("The special magic number for vinu is 91 17 .", Answer(json, 0).GetProperty("text").GetString());
        long pairs = json.GetProperty("pairs").GetInt64();
        Assert.Equal(json.GetProperty("prompt_tokens").GetInt64() * 2 * 4, pairs);
        Assert.InRange(json.GetProperty("kept_pairs").GetInt64(), pairs / 2, pairs * 6 / 10);
        Assert.Equal(JsonValueKind.Null, json.GetProperty("prompt_nll").ValueKind);
    }

    [Fact]
    public void The_command_that_the_README_shows_answers()
    {
        string readme = File.ReadAllText(Path.Combine(AppContext.BaseDirectory, "README.md"));
        string command = Assert.Single(readme.Split('\n'), line => line.StartsWith("compactor generate ", StringComparison.Ordinal));
        string[] arguments = [.. Argument().Matches(command).Select(match => match.Value.Trim('"')).Skip(1)];
        var answered = Tool.RunIn(AppContext.BaseDirectory, arguments);
        Assert.True(answered.ExitCode == 0, answered.Error);
        Assert.Contains("is 91 17 .\n", answered.Output);
    }

    [Theory]
    [InlineData(2, "--retention is '0,1'", "--retention", "0,1")]
    [InlineData(2, "--stop is empty", "--stop", "")]
    [InlineData(1, "is a folder", "--quality", "0.9", "--calibration", "/")]
    public void What_would_mislead_is_refused(int exitCode, string mention, params string[] options) => Tool.Run(["generate", "--prompt", Prompt, .. options]).FailsWith(exitCode, mention);

    [Theory]
    [InlineData("")]
    [InlineData(" \n")]
    public void A_prompt_without_words_is_refused(string text)
    {
        File.WriteAllText(At("empty.txt"), text);
        Tool.Run("generate", "--prompt", At("empty.txt")).FailsWith(1, At("empty.txt"), "has no tokens");
    }

    [Fact]
    public void Questions_are_asked_independently_and_printed_with_their_answers()
    {
        string[] options = ["--prompt", Prompt, "--max-tokens", "12", "--stop", "."];
        var both = Tool.Run(["generate", .. options, "--question", "What is the special magic number for vinu ?", "--question", "The sky is"]);
        Assert.True(both.ExitCode == 0, both.Error);
        Assert.Contains("> What is the special magic number for vinu ?\nThe special magic number for vinu is 91 17 .\n", both.Output, StringComparison.Ordinal);
        var alone = Tool.Run(["generate", .. options, "--question", "The sky is", "--json"]).Json;
        Assert.EndsWith($"> The sky is\n{Answer(alone, 0).GetProperty("text").GetString()}\n", both.Output, StringComparison.Ordinal);
    }

    [Fact]
    public void Without_a_question_the_prompt_is_continued()
    {
        var json = Tool.Run("generate", "--prompt", Prompt, "--retention", "1", "--max-tokens", "5", "--json").Json;
        Assert.Equal(JsonValueKind.Null, Answer(json, 0).GetProperty("question").ValueKind);
        Assert.Equal(5, Answer(json, 0).GetProperty("tokens").GetArrayLength());
        Assert.Equal(json.GetProperty("pairs").GetInt64(), json.GetProperty("kept_pairs").GetInt64());
    }

    [Fact]
    public void Sampling_depends_on_its_seed_alone()
    {
        string prompt = Prompt;
        string Text(string seed, string threads) => Answer(Tool.Run("generate", "--prompt", prompt, "--temperature", "2", "--top-p", "0.99", "--sampling-seed", seed, "--threads", threads,
            "--max-tokens", "20", "--json").Json, 0).GetProperty("text").GetString()!;
        Assert.Equal(Text("1", "1"), Text("1", "2"));
        Assert.NotEqual(Text("1", "1"), Text("2", "1"));
    }

    [Fact]
    public void Quality_decides_the_retention_by_the_likelihood_of_the_prompt()
    {
        var calibration = new RetentionCalibration(-1, -2);
        calibration.Save(At("calibration.json"));
        var json = Tool.Run("generate", "--prompt", Prompt, "--quality", "0.9", "--calibration", At("calibration.json"), "--max-tokens", "3", "--json").Json;
        double nll = json.GetProperty("prompt_nll").GetDouble();
        Assert.InRange(nll, 0.1, 6);
        Assert.Equal(calibration.RetentionFor(0.9, nll), json.GetProperty("retention").GetDouble(), 1e-12);
        Assert.True(json.GetProperty("kept_pairs").GetInt64() < json.GetProperty("pairs").GetInt64());
    }

    [Fact]
    public void A_calibration_is_used_for_what_it_was_fitted_for_and_for_nothing_else()
    {
        string[] generate = ["generate", "--prompt", Prompt, "--quality", "0.9", "--max-tokens", "2", "--calibration", At("c.json")];
        new RetentionCalibration(-1, -2) { Model = "0123456789abcdef" }.Save(At("c.json"));
        Tool.Run(generate).FailsWith(1, At("c.json"), "0123456789abcdef", "'needle' is ", "compactor calibrate --model", "--retention");
        new RetentionCalibration(-1, -2) { Method = "leverage sketch=48" }.Save(At("c.json"));
        Tool.Run(generate).FailsWith(1, "fitted for leverage;", "this is compactor ", "compactor calibrate", "--retention");

        new RetentionCalibration(-1, -2).Save(At("c.json"));
        var used = Tool.Run(generate);
        Assert.Equal(0, used.ExitCode);
        Assert.Equal($"compactor: note: '{At("c.json")}' does not say for which model and which options of the method it was fitted; whether that is what is used here is not known.\n", used.Error);

        var bundled = Tool.Run(generate[..^2]);
        Assert.Equal((0, ""), (bundled.ExitCode, bundled.Error));
        Tool.Run([.. generate[..^2], "--preset", "kvpress"]).FailsWith(1, "calibration.json", "lambda=auto");
    }

    [Fact]
    public void Wrong_use_is_one_line_that_says_what_to_do()
    {
        string prompt = Prompt;
        Tool.Run("generate", "--prompt", prompt, "--retention", "0.5", "--quality", "0.9").FailsWith(2, "--retention", "--quality");
        Tool.Run("generate", "--prompt", prompt, "--calibration", At("c.json")).FailsWith(2, "--quality");
        Tool.Run("generate", "--prompt", prompt, "--retention", "1.5").FailsWith(2, "--retention is 1.5");
        Tool.Run("generate", "--prompt", prompt, "--max-tokens", "0").FailsWith(2, "--max-tokens is 0; use 1 or more");
        Tool.Run("generate", "--prompt", prompt, "--top-p", "2").FailsWith(2, "--top-p is 2; use a probability above 0, up to 1");
        Tool.Run("generate", "--prompt", prompt, "--temperature=-1").FailsWith(2, "--temperature is -1; use 0");
        Tool.Run("generate", "--prompt", prompt, "--quality", "0.9", "--calibration", At("none.json")).FailsWith(1, "none.json", "does not exist");
        Tool.Run("generate", "--prompt", At("none.txt")).FailsWith(1, "none.txt");
        Tool.Run("generate", "--prompt", prompt, "--model", At("none")).FailsWith(1, At("none"));
        Tool.Run("generate", "--prompt", prompt, "--question", "Unheard words").FailsWith(1, "'Unheard'", "650 words", "another model");
        Tool.Run("generate", "--prompt", prompt, "--question", " ").FailsWith(1, "Question 1");
        Tool.Run("generate", "--prompt", prompt, "--max-tokens", "2000").FailsWith(1, "1024", "--max-tokens");
    }

    [GeneratedRegex("\"[^\"]*\"|[^ ]+")]
    private static partial Regex Argument();

    private static JsonElement Answer(JsonElement json, int index) => json.GetProperty("answers")[index];
}
