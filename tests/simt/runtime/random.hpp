// SplitMix64: small, fast, one word of state.
#pragma once

namespace simt {

inline unsigned long long mix(unsigned long long z)
{
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

struct Random
{
    unsigned long long state = 0;
    unsigned next() { return (unsigned)(mix(state += 0x9e3779b97f4a7c15ull) >> 32); }
    unsigned below(unsigned n) { return (unsigned)(((unsigned long long)next() * n) >> 32); }
};

}
