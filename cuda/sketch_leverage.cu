// Approximate leverage of the keys of one head and chunk of C tokens, in one read of the keys:
//     X = (keys - mean)·Phi,   X^T·X + eps·I = L·L^T,   o_i = ||L^-1·x_i||^2.
// Keys [N, Hkv, D] or slots of a paged cache, Phi bf16 [count, k, D], scores f32 [N, Hkv] (paged: [pairs], head by head), written for the scored tokens:
// the host clears the scores first where protected tokens are not scored.
//
// Cost: 4·D·k (keys, and the center) + 5.3·k² (Gram: four products of the lower blocks) + 6.7·k² (solve: five) flops a token and head, one read of the keys.
// L8 at N = 131,072, C = 512, k = 48: 268 MB, floor 63 us; 54 GFLOP of tensor cores, 94 us at the rate of mma.sync beside it.
//
// Shape. A block is one chunk of one head. Each warp takes 16 tokens at a time from global memory straight into fragments (sketch.cuh), the next ones' first elements while
// it stores the present ones, and leaves X^T as bf16 high and low parts in shared memory: k·C·4 bytes, as much as float32. The Gram blocks, the factorisation by blocks
// (cholesky.cuh) and the solve Y^T = L^-1·X^T, 32 tokens a warp, follow with no further global access; a second block of the SM reads its keys meanwhile.
// Centring: sums lose a point near the mean of the keys in every step, so that a large common bias costs no digits; the residual mean r of X is removed
// by G - n·r·r^T, and L^-1·(x - r) = L^-1·x - L^-1·r. Measured on an H200 at L8: 272 us (bench/notes.md).
// X to 2^-17 relative, everything after from that X to float32; the ridge is at least 2^-20 of the mean diagonal.
//
// Launch: grid (chunks·Hkv; paged: chunks of all rows), block 256, with T = C rounded up to (k <= 64 ? 32 : 16),
//     shared = 4·k·T + 40·k + max(2·D·k + 4·D, InverseFactor's, 1536·blocks), blocks = k / 16·(k / 16 + 1) / 2.
// L8: 98,304 + 14,720 bytes, two blocks an SM on sm_90, one on sm_80. Where it does not fit: sketch_gram, factor, leverage_apply.
// Dense keys: address and strides are multiples of 16 bytes. Registers: at most 128.
constexpr int WARPS = 8;
#include "gram.cuh"
#include "cholesky.cuh"

constexpr i32 CHUNK = COMPACTOR_CHUNK, SOLVE_TILES = K <= 64 ? 4 : 2, SOLVE_TOKENS = 8 * SOLVE_TILES, TOKENS = round_up(CHUNK, SOLVE_TOKENS);

using Factor = InverseFactor<float, K>;

// The body holds Phi and the center, then the Gram matrix, then what is factorised, then the factor: blocks of 16 x 16 on or below the diagonal as first operands of
// mma, [block][part][lane] of 16 bytes.
constexpr i32 SUMS_AT = K * TOKENS * 4, SOLVED_MEAN_AT = SUMS_AT + K * 4, PARTS_AT = SOLVED_MEAN_AT + K * 4;
constexpr i32 BODY_AT = PARTS_AT + COLUMN_PARTS_BYTES, CENTER_AT = BODY_AT + PHI_BYTES;

// Two blocks of 128 registers a thread where an SM has the shared memory, else one of 255.
constexpr i32 larger(i32 a, i32 b) { return a > b ? a : b; }
constexpr i32 SHARED = BODY_AT + larger(larger(PHI_BYTES + CENTER_BYTES, Factor::SharedBytes), BLOCKS * 1536);
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
constexpr i32 SM_SHARED = 228 * 1024;
#else
constexpr i32 SM_SHARED = (__CUDA_ARCH__ == 800 || __CUDA_ARCH__ == 870 ? 164 : 100) * 1024;
#endif
constexpr i32 MIN_BLOCKS = 2 * (SHARED + 1024) <= SM_SHARED && K <= 48 && D <= 128 && !IS_F32 && COMPACTOR_ROTARY == 0 && !COMPACTOR_PAGED ? 2 : 1;

struct SketchLeverageParams
{
    Keys keys;
    u64 cu_seqlens, chunk_starts;   // see chunks.cuh; chunks of COMPACTOR_CHUNK
    u64 scores, status;
    double epsilon;
    i32 sequences, skip_first, skip_last, unused;
};

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS) sketch_leverage(const __grid_constant__ SketchLeverageParams p)
{
    i32 thread = threadIdx.x, warp = thread / 32, lane = thread % 32, quad = lane % 4;
    i32 heads = heads_of(p.keys), head = blockIdx.x % heads;
    Chunk chunk = find_chunk(p.cu_seqlens, p.chunk_starts, p.sequences, blockIdx.x / heads, CHUNK, p.skip_first, p.skip_last);
    Place place = place_of(p.keys, p.cu_seqlens, chunk.sequence, head);
    i32 first = chunk.token, count = chunk.count, end = first + count;
    u32 at = shared_base();

    for (i32 token = warp * WARP_TOKENS; token < count; token += WARPS * WARP_TOKENS)
        prefetch_keys(p.keys, place, chunk.start, first + token, end, lane);
    // Some warps wait for the center's rows while the others wait for Phi.
    constexpr i32 CENTER_THREADS = D <= THREADS / 2 ? round_up(D, 32) : 0;
    if (CENTER_THREADS == 0 || thread >= CENTER_THREADS)
        stage_phi<Operand::First>(at + BODY_AT, place.phi, thread - CENTER_THREADS, THREADS - CENTER_THREADS);
    for (i32 d = thread; d < D; d += THREADS)
        stage_center(at + CENTER_AT, d, center_of(p.keys, place, chunk, d));
    __syncthreads();

    LaneKeys lane_keys = begin_keys(p.keys, place, chunk.start, first + warp * WARP_TOKENS, end, lane);
    // Up to what a warp solves at once, with zeros beyond the end.
    for (i32 token = warp * WARP_TOKENS; token < round_up(count, SOLVE_TOKENS); token += WARPS * WARP_TOKENS)
    {
        f32x4 x[K_TILES][N_TILES];
        sketch_transposed(x, p.keys, lane_keys, first + token, end, at + BODY_AT, at + CENTER_AT, lane);
        lane_keys = begin_keys(p.keys, place, chunk.start, first + token + WARPS * WARP_TOKENS, end, lane);
        if (__any_sync(0xffffffff, !add_columns(at + PARTS_AT + warp * K * 4, x, token == warp * WARP_TOKENS, lane)))
            report_keys(p.keys, place, chunk.start, first + token, end, p.status, lane);
        store_sketch<TOKENS>(at, x, token / 8, lane);
    }
    __syncthreads();

    GramBlocks gram = {};
    add_gram<TOKENS>(gram, at, ceil_div(count, 16), warp, lane);
    meet_gram(at + BODY_AT, at + SUMS_AT, at + PARTS_AT, gram, count < WARPS * WARP_TOKENS ? ceil_div(count, WARP_TOKENS) : WARPS, thread);

    i32 r = thread / 16, c = thread % 16;
    float inverse_count = p.keys.center ? 1.0f / count : 0;
    float w[Factor::Elements];
#pragma unroll
    for (i32 a = 0; a < K_TILES; a++)
    {
        float mean = load_shared_f32(at + SUMS_AT + (a * 16 + r) * 4) * inverse_count;
#pragma unroll
        for (i32 b = 0; b <= a; b++)
            w[block_of(a, b)] = load_shared_f32(at + BODY_AT + (block_of(a, b) * 256 + thread) * 4) - mean * load_shared_f32(at + SUMS_AT + (b * 16 + c) * 4);
    }
    bool factored = Factor::invert(w, (float)p.epsilon, at + BODY_AT, thread);
    __syncthreads();
    if (!factored && thread == 0)
        report(p.status, STATUS_FACTORIZATION_FAILED, place.named.start + first, place.named.head);
#pragma unroll
    for (i32 a = 0; a < K_TILES; a++)
    {
        i32 row = a * 16 + r;
        float solved = 0;
#pragma unroll
        for (i32 b = 0; b <= a; b++)
        {
            i32 column = b * 16 + c;
            float x = w[block_of(a, b)], right = __shfl_xor_sync(0xffffffff, x, 1);
            SplitTriple split = split_bf16_exactly(x, right);
            if (c % 2 == 0)
#pragma unroll
                for (i32 part = 0; part < 3; part++)
                    store_shared(at + BODY_AT + (block_of(a, b) * 3 + part) * 512 + (r % 8 * 4 + c % 8 / 2) * 16 + (r / 8 + c / 8 * 2) * 4, split.parts[part]);
            solved = fmaf(x, load_shared_f32(at + SUMS_AT + column * 4) * inverse_count, solved);
        }
        for (i32 mask = 8; mask > 0; mask /= 2)
            solved += __shfl_xor_sync(0xffffffff, solved, mask);
        if (c == 0)
            store_shared_f32(at + SOLVED_MEAN_AT + row * 4, solved);
    }
    __syncthreads();

    float* scores = (float*)p.scores + (i64)(chunk.start + first) * heads + head;
    u32 factor_at = at + BODY_AT + lane * 16;
    u32 x_at = at + matrix_offset<TOKENS>(0, lane / 8 & 1, lane / 16) + lane % 8 * 16;
    for (i32 token = warp * SOLVE_TOKENS; token < count; token += WARPS * SOLVE_TOKENS)
    {
        float o[2 * SOLVE_TILES] = {};
#pragma unroll (K_TILES <= 4 ? K_TILES : 1)
        for (i32 i = 0; i < K_TILES; i++)
        {
            f32x4 y[SOLVE_TILES] = {};
#pragma unroll (K_TILES <= 4 ? K_TILES : 1)
            for (i32 step = 0; step <= i; step++)
            {
                u32x4 l[3];
#pragma unroll
                for (i32 part = 0; part < 3; part++)
                    l[part] = load_shared_x4(factor_at + (block_of(i, step) * 3 + part) * 512);
#pragma unroll
                for (i32 n = 0; n < SOLVE_TILES; n += 2)
                {
                    u32x4 high = ldmatrix_x4_trans(x_at + matrix_offset<TOKENS>(0, 2 * step, token / 8 + n));
                    u32x4 low = ldmatrix_x4_trans(x_at + matrix_offset<TOKENS>(1, 2 * step, token / 8 + n));
#pragma unroll
                    for (i32 part = 2; part >= 0; part--)
                    {
                        if (part < 2)
                        {
                            mma_bf16(y[n], l[part], {low.x, low.y});
                            mma_bf16(y[n + 1], l[part], {low.z, low.w});
                        }
                        mma_bf16(y[n], l[part], {high.x, high.y});
                        mma_bf16(y[n + 1], l[part], {high.z, high.w});
                    }
                }
            }
            float top = load_shared_f32(at + SOLVED_MEAN_AT + (i * 16 + lane / 4) * 4);
            float bottom = load_shared_f32(at + SOLVED_MEAN_AT + (i * 16 + 8 + lane / 4) * 4);
#pragma unroll
            for (i32 n = 0; n < SOLVE_TILES; n++)
            {
                o[2 * n] += (y[n].x - top) * (y[n].x - top) + (y[n].z - bottom) * (y[n].z - bottom);
                o[2 * n + 1] += (y[n].y - top) * (y[n].y - top) + (y[n].w - bottom) * (y[n].w - bottom);
            }
        }
        // Eight lanes hold rows of each token.
        float sum = sum_by_halves<16, 4>(o, lane);
        constexpr i32 SAME = 4 / SOLVE_TILES;   // lanes with the same sum
        i32 value = lane / 4 / SAME, own = token + value / 2 * 8 + quad * 2 + value % 2;
        if (own < count && lane / 4 % SAME == 0)
            scores[(i64)own * heads] = factored ? sum : 0;
    }
}
