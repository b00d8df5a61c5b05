using System.Runtime.InteropServices;
using Compactor.Native.Compression;

namespace Compactor.Native.Gpu;

/// <summary>One of the two scores that are fused: the scopes of its statistics and the tiles they are cut into (cuda/fuse.cu).</summary>
internal sealed class FuseTerm
{
    private const int PartialBytes = 24, StatisticsBytes = 16, SharedBytes = 17408;

    private readonly int _tileStarts, _scopeStarts, _chunk, _pieces, _scopesOfAChunk;
    private readonly bool _perHead;

    public FuseTerm(DeviceTables tables, LayerPlan plan, NormalizationScope scope, int chunk)
    {
        var shape = plan.Shape;
        _perHead = scope == NormalizationScope.Head;
        _chunk = scope == NormalizationScope.Chunk ? chunk : 0;
        (_pieces, _scopesOfAChunk) = (PairSegments.Tiles(_chunk, shape.KvHeads), _perHead ? shape.KvHeads : 1);
        var tiles = new int[shape.Sequences + 1];
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
            tiles[b + 1] = checked(tiles[b] + chunks * PairSegments.Tiles(length, shape.KvHeads));
            scopes[b + 1] = scopes[b] + (_perHead ? shape.KvHeads : _chunk > 0 ? chunks : 1);
        }
        (Tiles, Scopes) = (tiles[^1], scopes[^1]);
        (_tileStarts, _scopeStarts) = (tables.Add(tiles), tables.Add(scopes));
    }

    public int Tiles { get; }

    public int Scopes { get; }

    public static KernelVariant Variant(string entry) => new("fuse.cu", entry);

    /// <summary>The launch of a pass over the tiles of two terms, of which one has so many and the other no more.</summary>
    public static LaunchShape Pass(int tiles) => new(tiles, 2, 1, PairSegments.Threads, SharedBytes);

    public DeviceFuseTerm Of(DeviceTables tables, BufferView<float> raw, ulong workspace, ulong counters) => new()
    {
        Raw = (ulong)raw.Address,
        TileStarts = tables.Address(_tileStarts),
        ScopeStarts = tables.Address(_scopeStarts),
        Partials = workspace,
        Statistics = workspace + (ulong)(PartialsBytes + 15) / 16 * 16,
        Counters = counters,
        Chunk = _chunk,
        Pieces = _pieces,
        PerHead = _perHead ? 1 : 0,
        Tiles = Tiles,
    };

    /// <summary>Bytes of partials and statistics.</summary>
    public long WorkspaceBytes => PartialsBytes + 8 + (long)Scopes * StatisticsBytes;

    private long PartialsBytes => (long)Tiles * _scopesOfAChunk * PartialBytes;
}

/// <summary>Mirror of <c>FuseTerm</c> in cuda/fuse.cu.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct DeviceFuseTerm
{
    public ulong Raw, TileStarts, ScopeStarts, Partials, Statistics, Counters;
    public int Chunk, Pieces, PerHead, Tiles;
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
    public ulong Scores, Counts, TileTies, KeptIndices, KeptOffsets;
    public int KeysGiven, Round, Copies, Reserved;
}

[StructLayout(LayoutKind.Sequential)]
internal struct SelectTokenSumsParams
{
    public ulong Scores, Sums;
    public int Tokens, Heads;
}
