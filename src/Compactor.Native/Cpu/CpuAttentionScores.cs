using System.Runtime.CompilerServices;
using Compactor.Native.Compression;

namespace Compactor.Native.Cpu;

/// <summary>
/// Non-causal attention scores, <c>a_j = reduce_g sum_i softmax_j(scale·q_i·k_j)</c> within chunks of C tokens.
/// A work item is one chunk of one KV head: its keys are packed once, then query tiles of 48 rows stream past, each asked for while the one before is multiplied. A tile's logits are computed
/// in one matrix pass and kept in cache (48·C floats) for the maximum, one exponential each, and the column sums.
/// Flops 2·N·Hq·C·D; exponentials N·Hq·C.
/// </summary>
internal static unsafe class CpuAttentionScores<TLanes, TVector>
    where TLanes : struct, ILanes<TVector>
    where TVector : struct
{
    private const int QueryTile = 8 * MatrixTile<TLanes, TVector>.Rows;

    public static void Run(Workers workers, LayerPlan plan, TensorView query, TensorView key, BufferView<float> attention)
    {
        var shape = plan.Shape;
        int chunk = plan.Options.AttentionChunk, dim = shape.HeadDim, group = shape.Group, kvHeads = shape.KvHeads;
        float logitScale = (float)(plan.Options.AttentionScale * Math.Log2(Math.E));
        float reduction = plan.Options.GroupReduction == GroupReduction.Mean ? 1f / group : 1f;
        var badQuery = new NonFiniteInput(shape, "query");
        var badKey = new NonFiniteInput(shape, "key");
        float* scores = (float*)attention.Address;
        attention.AsSpan().Clear();

        int columns = MatrixTile<TLanes, TVector>.PaddedColumns(chunk, MatrixTile<TLanes, TVector>.Width);
        long keyFloats = (long)columns * dim, scratchFloats = 2 * keyFloats + (long)QueryTile * dim + (long)QueryTile * columns + columns + QueryTile;

        for (int b = 0; b < shape.Sequences; b++)
        {
            int sequence = b, start = shape.CuSeqlens[b];
            var (first, end) = plan.ScoredTokens(b);
            int chunks = (end - first + chunk - 1) / chunk;
            workers.Run(chunks * kvHeads, scratchFloats * sizeof(float), (item, scratch) =>
            {
                int head = item % kvHeads, token = first + item / kvHeads * chunk, count = Math.Min(chunk, end - token);
                float* panels = (float*)scratch, rows = panels + keyFloats, queries = rows + keyFloats, logits = queries + QueryTile * dim;
                float* columnSums = logits + (long)QueryTile * columns, inverseSums = columnSums + columns;

                if (!RowLoader<TLanes, TVector>.Load(key, sequence, start, token, count, head, rows))
                    badKey.Find(sequence, token, count, head, rows, dim);
                int padded = MatrixTile<TLanes, TVector>.PaddedColumns(count, MatrixTile<TLanes, TVector>.Width);
                PackTransposed(rows, count, padded, dim, panels);
                new Span<float>(columnSums, padded).Clear();

                var source = new QueryRows(query, sequence, start, token, count, head * group, group, badQuery);
                for (int i = 0; i < source.Count; i += QueryTile)
                {
                    int tile = Math.Min(QueryTile, source.Count - i), paddedTile = MatrixTile<TLanes, TVector>.PaddedRows(tile);
                    source.Load(i, tile, queries);
                    new Span<float>(queries + tile * dim, (paddedTile - tile) * dim).Clear();
                    Logits(queries, paddedTile, panels, padded, dim, logits, source, i + tile);
                    Softmax(logits, tile, count, padded, logitScale, inverseSums);
                    AddColumns(logits, tile, padded, inverseSums, columnSums);
                }

                float* output = scores + (long)(start + token) * kvHeads + head;
                for (int j = 0; j < count; j++)
                    output[(long)j * kvHeads] = columnSums[j] * reduction;
            });
        }
        badKey.ThrowIfAny();
        badQuery.ThrowIfAny();
    }

    /// <summary>Query rows of one KV head and chunk, a token's heads after each other, as they lie in memory.</summary>
    private readonly struct QueryRows(TensorView view, int sequence, int start, int token, int tokens, int head, int group, NonFiniteInput bad)
    {
        public int Count => tokens * group;

        public void Load(int row, int count, float* rows)
        {
            for (int i = 0; i < count;)
            {
                int at = token + (row + i) / group, g = (row + i) % group, here = Math.Min(group - g, count - i);
                var heads = new TensorView(Address(row + i), view.ElementType, here, 1, view.Dim, view.HeadStride, 0);
                if (!RowLoader<TLanes, TVector>.Load(heads, 0, 0, 0, here, 0, rows + (long)i * view.Dim))
                    for (int h = 0; h < here; h++)
                        bad.Find(sequence, at, 1, head + g + h, rows + (long)(i + h) * view.Dim, view.Dim);
                i += here;
            }
        }

        /// <summary>Asks for rows up to <paramref name="end"/>, as far as there are any, in the second-level cache.</summary>
        public void Prefetch(int row, int end)
        {
            for (end = Math.Min(end, Count); row < end; row++)
                CacheLines.AskFar(Address(row), view.Dim * view.ElementType.Size());
        }

        private nint Address(int row) => view.Row(sequence, start, token + row / group, head + row % group);
    }

    /// <summary>Key rows to panels <c>[columns / W][D][W]</c>, zeros beyond <paramref name="count"/>.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void PackTransposed(float* rows, int count, int padded, int dim, float* panels)
    {
        int width = MatrixTile<TLanes, TVector>.Width;
        for (int panel = 0; panel < padded; panel += width, panels += (long)width * dim)
        {
            int here = Math.Clamp(count - panel, 0, width);
            for (int j = 0; j < here; j++)
            {
                float* row = rows + (long)(panel + j) * dim;
                for (int d = 0; d < dim; d++)
                    panels[(long)d * width + j] = row[d];
            }
            for (int j = here; j < width; j++)
                for (int d = 0; d < dim; d++)
                    panels[(long)d * width + j] = 0;
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void Logits(float* queries, int tile, float* panels, int columns, int dim, float* logits, in QueryRows source, int next)
    {
        int width = MatrixTile<TLanes, TVector>.Width, products = columns / width * (tile / MatrixTile<TLanes, TVector>.Rows), done = 0;
        for (int panel = 0; panel < columns; panel += width)
            for (int i = 0; i < tile; i += MatrixTile<TLanes, TVector>.Rows)
            {
                source.Prefetch(next + QueryTile * done / products, next + QueryTile * ++done / products);
                MatrixTile<TLanes, TVector>.Compute(queries + (long)i * dim, dim, 1, panels + (long)panel * dim, width, dim,
                    logits + (long)i * columns + panel, columns, width);
            }
    }

    /// <summary>Turns each row of logits into <c>2^(scale·(l - max))</c> and gives the inverse of its sum.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void Softmax(float* logits, int tile, int count, int columns, float scale, float* inverseSums)
    {
        var scales = TLanes.Broadcast(scale);
        for (int i = 0; i < tile; i++, logits += columns)
        {
            for (int j = count; j < columns; j++)
                logits[j] = float.NegativeInfinity;
            TVector max0 = TLanes.Load(logits), max1 = TLanes.Load(logits + TLanes.Count);
            for (int j = 2 * TLanes.Count; j < columns; j += 2 * TLanes.Count)
            {
                max0 = TLanes.Max(max0, TLanes.Load(logits + j));
                max1 = TLanes.Max(max1, TLanes.Load(logits + j + TLanes.Count));
            }
            var shift = TLanes.Broadcast(-scale * TLanes.MaxLane(TLanes.Max(max0, max1)));
            TVector sum0 = TLanes.Broadcast(0), sum1 = sum0;
            for (int j = 0; j < columns; j += 2 * TLanes.Count)
            {
                var e0 = TLanes.Exp2(TLanes.MultiplyAdd(TLanes.Load(logits + j), scales, shift));
                var e1 = TLanes.Exp2(TLanes.MultiplyAdd(TLanes.Load(logits + j + TLanes.Count), scales, shift));
                TLanes.Store(e0, logits + j);
                TLanes.Store(e1, logits + j + TLanes.Count);
                sum0 = TLanes.Add(sum0, e0);
                sum1 = TLanes.Add(sum1, e1);
            }
            inverseSums[i] = 1 / TLanes.Sum(TLanes.Add(sum0, sum1));
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void AddColumns(float* exponentials, int tile, int columns, float* inverseSums, float* columnSums)
    {
        int step = 2 * TLanes.Count;
        for (int j = 0; j < columns; j += step)
        {
            TVector sum0 = TLanes.Broadcast(0), sum1 = sum0;
            float* e = exponentials + j;
            for (int i = 0; i < tile; i++, e += columns)
            {
                var inverse = TLanes.Broadcast(inverseSums[i]);
                sum0 = TLanes.MultiplyAdd(TLanes.Load(e), inverse, sum0);
                sum1 = TLanes.MultiplyAdd(TLanes.Load(e + TLanes.Count), inverse, sum1);
            }
            TLanes.Store(TLanes.Add(TLanes.Load(columnSums + j), sum0), columnSums + j);
            TLanes.Store(TLanes.Add(TLanes.Load(columnSums + j + TLanes.Count), sum1), columnSums + j + TLanes.Count);
        }
    }
}
