namespace Compactor.Native.Cuda;

/// <summary>A CUDA event that was recorded once.</summary>
internal sealed unsafe class CudaEvent : BackendEvent
{
    private const uint DisableTiming = 2;

    private readonly EventHandle _handle;

    private CudaEvent(EventHandle handle) => _handle = handle;

    public static CudaEvent Record(CudaContext context, CudaStream stream)
    {
        nint created = 0;
        using (context.Enter())
        {
            context.Driver.Check(context.Driver.EventCreate(&created, DisableTiming), "cuEventCreate");
            var handle = new EventHandle(context, created);
            int status = context.Driver.EventRecord(created, stream.Value);
            if (status == DriverApi.Success)
                return new CudaEvent(handle);
            handle.Dispose();
            throw context.Driver.Failure(status, "cuEventRecord");
        }
    }

    public nint Value => !_handle.IsClosed ? _handle.Value : throw new ObjectDisposedException(nameof(CudaEvent));

    public override bool HasPassed
    {
        get
        {
            var driver = _handle.Context.Driver;
            using (_handle.Context.Enter())
            {
                int status = driver.EventQuery(Value);
                return status != DriverApi.NotReady && (status == DriverApi.Success ? true : throw driver.Failure(status, "Work queued on the GPU (cuEventQuery)"));
            }
        }
    }

    public override void Wait()
    {
        using (_handle.Context.Enter())
            _handle.Context.Driver.Check(_handle.Context.Driver.EventSynchronize(Value), "Work queued on the GPU (cuEventSynchronize)");
    }

    public override void Dispose() => _handle.Dispose();
}
