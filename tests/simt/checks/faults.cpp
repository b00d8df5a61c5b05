// Every planted fault of faults.cu is reported, with the right words, under every schedule; without a fault nothing is.
#include "faults.cu"
#include "../simt_test.hpp"

constexpr u32 BLOCKS = 4, THREADS = 64;

struct Planted
{
    const char* kernel;
    void (*entry)(const void*);
    i32 fault;
    const char* message;   // part of what must be reported ("" where it depends on who comes first); null: nothing may be
};

#define PLANT(kernel, fault, message) \
    Planted { #kernel, &simt::call<&kernel>, fault, message }

static const Planted planted[] = {
    PLANT(exchange, 0, nullptr), PLANT(exchange, 1, "shared"), PLANT(exchange, 2, "data race"), PLANT(exchange, 3, "never written"),
    PLANT(exchange_warp, 0, nullptr), PLANT(exchange_warp, 1, "shared"), PLANT(exchange_warp, 2, "data race"),
    PLANT(hand_over, 0, nullptr), PLANT(hand_over, 1, "deadlock"), PLANT(hand_over, 2, ""), PLANT(hand_over, 3, "shared"),
    PLANT(diverge, 0, nullptr), PLANT(diverge, 1, "divergent barrier"), PLANT(diverge, 2, "deadlock"), PLANT(diverge, 3, "divergent barrier"),
    PLANT(collect, 0, nullptr), PLANT(collect, 1, "mismatched collective"), PLANT(collect, 2, "mismatched collective"), PLANT(collect, 3, "mismatched collective"),
    PLANT(collect, 4, "mismatched collective"), PLANT(collect, 5, "not in mask"), PLANT(collect, 6, "different kinds of shuffle"), PLANT(collect, 7, "width 5"),
    PLANT(copy_async, 0, nullptr), PLANT(copy_async, 1, "cp.async"), PLANT(copy_async, 2, "not been waited for"), PLANT(copy_async, 3, "shared"),
    PLANT(copy_async, 4, "not been waited for"), PLANT(copy_async, 5, "not aligned to 16"), PLANT(copy_async, 6, "outside every allocation"), PLANT(copy_async, 7, "not been waited for"),
    PLANT(reach, 0, nullptr), PLANT(reach, 1, "outside every allocation"), PLANT(reach, 2, "outside every allocation"), PLANT(reach, 3, "not aligned to 4"),
    PLANT(reach, 4, "not aligned to 16"), PLANT(reach, 5, "outside every allocation"), PLANT(reach, 6, "outside the block's 1024 bytes"), PLANT(reach, 7, "not aligned to 4"),
    PLANT(reach, 8, "not aligned to 16"),
    PLANT(sum_blocks, 0, nullptr), PLANT(sum_blocks, 1, "data race on 4 bytes of global"), PLANT(sum_blocks, 2, "data race on 4 bytes of global"),
    PLANT(sum_blocks, 3, "data race on 4 bytes of global"), PLANT(sum_blocks, 4, "data race on 4 bytes of global"),
    PLANT(write_rows, 0, nullptr), PLANT(write_rows, 1, "data race on 2 bytes of global"), PLANT(write_rows, 2, "data race on 2 bytes of global"),
    PLANT(write_rows, 4, "non-coherent load"), PLANT(write_rows, 5, "data race on 4 bytes of global"),
    PLANT(multiply, 0, nullptr), PLANT(multiply, 1, "not aligned to 16"), PLANT(multiply, 2, "mismatched collective"), PLANT(multiply, 3, "mismatched collective"),
    PLANT(multiply, 4, "never written"),
};

// What only the compiler's calls at every access can show is left out where AddressSanitizer's have their place.
static bool needs_access_hooks(const Planted& plant)
{
#if defined(__SANITIZE_THREAD__)
    (void)plant;
    return false;
#else
    return plant.message != nullptr && (std::strstr(plant.message, "global") != nullptr || std::strcmp(plant.kernel, "reach") == 0 || std::strstr(plant.message, "non-coherent") != nullptr);
#endif
}

int main()
{
    return simt::test([] {
        simt::over_schedules(20, [] {
            for (const Planted& plant : planted) {
                if (needs_access_hooks(plant)) continue;
                simt::Array<u32> data(BLOCKS * THREADS * 4), more(BLOCKS * THREADS * 4), counter(1);
                counter[0] = 0;
                FaultParams params{data.address(), more.address(), counter.address(), plant.fault, (i32)data.size()};
                bool one_block = std::strcmp(plant.kernel, "copy_async") == 0;
                std::string error = simt::try_launch(plant.entry, plant.kernel, {one_block ? 1 : BLOCKS}, {THREADS}, THREADS * 16, &params);
                bool right = plant.message == nullptr ? error.empty() : error.find(plant.message) != std::string::npos && error.find(std::string("kernel ") + plant.kernel) == 0;
                if (right) continue;
                std::fprintf(stderr, "%s, fault %d, schedule %llu: '%s' instead of '%s'\n", plant.kernel, plant.fault, simt::settings.schedule_seed, error.c_str(),
                    plant.message != nullptr ? plant.message : "");
                simt::failures++;
            }
        });
    });
}
