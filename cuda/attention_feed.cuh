// The copies of a warp, ahead of what it works on: STAGES - 1 rounds, from the end of an item on into those after it, so that memory is never idle between items.
#pragma once
#include "attention_items.cuh"

template <i32 Team, i32 TileRows> struct Feed
{
    typedef AttentionShape<Team, TileRows> Shape;

    i32 found = 0;   // items so far

    __device__ __forceinline__ Feed(const AttentionParams& p) : blocks(ROUND_KEYS / p.block_size), places(ROUND_KEYS % p.block_size), index((i64)blockIdx.x - gridDim.x) { }

    // Starts the copies of the next round, if an item has been found that has one, and ends their group; then finds the item after it, so that what finding waits for is waited
    // for with the most copies on their way. Each warp fills 16 slots of its team's stage.
    __device__ __forceinline__ void step(const AttentionParams& p, u32 ring, u32 positions)
    {
        if (rounds > 0)
        {
            if (next < reach.end)
                fill(p, ring, positions);
            rounds--;
            next += ROUND_KEYS;
            entry += blocks;
            place += places;
            if (place >= p.block_size)
            {
                place -= p.block_size;
                entry++;
            }
            block = next < reach.end ? table[entry] : 0;
        }
        cp_async_commit();
        if (rounds == 0)
            find(p);
    }

    // Item n: one of the last 4 that were found, as the one that is worked on always is.
    __device__ __forceinline__ Item item_of(i32 n) const
    {
        i32 word[8];
#pragma unroll
        for (i32 i = 0; i < 8; i++)
            word[i] = __shfl_sync(0xffffffff, items, n % 4 * 8 + i);
        return {word[0], word[1], word[2], word[3], word[4], word[5], word[6], word[7]};
    }

private:
    Walk walk;
    Item item = {};
    Reach reach = {};
    const i32* table = nullptr;
    i64 head = 0;               // bytes to its part of a block
    i32 blocks, places;         // of a round: ROUND_KEYS = blocks·block_size + places
    i32 rounds = 0, next = 0;   // rounds of the item still to come, and this warp's first slot in the first of them,
    i32 entry = 0, place = 0;   // entry·block_size + place
    i32 block = 0;              // table[entry], loaded a round ahead
    i32 items = 0;              // the last 4 items, a word a lane
    i64 index;

    __device__ __forceinline__ void find(const AttentionParams& p)
    {
        index += gridDim.x;
        if (!find_item<TileRows>(p, walk, index, item))
            return;
        i32 word[8] = {item.sequence, item.head, item.row, item.tokens, item.length, item.tile, item.split, item.splits};
#pragma unroll
        for (i32 i = 0; i < 8; i++)
            if ((i32)threadIdx.x % 32 == found % 4 * 8 + i)
                items = word[i];
        found++;
        reach = reach_of<TileRows>(p, item);
        rounds = reach.rounds;
        head = item.head * p.cache.head_stride * ELEMENT_BYTES;
        table = (const i32*)p.tables.tables + (i64)table_row(p, item.row) * p.tables.row_stride;
        next = reach.begin + threadIdx.x / 32 * TILE_KEYS;
        entry = next / p.block_size;
        place = next - entry * p.block_size;
        block = next < reach.end ? table[entry] : 0;
    }

    __device__ __forceinline__ void fill(const AttentionParams& p, u32 ring, u32 positions) const
    {
        static_assert(TILE_KEYS * UNITS % 32 == 0, "a warp's copies are whole");
        i32 lane = threadIdx.x % 32, first_key = threadIdx.x / 32 % Team * TILE_KEYS, of_block = block, of_place = place + lane % 16;
        bool one_block = next + TILE_KEYS <= reach.end && place + TILE_KEYS <= p.block_size, real = true;
        if (!one_block)
        {
            keep_branch();
            i32 slot = next + lane % 16;
            real = slot < reach.end;
            of_block = real ? table[slot / p.block_size] : 0;
            of_place = slot % p.block_size;
        }
        if (p.window > 0)
        {
            i32 position = real ? ((const i32*)p.cache.positions)[(i64)of_block * p.block_size + of_place] : -2147483647 - 1;
            if (lane < 16)
                store_shared(positions + (first_key + lane) * 4, (u32)position);
            if (!__any_sync(0xffffffff, position > reach.oldest))
                return;
        }
        u32 to = ring + first_key * ROW_STRIDE;
        if (one_block)
        {
            i64 from = head + (block * p.cache.block_stride + place * p.cache.slot_stride) * ELEMENT_BYTES;
            if (p.cache.slot_stride == DIM)
                copy<true>(p.cache.keys + from, p.cache.values + from, DIM, to);
            else
                copy<false>(p.cache.keys + from, p.cache.values + from, p.cache.slot_stride, to);
            return;
        }
        i64 offset = real ? paged_offset(p.cache, of_block, of_place, item.head, ELEMENT_BYTES) : 0;
#pragma unroll 1
        for (i32 i = 0; i < TILE_KEYS * UNITS / 32; i++)
        {
            i32 row = row_of(lane, i), unit = lane + 32 * i - row * UNITS;
            i64 from = __shfl_sync(0xffffffff, offset, row) + unit * 16;
            u32 bytes = next + row < reach.end ? 16 : 0;
            cp_async_16(to + unit_at(row, unit), (const void*)(p.cache.keys + from), bytes);
            cp_async_16(to + Shape::STAGE_KEYS * ROW_STRIDE + unit_at(row, unit), (const void*)(p.cache.values + from), bytes);
        }
    }

    // Copies 16 rows of keys and of values, `stride` elements apart: on end where Dense.
    template <bool Dense> __device__ __forceinline__ static void copy(u64 keys, u64 values, i64 stride, u32 to)
    {
        constexpr i32 ROWS_A_COPY = 32 / UNITS;
        constexpr bool WHOLE_ROWS = ROWS_A_COPY * UNITS == 32;
        i32 lane = threadIdx.x % 32;
        i64 first = Dense ? lane * 16 : WHOLE_ROWS ? lane / UNITS * stride * ELEMENT_BYTES + lane % UNITS * 16 : 0;
        keys += first;
        values += first;
        u32 to_first = to + unit_at(lane / UNITS, lane % UNITS);
#pragma unroll
        for (i32 i = 0; i < TILE_KEYS * UNITS / 32; i++)
        {
            i32 row = row_of(lane, i), unit = lane + 32 * i - row * UNITS;
            i64 from = Dense ? i * 512 : WHOLE_ROWS ? i * (ROWS_A_COPY * stride * ELEMENT_BYTES) : row * stride * ELEMENT_BYTES + unit * 16;
            u32 at = WHOLE_ROWS && UNITS % 8 == 0 ? (to_first ^ i * ROWS_A_COPY % 8 * 16) + i * ROWS_A_COPY * ROW_STRIDE : to + unit_at(row, unit);
            cp_async_16(at, (const void*)(keys + from), 16);
            cp_async_16(at + Shape::STAGE_KEYS * ROW_STRIDE, (const void*)(values + from), 16);
        }
    }

    // The row of a lane's copy i.
    __device__ __forceinline__ static i32 row_of(i32 lane, i32 i) { return 32 % UNITS == 0 ? lane / UNITS + i * (32 / UNITS) : (lane + 32 * i) / UNITS; }
};
