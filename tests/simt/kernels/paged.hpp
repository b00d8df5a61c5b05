// A paged cache of bytes, dense tensors of any strides, and targets for new slots, each with what the host expects of them.
#pragma once
#include "../simt_test.hpp"
#include <algorithm>
#include <numeric>

namespace paged {

typedef std::vector<u8> Bytes;

inline Bytes random_bytes(size_t count, std::mt19937& random)
{
    Bytes bytes(count);
    for (u8& x : bytes) x = (u8)random();
    return bytes;
}
inline i32 uniform(std::mt19937& random, i32 low, i32 high) { return low + (i32)(random() % (u32)(high - low + 1)); }

// [N, heads, D] with gaps, whose elements are multiples of `alignment` bytes from 16-byte boundaries; packed, or one sequence every `sequence_tokens`.
struct Dense
{
    i32 heads;
    i64 token_stride, head_stride, sequence_stride;   // elements
    Bytes bytes;
    simt::Array<u8> memory;
    size_t shift;

    Dense(i32 tokens, i32 heads_, i32 sequence_tokens, i32 sequences, bool aligned, std::mt19937& random)
        : heads(heads_), token_stride((i64)heads_ * (ROW_BYTES / ELEMENT_SIZE + (aligned ? 16 : 1))), head_stride(ROW_BYTES / ELEMENT_SIZE + (aligned ? 16 : 1)),
          sequence_stride(sequence_tokens * token_stride), bytes(random_bytes(size((sequence_tokens ? sequence_tokens * sequences : tokens)), random)),
          memory(bytes.size() + 16), shift(aligned ? 0 : (size_t)ELEMENT_SIZE)
    {
        std::memcpy(memory.data() + shift, bytes.data(), bytes.size());
    }
    size_t size(i32 tokens) const { return (size_t)(std::max(tokens, 1) * token_stride * ELEMENT_SIZE); }
    Tensor view() const { return {memory.address() + shift, token_stride, head_stride, sequence_stride}; }
    const u8* row(i32 b, i32 start, i32 token, i32 head) const
    {
        i64 origin = sequence_stride == 0 ? start * token_stride : b * sequence_stride;
        return bytes.data() + (origin + token * token_stride + head * head_stride) * ELEMENT_SIZE;
    }
};

// Blocks of one head, or of all heads of a token (NHD) or of a head (HND).
enum Layout { HeadBlocks, Nhd, Hnd };
struct Cache
{
    i32 blocks, block_size;
    i64 block_stride, slot_stride, head_stride;
    Bytes keys, values;
    std::vector<i32> positions;

    Cache(i32 blocks_, i32 block_size_, Layout layout, i32 heads, std::mt19937& random) : blocks(blocks_), block_size(block_size_)
    {
        const i64 d = ROW_BYTES / ELEMENT_SIZE;
        i32 together = layout == HeadBlocks ? 1 : heads;
        block_stride = together * block_size * d;
        slot_stride = layout == Nhd ? together * d : d;
        head_stride = layout == HeadBlocks ? 0 : layout == Nhd ? d : block_size * d;
        keys = random_bytes((size_t)(blocks * block_stride * ELEMENT_SIZE), random);
        values = random_bytes(keys.size(), random);
        positions.resize((size_t)(blocks * block_size));
        for (i32& x : positions) x = (i32)(random() & 0xffff);
    }
    i64 offset(i32 block, i32 slot, i32 head) const { return (block * block_stride + slot * slot_stride + head * head_stride) * ELEMENT_SIZE; }
    i32& position(i32 block, i32 slot) { return positions[(size_t)(block * block_size + slot)]; }
};

// The device's copy of a cache.
struct DeviceCache
{
    simt::Array<u8> keys, values;
    simt::Array<i32> positions;
    Paged view;
    explicit DeviceCache(const Cache& c) : keys(c.keys), values(c.values), positions(c.positions), view{keys.address(), values.address(), c.block_stride, c.slot_stride, c.head_stride, positions.address()} {}
    void check(const Cache& expected) const
    {
        CHECK(keys.values() == expected.keys);
        CHECK(values.values() == expected.values);
        CHECK(positions.values() == expected.positions);
    }
};

// Distinct blocks in random order.
struct Supply
{
    std::vector<i32> blocks;
    Supply(i32 count, std::mt19937& random) : blocks((size_t)count)
    {
        std::iota(blocks.begin(), blocks.end(), 0);
        std::shuffle(blocks.begin(), blocks.end(), random);
    }
    i32 take()
    {
        i32 block = blocks.back();
        blocks.pop_back();
        return block;
    }
};

// Where counts[row] new slots of every row go; blocks beyond those listed are dealt as PagedTargets says.
struct Targets
{
    i32 kv_heads, row_stride;
    std::vector<i32> blocks, listed, starts, reserved, reserved_starts, dealt;

    Targets(const std::vector<i32>& counts, i32 kv_heads_, i32 block_size, bool deal, Supply& supply, std::mt19937& random) : kv_heads(kv_heads_), row_stride(1)
    {
        for (size_t row = 0; row < counts.size(); row++) {
            starts.push_back(uniform(random, 0, block_size - 1));
            i32 needed = ceil_div(starts[row] + counts[row], block_size);
            listed.push_back(deal ? std::min(needed, uniform(random, starts[row] > 0, 3)) : std::max(1, needed));
            if (listed[row] == 0) starts[row] = 0;
            row_stride = std::max(row_stride, listed[row]);
        }
        blocks.assign(counts.size() * (size_t)row_stride, -1);
        for (size_t row = 0; row < counts.size(); row++)
            for (i32 i = 0; i < listed[row]; i++) blocks[row * (size_t)row_stride + (size_t)i] = supply.take();
        for (size_t row = 0; row < counts.size(); row++) {
            if (row % (size_t)kv_heads == 0) {
                if (row > 0) reserved.push_back(supply.take());   // a spare one between sequences
                reserved_starts.push_back((i32)reserved.size());
            }
            dealt.push_back((i32)reserved.size());
            for (i32 i = listed[row]; i < ceil_div(starts[row] + counts[row], block_size); i++) reserved.push_back(supply.take());
        }
        reserved.push_back(supply.take());
    }
    std::pair<i32, i32> slot(i32 row, i32 i, i32 block_size) const
    {
        i32 at = starts[(size_t)row] + i, block = at / block_size;
        i32 id = block < listed[(size_t)row] ? blocks[(size_t)(row * row_stride + block)] : reserved[(size_t)(dealt[(size_t)row] + block - listed[(size_t)row])];
        return {id, at % block_size};
    }
};
struct DeviceTargets
{
    simt::Array<i32> blocks, listed, starts, reserved, reserved_starts;
    PagedTargets view;
    explicit DeviceTargets(const Targets& t)
        : blocks(t.blocks), listed(t.listed), starts(t.starts), reserved(t.reserved), reserved_starts(t.reserved_starts),
          view{blocks.address(), listed.address(), starts.address(), reserved.address(), reserved_starts.address(), t.kv_heads, t.row_stride}
    {
    }
};

// Ascending choice of `count` numbers below `among`.
inline std::vector<i32> choose(i32 among, i32 count, std::mt19937& random)
{
    std::vector<i32> all((size_t)among);
    std::iota(all.begin(), all.end(), 0);
    std::shuffle(all.begin(), all.end(), random);
    all.resize((size_t)count);
    std::sort(all.begin(), all.end());
    return all;
}

}
