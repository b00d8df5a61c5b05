using System.Runtime.InteropServices;

namespace Compactor.Native.Cuda;

/// <summary>Entry points of a loaded library, by name.</summary>
internal readonly struct NativeExports(nint library, string place)
{
    /// <summary>Address of an entry point that every supported version has.</summary>
    /// <exception cref="CompactorException">The library lacks it.</exception>
    public nint Require(string name) => NativeLibrary.TryGetExport(library, name, out nint address) ? address
        : throw new CompactorException(CompactorStatus.NoDevice, $"{place} lacks {name}: it is older than CUDA 11.2 or not a CUDA library. Install a newer one.");

    /// <summary>Address of an entry point that older versions lack; 0 if it is absent.</summary>
    public nint Find(string name) => NativeLibrary.TryGetExport(library, name, out nint address) ? address : 0;
}
