using System.Numerics.Tensors;
using Compactor.Native.Compression;

namespace Compactor.Native.Reference;

/// <summary>
/// Approximate leverage scores of one head and chunk: <c>X = (K - mean)·Phi</c>, <c>XᵀX + eps·I = L·Lᵀ</c>, <c>o_i = ||L⁻¹·x_i||²</c>.
/// </summary>
public static class ReferenceLeverage
{
    /// <summary>Scores of every row.</summary>
    /// <param name="keys"><c>[n, D]</c> keys before RoPE.</param>
    /// <param name="phi"><c>[D, k]</c>, row-major.</param>
    /// <param name="k">Columns of Phi.</param>
    /// <param name="epsilon">Ridge.</param>
    /// <param name="center">Whether the mean key is subtracted.</param>
    /// <param name="epsilonFloor">Share of the mean diagonal of the Gram matrix that the ridge is raised to.</param>
    /// <returns><c>[n]</c> scores in [0, 1).</returns>
    /// <exception cref="CompactorException">No escalation of the ridge gives a factorisation.</exception>
    public static double[] Scores(double[,] keys, ReadOnlySpan<float> phi, int k, double epsilon, bool center, double epsilonFloor = GramFactor.EpsilonFloor)
    {
        int n = keys.GetLength(0), dim = keys.GetLength(1);
        var mean = new double[dim];
        if (center)
            for (int d = 0; d < dim; d++)
            {
                for (int i = 0; i < n; i++)
                    mean[d] += keys[i, d];
                mean[d] /= n;
            }

        double[] sketch = Array.ConvertAll(phi.ToArray(), element => (double)element), sketched = new double[n * k], gram = new double[k * k];
        for (int i = 0; i < n; i++)
        {
            var x = sketched.AsSpan(i * k, k);
            for (int d = 0; d < dim; d++)
                TensorPrimitives.MultiplyAdd(sketch.AsSpan(d * k, k), keys[i, d] - mean[d], x, x);
            for (int r = 0; r < k; r++)
                TensorPrimitives.MultiplyAdd(x, x[r], gram.AsSpan(r * k, k), gram.AsSpan(r * k, k));
        }

        var inverse = new double[k * k];
        if (GramFactor.InvertFactor(gram, k, epsilon, inverse, epsilonFloor) is null)
            throw new CompactorException(CompactorStatus.FactorizationFailed, $"The Gram matrix has no Cholesky factor even with Epsilon {epsilon} times 10^{GramFactor.MaxEscalations}; raise Epsilon.");

        var scores = new double[n];
        for (int i = 0; i < n; i++)
            for (int r = 0; r < k; r++)
            {
                double y = TensorPrimitives.Dot<double>(inverse.AsSpan(r * k, r + 1), sketched.AsSpan(i * k, r + 1));
                scores[i] += y * y;
            }
        return scores;
    }
}
