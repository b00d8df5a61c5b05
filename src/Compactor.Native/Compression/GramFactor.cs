using System.Runtime.CompilerServices;

namespace Compactor.Native.Compression;

/// <summary>
/// The factorisation behind leverage scores: <c>Gram + eps·I = L·Lᵀ</c> in double, with eps at least <c>2^-20·trace(Gram)/k</c> and
/// multiplied by 10 after a bad pivot.
/// </summary>
public static class GramFactor
{
    /// <summary>Share of the mean diagonal below which eps never falls: float32 Gram matrices are no better than this.</summary>
    public const double EpsilonFloor = 1.0 / (1 << 20);

    /// <summary>How often eps may be multiplied by 10.</summary>
    public const int MaxEscalations = 5;

    /// <summary>Computes <c>L⁻¹</c>.</summary>
    /// <param name="gram"><c>[k, k]</c>, symmetric; only the lower triangle is read.</param>
    /// <param name="k">Order.</param>
    /// <param name="epsilon">The ridge of the options.</param>
    /// <param name="inverse">Receives <c>L⁻¹</c>, lower triangular, <c>[k, k]</c> row-major with zeros above.</param>
    /// <param name="epsilonFloor">Share of the mean diagonal that eps is raised to.</param>
    /// <returns>The eps in effect, or null when no escalation gave positive pivots.</returns>
    public static double? InvertFactor(ReadOnlySpan<double> gram, int k, double epsilon, Span<double> inverse, double epsilonFloor = EpsilonFloor)
    {
        double trace = 0;
        for (int i = 0; i < k; i++)
            trace += gram[i * k + i];
        double eps = Math.Max(epsilon, epsilonFloor * trace / k);
        var factor = new double[k * k];
        for (int attempt = 0; attempt <= MaxEscalations; attempt++, eps = Math.Max(10 * eps, 1e-8))
        {
            if (!Cholesky(gram, k, eps, factor))
                continue;
            InvertLower(factor, k, inverse);
            return eps;
        }
        return null;
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static bool Cholesky(ReadOnlySpan<double> gram, int k, double eps, Span<double> l)
    {
        for (int i = 0; i < k; i++)
            for (int j = 0; j <= i; j++)
            {
                double sum = gram[i * k + j] + (i == j ? eps : 0);
                for (int p = 0; p < j; p++)
                    sum -= l[i * k + p] * l[j * k + p];
                if (i != j)
                    l[i * k + j] = sum / l[j * k + j];
                else if (sum > 0 && double.IsFinite(sum))
                    l[i * k + i] = Math.Sqrt(sum);
                else
                    return false;
            }
        return true;
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void InvertLower(ReadOnlySpan<double> l, int k, Span<double> inverse)
    {
        inverse.Clear();
        for (int j = 0; j < k; j++)
        {
            inverse[j * k + j] = 1 / l[j * k + j];
            for (int i = j + 1; i < k; i++)
            {
                double sum = 0;
                for (int p = j; p < i; p++)
                    sum -= l[i * k + p] * inverse[p * k + j];
                inverse[i * k + j] = sum / l[i * k + i];
            }
        }
    }
}
