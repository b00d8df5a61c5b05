using System.CommandLine;
using Compactor.Cli.Evaluation;
using Compactor.Cli.Reporting;
using Compactor.Host.Evaluation;
using Compactor.Native.Compression;

namespace Compactor.Cli.Commands;

/// <summary><c>compactor calibrate</c>: fits retention to contexts, and measures on other contexts and tasks what a wanted quality costs.</summary>
internal static class CalibrateCommand
{
    private const string DefaultFitTasks = "single-noise,single-keys", DefaultRetentions = "0.05,0.1,0.2,0.3,0.4,0.5,0.6,0.75,0.9";
    private const double DefaultQuality = 0.95;
    private const int DefaultFitSamples = 10, DefaultSamples = 36;

    public static Command Create()
    {
        var output = new Option<string>("--out") { Description = "File for the calibration.", HelpName = "file", Required = true };
        var policy = new Option<string>("--policy") { Description = $"How contexts are compressed: one of {string.Join(", ", EvaluatedMethod.Names)}.", HelpName = "name", DefaultValueFactory = _ => EvaluatedMethod.Names[0] };
        var fitTasks = new Option<string>("--fit-tasks") { Description = "Tasks to fit on.", HelpName = "name,...", DefaultValueFactory = _ => DefaultFitTasks };
        var retentions = new Option<string>("--fit-retention") { Description = "Shares kept to fit on.", HelpName = "r,r,...", DefaultValueFactory = _ => DefaultRetentions };
        var fitSamples = ValueOption.Number<int>("--fit-samples", $"Contexts of each task and seed to fit on. [default: {DefaultFitSamples}]");
        var tasks = new Option<string?>("--tasks") { Description = $"Tasks to try it on, with other contexts. Of {string.Join(", ", RetrievalTask.All.Select(task => task.Name))}. [default: all]", HelpName = "name,..." };
        var samples = ValueOption.Number<int>("--samples", $"Contexts of each task and seed to try it on. [default: {DefaultSamples}]");
        var quality = ValueOption.Number<double>("--quality", $"Wanted share of the full cache's quality, 0 to 1. [default: {DefaultQuality}]", "tau");
        var common = new EvaluationOptions(21, 22, 23);
        var method = new MethodOptions();
        var command = new Command("calibrate", "Fits how much of a context's cache a wanted quality takes, and tries it on other contexts and tasks.") { output, policy, fitTasks, retentions, fitSamples, tasks, samples, quality };
        common.AddTo(command);
        method.AddTo(command);
        command.SetAction(parsed =>
        {
            var result = parsed.CommandResult;
            string path = parsed.GetRequiredValue(output);
            double wanted = parsed.GetValue(quality) ?? DefaultQuality;
            if (wanted is not (>= 0 and <= 1))
                throw new UsageException($"--quality is {wanted}; use 0 to 1.");
            var compressed = Method(parsed.GetRequiredValue(policy), EvaluationOptions.OfUser(() => method.Read(result)));
            double[] kept = EvaluationOptions.Retentions(parsed.GetRequiredValue(retentions), "--fit-retention");
            if (kept.Contains(1))
                throw new UsageException("--fit-retention holds 1, from which nothing can be learned; use shares below 1.");
            var plan = new CalibrationPlan(compressed, EvaluationOptions.Tasks(parsed.GetRequiredValue(fitTasks), "--fit-tasks"), EvaluationOptions.Count(parsed.GetValue(fitSamples), "--fit-samples", DefaultFitSamples), kept,
                EvaluationOptions.Tasks(parsed.GetValue(tasks), "--tasks"), EvaluationOptions.Count(parsed.GetValue(samples), "--samples", DefaultSamples), wanted, common.Seeds(result));
            var folder = parsed.GetValue(common.Report) is { } name ? new ReportFolder(name) : null;
            OutputFile.Check(path, folder);
            var trials = common.Load(result, turns: false);
            using var model = trials.Model;
            using var interruption = new Interruption();
            var trial = LazyProgress.Run("Calibrating", progress => CalibrationTrial.Run(trials, plan, progress, interruption.Token));
            var report = new CalibrationReport(trial with { Calibration = trial.Calibration with { Method = method.Line(compressed) } }, trials);
            using var staged = folder?.Stage(report.Files(), interruption.Token);
            report.Trial.Calibration.Save(path);
            staged?.Publish();
            report.Print(parsed.GetValue(common.Json), parsed.GetValue(common.Markdown), path, folder?.Name);
            return CommandLine.Success;
        });
        return command;
    }

    /// <summary>A policy and its options, which the presets among the policies bring along.</summary>
    private static EvaluatedMethod Method(string policy, CompressionOptions options)
    {
        if (policy != SelectionPolicy.Compactor.Name && CompressionPresets.ByName.ContainsKey(policy) && options != CompressionPresets.Paper)
            throw new UsageException($"--policy {policy} is a preset with options of its own; leave the others out, or give --preset {policy} and what differs.");
        return EvaluationOptions.OfUser(() => EvaluatedMethod.Named(policy, options));
    }
}
