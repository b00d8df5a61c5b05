namespace Compactor.Native.Cuda;

/// <summary>Which device the GPU backend uses, on whose context and stream, and where its compiled kernels are.</summary>
public sealed record CudaOptions
{
    /// <summary>Ordinal of the device whose primary context is used. Not read with <see cref="Context"/>.</summary>
    public int Device { get; init; }

    /// <summary>A <c>CUcontext</c> of the caller to work in; it is never replaced or destroyed, and must outlive the backend. 0 for the device's primary context.</summary>
    public nint Context { get; init; }

    /// <summary>A <c>CUstream</c> of the caller to queue on; it must outlive the backend. 0 for a stream of the backend's own.</summary>
    public nint Stream { get; init; }

    /// <summary>
    /// Work beside <see cref="Stream"/>, on a stream of the backend's own: each operation waits for what is queued on the caller's stream when it is called, and the caller's stream
    /// goes on, with the rest of the layer, until <see cref="KvBackend.Join"/> makes it wait.
    /// </summary>
    public bool SideStream { get; init; }

    /// <summary>Where the driver and NVRTC are looked for.</summary>
    public SearchEnvironment Search { get; init; } = SearchEnvironment.Current;

    /// <summary>
    /// Folder that compiled kernels are kept in; null for <c>COMPACTOR_CACHE</c>, or <c>compactor/kernels</c> in the system's place for caches; empty to keep none.
    /// </summary>
    public string? CacheFolder { get; init; }

    /// <summary>Folders of compiled kernels that come with the application (<c>compactor kernels compile</c>), asked first.</summary>
    public IReadOnlyList<string> KernelFolders { get; init; } = [Path.Combine(AppContext.BaseDirectory, "compactor-kernels")];

    /// <summary>
    /// Use the kernels written for compute capability 9.0 alone (<c>sm_90a</c>: <c>wgmma</c>) on such a device, as they are by default; they give the same scores to rounding.
    /// Where one cannot be had, with an NVRTC older than 12.0 say, <see cref="Announce"/> is told and the portable one is used. Other devices have no such kernels.
    /// </summary>
    public bool HopperKernels { get; init; } = true;

    /// <summary>Receives a sentence for everything that does not stop the work and that a person should know, such as a cache that cannot be written; null for nothing.</summary>
    public Action<string>? Announce { get; init; }
}
