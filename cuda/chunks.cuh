// A batch cut into chunks of scored tokens: sequence b holds chunks chunk_starts[b] to chunk_starts[b + 1], which cover its tokens
// [skip_first, length - skip_last) in order; the last may be shorter. Both arrays are i32 [sequences + 1].
#pragma once
#include "types.cuh"

struct Chunk
{
    i32 sequence, start;   // and the sequence's first place in the batch
    i32 token, count;      // the chunk's first token within the sequence
    i32 end;               // one past the sequence's last scored token
    i32 index;             // of the chunk within its sequence
};

__device__ inline Chunk find_chunk(u64 cu_seqlens, u64 chunk_starts, i32 sequences, i32 chunk, i32 size, i32 skip_first, i32 skip_last)
{
    const i32* places = (const i32*)cu_seqlens;
    const i32* starts = (const i32*)chunk_starts;
    i32 low = 0, high = sequences - 1;
    while (low < high)
    {
        i32 middle = (low + high + 1) >> 1;
        if (starts[middle] <= chunk)
            low = middle;
        else
            high = middle - 1;
    }
    i32 index = chunk - starts[low], end = places[low + 1] - places[low] - skip_last, token = skip_first + index * size;
    return {low, places[low], token, end - token < size ? end - token : size, end, index};
}
