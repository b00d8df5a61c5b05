using Compactor.Native.Compression;

namespace Compactor.Native.Reference;

/// <summary>Fusion of one sequence: <c>s = z(pool(a·||v||)) + lambda·z(o)</c>.</summary>
internal static class ReferenceFusion
{
    /// <summary>Fused scores <c>[n, Hkv]</c> without protection; 0 for tokens that are not scored.</summary>
    public static double[,] Scores(LayerPlan plan, int b, BufferView<float>? leverage, BufferView<float>? attention, TensorView value)
    {
        var options = plan.Options;
        int heads = plan.Shape.KvHeads;
        var (first, end) = plan.ScoredTokens(b);
        var fused = new double[plan.Shape.LengthOf(b), heads];
        if (attention is { } a)
        {
            double[,] pooled = Pool(WeightByValueNorm(Read(a)), options.PoolWidth);
            Add(Z(pooled, options.AttentionScope, options.AttentionChunk), 1);
        }
        if (leverage is { } o)
            Add(Z(Read(o), options.LeverageScope, options.LeverageChunk), attention is null ? 1 : plan.LeverageWeightOf(b));
        return fused;

        double[,] Read(BufferView<float> scores)
        {
            var x = new double[end - first, heads];
            for (int t = first; t < end; t++)
                for (int h = 0; h < heads; h++)
                    x[t - first, h] = scores.AsSpan()[(plan.Shape.CuSeqlens[b] + t) * heads + h];
            return x;
        }

        double[,] WeightByValueNorm(double[,] x)
        {
            if (!options.WeightByValueNorm)
                return x;
            for (int h = 0; h < heads; h++)
            {
                double[,] values = ReferenceTensor.Rows(value, plan.Shape, b, h);
                for (int t = first; t < end; t++)
                {
                    double squares = 0;
                    for (int d = 0; d < plan.Shape.HeadDim; d++)
                        squares += values[t, d] * values[t, d];
                    x[t - first, h] *= Math.Sqrt(squares);
                }
            }
            return x;
        }

        double[,] Z(double[,] x, NormalizationScope scope, int chunk)
        {
            int tokens = x.GetLength(0);
            var z = new double[tokens, heads];
            int rows = scope == NormalizationScope.Chunk && chunk > 0 ? chunk : Math.Max(1, tokens);
            int columns = scope == NormalizationScope.Head ? 1 : heads;
            for (int t = 0; t < tokens; t += rows)
                for (int h = 0; h < heads; h += columns)
                    Normalize(x, z, t, Math.Min(tokens, t + rows), h, h + columns, options);
            return z;
        }

        void Add(double[,] z, double weight)
        {
            for (int t = first; t < end; t++)
                for (int h = 0; h < heads; h++)
                    fused[t, h] += weight * z[t - first, h];
        }
    }

    /// <summary>Mean over a window of tokens, zeros outside, always divided by the full width.</summary>
    private static double[,] Pool(double[,] x, int width)
    {
        var pooled = new double[x.GetLength(0), x.GetLength(1)];
        for (int t = 0; t < x.GetLength(0); t++)
            for (int h = 0; h < x.GetLength(1); h++)
                for (int u = t - width / 2; u <= t + width / 2; u++)
                    if (u >= 0 && u < x.GetLength(0))
                        pooled[t, h] += x[u, h] / width;
        return pooled;
    }

    private static void Normalize(double[,] x, double[,] z, int t0, int t1, int h0, int h1, CompressionOptions options)
    {
        var pairs = (from t in Enumerable.Range(t0, t1 - t0) from h in Enumerable.Range(h0, h1 - h0) select (t, h)).ToArray();
        double[] normalized = Z([.. pairs.Select(p => x[p.t, p.h])], options);
        for (int i = 0; i < pairs.Length; i++)
            z[pairs[i].t, pairs[i].h] = normalized[i];
    }

    /// <summary>z of the elements of one scope: NaN for those that are not finite, which take no part; 0 for constant ones.</summary>
    public static double[] Z(double[] x, CompressionOptions options)
    {
        double[] values = [.. x.Where(double.IsFinite)];
        double mean = values.Length == 0 ? 0 : values.Sum() / values.Length;
        double variance = values.Sum(v => (v - mean) * (v - mean)) / Math.Max(1, options.UnbiasedStandardDeviation ? values.Length - 1 : values.Length);
        double std = Math.Sqrt(variance), largest = values.Length == 0 ? 0 : values.Max(Math.Abs);
        return [.. x.Select(v => !double.IsFinite(v) ? double.NaN : std <= largest / 65536 ? 0 : (v - mean) / Math.Max(std, options.StandardDeviationFloor))];
    }
}
