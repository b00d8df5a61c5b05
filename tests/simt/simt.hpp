// What the CUDA compiler supplies without an include, for sources compiled as C++ and run by the emulator: qualifiers, built-in variables, barriers,
// warp collectives, bit and float intrinsics. Force-included (-include simt.hpp) before any source of cuda/. The functions declared extern "C" are the
// runtime's; none of them is instrumented.
#pragma once
#include <cmath>

#if !defined(__x86_64__) || !defined(__GNUC__)
#error "The emulator's fibers are written for x86-64 and g++; build it on such a machine."
#endif

#define COMPACTOR_SIMT 1
#define __device__
#define __host__
#define __global__
#define __constant__ static const
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) alignas(n)

struct SimtIndex { unsigned x, y, z; };

extern "C" {
// Constant for a thread, so the compiler may ask once.
__attribute__((const)) SimtIndex simt_thread_index();
__attribute__((const)) SimtIndex simt_block_index();
__attribute__((const)) SimtIndex simt_block_dim();
__attribute__((const)) SimtIndex simt_grid_dim();

void simt_sync_threads();
void simt_named_barrier(unsigned id, unsigned threads);
void simt_sync_warp(unsigned mask);
enum SimtShuffle { simt_shuffle_index, simt_shuffle_up, simt_shuffle_down, simt_shuffle_xor };
unsigned long long simt_shuffle(SimtShuffle how, unsigned mask, unsigned long long value, unsigned operand, unsigned width);
enum SimtVote { simt_vote_ballot, simt_vote_any, simt_vote_all };
unsigned simt_vote(SimtVote how, unsigned mask, int predicate);
enum SimtReduce { simt_reduce_add, simt_reduce_min, simt_reduce_max, simt_reduce_and, simt_reduce_or, simt_reduce_xor };
unsigned simt_reduce(SimtReduce how, unsigned mask, unsigned value);
__attribute__((const)) float simt_rsqrt(float x);
}

#define threadIdx (simt_thread_index())
#define blockIdx (simt_block_index())
#define blockDim (simt_block_dim())
#define gridDim (simt_grid_dim())
#define warpSize 32

static inline void __syncthreads() { simt_sync_threads(); }
static inline void __syncwarp(unsigned mask = 0xffffffffu) { simt_sync_warp(mask); }

namespace simt {
// A value of up to 8 bytes as the 64 bits a shuffle moves.
template <class T> inline T shuffle(SimtShuffle how, unsigned mask, T value, unsigned operand, int width)
{
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "shuffles move 4 or 8 bytes");
    unsigned long long bits = 0;
    __builtin_memcpy(&bits, &value, sizeof(T));
    bits = simt_shuffle(how, mask, bits, operand, (unsigned)width);
    __builtin_memcpy(&value, &bits, sizeof(T));
    return value;
}
}
template <class T> inline T __shfl_sync(unsigned mask, T value, int lane, int width = 32) { return simt::shuffle(simt_shuffle_index, mask, value, (unsigned)lane, width); }
template <class T> inline T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) { return simt::shuffle(simt_shuffle_up, mask, value, delta, width); }
template <class T> inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) { return simt::shuffle(simt_shuffle_down, mask, value, delta, width); }
template <class T> inline T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32) { return simt::shuffle(simt_shuffle_xor, mask, value, (unsigned)lanes, width); }

static inline unsigned __ballot_sync(unsigned mask, int predicate) { return simt_vote(simt_vote_ballot, mask, predicate); }
static inline int __any_sync(unsigned mask, int predicate) { return (int)simt_vote(simt_vote_any, mask, predicate); }
static inline int __all_sync(unsigned mask, int predicate) { return (int)simt_vote(simt_vote_all, mask, predicate); }
static inline unsigned __reduce_add_sync(unsigned mask, unsigned value) { return simt_reduce(simt_reduce_add, mask, value); }
static inline unsigned __reduce_min_sync(unsigned mask, unsigned value) { return simt_reduce(simt_reduce_min, mask, value); }
static inline unsigned __reduce_max_sync(unsigned mask, unsigned value) { return simt_reduce(simt_reduce_max, mask, value); }
static inline unsigned __reduce_and_sync(unsigned mask, unsigned value) { return simt_reduce(simt_reduce_and, mask, value); }
static inline unsigned __reduce_or_sync(unsigned mask, unsigned value) { return simt_reduce(simt_reduce_or, mask, value); }
static inline unsigned __reduce_xor_sync(unsigned mask, unsigned value) { return simt_reduce(simt_reduce_xor, mask, value); }

static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
static inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz((unsigned)x); }
static inline int __clzll(long long x) { return x == 0 ? 64 : __builtin_clzll((unsigned long long)x); }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline int __ffsll(long long x) { return __builtin_ffsll(x); }
static inline unsigned __brev(unsigned x)
{
    x = ((x >> 1) & 0x55555555u) | ((x & 0x55555555u) << 1);
    x = ((x >> 2) & 0x33333333u) | ((x & 0x33333333u) << 2);
    x = ((x >> 4) & 0x0f0f0f0fu) | ((x & 0x0f0f0f0fu) << 4);
    return __builtin_bswap32(x);
}
static inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)(((unsigned long long)a * b) >> 32); }
template <class To, class From> inline To simt_bit_cast(From x)
{
    static_assert(sizeof(To) == sizeof(From), "sizes differ");
    To y;
    __builtin_memcpy(&y, &x, sizeof(To));
    return y;
}
static inline unsigned __float_as_uint(float x) { return simt_bit_cast<unsigned>(x); }
static inline int __float_as_int(float x) { return simt_bit_cast<int>(x); }
static inline float __uint_as_float(unsigned x) { return simt_bit_cast<float>(x); }
static inline float __int_as_float(int x) { return simt_bit_cast<float>(x); }
static inline unsigned long long __double_as_longlong(double x) { return simt_bit_cast<unsigned long long>(x); }
static inline double __longlong_as_double(long long x) { return simt_bit_cast<double>(x); }
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
static inline float rsqrtf(float x) { return simt_rsqrt(x); }
template <class T> inline T min(T a, T b) { return b < a ? b : a; }
template <class T> inline T max(T a, T b) { return a < b ? b : a; }
