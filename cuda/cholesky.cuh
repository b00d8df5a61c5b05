// The inverse Cholesky factor of a K x K matrix by a block of 256 threads, in registers.
//
// Thread (r, c) of a 16 x 16 arrangement holds the elements (16·a + r, 16·b + c), b <= a, of the lower triangle. Step j of the factorisation
// G = U·diag(d)·U^T subtracts (g_i / d)·g_c from every row i > j, with d = G_jj, g_c = G_cj right of column j and, left of it, row j of the inverse of U that
// takes the place of the eliminated columns: one pass eliminates and inverts. A step is 2·K/16 shared loads, K/16·(K/16 + 1)/2 fused multiply-adds
// and one barrier. L^-1 = diag(d)^(-1/2)·U^-1.
#pragma once
#include "ptx.cuh"

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

template <class Real, i32 Size> struct InverseFactor
{
    static constexpr i32 Tiles = Size / 16;
    static constexpr i32 Elements = Tiles * (Tiles + 1) / 2;
    static constexpr i32 SharedBytes = 4 * Size * (i32)sizeof(Real);

    // Element (a, b) of a thread's.
    static __device__ __forceinline__ constexpr i32 index(i32 a, i32 b) { return a * (a + 1) / 2 + b; }

    // w: the matrix, becomes L^-1, zeros above the diagonal. The ridge is epsilon, raised to its floor, times 10 after a bad pivot.
    // Returns false when no escalation helps; w then holds zeros. SharedBytes at `at`, which nobody uses without a barrier before and after.
    static __device__ __forceinline__ bool invert(Real (&w)[Elements], Real epsilon, u32 at, i32 thread)
    {
        i32 r = thread / 16, c = thread % 16;
        u32 steps_at = at, diagonal_at = at + 2 * Size * sizeof(Real);
        Real original[Elements];
#pragma unroll
        for (i32 e = 0; e < Elements; e++)
            original[e] = w[e];
#pragma unroll
        for (i32 a = 0; a < Tiles; a++)
            if (r == c)
                store_shared_real(diagonal_at + (a * 16 + r) * sizeof(Real), w[index(a, a)]);
        __syncthreads();
        Real trace = 0;
        for (i32 i = 0; i < Size; i++)
            trace += load_shared_real(diagonal_at + i * sizeof(Real), Real());
        Real floor = (Real)EPSILON_FLOOR * trace / Size;
        Real ridge = epsilon > floor ? epsilon : floor;
        for (i32 attempt = 0; attempt <= MAX_ESCALATIONS; attempt++)
        {
            __syncthreads();
#pragma unroll
            for (i32 a = 0; a < Tiles; a++)
#pragma unroll
                for (i32 b = 0; b <= a; b++)
                    w[index(a, b)] = original[index(a, b)] + (a == b && r == c ? ridge : 0);
            if (eliminate(w, steps_at, diagonal_at, r, c))
            {
#pragma unroll
                for (i32 a = 0; a < Tiles; a++)
                {
                    Real scale = 1 / square_root(load_shared_real(diagonal_at + (a * 16 + r) * sizeof(Real), Real()));
#pragma unroll
                    for (i32 b = 0; b <= a; b++)
                        w[index(a, b)] = a > b || r > c ? w[index(a, b)] * scale : r == c ? scale : 0;
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
    static __device__ __forceinline__ bool eliminate(Real (&w)[Elements], u32 steps_at, u32 diagonal_at, i32 r, i32 c)
    {
        if (c == 0)
#pragma unroll
            for (i32 a = 0; a < Tiles; a++)
                store_shared_real(steps_at + (a * 16 + r) * sizeof(Real), w[index(a, 0)]);
        for (i32 j = 0; j < Size; j++)
        {
            __syncthreads();
            u32 now = steps_at + j % 2 * Size * sizeof(Real), next = steps_at + (j + 1) % 2 * Size * sizeof(Real);
            Real pivot = load_shared_real(now + j * sizeof(Real), Real());
            if (!is_pivot(pivot))
                return false;
            if (r == 0 && c == 0)
                store_shared_real(diagonal_at + j * sizeof(Real), pivot);
            Real inverse = 1 / pivot, columns[Tiles];
#pragma unroll
            for (i32 b = 0; b < Tiles; b++)
                columns[b] = b * 16 + c == j ? 1 : load_shared_real(now + (b * 16 + c) * sizeof(Real), Real());
#pragma unroll
            for (i32 a = 0; a < Tiles; a++)
            {
                i32 row = a * 16 + r;
                if (row > j)
                {
                    Real factor = load_shared_real(now + row * sizeof(Real), Real()) * inverse;
#pragma unroll
                    for (i32 b = 0; b <= a; b++)
                    {
                        i32 column = b * 16 + c;
                        Real x = (column == j ? 0 : w[index(a, b)]) - factor * columns[b];
                        w[index(a, b)] = x;
                        if (column == j + 1 && row >= column)
                            store_shared_real(next + row * sizeof(Real), x);
                        else if (row == j + 1 && column < row)
                            store_shared_real(next + column * sizeof(Real), x);
                    }
                }
            }
        }
        __syncthreads();
        return true;
    }
};
