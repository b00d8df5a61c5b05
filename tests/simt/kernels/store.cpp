// variant: COMPACTOR_HEAD_DIM=128 COMPACTOR_ELEMENT_SIZE=2
// variant: COMPACTOR_HEAD_DIM=80 COMPACTOR_ELEMENT_SIZE=1
// variant: COMPACTOR_HEAD_DIM=64 COMPACTOR_ELEMENT_SIZE=4
#include "../../../cuda/store.cu"
#include "paged.hpp"
using namespace paged;

static void check(std::vector<i32> counts, i32 heads, i32 block_size, bool padded, bool aligned, u32 seed)
{
    std::mt19937 random(seed);
    i32 sequences = (i32)counts.size(), most = *std::max_element(counts.begin(), counts.end()), tokens = 3;
    std::vector<i32> first, position, rows;
    for (i32 b = 0; b < sequences; b++) {
        first.push_back(padded ? 0 : tokens);
        tokens += counts[(size_t)b] + 2;
        position.push_back(100 * b + 7);
        for (i32 h = 0; h < heads; h++) rows.push_back(counts[(size_t)b]);
    }
    Dense key(tokens, heads, padded ? most + 1 : 0, sequences, aligned, random), value(tokens, heads, padded ? most + 2 : 0, sequences, aligned, random);
    Supply supply(400, random);
    Targets targets(rows, heads, block_size, false, supply, random);
    Cache before(400, block_size, HeadBlocks, heads, random), expected = before;
    for (i32 row = 0; row < sequences * heads; row++)
        for (i32 i = 0; i < rows[(size_t)row]; i++) {
            auto [block, slot] = targets.slot(row, i, block_size);
            i32 b = row / heads;
            std::memcpy(&expected.keys[(size_t)expected.offset(block, slot, 0)], key.row(b, first[(size_t)b], i, row % heads), ROW_BYTES);
            std::memcpy(&expected.values[(size_t)expected.offset(block, slot, 0)], value.row(b, first[(size_t)b], i, row % heads), ROW_BYTES);
            expected.position(block, slot) = position[(size_t)b] + i;
        }
    simt::Array<i32> device_first(first), device_position(position), device_counts(counts);
    DeviceTargets to(targets);
    simt::over_schedules(2, [&] {
        DeviceCache cache(before);
        StoreTokensParams params{key.view(), value.view(), cache.view, to.view, device_first.address(), device_position.address(), device_counts.address(),
            (i64)sequences * heads * most, most, block_size};
        LAUNCH(store_tokens, {(u32)ceil_div(sequences * heads * most, ROW_SLOTS)}, {ROW_THREADS}, ROW_SHARED_BYTES, params);
        cache.check(expected);
    });
}

int main()
{
    return simt::test([] {
        check({1, 1, 1}, 2, 16, false, true, 1);           // a decode step
        check({37, 0, 70}, 3, 16, false, true, 2);         // ragged, one empty
        check({33}, 2, 24, true, true, 3);                 // padded, a block size that is no power of two
        check({9, 21}, 2, 16, false, false, 4);            // addresses that are no multiples of 16
    });
}
