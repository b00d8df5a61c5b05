using System.Runtime.InteropServices;
using Compactor.Native.Compression;

namespace Compactor.Native.Reference;

/// <summary>Moves tensors between strided memory and plain arrays of doubles.</summary>
internal static unsafe class ReferenceTensor
{
    /// <summary>All rows of one head of one sequence, <c>[n, D]</c>.</summary>
    public static double[,] Rows(in TensorView view, LayerShape shape, int b, int head)
    {
        var rows = new double[shape.LengthOf(b), view.Dim];
        for (int t = 0; t < shape.LengthOf(b); t++)
            Read(view.Row(b, shape.CuSeqlens[b], t, head), view.ElementType, rows, t);
        return rows;
    }

    /// <summary>Reads one dense row into row <paramref name="i"/> of <paramref name="rows"/>.</summary>
    public static void Read(nint row, ElementType type, double[,] rows, int i)
    {
        for (int d = 0; d < rows.GetLength(1); d++)
            rows[i, d] = type switch
            {
                ElementType.Float32 => ((float*)row)[d],
                ElementType.Float16 => (double)((Half*)row)[d],
                _ => BitConverter.Int32BitsToSingle(((ushort*)row)[d] << 16),
            };
    }

    /// <summary>One row.</summary>
    public static ReadOnlySpan<double> Row(double[,] rows, int i) => MemoryMarshal.CreateReadOnlySpan(ref rows[i, 0], rows.GetLength(1));

    /// <summary>Rows <paramref name="first"/> to <c>first + count - 1</c>.</summary>
    public static double[,] Slice(double[,] rows, int first, int count)
    {
        var slice = new double[count, rows.GetLength(1)];
        Array.Copy(rows, (long)first * rows.GetLength(1), slice, 0, slice.Length);
        return slice;
    }

    /// <summary>Undoes a rotation in place: <c>x = (c·x' + s·y') / (c² + s²)</c>, <c>y = (c·y' - s·x') / (c² + s²)</c>.</summary>
    public static void Unrotate(double[,] rows, RotaryEmbedding rotary, int sequenceStart)
    {
        for (int t = 0; t < rows.GetLength(0); t++)
            UnrotateRow(rows, t, rotary, sequenceStart + t, t);
    }

    /// <summary>The same for one row.</summary>
    public static void UnrotateRow(double[,] rows, int row, RotaryEmbedding rotary, int packedToken, int token)
    {
        int pairs = rotary.RotaryDim / 2;
        double[] cos = new double[pairs], sin = new double[pairs];
        rotary.Angles(packedToken, token, cos, sin);
        for (int p = 0; p < pairs; p++)
        {
            var (i, j) = rotary.Style == RotaryStyle.HalfRotation ? (p, p + pairs) : (2 * p, 2 * p + 1);
            double x = rows[row, i], y = rows[row, j], power = cos[p] * cos[p] + sin[p] * sin[p];
            rows[row, i] = (cos[p] * x + sin[p] * y) / power;
            rows[row, j] = (cos[p] * y - sin[p] * x) / power;
        }
    }

    /// <summary>Writes one head's scores from <paramref name="token"/> on into <c>[N, Hkv]</c>.</summary>
    public static void Write(double[] scores, BufferView<float> target, LayerShape shape, int b, int token, int head)
    {
        for (int i = 0; i < scores.Length; i++)
            target.AsSpan()[(shape.CuSeqlens[b] + token + i) * shape.KvHeads + head] = (float)scores[i];
    }
}
