using Compactor.Native.Gpu;

namespace Compactor.Native.Cuda;

/// <summary>
/// Work that a <see cref="GpuBackend"/> queued once, to be queued again with one call: all launches of a layer's compression, say. It reads and writes the addresses it was captured
/// with, and keeps what the captured action refers to: plans, sketches and rotations live as long as the graph. Dispose of it before the backend, and of the memory it uses after it.
/// </summary>
public sealed unsafe class CudaGraph : IDisposable
{
    /// <summary>Calls that cannot be captured are refused on the capturing thread alone; other threads go on allocating and waiting.</summary>
    private const int ThreadLocal = 1;

    private const int Unjoined = 904;

    private readonly CudaStream _stream;
    private readonly GraphHandle _handle;

    // What a backend keeps of a plan on the device goes with the plan.
    private Action? _work;

    private CudaGraph(CudaStream stream, GraphHandle handle, Action work) => (_stream, _handle, _work) = (stream, handle, work);

    /// <summary>Captures what an action queues on a stream, and on those that wait for it and are joined again.</summary>
    /// <exception cref="CompactorException">The driver is older than 11.4, or something was called that cannot be captured.</exception>
    internal static CudaGraph Capture(CudaStream stream, Action work)
    {
        var (context, driver) = (stream.Context, stream.Context.Driver);
        if (driver.GraphInstantiate == null)
            throw CompactorException.Unsupported($"The driver serves CUDA {driver.Version}; graphs need 11.4 or later. Update the driver, or queue the layer without a graph.");
        using (context.Enter())
            driver.Check(driver.StreamBeginCapture(stream.Value, ThreadLocal), "Capturing a graph (cuStreamBeginCapture)");
        nint graph = 0, executable = 0;
        try
        {
            work();
        }
        catch
        {
            // The stream leaves the capture, whatever became of it; the first failure is the one to tell.
            using (context.Enter())
                if (driver.StreamEndCapture(stream.Value, &graph) == DriverApi.Success && graph != 0)
                    driver.GraphDestroy(graph);
            throw;
        }
        using (context.Enter())
        {
            int status = driver.StreamEndCapture(stream.Value, &graph);
            if (status != DriverApi.Success)
                throw driver.Failure(status, "Capturing a graph (cuStreamEndCapture)", status == Unjoined ? " Work on a side stream has to be joined before the capture ends: call Join last." : "");
            status = driver.GraphInstantiate(&executable, graph, 0);
            driver.GraphDestroy(graph);
            driver.Check(status, "Making a graph that can be launched (cuGraphInstantiate)");
        }
        return new CudaGraph(stream, new GraphHandle(context, executable), work);
    }

    /// <summary>
    /// Queues the work on the stream it was captured from: the caller's, where the backend has one. With <see cref="CudaOptions.SideStream"/>, work that is queued beside it and not captured
    /// has to be joined first (<see cref="KvBackend.Join"/>).
    /// </summary>
    /// <exception cref="CompactorException">The driver refuses the launch.</exception>
    public void Launch()
    {
        ObjectDisposedException.ThrowIf(_handle.IsClosed, this);
        using (_handle.Context.Enter())
            _handle.Context.Driver.Check(_handle.Context.Driver.GraphLaunch(_handle.Value, _stream.Value), "Launching a graph (cuGraphLaunch)");
    }

    /// <summary>Gives the graph back; launches that are queued go on.</summary>
    public void Dispose()
    {
        _handle.Dispose();
        _work = null;
    }
}
