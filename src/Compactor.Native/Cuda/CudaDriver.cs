using System.Collections.Concurrent;
using System.Collections.Immutable;
using System.Diagnostics.CodeAnalysis;
using Compactor.Native.Gpu;

namespace Compactor.Native.Cuda;

/// <summary>The GPU backend's seam on a CUDA device.</summary>
internal sealed unsafe class CudaDriver : GpuDriver
{
    private const int PoolReleaseThreshold = 4;

    private readonly CudaContext _context;
    private readonly DriverApi _driver;
    private readonly CudaMemory _memory;
    private readonly KernelLibrary _library;
    private readonly Version _version;
    private readonly ConcurrentDictionary<string, Lazy<ModuleHandle>> _modules = [];
    private readonly ConcurrentDictionary<KernelVariant, Lazy<CudaKernel>> _kernels = [];
    private readonly ConcurrentDictionary<KernelVariant, Lazy<bool>> _specific = [];
    private readonly Action<string> _announce;
    private ImmutableSortedSet<Version> _compilers = [];

    private CudaDriver(CudaContext context, KernelLibrary library, Version version, CudaOptions options)
    {
        (_context, _driver, _library, _version) = (context, context.Driver, library, version);
        Limits = context.Limits with { HopperKernels = options.HopperKernels && context.Limits.Architecture == KernelLibrary.SpecificArchitecture };
        _announce = options.Announce ?? (_ => { });
        _memory = new CudaMemory(context);
        if (!context.HasMemoryPools || _driver.DeviceGetDefaultMemPool == null || _driver.MemPoolSetAttribute == null)
            return;
        // What the driver's pool gets back stays there, so that taking it again costs no call to the system.
        nint pool = 0;
        ulong everything = ulong.MaxValue;
        _driver.Check(_driver.DeviceGetDefaultMemPool(&pool, context.Device), "cuDeviceGetDefaultMemPool");
        _driver.Check(_driver.MemPoolSetAttribute(pool, PoolReleaseThreshold, &everything), "cuMemPoolSetAttribute");
    }

    /// <summary>Opens a device.</summary>
    /// <exception cref="CompactorException">There is no driver or device, or it is too old; the message says where the driver was looked for.</exception>
    public static CudaDriver Open(CudaOptions options)
    {
        var search = LibrarySearch.Driver(options.Search);
        if (search.Found is not { } found)
            throw new CompactorException(CompactorStatus.NoDevice,
                $"No CUDA driver was found. Looked at: {string.Join("; ", search.Candidates.Select(c => c.Reason is null ? c.Place : $"{c.Place} ({c.Reason})"))}.");
        var driver = new DriverApi(found.Place);
        var version = driver.Version;
        if (version < new Version(11, 2))
            throw new CompactorException(CompactorStatus.NoDevice, $"The driver {found.Place} serves CUDA {version}; 11.2 or later is needed. Update the driver.");
        var context = new CudaContext(driver, options);
        try
        {
            var announce = options.Announce ?? (_ => { });
            string? folder = options.CacheFolder ?? KernelCache.DefaultFolder(options.Search.Variable);
            var cache = new KernelCache(string.IsNullOrEmpty(folder) ? null : folder, options.KernelFolders, announce);
            var library = new KernelLibrary(context.Limits.Architecture, version, cache, () => KernelLibrary.OpenNvrtc(LibrarySearch.Nvrtc(options.Search), version));
            return new CudaDriver(context, library, version, options);
        }
        catch
        {
            context.Dispose();
            throw;
        }
    }

    public override string Description =>
        $"{_context.Name}, compute capability {Limits.Architecture / 10}.{Limits.Architecture % 10}, {Limits.Multiprocessors} multiprocessors, {_context.TotalMemory >> 30} GiB, driver CUDA {_version}";

    public override string Compiler => _compilers.IsEmpty ? "" : $"NVRTC {string.Join(", ", _compilers)}";

    public override GpuLimits Limits { get; }

    public override GpuKernel Load(KernelVariant variant) => Once(_kernels, variant, () => new CudaKernel(_context, Once(_modules, variant.Module, () => LoadModule(variant)), variant));

    public override bool Has(KernelVariant variant) => !variant.IsSpecific || _specific.GetOrAdd(variant, asked => new Lazy<bool>(() =>
    {
        bool has = _library.HasSpecific(asked, out string reason);
        if (!has)
            _announce($"{asked.Entry} is not used: {reason}.");
        return has;
    })).Value;

    public override GpuStream CreateStream() => CudaStream.Create(_context);

    /// <summary>The caller's stream.</summary>
    public GpuStream Adopt(nint stream) => CudaStream.Adopt(_context, stream);

    /// <inheritdoc/>
    /// <exception cref="CompactorException">There is not enough, or the stream is being captured: a graph would use the memory after it has been given back.</exception>
    public override nint Allocate(long bytes, GpuStream stream) => !((CudaStream)stream).IsCapturing ? _memory.Allocate(bytes, Value(stream))
        : throw CompactorException.Argument($"{bytes} bytes of device memory are asked for while the stream is being captured into a graph; prepare the plan, or run the operation once, before the capture begins.");

    public override void Free(nint address, GpuStream stream) => _memory.Free(address, Value(stream));

    public override nint AllocateHost(long bytes) => _memory.AllocateHost(bytes);

    public override void FreeHost(nint address) => _memory.FreeHost(address);

    public override void CopyToDevice(nint source, nint destination, long bytes, GpuStream stream)
    {
        using (_context.Enter())
            _driver.Check(_driver.MemcpyHtoDAsync(destination, source, (nuint)bytes, Value(stream)), $"Copying {bytes} bytes to the device");
    }

    public override void CopyToHost(nint source, nint destination, long bytes, GpuStream stream)
    {
        using (_context.Enter())
            _driver.Check(_driver.MemcpyDtoHAsync(destination, source, (nuint)bytes, Value(stream)), $"Copying {bytes} bytes from the device");
    }

    public override void Fill(nint address, byte value, long bytes, GpuStream stream)
    {
        using (_context.Enter())
            _driver.Check(_driver.MemsetD8Async(address, value, (nuint)bytes, Value(stream)), $"Filling {bytes} bytes on the device");
    }

    public override void Launch(GpuKernel kernel, LaunchShape shape, void* parameters, int parameterBytes, GpuStream stream)
    {
        using (_context.Enter())
        {
            int status = _driver.LaunchKernel(((CudaKernel)kernel).Function, (uint)shape.GridX, (uint)shape.GridY, (uint)shape.GridZ, (uint)shape.Threads, 1, 1,
                (uint)shape.SharedBytes, Value(stream), &parameters, null);
            if (status != DriverApi.Success)
                throw _driver.Failure(status, $"Launching {kernel.Variant}, {shape}");
        }
    }

    public override BackendEvent Record(GpuStream stream) => CudaEvent.Record(_context, (CudaStream)stream);

    public override void Wait(GpuStream stream, BackendEvent recorded)
    {
        using (_context.Enter())
            _driver.Check(_driver.StreamWaitEvent(Value(stream), ((CudaEvent)recorded).Value, 0), "cuStreamWaitEvent");
    }

    public override void Dispose()
    {
        try
        {
            _memory.Dispose();
        }
        finally
        {
            foreach (var module in _modules.Values)
                if (module.IsValueCreated)
                    module.Value.Dispose();
            _context.Dispose();
        }
    }

    private static nint Value(GpuStream stream) => ((CudaStream)stream).Value;

    /// <summary>What is made once; a failure is not kept.</summary>
    private static TValue Once<TKey, [DynamicallyAccessedMembers(DynamicallyAccessedMemberTypes.PublicParameterlessConstructor)] TValue>(ConcurrentDictionary<TKey, Lazy<TValue>> made, TKey key, Func<TValue> make) where TKey : notnull
    {
        var entry = made.GetOrAdd(key, _ => new Lazy<TValue>(make));
        try
        {
            return entry.Value;
        }
        catch
        {
            made.TryRemove(KeyValuePair.Create(key, entry));
            throw;
        }
    }

    private ModuleHandle LoadModule(KernelVariant variant)
    {
        var code = _library.Get(variant);
        nint module = 0;
        using (_context.Enter())
            fixed (byte* image = code.Image)
            {
                int status = _driver.ModuleLoadDataEx(&module, image, 0, null, null);
                if (status != DriverApi.Success)
                    throw _driver.Failure(status, $"Loading {variant}, compiled by NVRTC {code.Nvrtc} for {code.Target.Name}, into a driver that serves CUDA {_version}", status switch
                    {
                        DriverApi.UnsupportedPtxVersion or DriverApi.InvalidPtx => $" The PTX is too new for the driver: update it to CUDA {code.Nvrtc} or later, or use NVRTC {_version} or older.",
                        DriverApi.NoBinaryForGpu or 200 => $" The driver does not take code of this NVRTC: update it to CUDA {code.Nvrtc} or later, or use NVRTC {_version} or older.",
                        _ => "",
                    });
            }
        ImmutableInterlocked.Update(ref _compilers, (set, version) => set.Add(version), code.Nvrtc);
        return new ModuleHandle(_context, module);
    }
}
