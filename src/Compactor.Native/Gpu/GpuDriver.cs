namespace Compactor.Native.Gpu;

/// <summary>
/// What the GPU backend stands on: compiling kernels, memory, copies, launches, streams and events of one device. Device addresses are plain numbers; work is queued
/// on a stream in the order of the calls and may run later. Members may be called from several threads at once.
/// </summary>
internal abstract unsafe class GpuDriver : IDisposable
{
    /// <summary>What it runs on, for people.</summary>
    public abstract string Description { get; }

    /// <summary>What compiled the kernels that were loaded so far, here and now or ahead of time, with its versions; empty where none was.</summary>
    public virtual string Compiler => "";

    /// <summary>What the device offers to a launch.</summary>
    public abstract GpuLimits Limits { get; }

    /// <summary>Compiles a variant, or finds it compiled. The kernel lives as long as the driver.</summary>
    /// <exception cref="CompactorException">It does not compile; the message carries the compiler's log.</exception>
    public abstract GpuKernel Load(KernelVariant variant);

    /// <summary>Whether a variant can be had; where not, whoever opened the driver has been told why, and one that asks less of the device must do.</summary>
    public virtual bool Has(KernelVariant variant) => true;

    /// <summary>A new stream that waits for no other.</summary>
    public abstract GpuStream CreateStream();

    /// <summary>Device memory on a boundary of 256 bytes, usable by what is queued on the stream from now on. Its content is undefined.</summary>
    /// <param name="bytes">1 or more.</param>
    /// <param name="stream">The stream it is first used on.</param>
    /// <exception cref="CompactorException">There is not enough.</exception>
    public abstract nint Allocate(long bytes, GpuStream stream);

    /// <summary>Gives device memory back once what is queued on the stream now is done.</summary>
    public abstract void Free(nint address, GpuStream stream);

    /// <summary>Page-locked host memory, which copies may read and write while the host goes on.</summary>
    /// <param name="bytes">1 or more.</param>
    public abstract nint AllocateHost(long bytes);

    /// <summary>Gives page-locked memory back; no copy may be using it.</summary>
    public abstract void FreeHost(nint address);

    /// <summary>Queues a copy from page-locked host memory to device memory.</summary>
    public abstract void CopyToDevice(nint source, nint destination, long bytes, GpuStream stream);

    /// <summary>Queues a copy from device memory to page-locked host memory.</summary>
    public abstract void CopyToHost(nint source, nint destination, long bytes, GpuStream stream);

    /// <summary>Queues filling device memory with one byte.</summary>
    public abstract void Fill(nint address, byte value, long bytes, GpuStream stream);

    /// <summary>Queues a kernel.</summary>
    /// <param name="kernel">From <see cref="Load"/> of this driver.</param>
    /// <param name="shape">Grid, block and dynamic shared memory.</param>
    /// <param name="parameters">The kernel's one parameter, a struct passed by value; copied before this returns.</param>
    /// <param name="parameterBytes">Its size.</param>
    /// <param name="stream">Where to queue.</param>
    /// <exception cref="CompactorException">The launch is refused; the message names kernel and shape.</exception>
    public abstract void Launch(GpuKernel kernel, LaunchShape shape, void* parameters, int parameterBytes, GpuStream stream);

    /// <summary>Queues a kernel with its parameter struct.</summary>
    public void Launch<T>(GpuKernel kernel, LaunchShape shape, in T parameters, GpuStream stream) where T : unmanaged
    {
        fixed (T* p = &parameters)
            Launch(kernel, shape, p, sizeof(T), stream);
    }

    /// <summary>Says that what is queued from now on touches the slices of a layout in a piece of scratch memory, whose content is undefined, and nothing between them. For devices that check.</summary>
    public virtual void Carve(nint address, long bytes, WorkspaceLayout layout, GpuStream stream) { }

    /// <summary>An event that passes when all that is queued on the stream now is done.</summary>
    public abstract BackendEvent Record(GpuStream stream);

    /// <summary>What is queued on the stream from now on waits for the event, without the host.</summary>
    /// <param name="stream">The stream that waits.</param>
    /// <param name="recorded">From <see cref="Record"/> of this driver.</param>
    public abstract void Wait(GpuStream stream, BackendEvent recorded);

    /// <summary>Releases everything; work queued is done first.</summary>
    public abstract void Dispose();
}

/// <summary>A queue of device work.</summary>
internal abstract class GpuStream : IDisposable
{
    /// <summary>Blocks the calling thread until everything queued is done.</summary>
    /// <exception cref="CompactorException">Work queued has failed.</exception>
    public abstract void Synchronize();

    public abstract void Dispose();
}

/// <summary>A kernel that can be launched.</summary>
internal abstract class GpuKernel(KernelVariant variant)
{
    public KernelVariant Variant => variant;

    /// <summary>Registers a thread uses.</summary>
    public abstract int Registers { get; }

    /// <summary>Blocks that can be resident on one multiprocessor.</summary>
    /// <param name="threads">Threads of a block.</param>
    /// <param name="sharedBytes">Dynamic shared memory of a block.</param>
    public abstract int BlocksPerMultiprocessor(int threads, int sharedBytes);
}

/// <summary>Shape of a launch: blocks in the grid, threads in a block, dynamic shared memory of a block in bytes.</summary>
internal readonly record struct LaunchShape(int GridX, int GridY, int GridZ, int Threads, int SharedBytes)
{
    public LaunchShape(int gridX, int threads, int sharedBytes) : this(gridX, 1, 1, threads, sharedBytes)
    {
    }

    public override string ToString() => $"grid {GridX} x {GridY} x {GridZ}, {Threads} threads, {SharedBytes} bytes of shared memory";
}

/// <summary>What a device offers.</summary>
/// <param name="Architecture">Compute capability, major · 10 + minor: 80, 86, 89, 90.</param>
/// <param name="Multiprocessors">Streaming multiprocessors.</param>
/// <param name="SharedBytesPerBlock">Most dynamic shared memory of a block.</param>
/// <param name="SharedBytesPerMultiprocessor">Shared memory of a multiprocessor.</param>
/// <param name="HopperKernels">Whether kernels written for sm_90a are used where there is one (<see cref="Cuda.CudaOptions.HopperKernels"/>).</param>
internal readonly record struct GpuLimits(int Architecture, int Multiprocessors, int SharedBytesPerBlock, int SharedBytesPerMultiprocessor, bool HopperKernels = false);
