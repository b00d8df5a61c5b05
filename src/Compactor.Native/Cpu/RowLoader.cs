using System.Numerics.Tensors;
using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;
using Compactor.Native.Compression;

namespace Compactor.Native.Cpu;

/// <summary>Loads rows of one head as dense float32, whatever their element type and strides, and notices NaN and infinity on the way.</summary>
internal static unsafe class RowLoader<TLanes, TVector>
    where TLanes : struct, ILanes<TVector>
    where TVector : struct
{
    /// <summary>How many rows ahead memory is asked for.</summary>
    private const int PrefetchRows = 12;

    /// <summary>Loads <paramref name="count"/> rows from <paramref name="token"/> on into <paramref name="rows"/>, D floats each.</summary>
    /// <returns>Whether every element is finite.</returns>
    public static bool Load(in TensorView view, int sequence, int sequenceStart, int token, int count, int head, float* rows)
    {
        nint source = view.Row(sequence, sequenceStart, token, head), stride = (nint)(view.TokenStride * view.ElementType.Size());
        return view.ElementType switch
        {
            ElementType.Float32 => LoadSingles(source, stride, count, view.Dim, rows),
            ElementType.Float16 => LoadHalves(source, stride, count, view.Dim, rows),
            _ => LoadBrainFloats(source, stride, count, view.Dim, rows),
        };
    }

    // One method a type: vectors that live across a call or a switch are kept on the stack.
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static bool LoadSingles(nint source, nint stride, int count, int dim, float* rows)
    {
        // x·0 is NaN exactly when x is not finite, and NaN survives the sum.
        TVector zero = TLanes.Broadcast(0), finite0 = zero, finite1 = zero;
        for (int i = 0; i < count; i++, source += stride, rows += dim)
        {
            if (i + PrefetchRows < count)
                CacheLines.AskNear(source + PrefetchRows * stride, dim * sizeof(float));
            int d = 0;
            for (; d < dim - TLanes.Count; d += 2 * TLanes.Count)
            {
                TVector x0 = TLanes.Load((float*)source + d), x1 = TLanes.Load((float*)source + d + TLanes.Count);
                finite0 = TLanes.MultiplyAdd(x0, zero, finite0);
                finite1 = TLanes.MultiplyAdd(x1, zero, finite1);
                TLanes.Store(x0, rows + d);
                TLanes.Store(x1, rows + d + TLanes.Count);
            }
            if (d < dim)
            {
                var x = TLanes.Load((float*)source + d);
                finite0 = TLanes.MultiplyAdd(x, zero, finite0);
                TLanes.Store(x, rows + d);
            }
        }
        return TLanes.Sum(TLanes.Add(finite0, finite1)) == 0;
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static bool LoadHalves(nint source, nint stride, int count, int dim, float* rows)
    {
        bool finite = true;
        for (int i = 0; i < count; i++, source += stride, rows += dim)
        {
            if (i + PrefetchRows < count)
                CacheLines.AskNear(source + PrefetchRows * stride, dim * sizeof(ushort));
            TensorPrimitives.ConvertToSingle(new ReadOnlySpan<Half>((void*)source, dim), new Span<float>(rows, dim));
            finite &= AreFinite((ushort*)source, dim);
        }
        return finite;
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static bool LoadBrainFloats(nint source, nint stride, int count, int dim, float* rows)
    {
        var exponent = Vector256.Create((ushort)0x7F80);
        var notFinite = Vector256<ushort>.Zero;
        for (int i = 0; i < count; i++, source += stride, rows += dim)
        {
            if (i + PrefetchRows < count)
                CacheLines.AskNear(source + PrefetchRows * stride, dim * sizeof(ushort));
            for (int d = 0; d < dim; d += Vector256<ushort>.Count)
            {
                var x = Vector256.Load((ushort*)source + d);
                notFinite |= Vector256.Equals(x & exponent, exponent);
                (Vector256.WidenLower(x) << 16).AsSingle().Store(rows + d);
                (Vector256.WidenUpper(x) << 16).AsSingle().Store(rows + d + 8);
            }
        }
        return notFinite == Vector256<ushort>.Zero;
    }

    /// <summary>Whether no half's exponent is all ones.</summary>
    private static bool AreFinite(ushort* row, int dim)
    {
        var exponent = Vector256.Create((ushort)0x7C00);
        var notFinite = Vector256<ushort>.Zero;
        for (int d = 0; d < dim; d += Vector256<ushort>.Count)
            notFinite |= Vector256.Equals(Vector256.Load(row + d) & exponent, exponent);
        return notFinite == Vector256<ushort>.Zero;
    }

    /// <summary>Undoes a rotation on one loaded row.</summary>
    /// <param name="style">Pairing of dimensions.</param>
    /// <param name="cos">R/2 cosines, then R/2 sines, of the inverse rotation.</param>
    /// <param name="pairs">R/2.</param>
    /// <param name="row">The row.</param>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    public static void Unrotate(RotaryStyle style, float* cos, int pairs, float* row)
    {
        if (style == RotaryStyle.HalfRotation)
            UnrotateHalves(cos, cos + pairs, pairs, row, row + pairs);
        else
            UnrotateNeighbours(cos, cos + pairs, pairs, row);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void UnrotateHalves(float* cos, float* sin, int pairs, float* x, float* y)
    {
        int p = 0;
        for (; p <= pairs - TLanes.Count; p += TLanes.Count)
        {
            TVector c = TLanes.Load(cos + p), s = TLanes.Load(sin + p), first = TLanes.Load(x + p), second = TLanes.Load(y + p);
            TLanes.Store(TLanes.MultiplyAdd(c, first, TLanes.Multiply(s, second)), x + p);
            TLanes.Store(TLanes.Subtract(TLanes.Multiply(c, second), TLanes.Multiply(s, first)), y + p);
        }
        for (; p < pairs; p++)
            (x[p], y[p]) = (cos[p] * x[p] + sin[p] * y[p], cos[p] * y[p] - sin[p] * x[p]);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void UnrotateNeighbours(float* cos, float* sin, int pairs, float* row)
    {
        // x, y of four pairs: (x, y)·c + (y, x)·(s, -s)
        var signs = Vector256.Create(1f, -1, 1, -1, 1, -1, 1, -1);
        int p = 0;
        for (; p <= pairs - 4; p += 4)
        {
            var values = Vector256.Load(row + 2 * p);
            var c = Vector256.Shuffle(Vector128.Load(cos + p).ToVector256Unsafe(), Vector256.Create(0, 0, 1, 1, 2, 2, 3, 3));
            var s = Vector256.Shuffle(Vector128.Load(sin + p).ToVector256Unsafe(), Vector256.Create(0, 0, 1, 1, 2, 2, 3, 3)) * signs;
            (values * c + Vector256.Shuffle(values, Vector256.Create(1, 0, 3, 2, 5, 4, 7, 6)) * s).Store(row + 2 * p);
        }
        for (; p < pairs; p++)
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
