using Compactor.Native;
using Compactor.Native.Cpu;

namespace Compactor.Abi;

/// <summary>A backend the host has opened, and the turns that calls take on it.</summary>
internal sealed class Backend(KvBackend operations) : IDisposable
{
    public const int Auto = 0, Cuda = 1, Cpu = 2;

    private const string NoCuda = "This build has no CUDA backend";

    public KvBackend Operations => operations;

    /// <summary>Scoring on one backend is done by one caller at a time.</summary>
    public Lock Turn { get; } = new();

    /// <summary>Whether what it computes with can be read on the calling thread, so that tables and indices from the host are checked before use.</summary>
    public bool IsHostMemory => operations is CpuBackend;

    public static unsafe Backend Open(BackendOptions options)
    {
        Inputs.Reserved("options", options.Reserved);
        bool device = options.Context is not null || options.Stream is not null || options.Device != 0;
        switch (options.Kind)
        {
            case Cuda:
                throw new AbiException(Status.Unsupported, $"{NoCuda}; open COMPACTOR_BACKEND_CPU, or use a build that has it.");
            case Auto when device:
                throw new AbiException(Status.Unsupported, $"{NoCuda}, and with a device, context or stream given the CPU cannot stand in: it does not reach device memory. Open COMPACTOR_BACKEND_CPU without them.");
            case Cpu when device:
                throw AbiException.Argument("A device, context or stream is given for the CPU backend; leave them 0.");
            case Auto or Cpu:
                break;
            default:
                throw AbiException.Argument($"options.kind is {options.Kind}; use one of COMPACTOR_BACKEND_*.");
        }
        var backend = new CpuBackend(options.Threads, Inputs.Constant<SimdWidth>("options.simd_bits", options.SimdBits));
        if (options.Kind == Auto)
            Boundary.Log(1, $"{NoCuda}; computing on the {backend.Description}.");
        return new Backend(backend);
    }

    public void Dispose() => operations.Dispose();
}
