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
                Pool(workers, plan, b, a, value, (float*)scores.Address + (long)(start + first) * heads);
                Normalize(scored, scored, heads, plan.Options, plan.Options.AttentionScope, plan.Options.AttentionChunk, 1);
            }
            if (leverage is { } o)
                Normalize(o.AsSpan().Slice((start + first) * heads, scored.Length), scored, heads, plan.Options, plan.Options.LeverageScope,
                    plan.Options.LeverageChunk, attention is null ? 1 : plan.LeverageWeightOf(b), add: attention is not null);
            Protect(plan, b, fused, ref status);
        }
        return status;
    }

    /// <summary>Value-norm weighting and the zero-padded mean pool, into <paramref name="target"/>, by blocks of tokens.</summary>
    private static void Pool(Workers workers, LayerPlan plan, int b, BufferView<float> attention, TensorView value, float* target)
    {
        int heads = plan.Shape.KvHeads, dim = plan.Shape.HeadDim, start = plan.Shape.CuSeqlens[b], half = plan.Options.PoolWidth / 2;
        var (first, end) = plan.ScoredTokens(b);
        int length = end - first, blockTokens = Math.Clamp(1024 / heads, 16, 512);
        float* source = (float*)attention.Address + (long)(start + first) * heads;
        workers.Run((length + blockTokens - 1) / blockTokens, ((blockTokens + 2L * half) * heads + dim) * sizeof(float), (block, scratch) =>
        {
            int begin = block * blockTokens, past = Math.Min(length, begin + blockTokens), from = Math.Max(0, begin - half), to = Math.Min(length, past + half);
            float* weighted = (float*)scratch, row = weighted + (long)(to - from) * heads;
            new Span<float>(source + (long)from * heads, (to - from) * heads).CopyTo(new(weighted, (to - from) * heads));
            if (plan.Options.WeightByValueNorm)
                for (int t = from; t < to; t++)
                    for (int h = 0; h < heads; h++)
                    {
                        RowLoader<TLanes, TVector>.Load(value, b, start, first + t, 1, h, row);
                        weighted[(long)(t - from) * heads + h] *= TensorPrimitives.Norm(new ReadOnlySpan<float>(row, dim));
                    }
            Means(weighted, from, to, begin, past, heads, half, target);
        });
    }

    /// <summary>Means of windows of <c>2·half + 1</c> tokens; what lies outside of [<paramref name="from"/>, <paramref name="to"/>) is 0.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void Means(float* weighted, int from, int to, int begin, int past, int heads, int half, float* target)
    {
        for (int t = begin; t < past; t++)
            for (int h = 0; h < heads; h++)
            {
                double sum = 0;
                for (int u = Math.Max(from, t - half); u <= Math.Min(to - 1, t + half); u++)
                    sum += weighted[(long)(u - from) * heads + h];
                target[(long)t * heads + h] = (float)(sum / (2 * half + 1));
            }
    }

    /// <summary>Writes or adds <c>weight·z(source)</c>, scope by scope.</summary>
    private static void Normalize(ReadOnlySpan<float> source, Span<float> target, int heads, CompressionOptions options,
        NormalizationScope scope, int chunk, double weight, bool add = false)
    {
        int columns = scope == NormalizationScope.Head ? heads : 1, span = scope == NormalizationScope.Chunk && chunk > 0 ? chunk * heads : Math.Max(1, source.Length);
        for (int begin = 0; begin < source.Length; begin += span)
        {
            int here = Math.Min(span, source.Length - begin);
            CpuStatistics.Normalize(source.Slice(begin, here), target.Slice(begin, here), columns, options, weight, add);
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void Protect(LayerPlan plan, int b, Span<float> fused, ref FuseStatus status)
    {
        int heads = plan.Shape.KvHeads;
        for (int t = 0; t < fused.Length / heads; t++)
        {
            var row = fused.Slice(t * heads, heads);
            for (int h = 0; h < heads; h++)
                if (!float.IsFinite(row[h]))
                {
                    row[h] = float.MinValue;
                    status = status.NonFiniteScores == 0 ? new FuseStatus(1, b, t, h) : status with { NonFiniteScores = status.NonFiniteScores + 1 };
                }
            if (plan.IsProtected(b, t))
                row.Fill(float.PositiveInfinity);
        }
    }
}
