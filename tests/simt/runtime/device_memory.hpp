// Device memory: one reserved address range, allocations with redzones, and for every 16 bytes how many of them a kernel may touch.
#pragma once
#include "races.hpp"
#include "types.hpp"

namespace simt {

constexpr u64 device_range_bytes = 8ull << 30;

struct DeviceMemory
{
    u8* data;         // [device_range_bytes]
    u8* usable;       // [device_range_bytes / 16]: leading bytes of each 16 that may be touched
    Cell* accesses;   // [device_range_bytes / 8] race records
};
extern const DeviceMemory device_memory;

inline bool in_device_range(u64 address) { return address - (u64)device_memory.data < device_range_bytes; }

// Whether all bytes of [address, address + bytes) may be touched; address is in the range.
inline bool is_usable(u64 address, u64 bytes)
{
    u64 offset = address - (u64)device_memory.data, last = offset + bytes - 1;
    if (last >= device_range_bytes || device_memory.usable[last >> 4] <= (last & 15)) return false;
    for (u64 granule = offset >> 4; granule < last >> 4; granule++)
        if (device_memory.usable[granule] != 16) return false;
    return true;
}

}
