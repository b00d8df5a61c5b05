using System.Runtime.InteropServices;
using Compactor.Native.Compression;

namespace Compactor.Native.Gpu;

/// <summary>Mirror of <c>Pairs</c> in cuda/radix.cuh.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct DevicePairs
{
    public ulong Offsets;
    public int Heads, Ragged;
}

/// <summary>Mirror of <c>Segments</c> in cuda/radix.cuh.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct DeviceSegments
{
    public DevicePairs Pairs;
    public ulong TileStarts, KeptStarts, Histograms, States, Counters;
    public int Sequences, PerHead;
}

/// <summary>How the pairs of a batch are cut into segments that compete for one count each, and segments into tiles (cuda/radix.cuh).</summary>
internal sealed class PairSegments
{
    /// <summary>Threads of a block, and the most heads it takes.</summary>
    public const int Threads = 256;

    /// <summary>Shared memory of a block: a histogram and scratch; beside them the places of heads where it lists what is kept.</summary>
    public const int SharedBytes = 8256, ListingSharedBytes = SharedBytes + sizeof(int) * Threads;

    private const int HistogramDigits = 2 * 2048, StateWords = 8, TokensOfAThread = 8;

    private readonly int _tiles, _blocks, _kept, _states, _heads, _sequences;
    private readonly bool _perHead, _ragged;

    /// <param name="tables">Receives the tables.</param>
    /// <param name="shape">Shape of the batch.</param>
    /// <param name="heads">Heads of the scores: Hkv, or 1 where they are summed.</param>
    /// <param name="perHead">Whether the heads of a sequence are segments of their own.</param>
    /// <param name="counts">How many pairs each segment keeps, by sequence and head (0 where a sequence is one segment).</param>
    public PairSegments(DeviceTables tables, LayerShape shape, int heads, bool perHead, Func<int, int, long> counts)
    {
        (_heads, _perHead, _sequences, _ragged) = (heads, perHead, shape.Sequences, shape.IsRagged);
        Count = shape.Sequences * (perHead ? heads : 1);
        var tiles = new int[shape.Sequences + 1];
        var kept = new int[Count + 1];
        for (int b = 0; b < shape.Sequences; b++)
        {
            int longest = 0;
            for (int h = 0; h < shape.KvHeads; h++)
                longest = Math.Max(longest, shape.LengthOf(b, h));
            tiles[b + 1] = tiles[b] + Math.Max(1, Tiles(longest, perHead ? 1 : heads));
            for (int i = 0, segments = perHead ? heads : 1; i < segments; i++)
                kept[b * segments + i + 1] = checked(kept[b * segments + i] + (int)counts(b, i));
        }
        (_blocks, Entries) = (tiles[^1], checked(tiles[^1] * heads));
        (_tiles, _kept, _states) = (tables.Add(tiles), tables.Add(kept), tables.Add(new int[StateWords * Count]));
    }

    /// <summary>Segments.</summary>
    public int Count { get; }

    /// <summary>Bytes of the histograms of all segments.</summary>
    public long HistogramBytes => sizeof(uint) * (long)HistogramDigits * Count;

    /// <summary>Bytes of the counts of all (tile, head) pairs.</summary>
    public long CountBytes => sizeof(uint) * (long)Entries;

    /// <summary>Bytes of the ties of all tiles.</summary>
    public long TieBytes => sizeof(uint) * (long)_blocks * (_perHead ? _heads : 1);

    private int Entries { get; }

    /// <summary>A pass over all tiles of all segments.</summary>
    public LaunchShape Pass(int sharedBytes) => new(_blocks, _perHead ? _heads : 1, 1, Threads, sharedBytes);

    /// <summary>Tiles, a block's work each, that so many tokens are cut into: 8 tokens a thread.</summary>
    public static int Tiles(int tokens, int heads) => Ceiling(tokens, TokensOfAThread * (Threads / heads));

    public static KernelVariant Selection(string entry) => new("select.cu", entry);

    /// <summary>As kernels take it, without histograms and counters.</summary>
    public DeviceSegments Of(DevicePlan device) => new()
    {
        Pairs = new() { Offsets = device.CuSeqlens, Heads = _heads, Ragged = _ragged ? 1 : 0 },
        TileStarts = device.Tables.Address(_tiles),
        KeptStarts = device.Tables.Address(_kept),
        States = device.Tables.Address(_states),
        Sequences = _sequences,
        PerHead = _perHead ? 1 : 0,
    };

    private static int Ceiling(int a, int b) => (int)(((long)a + b - 1) / b);
}
