namespace Compactor.Native.Compression.Policies;

/// <summary>
/// SnapKV (Li et al., arXiv 2404.14469): the attention that the last tokens' queries, the observation window, pay to each earlier token, mean over window and group,
/// then mean-pooled over neighbours (zeros beyond both ends). The window itself is always kept.
/// </summary>
/// <param name="window">Tokens of the observation window.</param>
/// <param name="poolWidth">Width of the mean pool, odd.</param>
public sealed class SnapKvPolicy(int window, int poolWidth) : HeadPolicy
{
    /// <inheritdoc/>
    public override string Name => "snapkv";

    /// <inheritdoc/>
    protected override void Score(HeadInputs head, Span<float> scores)
    {
        int earlier = Math.Max(0, scores.Length - window);
        var attention = new float[scores.Length];
        for (int t = earlier; t < scores.Length; t++)
            head.AddCausalAttention(t, attention);
        float share = 1f / (poolWidth * (scores.Length - earlier) * head.Plan.Shape.Group);
        for (int t = 0; t < earlier; t++)
            for (int near = Math.Max(0, t - poolWidth / 2); near <= Math.Min(earlier - 1, t + poolWidth / 2); near++)
                scores[t] += share * attention[near];
        scores[earlier..].Fill(AlwaysKept);
    }
}
