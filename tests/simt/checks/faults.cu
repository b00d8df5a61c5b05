// Small kernels, each with one fault the emulator must report, and beside it the same kernel without. FAULT is the fault's number, 0 for none.
#include "ptx.cuh"

struct FaultParams
{
    u64 data, more, counter;
    i32 fault, count;
};

__device__ __forceinline__ u32 slot(u32 thread) { return shared_base() + thread * 4; }

// Neighbours exchange through shared memory. 1: no barrier before the read. 2: no barrier before the next round's write. 3: reads a slot nobody wrote.
extern "C" __global__ void exchange(const __grid_constant__ FaultParams p)
{
    u32 sum = 0;
    for (u32 round = 0; round < 2; round++) {
        if (p.fault != 3 || threadIdx.x != 5) store_shared(slot(threadIdx.x), threadIdx.x + round);
        if (p.fault != 1) __syncthreads();
        sum += load_shared(slot((threadIdx.x + 1) % blockDim.x));
        if (p.fault != 2) __syncthreads();
    }
    ((u32*)p.data)[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}

// The same inside warps. 1: no __syncwarp before the read. 2: a shuffle in its place, which orders nothing.
extern "C" __global__ void exchange_warp(const __grid_constant__ FaultParams p)
{
    u32 neighbour = threadIdx.x / 32 * 32 + (threadIdx.x + 1) % 32;
    store_shared(slot(threadIdx.x), threadIdx.x);
    if (p.fault == 2) (void)__shfl_xor_sync(0xffffffffu, threadIdx.x, 1);
    else if (p.fault != 1) __syncwarp();
    ((u32*)p.data)[blockIdx.x * blockDim.x + threadIdx.x] = load_shared(slot(neighbour));
}

// Two halves of the block pass data by named barriers. 1: the halves use different barriers. 2: the reader counts wrong. 3: the writer's half only syncs itself.
extern "C" __global__ void hand_over(const __grid_constant__ FaultParams p)
{
    u32 half = blockDim.x / 2;
    if (threadIdx.x < half) {
        store_shared(slot(threadIdx.x), threadIdx.x);
        if (p.fault == 3) named_barrier(1, half);
        else named_barrier(1, blockDim.x);
    } else {
        if (p.fault == 3) named_barrier(2, half);
        else named_barrier(p.fault == 1 ? 2 : 1, p.fault == 2 ? half : blockDim.x);
        ((u32*)p.data)[blockIdx.x * half + threadIdx.x - half] = load_shared(slot(threadIdx.x - half));
    }
}

// 1: some threads skip the barrier by leaving. 2: half a warp meets the barrier, the other half a shuffle. 3: some skip it and go on.
extern "C" __global__ void diverge(const __grid_constant__ FaultParams p)
{
    if (p.fault == 1 && threadIdx.x >= 40) return;
    if (p.fault == 2 && threadIdx.x % 32 >= 16) (void)__shfl_sync(0xffffffffu, 1, 0);
    else if (p.fault != 3 || threadIdx.x != 7) __syncthreads();
    ((u32*)p.data)[blockIdx.x * blockDim.x + threadIdx.x] = 1;
}

// 1: lanes differ in their mask. 2: the mask does not name the caller. 3: one lane votes while others reduce. 4: a lane has left. 5: reads a lane outside the mask.
// 6: different shuffles meet. 7: width 5.
extern "C" __global__ void collect(const __grid_constant__ FaultParams p)
{
    u32 lane = threadIdx.x % 32, sum = 0;
    if (p.fault == 4 && lane == 9) return;
    if (p.fault == 5) { if (lane < 16) sum = __shfl_sync(0xffffu, lane, 20); }
    else if (p.fault == 6 && lane == 3) sum = __shfl_down_sync(0xffffffffu, lane, 1);
    else if (p.fault == 3 && lane == 3) sum = __ballot_sync(0xffffffffu, 1);
    else if (p.fault == 3) sum = __reduce_add_sync(0xffffffffu, 1);
    else sum = __shfl_xor_sync(p.fault == 1 && lane == 3 ? 0xffu : p.fault == 2 && lane == 3 ? 0xfffffff7u : 0xffffffffu, lane, 1, p.fault == 7 ? 5 : 32);
    if (lane < 16) sum += __reduce_max_sync(0xffffu, lane);
    else sum += __reduce_min_sync(0xffff0000u, lane);
    ((u32*)p.data)[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}

// A copy of 16 bytes a thread through shared memory. 1: never committed. 2: committed, not waited for. 3: waits, but no barrier before another thread's data are read.
// 4: waits for all but one of one group. 5: source not aligned. 6: source past its end. 7: overwrites the destination in flight.
extern "C" __global__ void copy_async(const __grid_constant__ FaultParams p)
{
    u32 at = shared_base() + threadIdx.x * 16;
    const u8* from = (const u8*)p.data + threadIdx.x * 16 + (p.fault == 5 ? 4 : 0) + (p.fault == 6 ? p.count * 4 : 0);
    cp_async_16(at, from, 16);
    if (p.fault != 1) cp_async_commit();
    if (p.fault == 7) store_shared(at, 0);
    if (p.fault == 4) cp_async_wait<1>();
    else if (p.fault != 2) cp_async_wait<0>();
    if (p.fault != 3) __syncthreads();
    store_streaming((u8*)p.more + threadIdx.x * 16, load_shared_x4(shared_base() + (threadIdx.x ^ 1) * 16));
}

// Global memory. 1: read past the end. 2: write before the start. 3: misaligned float. 4: misaligned 16 bytes. 5: null. 6: shared memory past the end. 7: misaligned shared.
// 8: misaligned vector, read by a plain load.
extern "C" __global__ void reach(const __grid_constant__ FaultParams p)
{
    u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    bool chosen = i == 37;
    const float* from = (const float*)p.data + i;
    float* to = (float*)p.more + i;
    if (chosen && p.fault == 1) from = (const float*)p.data + p.count;
    if (chosen && p.fault == 2) to = (float*)p.more - 1;
    if (chosen && p.fault == 3) from = (const float*)((const u8*)from + 2);
    if (chosen && p.fault == 4) (void)load_streaming((const u8*)p.data + 8);
    if (chosen && p.fault == 5) to = nullptr;
    if (chosen && p.fault == 8) *(u32x4*)((u8*)p.more + 2048) = *(const u32x4*)((const u8*)p.data + 8);
    if (p.fault == 6) store_shared(slot(threadIdx.x + (chosen ? 4 * blockDim.x : 0)), 0);
    if (p.fault == 7) store_shared(slot(threadIdx.x) + (chosen ? 2 : 0), 0);
    *to = *from;
}

// Blocks add up: each stores its part, the last to count itself sums all. 1: counts without acquire and release. 2: no barrier before the count.
// 3: no barrier after the count, so other threads of the last block read unordered. 4: every block sums, not only the last.
extern "C" __global__ void sum_blocks(const __grid_constant__ FaultParams p)
{
    u32* parts = (u32*)p.data;
    parts[blockIdx.x * blockDim.x + threadIdx.x] = blockIdx.x + threadIdx.x;
    if (p.fault != 2) __syncthreads();
    if (threadIdx.x == 0) {
        u32 before = p.fault == 1 ? atomic_add_global((u32*)p.counter, 1) : atomic_add_acq_rel((u32*)p.counter, 1);
        store_shared(shared_base(), before);
    }
    if (p.fault != 3) __syncthreads();
    u32 last = p.fault == 3 ? gridDim.x - 1 : load_shared(shared_base());
    if (last != gridDim.x - 1 && p.fault != 4) return;
    u32 sum = 0;
    for (u32 b = 0; b < gridDim.x; b++) sum += parts[b * blockDim.x + threadIdx.x];
    if (p.fault != 4) ((u32*)p.more)[threadIdx.x] = sum;
}

// Blocks write their own rows. 1: neighbouring blocks share a row. 2: threads share an element. 3: bytes of one word (no fault: 16-bit elements). 4: reads by the
// non-coherent path what another thread wrote. 5: a plain store to a word others count on atomically.
extern "C" __global__ void write_rows(const __grid_constant__ FaultParams p)
{
    u32 row = p.fault == 1 ? blockIdx.x / 2 : blockIdx.x, column = p.fault == 2 ? threadIdx.x / 2 : threadIdx.x;
    ((u16*)p.data)[row * blockDim.x + column] = (u16)threadIdx.x;
    __syncthreads();
    if (p.fault == 4) store_streaming((u8*)p.more + (blockIdx.x * blockDim.x + threadIdx.x) * 16, load_streaming((const u16*)p.data + blockIdx.x * blockDim.x));
    (void)atomic_add_global((u32*)p.counter, 1);
    if (p.fault == 5 && blockIdx.x == 2 && threadIdx.x == 3) *(u32*)p.counter = 7;
}

// Matrix fragments need whole warps. 1: a row of ldmatrix not aligned to 16. 2: half a warp multiplies. 3: bf16 meets f16. 4: reads rows of ldmatrix not yet stored.
extern "C" __global__ void multiply(const __grid_constant__ FaultParams p)
{
    u32 lane = threadIdx.x % 32, at = shared_base() + threadIdx.x * 16;
    if (p.fault != 4 || lane != 8) store_shared_x4(at, u32x4{lane, 0, 0, 0});
    __syncwarp();
    u32x4 a = ldmatrix_x4(at + (p.fault == 1 && lane == 8 ? 8 : 0));
    f32x4 c = {0, 0, 0, 0};
    if (p.fault != 2 || lane < 16) {
        if (p.fault == 3 && lane == 4) mma_f16(c, a, u32x2{a.x, a.y});
        else mma_bf16(c, a, u32x2{a.x, a.y});
    }
    ((f32x4*)p.data)[blockIdx.x * blockDim.x + threadIdx.x] = c;
}
