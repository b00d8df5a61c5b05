using System.Numerics;
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
        var upper = new double[k * k];
        for (int attempt = 0; attempt <= MaxEscalations; attempt++, eps = Math.Max(10 * eps, 1e-8))
        {
            if (!Cholesky(gram, k, eps, upper))
                continue;
            InvertLower(upper, k, inverse);
            return eps;
        }
        return null;
    }

    /// <summary><c>U = Lᵀ</c>, a row at a time: each is taken off all rows below, so that every loop runs along memory. Below the diagonal of U stands nothing of meaning.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static bool Cholesky(ReadOnlySpan<double> gram, int k, double eps, Span<double> upper)
    {
        for (int i = 0; i < k; i++)
        {
            for (int j = 0; j <= i; j++)
                upper[j * k + i] = gram[i * k + j];
            upper[i * k + i] += eps;
        }
        for (int j = 0; j < k; j++)
        {
            var row = upper.Slice(j * k, k);
            if (!(row[j] > 0 && double.IsFinite(row[j])))
                return false;
            row[j] = Math.Sqrt(row[j]);
            for (int i = j + 1; i < k; i++)
                row[i] /= row[j];
            for (int i = j + 1; i < k; i++)
                SubtractMultiple(row[i], row[i..], upper.Slice(i * k + i, k - i));
        }
        return true;
    }

    /// <summary>Rows of <c>L⁻¹</c>: row i of the identity less the rows before, as L's row i has them, over its pivot.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void InvertLower(ReadOnlySpan<double> upper, int k, Span<double> inverse)
    {
        inverse.Clear();
        for (int i = 0; i < k; i++)
        {
            var row = inverse.Slice(i * k, i + 1);
            for (int p = 0; p < i; p++)
                SubtractMultiple(upper[p * k + i], inverse.Slice(p * k, p + 1), row);
            double pivot = upper[i * k + i];
            row[i] = 1;
            for (int j = 0; j <= i; j++)
                row[j] /= pivot;
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void SubtractMultiple(double factor, ReadOnlySpan<double> row, Span<double> from)
    {
        int c = 0;
        var factors = new Vector<double>(factor);
        for (; c <= row.Length - Vector<double>.Count; c += Vector<double>.Count)
            (new Vector<double>(from[c..]) - factors * new Vector<double>(row[c..])).CopyTo(from[c..]);
        for (; c < row.Length; c++)
            from[c] -= factor * row[c];
    }
}
