namespace Compactor.Host.Evaluation;

/// <summary>What is compared: methods at retentions, on the same contexts.</summary>
/// <param name="Tasks">Tasks, which count alike.</param>
/// <param name="Methods">Methods.</param>
/// <param name="Retentions">Shares of tokens kept, below 1; the full cache is always run beside them.</param>
/// <param name="Seeds">Seeds of the contexts.</param>
/// <param name="PerSeed">Contexts of each task and seed.</param>
public sealed record ComparisonPlan(
    IReadOnlyList<RetrievalTask> Tasks, IReadOnlyList<EvaluatedMethod> Methods, IReadOnlyList<double> Retentions, IReadOnlyList<ulong> Seeds, int PerSeed);

/// <summary>One context with the full cache, and compressed by every method to every retention.</summary>
/// <param name="ContextNll">Nats a token.</param>
/// <param name="Full">With the full cache.</param>
/// <param name="Compressed">By method and retention.</param>
public sealed record ComparedContext(double ContextNll, TrialOutcome Full, TrialOutcome[][] Compressed);

/// <summary>How much of the full cache's score methods keep.</summary>
public sealed class PolicyComparison
{
    private PolicyComparison(ComparisonPlan plan, ComparedContext[][] contexts) => (Plan, Contexts) = (plan, contexts);

    /// <summary>What was compared.</summary>
    public ComparisonPlan Plan { get; }

    /// <summary>Contexts of each task.</summary>
    public ComparedContext[][] Contexts { get; }

    /// <summary>Questions asked of each method at each retention.</summary>
    public int Questions => Contexts.Sum(task => task.Sum(context => context.Full.Right.Length));

    /// <summary>Runs a comparison.</summary>
    /// <param name="trials">Model and contexts.</param>
    /// <param name="plan">What to compare.</param>
    /// <param name="progress">Receives what share is done, 0 to 1.</param>
    /// <param name="cancellation">Stops between contexts.</param>
    public static PolicyComparison Run(Trials trials, ComparisonPlan plan, Action<double> progress, CancellationToken cancellation)
    {
        var full = EvaluatedMethod.Named(EvaluatedMethod.Names[0]);
        return new PolicyComparison(plan, trials.Run(plan.Tasks, plan.Seeds, plan.PerSeed, trial => new ComparedContext(trial.ContextNll, trial.Run(full, 1),
            [.. plan.Methods.Select(method => plan.Retentions.Select(retention => trial.Run(method, retention)).ToArray())]), progress, cancellation));
    }

    /// <summary>Mean score of the full cache over tasks.</summary>
    public Interval Full() => PairedBootstrap.Of(Measured(context => [context.Full.Score]), means => means.Average(task => task[0]));

    /// <summary>Mean score of a task with the full cache.</summary>
    public double Full(int task) => Contexts[task].Average(context => context.Full.Score);

    /// <summary>Mean score of a task under a method.</summary>
    public double Score(int task, int method, int retention) => Contexts[task].Average(context => context.Compressed[method][retention].Score);

    /// <summary>Mean share of pairs kept, protected tokens included.</summary>
    public double KeptShare(int method, int retention) => Contexts.Average(task => task.Average(context => context.Compressed[method][retention].KeptShare));

    /// <summary>Mean score over tasks under a method, as a share of the full cache's.</summary>
    public Interval ShareOfFull(int method, int retention) => PairedBootstrap.Of(
        Measured(context => [context.Full.Score, context.Compressed[method][retention].Score]), means => Ratio(means, 1));

    /// <summary>The same share of one method less that of another.</summary>
    public Interval Difference(int method, int other, int retention) => PairedBootstrap.Of(
        Measured(context => [context.Full.Score, context.Compressed[method][retention].Score, context.Compressed[other][retention].Score]), means => Ratio(means, 1) - Ratio(means, 2));

    private static double Ratio(double[][] means, int measurement) => means.Sum(task => task[measurement]) / means.Sum(task => task[0]);

    private double[][][] Measured(Func<ComparedContext, double[]> of) => [.. Contexts.Select(task => task.Select(of).ToArray())];
}
