using System.Runtime.InteropServices;

namespace Compactor.Native.Cuda;

/// <summary>Something that lives in a context and keeps it alive.</summary>
internal abstract unsafe class ContextHandle : SafeHandle
{
    private readonly bool _holdsContext;

    protected ContextHandle(CudaContext context, nint value) : base(0, ownsHandle: true)
    {
        Context = context;
        bool holds = false;
        context.DangerousAddRef(ref holds);
        _holdsContext = holds;
        SetHandle(value);
    }

    public CudaContext Context { get; }

    public nint Value => handle;

    public override bool IsInvalid => false;

    /// <summary>Gives the thing back; the context is current.</summary>
    protected abstract int Destroy();

    protected sealed override bool ReleaseHandle()
    {
        // A finalizer may call this, where an exception ends the process: a context that is gone has taken its things with it.
        int status = Context.Driver.CtxPushCurrent(Context.DangerousGetHandle());
        if (status == DriverApi.Success)
            using (new CudaContext.Scope(Context.Driver))
                status = Destroy();
        if (_holdsContext)
            Context.DangerousRelease();
        return status is DriverApi.Success or DriverApi.Deinitialized;
    }
}

/// <summary>A loaded module.</summary>
internal sealed unsafe class ModuleHandle(CudaContext context, nint value) : ContextHandle(context, value)
{
    protected override int Destroy() => Context.Driver.ModuleUnload(handle);
}

/// <summary>A stream of ours, or of the caller, which stays when the handle lets go of the context.</summary>
internal sealed unsafe class StreamHandle(CudaContext context, nint value, bool owns) : ContextHandle(context, value)
{
    protected override int Destroy() => owns ? Context.Driver.StreamDestroy(handle) : DriverApi.Success;
}

/// <summary>An event.</summary>
internal sealed unsafe class EventHandle(CudaContext context, nint value) : ContextHandle(context, value)
{
    protected override int Destroy() => Context.Driver.EventDestroy(handle);
}

/// <summary>A graph that can be launched.</summary>
internal sealed unsafe class GraphHandle(CudaContext context, nint value) : ContextHandle(context, value)
{
    protected override int Destroy() => Context.Driver.GraphExecDestroy(handle);
}
