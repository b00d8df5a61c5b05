using System.Numerics.Tensors;

namespace Compactor.Native.Compression.Policies;

/// <summary>KeyDiff (Park et al., arXiv 2504.15364): keys that differ most from the rest, by the negative cosine between a key and the mean of the head's normalised keys.</summary>
public sealed class KeyDiffPolicy : HeadPolicy
{
    private const float SmallestNorm = 1e-12f;

    /// <inheritdoc/>
    public override string Name => "keydiff";

    /// <inheritdoc/>
    protected override void Score(HeadInputs head, Span<float> scores)
    {
        var anchor = new float[head.Plan.Shape.HeadDim];
        for (int t = 0; t < scores.Length; t++)
            TensorPrimitives.MultiplyAdd(head.Key(t), 1 / Norm(head.Key(t)), anchor, anchor);
        float norm = Norm(anchor);
        for (int t = 0; t < scores.Length; t++)
            scores[t] = -TensorPrimitives.Dot(head.Key(t), anchor) / (Norm(head.Key(t)) * norm);
    }

    private static float Norm(ReadOnlySpan<float> row) => Math.Max(SmallestNorm, TensorPrimitives.Norm(row));
}
