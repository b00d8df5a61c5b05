// Attention scores against a float64 loop: element types, chunk widths, partial chunks, protected tokens, strides, empty sequences. Whoever includes it says how the kernel is
// launched: KERNEL, SHARED, and grid(items).
#pragma once
#include "scores.hpp"

// float32 inputs are split without loss, the tensor cores' sums are float32, and an error of a logit l is relative to its exponential: 2^-22·|l| each.
constexpr double TOLERANCE = 2e-5;

struct Case
{
    std::vector<i32> lengths;
    i32 group, heads, skip_first, skip_last;
    bool mean;
    double scale;
};

static std::vector<double> reference(const Case& c, const HostTensor& q, const HostTensor& k)
{
    std::vector<double> scores(c_tokens(c.lengths) * (size_t)c.heads, 0.0);
    i32 start = 0;
    for (i32 length : c.lengths) {
        for (i32 token = c.skip_first; token < length - c.skip_last; token += CHUNK) {
            i32 count = std::min(CHUNK, length - c.skip_last - token);
            for (i32 h = 0; h < c.heads; h++)
                for (i32 g = 0; g < c.group; g++)
                    for (i32 i = 0; i < count; i++) {
                        std::vector<double> logits((size_t)count);
                        double max = -INFINITY, sum = 0;
                        for (i32 j = 0; j < count; j++) {
                            double dot = 0;
                            for (i32 d = 0; d < D; d++) dot += q.at(start + token + i, h * c.group + g, d) * k.at(start + token + j, h, d);
                            logits[(size_t)j] = c.scale * dot;
                            max = std::max(max, logits[(size_t)j]);
                        }
                        for (double& l : logits) sum += l = std::exp(l - max);
                        for (i32 j = 0; j < count; j++)
                            scores[(size_t)((start + token + j) * c.heads + h)] += logits[(size_t)j] / sum / (c.mean ? c.group : 1);
                    }
        }
        start += length;
    }
    return scores;
}

struct Launched
{
    std::vector<float> scores;
    u64 status;
};

static Launched launch(const Case& c, const HostTensor& q, const HostTensor& k)
{
    Batch batch(c.lengths, CHUNK, c.skip_first, c.skip_last);
    simt::Array<float> scores(c_tokens(c.lengths) * (size_t)c.heads);
    if (c.skip_first + c.skip_last > 0) scores.fill(0);
    simt::Array<u64> status(std::vector<u64>{0});
    AttentionScoresParams p{};
    p.queries = q.tensor();
    p.keys = k.tensor();
    p.cu_seqlens = batch.cu_seqlens.address();
    p.chunk_starts = batch.chunk_starts.address();
    p.scores = scores.address();
    p.status = status.address();
    p.sequences = (i32)c.lengths.size();
    p.kv_heads = c.heads;
    p.group = c.group;
    p.skip_first = c.skip_first;
    p.skip_last = c.skip_last;
    p.logit_scale = (float)(c.scale * 1.4426950408889634);
    p.reduction = c.mean ? 1.0f / (float)c.group : 1;
    p.items = batch.chunks * c.heads;
    LAUNCH(KERNEL, {grid(p.items)}, {THREADS}, SHARED, p);
    return {scores.values(), status[0]};
}

static void check(const Case& c, unsigned schedules)
{
    i32 tokens = (i32)c_tokens(c.lengths);
    HostTensor q(tokens, c.heads * c.group, D, 11, 1.0f), k(tokens, c.heads, D, 12, 0.5f);
    std::vector<double> expected = reference(c, q, k);
    std::vector<float> first;
    simt::over_schedules(schedules, [&] {
        Launched run = launch(c, q, k);
        CHECK(run.status == 0);
        CHECK_CLOSE(run.scores, expected, TOLERANCE);
        if (first.empty()) first = run.scores;
        CHECK(first == run.scores);
    });
}

// The first bad place in batch order, keys before queries.
static void check_status()
{
    Case c{{70, 40}, 2, 2, 0, 0, false, 0.3};
    HostTensor q(110, 4, D, 1, 1.0f), k(110, 2, D, 2, 1.0f);
    q.set(90, 1, 5, INFINITY);
    q.set(81, 3, D - 1, -INFINITY);
    CHECK(launch(c, q, k).status == packed(STATUS_NON_FINITE_QUERY, 81, 3));
    k.set(100, 0, 0, NAN);
    k.set(75, 1, 7, INFINITY);
    CHECK(launch(c, q, k).status == packed(STATUS_NON_FINITE_KEY, 75, 1));
}

static void check_all()
{
    check({{CHUNK + 37}, 2, 1, 0, 0, false, 1}, 3);
    check({{0, 1, CHUNK / 2 + 1, 0, 17}, 3, 2, 0, 0, true, 0.5}, 2);
    check({{CHUNK / 2 + 20, 9}, 1, 2, 8, 4, false, 0.25}, 2);
    check({{CHUNK / 2}, 1, 1, 0, 0, false, 0.5}, 1);   // fewer tiles than groups of warps
    check_status();
}
