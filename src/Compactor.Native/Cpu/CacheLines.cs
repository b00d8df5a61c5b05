using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics.X86;

namespace Compactor.Native.Cpu;

/// <summary>Asks for memory before it is read, where the hardware's own prefetchers guess badly: rows of one head lie as far apart as all heads' rows are long. Nothing happens on other processors.</summary>
internal static unsafe class CacheLines
{
    private const int Bytes = 64;

    /// <summary>Into the first-level cache: for what is read next.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void AskNear(nint address, nint bytes)
    {
        if (Sse.IsSupported)
            for (nint line = address & -Bytes; line < address + bytes; line += Bytes)
                Sse.Prefetch0((void*)line);
    }

    /// <summary>Into the second-level cache: for what is read after other work.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void AskFar(nint address, nint bytes)
    {
        if (Sse.IsSupported)
            for (nint line = address & -Bytes; line < address + bytes; line += Bytes)
                Sse.Prefetch1((void*)line);
    }
}
