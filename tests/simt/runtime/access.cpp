#include "access.hpp"

namespace simt {

static const char* verb(Access access)
{
    return access == Access::read ? "read" : access == Access::write ? "write" : "atomic";
}

void race(const Thread& self, const char* memory, u64 at, u32 bytes, Access access, const Record& other)
{
    if (other.block == self.block->serial && other.thread >= self.block->threads.size())
        fault("data race on %u bytes of %s memory at 0x%llx: this %s is not ordered after the write by a bulk copy of the block", bytes, memory, at, verb(access));
    if (other.block == self.block->serial)
        fault("data race on %u bytes of %s memory at 0x%llx: this %s is not ordered after the %s by thread %u of the block", bytes, memory, at, verb(access), verb(other.access), other.thread);
    const unsigned* grid = self.launch->what->grid;
    u32 b = other.block - self.launch->first_serial;
    fault("data race on %u bytes of %s memory at 0x%llx: this %s is not ordered after the %s by block (%u, %u, %u), thread %u", bytes, memory, at, verb(access), verb(other.access), b % grid[0],
        b / grid[0] % grid[1], b / grid[0] / grid[1], other.thread);
}

void check_global(Thread& self, u64 address, u32 bytes, u32 alignment, Access access)
{
    if (!in_device_range(address) || !is_usable(address, bytes)) fault("global %s of %u bytes at 0x%llx is outside every allocation", verb(access), bytes, address);
    if ((address & (alignment - 1)) != 0) fault("global %s of %u bytes at 0x%llx is not aligned to %u", verb(access), bytes, address, alignment);
    access_happens(*self.launch);
    if (self.launch->what->check_races == 0) return;
    const Record* other = check_global_access(self, device_memory.accesses, address - (u64)device_memory.data, bytes, access);
    if (other != nullptr) race(self, "global", address, bytes, access, *other);
}

// The states of up to 16 bytes, combined into 8.
struct States { u64 all, any; };

static constexpr u64 each(u8 state) { return state * 0x0101010101010101ull; }

static States states_of(const u8* state, u32 bytes)
{
    u64 first = 0, second;
    if (bytes >= 8) {
        __builtin_memcpy(&first, state, 8);
        __builtin_memcpy(&second, state + bytes - 8, 8);
    } else {
        for (u32 i = 0; i < 8; i++) first |= (u64)state[i & (bytes - 1)] << 8 * i;   // repeated
        second = first;
    }
    return {first & second, first | second};
}

u8* check_shared(Thread& self, u32 at, u32 bytes, Access access)
{
    const Block& block = *self.block;
    u32 offset = at - shared_window;
    if (at < shared_window || offset >= block.shared_bytes || bytes > block.shared_bytes - offset)
        fault("shared %s of %u bytes at 0x%x is outside the block's %u bytes, which start at 0x%x", verb(access), bytes, at, block.shared_bytes, shared_window);
    if ((at & (bytes - 1)) != 0) fault("shared %s of %u bytes at 0x%x is not aligned to %u", verb(access), bytes, at, bytes);
    access_happens(*self.launch);
    u8* state = block.state + offset;
    States states = states_of(state, bytes);
    if ((states.any & each(shared_in_flight)) != 0) fault("shared %s of %u bytes at 0x%x, where a cp.async or bulk copy has not been waited for", verb(access), bytes, at);
    if (access != Access::write && states.all != each(shared_written)) fault("shared %s of %u bytes at 0x%x, which was never written", verb(access), bytes, at);
    if (access == Access::write && states.all != each(shared_written)) __builtin_memset(state, shared_written, bytes);
    if (access != Access::read)
        for (u32 word = offset / 4; word <= (offset + bytes - 1) / 4; word++) block.writers[word] = {(u16)(self.index + 1), self.proxy_fences};
    if (self.launch->what->check_races != 0) {
        const Record* other = check_shared_access(self, block.accesses, offset, bytes, access);
        if (other != nullptr) race(self, "shared", at, bytes, access, *other);
    }
    return block.shared + offset;
}

u8* check_async(Thread& self, u32 at, const char* what)
{
    const Block& block = *self.block;
    u32 offset = at - shared_window;
    if (at < shared_window || offset >= block.shared_bytes || 16 > block.shared_bytes - offset)
        fault("%s of 16 bytes at 0x%x is outside the block's %u bytes, which start at 0x%x", what, at, block.shared_bytes, shared_window);
    if ((at & 15) != 0) fault("%s of shared memory at 0x%x, which is not aligned to 16", what, at);
    for (u32 word = offset / 4; word < offset / 4 + 4; word++) {
        Writer writer = block.writers[word];
        if (writer.thread != 0 && block.threads[writer.thread - 1u]->proxy_fences == writer.fences)
            fault("%s of shared memory at 0x%x, to which thread %u has stored without fence_async_proxy behind it", what, at, writer.thread - 1u);
    }
    return block.shared + offset;
}

}

using namespace simt;

namespace {

template <class T> inline T load(Thread& self, u32 at)
{
    T x;
    __builtin_memcpy(&x, check_shared(self, at, sizeof(T), Access::read), sizeof(T));
    return x;
}

template <class T> inline void store(Thread& self, u32 at, T x)
{
    __builtin_memcpy(check_shared(self, at, sizeof(T), Access::write), &x, sizeof(T));
}

}

extern "C" {

u32 simt_shared_base() { return shared_window; }
u16 simt_load_shared_u16(u32 at) { SIMT_ENTER(self); return load<u16>(self, at); }
u32 simt_load_shared(u32 at) { SIMT_ENTER(self); return load<u32>(self, at); }
u32x2 simt_load_shared_x2(u32 at) { SIMT_ENTER(self); return load<u32x2>(self, at); }
u32x4 simt_load_shared_x4(u32 at) { SIMT_ENTER(self); return load<u32x4>(self, at); }
void simt_store_shared_u16(u32 at, u16 x) { SIMT_ENTER(self); store(self, at, x); }
void simt_store_shared(u32 at, u32 x) { SIMT_ENTER(self); store(self, at, x); }
void simt_store_shared_x2(u32 at, u32x2 x) { SIMT_ENTER(self); store(self, at, x); }
void simt_store_shared_x4(u32 at, u32x4 x) { SIMT_ENTER(self); store(self, at, x); }

u32 simt_atomic_add_shared(u32 at, u32 x)
{
    SIMT_ENTER(self);
    u32* place = (u32*)check_shared(self, at, 4, Access::atomic);
    u32 old = *place;
    *place = old + x;
    return old;
}

u32x4 simt_load_streaming(const void* from)
{
    SIMT_ENTER(self);
    check_global(self, (u64)from, 16, 16, Access::read);
    if (self.launch->what->check_races != 0 && written_in_launch(self, device_memory.accesses, (u64)from - (u64)device_memory.data, 16))
        fault("non-coherent load of 16 bytes at 0x%llx, which this launch writes", (u64)from);
    return *(const u32x4*)from;
}

void simt_store_streaming(void* to, u32x4 x)
{
    SIMT_ENTER(self);
    check_global(self, (u64)to, 16, 16, Access::write);
    *(u32x4*)to = x;
}

u32 simt_atomic_add_global(u32* at, u32 x)
{
    SIMT_ENTER(self);
    check_global(self, (u64)at, 4, 4, Access::atomic);
    u32 old = *at;
    *at = old + x;
    return old;
}

u64 simt_atomic_max_global(u64* at, u64 x)
{
    SIMT_ENTER(self);
    check_global(self, (u64)at, 8, 8, Access::atomic);
    u64 old = *at;
    *at = x > old ? x : old;
    return old;
}

u32 simt_atomic_add_acq_rel(u32* at, u32 x)
{
    SIMT_ENTER(self);
    check_global(self, (u64)at, 4, 4, Access::atomic);
    synchronise_at(self, (u64)at);
    u32 old = *at;
    *at = old + x;
    return old;
}

// A copy's data are taken when it is issued and appear when the issuing thread waits for them; until then nobody may touch the destination.
void simt_cp_async_16(u32 to, const void* from, u32 bytes)
{
    SIMT_ENTER(self);
    if (bytes > 16) fault("cp.async of %u bytes: 16 at most", bytes);
    if (((u64)from & 15) != 0) fault("cp.async from 0x%llx, which is not aligned to 16", (u64)from);
    AsyncCopy copy{to, self.committed_groups, {0, 0, 0, 0}};
    if (bytes != 0) {
        check_global(self, (u64)from, bytes, 16, Access::read);
        __builtin_memcpy(&copy.data, from, bytes);
    }
    u8* place = check_shared(self, to, 16, Access::write);
    __builtin_memset(place, 0xff, 16);
    __builtin_memset(self.block->state + (to - shared_window), shared_in_flight, 16);
    self.copies.push_back(copy);
}

void simt_cp_async_commit()
{
    SIMT_ENTER(self);
    self.committed_groups++;
}

void simt_cp_async_wait(u32 pending)
{
    SIMT_ENTER(self);
    size_t kept = 0;
    for (const AsyncCopy& copy : self.copies) {
        if (copy.group + pending >= self.committed_groups) {
            self.copies[kept++] = copy;
            continue;
        }
        __builtin_memset(self.block->state + (copy.to - shared_window), shared_written, 16);
        u8* place = check_shared(self, copy.to, 16, Access::write);
        __builtin_memcpy(place, &copy.data, 16);
    }
    self.copies.resize(kept);
}

}
