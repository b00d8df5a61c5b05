// Non-causal attention scores: for KV head h and a chunk of C tokens of one sequence,
//     a_j = reduction · sum_{g < G} sum_{i in chunk} softmax_j(scale · q_i,g · k_j),
// over the real tokens of the chunk alone. Queries [N, Hq, D], keys [N, Hkv, D], scores f32 [N, Hkv], written for the scored tokens:
// the host clears the scores first where protected tokens are not scored.
//
// Cost: 2·N·Hq·C·D flops, N·Hq·C exponentials, N·(Hq + Hkv)·D elements read. L8 at N = 131,072, C = 256: 275 GFLOP, 1.07 G exp, 1.34 GB, floor 348 us.
//
// Shape. A block is one chunk of one KV head. The chunk's keys stay in shared memory; tiles of M queries stream past, G·ceil(count / M) of them.
// A group of W = ceil(C / 64) warps owns a tile: each warp computes M x 64 logits, 2·M accumulators a thread, so that a query tile is read once by each warp
// and a key by one. A row's maximum and sum meet in shared memory. Logits never leave registers: one matrix pass, one exponential each. Column sums stay in registers
// to the end, then meet in a fixed order. The load of a group's next tile hides in its exponentials, so one buffer a group is enough.
// M = 32, two groups a block, two blocks an SM: 16 warps of up to 128 registers, four a scheduler. A warp alone issues an mma every 9 cycles (the tensor cores take one
// in 6) and an exponential every 15 (8), and waits at barriers, so that per 64 queries the tensor cores' 1640 cycles, the exponentials' 1024, 1370 issue slots and
// 1536 cycles of shared memory (4·(16 + 8) KB for each 32 queries at C 256) only meet with four. Two such blocks take 2·(64 + 2·8.5 + 1) KB for C 256, D 128.
// M = 64, eight warps of up to 255 registers an SM, where that does not fit: one group and two blocks (sm_80), or two groups that share one block's keys (99 KB on sm_86
// and sm_89). On an H200 L8 took 915 us with M = 64 and 877 us with M = 32 (bench/notes.md).
// float32 is split in three bf16 parts (8 + 8 + 8 bits, exact), six products of parts, tiles of 32 queries.
// Where a chunk's keys do not fit (COMPACTOR_KEYS_RESIDENT 0), keys stream with the queries in slabs of the head dimension, from the L2 cache for every
// tile: rows of logits are whole all the same, so there is still one matrix pass and one exponential.
//
// Launch: grid (chunks·Hkv), block 32·W·GROUPS, where (all integer division)
//     M = COMPACTOR_QUERY_ROWS, 32 or 64, 32 for f32;  W = ceil(C / 64);  GROUPS = COMPACTOR_QUERY_GROUPS, 1 unless keys are resident and W <= 4
//     SLAB = RESIDENT ? D : the largest of 64 (not f32), 32, 16 that divides D;  ROW = SLAB·bytes, plus (f32 ? 32 : 16) unless 128 divides it
//     shared(GROUPS, M) = 64·W·ROW + GROUPS·(M·ROW + M·W·4)
//     RESIDENT is 1 where shared(1, f32 ? 32 : 64) is within the device's limit for a block. GROUPS is 2 and M 32 where W <= 4, D <= 128, not f32, from sm_90 on, and an SM
//     holds 2·(shared(2, 32) + 1024); else GROUPS is 2 where W <= 4, shared(2, M) is within the limit, and an SM does not hold 2·(shared(1, M) + 1024).
// Tensors: addresses and strides are multiples of 16 bytes. Registers: at most 255 with 8 warps an SM, 128 with 16.
#include "tensor.cuh"
#include "element.cuh"
#include "split.cuh"
#include "chunks.cuh"
#include "status.cuh"

constexpr i32 D = COMPACTOR_HEAD_DIM, CHUNK = COMPACTOR_CHUNK;
constexpr bool RESIDENT = COMPACTOR_KEYS_RESIDENT;
static_assert(COMPACTOR_QUERY_GROUPS == 1 || (COMPACTOR_QUERY_GROUPS == 2 && COMPACTOR_KEYS_RESIDENT && COMPACTOR_CHUNK <= 256));

constexpr i32 M = COMPACTOR_QUERY_ROWS, M_TILES = M / 16, N_TILES = 8;
static_assert(M == 32 || (M == 64 && !IS_F32));
constexpr i32 COLUMN_WARPS = ceil_div(CHUNK, 64), GROUPS = COMPACTOR_QUERY_GROUPS;
constexpr i32 GROUP_THREADS = 32 * COLUMN_WARPS, THREADS = GROUP_THREADS * GROUPS, SM_THREADS = IS_F32 || M == 64 ? 256 : 512;
constexpr i32 MIN_BLOCKS = THREADS > SM_THREADS / 2 ? 1 : SM_THREADS / THREADS;

constexpr i32 SLAB = RESIDENT ? D : !IS_F32 && D % 64 == 0 ? 64 : D % 32 == 0 ? 32 : 16, SLABS = D / SLAB;
constexpr i32 SLAB_BYTES = SLAB * ELEMENT_BYTES, UNITS = SLAB_BYTES / 16;
constexpr bool SWIZZLED = SLAB_BYTES % 128 == 0;
constexpr i32 ROW = SLAB_BYTES + (SWIZZLED ? 0 : IS_F32 ? 32 : 16);
constexpr i32 STEP_BYTES = 16 * ELEMENT_BYTES;   // of a row, in one mma
constexpr i32 ROW_LANES = UNITS % 4 == 0 ? 4 : 2;   // threads that copy a row, 16 bytes each at a time: whole sectors

constexpr i32 QUERIES_AT = COLUMN_WARPS * 64 * ROW, ROWS_AT = QUERIES_AT + GROUPS * M * ROW;

struct AttentionScoresParams
{
    Tensor queries, keys;
    u64 cu_seqlens, chunk_starts;   // see chunks.cuh; chunks of COMPACTOR_CHUNK
    u64 scores, status;
    i32 sequences, kv_heads, group, skip_first, skip_last;
    float logit_scale;              // scale · log2(e)
    float reduction;                // 1, or 1/G for the mean of a group
    i32 items;                      // chunks · Hkv: the grid
};

// Where 16 bytes `unit` of a row are: rows that fill all banks are rotated so that eight (or four, read as float32 pairs) of them never meet in one.
__device__ __forceinline__ u32 unit_offset(i32 row, i32 unit)
{
    return row * ROW + ((SWIZZLED ? unit ^ (IS_F32 ? (row & 3) << 1 : row & 7) : unit) << 4);
}

// A lane's address advanced by bytes along its row, across the rotation.
__device__ __forceinline__ u32 along_row(u32 at, i32 bytes)
{
    return SWIZZLED ? (at ^ (bytes & 127)) + (bytes & ~127) : at + bytes;
}

// Rows of `SLAB` elements from `from` on, zeros beyond `valid`. A thread keeps its place in a row, and its rows are a multiple of 8 apart: few addresses are computed.
template <i32 Rows, i32 Threads> __device__ __forceinline__ void copy_rows(u32 to, const u8* from, i64 row_bytes, i32 valid, i32 thread)
{
    constexpr i32 pass = Threads / ROW_LANES;
    i32 row = thread / ROW_LANES;
    from += row * row_bytes + thread % ROW_LANES * 16;
    to += unit_offset(row, thread % ROW_LANES);
#pragma unroll
    for (i32 r = 0; r < Rows; r += pass)
    {
        if (Rows % pass == 0 || row + r < Rows)
#pragma unroll
            for (i32 unit = 0; unit < UNITS; unit += ROW_LANES)
                cp_async_16(along_row(to, unit * 16) + r * ROW, from + unit * 16, row + r < valid ? 16 : 0);
        from += pass * row_bytes;
    }
}

// Tells of the rows that hold something not finite, among the bytes that copy_rows made this thread copy.
template <i32 Rows, i32 Threads, class Tell> __device__ __forceinline__ void look_at_rows(u32 at, i32 thread, Tell tell)
{
    constexpr i32 pass = Threads / ROW_LANES;
    i32 row = thread / ROW_LANES;
    at += unit_offset(row, thread % ROW_LANES);
#pragma unroll 1
    for (i32 r = row; r < Rows; r += pass, at += pass * ROW)
    {
        bool found = false;
#pragma unroll
        for (i32 unit = 0; unit < UNITS; unit += ROW_LANES)
        {
            u32x4 x = load_shared_x4(along_row(at, unit * 16));
            found |= has_non_finite(x.x) | has_non_finite(x.y) | has_non_finite(x.z) | has_non_finite(x.w);
        }
        if (found)
            tell(r);
    }
}

#if COMPACTOR_ELEMENT == COMPACTOR_F32

__device__ __forceinline__ u32 lane_offset(i32 lane)
{
    i32 row = lane / 4, quad = lane % 4;
    return unit_offset(row, quad >> 1) + (quad & 1) * 8;
}

__device__ __forceinline__ void multiply(f32x4 (&logits)[M_TILES][N_TILES], u32 queries, u32 keys, i32 lane)
{
    u32 query = queries + lane_offset(lane), key = keys + lane_offset(lane);
    for (i32 step = 0; step < SLAB / 16; step++)
    {
        u32 q0 = along_row(query, step * STEP_BYTES), q1 = along_row(query, step * STEP_BYTES + 32);
        u32 k0 = along_row(key, step * STEP_BYTES), k1 = along_row(key, step * STEP_BYTES + 32);
        u32x4 a[M_TILES][3];
#pragma unroll
        for (i32 i = 0; i < M_TILES; i++)
        {
            SplitTriple x = load_split(q0 + i * 16 * ROW), y = load_split(q0 + i * 16 * ROW + 8 * ROW);
            SplitTriple z = load_split(q1 + i * 16 * ROW), w = load_split(q1 + i * 16 * ROW + 8 * ROW);
#pragma unroll
            for (i32 part = 0; part < 3; part++)
                a[i][part] = {x.parts[part], y.parts[part], z.parts[part], w.parts[part]};
        }
#pragma unroll
        for (i32 n = 0; n < N_TILES; n++)
        {
            SplitTriple x = load_split(k0 + n * 8 * ROW), y = load_split(k1 + n * 8 * ROW);
#pragma unroll
            for (i32 sum = 2; sum >= 0; sum--)
#pragma unroll
                for (i32 part = 0; part <= sum; part++)
#pragma unroll
                    for (i32 i = 0; i < M_TILES; i++)
                        mma_bf16(logits[i][n], a[i][part], {x.parts[sum - part], y.parts[sum - part]});
        }
    }
}

#else

__device__ __forceinline__ void multiply(f32x4 (&logits)[M_TILES][N_TILES], u32 queries, u32 keys, i32 lane)
{
    u32 query = queries + unit_offset(lane % 16, lane / 16), key = keys + unit_offset(lane / 16 * 8 + lane % 8, lane / 8 % 2);
#pragma unroll
    for (i32 step = 0; step < SLAB / 16; step++)
    {
        u32 q = along_row(query, step * STEP_BYTES), k = along_row(key, step * STEP_BYTES);
        u32x4 a[M_TILES];
#pragma unroll
        for (i32 i = 0; i < M_TILES; i++)
            a[i] = ldmatrix_x4(q + i * 16 * ROW);
#pragma unroll
        for (i32 n = 0; n < N_TILES; n += 2)
        {
            u32x4 b = ldmatrix_x4(k + n * 8 * ROW);
#pragma unroll
            for (i32 i = 0; i < M_TILES; i++)
            {
#if COMPACTOR_ELEMENT == COMPACTOR_F16
                mma_f16(logits[i][n], a[i], {b.x, b.y});
                mma_f16(logits[i][n + 1], a[i], {b.z, b.w});
#else
                mma_bf16(logits[i][n], a[i], {b.x, b.y});
                mma_bf16(logits[i][n + 1], a[i], {b.z, b.w});
#endif
            }
        }
    }
}

#endif

// The maximum, or sum, of what the group's warps left for a row.
template <bool Maximum> __device__ __forceinline__ float meet(u32 at)
{
    float x[COLUMN_WARPS];
    if constexpr (COLUMN_WARPS % 4 == 0)
        for (i32 w = 0; w < COLUMN_WARPS; w += 4)
        {
            f32x4 four = load_shared_f32x4(at + w * 4);
            x[w] = four.x, x[w + 1] = four.y, x[w + 2] = four.z, x[w + 3] = four.w;
        }
    else
        for (i32 w = 0; w < COLUMN_WARPS; w++)
            x[w] = load_shared_f32(at + w * 4);
    for (i32 w = 1; w < COLUMN_WARPS; w++)
        x[0] = Maximum ? fmaxf(x[0], x[w]) : x[0] + x[w];
    return x[0];
}

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS) attention_scores(const __grid_constant__ AttentionScoresParams p)
{
    const float minus_infinity = __uint_as_float(0xff800000);
    i32 thread = threadIdx.x, lane = thread % 32, quad = lane % 4;
    i32 group = thread / GROUP_THREADS, group_thread = thread % GROUP_THREADS, column_warp = group_thread / 32;
    i32 head = blockIdx.x % p.kv_heads;
    Chunk chunk = find_chunk(p.cu_seqlens, p.chunk_starts, p.sequences, blockIdx.x / p.kv_heads, CHUNK, p.skip_first, p.skip_last);
    i32 count = chunk.count, columns = count - column_warp * 64;   // real columns from the warp's first on

    const u8* keys = (const u8*)p.keys.address + tensor_offset(p.keys, chunk.sequence, chunk.start, chunk.token, head, ELEMENT_BYTES);
    i64 key_bytes = p.keys.token_stride * ELEMENT_BYTES;
    u32 keys_at = shared_base(), queries_at = keys_at + QUERIES_AT + group * M * ROW, rows_at = keys_at + ROWS_AT + group * M * COLUMN_WARPS * 4;

    // Steps of this group: all slabs of its tiles, which are every GROUPS-th of G·ceil(count / M).
    i32 height = round_up(count, M), steps = (p.group * (height / M) - group + GROUPS - 1) / GROUPS * SLABS;
    struct Place { i32 row, head, slab; };   // a tile's first row within the chunk, its query head within the group, and bytes along its rows
    Place place = group * M < count ? Place{group * M, 0, 0} : Place{0, group, 0};
    auto after = [&](Place at) -> Place {
        if (SLABS > 1 && at.slab + SLAB_BYTES < D * ELEMENT_BYTES)
            return {at.row, at.head, at.slab + SLAB_BYTES};
        at.row += GROUPS * M;
#pragma unroll
        for (i32 i = 0; i < GROUPS; i++)
            if (at.row >= height)
            {
                at.row -= height;
                at.head++;
            }
        return {at.row, at.head, 0};
    };
    const u8* queries = (const u8*)p.queries.address + tensor_offset(p.queries, chunk.sequence, chunk.start, chunk.token, head * p.group, ELEMENT_BYTES);
    auto load_step = [&](Place at) {
        i64 query_bytes = p.queries.token_stride * ELEMENT_BYTES, head_bytes = p.queries.head_stride * ELEMENT_BYTES;
        copy_rows<M, GROUP_THREADS>(queries_at, queries + at.row * query_bytes + at.head * head_bytes + at.slab, query_bytes, count - at.row, group_thread);
        if constexpr (!RESIDENT)
            copy_rows<COLUMN_WARPS * 64, GROUP_THREADS>(keys_at, keys + at.slab, key_bytes, count, group_thread);
    };

    if constexpr (RESIDENT)
        copy_rows<COLUMN_WARPS * 64, THREADS>(keys_at, keys, key_bytes, count, thread);
    if (steps > 0)
        load_step(place);
    cp_async_commit();
    cp_async_wait<0>();
    auto tell = [&](i32 row) { report(p.status, STATUS_NON_FINITE_KEY, chunk.start + chunk.token + row, head); };
    if constexpr (RESIDENT)
        look_at_rows<COLUMN_WARPS * 64, THREADS>(keys_at, thread, tell);
    else
        for (i32 i = thread; i < count * (D * ELEMENT_BYTES / 16); i += THREADS)
        {
            i32 row = i / (D * ELEMENT_BYTES / 16), unit = i % (D * ELEMENT_BYTES / 16);
            if (has_non_finite(*(const u32x4*)(keys + row * key_bytes + unit * 16)))
                tell(row);
        }
    __syncthreads();

    float sums[N_TILES][2] = {};
    f32x4 logits[M_TILES][N_TILES];
    for (i32 step = 0; step < steps; step++)
    {
        Place next = after(place);
        bool row_is_whole = SLABS == 1 || next.slab == 0;
        if (SLABS == 1 || place.slab == 0)
#pragma unroll
            for (i32 i = 0; i < M_TILES; i++)
#pragma unroll
                for (i32 n = 0; n < N_TILES; n++)
                    logits[i][n] = {0, 0, 0, 0};
        multiply(logits, queries_at, keys_at + column_warp * 64 * ROW, lane);
        named_barrier(1 + group, GROUP_THREADS);       // the tile's buffer is free, the last tile's sums are read
        if (step + 1 < steps)
            load_step(next);
        cp_async_commit();
        if (row_is_whole)
        {
            if (columns < 64)
            {
                keep_branch();
#pragma unroll
                for (i32 n = 0; n < N_TILES; n++)
#pragma unroll
                    for (i32 i = 0; i < M_TILES; i++)
                    {
                        if (n * 8 + quad * 2 >= columns)
                            logits[i][n].x = logits[i][n].z = minus_infinity;
                        if (n * 8 + quad * 2 + 1 >= columns)
                            logits[i][n].y = logits[i][n].w = minus_infinity;
                    }
            }
#pragma unroll
            for (i32 i = 0; i < M_TILES; i++)
            {
                float top = minus_infinity, bottom = minus_infinity;
#pragma unroll
                for (i32 n = 0; n < N_TILES; n++)
                {
                    top = fmaxf(top, fmaxf(logits[i][n].x, logits[i][n].y));
                    bottom = fmaxf(bottom, fmaxf(logits[i][n].z, logits[i][n].w));
                }
                for (i32 mask = 1; mask <= 2; mask *= 2)
                {
                    top = fmaxf(top, __shfl_xor_sync(0xffffffff, top, mask));
                    bottom = fmaxf(bottom, __shfl_xor_sync(0xffffffff, bottom, mask));
                }
                if (quad == 0)
                {
                    store_shared_f32(rows_at + ((i * 16 + lane / 4) * COLUMN_WARPS + column_warp) * 4, top);
                    store_shared_f32(rows_at + ((i * 16 + 8 + lane / 4) * COLUMN_WARPS + column_warp) * 4, bottom);
                }
            }
        }
        if (row_is_whole)
        {
            named_barrier(1 + group, GROUP_THREADS);   // maxima are there
            float row_sums[M_TILES][2];
#pragma unroll
            for (i32 i = 0; i < M_TILES; i++)
            {
                float top = -p.logit_scale * meet<true>(rows_at + (i * 16 + lane / 4) * COLUMN_WARPS * 4);
                float bottom = -p.logit_scale * meet<true>(rows_at + (i * 16 + 8 + lane / 4) * COLUMN_WARPS * 4);
#pragma unroll
                for (i32 n = 0; n < N_TILES; n++)
                {
                    f32x4& x = logits[i][n];
                    x.x = exp2_approx(fmaf(x.x, p.logit_scale, top));
                    x.y = exp2_approx(fmaf(x.y, p.logit_scale, top));
                    x.z = exp2_approx(fmaf(x.z, p.logit_scale, bottom));
                    x.w = exp2_approx(fmaf(x.w, p.logit_scale, bottom));
                }
            }
#pragma unroll
            for (i32 i = 0; i < M_TILES; i++)
            {
                float top = 0, bottom = 0, top_odd = 0, bottom_odd = 0;
#pragma unroll
                for (i32 n = 0; n < N_TILES; n++)
                {
                    top += logits[i][n].x, bottom += logits[i][n].z;   // of independent sums additions go between exponentials
                    top_odd += logits[i][n].y, bottom_odd += logits[i][n].w;
                }
                top += top_odd;
                bottom += bottom_odd;
                for (i32 mask = 1; mask <= 2; mask *= 2)
                {
                    top += __shfl_xor_sync(0xffffffff, top, mask);
                    bottom += __shfl_xor_sync(0xffffffff, bottom, mask);
                }
                row_sums[i][0] = top, row_sums[i][1] = bottom;
            }
            named_barrier(1 + group, GROUP_THREADS);   // maxima are read
#pragma unroll
            for (i32 i = 0; i < M_TILES; i++)
                if (quad == 0)
                {
                    store_shared_f32(rows_at + ((i * 16 + lane / 4) * COLUMN_WARPS + column_warp) * 4, row_sums[i][0]);
                    store_shared_f32(rows_at + ((i * 16 + 8 + lane / 4) * COLUMN_WARPS + column_warp) * 4, row_sums[i][1]);
                }
        }
        cp_async_wait<0>();
        named_barrier(1 + group, GROUP_THREADS);       // sums are there, and the next tile
        if (row_is_whole)
        {
            i32 valid = count - place.row;
            bool bad = false;
#pragma unroll
            for (i32 i = 0; i < M_TILES; i++)
            {
                i32 row = i * 16 + lane / 4;
                float top = meet<false>(rows_at + row * COLUMN_WARPS * 4), bottom = meet<false>(rows_at + (row + 8) * COLUMN_WARPS * 4);
                bad |= !is_finite(top + bottom);
                top = row < valid ? reciprocal_approx(top) : 0;
                bottom = row + 8 < valid ? reciprocal_approx(bottom) : 0;
#pragma unroll
                for (i32 n = 0; n < N_TILES; n++)
                {
                    sums[n][0] = fmaf(logits[i][n].x, top, fmaf(logits[i][n].z, bottom, sums[n][0]));
                    sums[n][1] = fmaf(logits[i][n].y, top, fmaf(logits[i][n].w, bottom, sums[n][1]));
                }
            }
            // A query that is not finite spoils its row's sum, whatever the keys: only then is it looked for.
            if (__any_sync(0xffffffff, bad) && column_warp == 0)
                for (i32 row = lane; row < valid && row < M; row += 32)
                    if (row_has_non_finite(queries + (p.queries.token_stride * (place.row + row) + p.queries.head_stride * place.head) * ELEMENT_BYTES))
                        report(p.status, STATUS_NON_FINITE_QUERY, chunk.start + chunk.token + place.row + row, head * p.group + place.head);
        }
        place = next;
    }

    // Columns: over a warp's rows, then over the groups.
#pragma unroll
    for (i32 n = 0; n < N_TILES; n++)
#pragma unroll
        for (i32 c = 0; c < 2; c++)
        {
            for (i32 mask = 4; mask <= 16; mask *= 2)
                sums[n][c] += __shfl_xor_sync(0xffffffff, sums[n][c], mask);
            if (lane / 4 == 0)
                store_shared_f32(queries_at + (column_warp * 64 + n * 8 + quad * 2 + c) * 4, sums[n][c]);
        }
    __syncthreads();
    float* scores = (float*)p.scores + (i64)(chunk.start + chunk.token) * p.kv_heads + head;
    for (i32 j = thread; j < count; j += THREADS)
    {
        float sum = 0;
        for (i32 g = 0; g < GROUPS; g++)
            sum += load_shared_f32(keys_at + QUERIES_AT + g * M * ROW + j * 4);
        scores[(i64)j * p.kv_heads] = sum * p.reduction;
    }
}
