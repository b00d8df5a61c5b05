// variant: COMPACTOR_HEAD_DIM=128 COMPACTOR_ELEMENT_SIZE=2
// variant: COMPACTOR_HEAD_DIM=80 COMPACTOR_ELEMENT_SIZE=1
// variant: COMPACTOR_HEAD_DIM=64 COMPACTOR_ELEMENT_SIZE=4
#include "../../../cuda/compact.cu"
#include "paged.hpp"
using namespace paged;

// Survivors of B sequences of some lengths.
struct Survivors
{
    std::vector<i32> kept, offsets{0}, counts, starts, positions;
    i32 rows, heads, sequences, tokens = 0;
    Survivors(const std::vector<i32>& lengths, i32 heads_, std::mt19937& random) : rows((i32)lengths.size() * heads_), heads(heads_), sequences((i32)lengths.size())
    {
        for (i32 length : lengths) {
            starts.push_back(tokens);
            positions.push_back(tokens * 3 + 1);
            tokens += length;
            for (i32 h = 0; h < heads; h++) {
                i32 count = uniform(random, 0, length);
                for (i32 token : choose(length, count, random)) kept.push_back(token);
                counts.push_back(count);
                offsets.push_back((i32)kept.size());
            }
        }
    }
    i32 count() const { return (i32)kept.size(); }
    u32 blocks() const { return (u32)ceil_div(count(), ROW_SLOTS); }
};

static void deal(const Survivors& s, const DeviceTargets& to, simt::Array<i32>& offsets, simt::Array<i32>& dealt, i32 block_size, const Targets& targets)
{
    DealBlocksParams params{to.view, offsets.address(), dealt.address(), s.sequences, block_size};
    LAUNCH(deal_blocks, {(u32)ceil_div(s.sequences, 4)}, {128}, 0, params);
    CHECK(dealt.values() == targets.dealt);
}

static void check_store(const std::vector<i32>& lengths, i32 heads, i32 block_size, bool aligned, u32 seed)
{
    std::mt19937 random(seed);
    Survivors s(lengths, heads, random);
    Dense key(s.tokens, heads, 0, s.sequences, aligned, random), value(s.tokens, heads, 0, s.sequences, true, random);
    Supply supply(900, random);
    Targets targets(s.counts, heads, block_size, true, supply, random);
    Cache before(900, block_size, HeadBlocks, heads, random), expected = before;
    Bytes dense;
    for (i32 row = 0; row < s.rows; row++)
        for (i32 i = 0; i < s.counts[(size_t)row]; i++) {
            auto [block, slot] = targets.slot(row, i, block_size);
            i32 b = row / heads, token = s.kept[(size_t)(s.offsets[(size_t)row] + i)];
            const u8* from = key.row(b, s.starts[(size_t)b], token, row % heads);
            dense.insert(dense.end(), from, from + ROW_BYTES);
            std::memcpy(&expected.keys[(size_t)expected.offset(block, slot, 0)], from, ROW_BYTES);
            std::memcpy(&expected.values[(size_t)expected.offset(block, slot, 0)], value.row(b, s.starts[(size_t)b], token, row % heads), ROW_BYTES);
            expected.position(block, slot) = s.positions[(size_t)b] + token;
        }
    DeviceTargets to(targets);
    simt::Array<i32> starts(s.starts), positions(s.positions), kept(s.kept), offsets(s.offsets), dealt((size_t)s.rows);
    simt::over_schedules(2, [&] {
        dealt.fill(0xff);
        deal(s, to, offsets, dealt, block_size, targets);
        DeviceCache cache(before);
        StoreSurvivorsParams params{key.view(), value.view(), cache.view, to.view, starts.address(), positions.address(), kept.address(), offsets.address(), dealt.address(),
            s.count(), s.rows, block_size};
        LAUNCH(store_survivors, {s.blocks()}, {ROW_THREADS}, ROW_SHARED_BYTES, params);
        cache.check(expected);
        simt::Array<u8> out(dense.size());
        CompactDenseParams to_dense{key.view(), starts.address(), kept.address(), offsets.address(), out.address(), s.count(), s.rows, heads};
        LAUNCH(compact_dense, {s.blocks()}, {ROW_THREADS}, ROW_SHARED_BYTES, to_dense);
        CHECK(out.values() == dense);
    });
}

static void check_move(const std::vector<i32>& lengths, i32 heads, i32 block_size, u32 seed)
{
    std::mt19937 random(seed);
    Survivors s(lengths, heads, random);
    Supply supply(900, random);
    i32 stride = 1;
    for (i32 length : lengths) stride = std::max(stride, ceil_div(length, block_size));
    std::vector<i32> tables((size_t)(s.rows * stride), -1), row_lengths;
    for (i32 row = 0; row < s.rows; row++) {
        row_lengths.push_back(lengths[(size_t)(row / heads)]);
        for (i32 i = 0; i < ceil_div(row_lengths.back(), block_size); i++) tables[(size_t)(row * stride + i)] = supply.take();
    }
    Targets targets(s.counts, heads, block_size, true, supply, random);
    Cache before(900, block_size, HeadBlocks, heads, random), expected = before;
    for (i32 row = 0; row < s.rows; row++)
        for (i32 i = 0; i < s.counts[(size_t)row]; i++) {
            auto [block, slot] = targets.slot(row, i, block_size);
            i32 old = s.kept[(size_t)(s.offsets[(size_t)row] + i)], old_block = tables[(size_t)(row * stride + old / block_size)];
            std::memcpy(&expected.keys[(size_t)expected.offset(block, slot, 0)], &before.keys[(size_t)before.offset(old_block, old % block_size, 0)], ROW_BYTES);
            std::memcpy(&expected.values[(size_t)expected.offset(block, slot, 0)], &before.values[(size_t)before.offset(old_block, old % block_size, 0)], ROW_BYTES);
            expected.position(block, slot) = before.position(old_block, old % block_size);
        }
    DeviceTargets to(targets);
    simt::Array<i32> kept(s.kept), offsets(s.offsets), dealt((size_t)s.rows), device_tables(tables), device_lengths(row_lengths);
    simt::over_schedules(2, [&] {
        dealt.fill(0xff);
        deal(s, to, offsets, dealt, block_size, targets);
        DeviceCache cache(before);
        MoveSurvivorsParams params{cache.view, {device_tables.address(), device_lengths.address(), stride, s.rows}, to.view, kept.address(), offsets.address(), dealt.address(),
            s.count(), block_size};
        LAUNCH(move_survivors, {s.blocks()}, {ROW_THREADS}, ROW_SHARED_BYTES, params);
        cache.check(expected);
    });
}

static void check_in_place(const std::vector<i32>& lengths, i32 heads, i32 block_size, Layout layout, u32 seed)
{
    std::mt19937 random(seed);
    Survivors s(lengths, heads, random);
    Supply supply(60, random);
    i32 stride = 1;
    for (i32 length : lengths) stride = std::max(stride, ceil_div(length, block_size));
    std::vector<i32> tables((size_t)(s.sequences * stride), -1);
    for (i32 b = 0; b < s.sequences; b++)
        for (i32 i = 0; i < ceil_div(lengths[(size_t)b], block_size); i++) tables[(size_t)(b * stride + i)] = supply.take();
    Cache before(60, block_size, layout, heads, random), expected = before;
    for (i32 row = 0; row < s.rows; row++)
        for (i32 i = 0; i < s.counts[(size_t)row]; i++) {
            i32 old = s.kept[(size_t)(s.offsets[(size_t)row] + i)], table = row / heads * stride;
            i64 from = before.offset(tables[(size_t)(table + old / block_size)], old % block_size, row % heads);
            i64 to = before.offset(tables[(size_t)(table + i / block_size)], i % block_size, row % heads);
            std::memcpy(&expected.keys[(size_t)to], &before.keys[(size_t)from], ROW_BYTES);
            std::memcpy(&expected.values[(size_t)to], &before.values[(size_t)from], ROW_BYTES);
        }
    simt::Array<i32> kept(s.kept), offsets(s.offsets), device_tables(tables);
    simt::over_schedules(3, [&] {
        DeviceCache cache(before);
        CompactInPlaceParams params{cache.view, device_tables.address(), kept.address(), offsets.address(), stride, heads, block_size};
        LAUNCH(compact_in_place, {(u32)(s.rows * 2 * PARTS)}, {PLACE_THREADS}, 0, params);
        cache.check(expected);
    });
}

int main()
{
    return simt::test([] {
        check_store({70, 1, 0, 33}, 3, 16, true, 1);
        check_store({130}, 40, 24, true, 2);          // more heads than a warp has lanes
        check_store({20, 30}, 2, 16, false, 3);
        check_move({70, 1, 0, 33}, 3, 16, 4);
        check_move({90}, 35, 24, 5);
        check_in_place({100, 0, 37}, 2, 16, Nhd, 6);
        check_in_place({700, 41}, 2, 24, Hnd, 7);
    });
}
