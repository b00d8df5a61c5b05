// Stores tokens in every head: a prefill of any length, or the append of a decode step. New slot i of row (b, h), i < counts[b], holds key[b, first + i, h] and
// value[b, first + i, h], at position first_position[b] + i. Blocks are those the row lists; none is dealt.
//
// key, value [N, Hkv, D] of any strides, packed or padded; cache in head-blocks [blocks, block_size, D]; first, first_position, counts i32 [B].
// Bytes: 4·D elements and a position a slot (keys and values, read and written). L8, 131072 tokens: 1.07 GB, 250 us at 4.3 TB/s.
// In flight an SM: 9 blocks of 128 threads (56 registers), 8 loads of 16 bytes each: 147 KB, above the 32 KB that latency needs, so memory bounds the copy.
//
// store_tokens  grid: ceil(slots / 64), slots = B·Hkv·most_tokens   threads: 128   shared: 1536 bytes   workspace: none
#include "rows.cuh"

struct StoreTokensParams
{
    Tensor key, value;
    Paged cache;
    PagedTargets targets;
    u64 first, first_position, counts;
    i64 slots;                          // B·Hkv·most_tokens
    i32 most_tokens, block_size;
};

extern "C" __global__ void __launch_bounds__(ROW_THREADS, 8) store_tokens(const __grid_constant__ StoreTokensParams p)
{
    i64 begin = (i64)blockIdx.x * ROW_SLOTS;
    i32 slots = (i32)(p.slots - begin < ROW_SLOTS ? p.slots - begin : ROW_SLOTS), mine = threadIdx.x;
    if (mine < slots)
    {
        i32 row = (i32)((begin + mine) / p.most_tokens), i = (i32)((begin + mine) - (i64)row * p.most_tokens);
        i32 b = row / p.targets.kv_heads, head = row - b * p.targets.kv_heads;
        if (i < ((const i32*)p.counts)[b])
        {
            Slot to = new_slot(p.targets, row, i, 0, p.block_size);
            i32 start = ((const i32*)p.first)[b];
            put_rows(mine, p.key.address + tensor_offset(p.key, b, start, i, head, ELEMENT_SIZE), p.value.address + tensor_offset(p.value, b, start, i, head, ELEMENT_SIZE),
                paged_offset(p.cache, to.block, to.slot, 0, ELEMENT_SIZE));
            ((i32*)p.cache.positions)[(i64)to.block * p.block_size + to.slot] = ((const i32*)p.first_position)[b] + i;
        }
        else
            put_rows(mine, 0, 0, 0);
    }
    copy_rows<true>(slots, p.cache.keys, p.cache.values, alignment_of(p.key) | alignment_of(p.value) | alignment_of(p.cache));
}
