// Checked accesses to global and shared memory.
#pragma once
#include "device_memory.hpp"
#include "execution.hpp"

namespace simt {

// Checks bounds, alignment (1: none asked) and races, and may let other threads run first. Any failure ends the launch.
void check_global(Thread& self, u64 address, u32 bytes, u32 alignment, Access access);
// The same, and returns where the bytes are. A read checks that they were written; a write marks them as such.
u8* check_shared(Thread& self, u32 at, u32 bytes, Access access);

// 16 bytes of shared memory as the asynchronous proxy (bulk copies, wgmma) sees them: within the block and aligned, and no store to them waits for a fence. `what` names the access.
u8* check_async(Thread& self, u32 at, const char* what);
[[noreturn]] void race(const Thread& self, const char* memory, u64 at, u32 bytes, Access access, const Record& other);

}
