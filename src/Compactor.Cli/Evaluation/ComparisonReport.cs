using System.Globalization;
using System.Text;
using System.Text.Json;
using Compactor.Cli.Reporting;
using Compactor.Host.Evaluation;
using Spectre.Console;

namespace Compactor.Cli.Evaluation;

/// <summary>A comparison of policies as tables, JSON, and a page.</summary>
/// <param name="Comparison">What was measured.</param>
/// <param name="Trials">Model and contexts.</param>
/// <param name="Options">Options of the method, by name.</param>
/// <param name="Time">How long it took.</param>
internal sealed record ComparisonReport(PolicyComparison Comparison, Trials Trials, IReadOnlyList<(string Name, string Value)> Options, TimeSpan Time)
{
    private const string Explanation =
        "Share of the full cache's score that is kept: exact match of all answers, mean over tasks, with 95% intervals of a paired bootstrap over contexts. " +
        "In every row the first 4 and last 16 tokens are kept on top of the budget, save for kvpress and compactor-vllm, which have rules of their own.";

    private readonly Interval[][] _shares = [.. Comparison.Plan.Methods.Select((_, m) => Comparison.Plan.Retentions.Select((_, r) => Comparison.ShareOfFull(m, r)).ToArray())];

    // Against the first method.
    private readonly Interval[][] _differences = [.. Comparison.Plan.Methods.Select((_, m) => Comparison.Plan.Retentions.Select((_, r) => Comparison.Difference(m, 0, r)).ToArray())];

    private readonly Interval _full = Comparison.Full();

    private ComparisonPlan Plan => Comparison.Plan;

    private string Summary => string.Create(CultureInfo.InvariantCulture,
        $"{Plan.Tasks.Count} tasks, {Plan.Seeds.Count} seeds, {Plan.PerSeed} contexts of each with {Trials.Length} tokens: {Comparison.Questions} questions{(Trials.Turns ? " in conversations" : "")} " +
        $"for each policy and retention. The full cache answers {Range(_full)}. {Time.TotalMinutes:0.0} minutes.");

    /// <summary>Prints to standard output.</summary>
    /// <param name="json">Whether as JSON.</param>
    /// <param name="markdown">Whether tables are Markdown.</param>
    /// <param name="folder">Where the report is, or null.</param>
    public void Print(bool json, bool markdown, string? folder)
    {
        if (json)
        {
            JsonDocumentWriter.Write(WriteJson);
            return;
        }
        Console.WriteLine(Summary);
        EvaluationTables.Print(markdown, SharesTable());
        Console.WriteLine(Explanation);
        EvaluationTables.Print(markdown, ScoresTable());
        Console.WriteLine("Scores of each task, full cache first.");
        if (folder is not null)
            Console.WriteLine($"Report: open {Path.Combine(folder, ReportFolder.Page)} in a browser; the pictures are beside it.");
    }

    /// <summary>The report's files.</summary>
    public IEnumerable<(string Name, byte[] Content)> Files()
    {
        var picture = SharePicture.Draw(Comparison, _shares);
        var page = new HtmlPage("Does the model still answer?", Summary, Explanation);
        page.Show(picture, "Share of the full cache's score against the share of (token, head) pairs kept, protected tokens included.");
        var shares = SharesTable();
        page.Table(shares.Headers, shares.Rows);
        page.Heading("Against " + Plan.Methods[0].Name);
        page.Table(["Policy", .. Plan.Retentions.Select(EvaluationTables.Retention)], [.. Plan.Methods.Select((method, m) => (string[])[method.Name, .. _differences[m].Select(Range)]).Skip(1)]);
        page.Small($"Share of the policy less that of {Plan.Methods[0].Name}, in points.");
        page.Heading("Tasks");
        var scores = ScoresTable();
        page.Table(scores.Headers, scores.Rows);
        return [(ReportFolder.Page, Encoding.UTF8.GetBytes(page.Html)), (ReportFolder.Figures, JsonDocumentWriter.Bytes(WriteJson)), (picture.Name, picture.Png)];
    }

    private (string[] Headers, string[][] Rows) SharesTable() =>
        (["Policy", .. Plan.Retentions.Select(EvaluationTables.Retention)], [.. Plan.Methods.Select((method, m) => (string[])[method.Name, .. _shares[m].Select(Range)])]);

    private (string[] Headers, string[][] Rows) ScoresTable() => (["Policy", "Kept", .. Plan.Tasks.Select(task => task.Name)],
    [
        ["full cache", Units.Percent(1), .. Plan.Tasks.Select((_, t) => Units.Percent(Comparison.Full(t)))],
        .. Plan.Retentions.SelectMany((_, r) => Plan.Methods.Select((method, m) => (string[])
            [method.Name, Units.Percent(Comparison.KeptShare(m, r)), .. Plan.Tasks.Select((_, t) => Units.Percent(Comparison.Score(t, m, r)))])),
    ]);

    private static string Range(Interval interval) => EvaluationTables.Range(interval);

    private void WriteJson(Utf8JsonWriter json)
    {
        EvaluationTables.WriteHead(json, Trials, Plan.Seeds);
        json.WriteBoolean("multi_turn", Trials.Turns);
        json.WriteStartObject("options");
        foreach (var (name, value) in Options)
            json.WriteString(name, value);
        json.WriteEndObject();
        json.WriteNumber("contexts_per_task_and_seed", Plan.PerSeed);
        json.WriteNumber("questions", Comparison.Questions);
        json.WriteNumber("minutes", Math.Round(Time.TotalMinutes, 2));
        EvaluationTables.Write(json, "full_score", _full);
        json.WriteStartObject("full_score_of_tasks");
        for (int t = 0; t < Plan.Tasks.Count; t++)
            json.WriteNumber(Plan.Tasks[t].Name, Comparison.Full(t));
        json.WriteEndObject();
        json.WriteStartArray("results");
        for (int m = 0; m < Plan.Methods.Count; m++)
            for (int r = 0; r < Plan.Retentions.Count; r++)
            {
                json.WriteStartObject();
                json.WriteString("policy", Plan.Methods[m].Name);
                json.WriteNumber("retention", Plan.Retentions[r]);
                json.WriteNumber("kept_share", Comparison.KeptShare(m, r));
                EvaluationTables.Write(json, "share_of_full_score", _shares[m][r]);
                EvaluationTables.Write(json, $"difference_to_{Plan.Methods[0].Name}", _differences[m][r]);
                json.WriteStartObject("score_of_tasks");
                for (int t = 0; t < Plan.Tasks.Count; t++)
                    json.WriteNumber(Plan.Tasks[t].Name, Comparison.Score(t, m, r));
                json.WriteEndObject();
                json.WriteEndObject();
            }
        json.WriteEndArray();
    }
}
