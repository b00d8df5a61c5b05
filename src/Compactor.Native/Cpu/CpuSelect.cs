using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;
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
            using var workspace = workers.Rent(((long)length * heads + length) * sizeof(uint));
            var keys = new Span<uint>((void*)workspace.Address, length * heads);
            var ofHead = new Span<int>((int*)workspace.Address + (long)length * heads, length);
            int perHead = (int)(plan.KeptPairsOf(b) / heads);
            switch (plan.Options.SelectionScope)
            {
                case SelectionScope.Sequence:
                    Keys(sequenceScores, keys);
                    if (plan.Options.MinTokensPerHead > 0)
                        RaiseBestOfEachHead(keys, heads, Math.Min(length, plan.Options.MinTokensPerHead));
                    MarkTop(keys, 0, 1, plan.KeptPairsOf(b));
                    break;
                case SelectionScope.Head:
                    Keys(sequenceScores, keys);
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
                int kept = Positions(keys, h, heads, ofHead);
                ofHead[..kept].CopyTo(indices[written..]);
                offsets[b * heads + h + 1] = written += kept;
            }
        }
    }

    /// <summary>What <see cref="MarkTop"/> leaves: what a pair adds to the number of those kept.</summary>
    private const uint Kept = 1, Dropped = 0;

    /// <summary>Keys that order as scores do: -0 as 0, NaN lowest. <see cref="uint.MaxValue"/> is above every score.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    public static void Keys(ReadOnlySpan<float> scores, Span<uint> keys)
    {
        int e = 0;
        for (; e <= scores.Length - Vector256<float>.Count; e += Vector256<float>.Count)
        {
            var score = Vector256.Create(scores[e..]) + Vector256<float>.Zero;
            var signs = Vector256.ShiftRightArithmetic(score.AsInt32(), 31).AsUInt32();
            var ordered = score.AsUInt32() ^ (signs | Vector256.Create(0x80000000));
            (ordered & Vector256.Equals(score, score).AsUInt32()).CopyTo(keys[e..]);
        }
        for (; e < scores.Length; e++)
            keys[e] = Key(scores[e]);
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

    /// <summary>Replaces keys by <see cref="Kept"/> or <see cref="Dropped"/>. Half of them may be kept, in no order: no branch depends on it.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    public static void MarkTop(Span<uint> keys, int first, int stride, long count)
    {
        var (threshold, ties) = Threshold(keys, first, stride, count);
        for (int e = first; e < keys.Length; e += stride)
        {
            uint key = keys[e], above = key > threshold ? Kept : Dropped, equal = key == threshold ? Kept : Dropped, left = ties > 0 ? Kept : Dropped;
            keys[e] = above | (equal & left);
            ties -= equal;
        }
    }

    /// <summary>Positions of the marked keys from <paramref name="first"/> on, ascending, in room for as many as there are marks.</summary>
    /// <returns>Their number.</returns>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    public static int Positions(ReadOnlySpan<uint> marks, int first, int stride, Span<int> positions)
    {
        int kept = 0;
        for (int e = first, position = 0; e < marks.Length; e += stride, position++)
        {
            positions[kept] = position;
            kept += (int)marks[e];
        }
        return kept;
    }

    private static uint Key(float score)
    {
        if (float.IsNaN(score))
            return 0;
        uint bits = BitConverter.SingleToUInt32Bits(score + 0f);
        return bits >> 31 == 0 ? bits | 0x80000000 : ~bits;
    }

    /// <summary>The key of rank <paramref name="count"/> and how many pairs of that key belong to the best <paramref name="count"/>.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static (uint Threshold, long Ties) Threshold(ReadOnlySpan<uint> keys, int first, int stride, long count)
    {
        if (count == 0)
            return (uint.MaxValue, 0);
        uint prefix = 0, mask = 0;
        long wanted = count;
        // Neighbours often share a digit: two histograms, so that one increment need not wait for the other.
        Span<int> even = stackalloc int[2048], odd = stackalloc int[2048];
        foreach (var (shift, bits) in ((int, int)[])[(21, 11), (10, 11), (0, 10)])
        {
            even.Clear();
            odd.Clear();
            uint digit = (1u << bits) - 1;
            int e = first;
            if (mask == 0)
                for (; e < keys.Length - stride; e += 2 * stride)
                {
                    even[(int)(keys[e] >> shift)]++;
                    odd[(int)(keys[e + stride] >> shift)]++;
                }
            for (; e < keys.Length; e += stride)
                if ((keys[e] & mask) == prefix)
                    even[(int)(keys[e] >> shift & digit)]++;
            int bucket = (int)digit;
            while (even[bucket] + odd[bucket] < wanted)
                wanted -= even[bucket] + odd[bucket--];
            prefix |= (uint)bucket << shift;
            mask |= digit << shift;
        }
        return (prefix, wanted);
    }
}
