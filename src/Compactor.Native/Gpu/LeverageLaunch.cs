using System.Runtime.InteropServices;
using Compactor.Native.Compression;

namespace Compactor.Native.Gpu;

/// <summary>How keys are read by the leverage kernels: the macros of a variant besides its chunk.</summary>
/// <param name="Dim">Head dimension D.</param>
/// <param name="Type">Element type.</param>
/// <param name="SketchDim">Columns k of the sketch.</param>
/// <param name="Rotary">0 for keys before RoPE, 1 to undo a half rotation, 2 an interleaved one.</param>
/// <param name="BlockSize">Slots of a block where keys are read through block tables; 0 for dense keys.</param>
internal readonly record struct SketchedKeys(int Dim, ElementType Type, int SketchDim, int Rotary, int BlockSize)
{
    public static int RotaryOf(RotaryEmbedding? undo) => undo is null ? 0 : undo.Style == RotaryStyle.HalfRotation ? 1 : 2;

    /// <summary>The factor kernel reads no keys.</summary>
    public KernelVariant FactorVariant() => new("factor.cu", "factor", ("SKETCH_DIM", SketchDim));

    public KernelVariant Variant(string source, string entry, int chunk = 0)
    {
        List<(string, int)> macros = [("ELEMENT", (int)Type), ("HEAD_DIM", Dim), ("SKETCH_DIM", SketchDim), ("ROTARY", Rotary), ("PAGED", BlockSize > 0 ? 1 : 0)];
        if (BlockSize > 0)
            macros.Add(("BLOCK_SIZE", BlockSize));
        if (chunk > 0)
            macros.Add(("CHUNK", chunk));
        return new KernelVariant(source, entry, [.. macros]);
    }
}

/// <summary>
/// Launches of the leverage kernels: sketch_leverage.cu where a chunk's sketch fits into shared memory, so that its keys are read once; else sketch_gram.cu, factor.cu and
/// leverage_apply.cu, which read them twice.
/// </summary>
internal static class LeverageLaunch
{
    public const int MostParts = 96, SmallestPart = 512, PartStep = 128;
    private const int ChunkThreads = 256, PartThreads = 128, PartWarps = PartThreads / 32;

    /// <summary>Whether keys are read once.</summary>
    public static bool Fits(in SketchedKeys keys, int chunk, in GpuLimits limits) => chunk > 0 && ChunkSharedBytes(keys, chunk) <= limits.SharedBytesPerBlock;

    public static LaunchShape Chunks(in SketchedKeys keys, int chunk, long blocks) => new(checked((int)blocks), ChunkThreads, checked((int)ChunkSharedBytes(keys, chunk)));

    public static LaunchShape Center(long blocks) => new(checked((int)blocks), PartThreads, 0);

    public static LaunchShape Gram(in SketchedKeys keys, long blocks) => new(checked((int)blocks), PartThreads, GramBytes(keys));

    public static LaunchShape Factor(in SketchedKeys keys, long blocks) => new(checked((int)blocks), ChunkThreads, InverseFactorBytes(keys.SketchDim, sizeof(double)) + 8 * keys.SketchDim);

    public static LaunchShape Apply(in SketchedKeys keys, long blocks) => new(checked((int)blocks), PartThreads, 4 * keys.Dim + 4 * keys.SketchDim + PhiBytes(keys));

    /// <summary>Parts of a chunk of tokens: at most 96, of at least 512 tokens.</summary>
    public static int Parts(int tokens)
    {
        int even = (int)(((long)tokens + MostParts - 1) / MostParts), part = Math.Max(SmallestPart, (even + PartStep - 1) / PartStep * PartStep);
        return (int)(((long)tokens + part - 1) / part);
    }

    /// <summary>Elements of a part's sums: blocks of 16 x 16 of XᵀX, on or below the diagonal, and the column sums.</summary>
    public static int PartialElements(int sketchDim) => 256 * Blocks(sketchDim) + sketchDim;

    /// <summary>Bytes of a factor as fragments, and L⁻¹·r.</summary>
    public static int FactorBytes(int sketchDim) => sketchDim / 8 * (sketchDim / 16) * 768 + 4 * sketchDim;

    public static IEnumerable<PlannedKernel> Plan(SketchedKeys keys, int chunk, GpuLimits limits)
    {
        if (Fits(keys, chunk, limits))
            return [Of(keys.Variant("sketch_leverage.cu", "sketch_leverage", chunk), Chunks(keys, chunk, 1))];
        return
        [
            Of(keys.Variant("sketch_gram.cu", "sketch_center"), Center(1)),
            Of(keys.Variant("sketch_gram.cu", "sketch_gram"), Gram(keys, 1)),
            Of(keys.FactorVariant(), Factor(keys, 1)),
            Of(keys.Variant("leverage_apply.cu", "leverage_apply"), Apply(keys, 1)),
        ];

        static PlannedKernel Of(KernelVariant variant, LaunchShape shape) => new(variant, shape.Threads, shape.SharedBytes);
    }

    private static long ChunkSharedBytes(in SketchedKeys keys, int chunk)
    {
        int k = keys.SketchDim, warpTokens = WarpTokens(k);
        long tokens = (chunk + warpTokens - 1) / warpTokens * warpTokens;
        return 4 * k * tokens + 40 * k + new[] { PhiBytes(keys) + 4 * keys.Dim, InverseFactorBytes(k, sizeof(float)), 1536 * Blocks(k) }.Max();
    }

    /// <summary>Shared memory of <c>InverseFactor</c> in cuda/cholesky.cuh: blocks of padded rows, pivots and their inverses, and a word.</summary>
    private static int InverseFactorBytes(int sketchDim, int realBytes)
    {
        return (Blocks(sketchDim) + sketchDim / 16 - 1) * 16 * (16 * realBytes + (realBytes == sizeof(float) ? 16 : 8)) + 2 * sketchDim * realBytes + 8;
    }

    private static int Blocks(int sketchDim) => sketchDim / 16 * (sketchDim / 16 + 1) / 2;

    private static int WarpTokens(int sketchDim) => sketchDim <= 64 ? 32 : 16;

    private static int GramBytes(in SketchedKeys keys) => 4 * PartWarps * keys.SketchDim
        + Math.Max(4 * keys.SketchDim * PartWarps * WarpTokens(keys.SketchDim) + 4 * keys.Dim + PhiBytes(keys), 4 * PartialElements(keys.SketchDim));

    private static int PhiBytes(in SketchedKeys keys) => 2 * keys.Dim * keys.SketchDim;
}

/// <summary>Mirror of <c>Keys</c> in cuda/sketch.cuh.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct DeviceKeys
{
    public DeviceTensor Dense;
    public DevicePaged Cache;
    public DevicePagedTables Tables;
    public ulong Phi, Rotations;
    public int RotaryDim, KvHeads, RotationsOfBatch, PhiPerHead, Center, Unused;
}

[StructLayout(LayoutKind.Sequential)]
internal struct SketchLeverageParams
{
    public DeviceKeys Keys;
    public ulong CuSeqlens, ChunkStarts, Scores, Status;
    public double Epsilon;
    public int Sequences, SkipFirst, SkipLast, Unused;
}

[StructLayout(LayoutKind.Sequential)]
internal struct SketchCenterParams
{
    public DeviceKeys Keys;
    public ulong CuSeqlens, ChunkStarts, Centers;
    public int Sequences, ChunkSize, SkipFirst, SkipLast;
}

[StructLayout(LayoutKind.Sequential)]
internal struct SketchGramParams
{
    public DeviceKeys Keys;
    public ulong CuSeqlens, ChunkStarts, PartStarts, Centers, Partials, Status;
    public int Sequences, ChunkSize, SkipFirst, SkipLast;
}

[StructLayout(LayoutKind.Sequential)]
internal struct FactorParams
{
    public ulong CuSeqlens, ChunkStarts, PartStarts, Partials, Totals, Factors, Status;
    public double Epsilon;
    public int Sequences, KvHeads, ChunkSize, SkipFirst, SkipLast, Center, Finish, Paged;
}

[StructLayout(LayoutKind.Sequential)]
internal struct LeverageApplyParams
{
    public DeviceKeys Keys;
    public ulong CuSeqlens, ChunkStarts, PartStarts, Centers, Factors, Scores;
    public int Sequences, ChunkSize, SkipFirst, SkipLast;
}
