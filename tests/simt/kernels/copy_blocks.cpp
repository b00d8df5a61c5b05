// variant: COMPACTOR_HEAD_DIM=128 COMPACTOR_ELEMENT_SIZE=2
// variant: COMPACTOR_HEAD_DIM=96 COMPACTOR_ELEMENT_SIZE=1
#include "../../../cuda/copy_blocks.cu"
#include "paged.hpp"
using namespace paged;

static void check(std::vector<i32> counts, i32 block_size, u32 seed)
{
    std::mt19937 random(seed);
    Supply supply(40, random);
    Cache before(40, block_size, HeadBlocks, 1, random), expected = before;
    std::vector<i32> from, to;
    for (i32 count : counts) {
        from.push_back(supply.take());
        to.push_back(supply.take());
        std::memcpy(&expected.keys[(size_t)expected.offset(to.back(), 0, 0)], &before.keys[(size_t)before.offset(from.back(), 0, 0)], (size_t)(count * ROW_BYTES));
        std::memcpy(&expected.values[(size_t)expected.offset(to.back(), 0, 0)], &before.values[(size_t)before.offset(from.back(), 0, 0)], (size_t)(count * ROW_BYTES));
        for (i32 slot = 0; slot < count; slot++) expected.position(to.back(), slot) = before.position(from.back(), slot);
    }
    simt::Array<i32> device_from(from), device_to(to), device_counts(counts);
    simt::over_schedules(2, [&] {
        DeviceCache cache(before);
        CopyBlocksParams params{cache.view, device_from.address(), device_to.address(), device_counts.address(), (i32)counts.size(), block_size};
        LAUNCH(copy_blocks, {(u32)ceil_div((i32)counts.size() * block_size, ROW_SLOTS)}, {ROW_THREADS}, ROW_SHARED_BYTES, params);
        cache.check(expected);
    });
}

int main()
{
    return simt::test([] {
        check({5, 16, 0, 1, 15}, 16, 1);
        check({100, 128, 3}, 128, 2);
    });
}
