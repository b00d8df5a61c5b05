using Compactor.Native.Compression;

namespace Compactor.Cli;

/// <summary>What compressing one layer did.</summary>
/// <param name="Name">Its prefix in the file, <c>layers.3</c>; empty when the file's tensors are not numbered.</param>
/// <param name="Plan">Shape, options and counts.</param>
/// <param name="KeptLengths"><c>[B·Hkv]</c> kept tokens, sequence by sequence and head by head.</param>
/// <param name="Times">Wall time of the stages.</param>
/// <param name="Errors">Errors of attention outputs; null when the file has no queries.</param>
internal sealed record LayerReport(string Name, LayerPlan Plan, int[] KeptLengths, StageTimes Times, LayerErrors? Errors)
{
    public long Pairs => (long)Plan.Shape.Tokens * Plan.Shape.KvHeads;

    public long Bytes => Pairs * Plan.Shape.BytesPerPair;

    public long KeptBytes => Plan.KeptPairs * Plan.Shape.BytesPerPair;
}

/// <summary>Relative L2 errors of attention outputs against the full cache.</summary>
/// <param name="Compressed">Of the compressed cache.</param>
/// <param name="Random">Of as many pairs at random.</param>
/// <param name="Recent">Of as many of the last tokens.</param>
internal sealed record LayerErrors(double Compressed, double Random, double Recent);
