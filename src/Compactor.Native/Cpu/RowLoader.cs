using System.Numerics.Tensors;
using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;
using System.Runtime.Intrinsics.X86;
using Compactor.Native.Compression;

namespace Compactor.Native.Cpu;

/// <summary>Loads rows of one head as dense float32, whatever their element type and strides, and notices NaN and infinity on the way.</summary>
internal static unsafe class RowLoader<TLanes, TVector>
    where TLanes : struct, ILanes<TVector>
    where TVector : struct
{
    /// <summary>
    /// How many rows ahead memory is asked for. One head's rows lie a page or more apart, where the hardware's prefetchers stop.
    /// </summary>
    private const int PrefetchRows = 6;

    /// <summary>Loads <paramref name="count"/> rows from <paramref name="token"/> on into <paramref name="rows"/>, D floats each.</summary>
    /// <returns>Whether every element is finite.</returns>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    public static bool Load(in TensorView view, int sequence, int sequenceStart, int token, int count, int head, float* rows)
    {
        int dim = view.Dim;
        nint source = view.Row(sequence, sequenceStart, token, head);
        nint stride = (nint)(view.TokenStride * view.ElementType.Size());
        // x·0 is NaN exactly when x is not finite, and NaN survives the sum.
        var zero = TLanes.Broadcast(0);
        var finite = zero;
        int rowBytes = dim * view.ElementType.Size();
        for (int i = 0; i < count; i++, source += stride, rows += dim)
        {
            if (Sse.IsSupported && i + PrefetchRows < count)
                for (int line = 0; line < rowBytes; line += 64)
                    Sse.Prefetch0((void*)(source + PrefetchRows * stride + line));
            switch (view.ElementType)
            {
                case ElementType.Float32:
                    for (int d = 0; d < dim; d += TLanes.Count)
                    {
                        var x = TLanes.Load((float*)source + d);
                        finite = TLanes.MultiplyAdd(x, zero, finite);
                        TLanes.Store(x, rows + d);
                    }
                    continue;
                case ElementType.Float16:
                    TensorPrimitives.ConvertToSingle(new ReadOnlySpan<Half>((void*)source, dim), new Span<float>(rows, dim));
                    break;
                default:
                    for (int d = 0; d < dim; d += 16)
                    {
                        var x = Vector256.Load((ushort*)source + d);
                        (Vector256.WidenLower(x) << 16).AsSingle().Store(rows + d);
                        (Vector256.WidenUpper(x) << 16).AsSingle().Store(rows + d + 8);
                    }
                    break;
            }
            for (int d = 0; d < dim; d += TLanes.Count)
                finite = TLanes.MultiplyAdd(TLanes.Load(rows + d), zero, finite);
        }
        return TLanes.Sum(finite) == 0;
    }

    /// <summary>Undoes a rotation on one loaded row.</summary>
    /// <param name="style">Pairing of dimensions.</param>
    /// <param name="cos">R/2 cosines, then R/2 sines, of the inverse rotation.</param>
    /// <param name="pairs">R/2.</param>
    /// <param name="row">The row.</param>
    public static void Unrotate(RotaryStyle style, float* cos, int pairs, float* row)
    {
        float* sin = cos + pairs;
        if (style == RotaryStyle.HalfRotation)
            for (int p = 0; p < pairs; p++)
                (row[p], row[p + pairs]) = (cos[p] * row[p] + sin[p] * row[p + pairs], cos[p] * row[p + pairs] - sin[p] * row[p]);
        else
            for (int p = 0; p < pairs; p++)
                (row[2 * p], row[2 * p + 1]) = (cos[p] * row[2 * p] + sin[p] * row[2 * p + 1], cos[p] * row[2 * p + 1] - sin[p] * row[2 * p]);
    }

    /// <summary>Subtracts a mean from loaded rows.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    public static void Subtract(float* mean, float* rows, int count, int dim)
    {
        for (int i = 0; i < count; i++, rows += dim)
            for (int d = 0; d < dim; d += TLanes.Count)
                TLanes.Store(TLanes.Subtract(TLanes.Load(rows + d), TLanes.Load(mean + d)), rows + d);
    }
}
