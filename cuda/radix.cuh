// Top-k by radix selection: the parts that fuse and select share. A segment is what competes for one count: all pairs of a sequence, or those of one head.
//
// A block takes a tile: all heads of a segment (1 or Hkv) and 8·floor(256 / heads) tokens, 2048 pairs. A thread has 8 tokens of one head, floor(256 / heads) apart, so that
// neighbouring threads read neighbouring words of [N, Hkv], and loads them all before it looks at one: L2 answers after 600 to 800 cycles, and a pass waits for it once.
// L8: 512 tiles, 31 warps and 32 KB on the way an SM: all 4 MB at once.
//
// Keys order as scores do (-0 as 0, NaN lowest). Three rounds fix 11, 11 and 10 bits of the key of rank `wanted`: every block counts the digits of its keys that match
// the bits fixed so far in shared memory and adds them to the segment's histogram, from which the digit is picked. Counts are integers, so nothing depends on the order of
// blocks. A histogram is zeroed by the pass after the one that picks from it.
#pragma once
#include "ptx.cuh"
#include "tensor.cuh"

// How scores of a batch lie in memory: [N, Hkv], or, where heads have lengths of their own (ragged), head by head. At most 256 heads.
struct Pairs
{
    u64 offsets;     // i32 [B+1] first token of each sequence, or [B·Hkv+1] first pair of each head
    i32 heads, ragged;
};

struct Segments
{
    Pairs pairs;
    u64 tile_starts;   // i32 [B+1]: tiles of one segment of each sequence before; a sequence has max(1, ceil(longest head / tokens of a tile))
    u64 kept_starts;   // i32 [S+1]: counts wanted of the segments before each one
    u64 histograms;    // u32 [S, 2, 2048], zero before and after; rounds 0 and 2 share the first
    u64 states;        // SegmentState [S, 2]: the first after round 0 and in the end, the second after round 1
    u64 counters;      // u32 [S], zero before and after
    i32 sequences;
    i32 per_head;      // 1: S = B·Hkv segments, one a head; 0: S = B
};

struct SegmentState
{
    u32 key;      // bits fixed so far; after three rounds the threshold
    u32 wanted;   // of the keys that share them, how many are kept
    i64 limit;    // of pairs at the threshold, the last one kept: token · heads of the segment + head within it; -1 for none, ALL_TIES for all
};
constexpr i64 ALL_TIES = 0x7fffffffffffffff;

constexpr i32 PAIR_THREADS = 256, PAIR_WARPS = PAIR_THREADS / 32, THREAD_TOKENS = 8;
// Shared memory: a histogram, then 16 words of scratch.
constexpr i32 DIGITS = 2048, SCRATCH = DIGITS * 4, RADIX_SHARED_BYTES = SCRATCH + 64;

__device__ __forceinline__ constexpr i32 tile_tokens(i32 heads) { return THREAD_TOKENS * (PAIR_THREADS / heads); }

// Where a sequence lies, if its heads share their length: loaded beside the tables that say which head is meant, not after them.
struct Span { i32 start, length; };
__device__ __forceinline__ Span span_of(const Pairs& pairs, i32 b)
{
    const i32* offsets = (const i32*)pairs.offsets;
    i32 start = offsets[b];
    return {start, offsets[b + 1] - start};
}

// A head of a sequence: its tokens' pairs are pair, pair + step, ... A batch has less than 2^31.
struct Row
{
    i32 start, length;   // first token in the batch, or first pair where ragged; tokens
    u32 pair, step;
};
__device__ __forceinline__ Row row_of(const Pairs& pairs, const Span& span, i32 b, i32 head)
{
    if (!pairs.ragged)
        return {span.start, span.length, (u32)span.start * pairs.heads + head, (u32)pairs.heads};
    Span own = span_of(pairs, b * pairs.heads + head);
    return {own.start, own.length, (u32)own.start, 1};
}

// The threads of a tile as groups of one a head; threads beyond the last whole group have no tokens.
struct Place { i32 head, group, groups; };
__device__ __forceinline__ Place place_of(i32 heads)
{
    i32 group = threadIdx.x / heads;
    return {(i32)threadIdx.x - group * heads, group, PAIR_THREADS / heads};
}

// A thread's tokens of a tile [begin, end): first, first + groups, ...
struct Strand
{
    i32 first, groups, end;
    u32 pair, step;   // pair of the first token, and from a token's to the next one's

    __device__ __forceinline__ i32 token(i32 k) const { return first + k * groups; }
    __device__ __forceinline__ bool has(i32 k) const { return token(k) < end; }
    __device__ __forceinline__ u32 at(i32 k) const { return pair + k * step; }
};
__device__ __forceinline__ Strand strand_of(const Place& place, const Row& row, i32 begin, i32 end)
{
    i32 first = begin + place.group;
    return {first, place.groups, place.group >= place.groups ? first : end, row.pair + first * row.step, place.groups * row.step};
}

// The segment and tile of a block: grid (tile_starts[B], Hkv where per_head, else 1). No load here waits for another where there is one sequence.
struct Segment
{
    i32 index, sequence, first_head, heads, tiles, tile;
    i32 entries;            // index of the segment's first (tile, head) among all
    Span span;
};
__device__ __forceinline__ Segment segment_of_block(const Segments& s)
{
    const i32* tile_starts = (const i32*)s.tile_starts;
    Segment g;
    g.sequence = row_of(tile_starts, s.sequences, blockIdx.x);
    g.span = span_of(s.pairs, g.sequence);
    i32 start = tile_starts[g.sequence];
    g.tiles = tile_starts[g.sequence + 1] - start;
    g.first_head = blockIdx.y;
    g.heads = s.per_head ? 1 : s.pairs.heads;
    g.index = s.per_head ? g.sequence * s.pairs.heads + g.first_head : g.sequence;
    g.tile = blockIdx.x - start;
    g.entries = start * s.pairs.heads + g.first_head * g.tiles;
    return g;
}
__device__ __forceinline__ Strand strand_of(const Segments& s, const Segment& g, const Place& place)
{
    Row row = row_of(s.pairs, g.span, g.sequence, g.first_head + place.head);
    return strand_of(place, row, g.tile * THREAD_TOKENS * place.groups, row.length);
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

// Sum over the threads of the block up to this one, and over all of them. Uses scratch words 0 to 7; between two of them the caller has a barrier.
__device__ __forceinline__ u32 block_inclusive_sum(u32 x, u32& total)
{
    u32 scratch = shared_base() + SCRATCH, warp = threadIdx.x / 32;
    x = warp_inclusive_sum(x);
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
constexpr u32 fixed_mask(i32 round) { return round == 0 ? 0 : round == 1 ? 0xffe00000 : 0xfffffc00; }

__device__ __forceinline__ void clear_digits()
{
#pragma unroll
    for (i32 i = 0; i < DIGITS / PAIR_THREADS / 4; i++)
        store_shared_x4(shared_base() + (i * PAIR_THREADS + threadIdx.x) * 16, {0, 0, 0, 0});
    __syncthreads();
}
__device__ __forceinline__ void count_digit(u32 key, i32 round, u32 fixed)
{
    if (((key ^ fixed) & fixed_mask(round)) == 0)
        atomic_add_shared(shared_base() + ((key >> digit_shift(round)) & digit_mask(round)) * 4, 1);
}

// A thread's 8 digits, from the highest down; the first thread has the highest.
struct Digits { u32 counts[DIGITS / PAIR_THREADS]; };
__device__ __forceinline__ u32 own_digits() { return DIGITS - DIGITS / PAIR_THREADS * (threadIdx.x + 1); }
__device__ __forceinline__ Digits digits_of(u32x4 low, u32x4 high) { return {{high.w, high.z, high.y, high.x, low.w, low.z, low.y, low.x}}; }

__device__ __forceinline__ u32* histogram_of(const Segments& s, const Segment& g, i32 round) { return (u32*)s.histograms + ((i64)g.index * 2 + (round & 1)) * DIGITS; }
__device__ __forceinline__ SegmentState* state_of(const Segments& s, const Segment& g, i32 slot) { return (SegmentState*)s.states + (i64)g.index * 2 + slot; }

__device__ __forceinline__ Digits load_digits(const u32* histogram)
{
    const u32x4* own = (const u32x4*)(histogram + own_digits());
    return digits_of(own[0], own[1]);
}
__device__ __forceinline__ void clear_histogram(u32* histogram)
{
    u32x4* own = (u32x4*)(histogram + own_digits());
    own[0] = own[1] = {0, 0, 0, 0};
}

// Fixes the digit of the key of rank `wanted`; all threads learn the state. Uses scratch words 0 to 7 and 12 to 15.
__device__ __forceinline__ SegmentState pick_digit(const SegmentState& before, i32 round, const Digits& digits)
{
    if (before.wanted == 0)
        return {before.key | digit_mask(round) << digit_shift(round), 0, -1};
    u32 picked = shared_base() + SCRATCH + 48, sum = 0, total;
#pragma unroll
    for (i32 i = 0; i < DIGITS / PAIR_THREADS; i++)
        sum += digits.counts[i];
    u32 above = block_inclusive_sum(sum, total) - sum, highest = own_digits() + DIGITS / PAIR_THREADS - 1;
#pragma unroll
    for (i32 i = 0; i < DIGITS / PAIR_THREADS; i++)
    {
        if (above < before.wanted && above + digits.counts[i] >= before.wanted)
            store_shared_x4(picked, {before.key | (highest - i) << digit_shift(round), before.wanted - above, round == 2 && above + digits.counts[i] == before.wanted, 0});
        above += digits.counts[i];
    }
    __syncthreads();
    u32x4 state = load_shared_x4(picked);
    return {state.x, state.y, state.z != 0 ? ALL_TIES : -1};
}

// Ends a round. Of several blocks each adds its digits to the segment's histogram, and the next pass picks in every block, beside loading its keys: no block waits for
// the others. Only the first round's last block picks itself, as its state must outlive what comes between fusion and selection. A block of its own knows all digits.
__device__ __forceinline__ void finish_round(const Segments& s, const Segment& g, i32 round, const SegmentState& state)
{
    __syncthreads();
    Digits digits;
    if (g.tiles > 1)
    {
        u32* histogram = histogram_of(s, g, round);
#pragma unroll
        for (i32 i = threadIdx.x; i < DIGITS; i += PAIR_THREADS)
        {
            u32 count = load_shared(shared_base() + i * 4);
            if (count != 0)
                atomic_add_global(histogram + i, count);
        }
        if (round > 0 || !is_last_block((u32*)s.counters + g.index, g.tiles))
            return;
        digits = load_digits(histogram);
        clear_histogram(histogram);
    }
    else
        digits = digits_of(load_shared_x4(shared_base() + own_digits() * 4), load_shared_x4(shared_base() + own_digits() * 4 + 16));
    SegmentState next = pick_digit(state, round, digits);
    if (threadIdx.x == 0)
        *state_of(s, g, round & 1) = next;
}

// What the rounds before left, for a pass that comes after `rounds` of them, 1 to 3: on its way, then as a state.
struct Found
{
    SegmentState state;
    Digits digits;
};
__device__ __forceinline__ bool picks(const Segment& g, i32 rounds) { return rounds > 1 && g.tiles > 1; }
__device__ __forceinline__ Found load_found(const Segments& s, const Segment& g, i32 rounds)
{
    Found found = {*state_of(s, g, g.tiles == 1 ? (rounds - 1) & 1 : rounds > 2), {}};
    if (picks(g, rounds))
        found.digits = load_digits(histogram_of(s, g, rounds - 1));
    return found;
}
__device__ __forceinline__ SegmentState state_after(const Segments& s, const Segment& g, i32 rounds, const Found& found)
{
    if (!picks(g, rounds))
        return found.state;
    SegmentState state = pick_digit(found.state, rounds - 1, found.digits);
    if (rounds == 2 && g.tile == 0 && threadIdx.x == 0)
        *state_of(s, g, 1) = state;
    return state;
}
