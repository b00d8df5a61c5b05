using Compactor.Host.Evaluation;
using Xunit;

namespace Compactor.Host.Tests.Evaluation;

public sealed class PairedBootstrapTests
{
    /// <summary>Contexts whose scores have noise in common, and a difference of 0.1 with a little of its own.</summary>
    private static double[][] Paired(ulong seed, int count)
    {
        var draw = new Draw(seed);
        return [.. Enumerable.Range(0, count).Select(_ =>
        {
            double common = draw.Unit();
            return new[] { common, common - 0.1 + 0.2 * (draw.Unit() - 0.5) };
        })];
    }

    private static double Difference(double[][] means) => means.Average(task => task[0] - task[1]);

    [Fact]
    public void Intervals_of_a_mean_cover_the_truth_as_often_as_they_say()
    {
        int covered = Enumerable.Range(0, 300).Count(i =>
        {
            var interval = PairedBootstrap.Of([Paired((ulong)i, 60)], Difference, resamples: 400);
            return interval.Low <= 0.1 && 0.1 <= interval.High;
        });
        Assert.InRange(covered, 265, 299);
    }

    [Fact]
    public void An_interval_has_the_width_of_the_normal_approximation()
    {
        double[][] contexts = Paired(9, 500);
        double[] differences = [.. contexts.Select(c => c[0] - c[1])];
        double mean = differences.Average(), deviation = Math.Sqrt(differences.Average(d => (d - mean) * (d - mean)));
        var interval = PairedBootstrap.Of([contexts], Difference, resamples: 4000);
        Assert.Equal(mean, interval.Value, 12);
        Assert.Equal(2 * 1.96 * deviation / Math.Sqrt(500), interval.High - interval.Low, 0.1 * deviation / Math.Sqrt(500) * 4);
    }

    [Fact]
    public void What_contexts_have_in_common_cancels_and_tasks_count_alike()
    {
        var same = PairedBootstrap.Of([[[0.3, 0.3], [0.9, 0.9]], [[0.1, 0.1]]], Difference);
        Assert.Equal(new Interval(0, 0, 0), same);
        Assert.Equal(0.5, PairedBootstrap.Of([[[1], [1], [1]], [[0]]], means => means.Average(task => task[0])).Value);
    }

    [Fact]
    public void The_seed_decides_the_interval() => Assert.Equal(PairedBootstrap.Of([Paired(1, 30)], Difference), PairedBootstrap.Of([Paired(1, 30)], Difference));
}
