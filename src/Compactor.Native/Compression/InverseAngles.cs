using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;

namespace Compactor.Native.Compression;

/// <summary>
/// What undoes a rotation, one row of float32 a token: R/2 cosines, then R/2 sines, each over <c>c² + s²</c>. Where angles are multiples of a position, that of <c>64·a + b</c> is
/// the sum of two: sines and cosines of every b are made once, those of <c>64·a</c> where a changes, and a row takes four products a pair, in double.
/// </summary>
internal sealed unsafe class InverseAngles
{
    private const int Near = 64;

    private readonly RotaryEmbedding _rotary;
    private readonly double[] _near;   // [Near, 2, R/2]

    public InverseAngles(RotaryEmbedding rotary)
    {
        _rotary = rotary;
        _near = rotary.HasTables ? [] : new double[Near * rotary.RotaryDim];
        for (int b = 0; b < _near.Length / rotary.RotaryDim; b++)
            rotary.AnglesAt(b, _near.AsSpan(b * rotary.RotaryDim, Pairs), _near.AsSpan(b * rotary.RotaryDim + Pairs, Pairs));
    }

    private int Pairs => _rotary.RotaryDim / 2;

    /// <summary>Fills <paramref name="rows"/> [count, R] from row <paramref name="first"/> on; <paramref name="of"/> gives a row's packed token, and its index in its sequence or its position.</summary>
    public void Fill(int first, int count, Func<int, (int PackedToken, int Token)> of, float* rows)
    {
        Span<double> cos = stackalloc double[Pairs], sin = stackalloc double[Pairs];
        int far = -1;
        for (int i = 0; i < count; i++, rows += _rotary.RotaryDim)
        {
            var (packedToken, token) = of(first + i);
            if (_rotary.HasTables)
            {
                _rotary.Angles(packedToken, token, cos, sin);
                Invert(cos, sin, rows);
                continue;
            }
            int position = _rotary.PositionOf(packedToken, token);
            if (position / Near != far)
            {
                far = position / Near;
                _rotary.AnglesAt(far * Near, cos, sin);
            }
            fixed (double* c = cos, s = sin, near = &_near[position % Near * _rotary.RotaryDim])
                Add(c, s, near, near + Pairs, Pairs, rows, rows + Pairs);
        }
    }

    private static void Invert(Span<double> cos, Span<double> sin, float* row)
    {
        for (int p = 0; p < cos.Length; p++)
        {
            double power = cos[p] * cos[p] + sin[p] * sin[p];
            (row[p], row[p + cos.Length]) = ((float)(cos[p] / power), (float)(sin[p] / power));
        }
    }

    /// <summary>Cosines and sines of sums of angles.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void Add(double* cosA, double* sinA, double* cosB, double* sinB, int pairs, float* cos, float* sin)
    {
        int p = 0;
        for (; p <= pairs - 4; p += 4)
        {
            Vector256<double> ca = Vector256.Load(cosA + p), sa = Vector256.Load(sinA + p), cb = Vector256.Load(cosB + p), sb = Vector256.Load(sinB + p);
            Vector128.Narrow((ca * cb - sa * sb).GetLower(), (ca * cb - sa * sb).GetUpper()).Store(cos + p);
            Vector128.Narrow((sa * cb + ca * sb).GetLower(), (sa * cb + ca * sb).GetUpper()).Store(sin + p);
        }
        for (; p < pairs; p++)
            (cos[p], sin[p]) = ((float)(cosA[p] * cosB[p] - sinA[p] * sinB[p]), (float)(sinA[p] * cosB[p] + cosA[p] * sinB[p]));
    }
}
