namespace Compactor.Native.Compression;

/// <summary>One layer's cache as a host has it. All tensors hold the same tokens in the same order.</summary>
public sealed record LayerInputs
{
    /// <summary>Keys after RoPE, <c>[N, Hkv, D]</c>.</summary>
    public required TensorView Key { get; init; }

    /// <summary>Values, <c>[N, Hkv, D]</c>.</summary>
    public required TensorView Value { get; init; }

    /// <summary>Keys before RoPE, <c>[N, Hkv, D]</c>; null when the host no longer has them and gives <see cref="Rotary"/> instead.</summary>
    public TensorView? KeyPreRope { get; init; }

    /// <summary>Queries after RoPE, <c>[N, Hq, D]</c>; null to score by leverage alone.</summary>
    public TensorView? Query { get; init; }

    /// <summary>The rotation that <see cref="Key"/> carries, undone while loading when <see cref="KeyPreRope"/> is null.</summary>
    public RotaryEmbedding? Rotary { get; init; }

    /// <summary>Checks that every tensor has the plan's shape.</summary>
    /// <exception cref="CompactorException">A tensor has another shape; the message names it and both shapes.</exception>
    public void Validate(LayerShape shape)
    {
        Check("key", Key, shape.KvHeads);
        Check("value", Value, shape.KvHeads);
        if (KeyPreRope is { } keyPreRope)
            Check("key_pre_rope", keyPreRope, shape.KvHeads);
        if (Query is { } query)
            Check("query", query, shape.QueryHeads);
        Rotary?.Validate(shape);

        void Check(string name, TensorView view, int heads)
        {
            if (name is "value" && view.Dim != shape.HeadDim)
                throw CompactorException.Unsupported(
                    $"Layer {shape.Layer}: values have dimension {view.Dim} and keys {shape.HeadDim}; caches whose key and value dimensions differ (MLA) are not supported.");
            if (view.Tokens != shape.Tokens || view.Heads != heads || view.Dim != shape.HeadDim)
                throw CompactorException.Argument(
                    $"Layer {shape.Layer}: {name} is [{view.Tokens}, {view.Heads}, {view.Dim}] (tokens, heads, dim); expected [{shape.Tokens}, {heads}, {shape.HeadDim}].");
            if (view.ElementType == ElementType.Opaque8)
                throw CompactorException.Unsupported($"Layer {shape.Layer}: {name} holds opaque bytes, which cannot be scored; convert it to float32, float16 or bfloat16 first.");
            if (view.Address == 0 && view.Tokens > 0)
                throw CompactorException.Argument($"Layer {shape.Layer}: {name} has a null address.");
            if (view.Address % view.ElementType.Size() != 0)
                throw CompactorException.Argument($"Layer {shape.Layer}: {name} is not aligned to its {view.ElementType.Size()}-byte elements.");
        }
    }
}
