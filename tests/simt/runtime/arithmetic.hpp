// What the emulated device computes with less than full accuracy. The arithmetic seed chooses one behaviour among those the documentation allows; it is the
// same for the whole launch, so that equal inputs give equal bits whatever the schedule.
#pragma once
#include "types.hpp"

namespace simt {

struct Arithmetic
{
    u64 seed = 0;
    u8 order[16];            // in which the 16 products of an mma are added
    bool accumulator_last;
    explicit Arithmetic(u64 seed);
};

// The arithmetic of the launch running on this OS thread, or that of seed 0.
const Arithmetic& arithmetic();

}
