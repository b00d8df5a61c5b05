using Compactor.Host.Evaluation;
using Xunit;

namespace Compactor.Host.Tests.Evaluation;

public sealed class CalibrationTrialTests
{
    [Fact]
    public void A_calibration_tells_contexts_that_can_go_from_contexts_that_cannot()
    {
        using var model = LlamaModel.Load(TestFiles.Needle);
        RetrievalTask[] tasks = [RetrievalTask.Named("single-noise"), RetrievalTask.Named("single-keys")];
        var plan = new CalibrationPlan(EvaluatedMethod.Named("compactor"), tasks, 4, [0.1, 0.3, 0.5, 0.8], tasks, 3, 0.95, [5]);
        double last = 0;
        var trial = CalibrationTrial.Run(new Trials(model, TextTokenizer.Load(TestFiles.Needle), 384, Threads: 1), plan, share => Assert.True(share >= last && (last = share) <= 1), CancellationToken.None);

        Assert.Equal(1, last, 9);
        Assert.Equal(2 * 4 * 4, trial.Observations.Length);
        Assert.Equal(3 * (1 + 4), trial.Questions);
        // The same law for all: what it keeps follows from the likelihood alone.
        Assert.All(trial.Contexts.SelectMany(task => task), context => Assert.Equal(trial.Calibration.RetentionFor(0.95, context.ContextNll), context.Retention));
        double Kept(int task) => trial.Contexts[task].Average(context => context.Compressed.KeptShare);
        Assert.True(Kept(0) + 0.2 < Kept(1), $"noise keeps {Kept(0)}, keys keep {Kept(1)}");
        // No context is both fitted on and tried on.
        Assert.Empty(trial.Observations.Select(sample => sample.ContextNll).Intersect(trial.Contexts.SelectMany(task => task).Select(context => context.ContextNll)));
    }
}
