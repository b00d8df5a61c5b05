// A batch cut into chunks of scored tokens: sequence b holds chunks chunk_starts[b] to chunk_starts[b + 1], which cover its tokens
// [skip_first, length - skip_last) in order; the last may be shorter. Long chunks are worked on in parts: part_starts likewise. All arrays are i32 [sequences + 1].
// Where keys are read through block tables, every (sequence, head) row counts as a sequence of one head.
#pragma once
#include "types.cuh"

struct Chunk
{
    i32 sequence, start;   // and the sequence's first place in the batch
    i32 token, count;      // the chunk's first token within the sequence
};

__device__ inline i32 find_sequence(u64 starts, i32 sequences, i32 item)
{
    i32 low = 0, high = sequences - 1;
    while (low < high)
    {
        i32 middle = (low + high + 1) >> 1;
        if (((const i32*)starts)[middle] <= item)
            low = middle;
        else
            high = middle - 1;
    }
    return low;
}

// Chunk `index` of a sequence.
__device__ __forceinline__ Chunk chunk_of(u64 cu_seqlens, i32 sequence, i32 index, i32 size, i32 skip_first, i32 skip_last)
{
    const i32* places = (const i32*)cu_seqlens;
    i32 start = places[sequence], token = skip_first + index * size, left = places[sequence + 1] - start - skip_last - token;
    return {sequence, start, token, left < size ? left : size};
}

__device__ __forceinline__ Chunk find_chunk(u64 cu_seqlens, u64 chunk_starts, i32 sequences, i32 chunk, i32 size, i32 skip_first, i32 skip_last)
{
    i32 sequence = find_sequence(chunk_starts, sequences, chunk);
    return chunk_of(cu_seqlens, sequence, chunk - ((const i32*)chunk_starts)[sequence], size, skip_first, skip_last);
}

// A chunk's tokens are worked on in at most 96 parts of at least 512, so that a result depends on the chunk's length alone.
__device__ __forceinline__ constexpr i32 part_tokens(i32 count)
{
    i32 even = round_up(ceil_div(count, 96), 128);
    return even < 512 ? 512 : even;
}
__device__ __forceinline__ constexpr i32 parts_of(i32 count) { return ceil_div(count, part_tokens(count)); }

struct Part
{
    Chunk chunk;
    i32 segment;           // the chunk's number in the batch
    i32 first, count;      // tokens from the chunk's first
};

__device__ inline Part find_part(u64 cu_seqlens, u64 chunk_starts, u64 part_starts, i32 sequences, i32 part, i32 size, i32 skip_first, i32 skip_last)
{
    i32 sequence = find_sequence(part_starts, sequences, part), index = part - ((const i32*)part_starts)[sequence];
    Chunk chunk = chunk_of(cu_seqlens, sequence, 0, size, skip_first, skip_last);
    i32 parts = parts_of(chunk.count), number = index / parts;   // of a full chunk
    chunk = chunk_of(cu_seqlens, sequence, number, size, skip_first, skip_last);
    i32 tokens = part_tokens(chunk.count), first = index % parts * tokens, left = chunk.count - first;
    return {chunk, ((const i32*)chunk_starts)[sequence] + number, first, left < tokens ? left : tokens};
}

// What a status names: a sequence's start in the batch, where heads have rows of their own that of its first head's, and the head.
struct Named { i32 start, head; };
__device__ __forceinline__ Named name_of(u64 cu_seqlens, i32 sequence, i32 head, i32 kv_heads, bool paged)
{
    i32 named = paged ? sequence % kv_heads : head;
    return {((const i32*)cu_seqlens)[paged ? sequence - named : sequence], named};
}
