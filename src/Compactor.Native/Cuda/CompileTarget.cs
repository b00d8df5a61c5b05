using System.Globalization;
using Compactor.Native.Gpu;

namespace Compactor.Native.Cuda;

/// <summary>What NVRTC compiles for: machine code of an architecture, or PTX of a virtual one, which the driver compiles when it loads it.</summary>
/// <param name="Architecture">Compute capability, major · 10 + minor.</param>
/// <param name="IsPtx">Whether PTX is made.</param>
/// <param name="IsSpecific">Whether instructions of this very architecture are used, which no other runs: <c>sm_90a</c>.</param>
internal readonly record struct CompileTarget(int Architecture, bool IsPtx, bool IsSpecific = false)
{
    /// <summary>Oldest architecture the kernels run on: <c>mma.sync</c> of bfloat16 and <c>cp.async</c>.</summary>
    public const int OldestArchitecture = 80;

    /// <summary>First NVRTC that knows specific targets.</summary>
    public static readonly Version SpecificSince = new(12, 0);

    /// <summary>As NVRTC spells it: <c>sm_90</c>, <c>sm_90a</c>, <c>compute_90</c>.</summary>
    public string Name => $"{(IsPtx ? "compute" : "sm")}_{Architecture}{(IsSpecific ? "a" : "")}";

    /// <summary>Reads what <see cref="Name"/> wrote.</summary>
    public static bool TryParse(string name, out CompileTarget target)
    {
        target = default;
        if (name.Split('_') is not [("sm" or "compute") and var kind, var number])
            return false;
        bool specific = number.EndsWith('a');
        if (!int.TryParse(specific ? number[..^1] : number, NumberStyles.None, CultureInfo.InvariantCulture, out int architecture))
            return false;
        target = new(architecture, kind == "compute", specific);
        return true;
    }

    public static CompileTarget Cubin(int architecture) => new(architecture, false);

    /// <summary>Machine code for a variant written for the architecture, or for any.</summary>
    public static CompileTarget CubinOf(KernelVariant variant, int architecture) => new(architecture, false, variant.IsSpecific);

    /// <summary>
    /// What to compile for a device. Machine code of its own architecture where NVRTC knows it; else of an older one of the same generation, which the device also runs;
    /// else PTX of the newest architecture known, if the driver takes PTX as new as this NVRTC's.
    /// </summary>
    /// <param name="device">Compute capability of the device.</param>
    /// <param name="known">Compute capabilities NVRTC compiles for.</param>
    /// <param name="nvrtc">Its version.</param>
    /// <param name="driver">CUDA version of the driver.</param>
    /// <exception cref="CompactorException">Nothing fits; the message says which of driver and NVRTC to change.</exception>
    public static CompileTarget Choose(int device, IReadOnlyList<int> known, Version nvrtc, Version driver)
    {
        RequireSupported(device);
        if (known.Where(a => a <= device && a / 10 == device / 10 && a >= OldestArchitecture).DefaultIfEmpty(0).Max() is > 0 and var sameGeneration)
            return Cubin(sameGeneration);
        int newest = known.Where(a => a <= device).DefaultIfEmpty(0).Max();
        if (newest < OldestArchitecture)
            throw new CompactorException(CompactorStatus.NoDevice,
                $"NVRTC {nvrtc} compiles for compute capability {(known.Count == 0 ? "nothing" : $"up to {Text(known.Max())}")}; the device has {Text(device)}. Use an NVRTC that knows it, no newer than the driver's CUDA {driver}.");
        if (nvrtc > driver)
            throw new CompactorException(CompactorStatus.NoDevice,
                $"NVRTC {nvrtc} does not know compute capability {Text(device)}, and its PTX is too new for the driver, which serves CUDA {driver}. Update the driver to CUDA {nvrtc} or later, or use an NVRTC that knows the device.");
        return new CompileTarget(newest, true);
    }

    /// <summary>Targets whose code a device may run, best first: where a cache holds one, nothing needs compiling.</summary>
    public static IEnumerable<CompileTarget> RunnableOn(int device) =>
    [
        .. Enumerable.Range(device / 10 * 10, device % 10 + 1).Reverse().Where(a => a >= OldestArchitecture).Select(Cubin),
        .. Enumerable.Range(OldestArchitecture, Math.Max(0, device - OldestArchitecture + 1)).Reverse().Select(a => new CompileTarget(a, true)),
    ];

    /// <exception cref="CompactorException">The device is too old.</exception>
    public static void RequireSupported(int device)
    {
        if (device < OldestArchitecture)
            throw new CompactorException(CompactorStatus.NoDevice, $"The device has compute capability {Text(device)}; the kernels need {Text(OldestArchitecture)} (Ampere) or later. Use the cpu backend.");
    }

    private static string Text(int architecture) => $"{architecture / 10}.{architecture % 10}";
}
