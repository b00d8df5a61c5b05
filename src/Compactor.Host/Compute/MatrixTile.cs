using System.Numerics;
using System.Runtime.CompilerServices;

namespace Compactor.Host;

/// <summary>How a panel, <see cref="MatrixTile.Columns"/> elements for each step of depth, is stored.</summary>
internal unsafe interface IPanel
{
    /// <summary>Bytes of an element.</summary>
    static abstract int ElementSize { get; }

    /// <summary>Two vectors of one step of depth.</summary>
    static abstract (Vector<float> First, Vector<float> Second) Load(byte* address);
}

/// <summary>A panel of float32.</summary>
internal readonly unsafe struct Float32Panel : IPanel
{
    public static int ElementSize => sizeof(float);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static (Vector<float> First, Vector<float> Second) Load(byte* address) =>
        (Vector.Load((float*)address), Vector.Load((float*)address + Vector<float>.Count));
}

/// <summary>A panel of bfloat16, the upper halves of float32: half the memory traffic of decoding.</summary>
internal readonly unsafe struct BFloat16Panel : IPanel
{
    public static int ElementSize => sizeof(ushort);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static (Vector<float> First, Vector<float> Second) Load(byte* address)
    {
        Vector.Widen(Vector.Load((ushort*)address), out var first, out var second);
        return (Vector.AsVectorSingle(first << 16), Vector.AsVectorSingle(second << 16));
    }
}

/// <summary>
/// The inner product that all matrix work is made of: <c>c[i, j] (+)= sum_k a[i, k]·b[k, j]</c> for a tile of 6 rows or 1 and <see cref="MatrixTile.Columns"/> columns.
/// Every element is one chain of fused multiply-adds in the order of k, so that it does not depend on how rows are dealt to tiles.
/// </summary>
/// <typeparam name="TPanel">How b is stored.</typeparam>
internal static unsafe class MatrixTile<TPanel> where TPanel : struct, IPanel
{
    /// <summary>All rows of a: by sixes, the last ones padded with repeats that are not stored.</summary>
    /// <param name="a">Row 0 of a; elements of a row are dense.</param>
    /// <param name="aStride">Elements from one row of a to the next.</param>
    /// <param name="rows">Rows.</param>
    /// <param name="b">Step 0 of b.</param>
    /// <param name="bStride">Bytes from one step of b to the next.</param>
    /// <param name="depth">Length of the sums.</param>
    /// <param name="c">Receives rows of <paramref name="columns"/> elements.</param>
    /// <param name="cStride">Elements from one row of c to the next.</param>
    /// <param name="columns">Columns to store, up to those of a tile.</param>
    /// <param name="bias">Added to every row; null for none.</param>
    /// <param name="accumulate">Whether c is added to.</param>
    public static void Rows(float* a, nint aStride, int rows, byte* b, nint bStride, int depth, float* c, nint cStride, int columns, float* bias, bool accumulate)
    {
        float* tile = stackalloc float[MatrixTile.Rows * MatrixTile.Columns];
        for (int first = 0; first < rows; first += MatrixTile.Rows, a += MatrixTile.Rows * aStride)
        {
            int count = Math.Min(MatrixTile.Rows, rows - first);
            if (count == 1)
                One(a, b, bStride, depth, tile);
            else
                Six(a, aStride, count - 1, b, bStride, depth, tile);
            for (int i = 0; i < count; i++, c += cStride)
                Store(tile + i * MatrixTile.Columns, c, columns, bias, accumulate);
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Store(float* tile, float* c, int columns, float* bias, bool accumulate)
    {
        if (columns == MatrixTile.Columns)
            for (int j = 0; j < MatrixTile.Columns; j += Vector<float>.Count)
            {
                var value = Vector.Load(tile + j);
                if (bias != null)
                    value += Vector.Load(bias + j);
                if (accumulate)
                    value += Vector.Load(c + j);
                value.Store(c + j);
            }
        else
            for (int j = 0; j < columns; j++)
                c[j] = tile[j] + (bias != null ? bias[j] : 0) + (accumulate ? c[j] : 0);
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void One(float* a, byte* b, nint bStride, int depth, float* tile)
    {
        Vector<float> c0 = Vector<float>.Zero, c1 = Vector<float>.Zero;
        for (int k = 0; k < depth; k++, b += bStride)
        {
            var (b0, b1) = TPanel.Load(b);
            var x = Vector.Create(a[k]);
            c0 = Vector.FusedMultiplyAdd(x, b0, c0);
            c1 = Vector.FusedMultiplyAdd(x, b1, c1);
        }
        c0.Store(tile);
        c1.Store(tile + Vector<float>.Count);
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void Six(float* a, nint aStride, int last, byte* b, nint bStride, int depth, float* tile)
    {
        float* a0 = a, a1 = a + aStride, a2 = a + Math.Min(last, 2) * aStride, a3 = a + Math.Min(last, 3) * aStride;
        float* a4 = a + Math.Min(last, 4) * aStride, a5 = a + Math.Min(last, 5) * aStride;
        Vector<float> c00 = Vector<float>.Zero, c01 = c00, c10 = c00, c11 = c00, c20 = c00, c21 = c00, c30 = c00, c31 = c00, c40 = c00, c41 = c00, c50 = c00, c51 = c00;
        for (int k = 0; k < depth; k++, b += bStride)
        {
            var (b0, b1) = TPanel.Load(b);
            var x = Vector.Create(a0[k]);
            c00 = Vector.FusedMultiplyAdd(x, b0, c00);
            c01 = Vector.FusedMultiplyAdd(x, b1, c01);
            x = Vector.Create(a1[k]);
            c10 = Vector.FusedMultiplyAdd(x, b0, c10);
            c11 = Vector.FusedMultiplyAdd(x, b1, c11);
            x = Vector.Create(a2[k]);
            c20 = Vector.FusedMultiplyAdd(x, b0, c20);
            c21 = Vector.FusedMultiplyAdd(x, b1, c21);
            x = Vector.Create(a3[k]);
            c30 = Vector.FusedMultiplyAdd(x, b0, c30);
            c31 = Vector.FusedMultiplyAdd(x, b1, c31);
            x = Vector.Create(a4[k]);
            c40 = Vector.FusedMultiplyAdd(x, b0, c40);
            c41 = Vector.FusedMultiplyAdd(x, b1, c41);
            x = Vector.Create(a5[k]);
            c50 = Vector.FusedMultiplyAdd(x, b0, c50);
            c51 = Vector.FusedMultiplyAdd(x, b1, c51);
        }
        int n = Vector<float>.Count;
        c00.Store(tile);
        c01.Store(tile + n);
        c10.Store(tile + 2 * n);
        c11.Store(tile + 3 * n);
        c20.Store(tile + 4 * n);
        c21.Store(tile + 5 * n);
        c30.Store(tile + 6 * n);
        c31.Store(tile + 7 * n);
        c40.Store(tile + 8 * n);
        c41.Store(tile + 9 * n);
        c50.Store(tile + 10 * n);
        c51.Store(tile + 11 * n);
    }
}

/// <summary>Size of a tile: 12 accumulators and their operands fill 16 registers.</summary>
internal static class MatrixTile
{
    public const int Rows = 6;

    public static int Columns => 2 * Vector<float>.Count;
}
