// How rows of D elements move, 16 bytes a lane: a block of threads first finds where the rows of its slots are, one slot a thread, and leaves the addresses in
// shared memory; then all its threads copy, neighbouring lanes neighbouring 16 bytes. Where an address or a stride is no multiple of 16 bytes, lanes carry one element.
// Needs COMPACTOR_HEAD_DIM and COMPACTOR_ELEMENT_SIZE (1, 2 or 4 bytes); rows are 16 to 1024 bytes, a multiple of 16.
#pragma once
#include "ptx.cuh"
#include "tensor.cuh"

constexpr i32 ELEMENT_SIZE = COMPACTOR_ELEMENT_SIZE, ROW_BYTES = COMPACTOR_HEAD_DIM * ELEMENT_SIZE;
constexpr i32 ROW_THREADS = 128, ROW_SLOTS = 64;      // threads and slots of a block
constexpr i32 ROW_SHARED_BYTES = ROW_SLOTS * 3 * 8;   // key source, value source, byte offset of the target

template <i32 Bytes> struct Unit;
template <> struct Unit<1> { typedef u8 type; };
template <> struct Unit<2> { typedef u16 type; };
template <> struct Unit<4> { typedef u32 type; };
typedef Unit<ELEMENT_SIZE>::type Element;

__device__ __forceinline__ bool whole_units(u64 bits) { return (bits & 15) == 0; }
__device__ __forceinline__ u64 alignment_of(const Tensor& t)
{
    return t.address | (u64)(t.token_stride * ELEMENT_SIZE) | (u64)(t.head_stride * ELEMENT_SIZE) | (u64)(t.sequence_stride * ELEMENT_SIZE);
}
__device__ __forceinline__ u64 alignment_of(const Paged& c)
{
    return c.keys | c.values | (u64)(c.block_stride * ELEMENT_SIZE) | (u64)(c.slot_stride * ELEMENT_SIZE) | (u64)(c.head_stride * ELEMENT_SIZE);
}

__device__ __forceinline__ void put_word(u32 at, u64 x)
{
    u32x2 word = {(u32)x, (u32)(x >> 32)};
    store_shared_x2(at, word);
}
__device__ __forceinline__ u64 get_word(u32 at)
{
    u32x2 word = load_shared_x2(at);
    return (u64)word.y << 32 | word.x;
}

// Where the rows of a slot of this block come from and go to; a key source of 0 copies nothing.
__device__ __forceinline__ void put_rows(i32 slot, u64 key, u64 value, i64 to)
{
    u32 at = shared_base() + slot * 24;
    put_word(at, key);
    put_word(at + 8, value);
    put_word(at + 16, (u64)to);
}

__device__ __forceinline__ u32x4 load_unit(const u32x4* from) { return load_streaming(from); }
__device__ __forceinline__ Element load_unit(const Element* from) { return *from; }
__device__ __forceinline__ void store_unit(u32x4* to, u32x4 x) { store_streaming(to, x); }
__device__ __forceinline__ void store_unit(Element* to, Element x) { *to = x; }

template <typename T, bool WithValues> __device__ __forceinline__ void copy_units(i32 slots, u64 keys, u64 values)
{
    constexpr i32 UNITS = ROW_BYTES / (i32)sizeof(T), BATCH = 4;
    for (i32 first = threadIdx.x; first < slots * UNITS; first += BATCH * ROW_THREADS)
    {
        T key[BATCH], value[BATCH];
        i64 to[BATCH];
#pragma unroll
        for (i32 j = 0; j < BATCH; j++)
        {
            i32 unit = first + j * ROW_THREADS, slot = unit / UNITS, within = (unit - slot * UNITS) * (i32)sizeof(T);
            to[j] = -1;
            if (unit >= slots * UNITS)
                continue;
            u32 at = shared_base() + slot * 24;
            u64 from = get_word(at);
            if (from == 0)
                continue;
            to[j] = (i64)get_word(at + 16) + within;
            key[j] = load_unit((const T*)(from + within));
            if (WithValues)
                value[j] = load_unit((const T*)(get_word(at + 8) + within));
        }
#pragma unroll
        for (i32 j = 0; j < BATCH; j++)
            if (to[j] >= 0)
            {
                store_unit((T*)(keys + to[j]), key[j]);
                if (WithValues)
                    store_unit((T*)(values + to[j]), value[j]);
            }
    }
}

// Copies what put_rows named for the first `slots` slots, to keys + offset and values + offset. `alignment`: the bits of all addresses and strides of the launch.
template <bool WithValues> __device__ __forceinline__ void copy_rows(i32 slots, u64 keys, u64 values, u64 alignment)
{
    __syncthreads();
    if (whole_units(alignment | keys | values))
        copy_units<u32x4, WithValues>(slots, keys, values);
    else
        copy_units<Element, WithValues>(slots, keys, values);
}

struct Slot { i32 block, slot; };

__device__ __forceinline__ Slot slot_of(const PagedTables& tables, i32 row, i32 slot, i32 block_size)
{
    i32 block = slot / block_size;
    return {((const i32*)tables.tables)[(i64)row * tables.row_stride + block], slot - block * block_size};
}

// New slot i of a row: in the blocks the row lists, beyond them in those dealt to it, which start at reserved[dealt].
__device__ __forceinline__ Slot new_slot(const PagedTargets& targets, i32 row, i32 i, i32 dealt, i32 block_size)
{
    i32 at = ((const i32*)targets.starts)[row] + i, block = at / block_size, listed = ((const i32*)targets.listed)[row];
    i32 id = block < listed ? ((const i32*)targets.blocks)[(i64)row * targets.row_stride + block] : ((const i32*)targets.reserved)[dealt + block - listed];
    return {id, at - block * block_size};
}
