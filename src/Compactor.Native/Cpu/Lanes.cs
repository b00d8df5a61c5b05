using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;
using System.Runtime.Intrinsics.X86;

namespace Compactor.Native.Cpu;

/// <summary>One SIMD width. Kernels are written once against this interface and specialised by the JIT.</summary>
/// <typeparam name="TVector">The vector of float32 lanes.</typeparam>
internal unsafe interface ILanes<TVector> where TVector : struct
{
    /// <summary>Lanes of a vector.</summary>
    static abstract int Count { get; }

    /// <summary>Whether the register file holds 24 accumulators beside their operands (32 registers) or 12 (16 registers).</summary>
    static abstract bool WideTile { get; }

    static abstract TVector Load(float* address);
    static abstract void Store(TVector vector, float* address);
    static abstract TVector Broadcast(float value);
    static abstract TVector Add(TVector a, TVector b);
    static abstract TVector Subtract(TVector a, TVector b);
    static abstract TVector Multiply(TVector a, TVector b);
    static abstract TVector MultiplyAdd(TVector a, TVector b, TVector c);
    static abstract TVector Max(TVector a, TVector b);
    static abstract float Sum(TVector a);
    static abstract float MaxLane(TVector a);

    /// <summary>2^x for x in [-126, 0]; below -126 as at -126; NaN stays NaN. Relative error below 2e-7.</summary>
    static abstract TVector Exp2(TVector x);
}

/// <summary>Coefficients of a minimax polynomial (relative error 2e-9) for 2^x on [-1/2, 1/2].</summary>
file static class Exp2Polynomial
{
    public const float C0 = 1f, C1 = 0.69314718f, C2 = 0.24022646f, C3 = 0.055503286f, C4 = 0.0096184891f, C5 = 0.0013399931f, C6 = 0.00015345799f;
}

/// <summary>AVX-512: 16 lanes, 32 registers.</summary>
internal readonly unsafe struct Lanes512 : ILanes<Vector512<float>>
{
    public static int Count => 16;
    public static bool WideTile => true;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector512<float> Load(float* address) => Vector512.Load(address);
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Store(Vector512<float> vector, float* address) => vector.Store(address);
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector512<float> Broadcast(float value) => Vector512.Create(value);
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector512<float> Add(Vector512<float> a, Vector512<float> b) => a + b;
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector512<float> Subtract(Vector512<float> a, Vector512<float> b) => a - b;
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector512<float> Multiply(Vector512<float> a, Vector512<float> b) => a * b;
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector512<float> MultiplyAdd(Vector512<float> a, Vector512<float> b, Vector512<float> c) => Vector512.FusedMultiplyAdd(a, b, c);
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector512<float> Max(Vector512<float> a, Vector512<float> b) => Avx512F.Max(a, b);
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static float Sum(Vector512<float> a) => Lanes256.Sum(a.GetLower() + a.GetUpper());
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static float MaxLane(Vector512<float> a) => Lanes256.MaxLane(Avx.Max(a.GetLower(), a.GetUpper()));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector512<float> Exp2(Vector512<float> x)
    {
        x = Avx512F.Max(Vector512.Create(-126f), x);
        var whole = Avx512F.RoundScale(x, 0);
        var r = x - whole;
        var p = Vector512.FusedMultiplyAdd(Vector512.Create(Exp2Polynomial.C6), r, Vector512.Create(Exp2Polynomial.C5));
        p = Vector512.FusedMultiplyAdd(p, r, Vector512.Create(Exp2Polynomial.C4));
        p = Vector512.FusedMultiplyAdd(p, r, Vector512.Create(Exp2Polynomial.C3));
        p = Vector512.FusedMultiplyAdd(p, r, Vector512.Create(Exp2Polynomial.C2));
        p = Vector512.FusedMultiplyAdd(p, r, Vector512.Create(Exp2Polynomial.C1));
        p = Vector512.FusedMultiplyAdd(p, r, Vector512.Create(Exp2Polynomial.C0));
        return Avx512F.Scale(p, whole);
    }
}

/// <summary>AVX2 with FMA: 8 lanes, 16 registers.</summary>
internal readonly unsafe struct Lanes256 : ILanes<Vector256<float>>
{
    public static int Count => 8;
    public static bool WideTile => false;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector256<float> Load(float* address) => Vector256.Load(address);
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Store(Vector256<float> vector, float* address) => vector.Store(address);
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector256<float> Broadcast(float value) => Vector256.Create(value);
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector256<float> Add(Vector256<float> a, Vector256<float> b) => a + b;
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector256<float> Subtract(Vector256<float> a, Vector256<float> b) => a - b;
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector256<float> Multiply(Vector256<float> a, Vector256<float> b) => a * b;
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector256<float> MultiplyAdd(Vector256<float> a, Vector256<float> b, Vector256<float> c) => Vector256.FusedMultiplyAdd(a, b, c);
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector256<float> Max(Vector256<float> a, Vector256<float> b) => Avx.Max(a, b);
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static float Sum(Vector256<float> a) => Lanes128.Sum(a.GetLower() + a.GetUpper());
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static float MaxLane(Vector256<float> a) => Lanes128.MaxLane(Vector128.Max(a.GetLower(), a.GetUpper()));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector256<float> Exp2(Vector256<float> x)
    {
        x = Avx.Max(Vector256.Create(-126f), x);
        var whole = Avx.RoundToNearestInteger(x);
        var r = x - whole;
        var p = Vector256.FusedMultiplyAdd(Vector256.Create(Exp2Polynomial.C6), r, Vector256.Create(Exp2Polynomial.C5));
        p = Vector256.FusedMultiplyAdd(p, r, Vector256.Create(Exp2Polynomial.C4));
        p = Vector256.FusedMultiplyAdd(p, r, Vector256.Create(Exp2Polynomial.C3));
        p = Vector256.FusedMultiplyAdd(p, r, Vector256.Create(Exp2Polynomial.C2));
        p = Vector256.FusedMultiplyAdd(p, r, Vector256.Create(Exp2Polynomial.C1));
        p = Vector256.FusedMultiplyAdd(p, r, Vector256.Create(Exp2Polynomial.C0));
        var power = ((Avx.ConvertToVector256Int32(whole) + Vector256.Create(127)) << 23).AsSingle();
        return p * power;
    }
}

/// <summary>Any machine: 4 lanes (SSE, NEON, or software).</summary>
internal readonly unsafe struct Lanes128 : ILanes<Vector128<float>>
{
    public static int Count => 4;
    public static bool WideTile => false;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector128<float> Load(float* address) => Vector128.Load(address);
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Store(Vector128<float> vector, float* address) => vector.Store(address);
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector128<float> Broadcast(float value) => Vector128.Create(value);
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector128<float> Add(Vector128<float> a, Vector128<float> b) => a + b;
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector128<float> Subtract(Vector128<float> a, Vector128<float> b) => a - b;
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector128<float> Multiply(Vector128<float> a, Vector128<float> b) => a * b;
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector128<float> MultiplyAdd(Vector128<float> a, Vector128<float> b, Vector128<float> c) => Vector128.MultiplyAddEstimate(a, b, c);
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector128<float> Max(Vector128<float> a, Vector128<float> b) => Vector128.Max(a, b);
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static float Sum(Vector128<float> a) => a[0] + a[2] + (a[1] + a[3]);
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static float MaxLane(Vector128<float> a) => MathF.Max(MathF.Max(a[0], a[2]), MathF.Max(a[1], a[3]));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector128<float> Exp2(Vector128<float> x)
    {
        x = Vector128.Max(Vector128.Create(-126f), x);
        var whole = Vector128.Round(x);
        var r = x - whole;
        var p = Vector128.MultiplyAddEstimate(Vector128.Create(Exp2Polynomial.C6), r, Vector128.Create(Exp2Polynomial.C5));
        p = Vector128.MultiplyAddEstimate(p, r, Vector128.Create(Exp2Polynomial.C4));
        p = Vector128.MultiplyAddEstimate(p, r, Vector128.Create(Exp2Polynomial.C3));
        p = Vector128.MultiplyAddEstimate(p, r, Vector128.Create(Exp2Polynomial.C2));
        p = Vector128.MultiplyAddEstimate(p, r, Vector128.Create(Exp2Polynomial.C1));
        p = Vector128.MultiplyAddEstimate(p, r, Vector128.Create(Exp2Polynomial.C0));
        var power = ((Vector128.ConvertToInt32(whole) + Vector128.Create(127)) << 23).AsSingle();
        return p * power;
    }
}
