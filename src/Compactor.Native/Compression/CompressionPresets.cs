namespace Compactor.Native.Compression;

/// <summary>The three published parameterisations of the method, as data.</summary>
public static class CompressionPresets
{
    /// <summary>The method as the paper (arXiv 2507.08143) states it.</summary>
    public static CompressionOptions Paper { get; } = new()
    {
        SketchDimension = 48,
        SketchSharing = SketchSharing.PerLayer,
        LeverageChunk = 0,
        Epsilon = 1e-2,
        LeverageScope = NormalizationScope.Head,
        AttentionChunk = 256,
        GroupReduction = GroupReduction.Sum,
        WeightByValueNorm = false,
        PoolWidth = 3,
        AttentionScope = NormalizationScope.Head,
        LeverageWeight = 0.3,
        ProtectFirst = 4,
        ProtectLast = 16,
        ProtectedBudget = ProtectedBudget.OnTop,
        SelectionScope = SelectionScope.Sequence,
        RetentionCount = RetentionCount.CeilingOfTokens,
    };

    /// <summary>The method as kvpress's CompactorPress computes it, without the effect of its padding on partial chunks.</summary>
    public static CompressionOptions KvPress { get; } = new()
    {
        SketchDimension = 48,
        SketchSharing = SketchSharing.PerSequenceHead,
        LeverageChunk = 0,
        Epsilon = 1e-2,
        LeverageScope = NormalizationScope.Sequence,
        AttentionChunk = 256,
        GroupReduction = GroupReduction.Mean,
        WeightByValueNorm = true,
        PoolWidth = 3,
        AttentionScope = NormalizationScope.Sequence,
        UnbiasedStandardDeviation = true,
        StandardDeviationFloor = 1e-6,
        LeverageWeight = LeverageWeight.OneMinusRetention,
        ProtectFirst = 8,
        ProtectLast = 4,
        ScoreProtected = false,
        ProtectedBudget = ProtectedBudget.Inside,
        SelectionScope = SelectionScope.Head,
        RetentionCount = RetentionCount.FloorOfTokens,
    };

    /// <summary>The method as the authors' engine, compactor-vllm, computes it, without the effect of its padding on partial chunks.</summary>
    public static CompressionOptions CompactorVllm { get; } = new()
    {
        SketchDimension = 48,
        SketchSharing = SketchSharing.Shared,
        LeverageChunk = 512,
        Epsilon = 5e-3,
        LeverageScope = NormalizationScope.Chunk,
        AttentionChunk = 128,
        GroupReduction = GroupReduction.Sum,
        WeightByValueNorm = false,
        PoolWidth = 1,
        AttentionScope = NormalizationScope.Sequence,
        LeverageWeight = 0.5,
        ProtectFirst = 16,
        ProtectLast = 64,
        ProtectedBudget = ProtectedBudget.Inside,
        SelectionScope = SelectionScope.Sequence,
        RetentionCount = RetentionCount.RoundOfUnprotected,
    };

    /// <summary>The presets by their command-line names: <c>paper</c>, <c>kvpress</c>, <c>compactor-vllm</c>.</summary>
    public static IReadOnlyDictionary<string, CompressionOptions> ByName { get; } = new Dictionary<string, CompressionOptions>
    {
        ["paper"] = Paper,
        ["kvpress"] = KvPress,
        ["compactor-vllm"] = CompactorVllm,
    };
}
