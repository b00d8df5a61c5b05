using System.Runtime.InteropServices;

namespace Compactor.Native.Gpu;

/// <summary>Variants and launch shapes of the kernels that move rows: store.cu, compact.cu, copy_blocks.cu, gather.cu. They move bytes, whatever the element type.</summary>
internal static class RowMoves
{
    private const int Slots = 64, Threads = 128, SharedBytes = 1536, PlaceThreads = 256, SequencesOfABlock = 4;

    /// <exception cref="CompactorException">Rows are not whole units of 16 bytes.</exception>
    public static KernelVariant Variant(string source, string entry, int dim, ElementType type)
    {
        int bytes = dim * type.Size();
        if (bytes % 16 != 0 || bytes is < 16 or > 1024)
            throw CompactorException.Unsupported($"A row of {dim} {type} elements takes {bytes} bytes; the cuda backend moves rows of 16 to 1024 bytes in steps of 16. Use the cpu backend for it.");
        return new KernelVariant(source, entry, ("HEAD_DIM", dim), ("ELEMENT_SIZE", type.Size()));
    }

    public static KernelVariant Deal(int dim, ElementType type) => Variant("compact.cu", "deal_blocks", dim, type);

    /// <summary>A block moves 64 slots.</summary>
    public static LaunchShape OverSlots(long slots) => new(checked((int)((slots + Slots - 1) / Slots)), Threads, SharedBytes);

    /// <summary>A warp deals the blocks of a sequence.</summary>
    public static LaunchShape OverSequences(int sequences) => new((sequences + SequencesOfABlock - 1) / SequencesOfABlock, Threads, 0);

    /// <summary>A block moves one part of the rows of a head's keys or values.</summary>
    public static LaunchShape InPlace(int rows, int rowBytes) => new(checked(rows * 2 * (rowBytes / (rowBytes % 32 == 0 ? 32 : 16))), PlaceThreads, 0);
}

[StructLayout(LayoutKind.Sequential)]
internal struct StoreTokensParams
{
    public DeviceTensor Key, Value;
    public DevicePaged Cache;
    public DevicePagedTargets Targets;
    public ulong First, FirstPosition, Counts;
    public long Slots;
    public int MostTokens, BlockSize;
}

[StructLayout(LayoutKind.Sequential)]
internal struct DealBlocksParams
{
    public DevicePagedTargets Targets;
    public ulong KeptOffsets, Dealt;
    public int Sequences, BlockSize;
}

[StructLayout(LayoutKind.Sequential)]
internal struct StoreSurvivorsParams
{
    public DeviceTensor Key, Value;
    public DevicePaged Cache;
    public DevicePagedTargets Targets;
    public ulong First, FirstPosition, Kept, KeptOffsets, Dealt;
    public long Survivors;
    public int Rows, BlockSize;
}

[StructLayout(LayoutKind.Sequential)]
internal struct MoveSurvivorsParams
{
    public DevicePaged Cache;
    public DevicePagedTables From;
    public DevicePagedTargets Targets;
    public ulong Kept, KeptOffsets, Dealt;
    public int Survivors, BlockSize;
}

[StructLayout(LayoutKind.Sequential)]
internal struct CompactDenseParams
{
    public DeviceTensor Source;
    public ulong Starts, Kept, KeptOffsets, Destination;
    public long Survivors;
    public int Rows, KvHeads;
}

[StructLayout(LayoutKind.Sequential)]
internal struct CompactInPlaceParams
{
    public DevicePaged Cache;
    public ulong Tables, Kept, KeptOffsets;
    public long RowStride;
    public int KvHeads, BlockSize;
}

[StructLayout(LayoutKind.Sequential)]
internal struct CopyBlocksParams
{
    public DevicePaged Cache;
    public ulong From, To, Counts;
    public int Blocks, BlockSize;
}

[StructLayout(LayoutKind.Sequential)]
internal struct GatherSlotsParams
{
    public DevicePaged Cache;
    public DevicePagedTables Tables;
    public ulong Offsets, Keys, Values, Positions;
    public int BlockSize, Room;
}
