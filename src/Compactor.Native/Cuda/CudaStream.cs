using Compactor.Native.Gpu;

namespace Compactor.Native.Cuda;

/// <summary>A CUDA stream.</summary>
internal sealed unsafe class CudaStream : GpuStream
{
    private const uint NonBlocking = 1;

    private readonly StreamHandle _handle;

    private CudaStream(StreamHandle handle) => _handle = handle;

    public static CudaStream Create(CudaContext context)
    {
        nint stream = 0;
        using (context.Enter())
            context.Driver.Check(context.Driver.StreamCreate(&stream, NonBlocking), "cuStreamCreate");
        return new CudaStream(new StreamHandle(context, stream, owns: true));
    }

    /// <summary>The caller's stream, which stays the caller's.</summary>
    public static CudaStream Adopt(CudaContext context, nint stream) => new(new StreamHandle(context, stream, owns: false));

    public nint Value => !_handle.IsClosed ? _handle.Value : throw new ObjectDisposedException(nameof(CudaStream));

    public CudaContext Context => _handle.Context;

    /// <summary>Whether work queued is being captured into a graph instead of run.</summary>
    public bool IsCapturing
    {
        get
        {
            int capturing = 0;
            using (_handle.Context.Enter())
                _handle.Context.Driver.Check(_handle.Context.Driver.StreamIsCapturing(Value, &capturing), "cuStreamIsCapturing");
            return capturing != 0;
        }
    }

    public override void Synchronize()
    {
        using (_handle.Context.Enter())
            _handle.Context.Driver.Check(_handle.Context.Driver.StreamSynchronize(Value), "Waiting for the stream (cuStreamSynchronize)");
    }

    public override void Dispose() => _handle.Dispose();
}
