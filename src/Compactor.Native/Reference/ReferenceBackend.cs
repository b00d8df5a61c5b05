using System.Runtime.InteropServices;
using Compactor.Native.Compression;
using Compactor.Native.Paging;

namespace Compactor.Native.Reference;

/// <summary>
/// The method in float64, one sequence and one head at a time, written to be read beside the paper (arXiv 2507.08143): the oracle that
/// every other backend is tested against.
/// </summary>
public sealed partial class ReferenceBackend : KvBackend
{
    /// <inheritdoc/>
    public override string Name => "reference";

    /// <inheritdoc/>
    public override string Description => "float64 reference";

    /// <inheritdoc/>
    public override bool IsHostMemory => true;

    /// <inheritdoc/>
    public override BackendBuffer<T> Allocate<T>(long length) => new PinnedArray<T>(length);

    /// <inheritdoc/>
    public override void Leverage(LayerPlan plan, in TensorView keys, RotaryEmbedding? undo, Sketch sketch, BufferView<float> leverage)
    {
        var options = plan.Options;
        leverage.AsSpan().Clear();
        for (int b = 0; b < plan.Shape.Sequences; b++)
        {
            var (first, end) = plan.ScoredTokens(b);
            int chunk = options.LeverageChunk > 0 ? options.LeverageChunk : Math.Max(1, end - first);
            for (int h = 0; h < plan.Shape.KvHeads; h++)
            {
                double[,] rows = ReferenceTensor.Rows(keys, plan.Shape, b, h);
                if (undo is not null)
                    ReferenceTensor.Unrotate(rows, undo, plan.Shape.CuSeqlens[b]);
                for (int token = first; token < end; token += chunk)
                {
                    int count = Math.Min(chunk, end - token);
                    double[] o = ReferenceLeverage.Scores(ReferenceTensor.Slice(rows, token, count), sketch.Of(b, h), sketch.Columns,
                        options.Epsilon, options.CenterKeys);
                    ReferenceTensor.Write(o, leverage, plan.Shape, b, token, h);
                }
            }
        }
    }

    /// <inheritdoc/>
    public override void AttentionScores(LayerPlan plan, in TensorView query, in TensorView key, BufferView<float> attention)
    {
        var options = plan.Options;
        int group = plan.Shape.Group;
        attention.AsSpan().Clear();
        for (int b = 0; b < plan.Shape.Sequences; b++)
        {
            var (first, end) = plan.ScoredTokens(b);
            for (int h = 0; h < plan.Shape.KvHeads; h++)
            {
                double[,] keys = ReferenceTensor.Rows(key, plan.Shape, b, h);
                var a = new double[end - first];
                for (int g = 0; g < group; g++)
                {
                    double[,] queries = ReferenceTensor.Rows(query, plan.Shape, b, h * group + g);
                    for (int token = first; token < end; token += options.AttentionChunk)
                    {
                        int count = Math.Min(options.AttentionChunk, end - token);
                        double[] columnSums = ReferenceAttention.ColumnSums(ReferenceTensor.Slice(queries, token, count),
                            ReferenceTensor.Slice(keys, token, count), options.AttentionScale);
                        for (int j = 0; j < count; j++)
                            a[token - first + j] += columnSums[j] / (options.GroupReduction == GroupReduction.Mean ? group : 1);
                    }
                }
                ReferenceTensor.Write(a, attention, plan.Shape, b, first, h);
            }
        }
    }

    /// <inheritdoc/>
    public override FuseStatus Fuse(LayerPlan plan, BufferView<float>? leverage, BufferView<float>? attention, in TensorView value, BufferView<float> scores)
    {
        if (plan.Shape.IsRagged)
            return ReferenceRagged.Fuse(plan, RequireLeverageAlone(leverage, attention), scores);
        var status = default(FuseStatus);
        for (int b = 0; b < plan.Shape.Sequences; b++)
        {
            double[,] fused = ReferenceFusion.Scores(plan, b, leverage, attention, value);
            for (int t = 0; t < plan.Shape.LengthOf(b); t++)
                for (int h = 0; h < plan.Shape.KvHeads; h++)
                {
                    if (!double.IsFinite(fused[t, h]))
                    {
                        status = status.NonFiniteScores == 0 ? new FuseStatus(1, b, t, h) : status with { NonFiniteScores = status.NonFiniteScores + 1 };
                        fused[t, h] = float.MinValue;
                    }
                    scores.AsSpan()[(plan.Shape.CuSeqlens[b] + t) * plan.Shape.KvHeads + h] =
                        plan.IsProtected(b, t) ? float.PositiveInfinity : (float)fused[t, h];
                }
        }
        return status;
    }

    /// <inheritdoc/>
    public override void Select(LayerPlan plan, BufferView<float> scores, BufferView<int> keptIndices, BufferView<int> keptOffsets)
    {
        if (plan.Shape.IsRagged)
        {
            ReferenceRagged.Select(plan, scores, keptIndices, keptOffsets);
            return;
        }
        int written = 0, segment = 0;
        keptOffsets.AsSpan()[0] = 0;
        for (int b = 0; b < plan.Shape.Sequences; b++)
        {
            bool[,] kept = ReferenceSelection.Kept(plan, b, scores.AsSpan());
            for (int h = 0; h < plan.Shape.KvHeads; h++)
            {
                for (int t = 0; t < plan.Shape.LengthOf(b); t++)
                    if (kept[t, h])
                        keptIndices.AsSpan()[written++] = t;
                keptOffsets.AsSpan()[++segment] = written;
            }
        }
    }

    /// <inheritdoc/>
    public override unsafe void Compact(LayerPlan plan, in TensorView source, BufferView<int> keptIndices, BufferView<int> keptOffsets, BufferView<byte> destination)
    {
        int rowBytes = source.Dim * source.ElementType.Size(), heads = plan.Shape.KvHeads;
        for (int segment = 0; segment < plan.Shape.Sequences * heads; segment++)
            for (int i = keptOffsets.AsSpan()[segment]; i < keptOffsets.AsSpan()[segment + 1]; i++)
            {
                nint row = source.Row(segment / heads, plan.Shape.CuSeqlens[segment / heads], keptIndices.AsSpan()[i], segment % heads);
                new ReadOnlySpan<byte>((void*)row, rowBytes).CopyTo(destination.AsSpan().Slice(i * rowBytes, rowBytes));
            }
    }

    /// <inheritdoc/>
    public override void DecodeAttention(in PagedView cache, in TensorView query, int kvHeads, PagedTables tables, AttentionOptions options,
        BufferView<float> output, BufferView<float>? logSumExp = null)
    {
        CheckDecode(cache, query, kvHeads, tables, options, output, logSumExp);
        CheckContents(cache, query, [], tables, options);
        for (int b = 0; b < query.Tokens; b++)
            Attend(query.Tokens, b, b, newer: 0, cache, query, kvHeads, tables, options, output, logSumExp);
    }

    /// <inheritdoc/>
    public override void ExtendAttention(ExtendPlan plan, in PagedView cache, in TensorView query, PagedTables tables, AttentionOptions options,
        BufferView<float> output, BufferView<float>? logSumExp = null)
    {
        CheckExtend(plan, cache, query, tables, options, output, logSumExp);
        CheckContents(cache, query, plan.QueryStarts, tables, options);
        for (int b = 0; b < plan.Sequences; b++)
            for (int token = plan.QueryStarts[b]; token < plan.QueryStarts[b + 1]; token++)
                Attend(plan.Sequences, b, token, plan.QueryStarts[b + 1] - 1 - token, cache, query, plan.KvHeads, tables, options, output, logSumExp);
    }

    /// <summary>Attention of one query token, which sees all slots of its heads but the last <paramref name="newer"/> and those that its window leaves out.</summary>
    private static void Attend(int sequences, int b, int token, int newer, in PagedView cache, in TensorView query, int kvHeads, PagedTables tables, AttentionOptions options,
        BufferView<float> output, BufferView<float>? logSumExp)
    {
        int group = query.Heads / kvHeads, rowsPerSequence = (int)(tables.Lengths.Length / sequences);
        for (int head = 0; head < query.Heads; head++)
        {
            int h = head / group, row = b * rowsPerSequence + (rowsPerSequence == 1 ? 0 : h);
            List<(int Block, int Slot)> seen = [];
            for (int slot = 0; slot < tables.Lengths.AsSpan()[row] - newer; slot++)
            {
                int block = tables.Tables.AsSpan()[row * tables.RowStride + slot / cache.BlockSize], inBlock = slot % cache.BlockSize;
                if (options.Window is not { } window
                    || window.SlotPositions.AsSpan()[block * cache.BlockSize + inBlock] > (long)window.QueryPositions.AsSpan()[token] - window.Tokens)
                    seen.Add((block, inBlock));
            }
            double[,] keys = new double[seen.Count, cache.Dim], values = new double[seen.Count, cache.Dim], q = new double[1, cache.Dim];
            for (int i = 0; i < seen.Count; i++)
            {
                nint offset = (nint)cache.Offset(seen[i].Block, seen[i].Slot, h);
                ReferenceTensor.Read(cache.Keys + offset, cache.ElementType, keys, i);
                ReferenceTensor.Read(cache.Values + offset, cache.ElementType, values, i);
            }
            ReferenceTensor.Read(query.Row(0, 0, token, head), query.ElementType, q, 0);
            var (attended, lse) = ReferenceDecodeAttention.Attend([.. q.Cast<double>()], keys, values, options, options.Sinks?.AsSpan()[head] ?? double.NegativeInfinity);
            for (int d = 0; d < cache.Dim; d++)
                output.AsSpan()[(token * query.Heads + head) * cache.Dim + d] = (float)attended[d];
            if (logSumExp is { } sums)
                sums.AsSpan()[token * query.Heads + head] = (float)lse;
        }
    }

    /// <summary>Holds nothing.</summary>
    public override void Dispose() { }

    private sealed class PinnedArray<T>(long length) : BackendBuffer<T> where T : unmanaged
    {
        private readonly T[] _array = GC.AllocateArray<T>(checked((int)Math.Max(1, length)), pinned: true);

        public override BufferView<T> View => new(Marshal.UnsafeAddrOfPinnedArrayElement(_array, 0), length);

        public override void Dispose() { }
    }
}
