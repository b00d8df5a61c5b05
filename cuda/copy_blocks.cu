// Copies the first slots of blocks, with their positions: what a fork copies of partial last blocks. Slots [0, counts[n]) of block from[n] go to block to[n].
// from, to, counts i32 [n]; all of `to` differ and none is in `from`. Bytes: 4·D elements and two positions a slot.
//
// copy_blocks   grid: ceil(n·block_size / 64)   threads: 128   shared: 1536 bytes   workspace: none
#include "rows.cuh"

struct CopyBlocksParams
{
    Paged cache;
    u64 from, to, counts;
    i32 blocks, block_size;
};

extern "C" __global__ void __launch_bounds__(ROW_THREADS, 8) copy_blocks(const __grid_constant__ CopyBlocksParams p)
{
    i64 all = (i64)p.blocks * p.block_size, begin = (i64)blockIdx.x * ROW_SLOTS;
    i32 slots = (i32)(all - begin < ROW_SLOTS ? all - begin : ROW_SLOTS), mine = threadIdx.x;
    if (mine < slots)
    {
        i32 n = (i32)((begin + mine) / p.block_size), slot = (i32)((begin + mine) - (i64)n * p.block_size);
        if (slot < ((const i32*)p.counts)[n])
        {
            i32 from = ((const i32*)p.from)[n], to = ((const i32*)p.to)[n];
            i64 source = paged_offset(p.cache, from, slot, 0, ELEMENT_SIZE);
            put_rows(mine, p.cache.keys + source, p.cache.values + source, paged_offset(p.cache, to, slot, 0, ELEMENT_SIZE));
            i32* positions = (i32*)p.cache.positions;
            positions[(i64)to * p.block_size + slot] = positions[(i64)from * p.block_size + slot];
        }
        else
            put_rows(mine, 0, 0, 0);
    }
    copy_rows<true>(slots, p.cache.keys, p.cache.values, alignment_of(p.cache));
}
