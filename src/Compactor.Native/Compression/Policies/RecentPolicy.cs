using System.Diagnostics;

namespace Compactor.Native.Compression.Policies;

/// <summary>Baseline: a token's score is its index in its sequence, so that the last tokens are kept. Writes scores through host memory.</summary>
public sealed class RecentPolicy : SelectionPolicy
{
    /// <inheritdoc/>
    public override string Name => "recent";

    /// <inheritdoc/>
    public override void Score(KvBackend backend, LayerPlan plan, LayerInputs inputs, Sketch? sketch, LayerSelection selection)
    {
        long start = Stopwatch.GetTimestamp();
        var shape = plan.Shape;
        var scores = new float[shape.Pairs];
        for (int b = 0; b < shape.Sequences; b++)
            for (int t = 0; t < shape.LengthOf(b); t++)
                Array.Fill(scores, t, (shape.CuSeqlens[b] + t) * shape.KvHeads, shape.KvHeads);
        backend.Upload<float>(scores, selection.NewFused());
        selection.Times.Fuse = Stopwatch.GetElapsedTime(start);
    }
}
