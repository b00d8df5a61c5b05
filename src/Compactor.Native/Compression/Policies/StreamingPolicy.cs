namespace Compactor.Native.Compression.Policies;

/// <summary>
/// StreamingLLM (Xiao et al., arXiv 2309.17453): the first tokens, which attention sinks into, and the most recent ones. A token's score is its index,
/// that of a sink is above all.
/// </summary>
/// <param name="sinks">First tokens that are kept; 0 keeps the most recent tokens alone.</param>
public sealed class StreamingPolicy(int sinks) : HeadPolicy
{
    /// <inheritdoc/>
    public override string Name => sinks == 0 ? "recent" : "streaming";

    /// <inheritdoc/>
    protected override void Score(HeadInputs head, Span<float> scores)
    {
        for (int t = 0; t < scores.Length; t++)
            scores[t] = t < sinks ? AlwaysKept : t;
    }
}
