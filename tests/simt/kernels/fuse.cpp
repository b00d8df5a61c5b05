#include "../../../cuda/fuse.cu"
#include "pairs.hpp"
using namespace pairs;

enum Scope { Head, Sequence, Chunk };
struct Options
{
    Scope attention_scope = Head, leverage_scope = Head;
    i32 attention_chunk = 256, leverage_chunk = 0, pool = 1, first = 0, last = 0;
    bool score_protected = true, unbiased = false, norms = false;
    double floor = 0;
    std::vector<double> lambdas;
};
struct Scored { i32 begin, end; };
static Scored scored_of(const Options& o, i32 length)
{
    if (o.score_protected) return {0, length};
    return length <= o.first + o.last ? Scored{0, 0} : Scored{o.first, length - o.last};
}

// The device memory of one term.
struct DeviceTerm
{
    i32 tiles = 0;
    std::unique_ptr<simt::Array<float>> raw;
    std::unique_ptr<simt::Array<i32>> tile_starts, scope_starts;
    std::unique_ptr<simt::Array<double>> partials;
    std::unique_ptr<simt::Array<Statistics>> statistics;
    std::unique_ptr<simt::Array<u32>> counters;
    FuseTerm view{};

    DeviceTerm(const Batch& batch, const Options& o, const std::vector<float>& scores, Scope scope, i32 scope_chunk)
    {
        if (scores.empty()) return;
        i32 chunk = scope == Chunk ? scope_chunk : 0;
        std::vector<i32> counts, scopes;
        for (i32 b = 0; b < batch.sequences; b++) {
            i32 n = 0;
            for (i32 h = 0; h < batch.heads; h++) {
                Scored range = scored_of(o, batch.length(b, h));
                n = std::max(n, range.end - range.begin);
            }
            i32 c = chunk > 0 ? chunk : std::max(n, 1), chunks = ceil_div(n, c);
            counts.push_back(chunks * ceil_div(c, tile_tokens(batch.heads)));
            scopes.push_back(scope == Head ? batch.heads : chunk > 0 ? chunks : 1);
        }
        tiles = sums_before(counts).back();
        raw = std::make_unique<simt::Array<float>>(scores);
        tile_starts = std::make_unique<simt::Array<i32>>(sums_before(counts));
        scope_starts = std::make_unique<simt::Array<i32>>(sums_before(scopes));
        partials = std::make_unique<simt::Array<double>>((size_t)(3 * std::max(tiles, 1) * (scope == Head ? batch.heads : 1)));
        size_t all = (size_t)std::max(1, sums_before(scopes).back());
        statistics = std::make_unique<simt::Array<Statistics>>(all);
        counters = std::make_unique<simt::Array<u32>>(all);
        counters->fill(0);
        view = {raw->address(), tile_starts->address(), scope_starts->address(), partials->address(), statistics->address(), counters->address(), chunk, ceil_div(chunk, tile_tokens(batch.heads)), scope == Head, tiles};
    }
};

// z of all pairs of one scope, weighted, added to the fused scores.
static void add_z(const Batch& batch, const Options& o, const std::vector<double>& x, Scope scope, i32 chunk, const std::vector<double>& weights, std::vector<double>& fused)
{
    for (i32 b = 0; b < batch.sequences; b++) {
        std::vector<std::vector<size_t>> scopes;
        for (i32 h = 0; h < batch.heads; h++) {
            Scored range = scored_of(o, batch.length(b, h));
            for (i32 t = range.begin; t < range.end; t++) {
                size_t at = scope == Head ? (size_t)h : scope == Chunk && chunk > 0 ? (size_t)((t - range.begin) / chunk) : 0;
                if (scopes.size() <= at) scopes.resize(at + 1);
                scopes[at].push_back(batch.pair(b, h, t));
            }
        }
        for (const auto& members : scopes) {
            double sum = 0, squares = 0, largest = 0;
            i32 count = 0;
            for (size_t i : members)
                if (std::isfinite(x[i])) sum += x[i], largest = std::max(largest, std::fabs(x[i])), count++;
            double mean = count == 0 ? 0 : sum / count;
            for (size_t i : members)
                if (std::isfinite(x[i])) squares += (x[i] - mean) * (x[i] - mean);
            double std_ = std::sqrt(squares / std::max(1, o.unbiased ? count - 1 : count));
            for (size_t i : members)
                fused[i] += !std::isfinite(x[i]) ? NAN : std_ <= largest / 65536 ? 0 : weights[(size_t)b] * (x[i] - mean) / std::max(std_, o.floor);
        }
    }
}

static void check(const Batch& batch, const Options& o, const std::vector<float>& attention, const std::vector<float>& leverage, bool per_head, u32 seed)
{
    std::vector<float> norms = simt::normal(batch.size(), seed);
    for (float& x : norms) x = std::fabs(x);
    std::vector<double> fused(batch.size(), 0.0), ones((size_t)batch.sequences, 1.0);
    if (!attention.empty()) {
        std::vector<double> pooled(batch.size(), 0.0);
        for (i32 b = 0; b < batch.sequences; b++)
            for (i32 h = 0; h < batch.heads; h++) {
                Scored range = scored_of(o, batch.length(b, h));
                for (i32 t = range.begin; t < range.end; t++) {
                    double& sum = pooled[batch.pair(b, h, t)];
                    for (i32 u = std::max(range.begin, t - o.pool / 2); u <= std::min(range.end - 1, t + o.pool / 2); u++) {
                        size_t i = batch.pair(b, h, u);
                        sum += (o.norms ? (double)(attention[i] * norms[i]) : (double)attention[i]) / o.pool;
                    }
                    sum = (float)sum;
                }
            }
        add_z(batch, o, pooled, o.attention_scope, o.attention_chunk, ones, fused);
    }
    if (!leverage.empty())
        add_z(batch, o, std::vector<double>(leverage.begin(), leverage.end()), o.leverage_scope, o.leverage_chunk, attention.empty() ? ones : o.lambdas, fused);

    u32 bad = 0;
    u64 first = 0;
    std::vector<char> kind(batch.size(), 0);   // 0: a number, 1: the lowest, 2: protected
    for (i32 b = 0; b < batch.sequences; b++)
        for (i32 h = 0; h < batch.heads; h++)
            for (i32 t = 0; t < batch.length(b, h); t++) {
                size_t i = batch.pair(b, h, t);
                if (!std::isfinite(fused[i])) {
                    u64 place = batch.ragged ? i : (u64)(batch.offsets[(size_t)b] + t);
                    bad++;
                    first = std::max(first, ~((u64)STATUS_NON_FINITE_SCORE << 56 | place << 20 | (u64)h));
                    kind[i] = 1;
                }
                if (t < o.first || t >= batch.length(b, h) - o.last) kind[i] = 2;
            }

    std::vector<i32> wanted;
    for (i32 b = 0; b < batch.sequences; b++)
        for (i32 h = 0; h < (per_head ? batch.heads : 1); h++) {
            i32 pairs = 0;
            for (i32 g = 0; g < batch.heads; g++) pairs += !per_head || g == h ? batch.length(b, g) : 0;
            wanted.push_back(pairs / 3);
        }
    simt::Array<float> device_norms(norms);
    simt::Array<double> weights(attention.empty() ? ones : o.lambdas);
    std::vector<float> before;
    simt::over_schedules(3, [&] {
        DeviceTerm a(batch, o, attention, o.attention_scope, o.attention_chunk), l(batch, o, leverage, o.leverage_scope, o.leverage_chunk);
        DeviceSegments segments(batch, per_head, wanted);
        simt::Array<float> scores(batch.size());
        simt::Array<u64> status(1);
        simt::Array<u32> non_finite(1);
        status[0] = 0, non_finite[0] = 0;
        FuseParams params{a.view, l.view, segments.view, o.norms ? device_norms.address() : 0, weights.address(), scores.address(), status.address(), non_finite.address(),
            o.floor, o.first, o.last, o.score_protected, o.unbiased, o.pool};
        simt::Extent grid{(u32)std::max({a.tiles, l.tiles, 1}), 2};
        LAUNCH(fuse_statistics, (grid), {PAIR_THREADS}, FUSE_SHARED_BYTES, params);
        LAUNCH(fuse_scores, (segments.grid()), {PAIR_THREADS}, RADIX_SHARED_BYTES, params);
        std::vector<float> actual;
        std::vector<double> expected;
        for (size_t i = 0; i < batch.size(); i++) {
            if (kind[i] == 0) actual.push_back(scores[i]), expected.push_back(fused[i]);
            else CHECK(scores[i] == (kind[i] == 1 ? -3.40282347e38f : INFINITY));
        }
        CHECK_CLOSE(actual, expected, 1e-6);
        CHECK(status[0] == first && non_finite[0] == bad);
        if (before.empty()) before = scores.values();
        CHECK(std::memcmp(before.data(), scores.data(), before.size() * sizeof(float)) == 0);
        segments.check_clean();
        for (DeviceTerm* term : {&a, &l})
            if (term->counters) CHECK(term->counters->values() == std::vector<u32>(term->counters->size(), 0));
        // The first digit: that of the key of rank `wanted`.
        i32 segment = 0;
        for (i32 b = 0; b < batch.sequences; b++)
            for (i32 h = 0; h < (per_head ? batch.heads : 1); h++, segment++) {
                std::vector<u32> keys;
                for (i32 g = 0; g < batch.heads; g++)
                    for (i32 t = 0; t < batch.length(b, g); t++)
                        if (!per_head || g == h) keys.push_back(key_of(scores[batch.pair(b, g, t)]));
                std::sort(keys.rbegin(), keys.rend());
                i32 k = wanted[(size_t)segment];
                if (k > 0) CHECK(segments.states[(size_t)segment * 2].key == (keys[(size_t)(k - 1)] >> 21) << 21);
            }
    });
}

static std::vector<float> positive(size_t count, u32 seed)
{
    std::vector<float> x = simt::normal(count, seed);
    for (float& v : x) v = std::fabs(v) + 0.01f;
    return x;
}

int main()
{
    return simt::test([] {
        Batch batch({700, 0, 1, 20, 333}, 3, false);
        size_t n = batch.size();
        Options paper;
        paper.pool = 3, paper.first = 4, paper.last = 16, paper.lambdas = {0.3, 0.3, 0.3, 0.3, 0.3};
        check(batch, paper, positive(n, 1), positive(n, 2), false, 1);
        Options press;
        press.pool = 3, press.norms = true, press.unbiased = true, press.floor = 1e-6, press.attention_scope = press.leverage_scope = Sequence;
        press.first = 8, press.last = 4, press.score_protected = false, press.lambdas = {0.5, 0.4, 0.3, 0.2, 0.1};
        check(batch, press, positive(n, 3), positive(n, 4), true, 2);
        Options vllm;
        vllm.attention_scope = Sequence, vllm.leverage_scope = Chunk, vllm.leverage_chunk = 512, vllm.first = 16, vllm.last = 64, vllm.lambdas = {0.5, 0.5, 0.5, 0.5, 0.5};
        check(batch, vllm, positive(n, 5), positive(n, 6), false, 3);
        Options chunks = vllm;
        chunks.attention_scope = Chunk, chunks.attention_chunk = 100, chunks.leverage_chunk = 650, chunks.pool = 63, chunks.score_protected = false;
        check(batch, chunks, positive(n, 7), positive(n, 8), true, 4);
        check(batch, chunks, {}, positive(n, 9), false, 5);       // leverage alone
        check(batch, paper, positive(n, 10), {}, false, 6);       // attention alone
        check(batch, paper, std::vector<float>(n, 0.3f), std::vector<float>(n, 0.7f), false, 7);   // constant
        std::vector<float> near = positive(n, 11), broken = positive(n, 12);
        for (float& x : near) x = 1 + x * 1e-5f;                  // constant to float32's resolution
        check(batch, vllm, near, near, false, 8);
        broken[1700] = NAN, broken[400] = INFINITY, broken[9] = NAN;
        check(batch, paper, broken, positive(n, 13), false, 9);
        check(batch, press, positive(n, 14), broken, false, 10);
        for (i32 heads : {1, 8, 12, 40}) {                        // tiles of many tokens and of few; threads that have none
            Batch other({heads == 1 ? 2300 : 300, 33}, heads, false);
            for (Options o : {paper, press, chunks}) {
                o.lambdas = {0.3, 0.4};
                check(other, o, positive(other.size(), 15), positive(other.size(), 16), o.unbiased, 13);
            }
        }
        Batch ragged({600, 0, 65, 1300, 1, 513}, 3, true);
        for (Scope scope : {Head, Sequence, Chunk})
            for (bool protects : {true, false}) {
                Options o;
                o.leverage_scope = scope, o.leverage_chunk = 128, o.first = 4, o.last = 20, o.score_protected = protects;
                std::vector<float> leverage = positive(ragged.size(), 20);
                check(ragged, o, {}, leverage, scope == Head, 11);
                leverage[601] = INFINITY, leverage[30] = NAN;
                check(ragged, o, {}, leverage, false, 12);
            }
    });
}
