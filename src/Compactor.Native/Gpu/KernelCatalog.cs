using Compactor.Native.Compression;

namespace Compactor.Native.Gpu;

/// <summary>What a model's layers look like to kernels.</summary>
/// <param name="Name">Name, as people write it.</param>
/// <param name="Group">Query heads G that share a KV head.</param>
/// <param name="HeadDim">Head dimension D.</param>
/// <param name="ElementType">Element type of the cache.</param>
/// <param name="BlockSize">Slots of a block.</param>
internal sealed record KernelModel(string Name, int Group, int HeadDim, ElementType ElementType, int BlockSize = 128);

/// <summary>A kernel, and the block it is launched with.</summary>
/// <param name="Variant">The kernel.</param>
/// <param name="Threads">Threads of a block.</param>
/// <param name="SharedBytes">Dynamic shared memory of a block.</param>
internal readonly record struct PlannedKernel(KernelVariant Variant, int Threads, int SharedBytes);

/// <summary>Every kernel the backend launches for a model, so that it can be compiled before it is needed.</summary>
internal static class KernelCatalog
{
    /// <summary>Models that stand for the head dimensions, groups and types in use.</summary>
    public static IReadOnlyList<KernelModel> Models { get; } =
    [
        new("llama-3-8b", 4, 128, ElementType.BFloat16),
        new("llama-3.2-1b", 4, 64, ElementType.BFloat16),
        new("qwen2.5-7b", 7, 128, ElementType.BFloat16),
        new("qwen2.5-14b", 5, 128, ElementType.BFloat16),
        new("gemma-2-9b", 2, 256, ElementType.BFloat16),
        new("phi-3-mini", 1, 96, ElementType.BFloat16),
        new("phi-2", 1, 80, ElementType.Float16),
        new("float32", 4, 128, ElementType.Float32),
    ];

    /// <summary>The kernels of a model on a device.</summary>
    public static IReadOnlyList<PlannedKernel> Plan(KernelModel model, CompressionOptions options, GpuLimits limits)
    {
        var (dim, type) = (model.HeadDim, model.ElementType);
        List<PlannedKernel> kernels = [];
        kernels.AddRange(Compact(dim, type));
        Add(RowMoves.Variant("store.cu", "store_tokens", dim, type), RowMoves.OverSlots(1));
        Add(RowMoves.Variant("copy_blocks.cu", "copy_blocks", dim, type), RowMoves.OverSlots(1));
        Add(RowMoves.Variant("gather.cu", "gather_slots", dim, type), RowMoves.OverSlots(1));

        // Keys before RoPE, keys whose rotation is undone, and keys that a cache holds.
        foreach (var (rotary, blockSize) in ((int, int)[])[(0, 0), (1, 0), (1, model.BlockSize)])
            kernels.AddRange(LeverageLaunch.Plan(new SketchedKeys(dim, type, options.SketchDimension, rotary, blockSize), options.LeverageChunk, limits));
        // Where kernels for sm_90a may be used both are at hand, since the choice is the application's.
        foreach (var choice in (GpuLimits[])[limits with { HopperKernels = false }, limits])
            Add(AttentionScoresLaunch.Variant(dim, type, options.AttentionChunk, choice), AttentionScoresLaunch.Shape(1, 1, dim, type, options.AttentionChunk, choice));
        if (options.WeightByValueNorm)
            Add(ValueNormsLaunch.Variant(dim, type), ValueNormsLaunch.Shape(1));
        kernels.AddRange(FuseAndSelect);

        foreach (var attention in (PagedAttentionLaunch[])[PagedAttentionLaunch.Decode(dim, type, model.Group), PagedAttentionLaunch.Extend(dim, type, model.Group)])
        {
            Add(attention.Variant, new LaunchShape(1, attention.Threads, attention.SharedBytes));
            Add(attention.Merge, PagedAttentionLaunch.MergeShape(1));
        }
        return [.. kernels.Distinct()];

        void Add(KernelVariant variant, LaunchShape shape) => kernels.Add(Of(variant, shape));
    }

    /// <summary>The kernels of fusion and selection, which see scores alone.</summary>
    public static IReadOnlyList<PlannedKernel> FuseAndSelect { get; } =
    [
        Of(FuseTerm.Variant("fuse_statistics"), FuseTerm.Pass(1)),
        Of(FuseTerm.Variant("fuse_scores"), new(1, PairSegments.Threads, PairSegments.SharedBytes)),
        .. from entry in (string[])["select_digits", "select_count"] select Of(PairSegments.Selection(entry), new(1, PairSegments.Threads, PairSegments.SharedBytes)),
        .. from entry in (string[])["select_write", "select_raise"] select Of(PairSegments.Selection(entry), new(1, PairSegments.Threads, PairSegments.ListingSharedBytes)),
        Of(PairSegments.Selection("select_token_sums"), new(1, PairSegments.Threads, 0)),
    ];

    /// <summary>The kernels that move survivors.</summary>
    public static IReadOnlyList<PlannedKernel> Compact(int dim, ElementType type) =>
    [
        .. from entry in (string[])["deal_blocks", "store_survivors", "move_survivors", "compact_dense"]
           select Of(RowMoves.Variant("compact.cu", entry, dim, type), entry == "deal_blocks" ? RowMoves.OverSequences(1) : RowMoves.OverSlots(1)),
        Of(RowMoves.Variant("compact.cu", "compact_in_place", dim, type), RowMoves.InPlace(1, dim * type.Size())),
    ];

    private static PlannedKernel Of(KernelVariant variant, LaunchShape shape) => new(variant, shape.Threads, shape.SharedBytes);
}
