using Compactor.Native;
using Compactor.Native.Cuda;
using Compactor.Native.Gpu;

namespace Compactor.Gpu.Bench;

/// <summary>A CUDA device: times between two events, operations captured in graphs.</summary>
internal sealed unsafe class CudaBenchDevice : BenchDevice
{
    private const int L2CacheSize = 38;

    private readonly CudaStream _stream;
    private readonly CudaContext _context;
    private readonly DriverApi _driver;
    private readonly CuBlas? _blas;
    private readonly List<CudaGraph> _graphs = [];
    private readonly nint _start, _end;
    private readonly (string Name, string Value)[] _facts;

    public CudaBenchDevice(CudaOptions options)
    {
        var driver = CudaDriver.Open(options);
        _stream = (CudaStream)driver.CreateStream();
        Backend = new GpuBackend(driver, _stream);
        if (driver.Limits.HopperKernels)
        {
            var portable = CudaDriver.Open(options with { HopperKernels = false });
            Portable = new GpuBackend(portable, portable.Adopt(_stream.Value));
        }
        (_context, _driver) = (_stream.Context, _stream.Context.Driver);
        int cache = 0;
        nint start = 0, end = 0;
        using (_context.Enter())
        {
            _driver.Check(_driver.DeviceGetAttribute(&cache, L2CacheSize, _context.Device), "cuDeviceGetAttribute of the L2 cache");
            _driver.Check(_driver.EventCreate(&start, 0), "cuEventCreate");
            _driver.Check(_driver.EventCreate(&end, 0), "cuEventCreate");
            _blas = CuBlas.Open(options.Search, _stream.Value, out string? reason);
            NoMatrixProduct = reason;
        }
        (CacheBytes, _start, _end) = (cache, start, end);
        string module = "/proc/driver/nvidia/version";
        _facts =
        [
            ("device", driver.Description),
            ("driver", File.Exists(module) ? File.ReadLines(module).First() : $"CUDA {_driver.Version}"),
            ("nvrtc", LibrarySearch.Nvrtc(options.Search).Found is { } nvrtc ? $"{nvrtc.Version} ({nvrtc.Place})" : "none; compiled kernels that were shipped"),
            ("matrix product", _blas?.Description ?? NoMatrixProduct!),
        ];
    }

    public override GpuBackend Backend { get; }

    public override GpuBackend? Portable { get; }

    /// <summary>What compiled the kernels, which kept ones may have another version of than the library that is found, once there are any.</summary>
    public override IReadOnlyList<(string Name, string Value)> Facts => Backend.Compiler is { Length: > 0 } compiler ? [.. _facts, ("compiler", compiler)] : _facts;

    public override long CacheBytes { get; }

    public override long FreeBytes
    {
        get
        {
            nuint free = 0, total = 0;
            using (_context.Enter())
                _driver.Check(_driver.MemGetInfo(&free, &total), "cuMemGetInfo");
            return (long)free;
        }
    }

    public override string? NoMatrixProduct { get; }

    public override void Copy(nint from, nint to, long bytes)
    {
        using (_context.Enter())
            _driver.Check(_driver.MemcpyDtoDAsync(to, from, (nuint)bytes, _stream.Value), $"Copying {bytes} bytes on the device");
    }

    public override void MultiplyMatrices(nint a, nint b, nint c, int n)
    {
        using (_context.Enter())
            _blas!.Multiply(a, b, c, n);
    }

    public override Action Repeatable(GpuBackend backend, Action work)
    {
        var graph = backend.Capture(work);
        _graphs.Add(graph);
        return graph.Launch;
    }

    public override double Microseconds(Action work)
    {
        using (_context.Enter())
            _driver.Check(_driver.EventRecord(_start, _stream.Value), "cuEventRecord");
        work();
        float milliseconds = 0;
        using (_context.Enter())
        {
            _driver.Check(_driver.EventRecord(_end, _stream.Value), "cuEventRecord");
            _driver.Check(_driver.EventSynchronize(_end), "Work that is timed (cuEventSynchronize)");
            _driver.Check(_driver.EventElapsedTime(&milliseconds, _start, _end), "cuEventElapsedTime");
        }
        return milliseconds > 0 ? 1000.0 * milliseconds
            : throw new CompactorException(CompactorStatus.DeviceFailed, $"The driver says that work took {milliseconds} ms; nothing can be said of a device that has no clock.");
    }

    public override void Dispose()
    {
        _graphs.ForEach(graph => graph.Dispose());
        using (_context.Enter())
        {
            _blas?.Dispose();
            _driver.EventDestroy(_start);
            _driver.EventDestroy(_end);
        }
        Portable?.Dispose();
        Backend.Dispose();
    }
}
