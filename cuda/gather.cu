// Gathers what rows of block tables hold into dense memory: slot i < lengths[row] goes to entry offsets[row] + i of keys [., D], values [., D] and positions [.].
// tables i32 [rows, row_stride], each row of one head; offsets i32 [rows]. Bytes: 4·D elements and two positions a slot.
// Lengths are read on the device: the grid covers full tables, and blocks beyond a row's length end at once.
//
// gather_slots   grid: ceil(rows·room / 64), room = row_stride·block_size   threads: 128   shared: 1536 bytes   workspace: none
#include "rows.cuh"

struct GatherSlotsParams
{
    Paged cache;
    PagedTables tables;
    u64 offsets, keys, values, positions;
    i32 block_size, room;               // room: row_stride·block_size
};

extern "C" __global__ void __launch_bounds__(ROW_THREADS, 8) gather_slots(const __grid_constant__ GatherSlotsParams p)
{
    i64 all = (i64)p.tables.rows * p.room, begin = (i64)blockIdx.x * ROW_SLOTS;
    i32 slots = (i32)(all - begin < ROW_SLOTS ? all - begin : ROW_SLOTS), mine = threadIdx.x;
    if (mine < slots)
    {
        i32 row = (i32)((begin + mine) / p.room), i = (i32)((begin + mine) - (i64)row * p.room);
        if (i < ((const i32*)p.tables.lengths)[row])
        {
            Slot from = slot_of(p.tables, row, i, p.block_size);
            i64 source = paged_offset(p.cache, from.block, from.slot, 0, ELEMENT_SIZE), to = (i64)((const i32*)p.offsets)[row] + i;
            put_rows(mine, p.cache.keys + source, p.cache.values + source, to * ROW_BYTES);
            ((i32*)p.positions)[to] = ((const i32*)p.cache.positions)[(i64)from.block * p.block_size + from.slot];
        }
        else
            put_rows(mine, 0, 0, 0);
    }
    copy_rows<true>(slots, p.keys, p.values, alignment_of(p.cache));
}
