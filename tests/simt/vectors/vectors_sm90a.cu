// Each wrapper of ptx_sm90a.cuh on recorded inputs (vectors_sm90a.txt), as in vectors.cu: one warpgroup.
// Launch: grid 1, 128 threads, shared bytes 16384 + 8.
#include "ptx_sm90a.cuh"

// Numbered as checks/vectors_sm90a.cpp numbers the names in vectors_sm90a.txt.
enum Wrapper { WGMMA_BF16, WGMMA_F16, BULK_COPY, MBARRIER_ARRIVE };

struct WrapperVectorsParams
{
    u64 inputs, outputs;   // u32 [128, input_words], [128, output_words]
    u64 scratch;           // not used
    i32 wrapper, input_words, output_words;
    i32 unused;
};

extern "C" __global__ void __launch_bounds__(128) wrapper_vectors_sm90a(const __grid_constant__ WrapperVectorsParams p)
{
    u32 thread = threadIdx.x, base = shared_base(), mbarrier = base + 16384;
    const u32* in = (const u32*)p.inputs + thread * (u32)p.input_words;
    u32* out = (u32*)p.outputs + thread * (u32)p.output_words;
    if (thread == 0) mbarrier_init(mbarrier, p.wrapper == MBARRIER_ARRIVE ? 128 : 1);
    fence_async_proxy();
    __syncthreads();
    switch (p.wrapper) {
    case WGMMA_BF16:
    case WGMMA_F16: {
        for (u32 i = 0; i < 16; i += 4) store_shared_x4(base + thread * 64 + i * 4, u32x4{in[i], in[i + 1], in[i + 2], in[i + 3]});
        // a's rows, of 64 bytes in 128: a thread has fragments of mma, rows l / 4 and + 8, elements 2(l % 4), + 1 and + 8, + 9 of two steps.
        for (u32 i = 0; i < 8; i++) {
            u32 row = thread / 32 * 16 + thread % 32 / 4 + i % 2 * 8, unit = i / 2;
            store_shared(base + 8192 + row * 128 + ((unit ^ (row & 7)) << 4) + thread % 4 * 4, in[16 + i]);
        }
        fence_async_proxy();
        __syncthreads();
        u64 rotated = (u64)1 << 62 | (u64)(1024 >> 4) << 32 | (u64)1 << 16, a = rotated | ((base + 8192) & 0x3ffff) >> 4, b = rotated | (base & 0x3ffff) >> 4;
        f32x4 c[8];
        for (u32 n = 0; n < 8; n++) c[n] = {0, 0, 0, 0};
        wgmma_fence();
        if (p.wrapper == WGMMA_BF16) {
            wgmma_bf16<false>(c, a, b);
            wgmma_bf16<true>(c, a + 2, b + 2);
        } else {
            wgmma_f16<false>(c, a, b);
            wgmma_f16<true>(c, a + 2, b + 2);
        }
        wgmma_commit();
        wgmma_wait(c);
        for (u32 n = 0; n < 8; n++) {
            out[4 * n] = __float_as_uint(c[n].x), out[4 * n + 1] = __float_as_uint(c[n].y);
            out[4 * n + 2] = __float_as_uint(c[n].z), out[4 * n + 3] = __float_as_uint(c[n].w);
        }
        break;
    }
    case BULK_COPY: {
        if (thread == 0) {
            mbarrier_arrive_expect(mbarrier, 2048);
            bulk_copy(base, (const void*)p.inputs, 2048, mbarrier);
        }
        while (!mbarrier_try_wait(mbarrier, 0))
            ;
        u32x4 x = load_shared_x4(base + (thread + 1) % 128 * 16);
        out[0] = x.x, out[1] = x.y, out[2] = x.z, out[3] = x.w;
        break;
    }
    case MBARRIER_ARRIVE:
        store_shared(base + thread * 4, in[0]);
        mbarrier_arrive(mbarrier);
        while (!mbarrier_try_wait(mbarrier, 0))
            ;
        out[0] = load_shared(base + (thread + 1) % 128 * 4);
        break;
    }
}
