using System.Runtime.InteropServices;

namespace Compactor.Native.Gpu;

/// <summary>Variants and launch shapes of decode_attention.cu.</summary>
internal static class DecodeAttentionLaunch
{
    private const int SplitKeys = 512, MergeThreads = 128, MergeHeads = 4, LargestRing = 101376;

    public static KernelVariant Variant(int dim, ElementType type, int group, bool merge = false) =>
        new("decode_attention.cu", merge ? "decode_merge" : "decode_attention", ("ELEMENT", (int)type), ("HEAD_DIM", dim), ("GROUP", group));

    /// <summary>Splits of the longest head that tables have room for.</summary>
    public static int MostSplits(int rowStride, int blockSize) => checked((int)(((long)rowStride * blockSize + SplitKeys - 1) / SplitKeys));

    /// <summary>Rows of a group that a block takes at once.</summary>
    public static int Tiles(int group, ElementType type) => (group + Rows(type) - 1) / Rows(type);

    public static int Threads(int dim, ElementType type) => 32 * Warps(dim, type);

    public static int SharedBytes(int dim, ElementType type, int group)
    {
        int row = dim * type.Size(), tileRows = Math.Min(group, Rows(type));
        int stride = row % 128 == 0 ? row : (row / 16 | 1) * 16, stage = Warps(dim, type) * (32 * stride + 64), query = tileRows * stride;
        return (3 * stage + query <= LargestRing ? 3 : 2) * stage + query;
    }

    public static LaunchShape Merge(int queryRows) => new((queryRows + MergeHeads - 1) / MergeHeads, MergeThreads, 0);

    private static int Rows(ElementType type) => type == ElementType.Float32 ? 8 : 16;

    private static int Warps(int dim, ElementType type) => (dim * type.Size()) switch { <= 256 => 4, <= 512 => 2, _ => 1 };
}

/// <summary>Mirror of <c>AttentionParams</c> in cuda/attention_items.cuh.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct AttentionParams
{
    public DeviceTensor Query;
    public DevicePaged Cache;
    public DevicePagedTables Tables;
    public ulong QueryStarts, QueryPositions, Sinks, Output, LogSumExp, PartialStarts, PartialSums, PartialValues;
    public float Scale, SoftCap;
    public int Sequences, KvHeads, BlockSize, MostSplits, Window, QueryTokens;
}
