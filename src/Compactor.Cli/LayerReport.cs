using Compactor.Native.Compression;

namespace Compactor.Cli;

/// <summary>What compressing one layer did.</summary>
/// <param name="Name">Its prefix in the file, <c>layers.3</c>; empty when the file's tensors are not numbered.</param>
/// <param name="Plan">Shape, options and counts.</param>
/// <param name="KeptLengths"><c>[B·Hkv]</c> kept tokens, sequence by sequence and head by head.</param>
/// <param name="Blocks">Blocks it took in the paged cache.</param>
/// <param name="Times">Wall time of the stages.</param>
/// <param name="Errors">Errors of attention outputs; null when the file has no queries.</param>
/// <param name="Curves">Errors at other budgets; null when they were not asked for, or nothing was scored.</param>
internal sealed record LayerReport(string Name, LayerPlan Plan, int[] KeptLengths, BlockUse Blocks, StageTimes Times, LayerErrors? Errors, ErrorCurves? Curves)
{
    /// <summary>Number of the layer as text; null when the file's tensors are not numbered.</summary>
    public string? Number => Name.Length == 0 ? null : Name["layers.".Length..];

    public long Pairs => (long)Plan.Shape.Tokens * Plan.Shape.KvHeads;

    public long Bytes => Pairs * Plan.Shape.BytesPerPair;

    public long KeptBytes => Plan.KeptPairs * Plan.Shape.BytesPerPair;
}
