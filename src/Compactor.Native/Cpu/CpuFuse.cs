using System.Numerics.Tensors;
using System.Runtime.CompilerServices;
using Compactor.Native.Compression;

namespace Compactor.Native.Cpu;

/// <summary>
/// Fusion, <c>s = z(pool(a·||v||)) + lambda·z(o)</c>: means and variances in double, in token-major order, in two shifted passes.
/// Elements that are not finite take no part in the statistics and end as the lowest finite score.
/// </summary>
internal static unsafe class CpuFuse<TLanes, TVector>
    where TLanes : struct, ILanes<TVector>
    where TVector : struct
{
    public static FuseStatus Run(Workers workers, LayerPlan plan, BufferView<float>? leverage, BufferView<float>? attention, TensorView value, BufferView<float> scores)
    {
        var status = new FuseStatus(0, 0, 0, 0);
        for (int b = 0; b < plan.Shape.Sequences; b++)
        {
            int heads = plan.Shape.KvHeads, start = plan.Shape.CuSeqlens[b], length = plan.Shape.LengthOf(b);
            var (first, end) = plan.ScoredTokens(b);
            var fused = scores.AsSpan().Slice(start * heads, length * heads);
            fused.Clear();
            var scored = fused[(first * heads)..(end * heads)];
            if (attention is { } a)
            {
                Pool(workers, plan, b, a, value, scores);
                Normalize(scored, scored, heads, plan.Options, plan.Options.AttentionScope, plan.Options.AttentionChunk, 1);
            }
            if (leverage is { } o)
                Normalize(o.AsSpan().Slice((start + first) * heads, scored.Length), scored, heads, plan.Options, plan.Options.LeverageScope,
                    plan.Options.LeverageChunk, attention is null ? 1 : plan.LeverageWeightOf(b), add: attention is not null);
            Protect(plan, b, fused, ref status);
        }
        return status;
    }

    /// <summary>Value-norm weighting and the zero-padded mean pool, into <paramref name="scores"/>.</summary>
    private static void Pool(Workers workers, LayerPlan plan, int b, BufferView<float> attention, TensorView value, BufferView<float> scores)
    {
        int heads = plan.Shape.KvHeads, dim = plan.Shape.HeadDim, start = plan.Shape.CuSeqlens[b], width = plan.Options.PoolWidth;
        var (first, end) = plan.ScoredTokens(b);
        int length = end - first;
        workers.Run(heads, ((long)length + dim) * sizeof(float), (head, scratch) =>
        {
            long origin = (long)(start + first) * heads + head;
            float* source = (float*)attention.Address + origin, target = (float*)scores.Address + origin;
            float* weighted = (float*)scratch, row = weighted + length;
            for (int t = 0; t < length; t++)
            {
                weighted[t] = source[(long)t * heads];
                if (plan.Options.WeightByValueNorm)
                {
                    RowLoader<TLanes, TVector>.Load(value, b, start, first + t, 1, head, row);
                    weighted[t] *= TensorPrimitives.Norm(new ReadOnlySpan<float>(row, dim));
                }
            }
            for (int t = 0; t < length; t++)
            {
                double sum = 0;
                for (int u = Math.Max(0, t - width / 2); u <= Math.Min(length - 1, t + width / 2); u++)
                    sum += weighted[u];
                target[(long)t * heads] = (float)(sum / width);
            }
        });
    }

    /// <summary>Writes or adds <c>weight·z(source)</c>, scope by scope.</summary>
    private static void Normalize(ReadOnlySpan<float> source, Span<float> target, int heads, CompressionOptions options,
        NormalizationScope scope, int chunk, double weight, bool add = false)
    {
        int stride = scope == NormalizationScope.Head ? heads : 1;
        int span = scope == NormalizationScope.Chunk && chunk > 0 ? chunk * heads : source.Length;
        for (int begin = 0; begin < source.Length; begin += span)
            for (int offset = 0; offset < stride; offset++)
            {
                int from = begin + offset, to = Math.Min(source.Length, begin + span);
                var (mean, inverse) = CpuStatistics.Of(source, from, to, stride, options);
                for (int e = from; e < to; e += stride)
                {
                    double z = weight * ((source[e] - mean) * inverse);
                    target[e] = (float)(add ? target[e] + z : z);
                }
            }
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void Protect(LayerPlan plan, int b, Span<float> fused, ref FuseStatus status)
    {
        int heads = plan.Shape.KvHeads;
        for (int e = 0; e < fused.Length; e++)
        {
            if (!float.IsFinite(fused[e]))
            {
                fused[e] = float.MinValue;
                status = status.NonFiniteScores == 0 ? new FuseStatus(1, b, e / heads, e % heads) : status with { NonFiniteScores = status.NonFiniteScores + 1 };
            }
            if (plan.IsProtected(b, e / heads))
                fused[e] = float.PositiveInfinity;
        }
    }
}
