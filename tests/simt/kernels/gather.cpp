// variant: COMPACTOR_HEAD_DIM=128 COMPACTOR_ELEMENT_SIZE=2
// variant: COMPACTOR_HEAD_DIM=80 COMPACTOR_ELEMENT_SIZE=4
#include "../../../cuda/gather.cu"
#include "paged.hpp"
using namespace paged;

static void check(std::vector<i32> lengths, i32 block_size, u32 seed)
{
    std::mt19937 random(seed);
    Supply supply(60, random);
    Cache cache(60, block_size, HeadBlocks, 1, random);
    i32 rows = (i32)lengths.size(), stride = ceil_div(*std::max_element(lengths.begin(), lengths.end()), block_size) + 1, slots = 0;
    std::vector<i32> tables((size_t)(rows * stride), -1), offsets, positions;
    Bytes keys, values;
    for (i32 row = 0; row < rows; row++) {
        offsets.push_back(slots);
        slots += lengths[(size_t)row];
        for (i32 i = 0; i < lengths[(size_t)row]; i++) {
            i32& block = tables[(size_t)(row * stride + i / block_size)];
            if (i % block_size == 0) block = supply.take();
            const u8 *key = &cache.keys[(size_t)cache.offset(block, i % block_size, 0)], *value = &cache.values[(size_t)cache.offset(block, i % block_size, 0)];
            keys.insert(keys.end(), key, key + ROW_BYTES);
            values.insert(values.end(), value, value + ROW_BYTES);
            positions.push_back(cache.position(block, i % block_size));
        }
    }
    DeviceCache device(cache);
    simt::Array<i32> device_tables(tables), device_lengths(lengths), device_offsets(offsets);
    simt::over_schedules(2, [&] {
        simt::Array<u8> out_keys(keys.size()), out_values(values.size());
        simt::Array<i32> out_positions(positions.size());
        GatherSlotsParams params{device.view, {device_tables.address(), device_lengths.address(), stride, rows}, device_offsets.address(),
            out_keys.address(), out_values.address(), out_positions.address(), block_size, stride * block_size};
        LAUNCH(gather_slots, {(u32)ceil_div(rows * stride * block_size, ROW_SLOTS)}, {ROW_THREADS}, ROW_SHARED_BYTES, params);
        CHECK(out_keys.values() == keys);
        CHECK(out_values.values() == values);
        CHECK(out_positions.values() == positions);
    });
}

int main()
{
    return simt::test([] {
        check({40, 0, 1, 16}, 16, 1);
        check({131, 77}, 48, 2);
    });
}
