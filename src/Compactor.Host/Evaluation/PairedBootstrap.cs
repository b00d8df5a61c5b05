namespace Compactor.Host.Evaluation;

/// <summary>An estimate with its 95% interval.</summary>
/// <param name="Value">The estimate from all data.</param>
/// <param name="Low">2.5% quantile of the bootstrap.</param>
/// <param name="High">97.5% quantile of the bootstrap.</param>
public readonly record struct Interval(double Value, double Low, double High);

/// <summary>
/// Percentile bootstrap of paired measurements: contexts are drawn with replacement within each task, and every measurement of a drawn context counts, so that
/// what contexts have in common cancels out. Questions of one context are not independent; they are drawn together.
/// </summary>
public static class PairedBootstrap
{
    private const double Tail = 0.025;

    /// <summary>Interval of a statistic of the tasks' means.</summary>
    /// <param name="tasks">For each task, for each of its contexts, the measurements that belong together.</param>
    /// <param name="statistic">From the means of each task <c>[task][measurement]</c> to a number.</param>
    /// <param name="resamples">Bootstrap samples.</param>
    /// <param name="seed">Seed of the draws.</param>
    public static Interval Of(IReadOnlyList<double[][]> tasks, Func<double[][], double> statistic, int resamples = 2000, ulong seed = 1)
    {
        var draw = new Draw(seed);
        var values = new double[resamples];
        for (int i = 0; i < resamples; i++)
            values[i] = statistic([.. tasks.Select(contexts => Mean(contexts, () => draw.Below(contexts.Length)))]);
        Array.Sort(values);
        double value = statistic([.. tasks.Select(contexts =>
        {
            int next = 0;
            return Mean(contexts, () => next++);
        })]);
        return new Interval(value, Quantile(values, Tail), Quantile(values, 1 - Tail));
    }

    private static double[] Mean(double[][] contexts, Func<int> choose)
    {
        var mean = new double[contexts[0].Length];
        for (int n = 0; n < contexts.Length; n++)
        {
            double[] context = contexts[choose()];
            for (int i = 0; i < mean.Length; i++)
                mean[i] += context[i] / contexts.Length;
        }
        return mean;
    }

    private static double Quantile(double[] sorted, double share)
    {
        double place = share * (sorted.Length - 1);
        int below = (int)place;
        return sorted[below] + (place - below) * (sorted[Math.Min(below + 1, sorted.Length - 1)] - sorted[below]);
    }
}
