// Segmented top-k: of every segment (a sequence, or a head of one) the `wanted` best scores, ties to the lower (token, head), -0 equal to 0, NaN lowest;
// kept tokens ascend in each head. radix.cuh says how a segment is cut into tiles and how the threshold is found; no score is moved or sorted.
//
//     rounds 0, 1, 2 (fuse has done round 0 where its scores are selected from as they are)      threshold key, and how many pairs at it are kept
//     select_count      how many pairs of each tile and head lie above the threshold, and at it; the segment's last block turns them into places: an exclusive sum
//                       over heads, then tiles. Only where ties run out does it look for the tile in which they do, and for the last tie kept
//     select_write      a tile lists its kept tokens, head by head, and copies the list to its places
//
// scores f32 or keys u32, laid out as Pairs; kept_indices i32 [K]; kept_offsets i32 [B·Hkv + 1].
// Bytes: each pass reads 4 bytes a pair (L2-resident at L8: 4 MB, 1 us); 4 launches after fuse, 3 to 5 us each at 1.05 M pairs, of which a launch, the way to the tables
// and keys, and in select_count the last block's way from counter to places are three quarters: what a pass costs at 32 K pairs it nearly costs at 1 M.
//
// Scope token: select_token_sums adds a token's scores over its heads, f32 [N]; then a segment a sequence over Pairs{heads = 1}, written to `copies` = Hkv heads.
// Minimum a head: the first three stages with a segment a head and count min(length, minimum), kept_offsets = 0; select_raise writes keys in which those are above
// every score; then all stages with keys_given over those keys.
//
// select_digits(round)   grid: (tile_starts[B], segments of a sequence)   threads: 256   shared: 8256 bytes
// select_count           grid: the same                                   threads: 256   shared: 8256 bytes
// select_write           grid: the same                                   threads: 256   shared: 9280 bytes
// select_raise           grid: the same                                   threads: 256   shared: 9280 bytes, unused
// select_token_sums      grid: ceil(N / 256)                              threads: 256   shared: 0
// Workspace: 16384 + 4 + 32 bytes a segment (histograms and counters zero before and after), 4 bytes a (tile, head) and a tile.
#include "radix.cuh"

struct SelectParams
{
    Segments segments;
    u64 scores;          // f32, or u32 keys where keys_given
    u64 counts;          // u32 [tiles·heads]: above the threshold, and at it in the upper half; then the place in kept_indices
    u64 tile_ties;       // u32 [tiles·segments of a sequence]
    u64 kept_indices;    // i32 [K]; of select_raise: u32 keys, laid out as the scores
    u64 kept_offsets;    // i32 [B·Hkv + 1], or 0
    i32 keys_given, round;
    i64 copies;          // heads that receive what a segment keeps: Hkv in scope token, else 1
};

// The words of a thread's pairs, all on their way at once.
struct Keys { u32 words[THREAD_TOKENS]; };
__device__ __forceinline__ Keys load_keys(const SelectParams& p, const Strand& s)
{
    Keys keys;
#pragma unroll
    for (i32 k = 0; k < THREAD_TOKENS; k++)
        keys.words[k] = s.has(k) ? ((const u32*)p.scores)[s.at(k)] : 0;
    return keys;
}
__device__ __forceinline__ u32 key_of(const SelectParams& p, u32 word) { return p.keys_given ? word : key_of(__uint_as_float(word)); }
__device__ __forceinline__ void make_keys(const SelectParams& p, Keys& keys)
{
    if (!p.keys_given)
#pragma unroll
        for (i32 k = 0; k < THREAD_TOKENS; k++)
            keys.words[k] = key_of(__uint_as_float(keys.words[k]));
}

__device__ __forceinline__ i32 ties_of(const Segments& s, const Segment& g)
{
    return ((const i32*)s.tile_starts)[g.sequence] * (s.per_head ? s.pairs.heads : 1) + g.first_head * g.tiles;
}
__device__ __forceinline__ u32 wanted_of(const SelectParams& p, i32 segment)
{
    const i32* kept_starts = (const i32*)p.segments.kept_starts;
    return kept_starts[segment + 1] - kept_starts[segment];
}
__device__ __forceinline__ bool is_kept(const SegmentState& state, u32 key, i64 rank) { return key > state.key || (key == state.key && rank <= state.limit); }

extern "C" __global__ void __launch_bounds__(PAIR_THREADS, 4) select_digits(const __grid_constant__ SelectParams p)
{
    Segment g = segment_of_block(p.segments);
    Strand s = strand_of(p.segments, g, place_of(g.heads));
    Keys keys = load_keys(p, s);
    Found found = {};
    if (p.round > 0)
        found = load_found(p.segments, g, p.round);
    else
        found.state.wanted = wanted_of(p, g.index);
    clear_digits();
    SegmentState state = state_after(p.segments, g, p.round, found);
    make_keys(p, keys);
#pragma unroll
    for (i32 k = 0; k < THREAD_TOKENS; k++)
        if (s.has(k))
            count_digit(keys.words[k], p.round, state.key);
    finish_round(p.segments, g, p.round, state);
}

// Shared memory of select_count: counts of heads, then a word a thread. Scratch words 9 ties of the tile, 10 the tile where ties run out, 11 ties kept in it, 12 the last one.
constexpr u32 HEAD_COUNTS = 0, THREAD_WORDS = PAIR_THREADS * 4, TILE_TIES = SCRATCH + 36, SPLIT_TILE = SCRATCH + 40, SPLIT_TIES = SCRATCH + 44, SPLIT_LAST = SCRATCH + 48;

__device__ __forceinline__ void clear_heads()
{
    store_shared(shared_base() + HEAD_COUNTS + threadIdx.x * 4, 0);
    if (threadIdx.x == 0)
        store_shared(shared_base() + TILE_TIES, 0);
    __syncthreads();
}

// A tile's pairs above the threshold, and at it in the upper half, head by head in shared memory; and its ties.
__device__ __forceinline__ void count_heads(const Segment& g, const Place& place, const Strand& s, u32 threshold, const Keys& keys)
{
    u32 own = 0;
#pragma unroll
    for (i32 k = 0; k < THREAD_TOKENS; k++)
        if (s.has(k))
            own += keys.words[k] > threshold ? 1 : keys.words[k] == threshold ? 0x10000 : 0;
    if (g.heads == 1)   // one address for all: a warp adds once
    {
        own = __reduce_add_sync(0xffffffff, own);
        own = threadIdx.x % 32 == 0 ? own : 0;
    }
    if (own != 0)
        atomic_add_shared(shared_base() + HEAD_COUNTS + place.head * 4, own);
    if (own >> 16 != 0)
        atomic_add_shared(shared_base() + TILE_TIES, own >> 16);
    __syncthreads();
}

// The tile where ties run out; how many of it each head keeps, in the upper half of its count; and in state.limit the last pair at the threshold that is kept, in
// (token, head) order. -1 where no tie is kept.
__device__ __forceinline__ i32 split_ties(const SelectParams& p, const Segment& g, SegmentState& state)
{
    const u32* tile_ties = (const u32*)p.tile_ties + ties_of(p.segments, g);
    u32 shared = shared_base(), own = 0, total;
    i32 run = ceil_div(g.tiles, PAIR_THREADS), first = threadIdx.x * run, end = first + run < g.tiles ? first + run : g.tiles;
    if (state.wanted == 0)
        return -1;
#pragma unroll 4
    for (i32 tile = first; tile < end; tile++)
        own += tile_ties[tile];
    u32 up_to = block_inclusive_sum(own, total), before = up_to - own;
    if (before < state.wanted && state.wanted <= up_to)
    {
        i32 tile = first;
        while (before + tile_ties[tile] < state.wanted)
            before += tile_ties[tile++];
        store_shared(shared + SPLIT_TILE, tile);
        store_shared(shared + SPLIT_TIES, state.wanted - before);
    }
    clear_heads();
    i32 split = (i32)load_shared(shared + SPLIT_TILE), tokens = tile_tokens(g.heads), index = threadIdx.x * THREAD_TOKENS;
    u32 left = load_shared(shared + SPLIT_TIES), tied = 0;

    // A thread's 8 pairs of the tile, now in the order of (token, head).
    Keys keys;
    i32 token = index / g.heads, head = index - token * g.heads;
    u32 valid = 0;
#pragma unroll
    for (i32 k = 0; k < THREAD_TOKENS; k++)
    {
        Row row = row_of(p.segments.pairs, g.span, g.sequence, g.first_head + head);
        i32 at = split * tokens + token;
        bool exists = token < tokens && at < row.length;
        keys.words[k] = exists ? ((const u32*)p.scores)[row.pair + at * row.step] : 0;
        valid |= (u32)exists << k;
        head++;
        token += head == g.heads;
        head = head == g.heads ? 0 : head;
    }
    make_keys(p, keys);
#pragma unroll
    for (i32 k = 0; k < THREAD_TOKENS; k++)
        tied |= (u32)(keys.words[k] == state.key) << k;
    tied &= valid;
    up_to = block_inclusive_sum(__popc(tied), total);
    before = up_to - __popc(tied);
    if (before < left && left <= up_to)
    {
        u32 rest = tied;
        for (; before + 1 < left; before++)
            rest &= rest - 1;
        store_shared(shared + SPLIT_LAST, index + __ffs(rest) - 1);
    }
    __syncthreads();
    i32 last = (i32)load_shared(shared + SPLIT_LAST);
    for (u32 rest = tied; rest != 0 && index + __ffs(rest) - 1 <= last; rest &= rest - 1)
        atomic_add_shared(shared + HEAD_COUNTS + (index + __ffs(rest) - 1) % g.heads * 4, 0x10000);
    __syncthreads();
    state.limit = (i64)split * tokens * g.heads + last;
    return split;
}

// A run of tiles of one head, a thread's share of the placing; 16 tiles at a time, which are all at L8.
struct Run
{
    u32* counts;      // of the head
    i32 first, end, heads;
    u32 some[16];

    __device__ __forceinline__ void load(i32 from)
    {
#pragma unroll
        for (i32 i = 0; i < 16; i++)
            some[i] = from + i < end ? counts[(i64)(from + i) * heads] : 0;
    }
};
__device__ __forceinline__ Run run_of(const SelectParams& p, const Segment& g, const Place& place)
{
    // Of a thread without a group, first lies behind the last tile.
    i32 length = ceil_div(g.tiles, place.groups), first = place.group * length, end = first + length < g.tiles ? first + length : g.tiles;
    Run run = {(u32*)p.counts + g.entries + place.head, first, end, g.heads, {}};
    run.load(first);
    return run;
}

// Counts of tiles become places, head by head; ends of heads become offsets.
__device__ __forceinline__ void place_tiles(const SelectParams& p, const Segment& g, const Place& place, i32 split)
{
    Run run = run_of(p, g, place);
    u32 start = ((const i32*)p.segments.kept_starts)[g.index];
    u32 words = shared_base() + THREAD_WORDS, own = words + (place.head * place.groups + place.group) * 4, sum = 0, total;
    u32 in_split = load_shared(shared_base() + HEAD_COUNTS + place.head * 4) >> 16;
    bool active = place.group < place.groups;
    auto kept = [&](i32 tile, u32 count) { return (count & 0xffff) + (tile < split ? count >> 16 : tile == split ? in_split : 0); };
    for (i32 from = run.first; from < run.end; from += 16)
    {
        if (from > run.first)
            run.load(from);
#pragma unroll
        for (i32 i = 0; i < 16; i++)
            sum += from + i < run.end ? kept(from + i, run.some[i]) : 0;
    }
    if (active)
        store_shared(own, sum);
    __syncthreads();
    u32 listed = (i32)threadIdx.x < g.heads * place.groups ? load_shared(words + threadIdx.x * 4) : 0;
    u32 before = block_inclusive_sum(listed, total) - listed;
    store_shared(words + threadIdx.x * 4, before);
    __syncthreads();
    u32 at = active ? start + load_shared(own) : 0;
    for (i32 from = run.first; from < run.end; from += 16)
    {
        if (run.end - run.first > 16)
            run.load(from);
#pragma unroll
        for (i32 i = 0; i < 16; i++)
            if (from + i < run.end)
            {
                run.counts[(i64)(from + i) * g.heads] = at;
                at += kept(from + i, run.some[i]);
            }
    }
    if (!p.kept_offsets)
        return;
    i32* offsets = (i32*)p.kept_offsets + (i64)g.index * g.heads * p.copies + 1;
    if (p.copies > 1)
        for (i32 copy = threadIdx.x; copy < p.copies; copy += PAIR_THREADS)
            offsets[copy] = (i32)(start * p.copies + (copy + 1) * (i64)total);
    else if (place.group == place.groups - 1)
        offsets[place.head] = (i32)at;
    if (g.index == 0 && threadIdx.x == 0)
        offsets[-1] = 0;
}

extern "C" __global__ void __launch_bounds__(PAIR_THREADS, 4) select_count(const __grid_constant__ SelectParams p)
{
    Segment g = segment_of_block(p.segments);
    Place place = place_of(g.heads);
    Strand s = strand_of(p.segments, g, place);
    Keys keys = load_keys(p, s);
    Found found = load_found(p.segments, g, 3);
    SegmentState state = state_after(p.segments, g, 3, found);
    if (g.tiles > 1 && g.tile == 0)
        clear_histogram(histogram_of(p.segments, g, 1));
    clear_heads();
    make_keys(p, keys);
    count_heads(g, place, s, state.key, keys);
    if ((i32)threadIdx.x < g.heads)
        ((u32*)p.counts)[g.entries + (i64)g.tile * g.heads + threadIdx.x] = load_shared(shared_base() + HEAD_COUNTS + threadIdx.x * 4);
    if (threadIdx.x == 0)
        ((u32*)p.tile_ties)[ties_of(p.segments, g) + g.tile] = load_shared(shared_base() + TILE_TIES);
    if (!is_last_block((u32*)p.segments.counters + g.index, g.tiles))
        return;
    i32 split = state.limit == ALL_TIES ? g.tiles : split_ties(p, g, state);
    if (threadIdx.x == 0)
        *state_of(p.segments, g, 0) = state;
    place_tiles(p, g, place, split);
}

// The threshold and the last tie kept; leaves the last histogram zero.
__device__ __forceinline__ SegmentState final_state(const Segments& s, const Segment& g)
{
    if (g.tiles > 1 && g.tile == 0)
        clear_histogram(histogram_of(s, g, 2));
    return *state_of(s, g, 0);
}

// Shared memory of select_write: 16 bytes of flags a thread and head, then the list in their place; a word a head beyond the scratch.
constexpr u32 WRITE_PLACES = RADIX_SHARED_BYTES;

extern "C" __global__ void __launch_bounds__(PAIR_THREADS, 4) select_write(const __grid_constant__ SelectParams p)
{
    Segment g = segment_of_block(p.segments);
    Place place = place_of(g.heads);
    Strand s = strand_of(p.segments, g, place);
    Keys keys = load_keys(p, s);
    SegmentState state = final_state(p.segments, g);
    u32 shared = shared_base(), thread = threadIdx.x, groups = place.groups, wanted = wanted_of(p, g.index);
    u32 to = (i32)thread < g.heads ? ((const u32*)p.counts)[g.entries + (i64)g.tile * g.heads + thread] : 0;
    i64 start = ((const i32*)p.segments.kept_starts)[g.index];

    make_keys(p, keys);
    // Flags in the order of the list: head by head, 8 more bytes than tokens a head, which keeps heads in banks of their own.
    if (place.group < place.groups)
    {
#pragma unroll
        for (i32 k = 0; k < THREAD_TOKENS; k++)
        {
            bool kept = s.has(k) && is_kept(state, keys.words[k], (i64)s.token(k) * g.heads + place.head);
            store_shared_u16(shared + place.head * (groups + 1) * 16 + (place.group + k * groups) * 2, kept);
        }
    }
    __syncthreads();
    u32 head = thread / groups, within = thread - head * groups, count = 0, total;
    u32x4 flags = {0, 0, 0, 0};
    if ((i32)head < g.heads)
    {
        flags = load_shared_x4(shared + (head * (groups + 1) + within) * 16);
        count = flags.x + flags.y + flags.z + flags.w;
        count = (count & 0xffff) + (count >> 16);
    }
    u32 at = block_inclusive_sum(count, total) - count;
    if ((i32)head < g.heads && within == 0)
        store_shared(shared + WRITE_PLACES + head * 4, at);
    u32 words[4] = {flags.x, flags.y, flags.z, flags.w};
#pragma unroll
    for (u32 k = 0; k < THREAD_TOKENS; k++)
        if ((words[k / 2] >> (k % 2 * 16)) & 1)
            store_shared(shared + at++ * 4, head << 16 | (within * THREAD_TOKENS + k));
    __syncthreads();
    if ((i32)thread < g.heads)
        store_shared(shared + WRITE_PLACES + thread * 4, to - load_shared(shared + WRITE_PLACES + thread * 4));
    __syncthreads();
    i32 first = g.tile * tile_tokens(g.heads);
    for (u32 i = thread; i < total; i += PAIR_THREADS)
    {
        u32 listed = load_shared(shared + i * 4), place_in_kept = load_shared(shared + WRITE_PLACES + (listed >> 16) * 4) + i;
        for (i32 copy = 0; copy < p.copies; copy++)
            ((i32*)p.kept_indices)[start * (p.copies - 1) + (i64)copy * wanted + place_in_kept] = first + (i32)(listed & 0xffff);
    }
}

extern "C" __global__ void __launch_bounds__(PAIR_THREADS, 4) select_raise(const __grid_constant__ SelectParams p)
{
    Segment g = segment_of_block(p.segments);
    Strand s = strand_of(p.segments, g, place_of(1));   // a segment a head
    Keys keys = load_keys(p, s);
    SegmentState state = final_state(p.segments, g);
    make_keys(p, keys);
#pragma unroll
    for (i32 k = 0; k < THREAD_TOKENS; k++)
        if (s.has(k))
            ((u32*)p.kept_indices)[s.at(k)] = is_kept(state, keys.words[k], s.token(k)) ? 0xffffffff : keys.words[k];
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
