// The wrappers of cuda/ptx.cuh for the emulator: the same functions with the same arguments, each one call into the runtime.
// Included by ptx.cuh when COMPACTOR_SIMT is defined, after types.cuh.
#pragma once

extern "C" {
__attribute__((const)) float simt_f16_to_f32(u16 bits);
__attribute__((const)) u32 simt_pack_bf16(float low, float high);
__attribute__((const)) u32 simt_pack_f16(float low, float high);
__attribute__((const)) float simt_exp2_approx(float x);
__attribute__((const)) float simt_log2_approx(float x);
__attribute__((const)) float simt_reciprocal_approx(float x);
__attribute__((const)) float simt_tanh_approx(float x);

u32 simt_shared_base();
u16 simt_load_shared_u16(u32 at);
u32 simt_load_shared(u32 at);
u32x2 simt_load_shared_x2(u32 at);
u32x4 simt_load_shared_x4(u32 at);
void simt_store_shared_u16(u32 at, u16 x);
void simt_store_shared(u32 at, u32 x);
void simt_store_shared_x2(u32 at, u32x2 x);
void simt_store_shared_x4(u32 at, u32x4 x);
u32 simt_atomic_add_shared(u32 at, u32 x);

u32x4 simt_ldmatrix_x4(u32 row);
u32x4 simt_ldmatrix_x4_trans(u32 row);
f32x4 simt_mma_bf16(f32x4 c, u32x4 a, u32x2 b);
f32x4 simt_mma_f16(f32x4 c, u32x4 a, u32x2 b);

void simt_cp_async_16(u32 to, const void* from, u32 bytes);
void simt_cp_async_commit();
void simt_cp_async_wait(u32 pending);

u32x4 simt_load_streaming(const void* from);
void simt_store_streaming(void* to, u32x4 x);
u32 simt_atomic_add_global(u32* at, u32 x);
u64 simt_atomic_max_global(u64* at, u64 x);
u32 simt_atomic_add_acq_rel(u32* at, u32 x);
}

__device__ __forceinline__ float to_f32(f32 x) { return x.value; }
__device__ __forceinline__ float to_f32(bf16 x) { return __uint_as_float((u32)x.bits << 16); }
__device__ __forceinline__ float to_f32(f16 x) { return simt_f16_to_f32(x.bits); }
__device__ __forceinline__ u32 pack_bf16(float low, float high) { return simt_pack_bf16(low, high); }
__device__ __forceinline__ u32 pack_f16(float low, float high) { return simt_pack_f16(low, high); }

__device__ __forceinline__ u32 shared_base() { return simt_shared_base(); }
__device__ __forceinline__ u32 load_shared(u32 at) { return simt_load_shared(at); }
__device__ __forceinline__ float load_shared_f32(u32 at) { return __uint_as_float(simt_load_shared(at)); }
__device__ __forceinline__ u16 load_shared_u16(u32 at) { return simt_load_shared_u16(at); }
__device__ __forceinline__ u32x2 load_shared_x2(u32 at) { return simt_load_shared_x2(at); }
__device__ __forceinline__ u32x4 load_shared_x4(u32 at) { return simt_load_shared_x4(at); }
__device__ __forceinline__ f32x4 load_shared_f32x4(u32 at) { return simt_bit_cast<f32x4>(simt_load_shared_x4(at)); }
__device__ __forceinline__ void store_shared(u32 at, u32 x) { simt_store_shared(at, x); }
__device__ __forceinline__ void store_shared_f32(u32 at, float x) { simt_store_shared(at, __float_as_uint(x)); }
__device__ __forceinline__ void store_shared_u16(u32 at, u16 x) { simt_store_shared_u16(at, x); }
__device__ __forceinline__ void store_shared_x2(u32 at, u32x2 x) { simt_store_shared_x2(at, x); }
__device__ __forceinline__ void store_shared_x4(u32 at, u32x4 x) { simt_store_shared_x4(at, x); }
__device__ __forceinline__ void store_shared_f32x4(u32 at, f32x4 x) { simt_store_shared_x4(at, simt_bit_cast<u32x4>(x)); }
__device__ __forceinline__ double load_shared_f64(u32 at) { return simt_bit_cast<double>(simt_load_shared_x2(at)); }
__device__ __forceinline__ void store_shared_f64(u32 at, double x) { simt_store_shared_x2(at, simt_bit_cast<u32x2>(x)); }
__device__ __forceinline__ u32 atomic_add_shared(u32 at, u32 x) { return simt_atomic_add_shared(at, x); }
__device__ __forceinline__ void named_barrier(u32 id, u32 threads) { simt_named_barrier(id, threads); }

__device__ __forceinline__ void keep_branch() {}
__device__ __forceinline__ void keep_place() {}

__device__ __forceinline__ u32x4 ldmatrix_x4(u32 row) { return simt_ldmatrix_x4(row); }
__device__ __forceinline__ u32x4 ldmatrix_x4_trans(u32 row) { return simt_ldmatrix_x4_trans(row); }
__device__ __forceinline__ void mma_bf16(f32x4& c, u32x4 a, u32x2 b) { c = simt_mma_bf16(c, a, b); }
__device__ __forceinline__ f32x4 mma_bf16_product(u32x4 a, u32x2 b) { return simt_mma_bf16({0, 0, 0, 0}, a, b); }
__device__ __forceinline__ void mma_f16(f32x4& c, u32x4 a, u32x2 b) { c = simt_mma_f16(c, a, b); }

__device__ __forceinline__ void cp_async_16(u32 to, const void* from, u32 bytes) { simt_cp_async_16(to, from, bytes); }
__device__ __forceinline__ void cp_async_commit() { simt_cp_async_commit(); }
template <i32 Pending> __device__ __forceinline__ void cp_async_wait() { simt_cp_async_wait((u32)Pending); }

__device__ __forceinline__ float exp2_approx(float x) { return simt_exp2_approx(x); }
__device__ __forceinline__ float log2_approx(float x) { return simt_log2_approx(x); }
__device__ __forceinline__ float reciprocal_approx(float x) { return simt_reciprocal_approx(x); }
__device__ __forceinline__ float tanh_approx(float x) { return simt_tanh_approx(x); }

__device__ __forceinline__ u32x4 load_streaming(const void* from) { return simt_load_streaming(from); }
__device__ __forceinline__ void prefetch_l2(const void*) {}
__device__ __forceinline__ void store_streaming(void* to, u32x4 x) { simt_store_streaming(to, x); }
__device__ __forceinline__ u32 atomic_add_global(u32* at, u32 x) { return simt_atomic_add_global(at, x); }
__device__ __forceinline__ u64 atomic_max_global(u64* at, u64 x) { return simt_atomic_max_global(at, x); }
__device__ __forceinline__ u32 atomic_add_acq_rel(u32* at, u32 x) { return simt_atomic_add_acq_rel(at, x); }
