// Kernels with a planted fault must be reported, with the right words, under every schedule; without a fault nothing may be. Include it after the .cu.
#pragma once
#include "../simt_test.hpp"

constexpr u32 BLOCKS = 4;

struct Planted
{
    const char* kernel;
    void (*entry)(const void*);
    i32 fault;
    const char* message;   // part of what must be reported ("" where it depends on who comes first); null: nothing may be
};

#define PLANT(kernel, fault, message) \
    Planted { #kernel, &simt::call<&kernel>, fault, message }

// What only the compiler's calls at every access can show is left out where AddressSanitizer's have their place.
inline bool needs_access_hooks(const Planted& plant)
{
#if defined(__SANITIZE_THREAD__)
    (void)plant;
    return false;
#else
    return plant.message != nullptr && (std::strstr(plant.message, "global") != nullptr || std::strcmp(plant.kernel, "reach") == 0 || std::strstr(plant.message, "non-coherent") != nullptr);
#endif
}

// `one_block`: the kernel whose blocks would meet.
inline void check_planted(const std::vector<Planted>& planted, u32 threads, u32 shared_bytes, const char* one_block)
{
    simt::over_schedules(20, [&] {
        for (const Planted& plant : planted) {
            if (needs_access_hooks(plant)) continue;
            simt::Array<u32> data(BLOCKS * threads * 4), more(BLOCKS * threads * 4), counter(1);
            counter[0] = 0;
            FaultParams params{data.address(), more.address(), counter.address(), plant.fault, (i32)data.size()};
            u32 blocks = std::strcmp(plant.kernel, one_block) == 0 ? 1 : BLOCKS;
            std::string error = simt::try_launch(plant.entry, plant.kernel, {blocks}, {threads}, shared_bytes, &params);
            bool right = plant.message == nullptr ? error.empty() : error.find(plant.message) != std::string::npos && error.find(std::string("kernel ") + plant.kernel) == 0;
            if (right) continue;
            std::fprintf(stderr, "%s, fault %d, schedule %llu: '%s' instead of '%s'\n", plant.kernel, plant.fault, simt::settings.schedule_seed, error.c_str(),
                plant.message != nullptr ? plant.message : "");
            simt::failures++;
        }
    });
}
