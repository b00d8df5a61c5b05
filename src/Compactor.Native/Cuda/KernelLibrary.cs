using Compactor.Native.Gpu;

namespace Compactor.Native.Cuda;

/// <summary>Code of kernel variants for one device: from a cache, else compiled by NVRTC, which is loaded only then.</summary>
internal sealed class KernelLibrary
{
    /// <summary>The architecture that some kernels are written for.</summary>
    public const int SpecificArchitecture = 90;

    private readonly int _device;
    private readonly Version _driver;
    private readonly KernelCache _cache;
    private readonly Lazy<NvrtcApi> _nvrtc;

    /// <param name="device">Compute capability, major · 10 + minor.</param>
    /// <param name="driver">CUDA version of the driver.</param>
    /// <param name="cache">Where code is kept.</param>
    /// <param name="openNvrtc">Loads NVRTC.</param>
    public KernelLibrary(int device, Version driver, KernelCache cache, Func<NvrtcApi> openNvrtc)
    {
        CompileTarget.RequireSupported(device);
        (_device, _driver, _cache, _nvrtc) = (device, driver, cache, new Lazy<NvrtcApi>(openNvrtc));
    }

    /// <summary>Code of a variant's module.</summary>
    /// <exception cref="CompactorException">It is in no cache, and there is no NVRTC for this device or it refuses the source.</exception>
    public KernelCode Get(KernelVariant variant)
    {
        var own = CompileTarget.CubinOf(variant, _device);
        if (_cache.Find(variant, own) is { } exact)
            return exact;
        NvrtcApi nvrtc;
        try
        {
            nvrtc = _nvrtc.Value;
        }
        catch (CompactorException exception)
        {
            return (variant.IsSpecific ? null : _cache.Find(variant, CompileTarget.RunnableOn(_device)))
                ?? throw new CompactorException(exception.Status, $"{variant} has to be compiled: no folder of compiled kernels holds it. {exception.Message}", exception);
        }
        var target = variant.IsSpecific ? own : CompileTarget.Choose(_device, nvrtc.Architectures, nvrtc.Version, _driver);
        if (target != own && _cache.Find(variant, target) is { } found)
            return found;
        var code = Compile(nvrtc, variant, target);
        _cache.Store(variant, code);
        return code;
    }

    /// <summary>Whether a variant that is written for the device's very architecture can be had; where not, the reason, as a clause.</summary>
    public bool HasSpecific(KernelVariant variant, out string reason)
    {
        reason = "";
        if (_cache.Find(variant, CompileTarget.CubinOf(variant, _device)) is not null)
            return true;
        if (NvrtcVersion() is not { } version)
            reason = "no folder of compiled kernels holds it, and there is no NVRTC";
        else if (version < CompileTarget.SpecificSince)
            reason = $"NVRTC {version} does not know sm_{SpecificArchitecture}a; use {CompileTarget.SpecificSince} or later";
        return reason.Length == 0;
    }

    private Version? NvrtcVersion()
    {
        try
        {
            return _nvrtc.Value.Version;
        }
        catch (CompactorException exception) when (exception.Status == CompactorStatus.NoDevice)
        {
            return null;
        }
    }

    /// <summary>Compiles a variant's module.</summary>
    /// <exception cref="CompactorException">It does not compile; the message carries the log.</exception>
    public static KernelCode Compile(NvrtcApi nvrtc, KernelVariant variant, CompileTarget target) =>
        new(variant.Module, target, nvrtc.Version,
            nvrtc.Compile(variant.Source, KernelSources.Sources[variant.Source], KernelSources.Headers, KernelCode.Options(variant), target, out _));

    /// <summary>
    /// Loads NVRTC: the first found that is no newer than the driver, whose PTX the driver takes; else the first found.
    /// </summary>
    /// <param name="search">Where it was looked for.</param>
    /// <param name="driver">CUDA version of the driver; null where there is none.</param>
    /// <exception cref="CompactorException">There is none; the message says where it was looked for.</exception>
    public static NvrtcApi OpenNvrtc(LibrarySearch search, Version? driver)
    {
        if (search.Error is { } error)
            throw new CompactorException(CompactorStatus.NoDevice, error);
        var found = search.Candidates.Where(c => c.Outcome == LibraryOutcome.Found).ToArray();
        var chosen = found.FirstOrDefault(c => c.Source is "explicit path" or "COMPACTOR_NVRTC") ?? found.FirstOrDefault(c => driver is null || c.Version <= driver) ?? found.FirstOrDefault()
            ?? throw new CompactorException(CompactorStatus.NoDevice,
                $"NVRTC was not found. Looked at: {string.Join("; ", search.Candidates.Select(c => c.Reason is null ? c.Place : $"{c.Place} ({c.Reason})"))}. " +
                "Install it (a CUDA toolkit, or the wheel nvidia-cuda-nvrtc), set COMPACTOR_NVRTC to its path, or ship compiled kernels (compactor kernels compile).");
        return new NvrtcApi(chosen.Place);
    }
}
