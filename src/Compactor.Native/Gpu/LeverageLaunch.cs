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

    public KernelVariant Variant(string source, string entry, int chunk)
    {
        List<(string, int)> macros = [("ELEMENT", (int)Type), ("HEAD_DIM", Dim), ("SKETCH_DIM", SketchDim), ("ROTARY", Rotary), ("PAGED", BlockSize > 0 ? 1 : 0)];
        if (BlockSize > 0)
            macros.Add(("BLOCK_SIZE", BlockSize));
        if (chunk > 0)
            macros.Add(("CHUNK", chunk));
        return new KernelVariant(source, entry, [.. macros]);
    }
}

/// <summary>Launch shapes of sketch_leverage.cu.</summary>
internal static class LeverageLaunch
{
    private const int Threads = 256, Warps = 8, SmallestLimit = 101376;

    /// <summary>Whether a chunk's sketch fits into a block's shared memory, so that its keys are read once.</summary>
    public static bool Fits(in SketchedKeys keys, int chunk, in GpuLimits limits) => chunk > 0 && SharedBytes(keys, chunk) <= limits.SharedBytesPerBlock;

    public static LaunchShape Shape(in SketchedKeys keys, int chunk, long blocks) => new(checked((int)blocks), Threads, checked((int)SharedBytes(keys, chunk)));

    private static long SharedBytes(in SketchedKeys keys, int chunk)
    {
        int k = keys.SketchDim, warpTokens = k <= 64 ? 32 : 16;
        long tokens = (chunk + warpTokens - 1) / warpTokens * warpTokens;
        return 4 * k * tokens + 56 * k + Math.Max(PhiBytes(keys) + 4 * keys.Dim, Math.Max(2 * k * (k + 1), 4 * k * (k + 8)));
    }

    /// <summary>Phi lies in shared memory where a tile of X fits beside it on every device.</summary>
    public static int PhiBytes(in SketchedKeys keys)
    {
        int k = keys.SketchDim, phi = 2 * keys.Dim * k, tile = Warps * (k <= 64 ? 32 : 16) * k * 4;
        return tile + phi + 4 * keys.Dim + Warps * k * 4 <= SmallestLimit ? phi : 0;
    }
}

/// <summary>Mirror of <c>Keys</c> in cuda/sketch.cuh.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct DeviceKeys
{
    public DeviceTensor Dense;
    public DevicePaged Cache;
    public DevicePagedTables Tables;
    public ulong Phi, Rotations;
    public int RotaryDim, KvHeads, PhiPerHead, Center;
}

[StructLayout(LayoutKind.Sequential)]
internal struct SketchLeverageParams
{
    public DeviceKeys Keys;
    public ulong CuSeqlens, ChunkStarts, Scores, Status;
    public double Epsilon;
    public int Sequences, SkipFirst, SkipLast, Unused;
}
