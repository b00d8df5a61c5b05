// Faults in the use of mbarriers, bulk copies and wgmma, as in faults.cu.
#include "ptx_sm90a.cuh"

struct FaultParams
{
    u64 data, more, counter;
    i32 fault, count;
};

__device__ __forceinline__ void wait(u32 at, u32 parity)
{
    while (!mbarrier_try_wait(at, parity))
        ;
}

// Each warp brings its 32 x 16 bytes by bulk copies, twice, and all read them. 1: nobody waits. 2: waits for the phase before. 3: half of the bytes expected. 4: more bytes
// expected than come. 5: source not aligned. 6: 8 bytes. 7: source past its end. 8: no fence behind the making of the mbarriers. 9: the last copy is left on its way.
// 10: the next copy starts before all have read. 11: another warp, which has not waited, reads. 12: the mbarrier is overwritten. 13: stores to the place before, without a fence.
// 14: arrives twice. 15: shared address past the end. 16: no mbarrier there. 17: a parity of 2. 18: the mbarriers are made and used with no barrier between.
extern "C" __global__ void bring(const __grid_constant__ FaultParams p)
{
    u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32, base = shared_base(), at = base + threadIdx.x * 16, ready = base + blockDim.x * 16 + warp * 8;
    if (p.fault == 13) store_shared(at, 1);
    if (threadIdx.x == 0) {
        for (u32 w = 0; w < blockDim.x / 32; w++) mbarrier_init(base + blockDim.x * 16 + w * 8, 1);
        if (p.fault != 8) fence_async_proxy();
    }
    if (p.fault != 18) __syncthreads();
    u32 sum = 0;
    for (u32 round = 0; round < 2; round++) {
        const u8* from = (const u8*)p.data + (blockIdx.x * blockDim.x + threadIdx.x) * 16;
        if (p.fault == 5) from += 8;
        if (p.fault == 7) from = (const u8*)p.data + p.count * 4;
        if (lane == 0) mbarrier_arrive_expect(ready, p.fault == 3 ? 256 : p.fault == 4 ? 1024 : 512);
        if (lane == 0 && p.fault == 14) mbarrier_arrive(ready);
        if (p.fault != 10) __syncwarp();
        bulk_copy(p.fault == 15 ? at + 4096 : at, from, p.fault == 6 ? 8 : 16, p.fault == 16 ? ready + 128 : ready);
        if (p.fault == 12 && lane == 5) store_shared(ready, 0);
        if (p.fault == 9 && round == 1) return;
        if (p.fault == 17) wait(ready, 2);
        if (p.fault != 1 && p.fault != 11) wait(ready, p.fault == 2 ? round ^ 1 : round);
        if (p.fault == 11 && warp == 0) wait(ready, round);
        if (p.fault == 11 && warp != 0) {
            sum += load_shared(base + lane * 16);
            wait(ready, round);
        } else sum += load_shared(base + warp * 512 + (lane ^ 1) * 16);
        if (p.fault != 10) __syncwarp();
    }
    ((u32*)p.more)[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}

// The two halves of a block hand data over by an mbarrier of a count. 1: the count is one too many. 2: it is one too few. 3: the reader does not wait. 4: one thread arrives before it stores.
extern "C" __global__ void hand_over_counted(const __grid_constant__ FaultParams p)
{
    u32 half = blockDim.x / 2, filled = shared_base() + blockDim.x * 16;
    if (threadIdx.x == 0) mbarrier_init(filled, half + (p.fault == 1) - (p.fault == 2));
    __syncthreads();
    if (threadIdx.x < half) {
        if (p.fault == 4 && threadIdx.x == 3) mbarrier_arrive(filled);
        store_shared(shared_base() + threadIdx.x * 4, threadIdx.x);
        if (p.fault != 4 || threadIdx.x != 3) mbarrier_arrive(filled);
    } else {
        if (p.fault != 3) wait(filled, 0);
        ((u32*)p.data)[blockIdx.x * half + threadIdx.x - half] = load_shared(shared_base() + (threadIdx.x - half) * 4);
    }
}

// A warpgroup multiplies 64 x 64 x 16, keys of ones by themselves. 1: no proxy fence behind the stores. 2: no wgmma_fence. 3: never waited for. 4: never committed. 5: accumulators are written while it is under way.
// 6: a key is overwritten while it is under way. 7: warps disagree on the descriptor. 8: lanes disagree. 9: a key never stored. 10: keys begin at 128. 11: one warp multiplies once more.
// 12: no barrier between the stores and the products. 13: stores to the keys after the own wait, with no barrier. 14: waits for all but one group. 15: another swizzle.
extern "C" __global__ void multiply_group(const __grid_constant__ FaultParams p)
{
    u32 warp = threadIdx.x / 32, base = shared_base();
    for (u32 i = threadIdx.x; i < 64 * 4; i += blockDim.x) {
        u32 row = i / 4, unit = i % 4;
        if (p.fault != 9 || i != 33 * 4 + 1) store_shared_x4(base + row * 128 + ((unit ^ (row & 7)) << 4), u32x4{0x3f803f80, 0x3f803f80, 0x3f803f80, 0x3f803f80});
    }
    if (p.fault != 1) fence_async_proxy();
    if (p.fault != 12) __syncthreads();
    f32x4 c[8];
    for (u32 n = 0; n < 8; n++) c[n] = {0, 0, 0, 0};
    u32 start = base + (p.fault == 10 ? 128 : 0) + ((p.fault == 7 && warp == 1) || (p.fault == 8 && threadIdx.x == 40) ? 32 : 0);
    u64 keys = (u64)(p.fault == 15 ? 2 : 1) << 62 | (u64)64 << 32 | (u64)1 << 16 | start >> 4;
    if (p.fault != 2) wgmma_fence();
    for (u32 i = 0; i < (p.fault == 11 && warp == 2 ? 2 : 1); i++) wgmma_bf16<true>(c, keys, keys);
    if (p.fault != 4) wgmma_commit();
    if (p.fault == 5 && threadIdx.x == 9) c[3].y = 1;
    if (p.fault == 6 && threadIdx.x == 0) store_shared(base, 5);
    if (p.fault == 14) wgmma_wait_but<1>();
    else if (p.fault != 3) wgmma_wait(c);
    if (p.fault == 13) store_shared_x4(base + (threadIdx.x / 2 * 128 + (((threadIdx.x & 1) ^ (threadIdx.x / 2 & 7)) << 4)), u32x4{0, 0, 0, 0});
    ((f32x4*)p.more)[blockIdx.x * blockDim.x + threadIdx.x] = c[1];
}
