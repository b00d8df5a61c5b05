using Compactor.Native.Tests.Support;
using Xunit;
using static Compactor.Native.Tests.Paging.PagedCacheModel;

namespace Compactor.Native.Tests.Paging;

public class PagedCacheModelTests
{
    public static TheoryData<ElementType> Types => [.. Enum.GetValues<ElementType>()];

    [Theory]
    [MemberData(nameof(Types))]
    public void Ten_thousand_random_operations_lose_double_and_leak_nothing(ElementType type) => Check(type, blocks: 90, steps: 10_000, seed: 20250708);

    [Fact(Explicit = true)]
    public void A_million_random_operations_lose_double_and_leak_nothing() => Check(ElementType.BFloat16, blocks: 120, steps: 1_000_000, seed: 1, everything: 1000);

    [Fact]
    public void A_failing_list_is_shrunk()
    {
        // The checker is itself checked: a step that is made to fail is found and nothing else is left.
        Step[] steps = [.. Enumerable.Range(0, 300).Select(i => new Step((Kind)(i % 11), i, i))];
        var shrunk = Shrink([.. steps], list => list.Any(s => s.Seed == 77) && list.Any(s => s.Seed == 200));
        Assert.Equal([77, 200], shrunk.Select(s => s.Seed));
    }

    private static void Check(ElementType type, int blocks, int steps, int seed, int everything = 1)
    {
        var random = new Random(seed);
        var list = new List<Step>(steps);
        using var model = new PagedCacheModel(Backends.Cpu(1), type, blocks);
        for (int i = 0; i < steps; i++)
        {
            // Storing, appending and compacting are what hosts do most.
            var kind = random.Next(20) switch { 0 or 1 => Kind.Create, 2 or 3 or 4 => Kind.Store, 5 or 6 => Kind.StoreSurvivors, 7 or 8 or 9 => Kind.Append, 10 or 11 => Kind.Compact, 12 => Kind.Cancel, 13 => Kind.Fork, 14 => Kind.Reserve, 15 or 16 => Kind.Recompress, 17 => Kind.Exhaust, _ => Kind.Free };
            list.Add(new Step(kind, random.Next(64), random.Next()));
            try
            {
                model.Do(list[^1], checkEverything: i % everything == 0);
            }
            catch (InvalidOperationException e)
            {
                var shrunk = Shrink(list, candidate => Fails(type, blocks, candidate));
                Assert.Fail($"{e.Message} after {i + 1} steps of seed {seed}; {shrunk.Count} suffice: {string.Join(", ", shrunk)}");
            }
        }
        Assert.True(model.Done > steps / 4 && model.Refused > steps / 100, $"{model.Done} done, {model.Refused} refused: the operations are one-sided");
    }

    private static bool Fails(ElementType type, int blocks, List<Step> steps)
    {
        using var model = new PagedCacheModel(Backends.Cpu(1), type, blocks);
        try
        {
            foreach (var step in steps)
                model.Do(step, checkEverything: true);
            return false;
        }
        catch (InvalidOperationException)
        {
            return true;
        }
    }

    /// <summary>Leaves out runs of steps, halving the runs, while the rest still fails.</summary>
    private static List<Step> Shrink(List<Step> steps, Func<List<Step>, bool> fails)
    {
        for (int run = steps.Count / 2; run >= 1; run /= 2)
            for (int at = 0; at < steps.Count;)
            {
                List<Step> without = [.. steps[..at], .. steps[Math.Min(steps.Count, at + run)..]];
                if (fails(without))
                    steps = without;
                else
                    at += run;
            }
        return steps;
    }
}
