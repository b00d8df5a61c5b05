// G = X^T·X from a tile of X in shared memory, by bf16 mma on the high and low parts of X. All four products are taken: G is then the Gram matrix of the same X that
// the solve uses, and positive. Without low·low it would be short by more than the smallest ridge.
//
// The tile is X^T in 8 x 8 matrices of 128 bytes, [part][k / 8][tokens / 8], a matrix's row being a sketch column: as mma accumulators hold it, stored
// without conflicts, and read by ldmatrix as either operand of the Gram product, or transposed for the solve.
// Only 16 x 16 blocks on or below the diagonal are computed. BLOCK_WARPS warps share them out, and the warps of equal block share out the tokens.
#pragma once
#include "sketch.cuh"
#include "triangle.cuh"

constexpr i32 BLOCKS = block_of(K_TILES, 0);
constexpr i32 BLOCK_WARPS = BLOCKS <= 4 ? 1 : BLOCKS <= 8 ? 2 : BLOCKS <= 16 ? 4 : WARPS, TOKEN_WARPS = WARPS / BLOCK_WARPS;
constexpr i32 BLOCKS_PER_WARP = ceil_div(BLOCKS, BLOCK_WARPS);

constexpr i32 GRAM = BLOCKS * 256;   // floats of all blocks

using GramBlocks = f32x4[BLOCKS_PER_WARP][2];

template <i32 Tokens> __device__ __forceinline__ u32 matrix_offset(i32 part, i32 column8, i32 token8)
{
    return ((part * (K / 8) + column8) * (Tokens / 8) + token8) * 128;
}

template <i32 Tokens> __device__ __forceinline__ void store_sketch(u32 x_at, const f32x4 (&x)[K_TILES][N_TILES], i32 token8, i32 lane)
{
#pragma unroll
    for (i32 i = 0; i < K_TILES; i++)
#pragma unroll
        for (i32 n = 0; n < N_TILES; n++)
        {
            SplitPair top = split_bf16(x[i][n].x, x[i][n].y), bottom = split_bf16(x[i][n].z, x[i][n].w);
            u32 at = x_at + lane * 4;
            store_shared(at + matrix_offset<Tokens>(0, 2 * i, token8 + n), top.high);
            store_shared(at + matrix_offset<Tokens>(0, 2 * i + 1, token8 + n), bottom.high);
            store_shared(at + matrix_offset<Tokens>(1, 2 * i, token8 + n), top.low);
            store_shared(at + matrix_offset<Tokens>(1, 2 * i + 1, token8 + n), bottom.low);
        }
}

// Adds the columns of a warp's tokens to its K floats at `parts_at`, or starts them. Returns whether they are finite.
__device__ __forceinline__ bool add_columns(u32 parts_at, const f32x4 (&x)[K_TILES][N_TILES], bool start, i32 lane)
{
    float all = 0;
#pragma unroll
    for (i32 i = 0; i < K_TILES; i++)
    {
        float top = 0, bottom = 0;
#pragma unroll
        for (i32 n = 0; n < N_TILES; n++)
        {
            top += x[i][n].x + x[i][n].y;
            bottom += x[i][n].z + x[i][n].w;
        }
        all += 0 * top + 0 * bottom;   // 0, or no number
        for (i32 mask = 1; mask <= 2; mask *= 2)
        {
            top += __shfl_xor_sync(0xffffffff, top, mask);
            bottom += __shfl_xor_sync(0xffffffff, bottom, mask);
        }
        u32 at = parts_at + (i * 16 + lane / 4) * 4;
        if (lane % 4 == 0)
        {
            store_shared_f32(at, start ? top : load_shared_f32(at) + top);
            store_shared_f32(at + 32, start ? bottom : load_shared_f32(at + 32) + bottom);
        }
    }
    return all == 0;
}

struct BlockIndex { i32 row, column; };
__device__ __forceinline__ BlockIndex block_index(i32 block)
{
    i32 row = 0;
    while (block_of(row + 1, 0) <= block)
        row++;
    return {row, block - block_of(row, 0)};
}

__device__ __forceinline__ void add(f32x4& sum, f32x4 x) { sum = {sum.x + x.x, sum.y + x.y, sum.z + x.z, sum.w + x.w}; }

// Adds 16·token_steps tokens of the tile.
template <i32 Tokens> __device__ __forceinline__ void add_gram(GramBlocks& gram, u32 x_at, i32 token_steps, i32 warp, i32 lane)
{
    // Matrices in the order of a first operand (columns 0 to 7 and 8 to 15 of the sketch, then the next 8 tokens), and of two second ones.
    i32 matrix = lane / 8;
    u32 first_at = x_at + matrix_offset<Tokens>(0, matrix & 1, matrix >> 1) + lane % 8 * 16, second_at = x_at + matrix_offset<Tokens>(0, matrix >> 1, matrix & 1) + lane % 8 * 16;
    u32 low_part = matrix_offset<Tokens>(1, 0, 0);
#pragma unroll
    for (i32 slot = 0; slot < BLOCKS_PER_WARP; slot++)
    {
        i32 block = warp % BLOCK_WARPS + slot * BLOCK_WARPS;
        if (block >= BLOCKS)
            break;
        BlockIndex at = block_index(block);
        u32 row_at = first_at + matrix_offset<Tokens>(0, 2 * at.row, 0), column_at = second_at + matrix_offset<Tokens>(0, 2 * at.column, 0);
        for (i32 step = warp / BLOCK_WARPS; step < token_steps; step += TOKEN_WARPS)
        {
            u32 tokens = step * 256;
            u32x4 high = ldmatrix_x4(row_at + tokens), low = ldmatrix_x4(row_at + tokens + low_part), b = ldmatrix_x4(column_at + tokens), b_low = ldmatrix_x4(column_at + tokens + low_part);
            // Small products first, and a fresh sum every step: the tensor cores cut what they add, float32 additions round.
            f32x4 left = mma_bf16_product(low, {b_low.x, b_low.y}), right = mma_bf16_product(low, {b_low.z, b_low.w});
            mma_bf16(left, low, {b.x, b.y});
            mma_bf16(right, low, {b.z, b.w});
            mma_bf16(left, high, {b_low.x, b_low.y});
            mma_bf16(right, high, {b_low.z, b_low.w});
            mma_bf16(left, high, {b.x, b.y});
            mma_bf16(right, high, {b.z, b.w});
            add(gram[slot][0], left);
            add(gram[slot][1], right);
        }
    }
}

// Sums the warps' blocks, and the columns of the first `warps` of them into K floats, in warp order; ends with a barrier. Shared memory: GRAM floats at gram_at
// and K floats at sums_at, neither in use; the warps' columns at parts_at.
__device__ __forceinline__ void meet_gram(u32 gram_at, u32 sums_at, u32 parts_at, const GramBlocks& gram, i32 warps, i32 thread)
{
    i32 warp = thread / 32, lane = thread % 32, quad = lane % 4;
    u32 lane_at = gram_at + (lane / 4 * 16 + quad * 2) * 4;
    for (i32 turn = 0; turn < TOKEN_WARPS; turn++)
    {
        if (warp / BLOCK_WARPS == turn)
#pragma unroll
            for (i32 slot = 0; slot < BLOCKS_PER_WARP; slot++)
            {
                i32 block = warp % BLOCK_WARPS + slot * BLOCK_WARPS;
                if (block >= BLOCKS)
                    break;
                // All are read before any is written.
                u32x2 before[2][2] = {};
                if (turn > 0)
#pragma unroll
                    for (i32 n = 0; n < 2; n++)
#pragma unroll
                        for (i32 half = 0; half < 2; half++)
                            before[n][half] = load_shared_x2(lane_at + block * 1024 + half * 512 + n * 32);
#pragma unroll
                for (i32 n = 0; n < 2; n++)
#pragma unroll
                    for (i32 half = 0; half < 2; half++)
                    {
                        float left = half == 0 ? gram[slot][n].x : gram[slot][n].z, right = half == 0 ? gram[slot][n].y : gram[slot][n].w;
                        u32x2 old = before[n][half];
                        store_shared_x2(lane_at + block * 1024 + half * 512 + n * 32,
                            {__float_as_uint(__uint_as_float(old.x) + left), __float_as_uint(__uint_as_float(old.y) + right)});
                    }
            }
        __syncthreads();
    }
    for (i32 c = thread; c < K; c += THREADS)
    {
        float sum = 0;
        for (i32 w = 0; w < warps; w++)
            sum += load_shared_f32(parts_at + (w * K + c) * 4);
        store_shared_f32(sums_at + c * 4, sum);
    }
    __syncthreads();
}
