using System.Runtime.CompilerServices;
using Compactor.Native.Compression;

namespace Compactor.Native.Cpu;

/// <summary>Mean and standard deviation of scores, in double, in order, in two shifted passes.</summary>
internal static class CpuStatistics
{
    /// <summary>Writes <c>z(source)</c> over all of it.</summary>
    public static void Normalize(ReadOnlySpan<float> source, Span<float> target, CompressionOptions options)
    {
        var (mean, inverse) = Of(source, 0, source.Length, 1, options);
        for (int i = 0; i < source.Length; i++)
            target[i] = (float)((source[i] - mean) * inverse);
    }

    /// <summary>Mean and 1/std of finite elements; 1/std is 0 where they are constant to float32's resolution.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    public static (double Mean, double Inverse) Of(ReadOnlySpan<float> x, int from, int to, int stride, CompressionOptions options)
    {
        double sum = 0, largest = 0;
        long count = 0;
        for (int e = from; e < to; e += stride)
            if (float.IsFinite(x[e]))
            {
                sum += x[e];
                largest = Math.Max(largest, Math.Abs(x[e]));
                count++;
            }
        double mean = count == 0 ? 0 : sum / count, squares = 0;
        for (int e = from; e < to; e += stride)
            if (float.IsFinite(x[e]))
                squares += (x[e] - mean) * (x[e] - mean);
        double std = Math.Sqrt(squares / Math.Max(1, options.UnbiasedStandardDeviation ? count - 1 : count));
        return (mean, std > largest / 65536 ? 1 / Math.Max(std, options.StandardDeviationFloor) : 0);
    }
}
