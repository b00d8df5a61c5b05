using System.Runtime.CompilerServices;
using Compactor.Native.Compression;

namespace Compactor.Native.Cpu;

/// <summary>
/// Segmented top-k by radix select on order-preserving integer keys. A kept pair has a key above the threshold, or the threshold key and an early
/// enough (token, head); nothing is sorted, and nothing depends on threads.
/// </summary>
internal static unsafe class CpuSelect
{
    public static void Run(Workers workers, LayerPlan plan, BufferView<float> scores, BufferView<int> keptIndices, BufferView<int> keptOffsets)
    {
        var shape = plan.Shape;
        int heads = shape.KvHeads, written = 0;
        var indices = keptIndices.AsSpan();
        var offsets = keptOffsets.AsSpan();
        offsets[0] = 0;
        for (int b = 0; b < shape.Sequences; b++)
        {
            int length = shape.LengthOf(b);
            var sequenceScores = scores.AsSpan().Slice(shape.CuSeqlens[b] * heads, length * heads);
            using var workspace = workers.Rent((long)length * heads * sizeof(uint));
            var keys = new Span<uint>((void*)workspace.Address, length * heads);
            int perHead = (int)(plan.KeptPairsOf(b) / heads);
            switch (plan.Options.SelectionScope)
            {
                case SelectionScope.Sequence:
                    for (int e = 0; e < keys.Length; e++)
                        keys[e] = Key(sequenceScores[e]);
                    if (plan.Options.MinTokensPerHead > 0)
                        RaiseBestOfEachHead(keys, heads, Math.Min(length, plan.Options.MinTokensPerHead));
                    MarkTop(keys, 0, 1, plan.KeptPairsOf(b));
                    break;
                case SelectionScope.Head:
                    for (int e = 0; e < keys.Length; e++)
                        keys[e] = Key(sequenceScores[e]);
                    for (int h = 0; h < heads; h++)
                        MarkTop(keys, h, heads, perHead);
                    break;
                default:
                    for (int t = 0; t < length; t++)
                    {
                        float sum = 0;
                        for (int h = 0; h < heads; h++)
                            sum += sequenceScores[t * heads + h];
                        keys[t * heads] = Key(sum);
                    }
                    MarkTop(keys, 0, heads, perHead);
                    for (int t = 0; t < length; t++)
                        keys.Slice(t * heads + 1, heads - 1).Fill(keys[t * heads]);
                    break;
            }
            for (int h = 0; h < heads; h++)
            {
                for (int t = 0; t < length; t++)
                    if (keys[t * heads + h] == Kept)
                        indices[written++] = t;
                offsets[b * heads + h + 1] = written;
            }
        }
    }

    public const uint Kept = 1, Dropped = 0;

    /// <summary>A key that orders as scores do: -0 as 0, NaN lowest. <see cref="uint.MaxValue"/> is above every score.</summary>
    public static uint Key(float score)
    {
        if (float.IsNaN(score))
            return 0;
        uint bits = BitConverter.SingleToUInt32Bits(score + 0f);
        return bits >> 31 == 0 ? bits | 0x80000000 : ~bits;
    }

    public static void RaiseBestOfEachHead(Span<uint> keys, int heads, int tokens)
    {
        for (int h = 0; h < heads; h++)
        {
            var (threshold, ties) = Threshold(keys, h, heads, tokens);
            for (int e = h; e < keys.Length; e += heads)
                if (keys[e] > threshold || (keys[e] == threshold && ties-- > 0))
                    keys[e] = uint.MaxValue;
        }
    }

    /// <summary>Replaces keys by <see cref="Kept"/> or <see cref="Dropped"/>.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    public static void MarkTop(Span<uint> keys, int first, int stride, long count)
    {
        var (threshold, ties) = Threshold(keys, first, stride, count);
        for (int e = first; e < keys.Length; e += stride)
            keys[e] = keys[e] > threshold || (keys[e] == threshold && ties-- > 0) ? Kept : Dropped;
    }

    /// <summary>The key of rank <paramref name="count"/> and how many pairs of that key belong to the best <paramref name="count"/>.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static (uint Threshold, long Ties) Threshold(ReadOnlySpan<uint> keys, int first, int stride, long count)
    {
        if (count == 0)
            return (uint.MaxValue, 0);
        uint prefix = 0, mask = 0;
        long wanted = count;
        Span<int> histogram = stackalloc int[2048];
        foreach (var (shift, bits) in ((int, int)[])[(21, 11), (10, 11), (0, 10)])
        {
            histogram.Clear();
            uint digit = (1u << bits) - 1;
            for (int e = first; e < keys.Length; e += stride)
                if ((keys[e] & mask) == prefix)
                    histogram[(int)(keys[e] >> shift & digit)]++;
            int bucket = (int)digit;
            while (histogram[bucket] < wanted)
                wanted -= histogram[bucket--];
            prefix |= (uint)bucket << shift;
            mask |= digit << shift;
        }
        return (prefix, wanted);
    }
}
