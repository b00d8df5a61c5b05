// Scores of a batch, dense or with heads of their own lengths, and the segments a top-k is taken over, as the host plans them.
#pragma once
#include "../simt_test.hpp"
#include <algorithm>
#include <memory>

namespace pairs {

inline std::vector<i32> sums_before(const std::vector<i32>& counts)
{
    std::vector<i32> starts{0};
    for (i32 count : counts) starts.push_back(starts.back() + count);
    return starts;
}

struct Batch
{
    i32 heads, sequences;
    bool ragged;
    std::vector<i32> lengths, offsets;   // a sequence, or a (sequence, head)
    Batch(std::vector<i32> lengths_, i32 heads_, bool ragged_)
        : heads(heads_), sequences((i32)lengths_.size() / (ragged_ ? heads_ : 1)), ragged(ragged_), lengths(std::move(lengths_)), offsets(sums_before(lengths))
    {
    }
    i32 length(i32 b, i32 h) const { return lengths[(size_t)(ragged ? b * heads + h : b)]; }
    size_t pair(i32 b, i32 h, i32 t) const
    {
        return ragged ? (size_t)(offsets[(size_t)(b * heads + h)] + t) : (size_t)((offsets[(size_t)b] + t) * heads + h);
    }
    size_t size() const { return (size_t)(offsets.back() * (ragged ? 1 : heads)); }
    i32 longest(i32 b) const
    {
        i32 n = 0;
        for (i32 h = 0; h < heads; h++) n = std::max(n, length(b, h));
        return n;
    }
};

// Device memory of a Segments.
struct DeviceSegments
{
    i32 count, tiles, parts;
    simt::Array<i32> offsets, tile_starts, kept_starts;
    simt::Array<u32> histograms, counters;
    simt::Array<SegmentState> states;
    Segments view;

    static std::vector<i32> tiles_of(const Batch& batch, bool per_head)
    {
        std::vector<i32> counts;
        for (i32 b = 0; b < batch.sequences; b++) counts.push_back(std::max(1, ceil_div(batch.longest(b), tile_tokens(per_head ? 1 : batch.heads))));
        return sums_before(counts);
    }
    DeviceSegments(const Batch& batch, bool per_head, const std::vector<i32>& wanted)
        : count((i32)wanted.size()), tiles(tiles_of(batch, per_head).back()), parts(per_head ? batch.heads : 1), offsets(batch.offsets),
          tile_starts(tiles_of(batch, per_head)), kept_starts(sums_before(wanted)), histograms(wanted.size() * 2 * DIGITS), counters(wanted.size()), states(wanted.size() * 2),
          view{{offsets.address(), batch.heads, batch.ragged}, tile_starts.address(), kept_starts.address(), histograms.address(),
              states.address(), counters.address(), batch.sequences, per_head}
    {
        histograms.fill(0);
        counters.fill(0);
    }
    simt::Extent grid() const { return {(u32)tiles, (u32)parts}; }
    void check_clean()
    {
        CHECK(histograms.values() == std::vector<u32>(histograms.size(), 0));
        CHECK(counters.values() == std::vector<u32>(counters.size(), 0));
    }
};

// The order of the method: NaN lowest, -0 as 0.
inline bool above(float a, float b) { return std::isnan(b) ? !std::isnan(a) : a > b; }

}
