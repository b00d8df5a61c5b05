using Compactor.Native;
using Compactor.Native.Compression;

namespace Compactor.Host;

/// <summary>What attention of one layer sees of a packed batch of N tokens, in the backend's memory, float32.</summary>
internal sealed class LayerActivations : IDisposable
{
    private readonly ModelConfig _config;
    private readonly int _tokens;
    private readonly BackendBuffer<float> _query, _keyPreRope, _key, _value;

    public LayerActivations(KvBackend backend, ModelConfig config, int tokens)
    {
        (_config, _tokens) = (config, tokens);
        _query = backend.Allocate<float>((long)tokens * config.QueryHeads * config.HeadDim);
        _keyPreRope = backend.Allocate<float>((long)tokens * config.KvHeads * config.HeadDim);
        _key = backend.Allocate<float>((long)tokens * config.KvHeads * config.HeadDim);
        _value = backend.Allocate<float>((long)tokens * config.KvHeads * config.HeadDim);
    }

    /// <summary>Queries after RoPE, <c>[N, Hq, D]</c>.</summary>
    public BufferView<float> Query => _query.View;

    /// <summary>Keys before RoPE (after their norm, where the model has one), <c>[N, Hkv, D]</c>.</summary>
    public BufferView<float> KeyPreRope => _keyPreRope.View;

    /// <summary>Keys after RoPE, <c>[N, Hkv, D]</c>.</summary>
    public BufferView<float> Key => _key.View;

    /// <summary>Values, <c>[N, Hkv, D]</c>.</summary>
    public BufferView<float> Value => _value.View;

    /// <summary>The same as the library takes it.</summary>
    public LayerInputs Inputs => new()
    {
        Query = View(_query, _config.QueryHeads),
        KeyPreRope = View(_keyPreRope, _config.KvHeads),
        Key = View(_key, _config.KvHeads),
        Value = View(_value, _config.KvHeads),
    };

    public void Dispose()
    {
        _query.Dispose();
        _keyPreRope.Dispose();
        _key.Dispose();
        _value.Dispose();
    }

    private TensorView View(BackendBuffer<float> buffer, int heads) => TensorView.Packed(buffer.View.Address, ElementType.Float32, _tokens, heads, _config.HeadDim);
}
