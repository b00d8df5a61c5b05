using System.Runtime.InteropServices;
using Compactor.Native.Paging;

namespace Compactor.Native.Gpu;

/// <summary>Variants and launch shapes of decode_attention.cu and extend_attention.cu.</summary>
/// <param name="Operation"><c>decode</c> or <c>extend</c>.</param>
/// <param name="TileRows">Query rows that a block takes at once.</param>
/// <param name="Dim">D.</param>
/// <param name="Type">Element type of queries, keys and values.</param>
/// <param name="Group">G.</param>
internal sealed record PagedAttentionLaunch(string Operation, int TileRows, int Dim, ElementType Type, int Group)
{
    private const int SplitKeys = 512, SplitRows = 64, MergeThreads = 128, MergeHeads = 4, LargestShared = 101376;

    public KernelVariant Variant => VariantOf("attention");

    public KernelVariant Merge => VariantOf("merge");

    public int Threads => 32 * Warps(Dim, Type);

    public int SharedBytes
    {
        get
        {
            int row = Dim * Type.Size(), stride = row % 128 == 0 ? row : (row / 16 | 1) * 16, stage = Warps(Dim, Type) * (32 * stride + 64);
            int rows = TileRows * (stride + 8 * (Operation == "decode" ? Warps(Dim, Type) / ColumnWarps(Dim, Type) : 1));
            return (3 * stage + rows <= LargestShared ? 3 : 2) * stage + rows;
        }
    }

    /// <summary>One query token a sequence: a warp works on its own, with the rows of a group.</summary>
    public static PagedAttentionLaunch Decode(int dim, ElementType type, int group) => new("decode", Math.Min(group, Rows(type)), dim, type, group);

    /// <summary>Several query tokens a sequence: the warps of a block share keys; two of them share rows where each sums half of the columns.</summary>
    public static PagedAttentionLaunch Extend(int dim, ElementType type, int group) =>
        new("extend", Warps(dim, type) / ColumnWarps(dim, type) * Rows(type), dim, type, group);

    /// <summary>Splits of the longest head that tables have room for.</summary>
    public static int MostSplits(int rowStride, int blockSize) => checked((int)(((long)rowStride * blockSize + SplitKeys - 1) / SplitKeys));

    /// <summary>Whether a sequence's keys are split among blocks: where its query rows are few.</summary>
    public static bool IsSplit(int tokens, int group) => (long)tokens * group <= SplitRows;

    /// <summary>Tiles of query rows of one KV head.</summary>
    public int Tiles(int tokens) => checked((int)(((long)tokens * Group + TileRows - 1) / TileRows));

    public static LaunchShape MergeShape(int queryRows) => new((queryRows + MergeHeads - 1) / MergeHeads, MergeThreads, 0);

    private KernelVariant VariantOf(string entry) =>
        new($"{Operation}_attention.cu", $"{Operation}_{entry}", ("ELEMENT", (int)Type), ("HEAD_DIM", Dim), ("GROUP", Group));

    private static int Rows(ElementType type) => type == ElementType.Float32 ? 8 : 16;

    private static int ColumnWarps(int dim, ElementType type) => type != ElementType.Float32 && dim > 128 ? 2 : 1;

    private static int Warps(int dim, ElementType type) => (dim * type.Size()) switch { <= 256 => 4, <= 512 => 2, _ => 1 };
}

/// <summary>What kernels need of an <see cref="ExtendPlan"/>: where each sequence's query tokens start, and its partial results.</summary>
internal sealed class DeviceExtendPlan : IDisposable
{
    private readonly DeviceTables _tables = new();
    private readonly int _queryStarts, _partialStarts;

    public DeviceExtendPlan(KvBackend backend, ExtendPlan plan)
    {
        var partialStarts = new int[plan.Sequences];
        for (int b = 0; b < plan.Sequences; b++)
        {
            int tokens = plan.QueryStarts[b + 1] - plan.QueryStarts[b];
            partialStarts[b] = PartialTokens;
            PartialTokens += PagedAttentionLaunch.IsSplit(tokens, plan.QueryHeads / plan.KvHeads) ? tokens : 0;
        }
        (_queryStarts, _partialStarts) = (_tables.Add(plan.QueryStarts), _tables.Add(partialStarts));
        _tables.Upload(backend);
    }

    /// <summary>Query tokens of the sequences whose keys are split.</summary>
    public int PartialTokens { get; }

    public ulong QueryStarts => _tables.Address(_queryStarts);

    public ulong PartialStarts => _tables.Address(_partialStarts);

    public void Dispose() => _tables.Free();
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
