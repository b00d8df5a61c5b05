using System.Runtime.InteropServices;
using Compactor.Native;
using Compactor.Native.Cuda;

namespace Compactor.Gpu.Bench;

/// <summary>cuBLAS, where the machine has it: how fast a large matrix product is.</summary>
internal sealed unsafe class CuBlas : IDisposable
{
    private const int NoTranspose = 0, BFloat16 = 14, ComputeFloat32 = 68, DefaultAlgorithm = -1;

    private readonly nint _handle;
    private readonly delegate* unmanaged<nint, int> _destroy;
    private readonly delegate* unmanaged<nint, int, int, int, int, int, void*, nint, int, int, nint, int, int, void*, nint, int, int, int, int, int> _gemm;

    private CuBlas(nint library, string place, nint stream)
    {
        nint handle = 0;
        Check(((delegate* unmanaged<nint*, int>)NativeLibrary.GetExport(library, "cublasCreate_v2"))(&handle), "cublasCreate");
        Check(((delegate* unmanaged<nint, nint, int>)NativeLibrary.GetExport(library, "cublasSetStream_v2"))(handle, stream), "cublasSetStream");
        int version = 0;
        Check(((delegate* unmanaged<nint, int*, int>)NativeLibrary.GetExport(library, "cublasGetVersion_v2"))(handle, &version), "cublasGetVersion");
        _handle = handle;
        _destroy = (delegate* unmanaged<nint, int>)NativeLibrary.GetExport(library, "cublasDestroy_v2");
        _gemm = (delegate* unmanaged<nint, int, int, int, int, int, void*, nint, int, int, nint, int, int, void*, nint, int, int, int, int, int>)NativeLibrary.GetExport(library, "cublasGemmEx");
        Description = $"cuBLAS {version} ({place})";
    }

    public string Description { get; }

    /// <summary>Loads it: by name, beside NVRTC, from the wheel of cuBLAS beside that of NVRTC, or from a toolkit.</summary>
    /// <param name="environment">Where NVRTC is looked for.</param>
    /// <param name="stream">Where it queues; the context is current.</param>
    /// <param name="reason">Why there is none, or null.</param>
    public static CuBlas? Open(SearchEnvironment environment, nint stream, out string? reason)
    {
        reason = null;
        List<string> folders = [""], unusable = [];
        if (LibrarySearch.Nvrtc(environment).Found is { } nvrtc && Path.GetDirectoryName(nvrtc.Place) is { Length: > 0 } beside)
            folders.AddRange([beside, Path.Combine(beside, "..", "..", "cublas", "lib")]);
        foreach (string variable in (string[])["CUDA_PATH", "CUDA_HOME"])
            if (environment.Variable(variable) is { Length: > 0 } root)
                folders.Add(Path.Combine(root, "lib64"));
        folders.Add("/usr/local/cuda/lib64");
        foreach (string folder in folders)
            foreach (int major in (int[])[13, 12, 11])
            {
                // It needs the other, which its own search may not find.
                NativeLibrary.TryLoad(Path.Combine(folder, $"libcublasLt.so.{major}"), out _);
                string place = Path.Combine(folder, $"libcublas.so.{major}");
                if (!NativeLibrary.TryLoad(place, out nint library))
                    continue;
                try
                {
                    return new CuBlas(library, place, stream);
                }
                catch (Exception exception) when (exception is CompactorException or EntryPointNotFoundException)
                {
                    // One of a newer CUDA than the driver's, say.
                    unusable.Add($"{place}: {exception.Message}");
                }
            }
        reason = unusable.Count > 0 ? $"cuBLAS cannot be used ({string.Join("; ", unusable)})" : $"cuBLAS is missing (libcublas.so.11 to 13 in: the loader's places{string.Concat(folders.Skip(1).Select(f => ", " + f))})";
        return null;
    }

    /// <summary>Queues C = A·B, bfloat16 with sums in float32.</summary>
    public void Multiply(nint a, nint b, nint c, int n)
    {
        float one = 1, zero = 0;
        Check(_gemm(_handle, NoTranspose, NoTranspose, n, n, n, &one, a, BFloat16, n, b, BFloat16, n, &zero, c, BFloat16, n, ComputeFloat32, DefaultAlgorithm), "cublasGemmEx");
    }

    public void Dispose() => _destroy(_handle);

    private static void Check(int status, string call)
    {
        if (status != 0)
            throw new CompactorException(CompactorStatus.DeviceFailed, $"{call} failed with status {status} of cuBLAS.");
    }
}
