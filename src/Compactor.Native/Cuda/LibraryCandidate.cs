namespace Compactor.Native.Cuda;

/// <summary>What came of looking for a library in one place.</summary>
public enum LibraryOutcome
{
    /// <summary>It loads and says its version.</summary>
    Found,
    /// <summary>Nothing is there.</summary>
    NotPresent,
    /// <summary>Something is there and cannot be used; <see cref="LibraryCandidate.Reason"/> says why.</summary>
    Failed,
}

/// <summary>One place a library was looked for.</summary>
/// <param name="Source">Why this place: <c>explicit path</c>, <c>loader</c>, <c>CUDA_PATH</c>, <c>toolkit folder</c>, <c>wheel</c>.</param>
/// <param name="Place">A path, a pattern that matched nothing, or a bare name given to the system's loader.</param>
/// <param name="Outcome">What came of it.</param>
/// <param name="Version">The version it reports, when found: of CUDA for the driver, of NVRTC itself for NVRTC.</param>
/// <param name="Reason">Why it cannot be used, in the loader's words, when it failed.</param>
public sealed record LibraryCandidate(string Source, string Place, LibraryOutcome Outcome, Version? Version = null, string? Reason = null);
