// Included before all else in what mutate.py compiles: which of the planted faults is on, and which a run came by.
//
// SIMT_PLANTED_FAULTS is their number, the variable SIMT_PLANTED names the one that is on, SIMT_MET the file that gets the numbers of those met, a line each.
#pragma once
#include <cstdio>
#include <cstdlib>

namespace planted {

constexpr int Planted = SIMT_PLANTED_FAULTS;

struct Faults
{
    int on = std::getenv("SIMT_PLANTED") ? std::atoi(std::getenv("SIMT_PLANTED")) : -1;
    bool met[Planted] = {};
    ~Faults()
    {
        const char* name = std::getenv("SIMT_MET");
        std::FILE* file = name ? std::fopen(name, "w") : nullptr;
        if (!file) return;
        for (int i = 0; i < Planted; i++)
            if (met[i]) std::fprintf(file, "%d\n", i);
        std::fclose(file);
    }
};
inline Faults faults;

// Invisible to race detection and to preemption, as the fault itself would be in a source of its own.
__attribute__((no_sanitize("thread", "address", "undefined"))) inline bool met(int fault)
{
    faults.met[fault] = true;
    return fault == faults.on;
}
constexpr bool on(int fault) { return !__builtin_is_constant_evaluated() && met(fault); }

}
