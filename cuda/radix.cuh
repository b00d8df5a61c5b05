// Top-k by radix selection: the parts that fuse and select share. A segment is what competes for one count: all pairs of a sequence, or those of one head.
// A warp takes a strip of 512 tokens of one head, a block 8 strips of one segment, so that segments of a few pairs and of millions are alike in cost a pair.
//
// Keys order as scores do (-0 as 0, NaN lowest). Three rounds fix 11, 11 and 10 bits of the key of rank `wanted`: every block counts the digits of its keys that match
// the bits fixed so far in shared memory and adds them to the segment's histogram; the last block of the segment picks the digit and leaves the histogram zero.
// Counts are integers, so nothing depends on the order of blocks.
#pragma once
#include "ptx.cuh"
#include "tensor.cuh"

// How scores of a batch lie in memory: [N, Hkv], or, where heads have lengths of their own (ragged), head by head.
struct Pairs
{
    u64 offsets;     // i32 [B+1] first token of each sequence, or [B·Hkv+1] first pair of each head
    i32 heads, ragged;
};

struct Segments
{
    Pairs pairs;
    u64 strip_starts;  // i32 [B+1]: strips before each sequence; a sequence has ceil(longest head / 512) of every head
    u64 block_starts;  // i32 [B+1]: blocks before each sequence, segments_blocks below
    u64 kept_starts;   // i32 [S+1]: counts wanted of the segments before each one
    u64 histograms;    // u32 [S, 2048], zero before and after
    u64 states;        // SegmentState [S]
    u64 counters;      // u32 [S], zero before and after
    i32 sequences;
    i32 per_head;      // 1: S = B·Hkv segments, one a head; 0: S = B
};

struct SegmentState
{
    u32 key;      // bits fixed so far; after three rounds the threshold
    u32 wanted;   // of the keys that share them, how many are kept
    i64 limit;    // of pairs at the threshold, the last one kept: token · heads of the segment + head within it; -1 for none
};

constexpr i32 STRIP = 512, PAIR_THREADS = 256, PAIR_WARPS = PAIR_THREADS / 32;
// Shared memory: a histogram, then 16 words of scratch.
constexpr i32 DIGITS = 2048, SCRATCH = DIGITS * 4, RADIX_SHARED_BYTES = SCRATCH + 64;

__device__ __forceinline__ i32 length_of(const Pairs& pairs, i32 b, i32 head)
{
    i32 at = pairs.ragged ? b * pairs.heads + head : b;
    return ((const i32*)pairs.offsets)[at + 1] - ((const i32*)pairs.offsets)[at];
}
__device__ __forceinline__ i64 pair_of(const Pairs& pairs, i32 b, i32 head, i32 token)
{
    const i32* offsets = (const i32*)pairs.offsets;
    return pairs.ragged ? (i64)offsets[b * pairs.heads + head] + token : ((i64)offsets[b] + token) * pairs.heads + head;
}

// The segment of a block, and the strip of each of its warps.
struct Segment
{
    i32 index, sequence, first_head, heads, strips, blocks;
    i32 strip, head;        // of this warp; strip >= strips: none
    i32 entries;            // index of the segment's first (strip, head) among all
};
__device__ __forceinline__ Segment segment_of_block(const Segments& s)
{
    const i32* block_starts = (const i32*)s.block_starts;
    const i32* strip_starts = (const i32*)s.strip_starts;
    i32 warp = threadIdx.x / 32, heads = s.pairs.heads;
    Segment g;
    g.sequence = row_of(block_starts, s.sequences, blockIdx.x);
    i32 block = blockIdx.x - block_starts[g.sequence];
    g.strips = strip_starts[g.sequence + 1] - strip_starts[g.sequence];
    g.entries = strip_starts[g.sequence] * heads;
    if (s.per_head)
    {
        g.blocks = g.strips > 0 ? ceil_div(g.strips, PAIR_WARPS) : 1;
        g.first_head = block / g.blocks;
        g.heads = 1;
        g.index = g.sequence * heads + g.first_head;
        g.entries += g.first_head * g.strips;
        g.strip = (block - g.first_head * g.blocks) * PAIR_WARPS + warp;
        g.head = g.first_head;
    }
    else
    {
        g.blocks = g.strips > 0 ? ceil_div(g.strips * heads, PAIR_WARPS) : 1;
        g.first_head = 0;
        g.heads = heads;
        g.index = g.sequence;
        i32 unit = block * PAIR_WARPS + warp;
        g.strip = unit / heads;
        g.head = unit - g.strip * heads;
    }
    return g;
}

__device__ __forceinline__ u32 key_of(float score)
{
    u32 bits = __float_as_uint(score + 0.0f);
    return score != score ? 0 : bits >> 31 ? ~bits : bits | 0x80000000;
}

__device__ __forceinline__ u32 warp_inclusive_sum(u32 x)
{
#pragma unroll
    for (i32 step = 1; step < 32; step *= 2)
    {
        u32 below = __shfl_up_sync(0xffffffff, x, step);
        x += (i32)(threadIdx.x % 32) >= step ? below : 0;
    }
    return x;
}

// Sum over the threads of the block up to this one, and over all of them. Uses scratch words 0 to 7.
__device__ __forceinline__ u32 block_inclusive_sum(u32 x, u32& total)
{
    u32 scratch = shared_base() + SCRATCH, warp = threadIdx.x / 32;
    x = warp_inclusive_sum(x);
    __syncthreads();
    if (threadIdx.x % 32 == 31)
        store_shared(scratch + warp * 4, x);
    __syncthreads();
    u32 before = 0;
    total = 0;
#pragma unroll
    for (u32 w = 0; w < PAIR_WARPS; w++)
    {
        u32 sum = load_shared(scratch + w * 4);
        before += w < warp ? sum : 0;
        total += sum;
    }
    return before + x;
}

// Whether this block is the last of `blocks` to get here; what the others wrote before is then seen. Uses scratch word 8.
__device__ __forceinline__ bool is_last_block(u32* counter, u32 blocks)
{
    u32 flag = shared_base() + SCRATCH + 32;
    __syncthreads();
    if (threadIdx.x == 0)
    {
        bool last = atomic_add_acq_rel(counter, 1) == blocks - 1;
        if (last)
            *counter = 0;
        store_shared(flag, last ? 1 : 0);
    }
    __syncthreads();
    return load_shared(flag) != 0;
}

constexpr u32 digit_shift(i32 round) { return round == 0 ? 21 : round == 1 ? 10 : 0; }
constexpr u32 digit_mask(i32 round) { return round == 2 ? 1023 : 2047; }

__device__ __forceinline__ void clear_digits()
{
    for (i32 i = threadIdx.x; i < DIGITS; i += PAIR_THREADS)
        store_shared(shared_base() + i * 4, 0);
    __syncthreads();
}
__device__ __forceinline__ void count_digit(u32 key, i32 round, u32 fixed)
{
    u32 above = digit_shift(round) + (round == 2 ? 10 : 11);
    if (round == 0 || key >> above == fixed >> above)
        atomic_add_shared(shared_base() + ((key >> digit_shift(round)) & digit_mask(round)) * 4, 1);
}

// Ends a round: the block's digits go to the segment's histogram, and the last block fixes the digit of the key of rank `wanted`.
__device__ __forceinline__ void finish_round(const Segments& s, const Segment& g, i32 round, u32 fixed, u32 wanted)
{
    u32* histogram = (u32*)s.histograms + (i64)g.index * DIGITS;
    u32 digits[DIGITS / PAIR_THREADS], sum = 0;
    i32 top = DIGITS - 1 - (i32)threadIdx.x * (DIGITS / PAIR_THREADS);
    __syncthreads();
    if (g.blocks > 1)
    {
        for (i32 i = threadIdx.x; i < DIGITS; i += PAIR_THREADS)
        {
            u32 count = load_shared(shared_base() + i * 4);
            if (count != 0)
                atomic_add_global(histogram + i, count);
        }
        if (!is_last_block((u32*)s.counters + g.index, g.blocks))
            return;
    }
#pragma unroll
    for (i32 i = 0; i < DIGITS / PAIR_THREADS; i++)
    {
        if (g.blocks > 1)
        {
            digits[i] = histogram[top - i];
            histogram[top - i] = 0;
        }
        else
            digits[i] = load_shared(shared_base() + (top - i) * 4);
        sum += digits[i];
    }
    u32 total, above = block_inclusive_sum(sum, total) - sum;
    SegmentState* state = (SegmentState*)s.states + g.index;
    if (wanted == 0)
    {
        if (threadIdx.x == 0)
            *state = {fixed | digit_mask(round) << digit_shift(round), 0, -1};
        return;
    }
#pragma unroll
    for (i32 i = 0; i < DIGITS / PAIR_THREADS; i++)
    {
        if (above < wanted && above + digits[i] >= wanted)
            *state = {fixed | (u32)(top - i) << digit_shift(round), wanted - above, -1};
        above += digits[i];
    }
}
