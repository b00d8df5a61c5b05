// The wrappers of cuda/ptx_sm90a.cuh for the emulator, included by it when COMPACTOR_SIMT is defined.
#pragma once

extern "C" {
void simt_mbarrier_init(u32 at, u32 arrivals);
void simt_mbarrier_arrive(u32 at, u32 bytes);
bool simt_mbarrier_try_wait(u32 at, u32 parity);
void simt_fence_async_proxy();
void simt_bulk_copy(u32 to, const void* from, u32 bytes, u32 mbarrier);

void simt_wgmma_fence();
void simt_wgmma(bool f16, f32x4* c, u32 tiles, u64 a, u64 b, bool accumulate);
void simt_wgmma_commit();
void simt_wgmma_wait(u32 pending);
}

__device__ __forceinline__ void mbarrier_init(u32 at, u32 arrivals) { simt_mbarrier_init(at, arrivals); }
__device__ __forceinline__ void mbarrier_arrive(u32 at) { simt_mbarrier_arrive(at, 0); }
__device__ __forceinline__ void mbarrier_arrive_expect(u32 at, u32 bytes) { simt_mbarrier_arrive(at, bytes); }
__device__ __forceinline__ bool mbarrier_try_wait(u32 at, u32 parity) { return simt_mbarrier_try_wait(at, parity); }
__device__ __forceinline__ void fence_async_proxy() { simt_fence_async_proxy(); }
__device__ __forceinline__ void bulk_copy(u32 to, const void* from, u32 bytes, u32 mbarrier) { simt_bulk_copy(to, from, bytes, mbarrier); }

__device__ __forceinline__ void wgmma_fence() { simt_wgmma_fence(); }
template <bool Accumulate, i32 TILES> __device__ __forceinline__ void wgmma_bf16(f32x4 (&c)[TILES], u64 a, u64 b) { simt_wgmma(false, c, (u32)TILES, a, b, Accumulate); }
template <bool Accumulate, i32 TILES> __device__ __forceinline__ void wgmma_f16(f32x4 (&c)[TILES], u64 a, u64 b) { simt_wgmma(true, c, (u32)TILES, a, b, Accumulate); }
__device__ __forceinline__ void wgmma_commit() { simt_wgmma_commit(); }
template <i32 Pending> __device__ __forceinline__ void wgmma_wait_but() { simt_wgmma_wait((u32)Pending); }
template <i32 TILES> __device__ __forceinline__ void wgmma_wait(f32x4 (&)[TILES]) { simt_wgmma_wait(0); }
