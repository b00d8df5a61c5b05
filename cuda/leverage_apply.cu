// Second read of the keys of long chunks: o_i = ||L^-1·x_i||^2 = ||x_i·L^-T - (L^-1·r)^T||^2, X = (keys - center)·Phi computed anew.
// Keys and Phi as in sketch_gram, centers from sketch_center, factors from factor.cu; scores f32 [N, Hkv] (paged: [pairs], head by head), written for the scored
// tokens: the host clears the scores first where protected tokens are not scored.
//
// Cost: 4·D·k + 6.7·k² flops a token and head, one read of the keys. L8 at N = 131,072, k = 48: 268 MB, 63 us; 42 GFLOP, 72 us at the rate of mma.sync.
//
// Shape. Blocks and parts as in sketch_gram. Keys as the first operand give X with tokens as rows, whose accumulators are the first operand of the solve: a warp's tokens never
// leave its registers, and warps never wait for each other. Fragments of L^-1, of its lower blocks alone, come through the L1 cache.
//
// Launch: grid (parts·Hkv; paged: parts of all rows), block 128, shared = 4·D + 4·k + 2·D·k.
// L8: 12,992 bytes, at most 168 registers, three blocks an SM.
constexpr int WARPS = 4;
#include "sketch.cuh"

constexpr i32 MIN_BLOCKS = K <= 64 && COMPACTOR_ROTARY == 0 ? 3 : 2;
constexpr i32 SOLVED_MEAN_AT = CENTER_BYTES, PHI_AT = SOLVED_MEAN_AT + K * 4;
constexpr i32 FRAGMENTS_BYTES = K / 8 * K_TILES * 768, FACTOR_BYTES = FRAGMENTS_BYTES + K * 4;

struct LeverageApplyParams
{
    Keys keys;
    u64 cu_seqlens, chunk_starts, part_starts;   // see chunks.cuh
    u64 centers, factors, scores;
    i32 sequences, chunk_size, skip_first, skip_last;
};

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS) leverage_apply(const __grid_constant__ LeverageApplyParams p)
{
    i32 thread = threadIdx.x, warp = thread / 32, lane = thread % 32, quad = lane % 4;
    i32 heads = heads_of(p.keys), head = blockIdx.x % heads;
    Part part = find_part(p.cu_seqlens, p.chunk_starts, p.part_starts, p.sequences, blockIdx.x / heads, p.chunk_size, p.skip_first, p.skip_last);
    Place place = place_of(p.keys, p.cu_seqlens, part.chunk.sequence, head);
    i32 first = part.chunk.token + part.first, end = first + part.count;
    u32 at = shared_base();

    i64 item = (i64)part.segment * heads + head;
    const float* center = (const float*)p.centers + item * D;
    const u8* factors = (const u8*)p.factors + item * FACTOR_BYTES;
    stage_phi<Operand::Second>(at + PHI_AT, place.phi, thread);
    for (i32 d = thread; d < D; d += THREADS)
        stage_center(at, d, center[d]);
    for (i32 i = thread; i < K; i += THREADS)
        store_shared_f32(at + SOLVED_MEAN_AT + i * 4, ((const float*)(factors + FRAGMENTS_BYTES))[i]);
    __syncthreads();

    float* scores = (float*)p.scores + (i64)(part.chunk.start + first) * heads + head;
    LaneKeys lane_keys = begin_keys(p.keys, place, part.chunk.start, first + warp * WARP_TOKENS, end, lane);
    for (i32 token = warp * WARP_TOKENS; token < part.count; token += WARPS * WARP_TOKENS)
    {
        u32x4 high[N_TILES / 2][K_TILES], low[N_TILES / 2][K_TILES];
        prefetch_keys(p.keys, place, part.chunk.start, first + token + 2 * WARPS * WARP_TOKENS, end, lane);
        {
            f32x4 x[N_TILES / 2][2 * K_TILES];
            sketch(x, p.keys, lane_keys, at + PHI_AT, at, lane);
            lane_keys = begin_keys(p.keys, place, part.chunk.start, first + token + WARPS * WARP_TOKENS, end, lane);
#pragma unroll
            for (i32 m = 0; m < N_TILES / 2; m++)
#pragma unroll
                for (i32 i = 0; i < K_TILES; i++)
                {
                    f32x4 l = x[m][2 * i], r = x[m][2 * i + 1];
                    SplitPair a = split_bf16(l.x, l.y), b = split_bf16(l.z, l.w), c = split_bf16(r.x, r.y), d = split_bf16(r.z, r.w);
                    high[m][i] = {a.high, b.high, c.high, d.high};
                    low[m][i] = {a.low, b.low, c.low, d.low};
                }
        }
        float o[N_TILES] = {};
#pragma unroll 1
        for (i32 n = 0; n < 2 * K_TILES; n++)
        {
            f32x4 y[N_TILES / 2] = {};
#pragma unroll
            for (i32 i = 0; i < K_TILES; i++)
            {
                if (i > n / 2)
                    break;
                const u8* fragment = factors + ((n * K_TILES + i) * 96 + lane) * 8;
#pragma unroll
                for (i32 part = 2; part >= 0; part--)
                {
                    u32x2 factor = *(const u32x2*)(fragment + part * 256);
#pragma unroll
                    for (i32 m = 0; m < N_TILES / 2; m++)
                    {
                        if (part < 2)
                            mma_bf16(y[m], low[m][i], factor);
                        mma_bf16(y[m], high[m][i], factor);
                    }
                }
            }
            u32x2 mean = load_shared_x2(at + SOLVED_MEAN_AT + (n * 8 + quad * 2) * 4);
            float left = __uint_as_float(mean.x), right = __uint_as_float(mean.y);
#pragma unroll
            for (i32 m = 0; m < N_TILES / 2; m++)
            {
                o[2 * m] += (y[m].x - left) * (y[m].x - left) + (y[m].y - right) * (y[m].y - right);
                o[2 * m + 1] += (y[m].z - left) * (y[m].z - left) + (y[m].w - right) * (y[m].w - right);
            }
        }
        // Four lanes hold columns of each token.
        float sum = sum_by_halves<2, 1>(o, lane);
        constexpr i32 SAME = 4 / N_TILES;   // lanes with the same sum
        i32 own = token + quad / SAME * 8 + lane / 4;
        if (own < part.count && quad % SAME == 0)
            scores[(i64)own * heads] = is_finite(sum) ? sum : 0;   // a key that is not finite has been reported
    }
}
