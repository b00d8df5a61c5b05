// Leverage of long chunks and whole sequences, three kernels in a row, against a float64 loop; and of a sequence that arrives in two pieces.
// variant: COMPACTOR_ELEMENT=2 COMPACTOR_HEAD_DIM=128 COMPACTOR_SKETCH_DIM=48 COMPACTOR_ROTARY=0 COMPACTOR_PAGED=0
// variant: COMPACTOR_ELEMENT=1 COMPACTOR_HEAD_DIM=64 COMPACTOR_SKETCH_DIM=32 COMPACTOR_ROTARY=2 COMPACTOR_PAGED=0
// variant: COMPACTOR_ELEMENT=0 COMPACTOR_HEAD_DIM=96 COMPACTOR_SKETCH_DIM=80 COMPACTOR_ROTARY=0 COMPACTOR_PAGED=0
// variant: COMPACTOR_ELEMENT=2 COMPACTOR_HEAD_DIM=128 COMPACTOR_SKETCH_DIM=128 COMPACTOR_ROTARY=0 COMPACTOR_PAGED=0
// variant: COMPACTOR_ELEMENT=2 COMPACTOR_HEAD_DIM=256 COMPACTOR_SKETCH_DIM=128 COMPACTOR_ROTARY=0 COMPACTOR_PAGED=0
// variant: COMPACTOR_ELEMENT=2 COMPACTOR_HEAD_DIM=80 COMPACTOR_SKETCH_DIM=48 COMPACTOR_ROTARY=1 COMPACTOR_PAGED=1 COMPACTOR_BLOCK_SIZE=32
constexpr int WARPS = 4;
#include "cholesky.cuh"
#include "gram.cuh"
// The three sources have constants of the same names.
namespace first_read {
#include "sketch_gram.cu"
}
namespace factorise {
#include "factor.cu"
}
namespace second_read {
#include "leverage_apply.cu"
}
#include "leverage.hpp"

// X and Gram keep 2^-17 of each factor; what a score loses is a few times that. A square Gaussian sketch has a condition number of about 2·D: its weakest direction
// keeps 2^-17·2·D = 2^-9 of itself, and one of D directions carries that much of a score, 2·2^-9/D = 3e-5, times four for the few next to it and the bias.
constexpr double TOLERANCE = D == K ? 5e-4 : 2e-5;
constexpr i32 WHOLE = 0x7fffffff;

struct Launched
{
    std::vector<float> scores;
    u64 status;
};

// Device memory of one run, of a case or of the pieces of one.
class Run
{
public:
    explicit Run(const LeverageCase& c)
        : c_(c), chunks_(c.batch.chunks * c.heads), part_starts_(c.lengths.size() + 1), scores_((size_t)(c.tokens * c.heads)),
          centers_((size_t)(chunks_ * D)), factors_((size_t)(chunks_ * factorise::FACTOR_BYTES)), status_(std::vector<u64>{0})
    {
        part_starts_[0] = 0;
        for (size_t b = 0; b < c.lengths.size(); b++) {
            i32 parts = 0, left = c.lengths[b] - c.skip_first - c.skip_last;
            for (; left > 0; left -= std::min(left, c.chunk)) parts += parts_of(std::min(left, c.chunk));
            part_starts_[b + 1] = part_starts_[b] + parts;
        }
        if (c.skip_first + c.skip_last > 0) scores_.fill(0);
    }

    u32 parts() const { return (u32)(part_starts_[c_.lengths.size()] * c_.heads); }
    const simt::Array<float>& centers() const { return centers_; }

    void find_centers()
    {
        first_read::SketchCenterParams p{};
        fill(p);
        p.centers = centers_.address();
        LAUNCH(first_read::sketch_center, {(u32)chunks_}, {THREADS}, 0, p);
    }

    void add_up(u64 centers, u64 totals, bool finish)
    {
        simt::Array<float> partials((size_t)parts() * (GRAM + K));
        first_read::SketchGramParams g{};
        fill(g);
        g.part_starts = part_starts_.address();
        g.centers = centers;
        g.partials = partials.address();
        g.status = status_.address();
        LAUNCH(first_read::sketch_gram, {parts()}, {THREADS}, (u32)(16 * K + std::max(4 * K * (K <= 64 ? 128 : 64) + 4 * D + 2 * D * K, 4 * (GRAM + K))), g);

        factorise::FactorParams f{};
        f.cu_seqlens = c_.batch.cu_seqlens.address();
        f.chunk_starts = c_.batch.chunk_starts.address();
        f.part_starts = part_starts_.address();
        f.partials = partials.address();
        f.totals = totals;
        f.factors = factors_.address();
        f.status = status_.address();
        f.epsilon = c_.epsilon;
        f.sequences = c_.rows;
        f.kv_heads = c_.kv_heads;
        f.chunk_size = c_.chunk;
        f.skip_first = c_.skip_first;
        f.skip_last = c_.skip_last;
        f.center = c_.center;
        f.finish = finish;
        f.paged = COMPACTOR_PAGED;
        LAUNCH(factorise::factor, {(u32)chunks_}, {256}, factorise::Factor::SharedBytes + 8 * K, f);
    }

    Launched apply(const simt::Array<u8>& factors)
    {
        second_read::LeverageApplyParams p{};
        fill(p);
        p.part_starts = part_starts_.address();
        p.centers = centers_.address();
        p.factors = factors.address();
        p.scores = scores_.address();
        LAUNCH(second_read::leverage_apply, {parts()}, {THREADS}, (u32)(4 * D + 4 * K + 2 * D * K), p);
        return {scores_.values(), status_[0]};
    }

    const simt::Array<u8>& factors() const { return factors_; }

private:
    template <class Params> void fill(Params& p)
    {
        p.keys = c_.keys();
        p.cu_seqlens = c_.batch.cu_seqlens.address();
        p.chunk_starts = c_.batch.chunk_starts.address();
        p.sequences = c_.rows;
        p.chunk_size = c_.chunk;
        p.skip_first = c_.skip_first;
        p.skip_last = c_.skip_last;
    }

    const LeverageCase& c_;
    i32 chunks_;
    simt::Array<i32> part_starts_;
    simt::Array<float> scores_, centers_;
    simt::Array<u8> factors_;
    simt::Array<u64> status_;
};

static Launched launch(const LeverageCase& c)
{
    Run run(c);
    run.find_centers();
    run.add_up(run.centers().address(), 0, true);
    return run.apply(run.factors());
}

static void check(const LeverageCase& c, unsigned schedules)
{
    std::vector<double> expected = c.scores();
    std::vector<float> first;
    simt::over_schedules(schedules, [&] {
        Launched run = launch(c);
        CHECK(run.status == 0);
        CHECK_CLOSE(run.scores, expected, TOLERANCE);
        if (first.empty()) first = run.scores;
        CHECK(first == run.scores);
    });
}

static void check_status()
{
    LeverageCase c({150, 40}, COMPACTOR_PAGED ? 2 : 1, WHOLE, 0, 0, true, false, 1e-2, 0);
    c.stored.set(c.storage(1, 33), 0, D - 1, -INFINITY);
    CHECK(launch(c).status == packed(STATUS_NON_FINITE_KEY, COMPACTOR_PAGED ? 33 : 183, COMPACTOR_PAGED ? 1 : 0));
}

// The sums of a first piece of a sequence and those of the rest, about the first piece's center, give the factor of the whole.
static void check_pieces()
{
    LeverageCase whole({700}, 1, WHOLE, 0, 0, true, false, 1e-2, 5), first({300}, 1, WHOLE, 0, 0, true, false, 1e-2, 5), rest({400}, 1, WHOLE, 0, 0, true, false, 1e-2, 5);
    for (i32 t = 0; t < 700; t++)
        for (i32 d = 0; d < D; d++) {
            LeverageCase& piece = t < 300 ? first : rest;
            i32 own = t < 300 ? t : t - 300;
            piece.stored.set(piece.storage(0, own), 0, d, (float)whole.stored.at(whole.storage(0, t), 0, d));
        }
    simt::Array<double> totals(std::vector<double>((size_t)(GRAM + K + 1), 0.0));
    Run of_first(first), of_rest(rest), of_whole(whole);
    of_first.find_centers();
    for (i32 d = 0; d < D; d++) {   // the mean of rows from all over the piece, in bfloat16
        double sum = 0;
        for (i32 i = 0; i < CENTER_ROWS; i++) sum += first.stored.at(first.storage(0, i * 300 / CENTER_ROWS), 0, d);
        CHECK(std::abs(of_first.centers()[(size_t)d] - sum / CENTER_ROWS) < 0.04);
    }
    of_first.add_up(of_first.centers().address(), totals.address(), false);
    of_rest.add_up(of_first.centers().address(), totals.address(), true);
    for (i32 d = 0; d < D; d++) of_whole.centers()[(size_t)d] = of_first.centers()[(size_t)d];
    CHECK_CLOSE(of_whole.apply(of_rest.factors()).scores, whole.scores(), TOLERANCE);
}

int main()
{
    return simt::test([] {
        for (i32 count : {1, 512, 49152, 49153, 131072, 1 << 30}) CHECK(parts_of(count) <= 96 && part_tokens(count) >= 512 && part_tokens(count) % 128 == 0);
        check(LeverageCase({1100, 0, 1}, 1, WHOLE, 0, 0, true, false, 1e-2, COMPACTOR_ROTARY ? 0 : 300), 2);
        check(LeverageCase({700, 530}, COMPACTOR_PAGED ? 2 : 1, WHOLE, 4, 3, true, true, 5e-3, 2), 1);
        check(LeverageCase({1300, 900}, 2, 500, 0, 0, false, true, 1e-2, 0), 1);
        check_status();
        if (COMPACTOR_ROTARY == 0 && COMPACTOR_PAGED == 0) check_pieces();
    });
}
