using System.Numerics.Tensors;

namespace Compactor.Native.Reference;

/// <summary>Non-causal attention of one query head within one chunk: <c>a_j = sum_i softmax_j(scale·q_i·k_j)</c>.</summary>
public static class ReferenceAttention
{
    /// <summary>Sums over the queries of the attention each key receives.</summary>
    /// <param name="queries"><c>[m, D]</c> queries after RoPE.</param>
    /// <param name="keys"><c>[n, D]</c> keys after RoPE.</param>
    /// <param name="scale">Multiplier of q·k.</param>
    /// <returns><c>[n]</c> column sums; they sum to m.</returns>
    public static double[] ColumnSums(double[,] queries, double[,] keys, double scale)
    {
        int n = keys.GetLength(0);
        var sums = new double[n];
        var weights = new double[n];
        for (int i = 0; i < queries.GetLength(0); i++)
        {
            double max = double.NegativeInfinity, total = 0;
            for (int j = 0; j < n; j++)
            {
                weights[j] = scale * TensorPrimitives.Dot(ReferenceTensor.Row(queries, i), ReferenceTensor.Row(keys, j));
                max = Math.Max(max, weights[j]);
            }
            for (int j = 0; j < n; j++)
                total += weights[j] = Math.Exp(weights[j] - max);
            for (int j = 0; j < n; j++)
                sums[j] += weights[j] / total;
        }
        return sums;
    }
}
