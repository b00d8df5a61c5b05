// The emulator's wrappers give what vectors.txt records.
#include "../vectors/vectors.cu"
#include "vectors.hpp"

static const std::map<std::string, Wrapper> wrappers = {
    {"to_f32_f16", TO_F32_F16}, {"to_f32_bf16", TO_F32_BF16}, {"pack_bf16", PACK_BF16}, {"pack_f16", PACK_F16}, {"ldmatrix_x4", LDMATRIX}, {"ldmatrix_x4_trans", LDMATRIX_TRANS},
    {"mma_bf16", MMA_BF16}, {"mma_f16", MMA_F16}, {"exp2_approx", EXP2}, {"log2_approx", LOG2}, {"reciprocal_approx", RECIPROCAL}, {"tanh_approx", TANH},
    {"shared_x4", SHARED_X4}, {"shared_x2", SHARED_X2}, {"shared_f64", SHARED_F64}, {"shared_u16", SHARED_U16}, {"streaming", STREAMING}, {"cp_async_16", CP_ASYNC},
    {"atomic_add_shared", ATOMIC_ADD_SHARED}, {"atomic_add_global", ATOMIC_ADD_GLOBAL}, {"atomic_add_acq_rel", ATOMIC_ADD_ACQ_REL}, {"atomic_max_global", ATOMIC_MAX_GLOBAL},
};

int main()
{
    return simt::test([] { check_vectors(SIMT_FOLDER "/vectors/vectors.txt", wrappers, 32, &simt::call<&wrapper_vectors>, 512); });
}
