// From the partial sums of a chunk's parts to the factor its scores need: G = sum of X^T·X less n·r·r^T for the residual mean r of X,
//     G + eps·I = L·L^T,   L^-1, and L^-1·r.
// partials f32 [parts·Hkv, 256·blocks + k] from sketch_gram, added in order in double; totals f64 [chunks·Hkv, 256·blocks + k + 1], or 0: what earlier pieces of a
// sequence left (zeros at its start), to which this call's sums and token count are added. factors, of every (chunk, head):
//     u32 [k / 8][k / 16][3][lane][2]: the second operands of Y = X·L^-T for mma, in three bf16 parts,
//     f32 [k]: L^-1·r.
//
// Cost: k²/2 and more floats read a part, 2·k³/3 flops in double, latency of k steps; one block a (chunk, head). L8, k = 48: 752 partials, 5 MB; about 20 us.
// The ridge is max(epsilon, 2^-20 of the mean diagonal), times 10 after a bad pivot, at most five times; a failure is reported and gives zero scores.
//
// Launch: grid (chunks·Hkv; paged: chunks of all rows), block 256, shared = InverseFactor's and 8·k bytes.
#include "chunks.cuh"
#include "cholesky.cuh"
#include "split.cuh"
#include "status.cuh"

constexpr i32 K = COMPACTOR_SKETCH_DIM, K_TILES = K / 16, GRAM = block_of(K_TILES, 0) * 256, THREADS = 256;
constexpr i32 FRAGMENTS_BYTES = K / 8 * K_TILES * 768, FACTOR_BYTES = FRAGMENTS_BYTES + K * 4;

using Factor = InverseFactor<double, K>;

struct FactorParams
{
    u64 cu_seqlens, chunk_starts, part_starts;   // see chunks.cuh
    u64 partials, totals, factors, status;
    double epsilon;
    i32 sequences, kv_heads, chunk_size, skip_first, skip_last;
    i32 center;     // whether the mean is removed
    i32 finish;     // 0: only add to the totals
    i32 paged;      // 1: chunks of rows of tables, 0: of a tensor's heads
};

extern "C" __global__ void __launch_bounds__(THREADS, 1) factor(const __grid_constant__ FactorParams p)
{
    i32 thread = threadIdx.x, r = thread / 16, c = thread % 16;
    i32 heads = p.paged ? 1 : p.kv_heads, head = blockIdx.x % heads, segment = blockIdx.x / heads;
    i32 sequence = find_sequence(p.chunk_starts, p.sequences, segment), index = segment - ((const i32*)p.chunk_starts)[sequence];
    Chunk chunk = chunk_of(p.cu_seqlens, sequence, index, p.chunk_size, p.skip_first, p.skip_last);
    i32 first_part = ((const i32*)p.part_starts)[sequence];
    if (index > 0)   // a whole sequence's size has no parts to count
        first_part += index * parts_of(p.chunk_size);
    i32 parts = parts_of(chunk.count);
    u32 sums_at = shared_base() + Factor::SharedBytes;

    const float* partials = (const float*)p.partials + ((i64)first_part * heads + head) * (GRAM + K);
    i64 part_stride = (i64)heads * (GRAM + K);
    double* totals = p.totals != 0 ? (double*)p.totals + (i64)blockIdx.x * (GRAM + K + 1) : nullptr;
    double w[Factor::Elements] = {}, sum = 0, count = chunk.count;
#pragma unroll (K <= 64 ? 8 : 1)
    for (i32 part = 0; part < parts; part++, partials += part_stride)
    {
#pragma unroll
        for (i32 a = 0; a < K_TILES; a++)
#pragma unroll
            for (i32 b = 0; b <= a; b++)
                w[block_of(a, b)] += partials[block_of(a, b) * 256 + thread];
        if (thread < K)
            sum += partials[GRAM + thread];
    }
    if (totals != nullptr)
    {
#pragma unroll
        for (i32 a = 0; a < K_TILES; a++)
#pragma unroll
            for (i32 b = 0; b <= a; b++)
            {
                double& total = totals[block_of(a, b) * 256 + thread];
                total = w[block_of(a, b)] += total;
            }
        if (thread < K)
            totals[GRAM + thread] = sum += totals[GRAM + thread];
        count += totals[GRAM + K];
        __syncthreads();
        if (thread == 0)
            totals[GRAM + K] = count;
        if (!p.finish)
            return;
    }
    if (thread < K)
        store_shared_f64(sums_at + thread * 8, p.center ? sum : 0);
    __syncthreads();
#pragma unroll
    for (i32 a = 0; a < K_TILES; a++)
    {
        double mean = load_shared_f64(sums_at + (a * 16 + r) * 8) / count;
#pragma unroll
        for (i32 b = 0; b <= a; b++)
            w[block_of(a, b)] -= mean * load_shared_f64(sums_at + (b * 16 + c) * 8);
    }
    if (!Factor::invert(w, p.epsilon, shared_base(), thread) && thread == 0)
    {
        Named named = name_of(p.cu_seqlens, sequence, head, p.kv_heads, p.paged);
        report(p.status, STATUS_FACTORIZATION_FAILED, named.start + chunk.token, named.head);
    }

    u8* factors = (u8*)p.factors + (i64)blockIdx.x * FACTOR_BYTES;
#pragma unroll
    for (i32 a = 0; a < K_TILES; a++)
    {
        i32 row = a * 16 + r;
        double solved = 0;
#pragma unroll
        for (i32 b = 0; b <= a; b++)
        {
            double x = w[block_of(a, b)];
            SplitTriple split = split_bf16_exactly((float)x, 0);
            u16* fragment = (u16*)(factors + ((row / 8 * K_TILES + b) * 96 + row % 8 * 4 + c % 8 / 2) * 8 + c / 8 * 4) + c % 2;
#pragma unroll
            for (i32 part = 0; part < 3; part++)
                fragment[part * 32 * 4] = (u16)split.parts[part];
            solved += x * load_shared_f64(sums_at + (b * 16 + c) * 8);
        }
        for (i32 mask = 8; mask > 0; mask /= 2)
            solved += __shfl_xor_sync(0xffffffff, solved, mask);
        if (c == 0)
            ((float*)(factors + FRAGMENTS_BYTES))[row] = (float)(solved / count);
    }
}
