// Non-causal attention scores on sm_90a: the same as attention_scores.cu, for 16-bit elements, D 64 or 128 and chunks of at most 256 tokens. Not yet run on a GPU.
//     a_j = reduction · sum_{g < G} sum_{i in chunk} softmax_j(scale · q_i,g · k_j)
// Queries [N, Hq, D], keys [N, Hkv, D], scores f32 [N, Hkv], written for the scored tokens.
//
// Cost: 2·N·Hq·C·D flops, N·Hq·C exponentials, N·(Hq + Hkv)·D elements read. L8 at N = 131,072, C = 256: 275 GFLOP, 1.07 G exp, 1.34 GB, floor 348 us.
//
// Shape. An item is one chunk of one KV head; blocks walk over items. Tiles of 64 queries, G·ceil(count / 64) of them, alternate between two groups of four warps.
// * A group multiplies its tile with all COLUMNS = 64·ceil(C / 64) keys by wgmma, 64 x 256 x 16 at a time: a warp has whole rows, a row's maximum and sum need its
//   four lanes alone, and keys are read from shared memory once for 64 rows: 8 KB in the 128 cycles of an instruction, half of what shared memory gives.
// * Queries are the operand in registers. Each warp brings its own 16 rows by bulk copies, a row each, onto its own mbarrier; once they are in registers the next tile
//   follows into the same place, and has the products and the exponentials to arrive. Nobody else is asked. Bulk copies keep memory order within a row, which
//   ldmatrix reads and wgmma's shared memory layouts (rows rotated, or cores of 8 rows x 16 bytes) do not; so no tensor map is needed, and any stride is taken.
// * Keys must be rotated (128-byte swizzle), 16 bytes at a time: cp.async, one fifth of the bytes at G = 4. They are double-buffered: the next item's travel while
//   the present one is computed, so that neither loading nor launching a block is ever waited for.
// * Turns. The tensor cores belong to one group at a time (an mbarrier each way): without that, both would multiply at half the rate and then both take exponentials.
//   Copies and addresses are worked out while the own products run. A producer warp would cost what it saves: nine warps of an SM leave 168 registers each.
//   Per tile: products 1024 cycles; maxima 250, exponentials 1024 (16 a cycle), column sums 180. One group's 2480 cycles for a tile hold the other's products:
//   two tiles in 2480 instead of 2048 cycles, and 700 cycles an item for column sums to meet, 3 %. Prediction: 348 us · 2480 / 2048 · 1.03 = 435 us (target 525).
//
// Launch: grid min(items, multiprocessors), block 256, where (all integer division)
//     COLUMNS = 64·ceil(C / 64);  shared = 2·COLUMNS·2·D + 128·(2·D + 16) + 2·8·COLUMNS·4 + 8·14: 182,384 bytes for C 256, D 128
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
constexpr i32 SLAB_ROW = 128, SLAB_BYTES = COLUMNS * SLAB_ROW;   // keys are stored 64 elements of each, then the next 64
constexpr i32 KEYS_BYTES = COLUMNS * ROW_BYTES;
constexpr i32 QUERY_ROW = ROW_BYTES + 16;                         // eight rows of 16 bytes fill all banks
constexpr i32 WARP_ROWS = 16, WARP_QUERIES = WARP_ROWS * QUERY_ROW;

constexpr i32 QUERIES_AT = 2 * KEYS_BYTES, SUMS_AT = QUERIES_AT + WARPS * WARP_QUERIES;
constexpr i32 BARRIERS_AT = SUMS_AT + 2 * WARPS * COLUMNS * 4;
constexpr i32 QUERIES_READY = BARRIERS_AT;                        // a warp: its rows are there
constexpr i32 TURN = QUERIES_READY + WARPS * 8;                   // a group: the other's products are done
constexpr i32 KEYS_READY = TURN + GROUPS * 8;                     // a buffer
constexpr i32 SUMS_READY = KEYS_READY + 2 * 8;                    // a buffer: all warps' column sums are there

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

struct Item
{
    Chunk chunk;
    i32 head, query_tiles;          // tiles of 64 queries of one query head
    __device__ __forceinline__ i32 tiles(i32 group) const { return group * query_tiles; }
    __device__ __forceinline__ i32 steps(i32 group) const { return ceil_div(tiles(group), GROUPS); }
};

__device__ __forceinline__ Item find_item(const AttentionScoresParams& p, i32 index)
{
    Chunk chunk = find_chunk(p.cu_seqlens, p.chunk_starts, p.sequences, index / p.kv_heads, CHUNK, p.skip_first, p.skip_last);
    return {chunk, index % p.kv_heads, ceil_div(chunk.count, M)};
}

__device__ __forceinline__ void wait(u32 mbarrier, i32 parity)
{
    while (!mbarrier_try_wait(mbarrier, (u32)parity & 1))
        ;
}

// Where 16 bytes `unit` of a key are, as wgmma's 128-byte swizzle has it: keys_at is a multiple of 1024.
__device__ __forceinline__ u32 unit_offset(i32 row, i32 unit) { return unit / 8 * SLAB_BYTES + row * SLAB_ROW + (((unit ^ row) & 7) << 4); }

// The first 16 elements of all keys of a slab: rows of 128 bytes rotated, eight of them 1024 bytes, the next eight behind. Further elements are 32 bytes on.
__device__ __forceinline__ u64 keys_descriptor(u32 at) { return (u64)1 << 62 | (u64)(1024 >> 4) << 32 | (u64)1 << 16 | (at & 0x3ffff) >> 4; }

// A thread's share of an item's keys, zeros beyond the last.
__device__ __forceinline__ void copy_keys(const AttentionScoresParams& p, const Item& item, u32 to, i32 thread)
{
    const u8* keys = (const u8*)p.keys.address + tensor_offset(p.keys, item.chunk.sequence, item.chunk.start, item.chunk.token, item.head, 2);
    i64 stride = p.keys.token_stride * 2;
#pragma unroll 1
    for (i32 i = thread; i < COLUMNS * UNITS; i += THREADS)
    {
        i32 row = i / UNITS, unit = i % UNITS;
        bool real = row < item.chunk.count;
        cp_async_16(to + unit_offset(row, unit), keys + (real ? row * stride + unit * 16 : 0), real ? 16 : 0);
    }
    cp_async_commit();
}

// They have arrived: looked at by who copied them, then shown to wgmma.
__device__ __forceinline__ void land_keys(const AttentionScoresParams& p, const Item& item, u32 at, u32 ready, i32 thread)
{
    cp_async_wait<0>();
#pragma unroll 1
    for (i32 i = thread; i < item.chunk.count * UNITS; i += THREADS)
        if (has_non_finite(load_shared_x4(at + unit_offset(i / UNITS, i % UNITS))))
            report(p.status, STATUS_NON_FINITE_KEY, item.chunk.start + item.chunk.token + i / UNITS, item.head);
    fence_async_proxy();
    mbarrier_arrive(ready);
}

// A warp's rows of a tile, the last real one in place of those beyond it. Its lanes have read what was there.
__device__ __forceinline__ void copy_queries(const AttentionScoresParams& p, const Item& item, i32 tile, u32 to, u32 ready, i32 first_row, i32 lane)
{
    tile = min(tile, item.tiles(p.group) - 1);
    i32 row = min(tile % item.query_tiles * M + first_row + lane, item.chunk.count - 1);
    const u8* from = (const u8*)p.queries.address
        + tensor_offset(p.queries, item.chunk.sequence, item.chunk.start, item.chunk.token + row, item.head * p.group + tile / item.query_tiles, 2);
    if (lane == 0)
        mbarrier_arrive_expect(ready, WARP_ROWS * ROW_BYTES);
    __syncwarp();
    if (lane < WARP_ROWS)
        bulk_copy(to + lane * QUERY_ROW, from, ROW_BYTES, ready);
}

template <bool Accumulate> __device__ __forceinline__ void multiply(f32x4 (&logits)[N_TILES], u32x4 a, u64 keys)
{
#if COMPACTOR_ELEMENT == COMPACTOR_F16
    wgmma_f16<Accumulate>(logits, a, keys);
#else
    wgmma_bf16<Accumulate>(logits, a, keys);
#endif
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) attention_scores_hopper(const __grid_constant__ AttentionScoresParams p)
{
    const float minus_infinity = __uint_as_float(0xff800000);
    i32 thread = threadIdx.x, lane = thread % 32, quad = lane % 4, warp = thread / 32, group = warp / GROUP_WARPS, first_row = warp % GROUP_WARPS * WARP_ROWS;
    u32 base = shared_base(), queries_at = base + QUERIES_AT + warp * WARP_QUERIES, queries_ready = base + QUERIES_READY + warp * 8;
    u32 query = queries_at + lane % 16 * QUERY_ROW + lane / 16 * 16;

    if (thread == 0)
    {
        for (i32 i = 0; i < WARPS; i++)
            mbarrier_init(base + QUERIES_READY + i * 8, 1);
        for (i32 i = 0; i < 2; i++)
        {
            mbarrier_init(base + TURN + i * 8, GROUP_WARPS);
            mbarrier_init(base + KEYS_READY + i * 8, THREADS);
            mbarrier_init(base + SUMS_READY + i * 8, WARPS);
        }
        fence_async_proxy();
    }
    __syncthreads();
    Item first = find_item(p, blockIdx.x);
    copy_queries(p, first, group, queries_at, queries_ready, first_row, lane);
    copy_keys(p, first, base, thread);
    land_keys(p, first, base, base + KEYS_READY, thread);

    i32 step = 0;   // of this group, over all items
    for (i32 round = 0, index = blockIdx.x; index < p.items; round++, index += gridDim.x)
    {
        i32 buffer = round & 1, next = index + gridDim.x;
        u32 next_keys = base + (buffer ^ 1) * KEYS_BYTES;
        u64 keys = keys_descriptor(base + buffer * KEYS_BYTES);
        Item item = find_item(p, index);
        i32 count = item.chunk.count, steps = item.steps(p.group);
        wait(base + KEYS_READY + buffer * 8, round >> 1);

        float sums[N_TILES][2] = {};
        for (i32 s = 0; s < steps; s++, step++)
        {
            f32x4 logits[N_TILES];
            wait(queries_ready, step);
            wait(base + TURN + group * 8, group == 0 ? step + 1 : step);   // the first of group 0 waits for nobody
            // Two steps at a time, so that four fragments are enough: their registers are free when the products after them have begun.
#pragma unroll
            for (i32 k = 0; k < STEPS; k += 2)
            {
                u32x4 a = ldmatrix_x4(query + k * 32), b = ldmatrix_x4(query + k * 32 + 32);
                wgmma_fence();
                if (k == 0)
                    multiply<false>(logits, a, keys);
                else
                    multiply<true>(logits, a, keys + (k / 4 * SLAB_BYTES + k % 4 * 32) / 16);
                multiply<true>(logits, b, keys + (k / 4 * SLAB_BYTES + k % 4 * 32 + 32) / 16);
                wgmma_commit();
                if (k + 2 < STEPS && k > 0)
                    wgmma_wait_but<1>();
            }

            bool last = s == steps - 1;
            if (!last)
                copy_queries(p, item, (s + 1) * GROUPS + group, queries_at, queries_ready, first_row, lane);
            if (next < p.items && (s == 0 || last))
            {
                Item following = find_item(p, next);
                if (last)
                    copy_queries(p, following, group, queries_at, queries_ready, first_row, lane);
                if (s == 0)
                    copy_keys(p, following, next_keys, thread);
                if (last)
                    land_keys(p, following, next_keys, base + KEYS_READY + (buffer ^ 1) * 8, thread);
            }
            wgmma_wait(logits);
            if (lane == 0)
                mbarrier_arrive(base + TURN + (group ^ 1) * 8);

            if (count < COLUMNS)
#pragma unroll
                for (i32 n = 0; n < N_TILES; n++)
                {
                    if (n * 8 + quad * 2 >= count)
                        logits[n].x = logits[n].z = minus_infinity;
                    if (n * 8 + quad * 2 + 1 >= count)
                        logits[n].y = logits[n].w = minus_infinity;
                }
            float top = minus_infinity, bottom = minus_infinity;
#pragma unroll
            for (i32 n = 0; n < N_TILES; n++)
            {
                top = fmaxf(top, fmaxf(logits[n].x, logits[n].y));
                bottom = fmaxf(bottom, fmaxf(logits[n].z, logits[n].w));
            }
            for (i32 mask = 1; mask <= 2; mask *= 2)
            {
                top = fmaxf(top, __shfl_xor_sync(0xffffffff, top, mask));
                bottom = fmaxf(bottom, __shfl_xor_sync(0xffffffff, bottom, mask));
            }
            top *= -p.logit_scale;
            bottom *= -p.logit_scale;
            float top_sum = 0, bottom_sum = 0;
#pragma unroll
            for (i32 n = 0; n < N_TILES; n++)
            {
                f32x4& x = logits[n];
                x.x = exp2_approx(fmaf(x.x, p.logit_scale, top));
                x.y = exp2_approx(fmaf(x.y, p.logit_scale, top));
                x.z = exp2_approx(fmaf(x.z, p.logit_scale, bottom));
                x.w = exp2_approx(fmaf(x.w, p.logit_scale, bottom));
                if (count < COLUMNS)
                {
                    if (n * 8 + quad * 2 >= count)
                        x.x = x.z = 0;
                    if (n * 8 + quad * 2 + 1 >= count)
                        x.y = x.w = 0;
                }
                top_sum += x.x + x.y;
                bottom_sum += x.z + x.w;
            }
            for (i32 mask = 1; mask <= 2; mask *= 2)
            {
                top_sum += __shfl_xor_sync(0xffffffff, top_sum, mask);
                bottom_sum += __shfl_xor_sync(0xffffffff, bottom_sum, mask);
            }

            i32 tile = s * GROUPS + group, row = tile % item.query_tiles * M + first_row + lane / 4;
            bool real = tile < item.tiles(p.group), top_real = real && row < count, bottom_real = real && row + 8 < count;
            // A query that is not finite spoils its row's sum, whatever the keys: only then is it looked for.
            for (i32 half = 0; half < 2; half++)
                if (quad == half && (half == 0 ? top_real && !is_finite(top_sum) : bottom_real && !is_finite(bottom_sum)))
                {
                    i32 head = item.head * p.group + tile / item.query_tiles, token = item.chunk.token + row + half * 8;
                    if (row_has_non_finite((const u8*)p.queries.address + tensor_offset(p.queries, item.chunk.sequence, item.chunk.start, token, head, 2)))
                        report(p.status, STATUS_NON_FINITE_QUERY, item.chunk.start + token, head);
                }
            top = top_real ? 1 / top_sum : 0;
            bottom = bottom_real ? 1 / bottom_sum : 0;
#pragma unroll
            for (i32 n = 0; n < N_TILES; n++)
            {
                sums[n][0] = fmaf(logits[n].x, top, fmaf(logits[n].z, bottom, sums[n][0]));
                sums[n][1] = fmaf(logits[n].y, top, fmaf(logits[n].w, bottom, sums[n][1]));
            }
        }

        // Columns: over a warp's rows, then over the warps, by the group that came last.
        u32 sums_at = base + SUMS_AT + buffer * WARPS * COLUMNS * 4, sums_ready = base + SUMS_READY + buffer * 8;
#pragma unroll
        for (i32 n = 0; n < N_TILES; n++)
#pragma unroll
            for (i32 c = 0; c < 2; c++)
            {
                for (i32 mask = 4; mask <= 16; mask *= 2)
                    sums[n][c] += __shfl_xor_sync(0xffffffff, sums[n][c], mask);
                if (lane / 4 == 0)
                    store_shared_f32(sums_at + (warp * COLUMNS + n * 8 + quad * 2 + c) * 4, sums[n][c]);
            }
        __syncwarp();
        if (lane == 0)
            mbarrier_arrive(sums_ready);
        if (group == 1)
        {
            wait(sums_ready, round >> 1);
            float* scores = (float*)p.scores + (i64)(item.chunk.start + item.chunk.token) * p.kv_heads + item.head;
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
