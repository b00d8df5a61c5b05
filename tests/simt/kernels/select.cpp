#include "../../../cuda/select.cu"
#include "pairs.hpp"
using namespace pairs;

// Kept pairs, by sorting.
struct Expected
{
    std::vector<char> kept;
    std::vector<i32> indices, offsets{0};
};
static void keep_best(const Batch& batch, const std::vector<float>& scores, std::vector<char>& kept, i32 b, i32 first_head, i32 heads, i32 wanted)
{
    struct Pair { i32 t, h; size_t at; };
    std::vector<Pair> order;
    for (i32 t = 0; t < batch.longest(b); t++)
        for (i32 h = first_head; h < first_head + heads; h++)
            if (t < batch.length(b, h) && !kept[batch.pair(b, h, t)]) order.push_back({t, h, batch.pair(b, h, t)});
    std::stable_sort(order.begin(), order.end(), [&](const Pair& x, const Pair& y) { return above(scores[x.at], scores[y.at]); });
    for (i32 i = 0; i < wanted; i++) kept[order[(size_t)i].at] = 1;
}
static void list(const Batch& batch, Expected& e)
{
    for (i32 b = 0; b < batch.sequences; b++)
        for (i32 h = 0; h < batch.heads; h++) {
            for (i32 t = 0; t < batch.length(b, h); t++)
                if (e.kept[batch.pair(b, h, t)]) e.indices.push_back(t);
            e.offsets.push_back((i32)e.indices.size());
        }
}

static std::vector<float> scores_of(size_t count, int kind, u32 seed)
{
    std::mt19937 random(seed);
    std::vector<float> scores = simt::normal(count, seed);
    for (float& x : scores) {
        if (kind == 1) x = std::floor(x * 2) / 2;                            // many ties, both zeros
        if (kind == 1 && x == 0 && random() % 2) x = -0.0f;
        if (kind == 2) x = 0.25f;                                            // nothing but ties
        if (kind == 3) switch (random() % 8) {
            case 0: x = std::nanf(""); break;
            case 1: x = INFINITY; break;
            case 2: x = -INFINITY; break;
            case 3: x = -3.40282347e38f; break;
            }
    }
    return scores;
}

static void launch_threshold(const DeviceSegments& s, SelectParams params)
{
    for (params.round = 0; params.round < 3; params.round++) LAUNCH(select_digits, (s.grid()), {PAIR_THREADS}, RADIX_SHARED_BYTES, params);
    LAUNCH(select_count, (s.grid()), {PAIR_THREADS}, RADIX_SHARED_BYTES, params);
}

// What a sequence keeps, or each head of it (wanted a segment); `minimum` tokens of every head first.
static void check(const Batch& batch, bool per_head, const std::vector<i32>& wanted, int kind, i32 minimum, u32 seed)
{
    std::vector<float> scores = scores_of(batch.size(), kind, seed);
    Expected expected{std::vector<char>(scores.size(), 0), {}, {0}};
    std::vector<i32> minima;
    for (i32 b = 0; b < batch.sequences; b++) {
        i32 raised = 0;
        for (i32 h = 0; h < batch.heads; h++) {
            minima.push_back(std::min(minimum, batch.length(b, h)));
            raised += minima.back();
            keep_best(batch, scores, expected.kept, b, h, 1, per_head ? wanted[(size_t)(b * batch.heads + h)] : minima.back());
        }
        if (!per_head) keep_best(batch, scores, expected.kept, b, 0, batch.heads, wanted[(size_t)b] - raised);
    }
    list(batch, expected);

    simt::Array<float> device_scores(scores);
    simt::over_schedules(3, [&] {
        simt::Array<u32> keys(std::max<size_t>(scores.size(), 1));
        DeviceSegments segments(batch, per_head, wanted);
        simt::Array<u32> counts((size_t)(segments.tiles * batch.heads)), tile_ties((size_t)(segments.tiles * segments.parts));
        simt::Array<i32> indices(std::max<size_t>(expected.indices.size(), 1)), offsets(expected.offsets.size());
        SelectParams params{segments.view, device_scores.address(), counts.address(), tile_ties.address(), indices.address(), offsets.address(), 0, 0, 1};
        if (minimum > 0) {
            DeviceSegments heads(batch, true, minima);
            simt::Array<u32> counts_of_heads((size_t)(heads.tiles * batch.heads)), ties_of_heads((size_t)(heads.tiles * batch.heads));
            SelectParams raise{heads.view, device_scores.address(), counts_of_heads.address(), ties_of_heads.address(), keys.address(), 0, 0, 0, 1};
            launch_threshold(heads, raise);
            LAUNCH(select_raise, (heads.grid()), {PAIR_THREADS}, 0, raise);
            heads.check_clean();
            params.scores = keys.address();
            params.keys_given = 1;
        }
        launch_threshold(segments, params);
        LAUNCH(select_write, (segments.grid()), {PAIR_THREADS}, RADIX_SHARED_BYTES + PAIR_THREADS * 4, params);
        std::vector<i32> kept = indices.values();
        kept.resize(expected.indices.size());
        CHECK(kept == expected.indices);
        CHECK(offsets.values() == expected.offsets);
        segments.check_clean();
    });
}

static void check_tokens(const Batch& batch, const std::vector<i32>& wanted, int kind, u32 seed)
{
    std::vector<float> scores = scores_of(batch.size(), kind, seed), sums;
    for (size_t t = 0; t < scores.size() / (size_t)batch.heads; t++) {
        float sum = 0;
        for (i32 h = 0; h < batch.heads; h++) sum += scores[t * (size_t)batch.heads + (size_t)h];
        sums.push_back(sum);
    }
    Batch tokens(batch.lengths, 1, false);
    Expected of_tokens{std::vector<char>(sums.size(), 0), {}, {0}}, expected{std::vector<char>(scores.size(), 0), {}, {0}};
    for (i32 b = 0; b < batch.sequences; b++) keep_best(tokens, sums, of_tokens.kept, b, 0, 1, wanted[(size_t)b]);
    for (size_t i = 0; i < scores.size(); i++) expected.kept[i] = of_tokens.kept[i / (size_t)batch.heads];
    list(batch, expected);

    simt::Array<float> device_scores(scores);
    simt::over_schedules(2, [&] {
        simt::Array<float> device_sums(sums.size());
        SelectTokenSumsParams add{device_scores.address(), device_sums.address(), (i32)sums.size(), batch.heads};
        LAUNCH(select_token_sums, {(u32)ceil_div((i32)sums.size(), PAIR_THREADS)}, {PAIR_THREADS}, 0, add);
        DeviceSegments segments(tokens, false, wanted);
        simt::Array<u32> counts((size_t)segments.tiles), tile_ties((size_t)segments.tiles);
        simt::Array<i32> indices(expected.indices.size()), offsets(expected.offsets.size());
        SelectParams params{segments.view, device_sums.address(), counts.address(), tile_ties.address(), indices.address(), offsets.address(), 0, 0, batch.heads};
        launch_threshold(segments, params);
        LAUNCH(select_write, (segments.grid()), {PAIR_THREADS}, RADIX_SHARED_BYTES + PAIR_THREADS * 4, params);
        CHECK(indices.values() == expected.indices);
        CHECK(offsets.values() == expected.offsets);
    });
}

int main()
{
    return simt::test([] {
        for (int kind = 0; kind < 4; kind++) {
            u32 seed = (u32)(10 * kind);
            check(Batch({700, 0, 1, 33}, 3, false), false, {500, 0, 3, 1}, kind, 0, seed + 1);
            check(Batch({2100}, 5, false), false, {4000}, kind, 0, seed + 2);                          // several blocks a segment
            check(Batch({700, 0, 1, 33}, 2, false), true, {350, 351, 0, 0, 1, 1, 0, 33}, kind, 0, seed + 3);
            check(Batch({5000}, 2, false), true, {7, 4321}, kind, 0, seed + 4);
            check(Batch({600, 0, 65, 1300, 1, 513}, 3, true), false, {400, 900}, kind, 0, seed + 5);
            check(Batch({600, 0, 65, 1300, 1, 513}, 3, true), true, {17, 0, 65, 1299, 1, 0}, kind, 0, seed + 6);
            check(Batch({700, 20}, 3, false), false, {500, 60}, kind, 30, seed + 7);
            check(Batch({600, 0, 65, 1300, 1, 513}, 3, true), false, {400, 900}, kind, 40, seed + 8);
            check(Batch({600, 40}, 2, false), false, {0, 5}, kind, 0, seed + 10);                          // nothing of the first
            check(Batch({300, 20}, 12, false), false, {1200, 7}, kind, 0, seed + 11);                      // tiles of few tokens; threads that have none
            check(Batch({150}, 256, false), false, {15000}, kind, 0, seed + 12);                           // the most heads: tiles of 8 tokens, many of them a thread
            check_tokens(Batch({700, 0, 33}, 3, false), {200, 0, 33}, kind, seed + 9);
        }
    });
}
