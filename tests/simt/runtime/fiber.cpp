#include "fiber.hpp"
#include <cstdio>
#include <cstdlib>
#include <sys/mman.h>
#include <unistd.h>
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

// simt_switch_stack(void** save, void* load): pushes the callee-saved registers, exchanges stack pointers, pops them.
asm(R"(
.text
.p2align 4
.type simt_switch_stack, @function
simt_switch_stack:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size simt_switch_stack, .-simt_switch_stack
)");
extern "C" void simt_switch_stack(void** save, void* load);

namespace simt {

static size_t page_bytes() { return (size_t)sysconf(_SC_PAGESIZE); }

constexpr unsigned long long untouched = 0x73696d7473746163ull;

void* allocate_slab()
{
    void* slab = mmap(nullptr, stacks_in_slab * stack_bytes + page_bytes(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (slab == MAP_FAILED || mprotect(slab, page_bytes(), PROT_NONE) != 0) {
        std::perror("simt: the stacks of a warp");
        std::abort();
    }
    return slab;
}

void free_slab(void* slab) { munmap(slab, stacks_in_slab * stack_bytes + page_bytes()); }

void place_on(Fiber& fiber, void* slab, size_t i)
{
    fiber.stack = (char*)slab + page_bytes() + i * stack_bytes;
    fiber.stack_size = stack_bytes;
}

bool has_overflowed(const Fiber& fiber) { return *(const unsigned long long*)fiber.stack != untouched; }

void prepare(Fiber& fiber, void (*start)())
{
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(fiber.stack, fiber.stack_size);
    fiber.fake_stack = nullptr;
#endif
    *(unsigned long long*)fiber.stack = untouched;
    // Six registers and a return address; start() then finds the stack as after a call: 8 below a multiple of 16.
    void** top = (void**)((char*)fiber.stack + fiber.stack_size) - 3;
    top[0] = nullptr;
    top[-1] = (void*)start;
    for (int i = 2; i <= 7; i++) top[-i] = nullptr;
    fiber.saved = top - 7;
}

void switch_fiber(Fiber& from, Fiber& to, bool ends)
{
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(ends ? nullptr : &from.fake_stack, to.stack, to.stack_size);
#else
    (void)ends;
#endif
    simt_switch_stack(&from.saved, to.saved);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#endif
}

void fiber_started(Fiber& fiber)
{
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fiber.fake_stack, nullptr, nullptr);
#else
    (void)fiber;
#endif
}

}
