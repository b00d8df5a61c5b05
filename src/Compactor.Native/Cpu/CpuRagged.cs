using Compactor.Native.Compression;

namespace Compactor.Native.Cpu;

/// <summary>
/// Fusion and selection where every head of a sequence has a length of its own. What spans heads is gathered in (slot, head) order, which is the token-major order of
/// a dense layer, so that equal lengths give the bits of a dense layer; then the dense code runs on it.
/// </summary>
internal static unsafe class CpuRagged
{
    /// <summary><c>s = z(o)</c>, protected slots +inf.</summary>
    public static FuseStatus Fuse(LayerPlan plan, BufferView<float> leverage, BufferView<float> scores)
    {
        var status = new FuseStatus(0, 0, 0, 0);
        var options = plan.Options;
        for (int b = 0; b < plan.Shape.Sequences; b++)
        {
            int heads = plan.Shape.KvHeads, start = plan.Shape.CuSeqlens[b * heads];
            var o = leverage.AsSpan().Slice(start, plan.Shape.PairsOf(b));
            var fused = scores.AsSpan().Slice(start, o.Length);
            fused.Clear();
            if (options.LeverageScope == NormalizationScope.Head)
                for (int h = 0; h < heads; h++)
                {
                    var (first, end) = plan.ScoredTokens(b, h);
                    int at = plan.Shape.CuSeqlens[b * heads + h] - start + first;
                    CpuStatistics.Normalize(o.Slice(at, end - first), fused.Slice(at, end - first), 1, options);
                }
            else
            {
                int chunk = options.LeverageScope == NormalizationScope.Chunk ? options.LeverageChunk : 0;
                int[] order = Order(plan, b, scoredOnly: true, chunk, out var chunkEnds);
                float[] gathered = new float[order.Length], z = new float[order.Length];
                for (int i = 0; i < order.Length; i++)
                    gathered[i] = o[order[i]];
                for (int i = 0, from = 0; i < chunkEnds.Count; from = chunkEnds[i++])
                    CpuStatistics.Normalize(gathered.AsSpan(from, chunkEnds[i] - from), z.AsSpan(from, chunkEnds[i] - from), 1, options);
                for (int i = 0; i < order.Length; i++)
                    fused[order[i]] = z[i];
            }
            Protect(plan, b, fused, ref status);
        }
        return status;
    }

    public static void Select(Workers workers, LayerPlan plan, BufferView<float> scores, BufferView<int> keptIndices, BufferView<int> keptOffsets)
    {
        int heads = plan.Shape.KvHeads, written = 0;
        Span<int> indices = keptIndices.AsSpan(), offsets = keptOffsets.AsSpan();
        offsets[0] = 0;
        for (int b = 0; b < plan.Shape.Sequences; b++)
        {
            int start = plan.Shape.CuSeqlens[b * heads], pairs = plan.Shape.PairsOf(b);
            var ofSequence = scores.AsSpan().Slice(start, pairs);
            using var workspace = workers.Rent(3L * pairs * sizeof(uint));
            var positions = new Span<int>((int*)workspace.Address + 2L * pairs, pairs);
            Span<uint> keys = new((void*)workspace.Address, pairs), ordered = new((uint*)workspace.Address + pairs, pairs);
            CpuSelect.Keys(ofSequence, keys);
            bool wholeSequence = plan.Options.SelectionScope == SelectionScope.Sequence;
            for (int h = 0; h < heads; h++)
            {
                var ofHead = keys.Slice(plan.Shape.CuSeqlens[b * heads + h] - start, plan.Shape.LengthOf(b, h));
                if (!wholeSequence)
                    CpuSelect.MarkTop(ofHead, 0, 1, plan.KeptTokensOf(b, h));
                else if (plan.Options.MinTokensPerHead > 0)
                    CpuSelect.RaiseBestOfEachHead(ofHead, 1, Math.Min(ofHead.Length, plan.Options.MinTokensPerHead));
            }
            if (wholeSequence)
            {
                int[] order = Order(plan, b, scoredOnly: false, 0, out _);
                for (int i = 0; i < pairs; i++)
                    ordered[i] = keys[order[i]];
                CpuSelect.MarkTop(ordered, 0, 1, plan.KeptPairsOf(b));
                for (int i = 0; i < pairs; i++)
                    keys[order[i]] = ordered[i];
            }
            for (int h = 0; h < heads; h++)
            {
                int kept = CpuSelect.Positions(keys.Slice(plan.Shape.CuSeqlens[b * heads + h] - start, plan.Shape.LengthOf(b, h)), 0, 1, positions);
                positions[..kept].CopyTo(indices[written..]);
                offsets[b * heads + h + 1] = written += kept;
            }
        }
    }

    /// <summary>Pairs of sequence b in (slot, head) order, as indices from its first pair, and where each chunk of slots ends (one chunk for all, if 0).</summary>
    private static int[] Order(LayerPlan plan, int b, bool scoredOnly, int chunk, out List<int> chunkEnds)
    {
        int heads = plan.Shape.KvHeads, start = plan.Shape.CuSeqlens[b * heads], pairs = 0, last = 0, first = int.MaxValue, n = 0;
        var begins = new int[heads];
        var ends = new int[heads];
        for (int h = 0; h < heads; h++)
        {
            begins[h] = plan.Shape.CuSeqlens[b * heads + h] - start;
            (int from, ends[h]) = scoredOnly ? plan.ScoredTokens(b, h) : (0, plan.Shape.LengthOf(b, h));
            pairs += ends[h] - from;
            last = Math.Max(last, ends[h]);
            if (ends[h] > from)
                first = Math.Min(first, from);
        }
        var order = new int[pairs];
        chunkEnds = [];
        for (int slot = first; slot < last; slot++)
        {
            for (int h = 0; h < heads; h++)
                if (slot < ends[h])
                    order[n++] = begins[h] + slot;
            if (slot + 1 == last || (chunk > 0 && (slot + 1 - first) % chunk == 0))
                chunkEnds.Add(n);
        }
        return order;
    }

    private static void Protect(LayerPlan plan, int b, Span<float> fused, ref FuseStatus status)
    {
        for (int h = 0, i = 0; h < plan.Shape.KvHeads; h++)
            for (int slot = 0; slot < plan.Shape.LengthOf(b, h); slot++, i++)
            {
                if (!float.IsFinite(fused[i]))
                {
                    fused[i] = float.MinValue;
                    status = status.NonFiniteScores == 0 ? new FuseStatus(1, b, slot, h) : status with { NonFiniteScores = status.NonFiniteScores + 1 };
                }
                if (plan.IsProtected(b, h, slot))
                    fused[i] = float.PositiveInfinity;
            }
    }
}
