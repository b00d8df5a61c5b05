// Each wrapper of ptx.cuh on recorded inputs (vectors.txt). One warp; lane l reads its inputs at inputs[l * input_words] and writes its outputs the same way.
// Launch: grid 1, 32 threads, shared bytes 512.
#include "ptx.cuh"

// Numbered as checks/vectors.cpp numbers the names in vectors.txt.
enum Wrapper
{
    TO_F32_F16, TO_F32_BF16, PACK_BF16, PACK_F16, LDMATRIX, LDMATRIX_TRANS, MMA_BF16, MMA_F16, EXP2, LOG2, RECIPROCAL, TANH,
    SHARED_X4, SHARED_X2, SHARED_F64, SHARED_U16, STREAMING, CP_ASYNC, ATOMIC_ADD_SHARED, ATOMIC_ADD_GLOBAL, ATOMIC_ADD_ACQ_REL, ATOMIC_MAX_GLOBAL
};

struct WrapperVectorsParams
{
    u64 inputs, outputs;   // u32 [32, input_words], [32, output_words]
    u64 scratch;           // 512 bytes, zeros
    i32 wrapper, input_words, output_words;
    i32 unused;
};

extern "C" __global__ void __launch_bounds__(32) wrapper_vectors(const __grid_constant__ WrapperVectorsParams p)
{
    u32 lane = threadIdx.x, base = shared_base(), own = base + lane * 16;
    const u32* in = (const u32*)p.inputs + lane * (u32)p.input_words;
    u32* out = (u32*)p.outputs + lane * (u32)p.output_words;
    switch (p.wrapper) {
    case TO_F32_F16: out[0] = __float_as_uint(to_f32(f16{(u16)in[0]})); break;
    case TO_F32_BF16: out[0] = __float_as_uint(to_f32(bf16{(u16)in[0]})); break;
    case PACK_BF16: out[0] = pack_bf16(__uint_as_float(in[0]), __uint_as_float(in[1])); break;
    case PACK_F16: out[0] = pack_f16(__uint_as_float(in[0]), __uint_as_float(in[1])); break;
    case LDMATRIX:
    case LDMATRIX_TRANS: {
        store_shared_x4(own, u32x4{in[0], in[1], in[2], in[3]});
        __syncwarp();
        u32x4 m = p.wrapper == LDMATRIX ? ldmatrix_x4(own) : ldmatrix_x4_trans(own);
        out[0] = m.x, out[1] = m.y, out[2] = m.z, out[3] = m.w;
        break;
    }
    case MMA_BF16:
    case MMA_F16: {
        f32x4 c = {__uint_as_float(in[0]), __uint_as_float(in[1]), __uint_as_float(in[2]), __uint_as_float(in[3])};
        u32x4 a = {in[4], in[5], in[6], in[7]};
        u32x2 b = {in[8], in[9]};
        if (p.wrapper == MMA_BF16) mma_bf16(c, a, b);
        else mma_f16(c, a, b);
        out[0] = __float_as_uint(c.x), out[1] = __float_as_uint(c.y), out[2] = __float_as_uint(c.z), out[3] = __float_as_uint(c.w);
        break;
    }
    case EXP2: out[0] = __float_as_uint(exp2_approx(__uint_as_float(in[0]))); break;
    case LOG2: out[0] = __float_as_uint(log2_approx(__uint_as_float(in[0]))); break;
    case RECIPROCAL: out[0] = __float_as_uint(reciprocal_approx(__uint_as_float(in[0]))); break;
    case TANH: out[0] = __float_as_uint(tanh_approx(__uint_as_float(in[0]))); break;
    case SHARED_X4: {
        store_shared_x4(own, u32x4{in[0], in[1], in[2], in[3]});
        f32x4 x = load_shared_f32x4(own);
        store_shared_f32x4(own, x);
        out[0] = load_shared(own), out[1] = __float_as_uint(load_shared_f32(own + 4)), out[2] = load_shared_x2(own + 8).x, out[3] = load_shared_x4(own).w;
        break;
    }
    case SHARED_X2: {
        store_shared_x2(own + 8, u32x2{in[0], in[1]});
        out[0] = load_shared(own + 8), out[1] = load_shared_x2(own + 8).y;
        break;
    }
    case SHARED_F64: {
        store_shared_x2(own, u32x2{in[0], in[1]});
        store_shared_f64(own + 8, load_shared_f64(own));
        out[0] = load_shared(own + 8), out[1] = load_shared(own + 12);
        break;
    }
    case SHARED_U16: {
        store_shared_u16(own, (u16)in[0]);
        store_shared_u16(own + 2, (u16)(in[0] >> 16));
        out[0] = load_shared_u16(own), out[1] = load_shared_u16(own + 2);
        break;
    }
    case STREAMING: store_streaming(out, load_streaming(in)); break;
    case CP_ASYNC: {
        // Lanes copy from each other's inputs by way of a packed place, since inputs are not rows of 16 bytes.
        u32x4* packed = (u32x4*)p.scratch + lane;
        *packed = u32x4{in[0], in[1], in[2], in[3]};
        cp_async_16(own, packed, in[4]);
        cp_async_commit();
        cp_async_wait<0>();
        u32x4 x = load_shared_x4(own);
        out[0] = x.x, out[1] = x.y, out[2] = x.z, out[3] = x.w;
        break;
    }
    case ATOMIC_ADD_SHARED:
        if (lane == 0) store_shared(base, 0);
        __syncwarp();
        (void)atomic_add_shared(base, in[0]);
        __syncwarp();
        out[0] = load_shared(base);
        break;
    case ATOMIC_ADD_GLOBAL:
        (void)atomic_add_global((u32*)p.scratch, in[0]);
        __syncwarp();
        out[0] = *(const u32*)p.scratch;
        break;
    case ATOMIC_ADD_ACQ_REL:
        (void)atomic_add_acq_rel((u32*)p.scratch, in[0]);
        __syncwarp();
        out[0] = *(const u32*)p.scratch;
        break;
    case ATOMIC_MAX_GLOBAL: {
        (void)atomic_max_global((u64*)p.scratch, (u64)in[0] | (u64)in[1] << 32);
        __syncwarp();
        u64 most = *(const u64*)p.scratch;
        out[0] = (u32)most, out[1] = (u32)(most >> 32);
        break;
    }
    }
}
