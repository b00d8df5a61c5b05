// Float32 as sums of bfloat16, so that tensor cores multiply them.
#pragma once
#include "ptx.cuh"

// x = high + low, each of 8 bits, to 2^-17 of x.
struct SplitPair { u32 high, low; };
__device__ __forceinline__ SplitPair split_bf16(float x, float y)
{
    u32 high = pack_bf16(x, y);
    return {high, pack_bf16(x - __uint_as_float(high << 16), y - __uint_as_float(high & 0xffff0000))};
}

// x as the exact sum of three bf16, of 8 bits each.
struct SplitTriple { u32 parts[3]; };
__device__ __forceinline__ SplitTriple split_bf16_exactly(float x, float y)
{
    SplitTriple split;
#pragma unroll
    for (i32 i = 0; i < 3; i++)
    {
        split.parts[i] = pack_bf16(x, y);
        x -= __uint_as_float(split.parts[i] << 16);
        y -= __uint_as_float(split.parts[i] & 0xffff0000);
    }
    return split;
}
__device__ __forceinline__ SplitTriple load_split(u32 at)
{
    u32x2 pair = load_shared_x2(at);
    return split_bf16_exactly(__uint_as_float(pair.x), __uint_as_float(pair.y));
}
