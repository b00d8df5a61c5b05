using System.Runtime.CompilerServices;
using Compactor.Native.Paging;

namespace Compactor.Native.Cpu;

/// <summary>
/// Attention of one new query token a sequence over ragged paged heads: <c>out = softmax(scale·q·k)·V</c>, per query head, over the slots its KV
/// head holds. A work item is a run of at most 1024 slots of one KV head; its G query heads share each key and value row. Items leave
/// (maximum, sum, weighted values), which are merged in order, so a result depends on the head's own length alone.
/// Bytes: every key and value once. Flops: 4·G·D a slot.
/// </summary>
internal static unsafe class CpuDecodeAttention<TLanes, TVector>
    where TLanes : struct, ILanes<TVector>
    where TVector : struct
{
    private const int SplitSlots = 1024;

    private readonly record struct Item(int Sequence, int Head, int Row, int First, int Count);

    public static void Run(Workers workers, PagedView cache, TensorView query, int kvHeads, PagedTables tables, AttentionOptions options,
        BufferView<float> output, BufferView<float>? logSumExp)
    {
        int sequences = query.Tokens, dim = cache.Dim, group = query.Heads / kvHeads;
        int rowsPerSequence = sequences == 0 ? 1 : (int)(tables.Lengths.Length / sequences);
        var lengths = tables.Lengths.AsSpan();
        var items = new List<Item>();
        for (int b = 0; b < sequences; b++)
            for (int h = 0; h < kvHeads; h++)
            {
                int row = b * rowsPerSequence + (rowsPerSequence == 1 ? 0 : h);
                for (int first = 0; first < lengths[row]; first += SplitSlots)
                    items.Add(new Item(b, h, row, first, Math.Min(SplitSlots, lengths[row] - first)));
            }

        float scale = (float)((options.Scale ?? 1 / Math.Sqrt(dim)) * Math.Log2(Math.E));
        float softCap = (float)((options.SoftCap ?? 0) * Math.Log2(Math.E));
        int partialFloats = group * (dim + 2);
        using var partials = workers.Rent((long)items.Count * partialFloats * sizeof(float));
        float* partial = (float*)partials.Address;
        int slots = Math.Min(cache.BlockSize, SplitSlots), columns = (slots + TLanes.Count - 1) / TLanes.Count * TLanes.Count;
        long scratchFloats = (long)group * dim + (long)slots * dim + (long)group * columns;

        workers.Run(items.Count, scratchFloats * sizeof(float), (i, scratch) =>
        {
            var item = items[i];
            float* queries = (float*)scratch, rows = queries + group * dim, logits = rows + (long)slots * dim;
            float* maximum = partial + (long)i * partialFloats, sum = maximum + group, values = sum + group;
            for (int g = 0; g < group; g++)
                RowLoader<TLanes, TVector>.Load(query, 0, 0, item.Sequence, 1, item.Head * group + g, queries + g * dim);
            new Span<float>(maximum, group).Fill(float.NegativeInfinity);
            new Span<float>(sum, group * (dim + 1)).Clear();
            int* table = (int*)tables.Tables.Address + (long)item.Row * tables.RowStride;
            for (int slot = item.First; slot < item.First + item.Count;)
            {
                int inBlock = slot % cache.BlockSize, count = Math.Min(cache.BlockSize - inBlock, item.First + item.Count - slot);
                nint offset = (nint)cache.Offset(table[slot / cache.BlockSize], inBlock, item.Head);
                var view = new TensorView(cache.Keys + offset, cache.ElementType, count, 1, dim, cache.SlotStride, 0);
                RowLoader<TLanes, TVector>.Load(view, 0, 0, 0, count, 0, rows);
                Logits(queries, group, rows, count, dim, scale, softCap, logits, columns);
                RowLoader<TLanes, TVector>.Load(view with { Address = cache.Values + offset }, 0, 0, 0, count, 0, rows);
                Accumulate(logits, group, rows, count, dim, columns, maximum, sum, values);
                slot += count;
            }
        });
        Merge(items, partial, partialFloats, kvHeads, group, dim, output, logSumExp);
    }

    /// <summary>Base-2 logits of every query head over a run of keys, −inf beyond them up to whole vectors.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void Logits(float* queries, int group, float* keys, int count, int dim, float scale, float softCap, float* logits, int columns)
    {
        for (int g = 0; g < group; g++, queries += dim, logits += columns)
        {
            float* key = keys;
            int j = 0;
            for (; j < count; j++, key += dim)
            {
                var sum = TLanes.Broadcast(0);
                for (int d = 0; d < dim; d += TLanes.Count)
                    sum = TLanes.MultiplyAdd(TLanes.Load(queries + d), TLanes.Load(key + d), sum);
                float logit = scale * TLanes.Sum(sum);
                logits[j] = softCap > 0 ? softCap * MathF.Tanh(logit / softCap) : logit;
            }
            for (; j % TLanes.Count != 0; j++)
                logits[j] = float.NegativeInfinity;
        }
    }

    /// <summary>Folds a run of values into the running (maximum, sum, weighted values) of every query head.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void Accumulate(float* logits, int group, float* values, int count, int dim, int columns, float* maximum, float* sum, float* weighted)
    {
        for (int g = 0; g < group; g++, logits += columns, weighted += dim)
        {
            var top = TLanes.Load(logits);
            for (int j = TLanes.Count; j < count; j += TLanes.Count)
                top = TLanes.Max(top, TLanes.Load(logits + j));
            float before = maximum[g], now = MathF.Max(before, TLanes.MaxLane(top));
            if (float.IsNegativeInfinity(now))
                now = 0;
            maximum[g] = now;
            var shift = TLanes.Broadcast(-now);
            var total = TLanes.Broadcast(0);
            for (int j = 0; j < count; j += TLanes.Count)
            {
                var e = TLanes.Exp2(TLanes.Add(TLanes.Load(logits + j), shift));
                TLanes.Store(e, logits + j);
                total = TLanes.Add(total, e);
            }
            float shrink = MathF.Pow(2, before - now);
            sum[g] = sum[g] * shrink + TLanes.Sum(total);
            for (int d = 0; d < dim; d += TLanes.Count)
            {
                var run = TLanes.Multiply(TLanes.Load(weighted + d), TLanes.Broadcast(shrink));
                float* value = values + d;
                for (int j = 0; j < count; j++, value += dim)
                    run = TLanes.MultiplyAdd(TLanes.Broadcast(logits[j]), TLanes.Load(value), run);
                TLanes.Store(run, weighted + d);
            }
        }
    }

    /// <summary>Merges the runs of each head by their log-sum-exp, in order. Heads that hold nothing give 0 and −inf.</summary>
    private static void Merge(List<Item> items, float* partial, int partialFloats, int kvHeads, int group, int dim,
        BufferView<float> output, BufferView<float>? logSumExp)
    {
        output.AsSpan().Clear();
        logSumExp?.AsSpan().Fill(float.NegativeInfinity);
        var merged = new double[dim];
        for (int first = 0, end; first < items.Count; first = end)
        {
            var item = items[first];
            end = first + 1;
            while (end < items.Count && (items[end].Sequence, items[end].Head) == (item.Sequence, item.Head))
                end++;
            for (int g = 0; g < group; g++)
            {
                float maximum = float.NegativeInfinity;
                for (int i = first; i < end; i++)
                    maximum = MathF.Max(maximum, partial[(long)i * partialFloats + g]);
                double sum = 0;
                Array.Clear(merged);
                for (int i = first; i < end; i++)
                {
                    float* part = partial + (long)i * partialFloats;
                    double weight = Math.Pow(2, (double)part[g] - maximum);
                    sum += weight * part[group + g];
                    for (int d = 0; d < dim; d++)
                        merged[d] += weight * part[2 * group + g * dim + d];
                }
                int head = (item.Sequence * kvHeads + item.Head) * group + g;
                var row = output.AsSpan().Slice(head * dim, dim);
                for (int d = 0; d < dim; d++)
                    row[d] = (float)(merged[d] / sum);
                if (logSumExp is { } lse)
                    lse.AsSpan()[head] = (float)((maximum + Math.Log2(sum)) / Math.Log2(Math.E));
            }
        }
    }
}
