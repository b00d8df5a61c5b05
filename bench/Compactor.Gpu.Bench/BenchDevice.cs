using Compactor.Native.Gpu;

namespace Compactor.Gpu.Bench;

/// <summary>A device whose operations are timed, and what bounds them there.</summary>
internal abstract class BenchDevice : IDisposable
{
    public abstract GpuBackend Backend { get; }

    /// <summary>The same device and stream without the kernels for sm_90a (<see cref="Compactor.Native.Cuda.CudaOptions.HopperKernels"/>); null where there are none.</summary>
    public virtual GpuBackend? Portable => null;

    /// <summary>Device, driver, compiler: name and value.</summary>
    public abstract IReadOnlyList<(string Name, string Value)> Facts { get; }

    /// <summary>Bytes of the last cache before memory.</summary>
    public abstract long CacheBytes { get; }

    /// <summary>Bytes of device memory that nobody uses.</summary>
    public abstract long FreeBytes { get; }

    /// <summary>Why there is no matrix product to compare with; null where there is one.</summary>
    public abstract string? NoMatrixProduct { get; }

    /// <summary>Queues a copy from device memory to device memory.</summary>
    public abstract void Copy(nint from, nint to, long bytes);

    /// <summary>Queues C = A·B of square bfloat16 matrices of <paramref name="n"/> rows, by the vendor's library.</summary>
    public abstract void MultiplyMatrices(nint a, nint b, nint c, int n);

    /// <summary>Work of a backend that can be queued again and again with as little of the host in it as the device allows.</summary>
    public abstract Action Repeatable(GpuBackend backend, Action work);

    /// <summary>Microseconds from the start to the end of what an action queues, by the device's clock.</summary>
    public abstract double Microseconds(Action work);

    public abstract void Dispose();
}
