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
                (policy ?? SelectionPolicy.Compactor).Score(backend, plan, inputs, sketch, selection);
                long start = Stopwatch.GetTimestamp();
                backend.Select(plan, selection.Scores!.View, selection.KeptIndices.View, selection.KeptOffsets.View);
                selection.Times.Select = Stopwatch.GetElapsedTime(start);
                selection.Status = backend.TakeStatus(plan);
            }
            return selection;
        }
        catch
        {
            selection.Dispose();
            throw;
        }
    }
}
