using Compactor.Native.Compression;
using Xunit;

namespace Compactor.Native.Tests.Compression;

public class LayerPlanTests
{
    private static readonly LayerShape s_shape = new([0, 100, 100, 400], 2, 2, 32, ElementType.Float16);

    [Fact]
    public void Without_protection_the_counts_stay()
    {
        var plan = new LayerPlan(s_shape, CompressionPresets.CompactorVllm, Budget.Retention(0.5));
        var baseline = plan.WithoutProtection();
        Assert.True(plan.IsProtected(2, 0));
        Assert.False(baseline.IsProtected(2, 0));
        Assert.Equal(plan.KeptPairs, baseline.KeptPairs);
        for (int b = 0; b < s_shape.Sequences; b++)
            Assert.Equal(plan.KeptPairsOf(b), baseline.KeptPairsOf(b));
        Assert.Equal(plan.Options.SelectionScope, baseline.Options.SelectionScope);
    }

    [Fact]
    public void A_raised_budget_shows_what_was_asked_for()
    {
        var plan = new LayerPlan(s_shape, CompressionPresets.CompactorVllm, Budget.Tokens(50));
        Assert.Equal(160, plan.KeptPairsOf(0));
        Assert.Equal(100, plan.RequestedPairsOf(0));
        Assert.Equal(0, plan.KeptPairsOf(1));
    }

    [Fact]
    public void One_budget_a_sequence_is_needed() =>
        Assert.Contains("2 budgets for 3 sequences",
            Assert.Throws<CompactorException>(() => new LayerPlan(s_shape, CompressionPresets.Paper, [Budget.Tokens(30), Budget.Tokens(30)])).Message);
}
