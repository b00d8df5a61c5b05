using System.Runtime.InteropServices;

namespace Compactor.Native.Cuda;

/// <summary>Something that lives in a context and, where it is ours, keeps it alive.</summary>
internal abstract class ContextHandle : SafeHandle
{
    private readonly bool _holdsContext;

    protected ContextHandle(CudaContext context, nint value, bool owns) : base(0, owns)
    {
        Context = context;
        SetHandle(value);
        // What is the caller's is never released here.
        if (owns)
            context.DangerousAddRef(ref _holdsContext);
    }

    public CudaContext Context { get; }

    public nint Value => handle;

    public override bool IsInvalid => false;

    /// <summary>Gives the thing back; the context is current.</summary>
    protected abstract int Destroy();

    protected sealed override bool ReleaseHandle()
    {
        int status;
        using (Context.Enter())
            status = Destroy();
        if (_holdsContext)
            Context.DangerousRelease();
        return status is DriverApi.Success or DriverApi.Deinitialized;
    }
}

/// <summary>A loaded module.</summary>
internal sealed unsafe class ModuleHandle(CudaContext context, nint value) : ContextHandle(context, value, owns: true)
{
    protected override int Destroy() => Context.Driver.ModuleUnload(handle);
}

/// <summary>A stream of ours, or of the caller.</summary>
internal sealed unsafe class StreamHandle(CudaContext context, nint value, bool owns) : ContextHandle(context, value, owns)
{
    protected override int Destroy() => Context.Driver.StreamDestroy(handle);
}

/// <summary>An event.</summary>
internal sealed unsafe class EventHandle(CudaContext context, nint value) : ContextHandle(context, value, owns: true)
{
    protected override int Destroy() => Context.Driver.EventDestroy(handle);
}
