using System.Runtime.InteropServices;
using Compactor.Native.Compression;

namespace Compactor.Native.Gpu;

/// <summary>One of the two scores that are fused: the scopes of its statistics and the units of work they are cut into (cuda/fuse.cu).</summary>
internal sealed class FuseTerm
{
    public const int PartialBytes = 16, StatisticsBytes = 24;
    private const int UnitTokens = 512, WarpsOfABlock = 8, Threads = 256;

    private readonly int _unitStarts, _scopeStarts, _chunk;
    private readonly bool _perHead;

    public FuseTerm(DeviceTables tables, LayerPlan plan, NormalizationScope scope, int chunk)
    {
        var shape = plan.Shape;
        _perHead = scope == NormalizationScope.Head;
        _chunk = scope == NormalizationScope.Chunk ? chunk : 0;
        var units = new int[shape.Sequences + 1];
        var scopes = new int[shape.Sequences + 1];
        for (int b = 0; b < shape.Sequences; b++)
        {
            int scored = 0;
            for (int h = 0; h < (shape.IsRagged ? shape.KvHeads : 1); h++)
            {
                var (first, end) = plan.ScoredTokens(b, h);
                scored = Math.Max(scored, end - first);
            }
            int length = _chunk > 0 ? _chunk : scored, chunks = scored == 0 ? 0 : (scored + length - 1) / length;
            units[b + 1] = checked(units[b] + shape.KvHeads * chunks * ((length + UnitTokens - 1) / UnitTokens));
            scopes[b + 1] = scopes[b] + (_perHead ? shape.KvHeads : chunks);
        }
        (Units, Scopes) = (units[^1], scopes[^1]);
        (_unitStarts, _scopeStarts) = (tables.Add(units), tables.Add(scopes));
    }

    public int Units { get; }

    public int Scopes { get; }

    public static KernelVariant Variant(string entry) => new("fuse.cu", entry);

    /// <summary>The launch of a pass over the units of two terms.</summary>
    public static LaunchShape Pass(int units) => new((units + WarpsOfABlock - 1) / WarpsOfABlock, 2, 1, Threads, 0);

    public DeviceFuseTerm Of(DeviceTables tables, BufferView<float> raw, ulong workspace, ulong counters) => new()
    {
        Raw = (ulong)raw.Address,
        UnitStarts = tables.Address(_unitStarts),
        ScopeStarts = tables.Address(_scopeStarts),
        Partials = workspace,
        Statistics = workspace + (ulong)Units * PartialBytes,
        Counters = counters,
        Chunk = _chunk,
        PerHead = _perHead ? 1 : 0,
    };

    /// <summary>Bytes of partials and statistics.</summary>
    public long WorkspaceBytes => (long)Units * PartialBytes + (long)Scopes * StatisticsBytes;
}

/// <summary>Mirror of <c>FuseTerm</c> in cuda/fuse.cu.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct DeviceFuseTerm
{
    public ulong Raw, UnitStarts, ScopeStarts, Partials, Statistics, Counters;
    public int Chunk, PerHead;
}

[StructLayout(LayoutKind.Sequential)]
internal struct FuseParams
{
    public DeviceFuseTerm Attention, Leverage;
    public DeviceSegments Segments;
    public ulong ValueNorms, Weights, Scores, Status, NonFinite;
    public double DeviationFloor;
    public int ProtectFirst, ProtectLast, ScoreProtected, Unbiased;
    public long PoolWidth;
}

/// <summary>Variant and launch shape of value_norms.cu.</summary>
internal static class ValueNormsLaunch
{
    private const int RowsOfABlock = 16, Threads = 256;

    public static KernelVariant Variant(int dim, ElementType type) => new("value_norms.cu", "value_norms", ("ELEMENT", (int)type), ("HEAD_DIM", dim));

    public static LaunchShape Shape(int pairs) => new((int)(((long)pairs + RowsOfABlock - 1) / RowsOfABlock), Threads, 0);
}

[StructLayout(LayoutKind.Sequential)]
internal struct ValueNormsParams
{
    public DeviceTensor Value;
    public ulong Starts, Norms;
    public int Sequences, Heads;
}

[StructLayout(LayoutKind.Sequential)]
internal struct SelectParams
{
    public DeviceSegments Segments;
    public ulong Scores, Counts, KeptIndices, KeptOffsets;
    public int KeysGiven, Round, Copies, Reserved;
}

[StructLayout(LayoutKind.Sequential)]
internal struct SelectTokenSumsParams
{
    public ulong Scores, Sums;
    public int Tokens, Heads;
}
