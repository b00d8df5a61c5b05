// The runtime as a host sees it: device memory, launches. C linkage and plain structs, so that C++ tests and the C# driver call the same functions.
// A function that can fail returns 0, or 1 with one message in `error`.
#pragma once

extern "C" {
struct SimtLaunch
{
    void (*entry)(const void* params);   // calls the kernel with its parameter struct
    const char* name;
    const void* params;
    unsigned long long schedule_seed;    // order of blocks, warps, threads and preemptions: results must not depend on it
    unsigned long long arithmetic_seed;  // order of sums inside an mma, errors of approximate functions: results depend on it within tolerance
    unsigned grid[3], block[3];
    unsigned shared_bytes;
    unsigned resident_blocks;            // blocks interleaved with each other; 0: 1 to 4, as the seed says
    unsigned preempt_every;              // mean number of memory accesses between preemptions; 0: never
    unsigned check_races;                // 0 leaves race detection out
};
int simt_launch(const SimtLaunch* launch, char* error, unsigned capacity);

// Device addresses are host addresses inside one reserved range. Fresh memory is filled with 0xFF (NaN in every element type, -1 as an integer); at least
// 256 bytes that no kernel may touch lie between allocations. Returns 0 when the range is exhausted.
unsigned long long simt_allocate(unsigned long long bytes);
int simt_free(unsigned long long address, char* error, unsigned capacity);
int simt_upload(unsigned long long to, const void* from, unsigned long long bytes, char* error, unsigned capacity);
int simt_download(void* to, unsigned long long from, unsigned long long bytes, char* error, unsigned capacity);
int simt_copy(unsigned long long to, unsigned long long from, unsigned long long bytes, char* error, unsigned capacity);
int simt_fill(unsigned long long to, int byte, unsigned long long bytes, char* error, unsigned capacity);
// Makes a part of an allocation untouchable (usable = 0) or touchable again: redzones between slices of one workspace. Multiples of 16 bytes.
int simt_protect(unsigned long long address, unsigned long long bytes, int usable, char* error, unsigned capacity);
unsigned long long simt_allocated_bytes();
}
