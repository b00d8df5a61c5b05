// Every PTX instruction the kernels use by name: one instruction a wrapper, nothing else. Conversions, shared memory by 32-bit address, ldmatrix, mma,
// cp.async, approximate functions, ordered atomics and fences. Sources outside this file contain no inline assembly.
// tests/simt supplies the same functions for the CPU (COMPACTOR_SIMT), each checked against the same recorded vectors.
#pragma once
#include "types.cuh"

#if defined(COMPACTOR_SIMT)
#include "simt_ptx.hpp"
#else

// -- conversions ------------------------------------------------------------------------------------------------------------------
__device__ __forceinline__ float to_f32(f32 x) { return x.value; }
__device__ __forceinline__ float to_f32(bf16 x) { return __uint_as_float((u32)x.bits << 16); }
__device__ __forceinline__ float to_f32(f16 x)
{
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
    return y;
}

// Two floats, rounded to nearest even, packed with `low` in the low half.
__device__ __forceinline__ u32 pack_bf16(float low, float high)
{
    u32 packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
}
__device__ __forceinline__ u32 pack_f16(float low, float high)
{
    u32 packed;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
}

// -- shared memory: addresses are bytes in the shared window, the block's dynamic shared memory starts at shared_base() ---------------
extern __shared__ __align__(1024) u8 dynamic_shared_memory[];
__device__ __forceinline__ u32 shared_base() { return (u32)__cvta_generic_to_shared(dynamic_shared_memory); }

__device__ __forceinline__ u32 load_shared(u32 at)
{
    u32 x;
    asm volatile("ld.shared.b32 %0, [%1];" : "=r"(x) : "r"(at) : "memory");
    return x;
}
__device__ __forceinline__ float load_shared_f32(u32 at)
{
    float x;
    asm volatile("ld.shared.f32 %0, [%1];" : "=f"(x) : "r"(at) : "memory");
    return x;
}
__device__ __forceinline__ u16 load_shared_u16(u32 at)
{
    u16 x;
    asm volatile("ld.shared.b16 %0, [%1];" : "=h"(x) : "r"(at) : "memory");
    return x;
}
__device__ __forceinline__ u32x2 load_shared_x2(u32 at)
{
    u32x2 x;
    asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];" : "=r"(x.x), "=r"(x.y) : "r"(at) : "memory");
    return x;
}
__device__ __forceinline__ u32x4 load_shared_x4(u32 at)
{
    u32x4 x;
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];" : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w) : "r"(at) : "memory");
    return x;
}
__device__ __forceinline__ f32x4 load_shared_f32x4(u32 at)
{
    f32x4 x;
    asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];" : "=f"(x.x), "=f"(x.y), "=f"(x.z), "=f"(x.w) : "r"(at) : "memory");
    return x;
}
__device__ __forceinline__ void store_shared(u32 at, u32 x) { asm volatile("st.shared.b32 [%0], %1;" : : "r"(at), "r"(x) : "memory"); }
__device__ __forceinline__ void store_shared_f32(u32 at, float x) { asm volatile("st.shared.f32 [%0], %1;" : : "r"(at), "f"(x) : "memory"); }
__device__ __forceinline__ void store_shared_u16(u32 at, u16 x) { asm volatile("st.shared.b16 [%0], %1;" : : "r"(at), "h"(x) : "memory"); }
__device__ __forceinline__ void store_shared_x2(u32 at, u32x2 x)
{
    asm volatile("st.shared.v2.b32 [%0], {%1, %2};" : : "r"(at), "r"(x.x), "r"(x.y) : "memory");
}
__device__ __forceinline__ void store_shared_x4(u32 at, u32x4 x)
{
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" : : "r"(at), "r"(x.x), "r"(x.y), "r"(x.z), "r"(x.w) : "memory");
}
__device__ __forceinline__ void store_shared_f32x4(u32 at, f32x4 x)
{
    asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" : : "r"(at), "f"(x.x), "f"(x.y), "f"(x.z), "f"(x.w) : "memory");
}
__device__ __forceinline__ double load_shared_f64(u32 at)
{
    double x;
    asm volatile("ld.shared.f64 %0, [%1];" : "=d"(x) : "r"(at) : "memory");
    return x;
}
__device__ __forceinline__ void store_shared_f64(u32 at, double x) { asm volatile("st.shared.f64 [%0], %1;" : : "r"(at), "d"(x) : "memory"); }
__device__ __forceinline__ u32 atomic_add_shared(u32 at, u32 x)
{
    u32 old;
    asm volatile("atom.shared.add.u32 %0, [%1], %2;" : "=r"(old) : "r"(at), "r"(x) : "memory");
    return old;
}

// -- matrix fragments ---------------------------------------------------------------------------------------------------------------
// Four 8 x 8 matrices of 16-bit elements; lane l gives the address of row l % 8 of matrix l / 8. Plain: lane l receives elements 2(l % 4), +1 of row l / 4.
__device__ __forceinline__ u32x4 ldmatrix_x4(u32 row)
{
    u32x4 m;
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(m.x), "=r"(m.y), "=r"(m.z), "=r"(m.w) : "r"(row) : "memory");
    return m;
}
__device__ __forceinline__ u32x4 ldmatrix_x4_trans(u32 row)
{
    u32x4 m;
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(m.x), "=r"(m.y), "=r"(m.z), "=r"(m.w) : "r"(row) : "memory");
    return m;
}

// c += a·b, 16 x 8 x 16, float32 accumulators. a: 4 registers of row pairs, b: 2 registers, c: rows l / 4 and + 8, columns 2(l % 4), + 1.
__device__ __forceinline__ void mma_bf16(f32x4& c, u32x4 a, u32x2 b)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c.x), "+f"(c.y), "+f"(c.z), "+f"(c.w) : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b.x), "r"(b.y));
}
// The same with nothing to add to.
__device__ __forceinline__ f32x4 mma_bf16_product(u32x4 a, u32x2 b)
{
    f32x4 c;
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %10, %10, %10};"
        : "=f"(c.x), "=f"(c.y), "=f"(c.z), "=f"(c.w) : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b.x), "r"(b.y), "f"(0.0f));
    return c;
}
__device__ __forceinline__ void mma_f16(f32x4& c, u32x4 a, u32x2 b)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c.x), "+f"(c.y), "+f"(c.z), "+f"(c.w) : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b.x), "r"(b.y));
}

// -- asynchronous copies, global to shared ---------------------------------------------------------------------------------------------
// Copies the first `bytes` (0 to 16) and fills the rest with zeros; both addresses are multiples of 16.
__device__ __forceinline__ void cp_async_16(u32 to, const void* from, u32 bytes)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" : : "r"(to), "l"(from), "r"(bytes) : "memory");
}
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" : : : "memory"); }
// Waits until all but the latest `Pending` groups of this thread have arrived; other threads' data still need a barrier.
template <i32 Pending> __device__ __forceinline__ void cp_async_wait() { asm volatile("cp.async.wait_group %0;" : : "n"(Pending) : "memory"); }

// -- barriers ------------------------------------------------------------------------------------------------------------------------
// A barrier of `threads` threads (whole warps); ids 1 to 15, 0 is __syncthreads.
__device__ __forceinline__ void named_barrier(u32 id, u32 threads) { asm volatile("bar.sync %0, %1;" : : "r"(id), "r"(threads) : "memory"); }

// -- branches ----------------------------------------------------------------------------------------------------------------------------
// No instruction: says that what is done where a condition holds stays behind a branch, instead of being done always and chosen from.
__device__ __forceinline__ void keep_branch() { asm volatile(""); }
// No order of memory: ptxas moves no load across it.
__device__ __forceinline__ void keep_place() { __syncwarp(); }

// -- approximate functions ------------------------------------------------------------------------------------------------------------
__device__ __forceinline__ float exp2_approx(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
__device__ __forceinline__ float log2_approx(float x)
{
    float y;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
__device__ __forceinline__ float reciprocal_approx(float x)
{
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
__device__ __forceinline__ float tanh_approx(float x)
{
    float y;
    asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// -- global memory: streaming loads and stores of 16 bytes, integer atomics, the fence between a producer's stores and its counter -------
__device__ __forceinline__ u32x4 load_streaming(const void* from)
{
    u32x4 x;
    asm volatile("ld.global.nc.L1::no_allocate.v4.b32 {%0, %1, %2, %3}, [%4];" : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w) : "l"(from));
    return x;
}
// Asks for the 128 bytes at an address to be brought into the L2 cache.
__device__ __forceinline__ void prefetch_l2(const void* from) { asm volatile("prefetch.global.L2 [%0];" : : "l"(from)); }
__device__ __forceinline__ void store_streaming(void* to, u32x4 x)
{
    asm volatile("st.global.cs.v4.b32 [%0], {%1, %2, %3, %4};" : : "l"(to), "r"(x.x), "r"(x.y), "r"(x.z), "r"(x.w) : "memory");
}
__device__ __forceinline__ u32 atomic_add_global(u32* at, u32 x)
{
    u32 old;
    asm volatile("atom.global.add.u32 %0, [%1], %2;" : "=r"(old) : "l"(at), "r"(x) : "memory");
    return old;
}
__device__ __forceinline__ u64 atomic_max_global(u64* at, u64 x)
{
    u64 old;
    asm volatile("atom.global.max.u64 %0, [%1], %2;" : "=l"(old) : "l"(at), "l"(x) : "memory");
    return old;
}
// Adds with acquire and release at device scope: stores made before by this thread (and, after a barrier, by its block) are seen by whoever reads a later count.
__device__ __forceinline__ u32 atomic_add_acq_rel(u32* at, u32 x)
{
    u32 old;
    asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], %2;" : "=r"(old) : "l"(at), "r"(x) : "memory");
    return old;
}

#endif
