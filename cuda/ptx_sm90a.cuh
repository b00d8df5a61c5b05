// PTX instructions that sm_90a alone has: matrix products of a warpgroup (four warps, the first a multiple of four), bulk copies and the barriers in shared
// memory that they report to, the fence between the two ways to shared memory. One instruction a wrapper, as in ptx.cuh.
#pragma once
#include "ptx.cuh"

#if defined(COMPACTOR_SIMT)
#include "simt_ptx_sm90a.hpp"
#else

// -- mbarriers: 8 bytes of shared memory that count arrivals, and bytes of bulk copies, of one phase after another ----------------------------------
__device__ __forceinline__ void mbarrier_init(u32 at, u32 arrivals)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" : : "r"(at), "r"(arrivals) : "memory");
}
__device__ __forceinline__ void mbarrier_arrive(u32 at)
{
    asm volatile("{\n.reg .b64 state;\nmbarrier.arrive.shared::cta.b64 state, [%0];\n}" : : "r"(at) : "memory");
}
// Arrives, and the phase also waits for `bytes` more of bulk copies.
__device__ __forceinline__ void mbarrier_arrive_expect(u32 at, u32 bytes)
{
    asm volatile("{\n.reg .b64 state;\nmbarrier.arrive.expect_tx.shared::cta.b64 state, [%0], %1;\n}" : : "r"(at), "r"(bytes) : "memory");
}
// Whether the phase of this parity is complete; may wait a while before it says no. A new barrier is in phase 0, and the one before it, of parity 1, complete.
__device__ __forceinline__ bool mbarrier_try_wait(u32 at, u32 parity)
{
    u32 complete;
    asm volatile("{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}" : "=r"(complete) : "r"(at), "r"(parity) : "memory");
    return complete != 0;
}

// -- the asynchronous proxy: how bulk copies and wgmma see shared memory ------------------------------------------------------------------------------
// This thread's earlier writes (stores, cp.async that were waited for, mbarrier_init) are seen by bulk copies and wgmma that are ordered after it.
__device__ __forceinline__ void fence_async_proxy() { asm volatile("fence.proxy.async.shared::cta;" : : : "memory"); }

// Copies a multiple of 16 bytes from global to shared memory, both at multiples of 16, and reports them to an mbarrier of the block.
__device__ __forceinline__ void bulk_copy(u32 to, const void* from, u32 bytes, u32 mbarrier)
{
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" : : "r"(to), "l"(from), "r"(bytes), "r"(mbarrier) : "memory");
}

// -- wgmma: c (+)= a·bᵀ, 64 x 8·TILES x 16, float32 accumulators ----------------------------------------------------------------------------------------
// Warp w of the warpgroup has rows 16·w to 16·w + 15, in registers as of mma: c[n] as the accumulators of columns 8·n to 8·n + 7.
// a and b are in shared memory as their descriptors say. Between the instruction and the wait for its group c is undefined, a and b must stay, and no register changes hands.
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" : : : "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" : : : "memory"); }

#define FLOATS_4(c, i) "+f"(c[i].x), "+f"(c[i].y), "+f"(c[i].z), "+f"(c[i].w)
#define FLOATS_32(c, i) FLOATS_4(c, i), FLOATS_4(c, i + 1), FLOATS_4(c, i + 2), FLOATS_4(c, i + 3), FLOATS_4(c, i + 4), FLOATS_4(c, i + 5), FLOATS_4(c, i + 6), FLOATS_4(c, i + 7)
#define FLOATS_64(c) FLOATS_32(c, 0), FLOATS_32(c, 8)
#define FLOATS_96(c) FLOATS_64(c), FLOATS_32(c, 16)
#define FLOATS_128(c) FLOATS_96(c), FLOATS_32(c, 24)
#define PLACES_32 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define PLACES_64 PLACES_32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define PLACES_96 PLACES_64 ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define PLACES_128 PLACES_96 ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define WGMMA(columns, type, places, a_place, b_place, accumulate_place, floats) \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " accumulate_place ", 0;\n" \
                 "wgmma.mma_async.sync.aligned.m64n" columns "k16.f32." type "." type " {" places "}, " a_place ", " b_place ", p, 1, 1, 0, 0;\n}" \
        : floats : "l"(a), "l"(b), "n"((i32)Accumulate))
#define WGMMA_OF(type) \
    if constexpr (TILES == 8) WGMMA("64", type, PLACES_32, "%32", "%33", "%34", FLOATS_32(c, 0)); \
    else if constexpr (TILES == 16) WGMMA("128", type, PLACES_64, "%64", "%65", "%66", FLOATS_64(c)); \
    else if constexpr (TILES == 24) WGMMA("192", type, PLACES_96, "%96", "%97", "%98", FLOATS_96(c)); \
    else WGMMA("256", type, PLACES_128, "%128", "%129", "%130", FLOATS_128(c))

template <bool Accumulate, i32 TILES> __device__ __forceinline__ void wgmma_bf16(f32x4 (&c)[TILES], u64 a, u64 b)
{
    static_assert(TILES == 8 || TILES == 16 || TILES == 24 || TILES == 32);
    WGMMA_OF("bf16");
}
template <bool Accumulate, i32 TILES> __device__ __forceinline__ void wgmma_f16(f32x4 (&c)[TILES], u64 a, u64 b)
{
    static_assert(TILES == 8 || TILES == 16 || TILES == 24 || TILES == 32);
    WGMMA_OF("f16");
}

// Waits until all but the latest `Pending` groups of this warp are done: what they read may change. c stays undefined.
template <i32 Pending> __device__ __forceinline__ void wgmma_wait_but() { asm volatile("wgmma.wait_group.sync.aligned %0;" : : "n"(Pending) : "memory"); }
// Waits until all groups of this warp are done: c, the accumulators of all of them, is defined again.
template <i32 TILES> __device__ __forceinline__ void wgmma_wait(f32x4 (&c)[TILES])
{
    if constexpr (TILES == 8)
        asm volatile("wgmma.wait_group.sync.aligned 0;" : FLOATS_32(c, 0) : : "memory");
    else if constexpr (TILES == 16)
        asm volatile("wgmma.wait_group.sync.aligned 0;" : FLOATS_64(c) : : "memory");
    else if constexpr (TILES == 24)
        asm volatile("wgmma.wait_group.sync.aligned 0;" : FLOATS_96(c) : : "memory");
    else
        asm volatile("wgmma.wait_group.sync.aligned 0;" : FLOATS_128(c) : : "memory");
}

#undef WGMMA_OF
#undef WGMMA
#undef PLACES_128
#undef PLACES_96
#undef PLACES_64
#undef PLACES_32
#undef FLOATS_128
#undef FLOATS_96
#undef FLOATS_64
#undef FLOATS_32
#undef FLOATS_4

#endif
