using System.Runtime.CompilerServices;

namespace Compactor.Native.Cpu;

/// <summary>
/// The one matrix kernel of the CPU backend: <c>c[6, W] = a[6, depth] · b[depth, W]</c> with all of c in registers.
/// W is 4 vectors where there are 32 registers (24 accumulators, 4 of b, 1 broadcast), or 3 or 2 where that pads less, and 2 where there are 16. Each element of c
/// sums over depth in order, so a result depends neither on which rows share its tile nor on W.
/// </summary>
internal static unsafe class MatrixTile<TLanes, TVector>
    where TLanes : struct, ILanes<TVector>
    where TVector : struct
{
    public const int Rows = 6;

    /// <summary>Columns W of the widest tile.</summary>
    public static int Width
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        get => TLanes.Count * (TLanes.WideTile ? 4 : 2);
    }

    /// <summary>The W, also that of packed panels, that pads <paramref name="columns"/> least; the widest of those.</summary>
    public static int WidthFor(int columns) =>
        Enumerable.Range(2, Width / TLanes.Count - 1).Select(vectors => vectors * TLanes.Count).OrderBy(width => PaddedColumns(columns, width)).ThenByDescending(width => width).First();

    /// <summary><paramref name="columns"/> rounded up to whole panels.</summary>
    public static int PaddedColumns(int columns, int width) => (columns + width - 1) / width * width;

    /// <summary><paramref name="rows"/> rounded up to whole tiles.</summary>
    public static int PaddedRows(int rows) => (rows + Rows - 1) / Rows * Rows;

    /// <summary>Computes one tile.</summary>
    /// <param name="a">Element (0, 0) of a; element (i, p) is at <c>i·aRow + p·aDepth</c>.</param>
    /// <param name="aRow">Stride of a's rows.</param>
    /// <param name="aDepth">Stride along depth.</param>
    /// <param name="b">Row 0 of b, W floats.</param>
    /// <param name="bDepth">Stride of b's rows.</param>
    /// <param name="depth">Length of the sums.</param>
    /// <param name="c">Receives 6 rows of W floats.</param>
    /// <param name="cRow">Stride of c's rows.</param>
    /// <param name="width">W: 2 to 4 vectors, 2 where there are 16 registers.</param>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Compute(float* a, nint aRow, nint aDepth, float* b, nint bDepth, int depth, float* c, nint cRow, int width)
    {
        if (TLanes.WideTile && width == 4 * TLanes.Count)
            Wide(a, aRow, aDepth, b, bDepth, depth, c, cRow);
        else if (TLanes.WideTile && width == 3 * TLanes.Count)
            Middle(a, aRow, aDepth, b, bDepth, depth, c, cRow);
        else
            Narrow(a, aRow, aDepth, b, bDepth, depth, c, cRow);
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void Wide(float* a, nint aRow, nint aDepth, float* b, nint bDepth, int depth, float* c, nint cRow)
    {
        nint n = TLanes.Count;
        var zero = TLanes.Broadcast(0);
        TVector c00 = zero, c01 = zero, c02 = zero, c03 = zero, c10 = zero, c11 = zero, c12 = zero, c13 = zero;
        TVector c20 = zero, c21 = zero, c22 = zero, c23 = zero, c30 = zero, c31 = zero, c32 = zero, c33 = zero;
        TVector c40 = zero, c41 = zero, c42 = zero, c43 = zero, c50 = zero, c51 = zero, c52 = zero, c53 = zero;
        float* a3 = a + 3 * aRow;
        for (; depth > 0; depth--)
        {
            TVector b0 = TLanes.Load(b), b1 = TLanes.Load(b + n), b2 = TLanes.Load(b + 2 * n), b3 = TLanes.Load(b + 3 * n);
            var x = TLanes.Broadcast(*a);
            c00 = TLanes.MultiplyAdd(x, b0, c00); c01 = TLanes.MultiplyAdd(x, b1, c01); c02 = TLanes.MultiplyAdd(x, b2, c02); c03 = TLanes.MultiplyAdd(x, b3, c03);
            x = TLanes.Broadcast(a[aRow]);
            c10 = TLanes.MultiplyAdd(x, b0, c10); c11 = TLanes.MultiplyAdd(x, b1, c11); c12 = TLanes.MultiplyAdd(x, b2, c12); c13 = TLanes.MultiplyAdd(x, b3, c13);
            x = TLanes.Broadcast(a[2 * aRow]);
            c20 = TLanes.MultiplyAdd(x, b0, c20); c21 = TLanes.MultiplyAdd(x, b1, c21); c22 = TLanes.MultiplyAdd(x, b2, c22); c23 = TLanes.MultiplyAdd(x, b3, c23);
            x = TLanes.Broadcast(*a3);
            c30 = TLanes.MultiplyAdd(x, b0, c30); c31 = TLanes.MultiplyAdd(x, b1, c31); c32 = TLanes.MultiplyAdd(x, b2, c32); c33 = TLanes.MultiplyAdd(x, b3, c33);
            x = TLanes.Broadcast(a3[aRow]);
            c40 = TLanes.MultiplyAdd(x, b0, c40); c41 = TLanes.MultiplyAdd(x, b1, c41); c42 = TLanes.MultiplyAdd(x, b2, c42); c43 = TLanes.MultiplyAdd(x, b3, c43);
            x = TLanes.Broadcast(a3[2 * aRow]);
            c50 = TLanes.MultiplyAdd(x, b0, c50); c51 = TLanes.MultiplyAdd(x, b1, c51); c52 = TLanes.MultiplyAdd(x, b2, c52); c53 = TLanes.MultiplyAdd(x, b3, c53);
            a += aDepth;
            a3 += aDepth;
            b += bDepth;
        }
        StoreRow(c, c00, c01, c02, c03);
        StoreRow(c + cRow, c10, c11, c12, c13);
        StoreRow(c + 2 * cRow, c20, c21, c22, c23);
        StoreRow(c + 3 * cRow, c30, c31, c32, c33);
        StoreRow(c + 4 * cRow, c40, c41, c42, c43);
        StoreRow(c + 5 * cRow, c50, c51, c52, c53);
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void Middle(float* a, nint aRow, nint aDepth, float* b, nint bDepth, int depth, float* c, nint cRow)
    {
        nint n = TLanes.Count;
        var zero = TLanes.Broadcast(0);
        TVector c00 = zero, c01 = zero, c02 = zero, c10 = zero, c11 = zero, c12 = zero, c20 = zero, c21 = zero, c22 = zero;
        TVector c30 = zero, c31 = zero, c32 = zero, c40 = zero, c41 = zero, c42 = zero, c50 = zero, c51 = zero, c52 = zero;
        float* a3 = a + 3 * aRow;
        for (; depth > 0; depth--)
        {
            TVector b0 = TLanes.Load(b), b1 = TLanes.Load(b + n), b2 = TLanes.Load(b + 2 * n);
            var x = TLanes.Broadcast(*a);
            c00 = TLanes.MultiplyAdd(x, b0, c00); c01 = TLanes.MultiplyAdd(x, b1, c01); c02 = TLanes.MultiplyAdd(x, b2, c02);
            x = TLanes.Broadcast(a[aRow]);
            c10 = TLanes.MultiplyAdd(x, b0, c10); c11 = TLanes.MultiplyAdd(x, b1, c11); c12 = TLanes.MultiplyAdd(x, b2, c12);
            x = TLanes.Broadcast(a[2 * aRow]);
            c20 = TLanes.MultiplyAdd(x, b0, c20); c21 = TLanes.MultiplyAdd(x, b1, c21); c22 = TLanes.MultiplyAdd(x, b2, c22);
            x = TLanes.Broadcast(*a3);
            c30 = TLanes.MultiplyAdd(x, b0, c30); c31 = TLanes.MultiplyAdd(x, b1, c31); c32 = TLanes.MultiplyAdd(x, b2, c32);
            x = TLanes.Broadcast(a3[aRow]);
            c40 = TLanes.MultiplyAdd(x, b0, c40); c41 = TLanes.MultiplyAdd(x, b1, c41); c42 = TLanes.MultiplyAdd(x, b2, c42);
            x = TLanes.Broadcast(a3[2 * aRow]);
            c50 = TLanes.MultiplyAdd(x, b0, c50); c51 = TLanes.MultiplyAdd(x, b1, c51); c52 = TLanes.MultiplyAdd(x, b2, c52);
            a += aDepth;
            a3 += aDepth;
            b += bDepth;
        }
        StoreRow(c, c00, c01, c02);
        StoreRow(c + cRow, c10, c11, c12);
        StoreRow(c + 2 * cRow, c20, c21, c22);
        StoreRow(c + 3 * cRow, c30, c31, c32);
        StoreRow(c + 4 * cRow, c40, c41, c42);
        StoreRow(c + 5 * cRow, c50, c51, c52);
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void Narrow(float* a, nint aRow, nint aDepth, float* b, nint bDepth, int depth, float* c, nint cRow)
    {
        nint n = TLanes.Count;
        var zero = TLanes.Broadcast(0);
        TVector c00 = zero, c01 = zero, c10 = zero, c11 = zero, c20 = zero, c21 = zero;
        TVector c30 = zero, c31 = zero, c40 = zero, c41 = zero, c50 = zero, c51 = zero;
        float* a3 = a + 3 * aRow;
        for (; depth > 0; depth--)
        {
            TVector b0 = TLanes.Load(b), b1 = TLanes.Load(b + n);
            var x = TLanes.Broadcast(*a);
            c00 = TLanes.MultiplyAdd(x, b0, c00); c01 = TLanes.MultiplyAdd(x, b1, c01);
            x = TLanes.Broadcast(a[aRow]);
            c10 = TLanes.MultiplyAdd(x, b0, c10); c11 = TLanes.MultiplyAdd(x, b1, c11);
            x = TLanes.Broadcast(a[2 * aRow]);
            c20 = TLanes.MultiplyAdd(x, b0, c20); c21 = TLanes.MultiplyAdd(x, b1, c21);
            x = TLanes.Broadcast(*a3);
            c30 = TLanes.MultiplyAdd(x, b0, c30); c31 = TLanes.MultiplyAdd(x, b1, c31);
            x = TLanes.Broadcast(a3[aRow]);
            c40 = TLanes.MultiplyAdd(x, b0, c40); c41 = TLanes.MultiplyAdd(x, b1, c41);
            x = TLanes.Broadcast(a3[2 * aRow]);
            c50 = TLanes.MultiplyAdd(x, b0, c50); c51 = TLanes.MultiplyAdd(x, b1, c51);
            a += aDepth;
            a3 += aDepth;
            b += bDepth;
        }
        StoreRow(c, c00, c01);
        StoreRow(c + cRow, c10, c11);
        StoreRow(c + 2 * cRow, c20, c21);
        StoreRow(c + 3 * cRow, c30, c31);
        StoreRow(c + 4 * cRow, c40, c41);
        StoreRow(c + 5 * cRow, c50, c51);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void StoreRow(float* c, TVector v0, TVector v1, TVector v2, TVector v3)
    {
        StoreRow(c, v0, v1);
        StoreRow(c + 2 * TLanes.Count, v2, v3);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void StoreRow(float* c, TVector v0, TVector v1, TVector v2)
    {
        StoreRow(c, v0, v1);
        TLanes.Store(v2, c + 2 * TLanes.Count);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void StoreRow(float* c, TVector v0, TVector v1)
    {
        TLanes.Store(v0, c);
        TLanes.Store(v1, c + TLanes.Count);
    }
}
