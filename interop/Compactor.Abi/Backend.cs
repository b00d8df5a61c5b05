using System.Runtime.InteropServices;
using Compactor.Native;
using Compactor.Native.Cpu;
using Compactor.Native.Cuda;
using Compactor.Native.Gpu;

namespace Compactor.Abi;

/// <summary>A backend the host has opened, and the turns that calls take on it.</summary>
internal sealed partial class Backend(KvBackend operations) : IDisposable
{
    public const int Auto = 0, Cuda = 1, Cpu = 2;

    /// <summary>Values of a <c>CUstream</c> that name default streams.</summary>
    private const nint LegacyStream = 1, PerThreadStream = 2;

    public KvBackend Operations => operations;

    /// <summary>Scoring on one backend is done by one caller at a time.</summary>
    public Lock Turn { get; } = new();

    /// <summary>What scoring found, for whoever has the turn.</summary>
    public Findings Findings { get; } = new(operations);

    /// <summary>Whether what it computes with can be read on the calling thread, so that tables and indices from the host are checked before use.</summary>
    public bool IsHostMemory => operations.IsHostMemory;

    public static unsafe Backend Open(BackendOptions options)
    {
        Inputs.Reserved("options", options.Reserved);
        bool device = options.Context is not null || options.Stream is not null || options.Device != 0;
        if (options.Kind is not (Auto or Cuda or Cpu))
            throw AbiException.Argument($"options.kind is {options.Kind}; use one of COMPACTOR_BACKEND_*.");
        if (options.Kind == Cpu && device)
            throw AbiException.Argument("A device, context or stream is given for the CPU backend; leave them 0.");
        if (options.Kind == Cuda && (options.Threads != 0 || options.SimdBits != 0))
            throw AbiException.Argument($"options.threads is {options.Threads} and options.simd_bits is {options.SimdBits} for the CUDA backend; they are the CPU's, leave them 0.");
        if (options.Threads < 0)
            throw AbiException.Argument($"options.threads is {options.Threads}; use 0 (all cores) or more.");
        var width = Inputs.Constant<SimdWidth>("options.simd_bits", options.SimdBits);
        string? reason = null;
        if (options.Kind != Cpu)
            try
            {
                return new Backend(OpenCuda(options));
            }
            catch (CompactorException exception) when (options.Kind == Auto)
            {
                reason = device
                    ? throw new CompactorException(exception.Status,
                        $"{exception.Message} With a device, context or stream given the CPU does not stand in: it does not reach device memory. Open COMPACTOR_BACKEND_CPU without them for host memory.", exception)
                    : exception.Message;
            }
        var backend = new CpuBackend(options.Threads, width);
        if (reason is not null)
            Boundary.Warn($"Computing on the {backend.Description}, for there is no CUDA backend: {reason}");
        return new Backend(backend);
    }

    public void Dispose()
    {
        try
        {
            Findings.Dispose();
        }
        finally
        {
            operations.Dispose();
        }
    }

    private static unsafe GpuBackend OpenCuda(BackendOptions options)
    {
        nint stream = options.Stream is null ? LegacyStream : (nint)options.Stream;
        if (stream == PerThreadStream)
            throw AbiException.Argument("options.stream is the per-thread default stream, which is another one on every thread; create a stream and give that.");
        var cuda = new CudaOptions();
        return GpuBackend.Open(cuda with
        {
            Device = options.Device,
            Context = (nint)options.Context,
            Stream = stream,
            KernelFolders = LibraryFolder() is { } folder ? [Path.Combine(folder, "compactor-kernels"), .. cuda.KernelFolders] : cuda.KernelFolders,
            Announce = message => Boundary.Warn(message),
        });
    }

    /// <summary>Folder of this shared library, which is not that of the program it is loaded into, nor the one in it that variants for CPUs are in; null where it is none.</summary>
    private static unsafe string? LibraryFolder()
    {
        ModuleInfo info;
        if (FindModule((delegate* unmanaged<byte*>)&Exports.Version, &info) == 0)
            return null;
        string folder = Path.GetDirectoryName(Path.GetFullPath(Marshal.PtrToStringUTF8((nint)info.File)!))!;
        return Path.GetDirectoryName(folder) is { } variants && Path.GetFileName(variants) == "glibc-hwcaps" ? Path.GetDirectoryName(variants) : folder;
    }

    [LibraryImport("libc", EntryPoint = "dladdr")]
    private static unsafe partial int FindModule(void* address, ModuleInfo* info);

    /// <summary><c>Dl_info</c>.</summary>
    private unsafe struct ModuleInfo
    {
        public byte* File;
        public void* Start;
        public byte* Name;
        public void* Address;
    }
}
