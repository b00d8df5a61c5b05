using System.CommandLine;
using System.Diagnostics;
using Compactor.Cli.Evaluation;
using Compactor.Cli.Reporting;
using Compactor.Host.Evaluation;

namespace Compactor.Cli.Commands;

/// <summary><c>compactor eval</c>: does the model still answer, and from how much of its cache?</summary>
internal static class EvalCommand
{
    private const string DefaultRetentions = "0.5,0.25,0.1";
    private const int DefaultSamples = 10;

    public static Command Create()
    {
        var retentions = new Option<string>("--retention") { Description = "Shares of the tokens to keep; the full cache is always run beside them.", HelpName = "r,r,...", DefaultValueFactory = _ => DefaultRetentions };
        var policies = new Option<string?>("--policies") { Description = $"Of {string.Join(", ", EvaluatedMethod.Names)}. [default: all]", HelpName = "name,..." };
        var tasks = new Option<string?>("--tasks") { Description = $"Of {string.Join(", ", RetrievalTask.All.Select(task => task.Name))}. [default: all]", HelpName = "name,..." };
        var samples = ValueOption.Number<int>("--samples", $"Contexts of each task and seed. [default: {DefaultSamples}]");
        var turns = new Option<bool>("--multi-turn") { Description = "Ask the questions of a context in one conversation, right answers between them, instead of each by itself." };
        var common = new EvaluationOptions(31, 32, 33);
        var method = new MethodOptions();
        var command = new Command("eval", "Asks a model questions about contexts whose cache was compressed before any question was known.") { retentions, policies, tasks, samples, turns };
        common.AddTo(command);
        method.AddTo(command);
        command.SetAction(parsed =>
        {
            var result = parsed.CommandResult;
            var options = EvaluationOptions.OfUser(() => method.Read(result));
            double[] kept = EvaluationOptions.Retentions(parsed.GetRequiredValue(retentions), "--retention");
            if (kept.All(retention => retention == 1))
                throw new UsageException("--retention is 1, which is the full cache that is run beside every share; give one below 1.");
            var plan = new ComparisonPlan(
                EvaluationOptions.Tasks(parsed.GetValue(tasks), "--tasks"),
                [.. EvaluationOptions.List(parsed.GetValue(policies) ?? string.Join(',', EvaluatedMethod.Names), "--policies", name => EvaluationOptions.OfUser(() => EvaluatedMethod.Named(name, options)))],
                [.. kept.Where(retention => retention < 1)],
                common.Seeds(result),
                EvaluationOptions.Count(parsed.GetValue(samples), "--samples", DefaultSamples));
            var folder = parsed.GetValue(common.Report) is { } path ? new ReportFolder(path) : null;
            var trials = common.Load(result, parsed.GetValue(turns));
            using var model = trials.Model;
            using var interruption = new Interruption();
            long start = Stopwatch.GetTimestamp();
            var comparison = LazyProgress.Run("Asking", progress => PolicyComparison.Run(trials, plan, progress, interruption.Token));
            var report = new ComparisonReport(comparison, trials, [.. method.Describe(options)], Stopwatch.GetElapsedTime(start));
            folder?.Write(report.Files());
            report.Print(parsed.GetValue(common.Json), parsed.GetValue(common.Markdown), folder?.Name);
            return CommandLine.Success;
        });
        return command;
    }
}
