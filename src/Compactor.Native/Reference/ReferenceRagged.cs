using Compactor.Native.Compression;

namespace Compactor.Native.Reference;

/// <summary>Fusion and selection where every head has its own length: all pairs of a sequence as a list, (slot, head) by (slot, head).</summary>
internal static class ReferenceRagged
{
    public static FuseStatus Fuse(LayerPlan plan, BufferView<float> leverage, BufferView<float> scores)
    {
        var status = default(FuseStatus);
        var options = plan.Options;
        for (int b = 0; b < plan.Shape.Sequences; b++)
        {
            var scored = Pairs(plan.Shape, b).Where(p => p.Slot >= plan.ScoredTokens(b, p.Head).First && p.Slot < plan.ScoredTokens(b, p.Head).End);
            int chunk = options.LeverageChunk > 0 ? options.LeverageChunk : int.MaxValue;
            var scopes = scored.GroupBy(p => options.LeverageScope switch
            {
                NormalizationScope.Head => p.Head,
                NormalizationScope.Chunk => (p.Slot - plan.ScoredTokens(b, p.Head).First) / chunk,
                _ => 0,
            });
            var fused = Pairs(plan.Shape, b).ToDictionary(p => p, _ => 0.0);
            foreach (var scope in scopes)
                foreach (var (pair, z) in scope.Zip(ReferenceFusion.Z([.. scope.Select(p => (double)leverage.AsSpan()[At(plan.Shape, b, p)])], options)))
                    fused[pair] = z;
            foreach (var pair in Pairs(plan.Shape, b).OrderBy(p => p.Head).ThenBy(p => p.Slot))
            {
                float score = (float)fused[pair];
                if (!float.IsFinite(score))
                {
                    status = status.NonFiniteScores == 0 ? new FuseStatus(1, b, pair.Slot, pair.Head) : status with { NonFiniteScores = status.NonFiniteScores + 1 };
                    score = float.MinValue;
                }
                scores.AsSpan()[At(plan.Shape, b, pair)] = plan.IsProtected(b, pair.Head, pair.Slot) ? float.PositiveInfinity : score;
            }
        }
        return status;
    }

    public static void Select(LayerPlan plan, BufferView<float> scores, BufferView<int> keptIndices, BufferView<int> keptOffsets)
    {
        int written = 0, heads = plan.Shape.KvHeads;
        for (int b = 0; b < plan.Shape.Sequences; b++)
        {
            int sequence = b;
            var ranked = Pairs(plan.Shape, b).OrderByDescending(p => scores.AsSpan()[At(plan.Shape, sequence, p)] is var s && float.IsNaN(s) ? float.NegativeInfinity : s).ToArray();
            var kept = new HashSet<(int Slot, int Head)>();
            for (int h = 0; h < heads; h++)
                kept.UnionWith(ranked.Where(p => p.Head == h)
                    .Take(plan.Options.SelectionScope == SelectionScope.Sequence ? plan.Options.MinTokensPerHead : plan.KeptTokensOf(b, h)));
            kept.UnionWith(ranked.Where(p => !kept.Contains(p)).Take((int)plan.KeptPairsOf(b) - kept.Count).ToArray());
            for (int h = 0; h < heads; h++)
            {
                foreach (int slot in kept.Where(p => p.Head == h).Select(p => p.Slot).Order())
                    keptIndices.AsSpan()[written++] = slot;
                keptOffsets.AsSpan()[b * heads + h + 1] = written;
            }
        }
        keptOffsets.AsSpan()[0] = 0;
    }

    /// <summary>All pairs of a sequence in (slot, head) order.</summary>
    private static IEnumerable<(int Slot, int Head)> Pairs(LayerShape shape, int b) =>
        from slot in Enumerable.Range(0, Enumerable.Range(0, shape.KvHeads).Max(h => shape.LengthOf(b, h)))
        from head in Enumerable.Range(0, shape.KvHeads)
        where slot < shape.LengthOf(b, head)
        select (slot, head);

    private static int At(LayerShape shape, int b, (int Slot, int Head) pair) => shape.CuSeqlens[b * shape.KvHeads + pair.Head] + pair.Slot;
}
