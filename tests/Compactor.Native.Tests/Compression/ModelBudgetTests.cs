using Compactor.Native.Compression;
using Compactor.Native.Tests.Support;
using Xunit;

namespace Compactor.Native.Tests.Compression;

public class ModelBudgetTests
{
    private static readonly LayerShape s_shape = new([0, 100, 100, 400], 2, 2, 32, ElementType.Float16);

    [Fact]
    public void Bytes_are_shared_over_layers_and_sequences_by_length_and_never_exceeded()
    {
        var plan = new LayerPlan(s_shape, CompressionPresets.Paper, ModelBudget.Bytes(100_000).Of(2, 3, s_shape, CompressionPresets.Paper));
        Assert.True(3 * plan.KeptPairs * s_shape.BytesPerPair <= 100_000);
        Assert.True(3 * (plan.KeptPairs + 2) * s_shape.BytesPerPair > 100_000);
        Assert.Equal(0, plan.KeptPairsOf(1));
        Assert.InRange(plan.KeptPairsOf(2), 3 * plan.KeptPairsOf(0), 3 * plan.KeptPairsOf(0) + 3);
    }

    [Fact]
    public void Whatever_the_bytes_they_hold_what_is_protected_and_are_never_exceeded_or_the_error_says_what_would_do()
    {
        var random = new Random(5);
        int met = 0, refused = 0, uneven = 0;
        for (int i = 0; i < 3000; i++)
        {
            int[] lengths = [.. Enumerable.Range(0, random.Next(1, 5)).Select(_ => random.Next(6) == 0 ? 0 : random.Next(1, 1 << random.Next(1, 12)))];
            int layers = random.Next(1, 9), heads = random.Next(1, 5);
            var shape = new LayerShape(TestLayer.Offsets(lengths), 0, heads, 32, ElementType.BFloat16);
            var options = CompressionPresets.ByName.Values.ElementAt(random.Next(3)) with { MinTokensPerHead = random.Next(3) * 20 };
            long all = (long)shape.Pairs * shape.BytesPerPair * layers, bytes = Math.Max(1, (long)(all * 1.1 * Math.Pow(random.NextDouble(), 2)));
            long floor = lengths.Sum(n => (long)Math.Max(Math.Min(n, options.ProtectFirst + options.ProtectLast), Math.Min(n, options.MinTokensPerHead))) * heads * shape.BytesPerPair * layers;
            long kept;
            try
            {
                kept = Kept(bytes);
                met++;
            }
            catch (CompactorException e) when (e.Status == CompactorStatus.BudgetNotMet)
            {
                Assert.True(bytes < floor + layers * (lengths.Length + 1), e.Message);
                long enough = long.Parse(e.Message.Split("Raise it to ")[1].Split(' ')[0]);
                Assert.True(enough > bytes);
                Assert.True(Kept(enough) <= enough);
                refused++;
                continue;
            }
            Assert.InRange(kept, floor, bytes);
            if (floor > 0 && kept < all)
                uneven++;

            long Kept(long budget) => Enumerable.Range(0, layers).Sum(layer =>
            {
                var plan = new LayerPlan(shape, options, ModelBudget.Bytes(budget).Of(layer, layers, shape, options));
                for (int b = 0; b < lengths.Length; b++)
                    Assert.True(plan.KeptPairsOf(b) >= heads * Math.Min(lengths[b], options.ProtectFirst + options.ProtectLast));
                return plan.KeptPairs * shape.BytesPerPair;
            });
        }
        Assert.True(met > 300 && refused > 300 && uneven > 100, $"{met} met, {refused} refused, {uneven} between");
    }

    [Fact]
    public void A_short_sequence_beside_a_long_one_keeps_what_is_protected()
    {
        var shape = new LayerShape([0, 25, 10_025], 0, 1, 32, ElementType.Float16);
        var options = CompressionPresets.Paper;
        var plan = new LayerPlan(shape, options, ModelBudget.Bytes(200 * shape.BytesPerPair).Of(0, 1, shape, options));
        Assert.Equal((20, 180), (plan.KeptPairsOf(0), plan.KeptPairsOf(1)));
    }

    [Fact]
    public void Layers_have_budgets_of_their_own()
    {
        var budget = ModelBudget.PerLayer([Budget.Retention(0.25), Budget.Tokens(60)]);
        Assert.Equal([Budget.Retention(0.25), Budget.Retention(0.25), Budget.Retention(0.25)], budget.Of(0, 2, s_shape, CompressionPresets.Paper));
        Assert.Equal(Budget.Tokens(60), budget.Of(1, 2, s_shape, CompressionPresets.Paper)[2]);
        Assert.Equal(Budget.Retention(0.5), ModelBudget.Same(Budget.Retention(0.5)).Of(7, 8, s_shape, CompressionPresets.Paper)[0]);
        Assert.Contains("2 layer budgets for 3 layers", Assert.Throws<CompactorException>(() => budget.Of(1, 3, s_shape, CompressionPresets.Paper)).Message);
        Assert.Throws<CompactorException>(() => ModelBudget.PerLayer([]));
        Assert.Equal(CompactorStatus.BudgetNotMet, Assert.Throws<CompactorException>(() => ModelBudget.Bytes(5).Of(0, 3, s_shape, CompressionPresets.Paper)).Status);
    }
}
