using Compactor.Native;
using Compactor.Native.Compression;

namespace Compactor.Bench;

/// <summary>The stages of one layer, each on what the ones before it left, at retention 0.5.</summary>
internal sealed class LayerStages : IDisposable
{
    private readonly KvBackend _backend;
    private readonly BenchLayer _layer;
    private BackendBuffer<byte>? _keys, _values;

    public LayerStages(KvBackend backend, BenchLayer layer, CompressionOptions options)
    {
        (_backend, _layer) = (backend, layer);
        Plan = new LayerPlan(layer.Shape, options, Budget.Retention(0.5));
        Sketch = Sketch.Draw(layer.Shape, options);
        (LeverageScores, AttentionScores, FusedScores) = (backend.Allocate<float>(layer.Shape.Pairs), backend.Allocate<float>(layer.Shape.Pairs), backend.Allocate<float>(layer.Shape.Pairs));
        (KeptIndices, KeptOffsets) = (backend.Allocate<int>(Plan.KeptPairs), backend.Allocate<int>(layer.Shape.KvHeads + 1));
    }

    public LayerPlan Plan { get; }

    public Sketch Sketch { get; }

    public BackendBuffer<float> LeverageScores { get; }

    public BackendBuffer<float> AttentionScores { get; }

    public BackendBuffer<float> FusedScores { get; }

    public BackendBuffer<int> KeptIndices { get; }

    public BackendBuffer<int> KeptOffsets { get; }

    public BackendBuffer<byte> KeptKeys => _keys ??= Survivors();

    public BackendBuffer<byte> KeptValues => _values ??= Survivors();

    public void Leverage() => _backend.Leverage(Plan, _layer.Inputs.KeyPreRope!.Value, null, Sketch, LeverageScores.View);

    public void Attention() => _backend.AttentionScores(Plan, _layer.Inputs.Query!.Value, _layer.Inputs.Key, AttentionScores.View);

    public void Fuse() => _backend.Fuse(Plan, LeverageScores.View, AttentionScores.View, _layer.Inputs.Value, FusedScores.View);

    public void Scores()
    {
        Leverage();
        Attention();
        Fuse();
    }

    public void Select() => _backend.Select(Plan, FusedScores.View, KeptIndices.View, KeptOffsets.View);

    /// <summary>Keys and values.</summary>
    public void Compact()
    {
        _backend.Compact(Plan, _layer.Inputs.Key, KeptIndices.View, KeptOffsets.View, KeptKeys.View);
        _backend.Compact(Plan, _layer.Inputs.Value, KeptIndices.View, KeptOffsets.View, KeptValues.View);
    }

    public void WholeLayer()
    {
        Scores();
        Select();
        Compact();
    }

    /// <summary>Kept pairs as numbers head · N + token, ascending.</summary>
    public float[] KeptPairs()
    {
        Span<int> indices = KeptIndices.View.AsSpan(), offsets = KeptOffsets.View.AsSpan();
        var pairs = new float[Plan.KeptPairs];
        for (int head = 0; head < _layer.Shape.KvHeads; head++)
            for (int i = offsets[head]; i < offsets[head + 1]; i++)
                pairs[i] = (long)head * _layer.Shape.Tokens + indices[i];
        return pairs;
    }

    private BackendBuffer<byte> Survivors() => _backend.Allocate<byte>(Plan.KeptPairs * _layer.Shape.HeadDim * _layer.Shape.ElementType.Size());

    public void Dispose()
    {
        foreach (var owned in new IDisposable?[] { LeverageScores, AttentionScores, FusedScores, KeptIndices, KeptOffsets, _keys, _values })
            owned?.Dispose();
    }
}
