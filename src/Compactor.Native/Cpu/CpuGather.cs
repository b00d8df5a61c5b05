using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using System.Runtime.Intrinsics.X86;

namespace Compactor.Native.Cpu;

/// <summary>Copies chosen rows of one head one after the other.</summary>
internal static unsafe class CpuGather
{
    /// <summary>How many rows ahead memory is asked for: a head's rows lie as far apart as all heads' rows are long, where the hardware's prefetchers guess badly.</summary>
    private const int PrefetchRows = 8;

    private const int CacheLine = 64;

    /// <param name="source">The head's row of token 0.</param>
    /// <param name="stride">Bytes from one token to the next.</param>
    /// <param name="rowBytes">Bytes of a row.</param>
    /// <param name="tokens">Tokens to copy.</param>
    /// <param name="count">Their number.</param>
    /// <param name="destination">Receives the rows, packed.</param>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    public static void Rows(nint source, nint stride, nint rowBytes, int* tokens, int count, nint destination)
    {
        for (int i = 0; i < count; i++, destination += rowBytes)
        {
            if (Sse.IsSupported && i + PrefetchRows < count)
            {
                nint row = source + tokens[i + PrefetchRows] * stride;
                for (nint line = row & -CacheLine; line < row + rowBytes; line += CacheLine)
                    Sse.Prefetch0((void*)line);
            }
            NativeMemory.Copy((void*)(source + tokens[i] * stride), (void*)destination, (nuint)rowBytes);
        }
    }
}
