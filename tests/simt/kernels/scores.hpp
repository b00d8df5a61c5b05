// What the tests of the scoring kernels share: strided tensors, batches cut into chunks, status words. Include it after the .cu.
#pragma once
#include "../simt_test.hpp"
#include <algorithm>

inline size_t c_tokens(const std::vector<i32>& lengths)
{
    size_t tokens = 0;
    for (i32 length : lengths) tokens += (size_t)length;
    return tokens;
}

// [token, head, D] of the kernel's element type, with room between rows that nothing may read as data, and none after the last.
class HostTensor
{
public:
    HostTensor(i32 tokens, i32 heads, i32 dim, unsigned seed, float scale)
        : dim_(dim), head_stride_(dim + 16), token_stride_((dim + 16) * heads + 32), stored_((size_t)(tokens == 0 ? 1 : (tokens - 1) * token_stride_ + (heads - 1) * head_stride_ + dim))
    {
        std::vector<float> values = simt::normal((size_t)(tokens * heads * dim), seed, scale);
        for (i32 t = 0; t < tokens; t++)
            for (i32 h = 0; h < heads; h++)
                for (i32 d = 0; d < dim; d++) set(t, h, d, values[(size_t)((t * heads + h) * dim + d)]);
    }
    double at(i32 token, i32 head, i32 d) const { return (double)to_f32(stored_[place(token, head, d)]); }
    void set(i32 token, i32 head, i32 d, float x) { stored_[place(token, head, d)] = simt::element<Element>(x); }
    Tensor tensor() const { return {stored_.address(), token_stride_, head_stride_, 0}; }

private:
    size_t place(i32 token, i32 head, i32 d) const { return (size_t)(token * token_stride_ + head * head_stride_ + d); }

    i32 dim_, head_stride_, token_stride_;
    simt::Array<Element> stored_;
};

struct Batch
{
    Batch(const std::vector<i32>& lengths, i32 size, i32 skip_first, i32 skip_last) : cu_seqlens(lengths.size() + 1), chunk_starts(lengths.size() + 1)
    {
        cu_seqlens[0] = chunk_starts[0] = 0;
        for (size_t b = 0; b < lengths.size(); b++) {
            i32 scored = std::max(0, lengths[b] - skip_first - skip_last);
            cu_seqlens[b + 1] = cu_seqlens[b] + lengths[b];
            chunk_starts[b + 1] = chunk_starts[b] + (i32)(((i64)scored + size - 1) / size);
        }
        chunks = chunk_starts[lengths.size()];
    }
    simt::Array<i32> cu_seqlens, chunk_starts;
    i32 chunks;
};

inline u64 packed(u32 code, i32 place, i32 head) { return ~((u64)code << 56 | (u64)place << 20 | (u64)head); }
