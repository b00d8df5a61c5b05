using System.Diagnostics;
using Compactor.Native;
using Compactor.Native.Compression;
using Compactor.Native.Io;
using Compactor.Native.Paging;

namespace Compactor.Cli;

/// <summary>
/// The paged cache a dump goes through, layer by layer: all tokens of a layer are stored, then compacted, so that the next layer takes the blocks this one
/// gave back. The pool is as large as that needs at its fullest moment. Layers that differ in heads, dimension or type have pools of their own.
/// </summary>
internal sealed class PagedDump : IDisposable
{
    private readonly Dictionary<(int KvHeads, int HeadDim, ElementType Type), Pool> _pools = [];
    private readonly (Pool Pool, int Layer)[] _layers;

    private sealed record Pool(PagedCache Cache, CacheSequence[] Sequences)
    {
        public long UnusedSlots => Sequences.Sum(sequence => sequence.UnusedSlots);
    }

    /// <param name="backend">Whose memory the pools are in.</param>
    /// <param name="plans">Plans of the dump's layers, in order.</param>
    /// <param name="blockSize">Tokens of a block.</param>
    /// <exception cref="CompactorException">A pool would exceed what a paged cache can have.</exception>
    public PagedDump(KvBackend backend, IReadOnlyList<LayerPlan> plans, int blockSize)
    {
        _layers = new (Pool, int)[plans.Count];
        BlockSize = blockSize;
        foreach (var group in plans.Select((plan, i) => (plan, i)).GroupBy(x => Key(x.plan.Shape)))
        {
            LayerPlan[] ofPool = [.. group.Select(x => x.plan)];
            var cache = new PagedCache(backend, new PagedCacheOptions
            {
                Layers = ofPool.Length,
                KvHeads = group.Key.KvHeads,
                HeadDim = group.Key.HeadDim,
                ElementType = group.Key.Type,
                Blocks = (int)Math.Min(int.MaxValue, FullestMoment(ofPool, blockSize)),
                BlockSize = blockSize,
            });
            var pool = new Pool(cache, [.. Enumerable.Range(0, ofPool[0].Shape.Sequences).Select(_ => cache.CreateSequence())]);
            _pools.Add(group.Key, pool);
            foreach (var ((_, i), layer) in group.Select((x, layer) => (x, layer)))
                _layers[i] = (pool, layer);
        }
    }

    /// <summary>Tokens of a block.</summary>
    public int BlockSize { get; }

    /// <summary>Blocks of all pools: fewer than the uncompressed dump takes, because layers follow each other.</summary>
    public long Blocks => _pools.Values.Sum(pool => (long)pool.Cache.Blocks);

    /// <summary>Stores a layer, lets <paramref name="select"/> decide what to keep of it, and compacts it.</summary>
    /// <param name="index">Index of the layer in the dump.</param>
    /// <param name="shape">Its shape.</param>
    /// <param name="inputs">Its tensors, in the backend's memory.</param>
    /// <param name="select">Scores and decides; the times it returns receive that of compaction.</param>
    public BlockUse Run(int index, LayerShape shape, LayerInputs inputs, Func<(HostSelection Selection, StageTimes Times)> select)
    {
        var (pool, ofPool) = _layers[index];
        var cache = pool.Cache;
        var (freeAtFirst, unusedAtFirst) = (cache.FreeBlocks, pool.UnusedSlots);
        for (int b = 0; b < shape.Sequences; b++)
            pool.Sequences[b].Store(ofPool, Sequence(inputs.Key, shape, b), Sequence(inputs.Value, shape, b), 0, shape.LengthOf(b), 0);
        var (freeWhenFull, unusedWhenFull) = (cache.FreeBlocks, pool.UnusedSlots);

        var (selection, times) = select();
        long start = Stopwatch.GetTimestamp();
        for (int b = 0; b < shape.Sequences; b++)
            if (IsCompacted(selection.Plan, b))
                pool.Sequences[b].Compact(ofPool, selection.KeptIndices, selection.KeptOffsets.AsSpan(b * shape.KvHeads, shape.KvHeads + 1));
        times.Compact = Stopwatch.GetElapsedTime(start);
        return new BlockUse(
            freeAtFirst - freeWhenFull, freeAtFirst - cache.FreeBlocks, unusedWhenFull - unusedAtFirst, pool.UnusedSlots - unusedAtFirst, BlockSize,
            (freeAtFirst - freeWhenFull) * cache.Options.BlockBytes, (cache.FreeBlocks - freeWhenFull) * cache.Options.BlockBytes);
    }

    /// <summary>Writes a layer's surviving keys or values, <c>[kept pairs, D]</c>, sequence by sequence and head by head.</summary>
    public void WriteSurvivors(int index, bool keys, SafetensorsPieceWriter write)
    {
        var (pool, layer) = _layers[index];
        foreach (var sequence in pool.Sequences)
            for (int head = 0; head < pool.Cache.Options.KvHeads; head++)
            {
                var content = sequence.Read(layer, head);
                write(keys ? content.Keys : content.Values);
            }
    }

    public void Dispose()
    {
        foreach (var pool in _pools.Values)
        {
            foreach (var sequence in pool.Sequences)
                sequence.Dispose();
            pool.Cache.Dispose();
        }
    }

    private static (int KvHeads, int HeadDim, ElementType Type) Key(LayerShape shape) => (shape.KvHeads, shape.HeadDim, shape.ElementType);

    /// <summary>A sequence that keeps everything stays where it is.</summary>
    private static bool IsCompacted(LayerPlan plan, int b) => plan.KeptPairsOf(b) < (long)plan.Shape.LengthOf(b) * plan.Shape.KvHeads;

    /// <summary>Most blocks taken at once: survivors of the layers before, a whole layer, and what compacting its largest sequence reserves.</summary>
    private static long FullestMoment(LayerPlan[] plans, int blockSize)
    {
        long survivors = 0, most = 0;
        foreach (var plan in plans)
        {
            var shape = plan.Shape;
            long whole = 0, reserve = 0, kept = 0;
            for (int b = 0; b < shape.Sequences; b++)
            {
                long blocks = ((long)shape.LengthOf(b) + blockSize - 1) / blockSize * shape.KvHeads;
                long dealt = plan.KeptPairsOf(b) / blockSize + shape.KvHeads;
                whole += blocks;
                reserve = Math.Max(reserve, IsCompacted(plan, b) ? dealt : 0);
                kept += Math.Min(blocks, dealt);
            }
            most = Math.Max(most, survivors + whole + reserve);
            survivors += kept;
        }
        return most;
    }

    /// <summary>One sequence of a packed or padded batch by itself.</summary>
    private static TensorView Sequence(in TensorView batch, LayerShape shape, int b)
    {
        long origin = batch.SequenceStride == 0 ? shape.CuSeqlens[b] * batch.TokenStride : b * batch.SequenceStride;
        return batch with { Address = batch.Address + (nint)(origin * batch.ElementType.Size()), Tokens = shape.LengthOf(b), SequenceStride = 0 };
    }
}

/// <summary>Blocks that a layer took in the paged cache, counted by what was missing from the pool.</summary>
/// <param name="Before">Blocks taken by all tokens.</param>
/// <param name="After">Blocks taken by the survivors.</param>
/// <param name="UnusedBefore">Slots of the blocks before that held no token.</param>
/// <param name="UnusedAfter">Slots of the blocks after that hold no token.</param>
/// <param name="BlockSize">Slots of a block.</param>
/// <param name="BytesTaken">Bytes of keys and values of the blocks before.</param>
/// <param name="BytesReturned">Bytes of keys and values of the blocks the pool got back.</param>
internal sealed record BlockUse(long Before, long After, long UnusedBefore, long UnusedAfter, int BlockSize, long BytesTaken, long BytesReturned)
{
    /// <summary>Share of the slots of taken blocks that hold no token (internal fragmentation), before and after.</summary>
    public (double Before, double After) UnusedShare => (Share(UnusedBefore, Before), Share(UnusedAfter, After));

    public static BlockUse Sum(IEnumerable<BlockUse> uses) => uses.Aggregate((a, b) => new BlockUse(
        a.Before + b.Before, a.After + b.After, a.UnusedBefore + b.UnusedBefore, a.UnusedAfter + b.UnusedAfter, a.BlockSize,
        a.BytesTaken + b.BytesTaken, a.BytesReturned + b.BytesReturned));

    private double Share(long unused, long blocks) => blocks == 0 ? 0 : (double)unused / (blocks * BlockSize);
}
