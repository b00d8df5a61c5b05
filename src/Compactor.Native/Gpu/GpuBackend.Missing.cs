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
    public override FuseStatus Fuse(LayerPlan plan, BufferView<float>? leverage, BufferView<float>? attention, in TensorView value, BufferView<float> scores) => throw Missing(nameof(Fuse));

    /// <inheritdoc/>
    public override void Select(LayerPlan plan, BufferView<float> scores, BufferView<int> keptIndices, BufferView<int> keptOffsets) => throw Missing(nameof(Select));

    /// <inheritdoc/>
    public override void DecodeAttention(in PagedView cache, in TensorView query, int kvHeads, PagedTables tables, DecodeOptions options,
        BufferView<float> output, BufferView<float>? logSumExp = null) => throw Missing(nameof(DecodeAttention));

    private static CompactorException Missing(string operation) => CompactorException.Unsupported($"The cuda backend of this build does not do {operation}; use the cpu backend.");
}
