// What kernels report of bad input: one u64 a layer, 0 while all is well, else the complement of the smallest
//     code << 56 | place << 20 | head
// reported, so that whichever block comes first, the first place in batch order is named. place is the sequence's start in the batch plus the token
// (or slot) within it; the host finds the sequence by its offsets. Where heads have lengths of their own, the start is that of the sequence's first head.
#pragma once
#include "ptx.cuh"

// In the order in which they are told: a key that is not finite also spoils the factorisation.
constexpr u32 STATUS_NON_FINITE_KEY = 1, STATUS_NON_FINITE_QUERY = 2, STATUS_FACTORIZATION_FAILED = 3, STATUS_NON_FINITE_SCORE = 4;

__device__ __forceinline__ void report(u64 status, u32 code, i32 place, i32 head)
{
    atomic_max_global((u64*)status, ~((u64)code << 56 | (u64)(u32)place << 20 | (u32)head));
}
