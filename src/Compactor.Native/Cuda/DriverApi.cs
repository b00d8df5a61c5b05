using System.Runtime.InteropServices;

namespace Compactor.Native.Cuda;

/// <summary>
/// The CUDA driver's entry points that the library uses, as function pointers under the names of the ABI they are declared for, so that any driver from 11.2 on serves and
/// several may be loaded. Device pointers, contexts, modules, functions, streams and events are pointer-sized numbers.
/// </summary>
internal sealed unsafe class DriverApi
{
    public const int Success = 0, OutOfMemory = 2, NotInitialized = 3, Deinitialized = 4, NoBinaryForGpu = 209, InvalidPtx = 218, UnsupportedPtxVersion = 222, NotReady = 600;

    private readonly string _place;
    private readonly delegate* unmanaged<int, byte**, int> _errorName, _errorString;

    public readonly delegate* unmanaged<uint, int> Init;
    public readonly delegate* unmanaged<int*, int> DriverGetVersion, DeviceGetCount, CtxGetDevice;
    public readonly delegate* unmanaged<int*, int, int> DeviceGet;
    public readonly delegate* unmanaged<byte*, int, int, int> DeviceGetName;
    public readonly delegate* unmanaged<int*, int, int, int> DeviceGetAttribute;
    public readonly delegate* unmanaged<nuint*, int, int> DeviceTotalMem;
    public readonly delegate* unmanaged<nint*, int, int> DevicePrimaryCtxRetain, DeviceGetDefaultMemPool;
    public readonly delegate* unmanaged<int, int> DevicePrimaryCtxRelease;
    public readonly delegate* unmanaged<nint, int> CtxPushCurrent;
    public readonly delegate* unmanaged<nint*, int> CtxPopCurrent;
    public readonly delegate* unmanaged<nint*, void*, uint, int*, void**, int> ModuleLoadDataEx;
    public readonly delegate* unmanaged<nint, int> ModuleUnload, StreamDestroy, StreamSynchronize, EventDestroy, EventQuery, EventSynchronize, MemFreeHost, MemFree;
    public readonly delegate* unmanaged<nint*, nint, byte*, int> ModuleGetFunction;
    public readonly delegate* unmanaged<int*, int, nint, int> FuncGetAttribute;
    public readonly delegate* unmanaged<nint, int, int, int> FuncSetAttribute;
    public readonly delegate* unmanaged<int*, nint, int, nuint, int> OccupancyMaxActiveBlocksPerMultiprocessor;
    public readonly delegate* unmanaged<nint, uint, uint, uint, uint, uint, uint, uint, nint, void**, void**, int> LaunchKernel;
    public readonly delegate* unmanaged<nint*, uint, int> StreamCreate, EventCreate;
    public readonly delegate* unmanaged<nint, nint, uint, int> StreamWaitEvent;
    public readonly delegate* unmanaged<nint, int*, int> StreamIsCapturing;
    public readonly delegate* unmanaged<nint, nint, int> EventRecord;
    public readonly delegate* unmanaged<float*, nint, nint, int> EventElapsedTime;
    public readonly delegate* unmanaged<nint*, nuint, int> MemAlloc, MemAllocHost;
    public readonly delegate* unmanaged<nint*, nuint, nint, int> MemAllocAsync;
    public readonly delegate* unmanaged<nint, nint, int> MemFreeAsync;
    public readonly delegate* unmanaged<nuint*, nuint*, int> MemGetInfo;
    public readonly delegate* unmanaged<nint, nint, nuint, nint, int> MemcpyHtoDAsync, MemcpyDtoHAsync, MemcpyDtoDAsync;
    public readonly delegate* unmanaged<nint, byte, nuint, nint, int> MemsetD8Async;
    public readonly delegate* unmanaged<nint, int, void*, int> MemPoolSetAttribute;
    public readonly delegate* unmanaged<nint, int, int> StreamBeginCapture;
    public readonly delegate* unmanaged<nint, nint*, int> StreamEndCapture;
    public readonly delegate* unmanaged<nint*, nint, ulong, int> GraphInstantiate;
    public readonly delegate* unmanaged<nint, nint, int> GraphLaunch;
    public readonly delegate* unmanaged<nint, int> GraphDestroy, GraphExecDestroy;

    /// <summary>Loads the driver and resolves its entry points; CUDA is not initialised.</summary>
    /// <exception cref="CompactorException">It does not load, or lacks an entry point.</exception>
    public DriverApi(string place)
    {
        _place = place;
        if (!NativeLibrary.TryLoad(place, out nint library))
            throw new CompactorException(CompactorStatus.NoDevice, $"The CUDA driver {place} does not load.");
        var exports = new NativeExports(library, place);
        _errorName = (delegate* unmanaged<int, byte**, int>)exports.Require("cuGetErrorName");
        _errorString = (delegate* unmanaged<int, byte**, int>)exports.Require("cuGetErrorString");
        Init = (delegate* unmanaged<uint, int>)exports.Require("cuInit");
        DriverGetVersion = (delegate* unmanaged<int*, int>)exports.Require("cuDriverGetVersion");
        DeviceGetCount = (delegate* unmanaged<int*, int>)exports.Require("cuDeviceGetCount");
        CtxGetDevice = (delegate* unmanaged<int*, int>)exports.Require("cuCtxGetDevice");
        DeviceGet = (delegate* unmanaged<int*, int, int>)exports.Require("cuDeviceGet");
        DeviceGetName = (delegate* unmanaged<byte*, int, int, int>)exports.Require("cuDeviceGetName");
        DeviceGetAttribute = (delegate* unmanaged<int*, int, int, int>)exports.Require("cuDeviceGetAttribute");
        DeviceTotalMem = (delegate* unmanaged<nuint*, int, int>)exports.Require("cuDeviceTotalMem_v2");
        DevicePrimaryCtxRetain = (delegate* unmanaged<nint*, int, int>)exports.Require("cuDevicePrimaryCtxRetain");
        DevicePrimaryCtxRelease = (delegate* unmanaged<int, int>)exports.Require("cuDevicePrimaryCtxRelease_v2");
        CtxPushCurrent = (delegate* unmanaged<nint, int>)exports.Require("cuCtxPushCurrent_v2");
        CtxPopCurrent = (delegate* unmanaged<nint*, int>)exports.Require("cuCtxPopCurrent_v2");
        ModuleLoadDataEx = (delegate* unmanaged<nint*, void*, uint, int*, void**, int>)exports.Require("cuModuleLoadDataEx");
        ModuleUnload = (delegate* unmanaged<nint, int>)exports.Require("cuModuleUnload");
        ModuleGetFunction = (delegate* unmanaged<nint*, nint, byte*, int>)exports.Require("cuModuleGetFunction");
        FuncGetAttribute = (delegate* unmanaged<int*, int, nint, int>)exports.Require("cuFuncGetAttribute");
        FuncSetAttribute = (delegate* unmanaged<nint, int, int, int>)exports.Require("cuFuncSetAttribute");
        OccupancyMaxActiveBlocksPerMultiprocessor = (delegate* unmanaged<int*, nint, int, nuint, int>)exports.Require("cuOccupancyMaxActiveBlocksPerMultiprocessor");
        LaunchKernel = (delegate* unmanaged<nint, uint, uint, uint, uint, uint, uint, uint, nint, void**, void**, int>)exports.Require("cuLaunchKernel");
        StreamCreate = (delegate* unmanaged<nint*, uint, int>)exports.Require("cuStreamCreate");
        StreamDestroy = (delegate* unmanaged<nint, int>)exports.Require("cuStreamDestroy_v2");
        StreamSynchronize = (delegate* unmanaged<nint, int>)exports.Require("cuStreamSynchronize");
        StreamWaitEvent = (delegate* unmanaged<nint, nint, uint, int>)exports.Require("cuStreamWaitEvent");
        StreamIsCapturing = (delegate* unmanaged<nint, int*, int>)exports.Require("cuStreamIsCapturing");
        EventCreate = (delegate* unmanaged<nint*, uint, int>)exports.Require("cuEventCreate");
        EventDestroy = (delegate* unmanaged<nint, int>)exports.Require("cuEventDestroy_v2");
        EventRecord = (delegate* unmanaged<nint, nint, int>)exports.Require("cuEventRecord");
        EventQuery = (delegate* unmanaged<nint, int>)exports.Require("cuEventQuery");
        EventSynchronize = (delegate* unmanaged<nint, int>)exports.Require("cuEventSynchronize");
        EventElapsedTime = (delegate* unmanaged<float*, nint, nint, int>)exports.Require("cuEventElapsedTime");
        MemAlloc = (delegate* unmanaged<nint*, nuint, int>)exports.Require("cuMemAlloc_v2");
        MemFree = (delegate* unmanaged<nint, int>)exports.Require("cuMemFree_v2");
        MemAllocHost = (delegate* unmanaged<nint*, nuint, int>)exports.Require("cuMemAllocHost_v2");
        MemFreeHost = (delegate* unmanaged<nint, int>)exports.Require("cuMemFreeHost");
        MemGetInfo = (delegate* unmanaged<nuint*, nuint*, int>)exports.Require("cuMemGetInfo_v2");
        MemcpyHtoDAsync = (delegate* unmanaged<nint, nint, nuint, nint, int>)exports.Require("cuMemcpyHtoDAsync_v2");
        MemcpyDtoHAsync = (delegate* unmanaged<nint, nint, nuint, nint, int>)exports.Require("cuMemcpyDtoHAsync_v2");
        MemcpyDtoDAsync = (delegate* unmanaged<nint, nint, nuint, nint, int>)exports.Require("cuMemcpyDtoDAsync_v2");
        MemsetD8Async = (delegate* unmanaged<nint, byte, nuint, nint, int>)exports.Require("cuMemsetD8Async");
        StreamBeginCapture = (delegate* unmanaged<nint, int, int>)exports.Require("cuStreamBeginCapture_v2");
        StreamEndCapture = (delegate* unmanaged<nint, nint*, int>)exports.Require("cuStreamEndCapture");
        GraphLaunch = (delegate* unmanaged<nint, nint, int>)exports.Require("cuGraphLaunch");
        GraphDestroy = (delegate* unmanaged<nint, int>)exports.Require("cuGraphDestroy");
        GraphExecDestroy = (delegate* unmanaged<nint, int>)exports.Require("cuGraphExecDestroy");
        // Came with 11.4.
        GraphInstantiate = (delegate* unmanaged<nint*, nint, ulong, int>)exports.Find("cuGraphInstantiateWithFlags");
        // Stream-ordered memory came with 11.2, and a device may lack it.
        MemAllocAsync = (delegate* unmanaged<nint*, nuint, nint, int>)exports.Find("cuMemAllocAsync");
        MemFreeAsync = (delegate* unmanaged<nint, nint, int>)exports.Find("cuMemFreeAsync");
        DeviceGetDefaultMemPool = (delegate* unmanaged<nint*, int, int>)exports.Find("cuDeviceGetDefaultMemPool");
        MemPoolSetAttribute = (delegate* unmanaged<nint, int, void*, int>)exports.Find("cuMemPoolSetAttribute");
    }

    /// <summary>CUDA version the driver serves.</summary>
    public Version Version
    {
        get
        {
            int version = 0;
            Check(DriverGetVersion(&version), "cuDriverGetVersion");
            return new Version(version / 1000, version % 1000 / 10);
        }
    }

    /// <summary>Throws unless a call succeeded.</summary>
    /// <param name="status">What the call returned.</param>
    /// <param name="call">The call, with what a person needs to know of its arguments.</param>
    /// <exception cref="CompactorException">The driver's name and text of the error.</exception>
    public void Check(int status, string call)
    {
        if (status != Success)
            throw Failure(status, call);
    }

    public CompactorException Failure(int status, string call, string advice = "") =>
        new(status == OutOfMemory ? CompactorStatus.OutOfMemory : CompactorStatus.DeviceFailed, $"{call} failed: {Describe(status)}.{advice}");

    /// <summary>The driver's name, text and number of an error.</summary>
    public string Describe(int status)
    {
        byte* name = null, text = null;
        _errorName(status, &name);
        _errorString(status, &text);
        return name is null ? $"error {status}, which {_place} does not name" : $"{Marshal.PtrToStringUTF8((nint)name)} ({status}), {Marshal.PtrToStringUTF8((nint)text)}";
    }
}
