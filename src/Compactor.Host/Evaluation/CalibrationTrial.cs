using Compactor.Native;
using Compactor.Native.Calibration;

namespace Compactor.Host.Evaluation;

/// <summary>Fits retention to contexts, and measures on others what a wanted quality then costs.</summary>
public static class CalibrationTrial
{
    /// <summary>
    /// Answers whose negative log-likelihood is below this many nats a question are certain; likelihoods are compared from there on. Without it, the ratio of two answers
    /// of 0.001 and 0.01 nats, both given word for word, would count as a loss of 90%.
    /// </summary>
    public const double CertainNats = 0.1;

    /// <summary>Fits a calibration: one observation for each context and retention.</summary>
    /// <param name="trials">Model and contexts.</param>
    /// <param name="tasks">Tasks to fit on.</param>
    /// <param name="seeds">Seeds of the contexts.</param>
    /// <param name="perSeed">Contexts of each task and seed.</param>
    /// <param name="method">How contexts are compressed.</param>
    /// <param name="retentions">Shares kept, between 0 and 1.</param>
    /// <param name="progress">Receives what share is done, 0 to 1.</param>
    /// <param name="cancellation">Stops between contexts.</param>
    /// <exception cref="CompactorException">There are too few observations.</exception>
    public static (RetentionCalibration Calibration, CalibrationSample[] Samples) Fit(Trials trials, IReadOnlyList<RetrievalTask> tasks, IReadOnlyList<ulong> seeds, int perSeed,
        EvaluatedMethod method, IReadOnlyList<double> retentions, Action<double> progress, CancellationToken cancellation)
    {
        CalibrationSample[] samples = [.. trials.Run(tasks, seeds, perSeed, trial =>
        {
            double nll = trial.ContextNll, full = Answers(trial.Run(method, 1));
            return retentions.Select(retention => CalibrationSample.FromAnswers(retention, nll, full, Answers(trial.Run(method, retention)))).ToArray();
        }, progress, cancellation).SelectMany(task => task).SelectMany(context => context)];
        return (RetentionCalibration.Fit(samples), samples);
    }

    /// <summary>Compresses each context to the retention its calibration gives, and asks.</summary>
    /// <param name="trials">Model and contexts.</param>
    /// <param name="tasks">Tasks.</param>
    /// <param name="seeds">Seeds of the contexts.</param>
    /// <param name="perSeed">Contexts of each task and seed.</param>
    /// <param name="method">How contexts are compressed.</param>
    /// <param name="calibration">Fitted for the model and the method.</param>
    /// <param name="quality">Quality tau wanted, 0 to 1.</param>
    /// <param name="progress">Receives what share is done, 0 to 1.</param>
    /// <param name="cancellation">Stops between contexts.</param>
    public static CalibratedTask[] Apply(Trials trials, IReadOnlyList<RetrievalTask> tasks, IReadOnlyList<ulong> seeds, int perSeed,
        EvaluatedMethod method, RetentionCalibration calibration, double quality, Action<double> progress, CancellationToken cancellation) =>
    [
        .. trials.Run(tasks, seeds, perSeed, trial =>
        {
            double nll = trial.ContextNll, retention = calibration.RetentionFor(quality, nll);
            return new CalibratedContext(nll, retention, trial.Run(method, 1), trial.Run(method, retention));
        }, progress, cancellation).Select((contexts, task) => new CalibratedTask(tasks[task], contexts)),
    ];

    private static double Answers(TrialOutcome outcome) => outcome.AnswerNll.Average(nll => Math.Max(CertainNats, nll));
}

/// <summary>A context with the full cache and with the calibrated retention.</summary>
/// <param name="ContextNll">Nats a token.</param>
/// <param name="Retention">What the calibration gave.</param>
/// <param name="Full">With the full cache.</param>
/// <param name="Compressed">With that retention.</param>
public sealed record CalibratedContext(double ContextNll, double Retention, TrialOutcome Full, TrialOutcome Compressed);

/// <summary>A task under calibrated retention.</summary>
/// <param name="Task">The task.</param>
/// <param name="Contexts">Its contexts.</param>
public sealed record CalibratedTask(RetrievalTask Task, CalibratedContext[] Contexts)
{
    /// <summary>Mean share of pairs kept, protected tokens included.</summary>
    public double KeptShare => Contexts.Average(context => context.Compressed.KeptShare);

    /// <summary>Score lost against the full cache, of several tasks that count alike.</summary>
    public static Interval Loss(IReadOnlyList<CalibratedTask> tasks) => PairedBootstrap.Of(
        [.. tasks.Select(task => task.Contexts.Select(context => new[] { context.Full.Score - context.Compressed.Score }).ToArray())], means => means.Average(task => task[0]));
}
