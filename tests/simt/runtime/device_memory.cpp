#include "device_memory.hpp"
#include "access.hpp"
#include "execution.hpp"
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <sys/mman.h>
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace simt {

static void* reserve(u64 bytes)
{
    void* at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) {
        std::perror("simt: reserving the device address range");
        std::abort();
    }
    return at;
}

const DeviceMemory device_memory{
    (u8*)reserve(device_range_bytes), (u8*)reserve(device_range_bytes / 16), (Cell*)reserve(device_range_bytes / 8 * sizeof(Cell))};

constexpr u64 spacing = 256;      // alignment of allocations, and the least distance between them

static std::mutex guard;
static std::map<u64, u64> allocations;      // offset to bytes
static u64 next_offset = spacing;
static u64 allocated = 0;

static u64 extent(u64 bytes) { return (bytes + spacing - 1) / spacing * spacing + spacing; }

static void set_usable(u64 offset, u64 bytes, bool usable)
{
    std::memset(device_memory.usable + offset / 16, usable ? 16 : 0, bytes / 16);
    if (bytes % 16 != 0) device_memory.usable[(offset + bytes) / 16] = usable ? (u8)(bytes % 16) : 0;
#if defined(__SANITIZE_ADDRESS__)
    if (usable) __asan_unpoison_memory_region(device_memory.data + offset, bytes);
    else __asan_poison_memory_region(device_memory.data + offset, bytes);
#endif
}

// Address of an allocation that holds all of [address, address + bytes), as an iterator.
static std::map<u64, u64>::iterator holding(u64 address, u64 bytes)
{
    if (!in_device_range(address)) return allocations.end();
    u64 offset = address - (u64)device_memory.data;
    auto after = allocations.upper_bound(offset);
    if (after == allocations.begin()) return allocations.end();
    auto at = std::prev(after);
    return bytes <= at->second && offset - at->first <= at->second - bytes ? at : allocations.end();
}

static int report(char* error, u32 capacity, const std::string& message)
{
    std::snprintf(error, capacity, "%s", message.c_str());
    return message.empty() ? 0 : 1;
}

static std::string outside(const char* what, u64 address, u64 bytes)
{
    char text[160];
    std::snprintf(text, sizeof text, "%s: %llu bytes at 0x%llx are not inside one device allocation", what, bytes, address);
    return text;
}

}

using namespace simt;

extern "C" unsigned long long simt_allocate(unsigned long long bytes)
{
    if (bytes == 0 || bytes > device_range_bytes) return 0;
    std::lock_guard<std::mutex> lock(guard);
    u64 offset = next_offset;
    if (offset + extent(bytes) > device_range_bytes) {
        // The range has been walked through once: first fit from its start.
        offset = spacing;
        for (auto& at : allocations) {
            if (at.first >= offset + extent(bytes)) break;
            offset = at.first + extent(at.second);
        }
        if (offset + extent(bytes) > device_range_bytes) return 0;
    }
    next_offset = offset + extent(bytes);
    allocations[offset] = bytes;
    allocated += bytes;
    set_usable(offset, bytes, true);
#if defined(__SANITIZE_ADDRESS__)
    __asan_poison_memory_region(device_memory.data + offset - spacing, spacing);
    __asan_poison_memory_region(device_memory.data + offset + bytes, extent(bytes) - bytes);
#endif
    std::memset(device_memory.data + offset, 0xff, bytes);
    return (u64)device_memory.data + offset;
}

extern "C" int simt_free(unsigned long long address, char* error, unsigned capacity)
{
    std::lock_guard<std::mutex> lock(guard);
    auto at = holding(address, 0);
    if (at == allocations.end() || (u64)device_memory.data + at->first != address) {
        char text[96];
        std::snprintf(text, sizeof text, "free: 0x%llx is not the address of a device allocation", address);
        return report(error, capacity, text);
    }
    u64 offset = at->first, bytes = at->second;
    set_usable(offset, bytes, false);
    allocated -= bytes;
    allocations.erase(at);
    // Whole pages go back to the system.
    u64 first = (offset + 4095) / 4096 * 4096, last = (offset + bytes) / 4096 * 4096;
    if (first < last) {
        madvise(device_memory.data + first, last - first, MADV_DONTNEED);
        madvise(device_memory.accesses + first / 8, (last - first) / 8 * sizeof(Cell), MADV_DONTNEED);
    }
    return report(error, capacity, "");
}

extern "C" int simt_upload(unsigned long long to, const void* from, unsigned long long bytes, char* error, unsigned capacity)
{
    std::lock_guard<std::mutex> lock(guard);
    if (holding(to, bytes) == allocations.end()) return report(error, capacity, outside("upload", to, bytes));
    std::memcpy((void*)to, from, bytes);
    return report(error, capacity, "");
}

extern "C" int simt_download(void* to, unsigned long long from, unsigned long long bytes, char* error, unsigned capacity)
{
    std::lock_guard<std::mutex> lock(guard);
    if (holding(from, bytes) == allocations.end()) return report(error, capacity, outside("download", from, bytes));
    std::memcpy(to, (const void*)from, bytes);
    return report(error, capacity, "");
}

extern "C" int simt_copy(unsigned long long to, unsigned long long from, unsigned long long bytes, char* error, unsigned capacity)
{
    std::lock_guard<std::mutex> lock(guard);
    if (holding(to, bytes) == allocations.end()) return report(error, capacity, outside("copy to", to, bytes));
    if (holding(from, bytes) == allocations.end()) return report(error, capacity, outside("copy from", from, bytes));
    std::memmove((void*)to, (const void*)from, bytes);
    return report(error, capacity, "");
}

extern "C" int simt_fill(unsigned long long to, int byte, unsigned long long bytes, char* error, unsigned capacity)
{
    std::lock_guard<std::mutex> lock(guard);
    if (holding(to, bytes) == allocations.end()) return report(error, capacity, outside("fill", to, bytes));
    std::memset((void*)to, byte, bytes);
    return report(error, capacity, "");
}

extern "C" int simt_protect(unsigned long long address, unsigned long long bytes, int usable, char* error, unsigned capacity)
{
    std::lock_guard<std::mutex> lock(guard);
    if (holding(address, bytes) == allocations.end()) return report(error, capacity, outside("protect", address, bytes));
    if (address % 16 != 0 || bytes % 16 != 0) return report(error, capacity, "protect: address and bytes are multiples of 16");
    set_usable(address - (u64)device_memory.data, bytes, usable != 0);
    return report(error, capacity, "");
}

extern "C" unsigned long long simt_allocated_bytes()
{
    std::lock_guard<std::mutex> lock(guard);
    return allocated;
}
