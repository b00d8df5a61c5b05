using System.Globalization;
using System.Text;
using System.Text.Json;
using Compactor.Cli.Reporting;
using Compactor.Host.Evaluation;
using Compactor.Native.Compression;

namespace Compactor.Cli.Evaluation;

/// <summary>A calibration and what it does, as a table, JSON, and a page.</summary>
/// <param name="Trial">What was fitted and tried.</param>
/// <param name="Trials">Model and contexts.</param>
internal sealed record CalibrationReport(CalibrationTrial Trial, Trials Trials)
{
    private readonly Interval _loss = Trial.Loss();

    // On tasks it was not fitted on.
    private readonly Interval? _otherLoss = Trial.Plan.Tasks.Any(task => !IsFitted(Trial.Plan, task)) ? Trial.Loss(task => !IsFitted(Trial.Plan, task)) : null;

    private CalibrationPlan Plan => Trial.Plan;

    private double Dropped => 1 - Trial.Contexts.Average(task => task.Average(context => context.Compressed.KeptShare));

    private static bool IsFitted(CalibrationPlan plan, RetrievalTask task) => plan.FitTasks.Any(fitted => fitted.Name == task.Name);

    private string Summary
    {
        get
        {
            string others = _otherLoss is { } loss ? $" On the tasks it was not fitted on: {EvaluationTables.Range(loss)}." : "";
            return string.Create(CultureInfo.InvariantCulture,
                $"{Plan.Method.Name}: b = {Trial.Calibration.Alpha:0.###} NLL {(Trial.Calibration.Beta < 0 ? '-' : '+')} {Math.Abs(Trial.Calibration.Beta):0.###}, fitted on {Trial.Calibration.Samples} observations, error {Trial.Calibration.Error:0.000}. " +
                $"At quality {Plan.Quality}, {Units.Percent(Dropped)} of the cache is dropped, and {EvaluationTables.Range(_loss)} points of the full cache's score are lost ({Trial.Questions} questions, paired 95% interval).{others}");
        }
    }

    private string Use =>
        Plan.Method.PolicyOf(0).Name != SelectionPolicy.Compactor.Name ? $"It holds for {Plan.Method.Name}, by which generate does not compress; it is for hosts that do."
        : Plan.Method.Options == CompressionPresets.Paper ? "Use it with generate --quality."
        : Plan.Method.Name != SelectionPolicy.Compactor.Name ? $"Use it with generate --quality and --preset {Plan.Method.Name}."
        : "Use it with generate --quality and the options of the method given here.";

    /// <summary>Prints to standard output.</summary>
    /// <param name="json">Whether as JSON.</param>
    /// <param name="markdown">Whether the table is Markdown.</param>
    /// <param name="path">Where the calibration is.</param>
    /// <param name="folder">Where the report is, or null.</param>
    public void Print(bool json, bool markdown, string path, string? folder)
    {
        if (json)
        {
            JsonDocumentWriter.Write(WriteJson);
            return;
        }
        Console.WriteLine(Summary);
        EvaluationTables.Print(markdown, Table());
        Console.WriteLine($"Calibration: {path}. {Use}");
        if (folder is not null)
            Console.WriteLine($"Report: open {Path.Combine(folder, ReportFolder.Page)} in a browser; the pictures are beside it.");
    }

    /// <summary>The report's files.</summary>
    public IEnumerable<(string Name, byte[] Content)> Files()
    {
        Picture[] pictures = [RetainedPicture.Draw(Trial), CurvesPicture.Draw(Trial)];
        var page = new HtmlPage("Retention calibrated to the context", Summary, $"Contexts of {Trials.Length} tokens, seeds {string.Join(", ", Plan.Seeds)}; {Plan.Method.Name}; compactor {CompressionSettings.ToolVersion}.");
        page.Show(pictures[0], "Each point is a context: how hard it is to predict, and how much of its cache the calibration keeps.");
        var table = Table();
        page.Table(table.Headers, table.Rows);
        page.Heading("What it was fitted on");
        page.Show(pictures[1], "Mean share of the answers' likelihood that is kept at each retention, by task, and the curves fitted for the mean context of each task.");
        return [(ReportFolder.Page, Encoding.UTF8.GetBytes(page.Html)), (ReportFolder.Figures, JsonDocumentWriter.Bytes(WriteJson)), .. pictures.Select(picture => (picture.Name, picture.Png))];
    }

    private (string[] Headers, string[][] Rows) Table() => (["Task", "Fitted on", "NLL", "Dropped", "Full cache", "Compressed", "Lost"],
        [.. Plan.Tasks.Select((task, t) => (string[])
        [
            task.Name, IsFitted(Plan, task) ? "yes" : "no", string.Create(CultureInfo.InvariantCulture, $"{Trial.Contexts[t].Average(context => context.ContextNll):0.00}"),
            Units.Percent(1 - Trial.Contexts[t].Average(context => context.Compressed.KeptShare)), Units.Percent(Trial.Contexts[t].Average(context => context.Full.Score)),
            Units.Percent(Trial.Contexts[t].Average(context => context.Compressed.Score)), EvaluationTables.Range(Trial.Loss(given => given.Name == task.Name)),
        ])]);

    private void WriteJson(Utf8JsonWriter json)
    {
        EvaluationTables.WriteHead(json, Trials, Plan.Seeds);
        json.WriteString("policy", Plan.Method.Name);
        json.WriteString("method", Trial.Calibration.Method);
        json.WriteStartArray("fit_tasks");
        foreach (var task in Plan.FitTasks)
            json.WriteStringValue(task.Name);
        json.WriteEndArray();
        json.WriteStartArray("fit_retentions");
        foreach (double retention in Plan.FitRetentions)
            json.WriteNumberValue(retention);
        json.WriteEndArray();
        json.WriteNumber("fit_contexts_per_task_and_seed", Plan.FitPerSeed);
        json.WriteNumber("contexts_per_task_and_seed", Plan.PerSeed);
        json.WriteNumber("alpha", Trial.Calibration.Alpha);
        json.WriteNumber("beta", Trial.Calibration.Beta);
        json.WriteNumber("fit_samples", Trial.Calibration.Samples);
        json.WriteNumber("fit_error", Trial.Calibration.Error);
        json.WriteNumber("quality", Plan.Quality);
        json.WriteNumber("questions", Trial.Questions);
        json.WriteNumber("dropped_share", Dropped);
        EvaluationTables.Write(json, "loss", _loss);
        if (_otherLoss is { } other)
            EvaluationTables.Write(json, "loss_on_tasks_not_fitted_on", other);
        else
            json.WriteNull("loss_on_tasks_not_fitted_on");
        json.WriteStartArray("tasks");
        for (int t = 0; t < Plan.Tasks.Count; t++)
        {
            var contexts = Trial.Contexts[t];
            json.WriteStartObject();
            json.WriteString("task", Plan.Tasks[t].Name);
            json.WriteBoolean("fitted_on", IsFitted(Plan, Plan.Tasks[t]));
            json.WriteNumber("context_nll", contexts.Average(context => context.ContextNll));
            json.WriteNumber("retention", contexts.Average(context => context.Retention));
            json.WriteNumber("kept_share", contexts.Average(context => context.Compressed.KeptShare));
            json.WriteNumber("full_score", contexts.Average(context => context.Full.Score));
            json.WriteNumber("score", contexts.Average(context => context.Compressed.Score));
            EvaluationTables.Write(json, "loss", Trial.Loss(given => given.Name == Plan.Tasks[t].Name));
            json.WriteEndObject();
        }
        json.WriteEndArray();
    }
}
