using Compactor.Native.Compression;
using MathNet.Numerics.LinearAlgebra;
using MathNet.Numerics.LinearAlgebra.Factorization;

namespace Compactor.Native.Tests.Support;

/// <summary>
/// Ridge leverage from singular vectors, by somebody else's decompositions: <c>o_i = sum_j u_ij² s_j² / (s_j² + eps)</c>. Another route to the numbers
/// that the library gets from a Gram matrix and its Cholesky factor.
/// </summary>
internal static class SingularValueLeverage
{
    /// <param name="plan">Shape, chunks, centering and eps; tokens that are not scored stay 0.</param>
    /// <param name="keys">Keys from before RoPE, packed [N, Hkv, D].</param>
    /// <param name="sketch">Phi.</param>
    /// <returns>[N, Hkv].</returns>
    public static float[] Of(LayerPlan plan, float[] keys, Sketch sketch)
    {
        var shape = plan.Shape;
        var scores = new float[shape.Tokens * shape.KvHeads];
        for (int b = 0; b < shape.Sequences; b++)
        {
            var (first, end) = plan.ScoredTokens(b);
            int chunk = plan.Options.LeverageChunk > 0 ? plan.Options.LeverageChunk : Math.Max(1, end - first);
            for (int head = 0; head < shape.KvHeads; head++)
                for (int token = first; token < end; token += chunk)
                    OfChunk(b, head, shape.CuSeqlens[b] + token, Math.Min(chunk, end - token));
        }
        return scores;

        void OfChunk(int sequence, int head, int row, int rows)
        {
            int dim = shape.HeadDim, k = sketch.Columns;
            float[] phi = sketch.Of(sequence, head).ToArray();
            var x = Matrix<double>.Build.Dense(rows, dim, (i, d) => keys[((row + i) * shape.KvHeads + head) * dim + d]);
            if (plan.Options.CenterKeys)
            {
                var mean = x.ColumnSums() / rows;
                x.MapIndexedInplace((_, d, value) => value - mean[d], Zeros.Include);
            }
            x *= Matrix<double>.Build.Dense(dim, k, (d, c) => phi[d * k + c]);
            Matrix<double> u;
            Vector<double> s;
            if (rows > k)
            {
                // QR first: the left vectors of all rows are never formed
                var thin = x.QR(QRMethod.Thin);
                var svd = thin.R.Svd();
                (u, s) = (thin.Q * svd.U, svd.S);
            }
            else
            {
                var svd = x.Svd();
                (u, s) = (svd.U, svd.S);
            }
            for (int i = 0; i < rows; i++)
                scores[(row + i) * shape.KvHeads + head] = (float)Enumerable.Range(0, s.Count).Sum(j => u[i, j] * u[i, j] * s[j] * s[j] / (s[j] * s[j] + plan.Options.Epsilon));
        }
    }
}
