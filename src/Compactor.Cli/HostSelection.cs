using Compactor.Native;
using Compactor.Native.Compression;

namespace Compactor.Cli;

/// <summary>A selection in host memory, whatever backend made it.</summary>
internal sealed record HostSelection(LayerPlan Plan, float[]? Leverage, float[]? Attention, float[]? Scores, int[] KeptIndices, int[] KeptOffsets)
{
    /// <summary>Reads a selection, once it is done.</summary>
    /// <exception cref="CompactorException">Scoring met data that is not finite.</exception>
    public static HostSelection Of(KvBackend backend, LayerSelection selection)
    {
        selection.Status.ThrowIfFailed();
        return new HostSelection(selection.Plan, Read(selection.Leverage), Read(selection.Attention), Read(selection.Scores),
            backend.Read(selection.KeptIndices.View), backend.Read(selection.KeptOffsets.View));

        float[]? Read(BackendBuffer<float>? scores) => scores is null ? null : backend.Read(scores.View);
    }
}
