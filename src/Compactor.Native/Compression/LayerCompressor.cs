using System.Diagnostics;

namespace Compactor.Native.Compression;

/// <summary>
/// The pipeline of one layer: leverage, attention scores, fusion, selection. What is scored, and how, comes from a
/// <see cref="SelectionPolicy"/>.
/// </summary>
public static class LayerCompressor
{
    /// <summary>Decides which (token, head) pairs of a layer to keep.</summary>
    /// <param name="backend">Where to compute.</param>
    /// <param name="plan">Shape, options and counts.</param>
    /// <param name="inputs">The layer's cache, in memory the backend can reach.</param>
    /// <param name="policy">What scores; null for <see cref="SelectionPolicy.Compactor"/>.</param>
    /// <param name="sketch">Phi to use instead of drawing it.</param>
    /// <param name="memory">Where scores and results go, so that the backend allocates neither; null to allocate them.</param>
    /// <exception cref="CompactorException">Inputs or memory do not fit the plan, or inputs hold NaN or infinity; where operations are queued, the latter is told by <see cref="LayerSelection.Status"/>.</exception>
    public static LayerSelection Select(KvBackend backend, LayerPlan plan, LayerInputs inputs, SelectionPolicy? policy = null, Sketch? sketch = null,
        LayerMemory? memory = null)
    {
        inputs.Validate(plan.Shape);
        var selection = new LayerSelection(backend, plan, memory);
        try
        {
            if (plan.KeepsEverything)
                selection.KeepEverything();
            else
            {
                Score(backend, plan, inputs, policy ?? SelectionPolicy.Compactor, sketch, selection);
                selection.Status = backend.TakeStatus(plan);
            }
            return selection;
        }
        catch
        {
            // What was queued before may have met bad data; that is not the next call's.
            using (selection)
                backend.TakeStatus(plan).Dispose();
            throw;
        }
    }

    /// <summary>
    /// Queues the same into memory of the caller's, and nothing else: once the plan is prepared (<see cref="KvBackend.Prepare(LayerPlan, LayerInputs, Sketch?)"/>, or a first
    /// call), the backend allocates nothing, copies nothing to or from the host and waits for nothing, so that the work may be captured in a graph. Plan, sketch and rotation must live
    /// as long as the graph. What scoring finds wrong is told by <see cref="KvBackend.TakeStatus"/>, after the work is queued or the graph launched.
    /// </summary>
    /// <param name="backend">Where to compute.</param>
    /// <param name="plan">Shape, options and counts; it must not keep everything, which takes no scoring.</param>
    /// <param name="inputs">The layer's cache, in memory the backend can reach.</param>
    /// <param name="memory">Where scores and results go.</param>
    /// <param name="policy">What scores; null for <see cref="SelectionPolicy.Compactor"/>.</param>
    /// <param name="sketch">Phi to use instead of the plan's.</param>
    /// <exception cref="CompactorException">Inputs or memory do not fit the plan, or the plan keeps everything.</exception>
    public static void Queue(KvBackend backend, LayerPlan plan, LayerInputs inputs, LayerMemory memory, SelectionPolicy? policy = null, Sketch? sketch = null)
    {
        if (plan.KeepsEverything)
            throw CompactorException.Argument($"Layer {plan.Shape.Layer}: the plan keeps all {plan.KeptPairs} pairs; there is nothing to score. Copy the cache, or lower the budget.");
        inputs.Validate(plan.Shape);
        using var selection = new LayerSelection(backend, plan, memory);
        Score(backend, plan, inputs, policy ?? SelectionPolicy.Compactor, sketch, selection);
    }

    private static void Score(KvBackend backend, LayerPlan plan, LayerInputs inputs, SelectionPolicy policy, Sketch? sketch, LayerSelection selection)
    {
        policy.Score(backend, plan, inputs, sketch, selection);
        long start = Stopwatch.GetTimestamp();
        if (policy.EndsWithFusion)
            backend.SelectFused(plan, selection.Scores!.View, selection.KeptIndices.View, selection.KeptOffsets.View);
        else
            backend.Select(plan, selection.Scores!.View, selection.KeptIndices.View, selection.KeptOffsets.View);
        selection.Times.Select = Stopwatch.GetElapsedTime(start);
    }
}
