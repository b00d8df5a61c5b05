using Compactor.Native.Compression;

namespace Compactor.Native.Tests.Support;

/// <summary>One run of the pipeline, copied out.</summary>
internal sealed record Run(float[]? Leverage, float[]? Attention, float[]? Scores, int[] Indices, int[] Offsets)
{
    public static Run Of(KvBackend backend, LayerPlan plan, LayerInputs inputs, SelectionPolicy? policy = null, Sketch? sketch = null)
    {
        using var s = LayerCompressor.Select(backend, plan, inputs, policy, sketch);
        return new Run(s.Leverage is null ? null : Arrays.Copy(s.Leverage), s.Attention is null ? null : Arrays.Copy(s.Attention),
            s.Scores is null ? null : Arrays.Copy(s.Scores), Arrays.Copy(s.KeptIndices), Arrays.Copy(s.KeptOffsets));
    }

    public static Run Of(string backendName, TestLayer layer, CompressionOptions options, double retention = 0.5, int threads = 2)
    {
        using var backend = Backends.Create(backendName, threads);
        var run = Of(backend, new LayerPlan(layer.Shape, options, Budget.Retention(retention)), layer.Inputs);
        GC.KeepAlive(layer);
        return run;
    }

    /// <summary>Kept (token within sequence, head) pairs of one sequence.</summary>
    public HashSet<(int Token, int Head)> Kept(int b, int heads) =>
        [.. from h in Enumerable.Range(0, heads) from i in Indices[Offsets[b * heads + h]..Offsets[b * heads + h + 1]] select (i, h)];
}
