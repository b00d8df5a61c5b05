// Euclidean norms of values, the weights of attention scores: norms[t, h] = ||v[t, h]||, f32 [N, Hkv], squares summed in float32.
//
// value [N, Hkv, D] of any strides, packed or padded; a half warp a row. Bytes: D elements read, 4 written a pair. L8, 131072 tokens: 268 MB, 63 us at 4.3 TB/s.
// In flight an SM: 2048 threads with a load of 16 bytes each: 32 KB, what latency needs.
//
// value_norms   grid: ceil(N·Hkv / 16)   threads: 256   shared: 0   workspace: none
#include "element.cuh"
#include "tensor.cuh"

struct ValueNormsParams
{
    Tensor value;
    u64 starts;          // i32 [B+1]
    u64 norms;
    i32 sequences, heads;
};

constexpr i32 NORM_THREADS = 256, ROW_LANES = 16, UNIT = 16 / (i32)sizeof(Element);

extern "C" __global__ void __launch_bounds__(NORM_THREADS) value_norms(const __grid_constant__ ValueNormsParams p)
{
    const i32* starts = (const i32*)p.starts;
    i64 pair = (i64)blockIdx.x * (NORM_THREADS / ROW_LANES) + threadIdx.x / ROW_LANES;
    i32 token = (i32)(pair / p.heads), head = (i32)(pair - (i64)token * p.heads), lane = threadIdx.x % ROW_LANES;
    bool real = token < starts[p.sequences];
    float sum = 0;
    if (real)
    {
        i32 b = row_of(starts, p.sequences, token);
        const Element* row = (const Element*)(p.value.address + tensor_offset(p.value, b, starts[b], token - starts[b], head, sizeof(Element)));
        bool whole = ((u64)row & 15) == 0;
        for (i32 first = lane * UNIT; first < COMPACTOR_HEAD_DIM; first += ROW_LANES * UNIT)
        {
            union { u32x4 words; Element elements[UNIT]; } unit;
            if (whole)
                unit.words = load_streaming(row + first);
            else
                for (i32 i = 0; i < UNIT; i++)
                    unit.elements[i] = row[first + i];
#pragma unroll
            for (i32 i = 0; i < UNIT; i++)
                sum = fmaf(to_f32(unit.elements[i]), to_f32(unit.elements[i]), sum);
        }
    }
#pragma unroll
    for (i32 step = ROW_LANES / 2; step > 0; step /= 2)
        sum += __shfl_xor_sync(0xffffffff, sum, step);
    if (real && lane == 0)
        ((float*)p.norms)[pair] = sqrtf(sum);
}
