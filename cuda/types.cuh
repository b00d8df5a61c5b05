// Integers of fixed width, the element types of a KV cache, and how they become float32 and back. Nothing of a CUDA toolkit is included.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef int i32;
typedef long long i64;

struct f32 { float value; };    // IEEE 754 binary32
struct f16 { u16 bits; };       // IEEE 754 binary16
struct bf16 { u16 bits; };      // the upper half of a binary32

// What COMPACTOR_ELEMENT may be, as numbered in ElementType.cs.
#define COMPACTOR_F32 0
#define COMPACTOR_F16 1
#define COMPACTOR_BF16 2

struct alignas(8) u32x2 { u32 x, y; };
struct alignas(16) u32x4 { u32 x, y, z, w; };
struct alignas(8) f32x2 { float x, y; };
struct alignas(16) f32x4 { float x, y, z, w; };

__device__ __forceinline__ constexpr i32 ceil_div(i32 a, i32 b) { return (a + b - 1) / b; }
__device__ __forceinline__ constexpr i32 round_up(i32 a, i32 b) { return ceil_div(a, b) * b; }
