using System.Numerics.Tensors;
using Compactor.Native.Paging;

namespace Compactor.Native.Reference;

/// <summary>Attention of one query over dense rows: <c>out = softmax(scale·q·k)·V</c>, logits optionally capped by <c>cap·tanh(logit / cap)</c>.</summary>
public static class ReferenceDecodeAttention
{
    /// <summary>Output of one query head.</summary>
    /// <param name="query"><c>[D]</c>.</param>
    /// <param name="keys"><c>[n, D]</c>, of the slots that are seen.</param>
    /// <param name="values"><c>[n, D]</c>.</param>
    /// <param name="options">Scale and cap.</param>
    /// <param name="sink">A logit that takes part in the sum only; −inf for none.</param>
    /// <returns><c>[D]</c> output, zeros when n is 0, and the natural log-sum-exp of the logits and the sink.</returns>
    public static (double[] Output, double LogSumExp) Attend(double[] query, double[,] keys, double[,] values, AttentionOptions options, double sink = double.NegativeInfinity)
    {
        int n = keys.GetLength(0), dim = query.Length;
        double scale = options.Scale ?? 1 / Math.Sqrt(dim);
        var logits = new double[n];
        for (int j = 0; j < n; j++)
        {
            logits[j] = scale * TensorPrimitives.Dot(query, ReferenceTensor.Row(keys, j));
            if (options.SoftCap is { } cap)
                logits[j] = cap * Math.Tanh(logits[j] / cap);
        }
        var output = new double[dim];
        double max = logits.Append(sink).Max();
        if (double.IsNegativeInfinity(max))
            return (output, max);
        double sum = logits.Append(sink).Sum(l => Math.Exp(l - max));
        for (int j = 0; j < n; j++)
            TensorPrimitives.MultiplyAdd(ReferenceTensor.Row(values, j), Math.Exp(logits[j] - max) / sum, output, output);
        return (output, max + Math.Log(sum));
    }
}
