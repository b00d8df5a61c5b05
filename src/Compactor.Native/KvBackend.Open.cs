using Compactor.Native.Cpu;
using Compactor.Native.Cuda;
using Compactor.Native.Gpu;

namespace Compactor.Native;

/// <summary>Which backend to open.</summary>
public enum BackendChoice
{
    /// <summary>A GPU where there is one that kernels run on, else the CPU.</summary>
    Auto,
    /// <summary>A CUDA GPU, or an error.</summary>
    Cuda,
    /// <summary>The CPU.</summary>
    Cpu,
}

public abstract partial class KvBackend
{
    /// <summary>Opens a backend.</summary>
    /// <param name="choice">Which.</param>
    /// <param name="fallback">Why <see cref="BackendChoice.Auto"/> fell back to the CPU; null where it did not.</param>
    /// <param name="cuda">How the GPU is used; null for device 0.</param>
    /// <param name="cpuThreads">Threads of the CPU backend; 0 for all cores.</param>
    /// <exception cref="CompactorException">The choice is <see cref="BackendChoice.Cuda"/>, and there is no GPU that kernels run on; the message says what was looked for.</exception>
    public static KvBackend Open(BackendChoice choice, out string? fallback, CudaOptions? cuda = null, int cpuThreads = 0)
    {
        fallback = null;
        if (choice == BackendChoice.Cpu)
            return new CpuBackend(cpuThreads);
        try
        {
            return GpuBackend.Open(cuda);
        }
        catch (CompactorException exception) when (choice == BackendChoice.Auto)
        {
            fallback = exception.Message;
            return new CpuBackend(cpuThreads);
        }
    }
}
