using System.Reflection;
using System.Runtime.InteropServices;

namespace PInvokeSample;

/// <summary>What this host uses of compactor.h, declared as it stands there. Nothing else of Compactor.Native is referenced.</summary>
public static unsafe partial class Native
{
    private const string Library = "compactor_native";

    public const int Float32 = 0, BackendCuda = 1, BackendCpu = 2, PresetPaper = 0, BudgetRetention = 0, PolicyLeverage = 1;

    static Native() => NativeLibrary.SetDllImportResolver(typeof(Native).Assembly, Resolve);

    /// <summary>COMPACTOR_LIBRARY says where the library is; without it, where the system looks.</summary>
    private static nint Resolve(string name, Assembly assembly, DllImportSearchPath? search) =>
        name == Library && Environment.GetEnvironmentVariable("COMPACTOR_LIBRARY") is { Length: > 0 } path ? NativeLibrary.Load(path) : 0;

    [LibraryImport(Library)] public static partial uint compactor_abi_version();
    [LibraryImport(Library)] private static partial nint compactor_last_error();
    [LibraryImport(Library)] private static partial nint compactor_status_name(int status);
    [LibraryImport(Library)] public static partial int compactor_set_log(delegate* unmanaged<nint, int, byte*, void> callback, nint userData);
    [LibraryImport(Library)] public static partial int compactor_live_handles(out long count);
    [LibraryImport(Library)] public static partial int compactor_backend_open(BackendOptions* options, out ulong backend);
    [LibraryImport(Library)] public static partial int compactor_backend_synchronize(ulong backend);
    [LibraryImport(Library)] public static partial int compactor_backend_close(ulong backend);
    [LibraryImport(Library)] public static partial int compactor_options_preset(int preset, ref Options options);
    [LibraryImport(Library)] public static partial int compactor_plan_create(in Shape shape, in Options options, in Budget budgets, int budgetCount, out ulong plan);
    [LibraryImport(Library)] public static partial int compactor_plan_describe(ulong plan, ref PlanInfo info);
    [LibraryImport(Library)] public static partial int compactor_plan_destroy(ulong plan);
    [LibraryImport(Library)]
    public static partial int compactor_compress_layer(ulong backend, ulong plan, in Layer layer, void* workspace, ulong workspaceBytes, int* keptIndices, long keptCount,
        int* keptOffsets, long offsetCount, void* keyOut, ulong keyBytes, void* valueOut, ulong valueBytes);
    [LibraryImport(Library)] public static partial int compactor_cache_create(ulong backend, in CacheOptions options, out ulong cache);
    [LibraryImport(Library)] public static partial int compactor_cache_destroy(ulong cache);
    [LibraryImport(Library)] public static partial int compactor_sequence_create(ulong cache, out ulong sequence);
    [LibraryImport(Library)] public static partial int compactor_sequence_free(ulong sequence);
    [LibraryImport(Library)] public static partial int compactor_sequence_compress(in ulong sequences, int count, int layer, ulong plan, in Layer inputs, int* firstPositions, out ulong compaction);
    [LibraryImport(Library)] public static partial int compactor_compaction_complete(ulong compaction);
    [LibraryImport(Library)] public static partial int compactor_sequence_lengths(ulong sequence, int layer, int* lengths, int count, int* positionEnd);
    [LibraryImport(Library)]
    public static partial int compactor_sequence_read(ulong sequence, int layer, int head, void* keys, ulong keyBytes, void* values, ulong valueBytes, int* positions, int positionCount);
    [LibraryImport(Library)]
    public static partial int compactor_sequence_attend(in ulong sequences, int count, int layer, in Tensor query, void* options, float* output, long outputCount, float* logSumExp, long lseCount);

    /// <summary>Turns a status into an exception with the library's own words.</summary>
    public static void Check(int status)
    {
        if (status != 0)
            throw new InvalidOperationException($"{Marshal.PtrToStringUTF8(compactor_status_name(status))}: {Marshal.PtrToStringUTF8(compactor_last_error())}");
    }
}

public unsafe struct BackendOptions { public uint StructSize; public int Kind, Device, Threads, SimdBits, Reserved; public void* Context, Stream; }

public struct Options
{
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

public struct Budget { public uint StructSize; public int Unit; public double Amount; }

public unsafe struct Shape { public uint StructSize; public int Sequences; public int* CuSeqlens; public long* SequenceIds; public int QueryHeads, KvHeads, HeadDim, ElementType, Layer, FirstHead; }

public struct PlanInfo { public uint StructSize; public int Sequences, KvHeads, KeepsEverything; public long Tokens, Pairs, KeptPairs; public ulong WorkspaceBytes; }

public unsafe struct Tensor { public uint StructSize; public int ElementType; public void* Data; public ulong DataBytes; public int Tokens, Heads, Dim, Reserved; public long TokenStride, HeadStride, SequenceStride; }

public unsafe struct Rotary { public uint StructSize; public int Style, RotaryDim, Reserved; public double Theta; public double* InverseFrequencies; public int* Positions; public long PositionCount; public float* Cos, Sin; public long TableRows; }

public unsafe struct Layer { public uint StructSize; public int Policy; public Tensor* Key, Value, KeyPreRope, Query; public Rotary* Rotary; public float* Phi; public long PhiCount; public ulong PolicySeed; }

public struct CacheOptions { public uint StructSize; public int Layers, KvHeads, HeadDim, ElementType, Blocks, BlockSize, Reserved; }
