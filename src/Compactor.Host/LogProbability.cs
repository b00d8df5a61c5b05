using System.Numerics.Tensors;

namespace Compactor.Host;

/// <summary>Facts about the distribution that logits stand for.</summary>
public static class LogProbability
{
    /// <summary>Negative log-probability of a token, nats.</summary>
    /// <param name="logits"><c>[vocabulary]</c>.</param>
    /// <param name="token">Token.</param>
    public static double Nll(ReadOnlySpan<float> logits, int token)
    {
        float maximum = TensorPrimitives.Max(logits);
        double sum = 0;
        foreach (float logit in logits)
            sum += Math.Exp(logit - maximum);
        return maximum + Math.Log(sum) - logits[token];
    }

    /// <summary>The likeliest token; of several, the lowest.</summary>
    /// <param name="logits"><c>[vocabulary]</c>.</param>
    public static int Best(ReadOnlySpan<float> logits) => TensorPrimitives.IndexOfMax(logits);
}
