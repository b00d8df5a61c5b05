// The element type COMPACTOR_ELEMENT: its size, how rows of it become float32, and which bit patterns are not finite.
#pragma once
#include "ptx.cuh"

#if COMPACTOR_ELEMENT == COMPACTOR_F32
using Element = f32;
#elif COMPACTOR_ELEMENT == COMPACTOR_F16
using Element = f16;
#else
using Element = bf16;
#endif

constexpr bool IS_F32 = COMPACTOR_ELEMENT == COMPACTOR_F32;
constexpr i32 ELEMENT_BYTES = sizeof(Element);
constexpr u32 FLOAT_EXPONENT = 0x7f800000;

__device__ __forceinline__ bool is_finite(float x) { return (__float_as_uint(x) & FLOAT_EXPONENT) != FLOAT_EXPONENT; }

// Whether 4 bytes of elements hold an infinity or a NaN: an exponent of ones carries into the sign's place.
__device__ __forceinline__ bool has_non_finite(u32 x)
{
    constexpr u32 exponents = IS_F32 ? FLOAT_EXPONENT : COMPACTOR_ELEMENT == COMPACTOR_F16 ? 0x7c007c00 : 0x7f807f80;
    constexpr u32 lowest = IS_F32 ? 0x00800000 : COMPACTOR_ELEMENT == COMPACTOR_F16 ? 0x04000400 : 0x00800080;
    return (((x & exponents) + lowest) & (IS_F32 ? 0x80000000 : 0x80008000)) != 0;
}
__device__ __forceinline__ bool has_non_finite(u32x4 x) { return has_non_finite(x.x) || has_non_finite(x.y) || has_non_finite(x.z) || has_non_finite(x.w); }

// Whether a row of D elements does.
__device__ inline bool row_has_non_finite(const u8* row)
{
    bool bad = false;
#pragma unroll 1
    for (i32 at = 0; at < COMPACTOR_HEAD_DIM * ELEMENT_BYTES; at += 4)
        bad |= has_non_finite(*(const u32*)(row + at));
    return bad;
}

// The two 16-bit elements of a register as float32.
__device__ __forceinline__ f32x2 unpack(u32 pair)
{
#if COMPACTOR_ELEMENT == COMPACTOR_F16
    return {to_f32(f16{(u16)pair}), to_f32(f16{(u16)(pair >> 16)})};
#else
    return {__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000)};
#endif
}
