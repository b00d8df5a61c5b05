// The device code's own types, seen from the runtime.
#pragma once
#include "../simt.hpp"
#include "types.cuh"
#include "../simt_ptx.hpp"
#undef threadIdx
#undef blockIdx
#undef blockDim
#undef gridDim
