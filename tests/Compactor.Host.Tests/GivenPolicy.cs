using Compactor.Native;
using Compactor.Native.Compression;

namespace Compactor.Host.Tests;

/// <summary>Keeps the pairs it is given, <c>[layers, Hkv, tokens]</c>.</summary>
internal sealed class GivenPolicy(int[] kept) : SelectionPolicy
{
    /// <summary>Nothing is protected: the given pairs compete alone.</summary>
    public static CompressionOptions Options { get; } = CompressionPresets.Paper with { ProtectFirst = 0, ProtectLast = 0 };

    public override string Name => "given";

    public override void Score(KvBackend backend, LayerPlan plan, LayerInputs inputs, Sketch? sketch, LayerSelection selection)
    {
        int tokens = plan.Shape.Tokens, heads = plan.Shape.KvHeads;
        var scores = selection.NewFused().AsSpan();
        for (int t = 0; t < tokens; t++)
            for (int h = 0; h < heads; h++)
                scores[t * heads + h] = kept[(plan.Shape.Layer * heads + h) * tokens + t];
    }
}
