using System.Runtime.InteropServices;

namespace Compactor.Native.Gpu;

/// <summary>Variant and launch shape of attention_scores.cu, and of attention_scores_hopper.cu where it is used.</summary>
internal static class AttentionScoresLaunch
{
    /// <summary>Bytes of an SM's shared memory that every block costs beside its own.</summary>
    private const int BlockReserve = 1024;

    /// <summary>The variant for keys of a head dimension and type in chunks of C; a chunk's keys stay in shared memory where they fit.</summary>
    public static KernelVariant Variant(int dim, ElementType type, int chunk, in GpuLimits limits) => IsHopper(dim, type, chunk, limits)
        ? new("attention_scores_hopper.cu", "attention_scores_hopper", ("ELEMENT", (int)type), ("HEAD_DIM", dim), ("CHUNK", chunk)) { IsSpecific = true }
        : new("attention_scores.cu", "attention_scores", ("ELEMENT", (int)type), ("HEAD_DIM", dim), ("CHUNK", chunk),
            ("KEYS_RESIDENT", IsResident(dim, type, chunk, limits) ? 1 : 0), ("QUERY_GROUPS", Tiles(dim, type, chunk, limits).Groups), ("QUERY_ROWS", Tiles(dim, type, chunk, limits).Rows));

    public static LaunchShape Shape(int chunks, int kvHeads, int dim, ElementType type, int chunk, in GpuLimits limits)
    {
        if (IsHopper(dim, type, chunk, limits))
            return new(Math.Min(checked(chunks * kvHeads), limits.Multiprocessors), 256, HopperSharedBytes(dim, 64 * Warps(chunk)));
        var (groups, rows) = Tiles(dim, type, chunk, limits);
        return new(checked(chunks * kvHeads), 32 * Warps(chunk) * groups, SharedBytes(dim, type, chunk, IsResident(dim, type, chunk, limits), groups, rows));
    }

    /// <summary>16-bit elements, D 64 or 128, chunks of at most 256: what the kernel for sm_90a is written for.</summary>
    private static bool IsHopper(int dim, ElementType type, int chunk, in GpuLimits limits) => limits.HopperKernels && type.Size() == 2 && dim is (64 or 128) && chunk <= 256;

    /// <summary>Two buffers of keys, two tiles of queries of both groups, two buffers of column sums, 6 barriers, two items a warp.</summary>
    private static int HopperSharedBytes(int dim, int columns) => 2 * columns * 2 * dim + 4 * 64 * 2 * dim + 2 * 8 * columns * 4 + 8 * 6 + 8 * 2 * 32;

    private static bool IsResident(int dim, ElementType type, int chunk, in GpuLimits limits) =>
        SharedBytes(dim, type, chunk, resident: true, groups: 1, MostRows(type)) <= limits.SharedBytesPerBlock;

    private static int Warps(int chunk) => (chunk + 63) / 64;

    private static int MostRows(ElementType type) => type == ElementType.Float32 ? 32 : 64;

    /// <summary>
    /// Groups of warps that share a block's keys, and queries of a tile. Two groups of small tiles, four warps a scheduler, where two blocks of them fit an SM (and registers suffice: D up to 128,
    /// from compute capability 9.0 on); else two of large ones where an SM does not hold two blocks of one group; else one.
    /// </summary>
    private static (int Groups, int Rows) Tiles(int dim, ElementType type, int chunk, in GpuLimits limits)
    {
        int rows = MostRows(type);
        if (Warps(chunk) > 4)
            return (1, rows);
        if (limits.Architecture >= 90 && rows == 64 && dim <= 128 && 2 * (SharedBytes(dim, type, chunk, resident: true, groups: 2, rows: 32) + BlockReserve) <= limits.SharedBytesPerMultiprocessor)
            return (2, 32);
        return SharedBytes(dim, type, chunk, resident: true, groups: 2, rows) <= limits.SharedBytesPerBlock
            && 2 * (SharedBytes(dim, type, chunk, resident: true, groups: 1, rows) + BlockReserve) > limits.SharedBytesPerMultiprocessor ? (2, rows) : (1, rows);
    }

    private static int SharedBytes(int dim, ElementType type, int chunk, bool resident, int groups, int rows)
    {
        bool wide = type == ElementType.Float32;
        int warps = Warps(chunk), slab = resident ? dim : !wide && dim % 64 == 0 ? 64 : dim % 32 == 0 ? 32 : 16;
        int row = slab * type.Size();
        if (row % 128 != 0)
            row += wide ? 32 : 16;
        return 64 * warps * row + groups * (rows * row + rows * warps * 4);
    }
}

[StructLayout(LayoutKind.Sequential)]
internal struct AttentionScoresParams
{
    public DeviceTensor Queries, Keys;
    public ulong CuSeqlens, ChunkStarts, Scores, Status;
    public int Sequences, KvHeads, Group, SkipFirst, SkipLast;
    public float LogitScale, Reduction;
    public int Items;
}
