// Survivors of a selection go where they are kept: from dense tensors into head-blocks (store), from old head-blocks into new ones (move), to the front of a cache
// that its host owns (in place), or into dense memory. Entry i of kept [K] is a token or old slot; kept_offsets [B·Hkv + 1] says where each row's entries start.
//
// Dealing: row (b, h) needs need(h) = max(0, ceil((starts + count) / block_size) - listed) blocks beyond those it lists; they are the reserved ones of the sequence from
// reserved_starts[b] + need(0) + ... + need(h - 1) on. deal_blocks is that scan, a warp a sequence; store and move read its result. The host repeats it on the counts.
//
// Bytes: 4·D elements and two positions a survivor. L8 at r = 0.5, 524288 survivors: 537 MB, 125 us at 4.3 TB/s; the lists are 2 MB.
// A thread of a block finds its slot's row by bisection of kept_offsets (9 steps at 256 rows, all in cache) while 8 other blocks of the SM copy.
//
// deal_blocks        grid: ceil(B / 4)                 threads: 128   shared: 0            writes dealt i32 [B·Hkv], the workspace of the next two
// store_survivors    grid: ceil(K / 64)                threads: 128   shared: 1536 bytes
// move_survivors     grid: ceil(K / 64)                threads: 128   shared: 1536 bytes
// compact_dense      grid: ceil(K / 64)                threads: 128   shared: 1536 bytes   one tensor a launch
// compact_in_place   grid: B·Hkv·2·(row bytes / part)  threads: 256   shared: 0            part = 32 bytes where it divides the row, else 16
// In place: slots of a row ascend, so kept[i] >= i, and moving [i, i + n) after all of it was read overwrites nothing that is still to be read. That holds for every
// column of bytes by itself: a block owns one part of a row's keys or values, which makes 128 independent blocks of one sequence of L8.
#include "rows.cuh"

struct DealBlocksParams
{
    PagedTargets targets;
    u64 kept_offsets, dealt;
    i32 sequences, block_size;
};

extern "C" __global__ void __launch_bounds__(128) deal_blocks(const __grid_constant__ DealBlocksParams p)
{
    i32 b = blockIdx.x * 4 + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (b >= p.sequences)
        return;
    i32 at = ((const i32*)p.targets.reserved_starts)[b];
    for (i32 first = 0; first < p.targets.kv_heads; first += 32)
    {
        i32 row = b * p.targets.kv_heads + first + lane, need = 0;
        bool real = first + lane < p.targets.kv_heads;
        if (real)
        {
            const i32* offsets = (const i32*)p.kept_offsets;
            i64 end = (i64)((const i32*)p.targets.starts)[row] + offsets[row + 1] - offsets[row];
            i64 more = (end + p.block_size - 1) / p.block_size - ((const i32*)p.targets.listed)[row];
            need = more > 0 ? (i32)more : 0;
        }
        i32 sum = need;
#pragma unroll
        for (i32 step = 1; step < 32; step *= 2)
        {
            i32 below = __shfl_up_sync(0xffffffff, sum, step);
            sum += lane >= step ? below : 0;
        }
        if (real)
            ((i32*)p.dealt)[row] = at + sum - need;
        at += __shfl_sync(0xffffffff, sum, 31);
    }
}

struct StoreSurvivorsParams
{
    Tensor key, value;
    Paged cache;
    PagedTargets targets;
    u64 first, first_position;          // i32 [B]
    u64 kept, kept_offsets, dealt;
    i64 survivors;
    i32 rows, block_size;
};

extern "C" __global__ void __launch_bounds__(ROW_THREADS, 8) store_survivors(const __grid_constant__ StoreSurvivorsParams p)
{
    i32 begin = blockIdx.x * ROW_SLOTS, slots = (i32)(p.survivors - begin < ROW_SLOTS ? p.survivors - begin : ROW_SLOTS), mine = threadIdx.x;
    if (mine < slots)
    {
        const i32* offsets = (const i32*)p.kept_offsets;
        i32 row = row_of(offsets, p.rows, begin + mine), b = row / p.targets.kv_heads, head = row - b * p.targets.kv_heads;
        i32 token = ((const i32*)p.kept)[begin + mine], start = ((const i32*)p.first)[b];
        Slot to = new_slot(p.targets, row, begin + mine - offsets[row], ((const i32*)p.dealt)[row], p.block_size);
        put_rows(mine, p.key.address + tensor_offset(p.key, b, start, token, head, ELEMENT_SIZE), p.value.address + tensor_offset(p.value, b, start, token, head, ELEMENT_SIZE),
            paged_offset(p.cache, to.block, to.slot, 0, ELEMENT_SIZE));
        ((i32*)p.cache.positions)[(i64)to.block * p.block_size + to.slot] = ((const i32*)p.first_position)[b] + token;
    }
    copy_rows<true>(slots, p.cache.keys, p.cache.values, alignment_of(p.key) | alignment_of(p.value) | alignment_of(p.cache));
}

struct MoveSurvivorsParams
{
    Paged cache;
    PagedTables from;
    PagedTargets targets;
    u64 kept, kept_offsets, dealt;
    i32 survivors, block_size;
};

extern "C" __global__ void __launch_bounds__(ROW_THREADS, 8) move_survivors(const __grid_constant__ MoveSurvivorsParams p)
{
    i32 begin = blockIdx.x * ROW_SLOTS, slots = (i32)(p.survivors - begin < ROW_SLOTS ? p.survivors - begin : ROW_SLOTS), mine = threadIdx.x;
    if (mine < slots)
    {
        const i32* offsets = (const i32*)p.kept_offsets;
        i32 row = row_of(offsets, p.from.rows, begin + mine);
        Slot old = slot_of(p.from, row, ((const i32*)p.kept)[begin + mine], p.block_size);
        Slot to = new_slot(p.targets, row, begin + mine - offsets[row], ((const i32*)p.dealt)[row], p.block_size);
        i64 from = paged_offset(p.cache, old.block, old.slot, 0, ELEMENT_SIZE);
        put_rows(mine, p.cache.keys + from, p.cache.values + from, paged_offset(p.cache, to.block, to.slot, 0, ELEMENT_SIZE));
        i32* positions = (i32*)p.cache.positions;
        positions[(i64)to.block * p.block_size + to.slot] = positions[(i64)old.block * p.block_size + old.slot];
    }
    copy_rows<true>(slots, p.cache.keys, p.cache.values, alignment_of(p.cache));
}

struct CompactDenseParams
{
    Tensor source;
    u64 starts;                         // i32 [B] first token of each sequence in the packed batch
    u64 kept, kept_offsets, destination;
    i64 survivors;
    i32 rows, kv_heads;
};

extern "C" __global__ void __launch_bounds__(ROW_THREADS, 8) compact_dense(const __grid_constant__ CompactDenseParams p)
{
    i32 begin = blockIdx.x * ROW_SLOTS, slots = (i32)(p.survivors - begin < ROW_SLOTS ? p.survivors - begin : ROW_SLOTS), mine = threadIdx.x;
    if (mine < slots)
    {
        i32 row = row_of((const i32*)p.kept_offsets, p.rows, begin + mine), b = row / p.kv_heads;
        i64 from = tensor_offset(p.source, b, ((const i32*)p.starts)[b], ((const i32*)p.kept)[begin + mine], row - b * p.kv_heads, ELEMENT_SIZE);
        put_rows(mine, p.source.address + from, 0, (i64)(begin + mine) * ROW_BYTES);
    }
    copy_rows<false>(slots, p.destination, 0, alignment_of(p.source));
}

struct CompactInPlaceParams
{
    Paged cache;
    u64 tables, kept, kept_offsets;     // i32 [B, row_stride], [K], [B·Hkv + 1]
    i64 row_stride;
    i32 kv_heads, block_size;
};

constexpr i32 PLACE_THREADS = 256, PART_BYTES = ROW_BYTES % 32 == 0 ? 32 : 16, PARTS = ROW_BYTES / PART_BYTES;

// `memory`: this block's part of the head's row in block 0, slot 0.
template <typename T> __device__ __forceinline__ void move_part(const CompactInPlaceParams& p, const i32* table, const i32* kept, i32 count, u64 memory)
{
    constexpr i32 UNITS = PART_BYTES / (i32)sizeof(T), STEP = PLACE_THREADS / UNITS, BATCH = 4;
    i32 unit = threadIdx.x % UNITS, mine = threadIdx.x / UNITS, slots[BATCH];
#pragma unroll
    for (i32 j = 0; j < BATCH; j++)
        slots[j] = mine + j * STEP < count ? kept[mine + j * STEP] : 0;
    for (i32 tile = 0; tile < count; tile += BATCH * STEP)
    {
        T held[BATCH];
#pragma unroll
        for (i32 j = 0; j < BATCH; j++)
        {
            i32 i = tile + mine + j * STEP, block = slots[j] / p.block_size;
            if (i < count)
                held[j] = *((const T*)(memory + paged_offset(p.cache, table[block], slots[j] - block * p.block_size, 0, ELEMENT_SIZE)) + unit);
            slots[j] = i + BATCH * STEP < count ? kept[i + BATCH * STEP] : 0;
        }
        __syncthreads();
#pragma unroll
        for (i32 j = 0; j < BATCH; j++)
        {
            i32 i = tile + mine + j * STEP, block = i / p.block_size;
            if (i < count)
                *((T*)(memory + paged_offset(p.cache, table[block], i - block * p.block_size, 0, ELEMENT_SIZE)) + unit) = held[j];
        }
    }
}

extern "C" __global__ void __launch_bounds__(PLACE_THREADS) compact_in_place(const __grid_constant__ CompactInPlaceParams p)
{
    i32 part = blockIdx.x % PARTS, tensor = blockIdx.x / PARTS % 2, row = blockIdx.x / (2 * PARTS), b = row / p.kv_heads;
    const i32* offsets = (const i32*)p.kept_offsets;
    const i32* table = (const i32*)p.tables + b * p.row_stride;
    const i32* kept = (const i32*)p.kept + offsets[row];
    i32 count = offsets[row + 1] - offsets[row];
    u64 memory = (tensor == 0 ? p.cache.keys : p.cache.values) + paged_offset(p.cache, 0, 0, row - b * p.kv_heads, ELEMENT_SIZE) + part * PART_BYTES;
    if (whole_units(alignment_of(p.cache)))
        move_part<u32x4>(p, table, kept, count, memory);
    else
        move_part<Element>(p, table, kept, count, memory);
}
