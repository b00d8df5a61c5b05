// Where lanes of a warp meet.
#pragma once
#include "execution.hpp"

namespace simt {

// Waits until all lanes of `mask` have come with the same kind and mask. True for the last to arrive: it computes the results of all from their operands
// (Thread::operand) before it does anything that lets another thread run.
bool meet(Thread& self, Wait what, u32 mask, void* operand);

}
