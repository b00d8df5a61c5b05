// The emulator's wrappers give what vectors.txt records, under several arithmetics.
#include "../vectors/vectors.cu"
#include "../simt_test.hpp"
#include <fstream>
#include <map>
#include <sstream>

static const std::map<std::string, Wrapper> wrappers = {
    {"to_f32_f16", TO_F32_F16}, {"to_f32_bf16", TO_F32_BF16}, {"pack_bf16", PACK_BF16}, {"pack_f16", PACK_F16}, {"ldmatrix_x4", LDMATRIX}, {"ldmatrix_x4_trans", LDMATRIX_TRANS},
    {"mma_bf16", MMA_BF16}, {"mma_f16", MMA_F16}, {"exp2_approx", EXP2}, {"log2_approx", LOG2}, {"reciprocal_approx", RECIPROCAL}, {"tanh_approx", TANH},
    {"shared_x4", SHARED_X4}, {"shared_x2", SHARED_X2}, {"shared_f64", SHARED_F64}, {"shared_u16", SHARED_U16}, {"streaming", STREAMING}, {"cp_async_16", CP_ASYNC},
    {"atomic_add_shared", ATOMIC_ADD_SHARED}, {"atomic_add_global", ATOMIC_ADD_GLOBAL}, {"atomic_add_acq_rel", ATOMIC_ADD_ACQ_REL}, {"atomic_max_global", ATOMIC_MAX_GLOBAL},
};

// How far `actual` may be from `expected`, both rounded to float32: the manual's bound and the rounding of the recorded value.
static bool within(const std::string& bound, float argument, float actual, float expected)
{
    if (std::isnan(expected)) return std::isnan(actual);
    if (bound == "log2" && argument > 0.5f && argument < 2.0f) return std::fabs((double)actual - (double)expected) <= 0x1p-22 + 0x1p-24;
    if (!std::isfinite(expected) || expected == 0) return actual == expected;
    double relative = bound == "log2" ? 0x1p-22 : std::ldexp(1.0, std::atoi(bound.c_str() + bound.find('^') + 1));
    return std::fabs((double)actual - (double)expected) <= (relative + 0x1p-23) * std::fabs((double)expected);
}

int main()
{
    return simt::test([] {
        std::ifstream file(SIMT_FOLDER "/vectors/vectors.txt");
        std::map<std::string, bool> seen;
        for (std::string line; std::getline(file, line);) {
            std::istringstream words(line);
            std::string name, bound;
            size_t input_words, output_words;
            words >> name >> input_words >> output_words >> bound;
            seen[name] = true;
            std::vector<u32> inputs(32 * input_words), expected(32 * output_words);
            words >> std::hex;
            for (u32& x : inputs) words >> x;
            for (u32& x : expected) words >> x;
            if (!words) throw std::runtime_error("vectors.txt: the line of " + name + " is too short");
            for (simt::settings.arithmetic_seed = 1; simt::settings.arithmetic_seed <= 10; simt::settings.arithmetic_seed++) {
                simt::Array<u32> in(inputs), out(expected.size());
                simt::Array<u64> scratch(64);
                scratch.fill(0);
                WrapperVectorsParams params{in.address(), out.address(), scratch.address(), wrappers.at(name), (i32)input_words, (i32)output_words, 0};
                LAUNCH(wrapper_vectors, {1}, {32}, 512, params);
                for (size_t i = 0; i < expected.size(); i++) {
                    float argument = __uint_as_float(inputs[i / output_words * input_words]);
                    if (bound == "exact" ? out[i] == expected[i] : within(bound, argument, __uint_as_float(out[i]), __uint_as_float(expected[i]))) continue;
                    std::fprintf(stderr, "%s, lane %zu, word %zu: %08x instead of %08x\n", name.c_str(), i / output_words, i % output_words, out[i], expected[i]);
                    simt::failures++;
                }
            }
        }
        for (auto& wrapper : wrappers)
            if (!seen[wrapper.first]) throw std::runtime_error("vectors.txt has nothing of " + wrapper.first);
    });
}
