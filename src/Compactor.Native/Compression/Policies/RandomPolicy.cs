namespace Compactor.Native.Compression.Policies;

/// <summary>
/// Baseline: every pair's score is uniform in [0, 1), the upper 24 bits of Philox counter (token, layer+1 | (head+1) &lt;&lt; 16, id low, id high)
/// under the complement of the seed, so that it shares no counter with Phi.
/// </summary>
/// <param name="seed">Seed of the scores.</param>
public sealed class RandomPolicy(ulong seed) : HeadPolicy
{
    /// <inheritdoc/>
    public override string Name => "random";

    /// <inheritdoc/>
    protected override void Score(HeadInputs head, Span<float> scores)
    {
        var shape = head.Plan.Shape;
        ulong id = (ulong)shape.IdOf(head.Sequence);
        uint key = (uint)shape.Layer + 1 | (uint)(shape.FirstHead + head.Head) + 1 << 16;
        for (int t = 0; t < scores.Length; t++)
            scores[t] = (Philox.Block((uint)t, key, (uint)id, (uint)(id >> 32), ~seed).X0 >> 8) * (1f / (1 << 24));
    }
}
