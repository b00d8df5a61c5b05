using System.Numerics.Tensors;

namespace Compactor.Native.Compression.Policies;

/// <summary>Key norm (Devoto et al., arXiv 2406.11430): keys of the smallest Euclidean norm, which attract most attention in many models.</summary>
public sealed class KeyNormPolicy : HeadPolicy
{
    /// <inheritdoc/>
    public override string Name => "keynorm";

    /// <inheritdoc/>
    protected override void Score(HeadInputs head, Span<float> scores)
    {
        for (int t = 0; t < scores.Length; t++)
            scores[t] = -TensorPrimitives.Norm(head.Key(t));
    }
}
