using System.Runtime.InteropServices;

// The structs of compactor.h, field for field; what they mean is said there. A test compares sizes and offsets.
namespace Compactor.Abi;

/// <summary>A struct that begins with its size and may grow at its end.</summary>
internal interface IGrowing
{
    /// <summary>Bytes of its first published version: a program never gives fewer.</summary>
    static abstract int FirstSize { get; }
}

[StructLayout(LayoutKind.Sequential)]
internal unsafe struct BackendOptions : IGrowing
{
    public static int FirstSize => 40;

    public uint StructSize;
    public int Kind, Device, Threads, SimdBits, Reserved;
    public void* Context, Stream;
}

[StructLayout(LayoutKind.Sequential)]
internal unsafe struct BackendInfo : IGrowing
{
    public static int FirstSize => 128;

    public const int DescriptionBytes = 112, CompilerBytes = 48;

    public uint StructSize;
    public int Kind, Threads, SimdBits;
    public fixed byte Description[DescriptionBytes];
    public fixed byte Compiler[CompilerBytes];
}

[StructLayout(LayoutKind.Sequential)]
internal struct Options : IGrowing
{
    public static int FirstSize => 120;

    public uint StructSize;
    public int SketchDimension, SketchSharing, CenterKeys, LeverageChunk, LeverageScope;
    public double Epsilon;
    public int AttentionChunk, GroupReduction;
    public double AttentionScale;
    public int WeightByValueNorm, PoolWidth, AttentionScope, UnbiasedStandardDeviation;
    public double StandardDeviationFloor, LeverageWeight;
    public int LeverageWeightRule, ProtectFirst, ProtectLast, ScoreProtected, ProtectedBudget, SelectionScope, RetentionCount, MinTokensPerHead;
    public ulong Seed;
}

[StructLayout(LayoutKind.Sequential)]
internal struct Budget : IGrowing
{
    public static int FirstSize => 16;

    public uint StructSize;
    public int Unit;
    public double Amount;
}

[StructLayout(LayoutKind.Sequential)]
internal unsafe struct Shape : IGrowing
{
    public static int FirstSize => 48;

    public uint StructSize;
    public int Sequences;
    public int* CuSeqlens;
    public long* SequenceIds;
    public int QueryHeads, KvHeads, HeadDim, ElementType, Layer, FirstHead;
}

[StructLayout(LayoutKind.Sequential)]
internal struct PlanInfo : IGrowing
{
    public static int FirstSize => 48;

    public uint StructSize;
    public int Sequences, KvHeads, KeepsEverything;
    public long Tokens, Pairs, KeptPairs;
    public ulong WorkspaceBytes;
}

[StructLayout(LayoutKind.Sequential)]
internal unsafe struct Tensor : IGrowing
{
    public static int FirstSize => 64;

    public uint StructSize;
    public int ElementType;
    public void* Data;
    public ulong DataBytes;
    public int Tokens, Heads, Dim, Reserved;
    public long TokenStride, HeadStride, SequenceStride;
}

[StructLayout(LayoutKind.Sequential)]
internal unsafe struct Rotary : IGrowing
{
    public static int FirstSize => 72;

    public uint StructSize;
    public int Style, RotaryDim, Reserved;
    public double Theta;
    public double* InverseFrequencies;
    public int* Positions;
    public long PositionCount;
    public float* Cos, Sin;
    public long TableRows;
}

[StructLayout(LayoutKind.Sequential)]
internal unsafe struct Layer : IGrowing
{
    public static int FirstSize => 72;

    public uint StructSize;
    public int Policy;
    public Tensor* Key, Value, KeyPreRope, Query;
    public Rotary* Rotary;
    public float* Phi;
    public long PhiCount;
    public ulong PolicySeed;
}

[StructLayout(LayoutKind.Sequential)]
internal struct CacheOptions : IGrowing
{
    public static int FirstSize => 32;

    public uint StructSize;
    public int Layers, KvHeads, HeadDim, ElementType, Blocks, BlockSize, Reserved;
}

[StructLayout(LayoutKind.Sequential)]
internal unsafe struct CacheInfo : IGrowing
{
    public static int FirstSize => 48;

    public uint StructSize;
    public int BlockSize, Blocks, FreeBlocks;
    public long UnusedSlots;
    public void* Keys, Values;
    public int* Positions;
}

[StructLayout(LayoutKind.Sequential)]
internal unsafe struct TablesInfo : IGrowing
{
    public static int FirstSize => 96;

    public uint StructSize;
    public int Rows, RowStride, Pages;
    public int* HostTables, HostLengths, HostIndptr, HostIndices, HostLastPageLengths;
    public int* DeviceTables, DeviceLengths, DeviceIndptr, DeviceIndices, DeviceLastPageLengths;
}

[StructLayout(LayoutKind.Sequential)]
internal unsafe struct PagedView : IGrowing
{
    public static int FirstSize => 72;

    public uint StructSize;
    public int ElementType;
    public void* Keys, Values;
    public ulong Bytes;
    public int Blocks, BlockSize, KvHeads, Dim;
    public long BlockStride, SlotStride, HeadStride;
}

[StructLayout(LayoutKind.Sequential)]
internal struct DecodeOptions : IGrowing
{
    public static int FirstSize => 24;

    public uint StructSize;
    public int Reserved;
    public double Scale, SoftCap;
}

[StructLayout(LayoutKind.Sequential)]
internal struct Calibration : IGrowing
{
    public static int FirstSize => 32;

    public uint StructSize;
    public int Samples;
    public double Alpha, Beta, Error;
}

[StructLayout(LayoutKind.Sequential)]
internal struct CalibrationSample : IGrowing
{
    public static int FirstSize => 32;

    public uint StructSize;
    public int Reserved;
    public double Retention, ContextNll, Quality;
}
