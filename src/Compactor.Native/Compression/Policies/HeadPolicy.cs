using System.Diagnostics;

namespace Compactor.Native.Compression.Policies;

/// <summary>
/// A policy that scores one KV head of one sequence at a time, in float32 and in host memory. Protected tokens get +inf, as every policy's do.
/// The published baselines are of this kind: written to be read beside their definitions, not to be fast.
/// </summary>
public abstract class HeadPolicy : SelectionPolicy
{
    /// <summary>Score of a token the policy always keeps: above all others, and below a protected token's even when summed over heads.</summary>
    protected const float AlwaysKept = 1e30f;

    /// <summary>Whether the heads of a sequence share the mean of their scores, so that all favour the same tokens.</summary>
    protected virtual bool SharedByHeads => false;

    /// <summary>Scores the tokens of one head; the highest are kept.</summary>
    /// <param name="head">Keys and queries of the head.</param>
    /// <param name="scores">Receives <c>[tokens]</c>; zeros before.</param>
    protected abstract void Score(HeadInputs head, Span<float> scores);

    /// <inheritdoc/>
    /// <exception cref="CompactorException">The backend's memory is not the host's, queries are missing, or an input is not finite.</exception>
    public sealed override void Score(KvBackend backend, LayerPlan plan, LayerInputs inputs, Sketch? sketch, LayerSelection selection)
    {
        if (!backend.IsHostMemory)
            throw CompactorException.Unsupported($"The {Name} policy scores in host memory; the {backend.Name} backend's is not. Use the cpu backend, or another policy.");
        long start = Stopwatch.GetTimestamp();
        var shape = plan.Shape;
        int heads = shape.KvHeads;
        var fused = selection.NewFused().AsSpan();
        for (int b = 0; b < shape.Sequences; b++)
        {
            int tokens = shape.LengthOf(b);
            var scores = new float[heads][];
            for (int h = 0; h < heads; h++)
                Score(new HeadInputs(this, plan, inputs, b, h), scores[h] = new float[tokens]);
            for (int t = 0; t < tokens; t++)
            {
                var row = fused.Slice((shape.CuSeqlens[b] + t) * heads, heads);
                for (int h = 0; h < heads; h++)
                    row[h] = plan.IsProtected(b, t) ? float.PositiveInfinity : scores[h][t];
                if (SharedByHeads)
                    row.Fill(System.Numerics.Tensors.TensorPrimitives.Sum<float>(row) / heads);
            }
        }
        selection.Times.Fuse = Stopwatch.GetElapsedTime(start);
    }
}
