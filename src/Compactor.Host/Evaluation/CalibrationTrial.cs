using Compactor.Native;
using Compactor.Native.Calibration;

namespace Compactor.Host.Evaluation;

/// <summary>How a calibration is fitted and tried.</summary>
/// <param name="Method">How contexts are compressed.</param>
/// <param name="FitTasks">Tasks to fit on.</param>
/// <param name="FitPerSeed">Contexts of each task and seed to fit on.</param>
/// <param name="FitRetentions">Shares kept to fit on, between 0 and 1.</param>
/// <param name="Tasks">Tasks to try it on.</param>
/// <param name="PerSeed">Contexts of each task and seed to try it on; none of them was fitted on.</param>
/// <param name="Quality">Quality tau wanted, 0 to 1.</param>
/// <param name="Seeds">Seeds of the contexts.</param>
public sealed record CalibrationPlan(EvaluatedMethod Method, IReadOnlyList<RetrievalTask> FitTasks, int FitPerSeed, IReadOnlyList<double> FitRetentions,
    IReadOnlyList<RetrievalTask> Tasks, int PerSeed, double Quality, IReadOnlyList<ulong> Seeds);

/// <summary>A context with the full cache and with the calibrated retention.</summary>
/// <param name="ContextNll">Nats a token.</param>
/// <param name="Retention">What the calibration gave.</param>
/// <param name="Full">With the full cache.</param>
/// <param name="Compressed">With that retention.</param>
public sealed record CalibratedContext(double ContextNll, double Retention, TrialOutcome Full, TrialOutcome Compressed);

/// <summary>A calibration fitted on some contexts, and what it does on others.</summary>
/// <param name="Plan">How it was fitted and tried.</param>
/// <param name="Calibration">What was fitted.</param>
/// <param name="Observations">What it was fitted on.</param>
/// <param name="Contexts">For each task, the contexts it was tried on.</param>
public sealed record CalibrationTrial(CalibrationPlan Plan, RetentionCalibration Calibration, CalibrationSample[] Observations, CalibratedContext[][] Contexts)
{
    /// <summary>
    /// Answers whose negative log-likelihood is below this many nats are certain; likelihoods are compared from there on. Without it, the ratio of two answers of 0.001 and
    /// 0.01 nats, both given word for word, would count as a loss of 90%.
    /// </summary>
    public const double CertainNats = 0.1;

    // Seeds of contexts to fit on and to try it on are kept apart by this.
    private const ulong TrySeeds = 1UL << 32;

    private const double FitShare = 0.35;

    /// <summary>Fits and tries.</summary>
    /// <param name="trials">Model and contexts.</param>
    /// <param name="plan">How.</param>
    /// <param name="progress">Receives what share is done, 0 to 1.</param>
    /// <param name="cancellation">Stops between contexts.</param>
    /// <returns>The trial; its calibration states the model, and leaves the method to the caller, who has names for the options.</returns>
    /// <exception cref="CompactorException">There are too few observations.</exception>
    public static CalibrationTrial Run(Trials trials, CalibrationPlan plan, Action<double> progress, CancellationToken cancellation)
    {
        CalibrationSample[] observations = [.. trials.Run(plan.FitTasks, plan.Seeds, plan.FitPerSeed, trial =>
        {
            double nll = trial.ContextNll, full = Answers(trial.Run(plan.Method, 1));
            return plan.FitRetentions.Select(retention => CalibrationSample.FromAnswers(retention, nll, full, Answers(trial.Run(plan.Method, retention)))).ToArray();
        }, share => progress(FitShare * share), cancellation).SelectMany(task => task).SelectMany(context => context)];
        var calibration = RetentionCalibration.Fit(observations) with
        {
            Description = $"{plan.Method.Name} on {string.Join(", ", plan.FitTasks.Select(task => task.Name))}",
            Model = trials.Model.Fingerprint,
        };

        ulong[] seeds = [.. plan.Seeds.Select(seed => seed + TrySeeds)];
        var contexts = trials.Run(plan.Tasks, seeds, plan.PerSeed, trial =>
        {
            double nll = trial.ContextNll, retention = calibration.RetentionFor(plan.Quality, nll);
            return new CalibratedContext(nll, retention, trial.Run(plan.Method, 1), trial.Run(plan.Method, retention));
        }, share => progress(FitShare + (1 - FitShare) * share), cancellation);
        return new CalibrationTrial(plan, calibration, observations, contexts);
    }

    /// <summary>Questions it was tried on.</summary>
    public int Questions => Contexts.Sum(task => task.Sum(context => context.Full.Right.Length));

    /// <summary>Score lost against the full cache, mean over tasks, with its paired interval.</summary>
    /// <param name="tasks">Tasks; all when null.</param>
    public Interval Loss(Func<RetrievalTask, bool>? tasks = null) => PairedBootstrap.Of(
        [.. Contexts.Where((_, t) => tasks?.Invoke(Plan.Tasks[t]) ?? true).Select(task => task.Select(context => new[] { context.Full.Score - context.Compressed.Score }).ToArray())],
        means => means.Average(task => task[0]));

    private static double Answers(TrialOutcome outcome) => outcome.AnswerNll.Average(nll => Math.Max(CertainNats, nll));
}
