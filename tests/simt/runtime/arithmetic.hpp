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

// A warp's rows of a product: c += a·bᵀ, 16 rows, 8·tiles columns, 16 terms. a and c as the lanes hold them, b [8·tiles][16].
void multiply_columns(bool f16, u32 tiles, const u32x4 (&a)[32], const u16* b, f32x4* const (&c)[32]);

}
