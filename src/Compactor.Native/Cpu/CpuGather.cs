using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;

namespace Compactor.Native.Cpu;

/// <summary>Copies chosen rows of one head one after the other.</summary>
internal static unsafe class CpuGather
{
    /// <summary>How many rows ahead memory is asked for.</summary>
    private const int PrefetchRows = 8;

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
            if (i + PrefetchRows < count)
                CacheLines.AskNear(source + tokens[i + PrefetchRows] * stride, rowBytes);
            NativeMemory.Copy((void*)(source + tokens[i] * stride), (void*)destination, (nuint)rowBytes);
        }
    }
}
