// Segmented top-k: of every segment (a sequence, or a head of one) the `wanted` best scores, ties to the lower (token, head), -0 equal to 0, NaN lowest;
// kept tokens ascend in each head. radix.cuh says how a segment is cut into strips and how the threshold is found; no score is moved or sorted.
//
//     rounds 0, 1, 2 (fuse has done round 0 where its scores are selected from as they are)      threshold key, and how many pairs at it are kept
//     select_count      how many pairs of each strip and head lie above the threshold, and at it; the segment's last block finds, by an ordered scan, the strip in
//                       which the ties run out and the last tie kept, and turns counts into places: an exclusive sum over strips, head by head
//     select_write      a strip writes its kept tokens from its place on
//
// scores f32 or keys u32, laid out as Pairs; kept_indices i32 [K]; kept_offsets i32 [B·Hkv + 1].
// Bytes: each pass reads 4 bytes a pair (L2-resident at L8: 4 MB); 4 launches after fuse, about 3 us each at 1.05 M pairs; the target for fuse and select is 40 us.
//
// Scope token: select_token_sums adds a token's scores over its heads, f32 [N]; then a segment a sequence over Pairs{heads = 1}, written to `copies` = Hkv heads.
// Minimum a head: the first three stages with a segment a head and count min(length, minimum), kept_offsets = 0; select_raise writes keys in which those are above
// every score; then all stages with keys_given over those keys.
//
// select_digits(round)   grid: block_starts[B]       threads: 256   shared: 8256 bytes
// select_count           grid: block_starts[B]       threads: 256   shared: 8256 bytes
// select_write           grid: block_starts[B]       threads: 256   shared: 0
// select_raise           grid: block_starts[B]       threads: 256   shared: 0
// select_token_sums      grid: ceil(N / 256)         threads: 256   shared: 0
// strips(b) = ceil(longest head / 512); blocks(b) = per head: Hkv·max(1, ceil(strips / 8)); else max(1, ceil(strips·Hkv / 8)).
// Workspace: 8192 + 4 + 16 bytes a segment (histograms and counters zero before and after), 8 bytes a (strip, head).
#include "radix.cuh"

struct SelectParams
{
    Segments segments;
    u64 scores;          // f32, or u32 keys where keys_given
    u64 counts;          // u32x2 [strips·Hkv]: above and at the threshold; then place and -
    u64 kept_indices;    // i32 [K]; of select_raise: u32 keys, laid out as the scores
    u64 kept_offsets;    // i32 [B·Hkv + 1], or 0
    i32 keys_given, round;
    i64 copies;          // heads that receive what a segment keeps: Hkv in scope token, else 1
};

__device__ __forceinline__ u32 key_at(const SelectParams& p, const Segment& g, i32 head, i32 token)
{
    i64 pair = pair_of(p.segments.pairs, g.sequence, head, token);
    return p.keys_given ? ((const u32*)p.scores)[pair] : key_of(((const float*)p.scores)[pair]);
}
__device__ __forceinline__ u32 wanted_of(const SelectParams& p, i32 segment)
{
    const i32* kept_starts = (const i32*)p.segments.kept_starts;
    return kept_starts[segment + 1] - kept_starts[segment];
}
__device__ __forceinline__ bool is_kept(const SegmentState& state, const Segment& g, u32 key, i32 head, i32 token)
{
    return key > state.key || (key == state.key && (i64)token * g.heads + head - g.first_head <= state.limit);
}

extern "C" __global__ void __launch_bounds__(PAIR_THREADS, 4) select_digits(const __grid_constant__ SelectParams p)
{
    Segment g = segment_of_block(p.segments);
    SegmentState state = {0, wanted_of(p, g.index), -1};
    if (p.round > 0)
        state = ((const SegmentState*)p.segments.states)[g.index];
    clear_digits();
    i32 length = length_of(p.segments.pairs, g.sequence, g.head), end = (g.strip + 1) * STRIP < length ? (g.strip + 1) * STRIP : length;
    for (i32 token = g.strip * STRIP + threadIdx.x % 32; token < end; token += 32)
        count_digit(key_at(p, g, g.head, token), p.round, state.key);
    finish_round(p.segments, g, p.round, state.key, state.wanted);
}

// Scratch words of the block that ends a segment: 9 the strip where ties run out, 10 ties kept in it, 12 and 13 the last tie kept.
constexpr u32 SPLIT_STRIP = SCRATCH + 36, SPLIT_TIES = SCRATCH + 40, SPLIT_LIMIT = SCRATCH + 48;

// Finds the last pair at the threshold that is kept, in (token, head) order.
__device__ __forceinline__ void split_ties(const SelectParams& p, const Segment& g, const SegmentState& state)
{
    const u32x2* counts = (const u32x2*)p.counts + g.entries;
    u32 shared = shared_base(), before = 0;
    if (threadIdx.x == 0)
    {
        store_shared(shared + SPLIT_STRIP, (u32)-1);
        store_shared_x2(shared + SPLIT_LIMIT, {(u32)-1, (u32)-1});
    }
    for (i32 first = 0; first < g.strips && before < state.wanted; first += PAIR_THREADS)
    {
        i32 strip = first + threadIdx.x;
        u32 ties = 0, total;
        if (strip < g.strips)
            for (i32 j = 0; j < g.heads; j++)
                ties += counts[(i64)strip * g.heads + j].y;
        u32 up_to = before + block_inclusive_sum(ties, total);
        if (up_to - ties < state.wanted && state.wanted <= up_to)
        {
            store_shared(shared + SPLIT_STRIP, strip);
            store_shared(shared + SPLIT_TIES, state.wanted - (up_to - ties));
        }
        before += total;
    }
    __syncthreads();
    i32 split = (i32)load_shared(shared + SPLIT_STRIP);
    if (split < 0)
        return;
    u32 left = load_shared(shared + SPLIT_TIES);
    before = 0;
    for (i32 first = 0; first < STRIP; first += PAIR_THREADS)
    {
        i32 token = split * STRIP + first + threadIdx.x;
        u32 ties = 0, total;
        for (i32 j = 0; j < g.heads; j++)
            ties += token < length_of(p.segments.pairs, g.sequence, g.first_head + j) && key_at(p, g, g.first_head + j, token) == state.key;
        u32 up_to = before + block_inclusive_sum(ties, total);
        if (up_to - ties < left && left <= up_to)
        {
            u32 rank = up_to - ties;
            for (i32 j = 0; j < g.heads; j++)
                if (token < length_of(p.segments.pairs, g.sequence, g.first_head + j) && key_at(p, g, g.first_head + j, token) == state.key && ++rank == left)
                {
                    u64 limit = (u64)token * g.heads + j;
                    store_shared_x2(shared + SPLIT_LIMIT, {(u32)limit, (u32)(limit >> 32)});
                }
        }
        before += total;
    }
    __syncthreads();
}

// Turns counts of a head's strips into places, and returns the head's total. A warp's work.
__device__ __forceinline__ u32 place_head(const SelectParams& p, const Segment& g, const SegmentState& state, i32 split, i32 j)
{
    i32 head = g.first_head + j, lane = threadIdx.x % 32;
    u32 in_split = 0, before = 0;
    if (split >= 0)
    {
        i32 length = length_of(p.segments.pairs, g.sequence, head), end = (split + 1) * STRIP < length ? (split + 1) * STRIP : length;
        for (i32 token = split * STRIP + lane; token < end; token += 32)
            in_split += key_at(p, g, head, token) == state.key && (i64)token * g.heads + j <= state.limit;
        in_split = __reduce_add_sync(0xffffffff, in_split);
    }
    u32x2* counts = (u32x2*)p.counts + g.entries;
    for (i32 first = 0; first < g.strips; first += 32)
    {
        i32 strip = first + lane;
        u32 kept = 0;
        if (strip < g.strips)
        {
            u32x2 count = counts[(i64)strip * g.heads + j];
            kept = count.x + (strip < split ? count.y : strip == split ? in_split : 0);
        }
        u32 up_to = before + warp_inclusive_sum(kept);
        if (strip < g.strips)
            counts[(i64)strip * g.heads + j].x = up_to - kept;
        before = __shfl_sync(0xffffffff, up_to, 31);
    }
    return before;
}

// Offsets of the heads that a segment fills; where heads compete, kept_offsets[row + 1] holds the head's total before.
__device__ __forceinline__ void place_segment(const SelectParams& p, const Segment& g)
{
    i32 start = ((const i32*)p.segments.kept_starts)[g.index], wanted = (i32)wanted_of(p, g.index), lane = threadIdx.x;
    i32* offsets = (i32*)p.kept_offsets + (i64)g.index * g.heads * p.copies + 1;
    if (g.index == 0 && lane == 0)
        offsets[-1] = 0;
    if (g.heads == 1)
    {
        for (i32 copy = lane; copy < p.copies; copy += 32)
            offsets[copy] = (i32)(start * p.copies + (copy + 1) * wanted);
        return;
    }
    u32 before = start;
    for (i32 first = 0; first < g.heads; first += 32)
    {
        u32 up_to = before + warp_inclusive_sum(first + lane < g.heads ? (u32)offsets[first + lane] : 0);
        if (first + lane < g.heads)
            offsets[first + lane] = (i32)up_to;
        before = __shfl_sync(0xffffffff, up_to, 31);
    }
}

extern "C" __global__ void __launch_bounds__(PAIR_THREADS, 4) select_count(const __grid_constant__ SelectParams p)
{
    Segment g = segment_of_block(p.segments);
    SegmentState state = ((const SegmentState*)p.segments.states)[g.index];
    i32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (g.strip < g.strips)
    {
        i32 length = length_of(p.segments.pairs, g.sequence, g.head), end = (g.strip + 1) * STRIP < length ? (g.strip + 1) * STRIP : length;
        u32x2 count = {0, 0};
        for (i32 token = g.strip * STRIP + lane; token < end; token += 32)
        {
            u32 key = key_at(p, g, g.head, token);
            count.x += key > state.key;
            count.y += key == state.key;
        }
        count = {__reduce_add_sync(0xffffffff, count.x), __reduce_add_sync(0xffffffff, count.y)};
        if (lane == 0)
            ((u32x2*)p.counts)[g.entries + (i64)g.strip * g.heads + g.head - g.first_head] = count;
    }
    if (!is_last_block((u32*)p.segments.counters + g.index, g.blocks))
        return;
    split_ties(p, g, state);
    i32 split = (i32)load_shared(shared_base() + SPLIT_STRIP);
    u32x2 limit = load_shared_x2(shared_base() + SPLIT_LIMIT);
    state.limit = (i64)((u64)limit.y << 32 | limit.x);
    if (threadIdx.x == 0)
        ((SegmentState*)p.segments.states)[g.index].limit = state.limit;
    for (i32 j = warp; j < g.heads; j += PAIR_WARPS)
    {
        u32 total = place_head(p, g, state, split, j);
        if (lane == 0 && g.heads > 1 && p.kept_offsets)
            ((i32*)p.kept_offsets)[(i64)g.index * g.heads + j + 1] = (i32)total;
    }
    __syncthreads();
    if (warp == 0 && p.kept_offsets)
        place_segment(p, g);
}

extern "C" __global__ void __launch_bounds__(PAIR_THREADS, 4) select_write(const __grid_constant__ SelectParams p)
{
    Segment g = segment_of_block(p.segments);
    if (g.strip >= g.strips)
        return;
    SegmentState state = ((const SegmentState*)p.segments.states)[g.index];
    i32 length = length_of(p.segments.pairs, g.sequence, g.head), lane = threadIdx.x % 32;
    i64 row = g.index * g.heads * p.copies + g.head - g.first_head;
    i32 wanted = (i32)wanted_of(p, g.index);
    i32* to = (i32*)p.kept_indices + ((const i32*)p.kept_offsets)[row] + ((const u32x2*)p.counts)[g.entries + (i64)g.strip * g.heads + g.head - g.first_head].x;
    for (i32 first = g.strip * STRIP; first < length && first < (g.strip + 1) * STRIP; first += 32)
    {
        i32 token = first + lane;
        bool kept = token < length && is_kept(state, g, key_at(p, g, g.head, token), g.head, token);
        u32 all = __ballot_sync(0xffffffff, kept);
        if (kept)
            for (i32 copy = 0; copy < p.copies; copy++)
                to[(i64)copy * wanted + __popc(all & ((1u << lane) - 1))] = token;
        to += __popc(all);
    }
}

extern "C" __global__ void __launch_bounds__(PAIR_THREADS, 4) select_raise(const __grid_constant__ SelectParams p)
{
    Segment g = segment_of_block(p.segments);
    SegmentState state = ((const SegmentState*)p.segments.states)[g.index];
    i32 length = length_of(p.segments.pairs, g.sequence, g.head), end = (g.strip + 1) * STRIP < length ? (g.strip + 1) * STRIP : length;
    for (i32 token = g.strip * STRIP + threadIdx.x % 32; token < end; token += 32)
    {
        u32 key = key_at(p, g, g.head, token);
        ((u32*)p.kept_indices)[pair_of(p.segments.pairs, g.sequence, g.head, token)] = is_kept(state, g, key, g.head, token) ? 0xffffffff : key;
    }
}

struct SelectTokenSumsParams
{
    u64 scores, sums;    // f32 [N, Hkv], f32 [N]
    i32 tokens, heads;
};

extern "C" __global__ void __launch_bounds__(PAIR_THREADS) select_token_sums(const __grid_constant__ SelectTokenSumsParams p)
{
    i32 token = blockIdx.x * PAIR_THREADS + threadIdx.x;
    if (token >= p.tokens)
        return;
    const float* scores = (const float*)p.scores + (i64)token * p.heads;
    float sum = 0;
    for (i32 h = 0; h < p.heads; h++)
        sum += scores[h];
    ((float*)p.sums)[token] = sum;
}
