// The inverse Cholesky factor of a K x K matrix by a block of 256 threads, by blocks of 16 x 16.
//
// The lower triangle lies in shared memory by blocks; thread (r, c) of a 16 x 16 arrangement brings, works on and takes away element (r, c) of each. With G = U·D·U^T, U unit lower
// triangular, step t
// * factorises the diagonal block, G_tt = U_tt·D_t·U_tt^T, and inverts V = U_tt^-1: one warp, two or four columns at a time, which each lane eliminates for itself;
// * P_a = G_at·V^T and F_a = P_a·D_t^-1 = U_at below it, V·W_tb left of it, where rows of W = U^-1 take the place of eliminated columns;
// * G_ab -= F_a·P_b^T right of column t, W_ab -= F_a·W_tb left of it, W_at = -F_a·V.
// Products of blocks are 16 multiply-adds a thread. 4 barriers a step, 12 for K = 48, where one a column would be 48. L^-1 = D^(-1/2)·U^-1.
#pragma once
#include "ptx.cuh"
#include "triangle.cuh"

constexpr i32 MAX_ESCALATIONS = 5;
constexpr double EPSILON_FLOOR = 1.0 / (1 << 20);   // share of the mean diagonal below which the ridge never falls

__device__ __forceinline__ float load_shared_real(u32 at, float) { return load_shared_f32(at); }
__device__ __forceinline__ double load_shared_real(u32 at, double) { return load_shared_f64(at); }
__device__ __forceinline__ void store_shared_real(u32 at, float x) { store_shared_f32(at, x); }
__device__ __forceinline__ void store_shared_real(u32 at, double x) { store_shared_f64(at, x); }
__device__ __forceinline__ bool is_pivot(float x) { return x > 0 && x <= 3.402823466e38f; }
__device__ __forceinline__ bool is_pivot(double x) { return x > 0 && x <= 1.7976931348623157e308; }
__device__ __forceinline__ float square_root(float x) { return sqrtf(x); }
__device__ __forceinline__ double square_root(double x) { return sqrt(x); }

// 16 neighbours, at a multiple of 16 bytes where they are float32.
__device__ __forceinline__ void load_row(float (&x)[16], u32 at)
{
#pragma unroll
    for (i32 i = 0; i < 16; i += 4)
    {
        f32x4 four = load_shared_f32x4(at + i * 4);
        x[i] = four.x, x[i + 1] = four.y, x[i + 2] = four.z, x[i + 3] = four.w;
    }
}
__device__ __forceinline__ void load_row(double (&x)[16], u32 at)
{
#pragma unroll
    for (i32 i = 0; i < 16; i++)
        x[i] = load_shared_f64(at + i * 8);
}
// 8 neighbours.
__device__ __forceinline__ void load_eight(float (&x)[8], u32 at)
{
    f32x4 first = load_shared_f32x4(at), second = load_shared_f32x4(at + 16);
    x[0] = first.x, x[1] = first.y, x[2] = first.z, x[3] = first.w, x[4] = second.x, x[5] = second.y, x[6] = second.z, x[7] = second.w;
}
__device__ __forceinline__ void load_eight(double (&x)[8], u32 at)
{
#pragma unroll
    for (i32 i = 0; i < 8; i++)
        x[i] = load_shared_f64(at + i * 8);
}
__device__ __forceinline__ void store_eight(u32 at, const float (&x)[8])
{
    store_shared_f32x4(at, {x[0], x[1], x[2], x[3]});
    store_shared_f32x4(at + 16, {x[4], x[5], x[6], x[7]});
}
__device__ __forceinline__ void store_eight(u32 at, const double (&x)[8])
{
#pragma unroll
    for (i32 i = 0; i < 8; i++)
        store_shared_f64(at + i * 8, x[i]);
}
__device__ __forceinline__ float multiply_add(float x, float y, float z) { return fmaf(x, y, z); }
__device__ __forceinline__ double multiply_add(double x, double y, double z) { return fma(x, y, z); }

template <class Real, i32 Size> struct InverseFactor
{
    static constexpr i32 Tiles = Size / 16;
    static constexpr i32 Elements = block_of(Tiles, 0);
    static constexpr i32 Panel = sizeof(Real) == 4 ? 2 : 4;   // columns eliminated at once; of float32 fewer, so that two blocks of sketch_leverage fit an SM's registers
    // Rows of 16, padded so that equal columns of them lie in different banks.
    static constexpr i32 Bytes = (i32)sizeof(Real), Row = 16 * Bytes + (Bytes == 4 ? 16 : 8), Block = 16 * Row;
    // The blocks of the triangle, F_a of every block row but the first, pivots and their inverses, whether they are good.
    static constexpr i32 FACTORS_AT = Elements * Block, PIVOTS_AT = FACTORS_AT + (Tiles - 1) * Block, GOOD_AT = PIVOTS_AT + 2 * Size * Bytes;
    static constexpr i32 SharedBytes = GOOD_AT + 8;

    // w: the matrix, becomes L^-1, zeros above the diagonal. The ridge is epsilon, raised to its floor, times 10 after a bad pivot.
    // Returns false when no escalation helps; w then holds zeros. SharedBytes at `at`, which nobody uses without a barrier before and after.
    static __device__ __forceinline__ bool invert(Real (&w)[Elements], Real epsilon, u32 at, i32 thread)
    {
        i32 r = thread / 16, c = thread % 16, lane = thread % 32;
        u32 diagonal_at = at + PIVOTS_AT, own = at + r * Row + c * Bytes;
#pragma unroll
        for (i32 a = 0; a < Tiles; a++)
            if (r == c)
                store_shared_real(diagonal_at + (a * 16 + r) * Bytes, w[block_of(a, a)]);
        __syncthreads();
        Real trace = 0;
        for (i32 i = lane; i < Size; i += 32)
            trace += load_shared_real(diagonal_at + i * Bytes, Real());
        for (i32 mask = 16; mask > 0; mask /= 2)
            trace += __shfl_xor_sync(0xffffffff, trace, mask);
        Real floor = (Real)EPSILON_FLOOR * trace / Size;
        Real ridge = epsilon > floor ? epsilon : floor;
#pragma unroll 1
        for (i32 attempt = 0; attempt <= MAX_ESCALATIONS; attempt++)
        {
#pragma unroll
            for (i32 a = 0; a < Tiles; a++)
#pragma unroll
                for (i32 b = 0; b <= a; b++)
                    store_shared_real(own + block_of(a, b) * Block, w[block_of(a, b)] + (a == b && r == c ? ridge : 0));
            __syncthreads();
            if (eliminate(at, thread))
            {
#pragma unroll
                for (i32 a = 0; a < Tiles; a++)
                {
                    Real scale = 1 / square_root(load_shared_real(diagonal_at + (a * 16 + r) * Bytes, Real()));
#pragma unroll
                    for (i32 b = 0; b <= a; b++)
                        w[block_of(a, b)] = scale * load_shared_real(own + block_of(a, b) * Block, Real());
                }
                return true;
            }
            ridge = 10 * ridge > (Real)1e-8 ? 10 * ridge : (Real)1e-8;
        }
#pragma unroll
        for (i32 e = 0; e < Elements; e++)
            w[e] = 0;
        return false;
    }

private:
    // The product of a row of 16 with another, and with a column of 16 rows.
    static __device__ __forceinline__ Real dot_row(u32 a, u32 b)
    {
        Real x[16], y[16], sum = 0;
        load_row(x, a);
        load_row(y, b);
#pragma unroll
        for (i32 i = 0; i < 16; i++)
            sum = multiply_add(x[i], y[i], sum);
        return sum;
    }
    static __device__ __forceinline__ Real dot_column(u32 a, u32 b)
    {
        Real x[16], sum = 0;
        load_row(x, a);
#pragma unroll
        for (i32 i = 0; i < 16; i++)
            sum = multiply_add(x[i], load_shared_real(b + i * Row, Real()), sum);
        return sum;
    }

    // A warp: the block, of which the lower triangle counts, becomes V = U^-1; its pivots go to `pivots_at`, their inverses Size elements on. Returns whether all are pivots.
    static __device__ __forceinline__ bool eliminate_block(u32 block_at, u32 pivots_at, i32 lane)
    {
        i32 row = lane % 16, half = lane / 16 * 8;   // columns half to half + 7
        u32 own_at = block_at + row * Row + half * Bytes;
        Real x[8];
#pragma unroll
        for (i32 i = 0; i < 8; i++)
        {
            i32 column = half + i;
            x[i] = load_shared_real(block_at + (row > column ? row * Row + column * Bytes : column * Row + row * Bytes), Real());
        }
        __syncwarp();
        bool good = true;
#pragma unroll
        for (i32 panel = 0; panel < 16; panel += Panel)
        {
            // The panel's rows are whole, and symmetric right of what is eliminated.
            if (row / Panel == panel / Panel)
                store_eight(own_at, x);
            __syncwarp();
            Real rows[Panel][8], corner[Panel][Panel], below[Panel];
#pragma unroll
            for (i32 a = 0; a < Panel; a++)
            {
                u32 row_at = block_at + (panel + a) * Row;
                load_eight(rows[a], row_at + half * Bytes);
#pragma unroll
                for (i32 b = 0; b < Panel; b++)
                    corner[a][b] = load_shared_real(row_at + (panel + b) * Bytes, Real());
                below[a] = load_shared_real(row_at + row * Bytes, Real());
            }
#pragma unroll
            for (i32 j = 0; j < Panel; j++)
            {
                i32 column = panel + j;
                bool holds = half == column / 8 * 8;   // this lane holds the column
                Real pivot = corner[j][j], inverse = 1 / pivot;
                good &= is_pivot(pivot);
                if (lane == 0)
                {
                    store_shared_real(pivots_at + column * Bytes, pivot);
                    store_shared_real(pivots_at + (Size + column) * Bytes, inverse);
                }
                // Every lane eliminates the panel's other rows for itself, then its own row.
#pragma unroll
                for (i32 a = j + 1; a < Panel; a++)
                {
                    Real factor = corner[a][j] * inverse;
#pragma unroll
                    for (i32 b = j + 1; b < Panel; b++)
                        corner[a][b] -= factor * corner[j][b];
#pragma unroll
                    for (i32 i = 0; i < 8; i++)
                        rows[a][i] = i == column % 8 && holds ? -factor : rows[a][i] - factor * rows[j][i];
                }
                Real factor = row > column ? below[j] * inverse : 0;
#pragma unroll
                for (i32 b = j + 1; b < Panel; b++)
                    below[b] -= factor * corner[j][b];
#pragma unroll
                for (i32 i = 0; i < 8; i++)
                    x[i] = i == column % 8 && holds && row > column ? -factor : x[i] - factor * rows[j][i];
            }
        }
        __syncwarp();
#pragma unroll
        for (i32 i = 0; i < 8; i++)
            x[i] = row > half + i ? x[i] : row == half + i ? 1 : 0;
        store_eight(own_at, x);
        return good;
    }

    static __device__ __forceinline__ bool eliminate(u32 at, i32 thread)
    {
        i32 r = thread / 16, c = thread % 16;
        auto block_at = [&](i32 a, i32 b) { return at + block_of(a, b) * Block; };
        auto factor_at = [&](i32 a) { return at + FACTORS_AT + (a - 1) * Block; };
        u32 row = r * Row, column = c * Bytes, own = row + column;
#pragma unroll 1
        for (i32 t = 0; t < Tiles; t++)
        {
            u32 v_at = block_at(t, t);
            if (thread < 32)
            {
                bool good = eliminate_block(v_at, at + PIVOTS_AT + t * 16 * Bytes, thread);
                if (thread == 0)
                    store_shared(at + GOOD_AT, good);
            }
            __syncthreads();
            if (load_shared(at + GOOD_AT) == 0)
                return false;
            Real x[Tiles];
#pragma unroll
            for (i32 a = 0; a < Tiles; a++)
                if (a > t)
                    x[a] = dot_row(block_at(a, t) + row, v_at + c * Row);
                else if (a < t)
                    x[a] = dot_column(v_at + row, block_at(t, a) + column);
            __syncthreads();
            Real inverse = load_shared_real(at + PIVOTS_AT + (Size + t * 16 + c) * Bytes, Real());
#pragma unroll
            for (i32 a = 0; a < Tiles; a++)
            {
                if (a != t)
                    store_shared_real((a > t ? block_at(a, t) : block_at(t, a)) + own, x[a]);
                if (a > t)
                    store_shared_real(factor_at(a) + own, x[a] * inverse);
            }
            __syncthreads();
#pragma unroll
            for (i32 a = 1; a < Tiles; a++)
                if (a > t)
#pragma unroll
                    for (i32 b = 0; b <= a; b++)
                    {
                        u32 to = block_at(a, b) + own;
                        if (b > t)
                            store_shared_real(to, load_shared_real(to, Real()) - dot_row(factor_at(a) + row, block_at(b, t) + c * Row));
                        else if (b < t)
                            store_shared_real(to, load_shared_real(to, Real()) - dot_column(factor_at(a) + row, block_at(t, b) + column));
                        else
                            x[a] = -dot_column(factor_at(a) + row, v_at + column);
                    }
            __syncthreads();
#pragma unroll
            for (i32 a = 1; a < Tiles; a++)
                if (a > t)
                    store_shared_real(block_at(a, t) + own, x[a]);
            // The next diagonal block was written before the barrier.
        }
        return true;
    }
};
