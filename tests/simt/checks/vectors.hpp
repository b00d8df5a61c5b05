// Runs a kernel of wrappers on each line of a file of recorded inputs, under several arithmetics, and compares. Include it after the .cu.
#pragma once
#include "../simt_test.hpp"
#include <fstream>
#include <map>
#include <sstream>

// How far `actual` may be from `expected`, both rounded to float32: the manual's bound and the rounding of the recorded value.
inline bool within(const std::string& bound, float argument, float actual, float expected)
{
    if (std::isnan(expected)) return std::isnan(actual);
    if (bound == "log2" && argument > 0.5f && argument < 2.0f) return std::fabs((double)actual - (double)expected) <= 0x1p-22 + 0x1p-24;
    if (!std::isfinite(expected) || expected == 0) return actual == expected;
    double relative = bound == "log2" ? 0x1p-22 : std::ldexp(1.0, std::atoi(bound.c_str() + bound.find('^') + 1));
    return std::fabs((double)actual - (double)expected) <= (relative + 0x1p-23) * std::fabs((double)expected);
}

inline void check_vectors(const std::string& path, const std::map<std::string, Wrapper>& wrappers, u32 threads, void (*entry)(const void*), u32 shared_bytes)
{
    std::ifstream file(path);
    std::map<std::string, bool> seen;
    for (std::string line; std::getline(file, line);) {
        std::istringstream words(line);
        std::string name, bound;
        size_t input_words, output_words;
        words >> name >> input_words >> output_words >> bound;
        seen[name] = true;
        std::vector<u32> inputs(threads * input_words), expected(threads * output_words);
        words >> std::hex;
        for (u32& x : inputs) words >> x;
        for (u32& x : expected) words >> x;
        if (!words) throw std::runtime_error(path + ": the line of " + name + " is too short");
        for (simt::settings.arithmetic_seed = 1; simt::settings.arithmetic_seed <= 10; simt::settings.arithmetic_seed++) {
            simt::Array<u32> in(inputs), out(expected.size());
            simt::Array<u64> scratch(64);
            scratch.fill(0);
            WrapperVectorsParams params{in.address(), out.address(), scratch.address(), wrappers.at(name), (i32)input_words, (i32)output_words, 0};
            simt::require_launch(simt::try_launch(entry, name.c_str(), {1}, {threads}, shared_bytes, &params));
            for (size_t i = 0; i < expected.size(); i++) {
                float argument = __uint_as_float(inputs[i / output_words * input_words]);
                if (bound == "exact" ? out[i] == expected[i] : within(bound, argument, __uint_as_float(out[i]), __uint_as_float(expected[i]))) continue;
                std::fprintf(stderr, "%s, thread %zu, word %zu: %08x instead of %08x\n", name.c_str(), i / output_words, i % output_words, out[i], expected[i]);
                simt::failures++;
            }
        }
    }
    for (auto& wrapper : wrappers)
        if (!seen[wrapper.first]) throw std::runtime_error(path + " has nothing of " + wrapper.first);
}
