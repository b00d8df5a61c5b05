using Compactor.Native;
using Compactor.Native.Compression;

namespace Compactor.Cli;

/// <summary>A layer's tensors where the backend can reach them: in place for the CPU, copied for a GPU.</summary>
internal sealed class BackendInputs : IDisposable
{
    private readonly List<BackendBuffer<byte>> _copies = [];

    public BackendInputs(KvBackend backend, LayerInputs inputs) => Inputs = backend.IsHostMemory ? inputs : inputs with
    {
        Key = Copy(backend, inputs.Key),
        Value = Copy(backend, inputs.Value),
        KeyPreRope = inputs.KeyPreRope is { } before ? Copy(backend, before) : null,
        Query = inputs.Query is { } query ? Copy(backend, query) : null,
    };

    public LayerInputs Inputs { get; }

    public void Dispose()
    {
        foreach (var copy in _copies)
            copy.Dispose();
    }

    /// <summary>Tensors of a file are dense, whatever the order of their dimensions.</summary>
    private unsafe TensorView Copy(KvBackend backend, in TensorView host)
    {
        const int Piece = 1 << 30;
        long bytes = (long)host.Tokens * host.Heads * host.Dim * host.ElementType.Size();
        var memory = backend.Allocate<byte>(bytes);
        _copies.Add(memory);
        for (long at = 0; at < bytes; at += Piece)
        {
            int count = (int)Math.Min(Piece, bytes - at);
            backend.Upload(new ReadOnlySpan<byte>((byte*)host.Address + at, count), memory.View.Slice(at, count));
        }
        return host with { Address = memory.View.Address };
    }
}
