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
        var shape = plan.Shape;
        RequireAligned($"Layer {shape.Layer}: key", keys);
        undo?.Validate(shape);
        var sketched = new SketchedKeys(shape.HeadDim, keys.ElementType, sketch.Columns, SketchedKeys.RotaryOf(undo), 0);
        var device = new DeviceKeys { Dense = new(keys) };
        if (undo is { IsOfPositions: true })
            device.Rotations = _rotations.Of(undo).OfPositions(Enumerable.Range(0, shape.Sequences).Select(b => shape.LengthOf(b)).DefaultIfEmpty().Max());
        else if (undo is not null)
            (device.Rotations, device.RotationsOfBatch) = (_rotations.Of(undo).OfBatch(shape.Tokens), 1);
        Leverage(plan, sketched, device, undo, sketch, leverage);
    }

    /// <inheritdoc/>
    public override void LeverageOfSlots(LayerPlan plan, in PagedSlots slots, PagedTables tables, RotaryEmbedding? undo, int positionEnd, Sketch sketch, BufferView<float> leverage)
    {
        CheckRagged(plan, slots, tables, undo);
        undo?.ValidateStored(plan.Shape.HeadDim, positionEnd);
        var cache = slots.Cache;
        RequireAligned($"Layer {plan.Shape.Layer}: the cache", new TensorView(cache.Keys, cache.ElementType, 0, 0, cache.Dim, cache.BlockStride, cache.SlotStride, cache.HeadStride));
        var sketched = new SketchedKeys(cache.Dim, cache.ElementType, sketch.Columns, SketchedKeys.RotaryOf(undo), cache.BlockSize);
        Leverage(plan, sketched, new DeviceKeys { Cache = new(cache, slots.Positions), Tables = new(tables), Rotations = undo is null ? 0 : _rotations.Of(undo).OfPositions(positionEnd) },
            undo, sketch, leverage);
    }

    private void Leverage(LayerPlan plan, in SketchedKeys sketched, DeviceKeys keys, RotaryEmbedding? undo, Sketch sketch, BufferView<float> leverage)
    {
        var (device, shape, options) = (_plans.Of(plan), plan.Shape, plan.Options);
        RequireHeadDim($"Layer {shape.Layer}", shape.HeadDim);
        RequirePairs(shape, leverage);
        if (sketch.Dim != shape.HeadDim || (sketch.Count != 1 && sketch.Count != shape.Sequences * shape.KvHeads))
            throw CompactorException.Argument($"The sketch holds {sketch.Count} Phi of {sketch.Dim} rows; the layer needs 1 or {shape.Sequences * shape.KvHeads} of {shape.HeadDim}.");
        if (device.SkipFirst + device.SkipLast > 0)
            Clear(leverage);
        keys.Phi = (ulong)_sketches.Of(sketch).View.Address;
        keys.RotaryDim = undo?.RotaryDim ?? 0;
        keys.KvHeads = shape.KvHeads;
        keys.PhiPerHead = sketch.Count == 1 ? 0 : 1;
        keys.Center = options.CenterKeys ? 1 : 0;
        if (LeverageLaunch.Fits(sketched, options.LeverageChunk, _driver.Limits))
            LeverageInOneRead(plan, device, sketched, keys, leverage);
        else
            LeverageInTwoReads(plan, device, sketched, keys, leverage);
    }

    private void LeverageInOneRead(LayerPlan plan, DevicePlan device, in SketchedKeys sketched, in DeviceKeys keys, BufferView<float> leverage) =>
        Launch(sketched.Variant("sketch_leverage.cu", "sketch_leverage", plan.Options.LeverageChunk),
            LeverageLaunch.Chunks(sketched, plan.Options.LeverageChunk, device.LeverageChunks * HeadsOfRow(plan)), new SketchLeverageParams
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
        long segments = device.LeverageChunks * HeadsOfRow(plan), parts = device.LeverageParts * HeadsOfRow(plan);
        int sequences = plan.Shape.CuSeqlens.Count - 1;
        using var centers = Allocate<float>(segments * sketched.Dim);
        using var partials = Allocate<float>(parts * LeverageLaunch.PartialElements(sketched.SketchDim));
        using var factors = Allocate<byte>(segments * LeverageLaunch.FactorBytes(sketched.SketchDim));
        Launch(sketched.Variant("sketch_gram.cu", "sketch_center"), LeverageLaunch.Center(segments), new SketchCenterParams
        {
            Keys = keys,
            CuSeqlens = device.CuSeqlens,
            ChunkStarts = device.LeverageChunkStarts,
            Centers = (ulong)centers.View.Address,
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
            Centers = (ulong)centers.View.Address,
            Partials = (ulong)partials.View.Address,
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
            Partials = (ulong)partials.View.Address,
            Factors = (ulong)factors.View.Address,
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
            Centers = (ulong)centers.View.Address,
            Factors = (ulong)factors.View.Address,
            Scores = (ulong)leverage.Address,
            Sequences = sequences,
            ChunkSize = device.LeverageChunkSize,
            SkipFirst = device.SkipFirst,
            SkipLast = device.SkipLast,
        });
    }

    /// <summary>Heads that share an entry of the offsets: ragged heads have entries of their own.</summary>
    private static long HeadsOfRow(LayerPlan plan) => plan.Shape.IsRagged ? 1 : plan.Shape.KvHeads;

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

    /// <summary>Rows of R/2 cosines and R/2 sines that undo a rotation, each over cos² + sin²: of the batch the embedding is for, or of positions up to the highest seen.</summary>
    private sealed class RotationRows(GpuBackend backend, RotaryEmbedding rotary) : IDisposable
    {
        private BackendBuffer<float>? _batch, _positions;
        private int _positionEnd;

        /// <summary>Of an embedding with tables or positions of its own, one row a packed token.</summary>
        public ulong OfBatch(int tokens) => (ulong)(_batch ??= Make(tokens)).View.Address;

        public ulong OfPositions(int end)
        {
            if (_positions is null || _positionEnd < end)
            {
                _positions?.Dispose();
                _positionEnd = Math.Max(end, Math.Min(2 * _positionEnd, rotary.StoredPositions));
                _positions = Make(_positionEnd);
            }
            return (ulong)_positions.View.Address;
        }

        public void Dispose()
        {
            _batch?.Dispose();
            _positions?.Dispose();
        }

        private BackendBuffer<float> Make(int rows)
        {
            int pairs = rotary.RotaryDim / 2;
            var values = new float[(long)rows * rotary.RotaryDim];
            Parallel.For(0, rows, () => (new double[pairs], new double[pairs]), (row, _, angles) =>
            {
                var (cos, sin) = angles;
                rotary.Angles(row, row, cos, sin);
                var to = values.AsSpan(row * rotary.RotaryDim, rotary.RotaryDim);
                for (int i = 0; i < pairs; i++)
                {
                    double power = cos[i] * cos[i] + sin[i] * sin[i];
                    (to[i], to[pairs + i]) = ((float)(cos[i] / power), (float)(sin[i] / power));
                }
                return angles;
            }, _ => { });
            var memory = backend.Allocate<float>(values.Length);
            backend.Upload<float>(values, memory.View);
            return memory;
        }
    }
}
