using System.Runtime.CompilerServices;
using Compactor.Native.Compression;

namespace Compactor.Native.Cpu;

/// <summary>Mean and standard deviation of scores, in double, in order, in two shifted passes.</summary>
internal static class CpuStatistics
{
    /// <summary>Most columns whose sums are kept on the stack.</summary>
    private const int OnStack = 256;

    /// <summary>Writes or adds <c>weight·z</c> of each column of <paramref name="source"/>, [rows, columns].</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    public static void Normalize(ReadOnlySpan<float> source, Span<float> target, int columns, CompressionOptions options, double weight = 1, bool add = false)
    {
        Span<double> means = columns <= OnStack ? stackalloc double[columns] : new double[columns], inverses = columns <= OnStack ? stackalloc double[columns] : new double[columns];
        Of(source, means, inverses, options);
        for (int begin = 0; begin < source.Length; begin += columns)
            for (int c = 0; c < columns; c++)
            {
                double z = weight * ((source[begin + c] - means[c]) * inverses[c]);
                target[begin + c] = (float)(add ? target[begin + c] + z : z);
            }
    }

    /// <summary>Mean and 1/std of the finite elements of each column of <c>x [rows, columns]</c>; 1/std is 0 where they are constant to float32's resolution.</summary>
    /// <param name="x">Rows after each other.</param>
    /// <param name="means">Receives the columns' means.</param>
    /// <param name="inverses">Receives their 1/std.</param>
    /// <param name="options">Say which standard deviation, and its least.</param>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void Of(ReadOnlySpan<float> x, Span<double> means, Span<double> inverses, CompressionOptions options)
    {
        int columns = means.Length;
        Span<double> largest = columns <= OnStack ? stackalloc double[columns] : new double[columns], squares = columns <= OnStack ? stackalloc double[columns] : new double[columns];
        Span<long> counts = columns <= OnStack ? stackalloc long[columns] : new long[columns];
        largest.Clear();
        squares.Clear();
        counts.Clear();
        means.Clear();
        for (int begin = 0; begin < x.Length; begin += columns)
            for (int c = 0; c < columns; c++)
                if (float.IsFinite(x[begin + c]))
                {
                    means[c] += x[begin + c];
                    if (Math.Abs(x[begin + c]) > largest[c])
                        largest[c] = Math.Abs(x[begin + c]);
                    counts[c]++;
                }
        for (int c = 0; c < columns; c++)
            means[c] = counts[c] == 0 ? 0 : means[c] / counts[c];
        for (int begin = 0; begin < x.Length; begin += columns)
            for (int c = 0; c < columns; c++)
                if (float.IsFinite(x[begin + c]))
                    squares[c] += (x[begin + c] - means[c]) * (x[begin + c] - means[c]);
        for (int c = 0; c < columns; c++)
        {
            double std = Math.Sqrt(squares[c] / Math.Max(1, options.UnbiasedStandardDeviation ? counts[c] - 1 : counts[c]));
            inverses[c] = std > largest[c] / 65536 ? 1 / Math.Max(std, options.StandardDeviationFloor) : 0;
        }
    }
}
