using System.Runtime.InteropServices;

namespace Compactor.Native.Gpu;

/// <summary>Variant and launch shape of attention_scores.cu.</summary>
internal static class AttentionScoresLaunch
{
    /// <summary>Bytes of an SM's shared memory that every block costs beside its own.</summary>
    private const int BlockReserve = 1024;

    /// <summary>The variant for keys of a head dimension and type in chunks of C; a chunk's keys stay in shared memory where they fit.</summary>
    public static KernelVariant Variant(int dim, ElementType type, int chunk, in GpuLimits limits) =>
        new("attention_scores.cu", "attention_scores", ("ELEMENT", (int)type), ("HEAD_DIM", dim), ("CHUNK", chunk),
            ("KEYS_RESIDENT", IsResident(dim, type, chunk, limits) ? 1 : 0), ("QUERY_GROUPS", Groups(dim, type, chunk, limits)));

    public static LaunchShape Shape(int chunks, int kvHeads, int dim, ElementType type, int chunk, in GpuLimits limits)
    {
        int groups = Groups(dim, type, chunk, limits);
        return new(checked(chunks * kvHeads), 32 * Warps(chunk) * groups, SharedBytes(dim, type, chunk, IsResident(dim, type, chunk, limits), groups));
    }

    private static bool IsResident(int dim, ElementType type, int chunk, in GpuLimits limits) =>
        SharedBytes(dim, type, chunk, resident: true, groups: 1) <= limits.SharedBytesPerBlock;

    private static int Warps(int chunk) => (chunk + 63) / 64;

    /// <summary>Two groups of warps share a block's keys where an SM does not hold two blocks of one.</summary>
    private static int Groups(int dim, ElementType type, int chunk, in GpuLimits limits) =>
        Warps(chunk) <= 4
        && SharedBytes(dim, type, chunk, resident: true, groups: 2) <= limits.SharedBytesPerBlock
        && 2 * (SharedBytes(dim, type, chunk, resident: true, groups: 1) + BlockReserve) > limits.SharedBytesPerMultiprocessor ? 2 : 1;

    private static int SharedBytes(int dim, ElementType type, int chunk, bool resident, int groups)
    {
        bool wide = type == ElementType.Float32;
        int queries = wide ? 32 : 64, warps = Warps(chunk);
        int slab = resident ? dim : !wide && dim % 64 == 0 ? 64 : dim % 32 == 0 ? 32 : 16;
        int row = slab * type.Size();
        if (row % 128 != 0)
            row += wide ? 32 : 16;
        return 64 * warps * row + groups * (queries * row + queries * warps * 4);
    }
}

[StructLayout(LayoutKind.Sequential)]
internal struct AttentionScoresParams
{
    public DeviceTensor Queries, Keys;
    public ulong CuSeqlens, ChunkStarts, Scores, Status;
    public int Sequences, KvHeads, Group, SkipFirst, SkipLast;
    public float LogitScale, Reduction;
    public uint Unused;
}
