// Views of memory as the host describes them: mirrors of TensorView, PagedView, PagedTables and PagedTargets (src/Compactor.Native). Strides are in elements.
#pragma once
#include "types.cuh"

// [token, head, D], the last dimension dense; packed when sequence_stride is 0.
struct Tensor
{
    u64 address;
    i64 token_stride, head_stride, sequence_stride;
};

// Bytes from a tensor's address to token `token` of sequence `sequence`, whose first token is `start` in the packed batch.
__device__ __forceinline__ i64 tensor_offset(const Tensor& t, i32 sequence, i32 start, i32 token, i32 head, i32 element_size)
{
    i64 origin = t.sequence_stride == 0 ? (i64)start * t.token_stride : (i64)sequence * t.sequence_stride;
    return (origin + (i64)token * t.token_stride + (i64)head * t.head_stride) * element_size;
}

// Keys and values in blocks: element d of a slot is at block·block_stride + slot·slot_stride + head·head_stride + d. head_stride is 0 in a pool of head-blocks.
struct Paged
{
    u64 keys, values;
    i64 block_stride, slot_stride, head_stride;
    u64 positions;   // i32 [blocks, block_size], 0 where positions are not kept
};

// Bytes from the start of the keys, or of the values, to a slot.
__device__ __forceinline__ i64 paged_offset(const Paged& cache, i32 block, i32 slot, i32 head, i32 element_size)
{
    return ((i64)block * cache.block_stride + (i64)slot * cache.slot_stride + (i64)head * cache.head_stride) * element_size;
}

// Rows are (sequence, KV head) pairs, or sequences where all heads share a table.
struct PagedTables
{
    u64 tables;      // i32 [rows, row_stride] block ids
    u64 lengths;     // i32 [rows]
    i32 row_stride, rows;
};

// Where new slots of a batch's heads go (KvBackend.Paging.cs, PagedTargets).
struct PagedTargets
{
    u64 blocks;          // i32 [B·Hkv, row_stride]
    u64 listed;          // i32 [B·Hkv]
    u64 starts;          // i32 [B·Hkv]
    u64 reserved;        // i32
    u64 reserved_starts; // i32 [B]
    i32 kv_heads, row_stride;
};

// The row that entry i of a list belongs to, whose rows start at the ascending offsets[0 .. rows]: the only r with offsets[r] <= i < offsets[r + 1].
__device__ __forceinline__ i32 row_of(const i32* offsets, i32 rows, i32 i)
{
    i32 low = 0, high = rows - 1;
    while (low < high)
    {
        i32 middle = low + (high - low) / 2;
        if (offsets[middle + 1] > i)
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}
