// Stacks and the switch between them.
#pragma once
#include <cstddef>

namespace simt {

struct Fiber
{
    void* saved = nullptr;        // stack pointer while not running
    void* stack = nullptr;        // lowest address of the usable stack; null for the thread that launched
    size_t stack_size = 0;
    void* fake_stack = nullptr;   // AddressSanitizer's
};

constexpr size_t stack_bytes = 128 * 1024, stacks_in_slab = 32;

// Memory for the stacks of a warp, with an inaccessible page below them (a page for each would meet the system's limit on mappings on machines of many cores).
// Aborts the process with a message when the system has no memory for it.
void* allocate_slab();
void free_slab(void* slab);
// The fiber runs on stack `i` of the slab from now on.
void place_on(Fiber& fiber, void* slab, size_t i);
// Whether the lowest word of the stack was written, which nothing but an overflow does.
bool has_overflowed(const Fiber& fiber);
// The next switch to the fiber calls start() on an empty stack; start never returns.
void prepare(Fiber& fiber, void (*start)());
// Suspends `from` (its state is saved there) and resumes `to`. `ends`: `from` will never be resumed.
void switch_fiber(Fiber& from, Fiber& to, bool ends = false);
// First thing a fiber does when it runs for the first time.
void fiber_started(Fiber& fiber);

}
