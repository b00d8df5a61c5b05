namespace Compactor.Native.Compression.Policies;

/// <summary>
/// TOVA (Oren et al., arXiv 2401.06104): the attention that the last token's query pays to each token, mean over all heads of the layer; the heads keep the same tokens,
/// each in its own budget. The last token is always kept.
/// </summary>
public sealed class TovaPolicy : HeadPolicy
{
    /// <inheritdoc/>
    public override string Name => "tova";

    /// <inheritdoc/>
    protected override bool SharedByHeads => true;

    /// <inheritdoc/>
    protected override void Score(HeadInputs head, Span<float> scores)
    {
        if (scores.IsEmpty)
            return;
        head.AddCausalAttention(scores.Length - 1, scores);
        for (int t = 0; t < scores.Length; t++)
            scores[t] /= head.Plan.Shape.Group;
        scores[^1] = 1;
    }
}
