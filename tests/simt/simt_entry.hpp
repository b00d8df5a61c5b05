// How a host gets at a kernel: a function that calls it with the parameter struct at an address. Include it after the .cu.
#pragma once
#include "simt_api.hpp"
#undef threadIdx
#undef blockIdx
#undef blockDim
#undef gridDim

namespace simt {

template <class Kernel> struct Parameters;
template <class P> struct Parameters<void (*)(P)> { using Type = P; };

// The parameters are read from the host's memory, which device code may not touch: this function is not instrumented.
template <auto kernel> __attribute__((no_sanitize("thread"))) void call(const void* params)
{
    kernel(*(const typename Parameters<decltype(kernel)>::Type*)params);
}

}

// Exports a kernel from a shared library, with the size of its parameter struct.
struct SimtEntry
{
    void (*call)(const void* params);
    unsigned long long parameter_bytes;
};
#define SIMT_EXPORT(kernel) \
    extern "C" const SimtEntry simt_entry_##kernel{&simt::call<&kernel>, sizeof(simt::Parameters<decltype(&kernel)>::Type)};
