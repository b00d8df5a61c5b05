// Non-causal attention scores on sm_90a: the same as attention_scores.cu, for 16-bit elements, D 64 or 128 and chunks of at most 256 tokens.
//     a_j = reduction · sum_{g < G} sum_{i in chunk} softmax_j(scale · q_i,g · k_j)
// Queries [N, Hq, D], keys [N, Hkv, D], scores f32 [N, Hkv], written for the scored tokens.
//
// Cost: 2·N·Hq·C·D flops, N·Hq·C exponentials, N·(Hq + Hkv)·D elements read. L8 at N = 131,072, C = 256: 275 GFLOP, 1.07 G exp, 1.34 GB, floor 348 us.
//
// Shape. An item is one chunk of one KV head; blocks walk over items. Tiles of 64 queries, G·ceil(count / 64) of them, alternate between two groups of four warps.
// * A group multiplies its tile with all COLUMNS = 64·ceil(C / 64) keys by wgmma, 64 x 256 x 16 at a time: a warp has whole rows, a row's maximum and sum need its
//   four lanes alone, and shared memory is read once for 64 rows: 8 KB of keys and 2 KB of queries in the 128 cycles of an instruction, which would give 16.
// * Queries and keys are rotated (128-byte swizzle) by cp.async, 16 bytes at a time, four lanes a row, so that a thread works out two addresses for 8 copies. Two tiles
//   of queries a group: the next travels from the products' start until the exponentials' end. Operands in shared memory leave 60 registers beside 128 logits and 64
//   column sums: nothing spills, and all products of a tile are issued at once.
// * Keys are double-buffered, a part a step, so that memory sees no burst, and neither loading nor launching a block is ever waited for.
// * Turns. The tensor cores belong to one group at a time (an mbarrier each way): without that, both would multiply at half the rate and then both take exponentials.
//   A turn is handed over with 1/8 of the products left. Copies and addresses are worked out while the own products run. A producer warp would cost what it saves:
//   nine warps of an SM leave 168 registers each.
// * Two warps a scheduler hide little of each other, so instructions count: 930 a tile and 90 more for its share of an item; 640 are maximum, exponent, exponential, sum
//   and column of 128 logits. What is rare (columns beyond the chunk, rows that are not finite) is behind branches, and no step divides.
//   Exponentials, 16 a cycle and SM, are 1024 of a tile's cycles; the maximum of the first of a thread's two rows comes before, 190, and the columns of the second after,
//   with sums, reciprocal and the turn 230. Products 1024: a group's tile takes 2470 cycles, two tiles 2470 instead of 2048, and the most an SM has of L8 is 512 tiles,
//   632,000 cycles. Prediction: 365 us at 1.75 GHz, 440 us at the clock that the floor was measured at (target 525).
// Measured on an H200 (driver 580, NVRTC 13.0): 618 us; bench/notes.md says what it does not wait for. A first version (queries by bulk copies and ldmatrix, 1617 instructions a tile): 1072 us.
//
// Launch: grid min(items, multiprocessors), block 256, where (all integer division)
//     COLUMNS = 64·ceil(C / 64);  shared = 2·COLUMNS·2·D + 4·64·2·D + 2·8·COLUMNS·4 + 8·6 + 8·2·32: 213,552 bytes for C 256, D 128
// Tensors: addresses and strides are multiples of 16 bytes. Registers: at most 255, 8 warps an SM.
#include "ptx_sm90a.cuh"
#include "tensor.cuh"
#include "element.cuh"
#include "chunks.cuh"
#include "status.cuh"

constexpr i32 D = COMPACTOR_HEAD_DIM, CHUNK = COMPACTOR_CHUNK;
static_assert((D == 64 || D == 128) && CHUNK <= 256 && !IS_F32);

constexpr i32 M = 64, COLUMNS = round_up(CHUNK, 64), N_TILES = COLUMNS / 8, STEPS = D / 16;
constexpr i32 GROUPS = 2, GROUP_WARPS = 4, WARPS = GROUPS * GROUP_WARPS, THREADS = 32 * WARPS;

constexpr i32 ROW_BYTES = D * 2, UNITS = ROW_BYTES / 16;
constexpr i32 SLAB_ROW = 128;                                     // rows are stored 64 elements of each, then the next 64
constexpr i32 KEYS_BYTES = COLUMNS * ROW_BYTES, QUERIES_BYTES = M * ROW_BYTES, WARP_ROWS = 16;
constexpr i32 KEY_ROWS = THREADS / UNITS, KEY_PASSES = COLUMNS / KEY_ROWS;   // a pass: 16 bytes a thread

constexpr i32 QUERIES_AT = 2 * KEYS_BYTES, SUMS_AT = QUERIES_AT + GROUPS * 2 * QUERIES_BYTES;
constexpr i32 BARRIERS_AT = SUMS_AT + 2 * WARPS * COLUMNS * 4;
constexpr i32 TURN = BARRIERS_AT;                                 // a group: its queries are there, and the other's products done
constexpr i32 KEYS_READY = TURN + GROUPS * 8;                     // a buffer
constexpr i32 SUMS_READY = KEYS_READY + 2 * 8;                    // a buffer: all threads' column sums are there
constexpr i32 ITEMS_AT = SUMS_READY + 2 * 8, ITEM_BYTES = 32;     // a warp: two items

struct AttentionScoresParams
{
    Tensor queries, keys;
    u64 cu_seqlens, chunk_starts;   // see chunks.cuh; chunks of COMPACTOR_CHUNK
    u64 scores, status;
    i32 sequences, kv_heads, group, skip_first, skip_last;
    float logit_scale;              // scale · log2(e)
    float reduction;                // 1, or 1/G for the mean of a group
    i32 items;                      // chunks · Hkv
};

// An item, as every warp keeps two of them in shared memory: addresses of the chunk's first token, of the KV head's keys and of its first query head.
struct Item
{
    u64 keys, queries;
    i32 first, count;               // the chunk's first token in the batch, and how many
};

// A tile's first row within the chunk, and its query head within the group.
struct Tile { i32 row, head; };

__device__ __forceinline__ Chunk chunk_of(const AttentionScoresParams& p, i32 index)
{
    return find_chunk(p.cu_seqlens, p.chunk_starts, p.sequences, index / p.kv_heads, CHUNK, p.skip_first, p.skip_last);
}

__device__ __forceinline__ void find_item(const AttentionScoresParams& p, i32 index, u32 to, i32 lane)
{
    Chunk chunk = chunk_of(p, index);
    i32 head = index % p.kv_heads;
    u64 keys = p.keys.address + tensor_offset(p.keys, chunk.sequence, chunk.start, chunk.token, head, 2);
    u64 queries = p.queries.address + tensor_offset(p.queries, chunk.sequence, chunk.start, chunk.token, head * p.group, 2);
    __syncwarp();
    if (lane == 0)
    {
        store_shared_x4(to, {(u32)keys, (u32)(keys >> 32), (u32)queries, (u32)(queries >> 32)});
        store_shared_x2(to + 16, {(u32)(chunk.start + chunk.token), (u32)chunk.count});
    }
    __syncwarp();
}

__device__ __forceinline__ Item load_item(u32 at)
{
    u32x4 x = load_shared_x4(at);
    u32x2 y = load_shared_x2(at + 16);
    return {(u64)x.y << 32 | x.x, (u64)x.w << 32 | x.z, (i32)y.x, (i32)y.y};
}

__device__ __forceinline__ void wait(u32 mbarrier, i32 parity)
{
    while (!mbarrier_try_wait(mbarrier, (u32)parity & 1))
        ;
}

// Where 16 bytes `unit` of a row are among `Rows`, as wgmma's 128-byte swizzle has it: from a multiple of 1024 on.
template <i32 Rows> __device__ __forceinline__ u32 unit_offset(i32 row, i32 unit) { return unit / 8 * Rows * SLAB_ROW + row * SLAB_ROW + (((unit ^ row) & 7) << 4); }

// The low half of a descriptor: the first 16 elements of all rows from `at` on, and step k's behind. The high half says that eight rows of 128 bytes are 1024 bytes,
// and rotated.
__device__ __forceinline__ u32 first_step(u32 at) { return 1 << 16 | (at & 0x3ffff) >> 4; }
template <i32 Rows> __device__ __forceinline__ constexpr u32 step_offset(i32 k) { return (u32)(k / 4 * Rows * SLAB_ROW + k % 4 * 32) / 16; }
__device__ __forceinline__ u64 descriptor(u32 low) { return (u64)(1 << 30 | 1024 >> 4) << 32 | low; }

// Passes [begin, end) of an item's keys, zeros beyond the last.
__device__ __forceinline__ void copy_keys(const AttentionScoresParams& p, const Item& item, u32 to, i32 begin, i32 end, i32 thread)
{
    i32 row = begin * KEY_ROWS + thread / UNITS;
    const u8* from = (const u8*)item.keys + row * (2 * p.keys.token_stride) + thread % UNITS * 16;
    to += unit_offset<COLUMNS>(row, thread % UNITS);
#pragma unroll 1
    for (i32 pass = begin; pass < end; pass++)
    {
        cp_async_16(to, from, row < item.count ? 16 : 0);
        row += KEY_ROWS;
        from += KEY_ROWS * 2 * p.keys.token_stride;
        to += KEY_ROWS * SLAB_ROW;
    }
}

// They have arrived: looked at by who copied them, then shown to wgmma.
__device__ __forceinline__ void land_keys(const AttentionScoresParams& p, const Item& item, i32 index, u32 at, u32 ready, i32 thread)
{
    cp_async_wait<0>();
    at += unit_offset<COLUMNS>(thread / UNITS, thread % UNITS);
    bool bad = false;
#pragma unroll 4
    for (i32 pass = 0; pass < KEY_PASSES; pass++)
    {
        u32x4 x = load_shared_x4(at + pass * (KEY_ROWS * SLAB_ROW));
        bad |= has_non_finite(x.x) | has_non_finite(x.y) | has_non_finite(x.z) | has_non_finite(x.w);
    }
    if (bad)
#pragma unroll 1
        for (i32 pass = 0; pass < KEY_PASSES; pass++)
            if (has_non_finite(load_shared_x4(at + pass * (KEY_ROWS * SLAB_ROW))))
                report(p.status, STATUS_NON_FINITE_KEY, item.first + pass * KEY_ROWS + thread / UNITS, index % p.kv_heads);
    fence_async_proxy();
    mbarrier_arrive(ready);
}

// Two rows of a tile, 8 apart, 64 bytes of each at a time by four lanes; zeros beyond the chunk's or the group's end.
__device__ __forceinline__ void copy_queries(const AttentionScoresParams& p, const Item& item, Tile tile, i32 tile_row, i32 quad, u32 to)
{
    i32 row = tile.row + tile_row, left = tile.head < p.group ? item.count - row : 0;
    const u8* top = (const u8*)item.queries + 2 * (row * p.queries.token_stride + tile.head * p.queries.head_stride) + quad * 16;
    const u8* bottom = top + 8 * 2 * p.queries.token_stride;
    u32 top_bytes = left > 0 ? 16 : 0, bottom_bytes = left > 8 ? 16 : 0;
    u32 even = to + unit_offset<M>(tile_row, quad), odd = even ^ 64;
#pragma unroll
    for (i32 at = 0; at < ROW_BYTES; at += 64)
    {
        u32 place = (at / 64 % 2 == 0 ? even : odd) + at / 128 * (M * SLAB_ROW);
        cp_async_16(place, top + at, top_bytes);
        cp_async_16(place + 8 * SLAB_ROW, bottom + at, bottom_bytes);
    }
}

// A group takes every second tile of an item, G·ceil(count / 64); both take as many steps, and the last of one may be empty.
__device__ __forceinline__ Tile first_tile(i32 count, i32 group)
{
    if (group * M < count)
        return {group * M, 0};
    return {0, group};
}
__device__ __forceinline__ Tile tile_after(Tile tile, i32 count)
{
    tile.row += GROUPS * M;
#pragma unroll
    for (i32 i = 0; i < GROUPS; i++)
        if (tile.row >= count)
        {
            tile.row -= round_up(count, M);
            tile.head++;
        }
    return tile;
}

template <bool Accumulate> __device__ __forceinline__ void multiply(f32x4 (&logits)[N_TILES], u64 queries, u64 keys)
{
#if COMPACTOR_ELEMENT == COMPACTOR_F16
    wgmma_f16<Accumulate>(logits, queries, keys);
#else
    wgmma_bf16<Accumulate>(logits, queries, keys);
#endif
}

// Of a thread's logits, a row's: the upper (0) or the lower (1) of its two.
template <i32 Row> __device__ __forceinline__ float& first(f32x4& x) { return Row == 0 ? x.x : x.z; }
template <i32 Row> __device__ __forceinline__ float& second(f32x4& x) { return Row == 0 ? x.y : x.w; }

// Columns beyond the chunk's last, of which the thread's first is `count` before.
template <i32 Row> __device__ __forceinline__ void mask_columns(f32x4 (&logits)[N_TILES], i32 count)
{
    const float minus_infinity = __uint_as_float(0xff800000);
    keep_branch();
#pragma unroll
    for (i32 n = 0; n < N_TILES; n++)
    {
        if (n * 8 >= count)
            first<Row>(logits[n]) = minus_infinity;
        if (n * 8 + 1 >= count)
            second<Row>(logits[n]) = minus_infinity;
    }
}

template <i32 Row> __device__ __forceinline__ float row_maximum(f32x4 (&logits)[N_TILES])
{
    float parts[4];   // a maximum takes 4 cycles, and one starts every other
#pragma unroll
    for (i32 n = 0; n < N_TILES; n++)
    {
        float pair = fmaxf(first<Row>(logits[n]), second<Row>(logits[n]));
        parts[n % 4] = n < 4 ? pair : fmaxf(parts[n % 4], pair);
    }
    float top = fmaxf(fmaxf(parts[0], parts[1]), fmaxf(parts[2], parts[3]));
    for (i32 mask = 1; mask <= 2; mask *= 2)
        top = fmaxf(top, __shfl_xor_sync(0xffffffff, top, mask));
    return top;
}

// Logits become exponentials; their sum.
template <i32 Row> __device__ __forceinline__ float exponentials(f32x4 (&logits)[N_TILES], float scale, float offset)
{
    float sum = 0;
#pragma unroll
    for (i32 n = 0; n < N_TILES; n++)
    {
        float &x = first<Row>(logits[n]), &y = second<Row>(logits[n]);
        x = exp2_approx(fmaf(x, scale, offset));
        y = exp2_approx(fmaf(y, scale, offset));
        sum += x + y;
    }
    for (i32 mask = 1; mask <= 2; mask *= 2)
        sum += __shfl_xor_sync(0xffffffff, sum, mask);
    return sum;
}

template <i32 Row> __device__ __forceinline__ void add_columns(float (&sums)[N_TILES][2], f32x4 (&exponentials)[N_TILES], float weight)
{
#pragma unroll
    for (i32 n = 0; n < N_TILES; n++)
    {
        sums[n][0] = fmaf(first<Row>(exponentials[n]), weight, sums[n][0]);
        sums[n][1] = fmaf(second<Row>(exponentials[n]), weight, sums[n][1]);
    }
}

// Of 2·Half columns, the lanes with `mask` take the upper half and the others the lower, each the sums of both.
template <i32 Half> __device__ __forceinline__ void fold_columns(float (&sums)[N_TILES][2], i32 lane, i32 mask)
{
    bool upper = (lane & mask) != 0;
#pragma unroll
    for (i32 n = 0; n < Half; n++)
#pragma unroll
        for (i32 c = 0; c < 2; c++)
        {
            float kept = upper ? sums[n + Half][c] : sums[n][c], given = upper ? sums[n][c] : sums[n + Half][c];
            sums[n][c] = kept + __shfl_xor_sync(0xffffffff, given, mask);
        }
}

// A query that is not finite spoils its row's sum, whatever the keys: only then is it looked for. Lanes 0 and 1 of four look at their two rows.
__device__ __forceinline__ void report_queries(const AttentionScoresParams& p, i32 index, i32 row, i32 group_head, bool top, bool bottom)
{
    Chunk chunk = chunk_of(p, index);
    i32 quad = threadIdx.x % 4, head = index % p.kv_heads * p.group + group_head, token = chunk.token + row + quad * 8;
    if ((quad == 0 && top) || (quad == 1 && bottom))
        if (row_has_non_finite((const u8*)p.queries.address + tensor_offset(p.queries, chunk.sequence, chunk.start, token, head, 2)))
            report(p.status, STATUS_NON_FINITE_QUERY, chunk.start + token, head);
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) attention_scores_hopper(const __grid_constant__ AttentionScoresParams p)
{
    i32 thread = threadIdx.x, lane = thread % 32, quad = lane % 4, warp = __shfl_sync(0xffffffff, thread / 32, 0), group = warp / GROUP_WARPS;
    i32 tile_row = warp % GROUP_WARPS * WARP_ROWS + lane / 4;   // the first of the lane's two rows in a tile
    u32 base = shared_base(), queries_at = base + QUERIES_AT + group * 2 * QUERIES_BYTES;
    u32 items_at = base + ITEMS_AT + warp * 2 * ITEM_BYTES;

    if (thread == 0)
    {
        for (i32 i = 0; i < 2; i++)
        {
            mbarrier_init(base + TURN + i * 8, 2 * GROUP_WARPS);
            mbarrier_init(base + KEYS_READY + i * 8, THREADS);
            mbarrier_init(base + SUMS_READY + i * 8, THREADS);
        }
    }
    __syncthreads();

    find_item(p, blockIdx.x, items_at, lane);
    {
        Item item = load_item(items_at);
        copy_keys(p, item, base, 0, KEY_PASSES, thread);
        copy_queries(p, item, first_tile(item.count, group), tile_row, quad, queries_at);
        cp_async_commit();
        land_keys(p, item, blockIdx.x, base, base + KEYS_READY, thread);   // and these queries: who has waited for the keys of all threads may take them
        if (lane == 0)
        {
            mbarrier_arrive(base + TURN + group * 8);
            if (group == 1)
                mbarrier_arrive(base + TURN);   // the first of group 0 waits for nobody
        }
    }

    i32 step = 0;   // of this group, over all items
    for (i32 round = 0, index = blockIdx.x; index < p.items; round++, index += gridDim.x)
    {
        i32 buffer = round & 1, next = index + gridDim.x;
        u32 next_keys = base + (buffer ^ 1) * KEYS_BYTES;
        u32 keys = first_step(base + buffer * KEYS_BYTES);
        i32 count = load_item(items_at + buffer * ITEM_BYTES).count;
        i32 steps = ceil_div(p.group * ceil_div(count, M), GROUPS), passes = ceil_div(KEY_PASSES, max(steps - 1, 1));
        Tile tile = first_tile(count, group);
        wait(base + KEYS_READY + buffer * 8, round >> 1);

        float sums[N_TILES][2] = {};
        for (i32 s = 0; s < steps; s++, step++)
        {
            f32x4 logits[N_TILES];
            u32 queries = first_step(queries_at + (step & 1) * QUERIES_BYTES);
            u32 next_queries = queries_at + (~step & 1) * QUERIES_BYTES;
            wait(base + TURN + group * 8, step);
            wgmma_fence();
#pragma unroll
            for (i32 k = 0; k < STEPS; k++)
            {
                if (k == 0)
                    multiply<false>(logits, descriptor(queries), descriptor(keys));
                else
                    multiply<true>(logits, descriptor(queries + step_offset<M>(k)), descriptor(keys + step_offset<COLUMNS>(k)));
                if (k == STEPS - 2)
                    wgmma_commit();
            }
            wgmma_commit();

            // While they run: the next tile, then some more of the next item's keys.
            bool last = s == steps - 1, more = next < p.items;
            u32 next_item = items_at + (buffer ^ 1) * ITEM_BYTES;
            if (!last)
            {
                copy_queries(p, load_item(items_at + buffer * ITEM_BYTES), tile_after(tile, count), tile_row, quad, next_queries);
                cp_async_commit();
            }
            if (more)
            {
                if (s == 0)
                    find_item(p, next, next_item, lane);
                Item item = load_item(next_item);
                copy_keys(p, item, next_keys, s * passes, min(s * passes + passes, KEY_PASSES), thread);
                if (last)
                {
                    cp_async_commit();
                    land_keys(p, item, next, next_keys, base + KEYS_READY + (buffer ^ 1) * 8, thread);
                    copy_queries(p, item, first_tile(item.count, group), tile_row, quad, next_queries);
                    cp_async_commit();
                }
            }

            // The turn is handed over as the last products run; after the last step, when nobody reads these keys any more.
            wgmma_wait_but<1>();
            if (!last && lane == 0)
                mbarrier_arrive(base + TURN + (group ^ 1) * 8);
            wgmma_wait(logits);
            if (last && lane == 0)
                mbarrier_arrive(base + TURN + (group ^ 1) * 8);

            // The upper row's maximum; its exponentials beside the lower one's maximum; its columns beside the lower one's exponentials: branches keep this order.
            i32 left = tile.head < p.group ? count - tile.row - tile_row : 0;
            if (count < COLUMNS)
                mask_columns<0>(logits, count - quad * 2);
            float top = -p.logit_scale * row_maximum<0>(logits);
            if (count < COLUMNS)
                mask_columns<1>(logits, count - quad * 2);
            float bottom = -p.logit_scale * row_maximum<1>(logits);
            float top_sum = exponentials<0>(logits, p.logit_scale, top);
            if (more && !last)
                cp_async_commit();
            add_columns<0>(sums, logits, left > 0 ? reciprocal_approx(top_sum) : 0);
            float bottom_sum = exponentials<1>(logits, p.logit_scale, bottom);
            if (__any_sync(0xffffffff, !is_finite(top_sum + bottom_sum)))
                report_queries(p, index, tile.row + tile_row, tile.head, left > 0 && !is_finite(top_sum), left > 8 && !is_finite(bottom_sum));

            // The next tile's queries have had the products and the exponentials to arrive; keys may take longer.
            if (more && !last)
                cp_async_wait<1>();
            else
                cp_async_wait<0>();
            fence_async_proxy();
            __syncwarp();
            if (lane == 0)
                mbarrier_arrive(base + TURN + group * 8);
            add_columns<1>(sums, logits, left > 8 ? reciprocal_approx(bottom_sum) : 0);
            tile = tile_after(tile, count);
        }

        // Columns: over a warp's rows, then over the warps, by the group that came last.
        u32 sums_at = base + SUMS_AT + buffer * WARPS * COLUMNS * 4, sums_ready = base + SUMS_READY + buffer * 8;
        fold_columns<N_TILES / 2>(sums, lane, 16);
        fold_columns<N_TILES / 4>(sums, lane, 8);
        fold_columns<N_TILES / 8>(sums, lane, 4);
#pragma unroll
        for (i32 n = 0; n < N_TILES / 8; n++)
            store_shared_x2(sums_at + (warp * COLUMNS + (lane / 4 * (N_TILES / 8) + n) * 8 + quad * 2) * 4, {__float_as_uint(sums[n][0]), __float_as_uint(sums[n][1])});
        mbarrier_arrive(sums_ready);   // every thread by itself: a lane for its warp, after __syncwarp, is ordered as well, but racecheck does not see it
        if (group == 1)
        {
            wait(sums_ready, round >> 1);
            float* scores = (float*)p.scores + (i64)load_item(items_at + buffer * ITEM_BYTES).first * p.kv_heads + index % p.kv_heads;
            for (i32 j = thread - GROUP_WARPS * 32; j < count; j += GROUP_WARPS * 32)
            {
                float sum = 0;
                for (i32 w = 0; w < WARPS; w++)
                    sum += load_shared_f32(sums_at + (w * COLUMNS + j) * 4);
                scores[(i64)j * p.kv_heads] = sum * p.reduction;
            }
        }
    }
}
