using System.Runtime.ExceptionServices;
using Compactor.Native.Cuda;

namespace Compactor.Native.Gpu;

/// <summary>
/// The operations on a GPU. All are queued on one stream, the caller's, one beside it, or the backend's own, and return at once; what scoring finds wrong with the data is told by
/// <see cref="KvBackend.TakeStatus"/>. Addresses in tensors and caches are device addresses.
/// </summary>
public sealed unsafe partial class GpuBackend : KvBackend
{
    private readonly GpuDriver _driver;
    private readonly GpuStream _stream;
    private readonly GpuStream? _callers;
    private readonly Uploads _uploads;
    private readonly Workspace _workspace, _counters;

    /// <param name="driver">The device.</param>
    /// <param name="stream">Where operations are queued.</param>
    /// <param name="callers">The caller's stream they run beside; null for none.</param>
    internal GpuBackend(GpuDriver driver, GpuStream stream, GpuStream? callers = null)
    {
        (_driver, _stream, _callers) = (driver, stream, callers);
        _uploads = new Uploads(driver, stream);
        _plans = new(MakePlan);
        _extendPlans = new(plan => new DeviceExtendPlan(this, plan));
        _sketches = new(UploadSketch);
        _rotations = new(rotary => new RotationRows(this, rotary));
        (_workspace, _counters) = (new(driver, stream, zeroed: false), new(driver, stream, zeroed: true));
        _status = Allocate<ulong>(StatusWords);
        Clear(_status.View);
    }

    /// <summary>Opens a CUDA device.</summary>
    /// <param name="options">Device, context, stream, and where compiled kernels are; null for device 0.</param>
    /// <exception cref="CompactorException">There is no device that kernels run on; the message says what was looked for.</exception>
    public static GpuBackend Open(CudaOptions? options = null)
    {
        options ??= new CudaOptions();
        if (options.SideStream && options.Stream == 0)
            throw CompactorException.Argument("SideStream is set, but Stream is 0; give the stream to work beside.");
        var driver = CudaDriver.Open(options);
        try
        {
            // The smallest kernel: without code for this device, or a compiler for it, nothing else would load either.
            driver.Load(RowMoves.Deal(128, ElementType.BFloat16));
            var callers = options.Stream == 0 ? null : driver.Adopt(options.Stream);
            return callers is null || options.SideStream ? new GpuBackend(driver, driver.CreateStream(), callers) : new GpuBackend(driver, callers);
        }
        catch
        {
            driver.Dispose();
            throw;
        }
    }

    /// <inheritdoc/>
    public override string Name => "cuda";

    /// <inheritdoc/>
    public override string Description => _driver.Description;

    /// <summary>What compiled the kernels that were loaded so far, here and now or ahead of time: <c>NVRTC 13.0</c>, or several versions where kept kernels are of another.</summary>
    public string Compiler => _driver.Compiler;

    /// <inheritdoc/>
    public override BackendBuffer<T> Allocate<T>(long length) => new GpuBuffer<T>(_driver, _stream, length);

    /// <inheritdoc/>
    public override BackendBuffer<T> AllocateHost<T>(long length) => new PinnedBuffer<T>(_driver, length);

    /// <inheritdoc/>
    public override void Upload<T>(ReadOnlySpan<T> source, BufferView<T> destination)
    {
        RequireEqual(source.Length, destination.Length);
        Follow();
        fixed (T* from = source)
            _uploads.Copy((nint)from, destination.Address, (long)source.Length * sizeof(T));
    }

    /// <inheritdoc/>
    public override void Download<T>(BufferView<T> source, BufferView<T> destination)
    {
        RequireEqual(source.Length, destination.Length);
        Follow();
        if (source.Length > 0)
            _driver.CopyToHost(source.Address, destination.Address, source.Length * sizeof(T), _stream);
    }

    /// <inheritdoc/>
    public override BackendEvent Record() => _driver.Record(_stream);

    /// <summary>What is queued here from now on waits for what is queued on a stream of the caller: inputs of a backend that works on a stream of its own, beside the caller's work.</summary>
    /// <param name="stream">A <c>CUstream</c>.</param>
    public void StartAfter(nint stream)
    {
        using var callers = Adopt(stream);
        StartAfter(callers);
    }

    /// <summary>What is queued on a stream of the caller from now on waits for what is queued here.</summary>
    /// <param name="stream">A <c>CUstream</c>.</param>
    public void FinishBefore(nint stream)
    {
        using var callers = Adopt(stream);
        FinishBefore(callers);
    }

    /// <inheritdoc/>
    public override void Join()
    {
        if (_callers is not null)
            FinishBefore(_callers);
    }

    internal void StartAfter(GpuStream callers)
    {
        using var reached = _driver.Record(callers);
        _driver.Wait(_stream, reached);
    }

    internal void FinishBefore(GpuStream callers)
    {
        using var done = _driver.Record(_stream);
        _driver.Wait(callers, done);
    }

    /// <summary>Waits until everything queued is done, and releases the backend's memory, stream and kernels. Buffers must be disposed before.</summary>
    /// <exception cref="CompactorException">The device has failed; what could be released is, all the same.</exception>
    public override void Dispose()
    {
        Exception? first = null;
        Release(_stream.Synchronize);
        foreach (var held in (IDisposable?[])[_uploads, _plans, _extendPlans, _sketches, _rotations, _status, _workspace, _counters, _stream, _callers, _driver])
            if (held is not null)
                Release(held.Dispose);
        if (first is not null)
            ExceptionDispatchInfo.Throw(first);

        void Release(Action release)
        {
            try
            {
                release();
            }
            catch (CompactorException failure)
            {
                first ??= failure;
            }
        }
    }

    /// <summary>What an operation queues waits for what the caller's stream holds.</summary>
    private void Follow()
    {
        if (_callers is not null)
            StartAfter(_callers);
    }

    private GpuStream Adopt(nint stream) => _driver is CudaDriver cuda ? cuda.Adopt(stream) : throw new InvalidOperationException("Only a CUDA device has streams of its callers.");

    private static void RequireEqual(long source, long destination)
    {
        if (source != destination)
            throw CompactorException.Argument($"{source} elements cannot be copied to {destination}.");
    }

    private void Launch<T>(KernelVariant variant, LaunchShape shape, in T parameters) where T : unmanaged
    {
        if (shape.GridX > 0)
            _driver.Launch(_driver.Load(variant), shape, parameters, _stream);
    }
}
