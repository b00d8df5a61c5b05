using Compactor.Host.Evaluation;
using Xunit;

namespace Compactor.Host.Tests.Evaluation;

public sealed class BundledModelTests
{
    /// <summary>Contexts of the length the model was trained to, of seeds that nothing was chosen by.</summary>
    [Theory(Explicit = true)]
    [InlineData("single-noise")]
    [InlineData("single-essay")]
    [InlineData("single-keys")]
    [InlineData("multi-key")]
    public void Single_values_are_found_with_the_full_cache(string task)
    {
        using var model = LlamaModel.Load(TestFiles.Needle);
        var trials = new Trials(model, TextTokenizer.Load(TestFiles.Needle), 1024);
        var plan = new ComparisonPlan([RetrievalTask.Named(task)], [EvaluatedMethod.Named("random")], [], [101, 102], 40);
        double score = PolicyComparison.Run(trials, plan, _ => { }, CancellationToken.None).Full(0);
        Assert.True(score > 0.95, $"{task}: {score:P1}");
    }
}
