using System.Diagnostics;

namespace Compactor.Native.Compression.Policies;

/// <summary>
/// Baseline: every pair's score is uniform in [0, 1), the upper 24 bits of Philox counter (token, layer+1 | (head+1) &lt;&lt; 16, id low, id high)
/// under the complement of the seed, so that it shares no counter with Phi. Writes scores through host memory.
/// </summary>
/// <param name="seed">Seed of the scores.</param>
public sealed class RandomPolicy(ulong seed) : SelectionPolicy
{
    /// <inheritdoc/>
    public override string Name => "random";

    /// <inheritdoc/>
    public override void Score(KvBackend backend, LayerPlan plan, LayerInputs inputs, Sketch? sketch, LayerSelection selection)
    {
        long start = Stopwatch.GetTimestamp();
        var shape = plan.Shape;
        var scores = new float[shape.Pairs];
        for (int b = 0, next = 0; b < shape.Sequences; b++)
        {
            ulong id = (ulong)shape.IdOf(b);
            for (int t = 0; t < shape.LengthOf(b); t++)
                for (int h = 0; h < shape.KvHeads; h++)
                {
                    uint key = (uint)shape.Layer + 1 | (uint)(shape.FirstHead + h) + 1 << 16;
                    scores[next++] = (Philox.Block((uint)t, key, (uint)id, (uint)(id >> 32), ~seed).X0 >> 8) * (1f / (1 << 24));
                }
        }
        backend.Upload<float>(scores, selection.NewFused());
        selection.Times.Fuse = Stopwatch.GetElapsedTime(start);
    }
}
