// The lower triangle of a symmetric matrix by blocks of 16 x 16, numbered by rows: block (a, b), b <= a; n rows of blocks have block_of(n, 0) of them.
#pragma once
#include "types.cuh"

__device__ __forceinline__ constexpr i32 block_of(i32 a, i32 b) { return a * (a + 1) / 2 + b; }
