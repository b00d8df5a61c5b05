namespace Compactor.Native.Compression.Policies;

/// <summary>
/// H2O (Zhang et al., arXiv 2306.14048): the causal attention a token has received from all queries so far, summed over tokens and group. Half of the budget goes to
/// such heavy hitters, half to the most recent tokens.
/// </summary>
public sealed class H2OPolicy : HeadPolicy
{
    /// <inheritdoc/>
    public override string Name => "h2o";

    /// <inheritdoc/>
    protected override void Score(HeadInputs head, Span<float> scores)
    {
        for (int t = 0; t < scores.Length; t++)
            head.AddCausalAttention(t, scores);
        long recent = head.Plan.KeptPairsOf(head.Sequence) / head.Plan.Shape.KvHeads / 2;
        scores[^(int)Math.Min(recent, scores.Length)..].Fill(AlwaysKept);
    }
}
