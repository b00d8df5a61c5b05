using System.Runtime.InteropServices;

namespace Compactor.Native.Cuda;

/// <summary>A context work is done in: a device's primary context, retained, or one of the caller's. It is made current for the length of a call, and what was current before is current after.</summary>
internal sealed unsafe class CudaContext : SafeHandle
{
    private const int ComputeCapabilityMajor = 75, ComputeCapabilityMinor = 76, Multiprocessors = 16, SharedBytesPerMultiprocessor = 81, SharedBytesPerBlockOptIn = 97, MemoryPools = 115;

    private readonly bool _adopted;

    /// <exception cref="CompactorException">There is no such device or context.</exception>
    public CudaContext(DriverApi driver, CudaOptions options) : base(0, ownsHandle: true)
    {
        Driver = driver;
        driver.Check(driver.Init(0), "cuInit");
        if (options.Context != 0)
        {
            (_adopted, handle) = (true, options.Context);
            int device = 0;
            using (Enter())
                driver.Check(driver.CtxGetDevice(&device), "cuCtxGetDevice of the given context");
            Device = device;
        }
        else
        {
            int count = 0, device = 0;
            driver.Check(driver.DeviceGetCount(&count), "cuDeviceGetCount");
            if (options.Device < 0 || options.Device >= count)
                throw new CompactorException(CompactorStatus.NoDevice, $"CUDA device {options.Device} does not exist; the driver shows {count} device{(count == 1 ? "" : "s")} (CUDA_VISIBLE_DEVICES hides others).");
            driver.Check(driver.DeviceGet(&device, options.Device), $"cuDeviceGet of device {options.Device}");
            Device = device;
            nint context = 0;
            driver.Check(driver.DevicePrimaryCtxRetain(&context, device), $"cuDevicePrimaryCtxRetain of device {options.Device}");
            SetHandle(context);
        }
        byte* name = stackalloc byte[256];
        driver.Check(driver.DeviceGetName(name, 256, Device), "cuDeviceGetName");
        Name = Marshal.PtrToStringUTF8((nint)name)!;
        Limits = new Gpu.GpuLimits(10 * Attribute(ComputeCapabilityMajor) + Attribute(ComputeCapabilityMinor), Attribute(Multiprocessors),
            Attribute(SharedBytesPerBlockOptIn), Attribute(SharedBytesPerMultiprocessor));
        HasMemoryPools = driver.MemAllocAsync != null && driver.MemFreeAsync != null && driver.Version >= new Version(11, 2) && Attribute(MemoryPools) != 0;
    }

    public DriverApi Driver { get; }

    public int Device { get; }

    /// <summary>The device's name.</summary>
    public string Name { get; }

    public Gpu.GpuLimits Limits { get; }

    /// <summary>Whether memory may be allocated and freed in the order of a stream.</summary>
    public bool HasMemoryPools { get; }

    public override bool IsInvalid => handle == 0;

    /// <summary>Makes the context current until the result is disposed.</summary>
    public Scope Enter()
    {
        Driver.Check(Driver.CtxPushCurrent(handle), "cuCtxPushCurrent");
        return new Scope(Driver);
    }

    /// <summary>Total memory of the device in bytes.</summary>
    public long TotalMemory
    {
        get
        {
            nuint bytes = 0;
            Driver.Check(Driver.DeviceTotalMem(&bytes, Device), "cuDeviceTotalMem");
            return (long)bytes;
        }
    }

    protected override bool ReleaseHandle() => _adopted || Driver.DevicePrimaryCtxRelease(Device) is DriverApi.Success or DriverApi.Deinitialized;

    private int Attribute(int attribute)
    {
        int value = 0;
        Driver.Check(Driver.DeviceGetAttribute(&value, attribute, Device), $"cuDeviceGetAttribute {attribute} of device {Device}");
        return value;
    }

    /// <summary>A call during which the context is current.</summary>
    public readonly ref struct Scope(DriverApi driver)
    {
        public void Dispose()
        {
            nint context = 0;
            driver.CtxPopCurrent(&context);
        }
    }
}
