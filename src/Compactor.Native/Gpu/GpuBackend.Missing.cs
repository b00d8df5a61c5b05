using Compactor.Native.Compression;
using Compactor.Native.Paging;

namespace Compactor.Native.Gpu;

/// <summary>Operations whose kernels have not been merged yet.</summary>
public sealed unsafe partial class GpuBackend
{
    /// <inheritdoc/>
    public override void Leverage(LayerPlan plan, in TensorView keys, RotaryEmbedding? undo, Sketch sketch, BufferView<float> leverage) => throw Missing(nameof(Leverage));

    /// <inheritdoc/>
    public override void LeverageOfSlots(LayerPlan plan, in PagedSlots slots, PagedTables tables, RotaryEmbedding? undo, Sketch sketch, BufferView<float> leverage) => throw Missing(nameof(LeverageOfSlots));

    /// <inheritdoc/>
    public override void DecodeAttention(in PagedView cache, in TensorView query, int kvHeads, PagedTables tables, DecodeOptions options,
        BufferView<float> output, BufferView<float>? logSumExp = null) => throw Missing(nameof(DecodeAttention));

    private static CompactorException Missing(string operation) => CompactorException.Unsupported($"The cuda backend of this build does not do {operation}; use the cpu backend.");
}
