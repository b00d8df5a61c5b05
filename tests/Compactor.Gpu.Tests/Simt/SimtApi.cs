using System.Runtime.InteropServices;
using System.Text;
using Compactor.Native;

namespace Compactor.Gpu.Tests.Simt;

/// <summary>The emulator's host functions (tests/simt/simt_api.hpp).</summary>
internal static unsafe class SimtApi
{
    private const int ErrorCapacity = 2048;

    private static readonly nint s_library = NativeLibrary.Load(SimtCompiler.Runtime);
    private static readonly delegate* unmanaged<in SimtLaunch, byte*, uint, int> s_launch = (delegate* unmanaged<in SimtLaunch, byte*, uint, int>)Export("simt_launch");
    private static readonly delegate* unmanaged<ulong, nint> s_allocate = (delegate* unmanaged<ulong, nint>)Export("simt_allocate");
    private static readonly delegate* unmanaged<nint, byte*, uint, int> s_free = (delegate* unmanaged<nint, byte*, uint, int>)Export("simt_free");
    private static readonly delegate* unmanaged<nint, nint, ulong, byte*, uint, int> s_upload = (delegate* unmanaged<nint, nint, ulong, byte*, uint, int>)Export("simt_upload");
    private static readonly delegate* unmanaged<nint, nint, ulong, byte*, uint, int> s_download = (delegate* unmanaged<nint, nint, ulong, byte*, uint, int>)Export("simt_download");
    private static readonly delegate* unmanaged<nint, int, ulong, byte*, uint, int> s_fill = (delegate* unmanaged<nint, int, ulong, byte*, uint, int>)Export("simt_fill");
    private static readonly delegate* unmanaged<nint, ulong, int, byte*, uint, int> s_protect = (delegate* unmanaged<nint, ulong, int, byte*, uint, int>)Export("simt_protect");

    /// <summary>Runs a launch to its end.</summary>
    /// <exception cref="CompactorException">The kernel did what it must not; the message says what and where.</exception>
    public static void Launch(in SimtLaunch launch)
    {
        byte* error = stackalloc byte[ErrorCapacity];
        Check(s_launch(launch, error, ErrorCapacity), error);
    }

    /// <summary>Device memory filled with 0xFF bytes, with redzones around it.</summary>
    public static nint Allocate(long bytes) => s_allocate((ulong)bytes) is not 0 and var address ? address
        : throw new CompactorException(CompactorStatus.OutOfMemory, $"The emulator's device range has no {bytes} bytes left.");

    public static void Free(nint address)
    {
        byte* error = stackalloc byte[ErrorCapacity];
        Check(s_free(address, error, ErrorCapacity), error);
    }

    public static void Upload(nint to, nint from, long bytes)
    {
        byte* error = stackalloc byte[ErrorCapacity];
        Check(s_upload(to, from, (ulong)bytes, error, ErrorCapacity), error);
    }

    public static void Download(nint to, nint from, long bytes)
    {
        byte* error = stackalloc byte[ErrorCapacity];
        Check(s_download(to, from, (ulong)bytes, error, ErrorCapacity), error);
    }

    public static void Fill(nint to, byte value, long bytes)
    {
        byte* error = stackalloc byte[ErrorCapacity];
        Check(s_fill(to, value, (ulong)bytes, error, ErrorCapacity), error);
    }

    public static void Protect(nint address, long bytes, bool usable)
    {
        byte* error = stackalloc byte[ErrorCapacity];
        Check(s_protect(address, (ulong)bytes, usable ? 1 : 0, error, ErrorCapacity), error);
    }

    private static nint Export(string name) => NativeLibrary.GetExport(s_library, name);

    private static void Check(int failed, byte* error)
    {
        if (failed != 0)
            throw new CompactorException(CompactorStatus.DeviceFailed, Encoding.UTF8.GetString(MemoryMarshal.CreateReadOnlySpanFromNullTerminated(error)));
    }
}

/// <summary>SimtLaunch of simt_api.hpp.</summary>
[StructLayout(LayoutKind.Sequential)]
internal unsafe struct SimtLaunch
{
    public nint Entry;
    public byte* Name;
    public void* Parameters;
    public ulong ScheduleSeed, ArithmeticSeed;
    public uint GridX, GridY, GridZ, BlockX, BlockY, BlockZ;
    public uint SharedBytes, ResidentBlocks, PreemptEvery, CheckRaces;
}
