using Compactor.Native.Compression;
using Compactor.Native.Paging;

namespace Compactor.Native.Gpu;

/// <summary>Leverage scores.</summary>
public sealed unsafe partial class GpuBackend
{
    private readonly Kept<Sketch, BackendBuffer<ushort>> _sketches;
    private readonly Kept<RotaryEmbedding, RotationRows> _rotations;

    /// <inheritdoc/>
    public override void Leverage(LayerPlan plan, in TensorView keys, RotaryEmbedding? undo, Sketch sketch, BufferView<float> leverage)
    {
        RequireAligned($"Layer {plan.Shape.Layer}: key", keys);
        var (sketched, device) = DenseKeys(plan, keys, undo, sketch);
        Leverage(plan, sketched, device, leverage);
    }

    /// <inheritdoc/>
    public override void LeverageOfSlots(LayerPlan plan, in PagedSlots slots, PagedTables tables, RotaryEmbedding? undo, int positionEnd, Sketch sketch, BufferView<float> leverage)
    {
        CheckRagged(plan, slots, tables, undo);
        var cache = slots.Cache;
        RequireAligned($"Layer {plan.Shape.Layer}: the cache", new TensorView(cache.Keys, cache.ElementType, 0, 0, cache.Dim, cache.BlockStride, cache.SlotStride, cache.HeadStride));
        var (sketched, device) = SlotKeys(plan, slots, undo, positionEnd, sketch);
        Leverage(plan, sketched, device with { Tables = new(tables) }, leverage);
    }

    private (SketchedKeys Kernel, DeviceKeys Keys) DenseKeys(LayerPlan plan, in TensorView keys, RotaryEmbedding? undo, Sketch sketch)
    {
        var shape = plan.Shape;
        undo?.Validate(shape);
        var device = Keys(plan, undo, sketch) with { Dense = new(keys) };
        if (undo is { IsOfPositions: true })
            device.Rotations = _rotations.Of(undo).OfPositions(Enumerable.Range(0, shape.Sequences).Select(b => shape.LengthOf(b)).DefaultIfEmpty().Max());
        else if (undo is not null)
            (device.Rotations, device.RotationsOfBatch) = (_rotations.Of(undo).OfBatch(shape.Tokens), 1);
        return (new(shape.HeadDim, keys.ElementType, sketch.Columns, SketchedKeys.RotaryOf(undo), 0), device);
    }

    private (SketchedKeys Kernel, DeviceKeys Keys) SlotKeys(LayerPlan plan, in PagedSlots slots, RotaryEmbedding? undo, int positionEnd, Sketch sketch)
    {
        undo?.ValidateStored(plan.Shape.HeadDim, positionEnd);
        var cache = slots.Cache;
        var device = Keys(plan, undo, sketch) with { Cache = new(cache, slots.Positions), Rotations = undo is null ? 0 : _rotations.Of(undo).OfPositions(positionEnd) };
        return (new(cache.Dim, cache.ElementType, sketch.Columns, SketchedKeys.RotaryOf(undo), cache.BlockSize), device);
    }

    private DeviceKeys Keys(LayerPlan plan, RotaryEmbedding? undo, Sketch sketch)
    {
        var shape = plan.Shape;
        RequireHeadDim($"Layer {shape.Layer}", shape.HeadDim);
        if (sketch.Dim != shape.HeadDim || (sketch.Count != 1 && sketch.Count != shape.Sequences * shape.KvHeads))
            throw CompactorException.Argument($"The sketch holds {sketch.Count} Phi of {sketch.Dim} rows; the layer needs 1 or {shape.Sequences * shape.KvHeads} of {shape.HeadDim}.");
        return new()
        {
            Phi = (ulong)_sketches.Of(sketch).View.Address,
            RotaryDim = undo?.RotaryDim ?? 0,
            KvHeads = shape.KvHeads,
            PhiPerHead = sketch.Count == 1 ? 0 : 1,
            Center = plan.Options.CenterKeys ? 1 : 0,
        };
    }

    private void Leverage(LayerPlan plan, in SketchedKeys sketched, in DeviceKeys keys, BufferView<float> leverage)
    {
        var device = _plans.Of(plan);
        RequirePairs(plan.Shape, leverage);
        Follow();
        if (device.SkipFirst + device.SkipLast > 0)
            Clear(leverage);
        if (LeverageLaunch.Fits(sketched, plan.Options.LeverageChunk, _driver.Limits))
            LeverageInOneRead(plan, device, sketched, keys, leverage);
        else
            lock (_workspace.Turn)
                LeverageInTwoReads(plan, device, sketched, keys, leverage);
    }

    private void LeverageInOneRead(LayerPlan plan, DevicePlan device, in SketchedKeys sketched, in DeviceKeys keys, BufferView<float> leverage) =>
        Launch(sketched.Variant("sketch_leverage.cu", "sketch_leverage", plan.Options.LeverageChunk),
            LeverageLaunch.Chunks(sketched, plan.Options.LeverageChunk, device.LeverageSegments), new SketchLeverageParams
            {
                Keys = keys,
                CuSeqlens = device.CuSeqlens,
                ChunkStarts = device.LeverageChunkStarts,
                Scores = (ulong)leverage.Address,
                Status = StatusAddress,
                Epsilon = plan.Options.Epsilon,
                Sequences = plan.Shape.CuSeqlens.Count - 1,
                SkipFirst = device.SkipFirst,
                SkipLast = device.SkipLast,
            });

    private void LeverageInTwoReads(LayerPlan plan, DevicePlan device, in SketchedKeys sketched, in DeviceKeys keys, BufferView<float> leverage)
    {
        long segments = device.LeverageSegments, parts = device.LeverageParts;
        int sequences = plan.Shape.CuSeqlens.Count - 1;
        var layout = device.LeverageWorkspace(sketched.SketchDim);
        ulong work = _workspace.Take(layout), centers = work + layout[0], partials = work + layout[1], factors = work + layout[2];
        Launch(sketched.Variant("sketch_gram.cu", "sketch_center"), LeverageLaunch.Center(segments), new SketchCenterParams
        {
            Keys = keys,
            CuSeqlens = device.CuSeqlens,
            ChunkStarts = device.LeverageChunkStarts,
            Centers = centers,
            Sequences = sequences,
            ChunkSize = device.LeverageChunkSize,
            SkipFirst = device.SkipFirst,
            SkipLast = device.SkipLast,
        });
        Launch(sketched.Variant("sketch_gram.cu", "sketch_gram"), LeverageLaunch.Gram(sketched, parts), new SketchGramParams
        {
            Keys = keys,
            CuSeqlens = device.CuSeqlens,
            ChunkStarts = device.LeverageChunkStarts,
            PartStarts = device.LeveragePartStarts,
            Centers = centers,
            Partials = partials,
            Status = StatusAddress,
            Sequences = sequences,
            ChunkSize = device.LeverageChunkSize,
            SkipFirst = device.SkipFirst,
            SkipLast = device.SkipLast,
        });
        Launch(sketched.FactorVariant(), LeverageLaunch.Factor(sketched, segments), new FactorParams
        {
            CuSeqlens = device.CuSeqlens,
            ChunkStarts = device.LeverageChunkStarts,
            PartStarts = device.LeveragePartStarts,
            Partials = partials,
            Factors = factors,
            Status = StatusAddress,
            Epsilon = plan.Options.Epsilon,
            Sequences = sequences,
            KvHeads = plan.Shape.KvHeads,
            ChunkSize = device.LeverageChunkSize,
            SkipFirst = device.SkipFirst,
            SkipLast = device.SkipLast,
            Center = plan.Options.CenterKeys ? 1 : 0,
            Finish = 1,
            Paged = plan.Shape.IsRagged ? 1 : 0,
        });
        Launch(sketched.Variant("leverage_apply.cu", "leverage_apply"), LeverageLaunch.Apply(sketched, parts), new LeverageApplyParams
        {
            Keys = keys,
            CuSeqlens = device.CuSeqlens,
            ChunkStarts = device.LeverageChunkStarts,
            PartStarts = device.LeveragePartStarts,
            Centers = centers,
            Factors = factors,
            Scores = (ulong)leverage.Address,
            Sequences = sequences,
            ChunkSize = device.LeverageChunkSize,
            SkipFirst = device.SkipFirst,
            SkipLast = device.SkipLast,
        });
    }

    /// <summary>Phi as kernels read it, bfloat16 [count, k, D].</summary>
    private BackendBuffer<ushort> UploadSketch(Sketch sketch)
    {
        int dim = sketch.Dim, columns = sketch.Columns;
        var transposed = new ushort[sketch.Count * dim * columns];
        for (int i = 0, at = 0; i < sketch.Count; i++)
        {
            var phi = sketch.At(i);
            for (int column = 0; column < columns; column++)
                for (int d = 0; d < dim; d++)
                {
                    uint bits = BitConverter.SingleToUInt32Bits(phi[d * columns + column]);
                    if ((bits & 0xFFFF) != 0)
                        throw CompactorException.Unsupported($"Phi holds {phi[d * columns + column]} at [{d}, {column}], which is no bfloat16; the cuda backend takes sketches rounded to bfloat16.");
                    transposed[at++] = (ushort)(bits >> 16);
                }
        }
        var memory = Allocate<ushort>(transposed.Length);
        Upload<ushort>(transposed, memory.View);
        return memory;
    }

    /// <summary>Rows of R/2 cosines and R/2 sines that undo a rotation, each over cos² + sin²: of the batch the embedding is for, or of positions up to the highest seen. Rows outgrown stay, for work and graphs that use them.</summary>
    private sealed unsafe class RotationRows(GpuBackend backend, RotaryEmbedding rotary) : IDisposable
    {
        private readonly Stack<BackendBuffer<float>> _positions = [];
        private BackendBuffer<float>? _batch;
        private int _positionEnd;

        /// <summary>Of an embedding with tables or positions of its own, one row a packed token.</summary>
        public ulong OfBatch(int tokens) => (ulong)(_batch ??= Make(tokens)).View.Address;

        public ulong OfPositions(int end)
        {
            if (_positions.Count == 0 || _positionEnd < end)
            {
                _positionEnd = Math.Max(end, Math.Min(2 * _positionEnd, rotary.StoredPositions));
                _positions.Push(Make(_positionEnd));
            }
            return (ulong)_positions.Peek().View.Address;
        }

        public void Dispose()
        {
            _batch?.Dispose();
            while (_positions.TryPop(out var rows))
                rows.Dispose();
        }

        private BackendBuffer<float> Make(int rows)
        {
            const int block = 512;
            var values = new float[(long)rows * rotary.RotaryDim];
            var angles = new InverseAngles(rotary);
            Parallel.For(0, (rows + block - 1) / block, item =>
            {
                fixed (float* to = &values[(long)item * block * rotary.RotaryDim])
                    angles.Fill(item * block, Math.Min(block, rows - item * block), row => (row, row), to);
            });
            var memory = backend.Allocate<float>(values.Length);
            backend.Upload<float>(values, memory.View);
            return memory;
        }
    }
}
