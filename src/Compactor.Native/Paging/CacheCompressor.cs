using Compactor.Native.Compression;

namespace Compactor.Native.Paging;

/// <summary>
/// Compression of one layer of a batch of sequences into a paged cache, and inside it: what a host calls once a layer. Each call queues its work and returns the pending second
/// phase, which costs the host nothing until <see cref="PendingCompaction.Complete"/>; selections stay in the backend's memory.
/// </summary>
public static class CacheCompressor
{
    /// <summary>
    /// Scores a prefill, selects, and stores the survivors behind what the sequences hold. Retention 1 stores everything and scores nothing.
    /// </summary>
    /// <param name="sequences">The B sequences of the plan, all of one cache.</param>
    /// <param name="layer">Layer of the cache.</param>
    /// <param name="plan">Shape, options and budgets of the packed batch.</param>
    /// <param name="inputs">The layer's keys, values and queries.</param>
    /// <param name="firstPositions"><c>[B]</c> position of each sequence's token 0; null for 0.</param>
    /// <param name="policy">What scores; null for <see cref="SelectionPolicy.Compactor"/>.</param>
    /// <param name="sketch">Phi to use instead of drawing it.</param>
    /// <exception cref="CompactorException">Something does not fit or is not finite, or <see cref="CompactorStatus.OutOfBlocks"/>; nothing has changed then.</exception>
    public static PendingCompaction StorePrefill(IReadOnlyList<CacheSequence> sequences, int layer, LayerPlan plan, LayerInputs inputs,
        IReadOnlyList<int>? firstPositions = null, SelectionPolicy? policy = null, Sketch? sketch = null)
    {
        var cache = Check(sequences, plan);
        RequireDense(plan);
        inputs.Validate(plan.Shape);
        var (first, positions, positionEnd) = Runs(sequences, plan, inputs.Key, inputs.Value, firstPositions);
        return Begin(sequences, layer, plan, replaces: false, pending =>
        {
            using var selection = LayerCompressor.Select(cache!.Backend, plan, inputs, policy, sketch);
            pending.ScoredBy = plan.KeepsEverything ? null : Scorer(selection, policy);
            pending.Own(selection.ReleaseStatus());
            pending.Store(inputs.Key, inputs.Value, first, positions, positionEnd, selection.KeptIndices.View, selection.KeptOffsets.View);
        });
    }

    /// <summary>Stores the survivors of a selection the host has made, and keeps, behind what the sequences hold. The selection's lists are not read on the calling thread.</summary>
    /// <param name="sequences">The B sequences of the selection, all of one cache.</param>
    /// <param name="layer">Layer of the cache.</param>
    /// <param name="selection">What to keep.</param>
    /// <param name="key">Keys after RoPE, <c>[N, Hkv, D]</c>.</param>
    /// <param name="value">Values, <c>[N, Hkv, D]</c>.</param>
    /// <param name="firstPositions"><c>[B]</c> position of each sequence's token 0; null for 0.</param>
    /// <exception cref="CompactorException">Something does not fit, or <see cref="CompactorStatus.OutOfBlocks"/>; nothing has changed then.</exception>
    public static PendingCompaction StoreSurvivors(IReadOnlyList<CacheSequence> sequences, int layer, LayerSelection selection, TensorView key, TensorView value,
        IReadOnlyList<int>? firstPositions = null)
    {
        Check(sequences, selection.Plan);
        RequireDense(selection.Plan);
        var (first, positions, positionEnd) = Runs(sequences, selection.Plan, key, value, firstPositions);
        return Begin(sequences, layer, selection.Plan, replaces: false, pending =>
        {
            pending.Watch(selection.Status);
            pending.Store(key, value, first, positions, positionEnd, selection.KeptIndices.View, selection.KeptOffsets.View);
        });
    }

    /// <summary>Scores a prefill whose tokens the sequences hold already, all of them and nothing else, selects, and compacts in place; the blocks come back.</summary>
    /// <param name="sequences">The B sequences of the plan, all of one cache; slot t of every head holds token t.</param>
    /// <param name="layer">Layer of the cache.</param>
    /// <param name="plan">Shape, options and budgets of the packed batch.</param>
    /// <param name="inputs">The layer's keys, values and queries, as they were stored.</param>
    /// <param name="policy">What scores; null for <see cref="SelectionPolicy.Compactor"/>.</param>
    /// <param name="sketch">Phi to use instead of drawing it.</param>
    /// <exception cref="CompactorException">Something does not fit or is not finite, or <see cref="CompactorStatus.OutOfBlocks"/>; nothing has changed then.</exception>
    public static PendingCompaction CompactPrefill(IReadOnlyList<CacheSequence> sequences, int layer, LayerPlan plan, LayerInputs inputs,
        SelectionPolicy? policy = null, Sketch? sketch = null)
    {
        var cache = Check(sequences, plan);
        RequireDense(plan);
        inputs.Validate(plan.Shape);
        RequireHeld(sequences, layer, plan);
        if (plan.KeepsEverything)
            return new PendingCompaction([], layer, [], replaces: true);
        return Begin(sequences, layer, plan, replaces: true, pending =>
        {
            using var selection = LayerCompressor.Select(cache!.Backend, plan, inputs, policy, sketch);
            pending.ScoredBy = Scorer(selection, policy);
            pending.Own(selection.ReleaseStatus());
            pending.Move(selection.KeptIndices.View, selection.KeptOffsets.View);
        });
    }

    /// <summary>Compacts in place by a selection the host has made, and keeps, of tokens or slots that the sequences hold, all of them and nothing else.</summary>
    /// <param name="sequences">The B sequences of the selection, all of one cache.</param>
    /// <param name="layer">Layer of the cache.</param>
    /// <param name="selection">What to keep; its lists are not read on the calling thread.</param>
    /// <exception cref="CompactorException">Something does not fit, or <see cref="CompactorStatus.OutOfBlocks"/>; nothing has changed then.</exception>
    public static PendingCompaction Compact(IReadOnlyList<CacheSequence> sequences, int layer, LayerSelection selection)
    {
        Check(sequences, selection.Plan);
        RequireHeld(sequences, layer, selection.Plan);
        return Begin(sequences, layer, selection.Plan, replaces: true, pending =>
        {
            pending.Watch(selection.Status);
            pending.Move(selection.KeptIndices.View, selection.KeptOffsets.View);
        });
    }

    /// <summary>
    /// Shape of what sequences hold in a layer, head by head: a plan made of it recompresses them. Give it their stable ids, and the first head of a rank, with <c>with</c>.
    /// </summary>
    /// <param name="sequences">Sequences, all of one cache.</param>
    /// <param name="layer">Layer of the cache.</param>
    /// <exception cref="CompactorException">The cache's element type or head dimension cannot be scored.</exception>
    public static LayerShape HeldShape(IReadOnlyList<CacheSequence> sequences, int layer)
    {
        if (sequences.Count == 0)
            throw CompactorException.Argument("There are no sequences; give one or more.");
        var options = sequences[0].Cache.Options;
        var lengths = new int[sequences.Count * options.KvHeads];
        for (int b = 0; b < sequences.Count; b++)
        {
            if (sequences[b].Cache != sequences[0].Cache)
                throw CompactorException.Argument("The sequences are of different caches; compress those of each cache by themselves.");
            sequences[b].Lengths(layer).CopyTo(lengths.AsSpan(b * options.KvHeads));
        }
        return LayerShape.Ragged(lengths, options.KvHeads, options.HeadDim, options.ElementType) with { Layer = layer };
    }

    /// <summary>
    /// Decides which slots of a layer to keep, by leverage alone: the queries of tokens held are long gone. Keys are read through the block tables and rotated back with
    /// the position stored for each slot. The first and last protected tokens are slots of each head; a budget refers to N = pairs held / Hkv, the average over heads.
    /// </summary>
    /// <param name="sequences">The sequences of the plan, all of one cache.</param>
    /// <param name="layer">Layer of the cache.</param>
    /// <param name="plan">Of <see cref="HeldShape"/>, in sequence or head scope.</param>
    /// <param name="rotary">The rotation keys carry, without positions of its own; null if they carry none.</param>
    /// <param name="sketch">Phi to use instead of drawing it.</param>
    /// <returns>Kept slots; <see cref="LayerSelection.Attention"/> is null.</returns>
    /// <exception cref="CompactorException">The plan is of other lengths, a key is not finite, or the rotation has positions or too short tables.</exception>
    public static LayerSelection SelectHeld(IReadOnlyList<CacheSequence> sequences, int layer, LayerPlan plan, RotaryEmbedding? rotary, Sketch? sketch = null)
    {
        if (!plan.Shape.IsRagged || Check(sequences, plan) is not { } cache)
            throw CompactorException.Argument("The plan is not of the shape that sequences hold; make it of HeldShape.");
        RequireHeld(sequences, layer, plan);
        var tables = new LayerTable[sequences.Count];
        int positionEnd = 0;
        for (int b = 0; b < tables.Length; b++)
        {
            tables[b] = sequences[b].Table(layer);
            positionEnd = Math.Max(positionEnd, tables[b].PositionEnd);
        }
        rotary?.ValidateStored(plan.Shape.HeadDim, positionEnd);
        var selection = new LayerSelection(cache.Backend, plan);
        try
        {
            if (plan.KeepsEverything)
            {
                selection.KeepEverything();
                return selection;
            }
            using var call = CallTables.Held(cache.Backend, tables, cache.Options.BlockSize, out var held);
            var leverage = selection.NewLeverage();
            cache.Backend.LeverageOfSlots(plan, cache.Slots, held, rotary, positionEnd, sketch ?? plan.Sketch, leverage);
            var status = cache.Backend.Fuse(plan, leverage, null, default, selection.NewFused());
            if (status.NonFiniteScores > 0)
                throw new CompactorException(CompactorStatus.NonFinite,
                    $"Layer {layer}: {status.NonFiniteScores} scores are not finite, the first at slot {status.Token} of sequence {status.Sequence}, KV head {status.Head}, though keys are; their magnitudes overflow float32.");
            cache.Backend.SelectFused(plan, selection.Scores!.View, selection.KeptIndices.View, selection.KeptOffsets.View);
            selection.Status = cache.Backend.TakeStatus(plan);
            return selection;
        }
        catch
        {
            using (selection)
                cache.Backend.TakeStatus(plan).Dispose();
            throw;
        }
    }

    /// <summary>Compresses what sequences hold further: <see cref="SelectHeld"/>, then compaction in place. Retention 1 changes nothing.</summary>
    /// <param name="sequences">The sequences of the plan, all of one cache.</param>
    /// <param name="layer">Layer of the cache.</param>
    /// <param name="plan">Of <see cref="HeldShape"/>, in sequence or head scope.</param>
    /// <param name="rotary">The rotation keys carry, without positions of its own; null if they carry none.</param>
    /// <param name="sketch">Phi to use instead of drawing it.</param>
    /// <returns>The pending compaction; <see cref="PendingCompaction.ScoredBy"/> says that leverage alone decided.</returns>
    /// <exception cref="CompactorException">As <see cref="SelectHeld"/>, or <see cref="CompactorStatus.OutOfBlocks"/>; nothing has changed then.</exception>
    public static PendingCompaction Recompress(IReadOnlyList<CacheSequence> sequences, int layer, LayerPlan plan, RotaryEmbedding? rotary, Sketch? sketch = null)
    {
        Check(sequences, plan);
        RequireHeld(sequences, layer, plan);
        if (plan.KeepsEverything)
            return new PendingCompaction([], layer, [], replaces: true);
        return Begin(sequences, layer, plan, replaces: true, pending =>
        {
            using var selection = SelectHeld(sequences, layer, plan, rotary, sketch);
            pending.ScoredBy = SelectionPolicy.LeverageOnly.Name;
            pending.Own(selection.ReleaseStatus());
            pending.Move(selection.KeptIndices.View, selection.KeptOffsets.View);
        });
    }

    private static PendingCompaction Begin(IReadOnlyList<CacheSequence> sequences, int layer, LayerPlan plan, bool replaces, Action<PendingCompaction> move)
    {
        var survivors = new long[sequences.Count];
        for (int b = 0; b < survivors.Length; b++)
            survivors[b] = plan.KeptPairsOf(b);
        var pending = new PendingCompaction(sequences, layer, survivors, replaces, everyToken: !replaces && plan.KeepsEverything);
        try
        {
            if (sequences.Count > 0)
                move(pending);
            return pending;
        }
        catch
        {
            pending.Dispose();
            throw;
        }
    }

    private static string Scorer(LayerSelection selection, SelectionPolicy? policy)
    {
        policy ??= SelectionPolicy.Compactor;
        return policy == SelectionPolicy.Compactor && selection.Attention is null ? SelectionPolicy.LeverageOnly.Name : policy.Name;
    }

    private static PagedCache? Check(IReadOnlyList<CacheSequence> sequences, LayerPlan plan)
    {
        if (sequences.Count != plan.Shape.Sequences)
            throw CompactorException.Argument($"There are {sequences.Count} sequences; the plan is of {plan.Shape.Sequences}.");
        if (sequences.Count == 0)
            return null;
        var options = sequences[0].Cache.Options;
        if ((plan.Shape.KvHeads, plan.Shape.HeadDim, plan.Shape.ElementType) != (options.KvHeads, options.HeadDim, options.ElementType))
            throw CompactorException.Argument(
                $"The plan is of {plan.Shape.KvHeads} heads of {plan.Shape.HeadDim} {plan.Shape.ElementType} elements; the cache holds {options.KvHeads} of {options.HeadDim} {options.ElementType}.");
        return sequences[0].Cache;
    }

    private static void RequireDense(LayerPlan plan)
    {
        if (plan.Shape.IsRagged)
            throw CompactorException.Argument("The plan is of slots that sequences hold; a prefill is of tokens.");
    }

    private static void RequireHeld(IReadOnlyList<CacheSequence> sequences, int layer, LayerPlan plan)
    {
        for (int b = 0; b < sequences.Count; b++)
            for (int head = 0; head < plan.Shape.KvHeads; head++)
                if (sequences[b].Lengths(layer)[head] is var held && held != plan.Shape.LengthOf(b, head))
                    throw CompactorException.Argument($"Head {head} of sequence {b} holds {held} slots in layer {layer}; the plan is of {plan.Shape.LengthOf(b, head)}.");
    }

    private static (int[] First, int[] Positions, int PositionEnd) Runs(IReadOnlyList<CacheSequence> sequences, LayerPlan plan, in TensorView key, in TensorView value, IReadOnlyList<int>? firstPositions)
    {
        RequireDense(plan);
        if (firstPositions is not null && firstPositions.Count != sequences.Count)
            throw CompactorException.Argument($"There are {firstPositions.Count} first positions for {sequences.Count} sequences; give one a sequence.");
        var first = new int[sequences.Count];
        var positions = new int[sequences.Count];
        int end = 0;
        for (int b = 0; b < first.Length; b++)
        {
            (first[b], positions[b]) = (plan.Shape.CuSeqlens[b], firstPositions?[b] ?? 0);
            CacheSequence.CheckPositions(positions[b], plan.Shape.LengthOf(b));
            sequences[b].Check(key, value, 0, plan.Shape.Tokens, padded: true);
            end = Math.Max(end, positions[b] + plan.Shape.LengthOf(b));
        }
        return (first, positions, end);
    }
}
