using Compactor.Native.Compression;

namespace Compactor.Native.Gpu;

/// <summary>Scoring, selection and what it finds wrong with the data.</summary>
public sealed unsafe partial class GpuBackend
{
    private readonly Kept<LayerPlan, DevicePlan> _plans;

    private DevicePlan MakePlan(LayerPlan plan)
    {
        if (plan.Shape.KvHeads > PairSegments.Threads)
            throw CompactorException.Unsupported($"Layer {plan.Shape.Layer} has {plan.Shape.KvHeads} KV heads; the cuda backend fuses and selects the scores of up to {PairSegments.Threads}. Use the cpu backend.");
        var (device, shape, options) = (new DevicePlan(this, plan), plan.Shape, plan.Options);
        if (!LeverageLaunch.Fits(new(shape.HeadDim, shape.ElementType, options.SketchDimension, 0, 0), options.LeverageChunk, _driver.Limits))
            _workspace.Reserve(device.LeverageWorkspace(options.SketchDimension));
        _workspace.Reserve(device.FuseWorkspace);
        _workspace.Reserve(device.SelectWorkspace);
        _workspace.Reserve(DealWorkspace(shape.Sequences * shape.KvHeads));
        _counters.Reserve(device.Counters);
        return device;
    }

    /// <inheritdoc/>
    public override void AttentionScores(LayerPlan plan, in TensorView query, in TensorView key, BufferView<float> attention)
    {
        var (device, shape, options) = (_plans.Of(plan), plan.Shape, plan.Options);
        RequireHeadDim($"Layer {shape.Layer}", shape.HeadDim);
        RequirePairs(shape, attention);
        RequireAligned($"Layer {shape.Layer}: query", query);
        RequireAligned($"Layer {shape.Layer}: key", key);
        if (query.ElementType != key.ElementType)
            throw CompactorException.Unsupported($"Layer {shape.Layer}: queries are {query.ElementType} and keys {key.ElementType}; the cuda backend scores queries and keys of one type.");
        Follow();
        if (device.SkipFirst + device.SkipLast > 0)
            Clear(attention);
        var limits = AttentionScoresLimits(shape.HeadDim, key.ElementType, options.AttentionChunk);
        Launch(AttentionScoresLaunch.Variant(shape.HeadDim, key.ElementType, options.AttentionChunk, limits),
            AttentionScoresLaunch.Shape(device.AttentionChunks, shape.KvHeads, shape.HeadDim, key.ElementType, options.AttentionChunk, limits), new AttentionScoresParams
            {
                Queries = new(query),
                Keys = new(key),
                CuSeqlens = device.CuSeqlens,
                ChunkStarts = device.AttentionChunkStarts,
                Scores = (ulong)attention.Address,
                Status = StatusAddress,
                Sequences = shape.Sequences,
                KvHeads = shape.KvHeads,
                Group = shape.Group,
                SkipFirst = device.SkipFirst,
                SkipLast = device.SkipLast,
                LogitScale = Math.Max((float)(options.AttentionScale * Math.Log2(Math.E)), float.Epsilon),   // above 0: masked logits are -infinity
                Reduction = options.GroupReduction == GroupReduction.Mean ? 1f / shape.Group : 1,
                Items = checked(device.AttentionChunks * shape.KvHeads),
            });
    }

    /// <summary>The device's limits, without its own kernel where that cannot be had.</summary>
    private GpuLimits AttentionScoresLimits(int dim, ElementType type, int chunk)
    {
        var limits = _driver.Limits;
        return _driver.Has(AttentionScoresLaunch.Variant(dim, type, chunk, limits)) ? limits : limits with { HopperKernels = false };
    }

    /// <inheritdoc/>
    public override void Compact(LayerPlan plan, in TensorView source, BufferView<int> keptIndices, BufferView<int> keptOffsets, BufferView<byte> destination)
    {
        var shape = plan.Shape;
        long bytes = plan.KeptPairs * source.Dim * source.ElementType.Size();
        if (destination.Length != bytes)
            throw CompactorException.Argument($"The destination holds {destination.Length} bytes; {plan.KeptPairs} survivors take {bytes}.");
        Follow();
        Launch(RowMoves.Variant("compact.cu", "compact_dense", source.Dim, source.ElementType), RowMoves.OverSlots(keptIndices.Length), new CompactDenseParams
        {
            Source = new(source),
            Starts = _plans.Of(plan).CuSeqlens,
            Kept = (ulong)keptIndices.Address,
            KeptOffsets = (ulong)keptOffsets.Address,
            Destination = (ulong)destination.Address,
            Survivors = keptIndices.Length,
            Rows = shape.Sequences * shape.KvHeads,
            KvHeads = shape.KvHeads,
        });
    }

    private void Clear<T>(BufferView<T> view) where T : unmanaged
    {
        if (view.Length > 0)
            _driver.Fill(view.Address, 0, view.Length * sizeof(T), _stream);
    }

    private static void RequireHeadDim(string what, int dim)
    {
        if (dim is not (64 or 80 or 96 or 128 or 256))
            throw CompactorException.Unsupported($"{what}: the cuda backend has no kernels for head dimension {dim}; it takes 64, 80, 96, 128 and 256. Use the cpu backend.");
    }

    private static void RequirePairs(LayerShape shape, BufferView<float> scores)
    {
        if (scores.Length != shape.Pairs)
            throw CompactorException.Argument($"The scores hold {scores.Length} elements; {shape.Sequences} sequences of {shape.KvHeads} KV heads hold {shape.Pairs} pairs.");
    }

    private static void RequireAligned(string what, in TensorView view)
    {
        long size = view.ElementType.Size();
        if (((long)view.Address | view.TokenStride * size | view.HeadStride * size | view.SequenceStride * size) % 16 != 0)
            throw CompactorException.Unsupported($"{what} has the address 0x{view.Address:x} and strides {view.TokenStride}, {view.HeadStride}, {view.SequenceStride} of {size}-byte elements; " +
                "the cuda backend reads rows that start at multiples of 16 bytes.");
    }
}
