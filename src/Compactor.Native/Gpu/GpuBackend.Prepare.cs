using Compactor.Native.Compression;
using Compactor.Native.Cuda;

namespace Compactor.Native.Gpu;

/// <summary>What is done before a layer's compression, so that the compression itself only queues work.</summary>
public sealed unsafe partial class GpuBackend
{
    /// <inheritdoc/>
    public override void Prepare(LayerPlan plan, LayerInputs inputs, Sketch? sketch = null)
    {
        var (shape, options) = (plan.Shape, plan.Options);
        inputs.Validate(shape);
        if (inputs.KeyPreRope is not null || inputs.Rotary is not null)
            PrepareLeverage(plan, DenseKeys(plan, inputs.KeyPreRope ?? inputs.Key, inputs.KeyPreRope is null ? inputs.Rotary : null, sketch ?? plan.Sketch).Kernel);
        if (inputs.Query is not null)
            _driver.Load(AttentionScoresLaunch.Variant(shape.HeadDim, inputs.Key.ElementType, options.AttentionChunk, AttentionScoresLimits(shape.HeadDim, inputs.Key.ElementType, options.AttentionChunk)));
        if (inputs.Query is not null && options.WeightByValueNorm)
            _driver.Load(ValueNormsLaunch.Variant(shape.HeadDim, inputs.Value.ElementType));
        PrepareSelection(plan, shape.HeadDim, inputs.Key.ElementType);
    }

    /// <inheritdoc/>
    public override void PrepareOfSlots(LayerPlan plan, in PagedSlots slots, RotaryEmbedding? undo, int positionEnd, Sketch? sketch = null)
    {
        PrepareLeverage(plan, SlotKeys(plan, slots, undo, positionEnd, sketch ?? plan.Sketch).Kernel);
        PrepareSelection(plan, slots.Cache.Dim, slots.Cache.ElementType);
    }

    /// <summary>
    /// Captures operations of this backend in a graph instead of running them: a whole layer's, which then costs the host one launch. What they need must be there, by
    /// <see cref="Prepare"/> or because they have run before; with <see cref="CudaOptions.SideStream"/> the action ends with <see cref="KvBackend.Join"/>.
    /// </summary>
    /// <param name="work">Queues the operations, on the calling thread; nothing in it may allocate, read or wait.</param>
    /// <returns>The graph, which is launched on the caller's stream, or the backend's own where the caller gave none.</returns>
    /// <exception cref="CompactorException">Something was called that cannot be captured, or the driver has no graphs (before 11.4); nothing has run.</exception>
    public CudaGraph Capture(Action work) => CudaGraph.Capture(
        (_callers ?? _stream) as CudaStream ?? throw new InvalidOperationException("Only a CUDA device has graphs."), work);

    private void PrepareLeverage(LayerPlan plan, SketchedKeys sketched)
    {
        if (!LeverageLaunch.Fits(sketched, plan.Options.LeverageChunk, _driver.Limits))
            _workspace.Reserve(_plans.Of(plan).LeverageWorkspace(sketched.SketchDim));
        foreach (var kernel in LeverageLaunch.Plan(sketched, plan.Options.LeverageChunk, _driver.Limits))
            _driver.Load(kernel.Variant);
    }

    private void PrepareSelection(LayerPlan plan, int dim, ElementType type)
    {
        _plans.Of(plan);
        foreach (var kernel in KernelCatalog.FuseAndSelect.Concat(KernelCatalog.Compact(dim, type)))
            _driver.Load(kernel.Variant);
        // A graph captured on the caller's stream is launched there, and finds what was uploaded here.
        Join();
    }
}
