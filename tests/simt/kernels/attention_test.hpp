// A batch of new queries over a paged cache, and its attention in float64.
#pragma once
#include "../simt_test.hpp"
#include <algorithm>
#include <numeric>

namespace attention {

enum Layout { HeadBlocks, Nhd, Hnd };

struct Case
{
    std::vector<i32> lengths;        // a (sequence, head), or a sequence where heads share a table
    std::vector<i32> tokens;         // new queries of each sequence
    i32 kv_heads, block_size;
    Layout layout = HeadBlocks;
    float scale = 0.1f, soft_cap = 0;
    i32 window = 0;
    bool sinks = false, aligned_queries = true;
    u32 grid = 5;
};

template <class Launch> void check(const Case& c, bool extend, Launch launch, u32 seed)
{
    constexpr i32 D = DIM;
    std::mt19937 random(seed);
    bool shared = c.layout != HeadBlocks;
    i32 sequences = (i32)c.tokens.size(), rows = (i32)c.lengths.size(), query_heads = c.kv_heads * GROUP, queries = std::accumulate(c.tokens.begin(), c.tokens.end(), 0);
    i32 longest = *std::max_element(c.lengths.begin(), c.lengths.end()), stride = std::max(1, ceil_div(longest, c.block_size)), blocks = 1;
    i32 together = shared ? c.kv_heads : 1;
    for (i32 length : c.lengths) blocks += ceil_div(length, c.block_size);
    i64 block_stride = (i64)together * c.block_size * D, slot_stride = c.layout == Nhd ? together * D : D, head_stride = !shared ? 0 : c.layout == Nhd ? D : c.block_size * D;

    std::vector<i32> order((size_t)blocks), tables((size_t)(rows * stride), -1), positions((size_t)(blocks * c.block_size), 0), starts{0}, query_positions;
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin() + 1, order.end(), random);   // block 0 stays unused
    std::vector<bool> used(positions.size());
    for (i32 row = 0; row < rows; row++)
        for (i32 slot = 0, position = 0; slot < c.lengths[(size_t)row]; slot++) {
            i32& block = tables[(size_t)(row * stride + slot / c.block_size)];
            if (slot % c.block_size == 0) {
                block = order.back();
                order.pop_back();
            }
            position += 1 + (i32)(random() % 3);
            positions[(size_t)(block * c.block_size + slot % c.block_size)] = position;
            used[(size_t)(block * c.block_size + slot % c.block_size)] = true;
        }
    for (i32 b = 0; b < sequences; b++) {
        starts.push_back(starts.back() + c.tokens[(size_t)b]);
        for (i32 i = 0; i < c.tokens[(size_t)b]; i++) query_positions.push_back(2 * longest + i - c.tokens[(size_t)b]);
    }
    std::vector<float> keys = simt::normal((size_t)(blocks * block_stride), seed + 1), values = simt::normal(keys.size(), seed + 2);
    // What no head holds may be anything.
    for (size_t slot = 0; slot < used.size(); slot++)
        for (i32 h = 0; !used[slot] && h < together; h++) {
            i64 at = (i64)(slot / (size_t)c.block_size) * block_stride + (i64)(slot % (size_t)c.block_size) * slot_stride + h * head_stride;
            std::fill_n(keys.begin() + at, D, NAN);
            std::fill_n(values.begin() + at, D, NAN);
        }
    std::vector<float> query = simt::normal((size_t)(queries * query_heads * D), seed + 3, 2), sinks = simt::normal((size_t)query_heads, seed + 4);

    // float64
    std::vector<double> outputs, logs;
    for (i32 b = 0; b < sequences; b++)
        for (i32 i = 0; i < c.tokens[(size_t)b]; i++)
            for (i32 h = 0; h < query_heads; h++) {
                i32 kv = h / GROUP, row = shared ? b : b * c.kv_heads + kv, q = starts[(size_t)b] + i, seen = c.lengths[(size_t)row] - c.tokens[(size_t)b] + i + 1;
                std::vector<double> logits, output((size_t)D, 0.0);
                std::vector<const float*> seen_values;
                for (i32 slot = 0; slot < (extend ? seen : c.lengths[(size_t)row]); slot++) {
                    i32 block = tables[(size_t)(row * stride + slot / c.block_size)];
                    if (c.window > 0 && positions[(size_t)(block * c.block_size + slot % c.block_size)] <= query_positions[(size_t)q] - c.window) continue;
                    size_t at = (size_t)(block * block_stride + slot % c.block_size * slot_stride + kv * head_stride);
                    double logit = 0;
                    for (i32 d = 0; d < D; d++) logit += (double)query[(size_t)((q * query_heads + h) * D + d)] * (double)keys[at + (size_t)d];
                    logit *= c.scale;
                    if (c.soft_cap > 0) logit = c.soft_cap * std::tanh(logit / c.soft_cap);
                    logits.push_back(logit);
                    seen_values.push_back(&values[at]);
                }
                double top = c.sinks ? sinks[(size_t)h] : -INFINITY, sum = 0;
                for (double logit : logits) top = std::max(top, logit);
                if (c.sinks) sum = std::exp(sinks[(size_t)h] - top);
                for (double logit : logits) sum += std::exp(logit - top);
                for (size_t j = 0; j < logits.size(); j++)
                    for (i32 d = 0; d < D; d++) output[(size_t)d] += std::exp(logits[j] - top) / sum * (double)seen_values[j][d];
                outputs.insert(outputs.end(), output.begin(), output.end());
                logs.push_back(sum > 0 ? top + std::log(sum) : -INFINITY);
            }

    i64 head_gap = c.aligned_queries ? 0 : 1;   // elements between heads
    std::vector<float> spread((size_t)(queries * query_heads * (D + head_gap)), 0.0f);
    for (size_t i = 0; i < query.size(); i++) spread[i / (size_t)D * (size_t)(D + head_gap) + i % (size_t)D] = query[i];
    simt::Array<Element> device_query(simt::elements<Element>(spread)), device_keys(simt::elements<Element>(keys)), device_values(simt::elements<Element>(values));
    simt::Array<i32> device_tables(tables), device_lengths(c.lengths), device_positions(positions), device_starts(starts), device_query_positions(query_positions);
    simt::Array<float> device_sinks(sinks);
    i32 most_splits = ceil_div(longest, SPLIT_KEYS), partial_tokens = 0;
    std::vector<i32> partial_starts;
    for (i32 tokens : c.tokens) {
        partial_starts.push_back(partial_tokens);
        partial_tokens += tokens * GROUP <= SPLIT_ROWS ? tokens : 0;
    }
    simt::Array<i32> device_partial_starts(partial_starts);
    std::vector<float> before;
    simt::over_schedules(2, [&] {
        size_t partials = (size_t)std::max(1, partial_tokens * query_heads * most_splits);
        simt::Array<float> output(outputs.size()), log_sum_exp(logs.size()), partial_values(partials * D);
        simt::Array<f32x2> partial_sums(partials);
        float log2e = 1.442695041f;
        AttentionParams params{{device_query.address(), query_heads * (D + head_gap), D + head_gap, 0},
            {device_keys.address(), device_values.address(), block_stride, slot_stride, head_stride, c.window > 0 ? device_positions.address() : 0},
            {device_tables.address(), device_lengths.address(), stride, rows}, extend ? device_starts.address() : 0, c.window > 0 ? device_query_positions.address() : 0,
            c.sinks ? device_sinks.address() : 0, output.address(), log_sum_exp.address(), extend ? device_partial_starts.address() : 0, partial_sums.address(), partial_values.address(),
            c.scale * log2e, c.soft_cap * log2e, sequences, c.kv_heads, c.block_size, most_splits, c.window, queries};
        launch(params, c.grid);
        CHECK_CLOSE(output.values(), outputs, 1e-5);
        std::vector<float> finite;
        std::vector<double> expected;
        for (size_t i = 0; i < logs.size(); i++)
            if (std::isfinite(logs[i])) finite.push_back(log_sum_exp[i]), expected.push_back(logs[i]);
            else CHECK(log_sum_exp[i] == -INFINITY);
        CHECK_CLOSE(finite, expected, 1e-5);
        if (before.empty()) before = output.values();
        CHECK(std::memcmp(before.data(), output.values().data(), before.size() * sizeof(float)) == 0);
    });
}

}
