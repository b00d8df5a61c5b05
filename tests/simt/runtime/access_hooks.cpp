// What -fsanitize=thread makes the compiler call at every access to memory that another thread could see. Accesses to the thread's own stack and to the
// module's constants pass; everything else is an access to global memory.
#include "access.hpp"
#include <dlfcn.h>
#include <link.h>

namespace simt {

static void check_elsewhere(Thread& self, u64 address, u32 bytes, Access access)
{
    // Constants of a loaded module (tables, literals); looked up once a module.
    static thread_local u64 constants_first = 0, constants_last = 0;
    if (access == Access::read) {
        if (address >= constants_first && address < constants_last) return;
        struct Search { u64 address, first, last; } search{address, 0, 0};
        dl_iterate_phdr([](dl_phdr_info* module, size_t, void* data) {
            Search& wanted = *(Search*)data;
            for (int i = 0; i < module->dlpi_phnum; i++) {
                const auto& segment = module->dlpi_phdr[i];
                u64 first = module->dlpi_addr + segment.p_vaddr, last = first + segment.p_memsz;
                if (segment.p_type != PT_LOAD || (segment.p_flags & PF_W) != 0 || wanted.address < first || wanted.address >= last) continue;
                wanted.first = first;
                wanted.last = last;
                return 1;
            }
            return 0;
        }, &search);
        if (search.last != 0) {
            constants_first = search.first;
            constants_last = search.last;
            return;
        }
    }
    check_global(self, address, bytes, 1, access);      // names what is wrong with it
}

static inline void hook(u64 address, u32 bytes, u32 alignment, Access access, const void* code)
{
    Thread* self = running;
    if (self == nullptr || address - (u64)self->stack < self->stack_size) return;
    self->code = code;
    if (in_device_range(address)) check_global(*self, address, bytes, alignment, access);
    else check_elsewhere(*self, address, bytes, access);
}

}

using simt::Access;

#define HOOK(name, bytes, alignment, access) \
    void name(void* at) { simt::hook((u64)at, bytes, alignment, access, __builtin_return_address(0)); }
#define HOOKS(bytes) \
    HOOK(__tsan_read##bytes, bytes, bytes, Access::read) \
    HOOK(__tsan_write##bytes, bytes, bytes, Access::write) \
    HOOK(__tsan_unaligned_read##bytes, bytes, 1, Access::read) \
    HOOK(__tsan_unaligned_write##bytes, bytes, 1, Access::write) \
    HOOK(__tsan_volatile_read##bytes, bytes, bytes, Access::read) \
    HOOK(__tsan_volatile_write##bytes, bytes, bytes, Access::write)

extern "C" {

HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)
void __tsan_read_range(void* at, unsigned long bytes) { simt::hook((u64)at, (u32)bytes, 1, Access::read, __builtin_return_address(0)); }
void __tsan_write_range(void* at, unsigned long bytes) { simt::hook((u64)at, (u32)bytes, 1, Access::write, __builtin_return_address(0)); }
void __tsan_vptr_read(void**) {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}

}
