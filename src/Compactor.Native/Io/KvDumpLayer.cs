using Compactor.Native.Compression;

namespace Compactor.Native.Io;

/// <summary>One layer of a <see cref="KvDump"/>. Its views point into the mapped file: read-only, and valid until the dump is disposed.</summary>
public sealed class KvDumpLayer
{
    internal KvDumpLayer(LayerShape shape, LayerInputs inputs, TensorView? probeQuery, IReadOnlyDictionary<string, SafetensorsTensor> tensors) =>
        (Shape, Inputs, ProbeQuery, Tensors) = (shape, inputs, probeQuery, tensors);

    /// <summary>Index of the layer; 0 when the dump's names carry none.</summary>
    public int Index => Shape.Layer;

    /// <summary>Shape, with <see cref="LayerShape.Layer"/> set; <see cref="LayerShape.QueryHeads"/> is 0 when the dump has no queries.</summary>
    public LayerShape Shape { get; }

    /// <summary>
    /// Keys, values and, where the dump has them, keys before RoPE and queries. <see cref="LayerInputs.Rotary"/> is null: a caller whose dump
    /// has no keys before RoPE sets it, from <see cref="KvDump.CosSin"/> or from the model's theta.
    /// </summary>
    public LayerInputs Inputs { get; }

    /// <summary>
    /// Queries of later tokens, which attend to the cache to judge a compression: <c>[P, Hq, D]</c>, or <c>[B, Hq, P, D]</c> with
    /// <see cref="KvLayout.BatchHeadSequence"/>. Null when the dump has none.
    /// </summary>
    public TensorView? ProbeQuery { get; }

    /// <summary>The tensors behind the views, by role: <c>key</c>, <c>value</c>, <c>key_pre_rope</c>, <c>query</c>, <c>probe_query</c>.</summary>
    public IReadOnlyDictionary<string, SafetensorsTensor> Tensors { get; }
}
