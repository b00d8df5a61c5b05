// Leverage of chunks in shared memory against a float64 loop: element types, sketch widths, biased and drifting keys, dense and paged, rotated back or not.
// variant: COMPACTOR_ELEMENT=2 COMPACTOR_HEAD_DIM=128 COMPACTOR_SKETCH_DIM=48 COMPACTOR_CHUNK=512 COMPACTOR_ROTARY=0 COMPACTOR_PAGED=0
// variant: COMPACTOR_ELEMENT=1 COMPACTOR_HEAD_DIM=80 COMPACTOR_SKETCH_DIM=16 COMPACTOR_CHUNK=100 COMPACTOR_ROTARY=1 COMPACTOR_PAGED=0
// variant: COMPACTOR_ELEMENT=0 COMPACTOR_HEAD_DIM=96 COMPACTOR_SKETCH_DIM=64 COMPACTOR_CHUNK=128 COMPACTOR_ROTARY=2 COMPACTOR_PAGED=0
// variant: COMPACTOR_ELEMENT=2 COMPACTOR_HEAD_DIM=64 COMPACTOR_SKETCH_DIM=112 COMPACTOR_CHUNK=192 COMPACTOR_ROTARY=1 COMPACTOR_PAGED=1 COMPACTOR_BLOCK_SIZE=16
#include "sketch_leverage.cu"
#include "leverage.hpp"

// X, Gram and solve keep 2^-17 of each factor; what a score loses is a few times that.
constexpr double TOLERANCE = 2e-5;
// Fewer tokens than columns and no ridge but its floor, 2^-20 of the mean diagonal: the factor's condition is up to 2^10·sqrt(k), and float32 keeps three digits.
constexpr double ILL_CONDITIONED = 1e-3;
constexpr float BIAS = COMPACTOR_ROTARY ? 0 : 300;   // standard deviations: before a rotation, that is

struct Launched
{
    std::vector<float> scores;
    u64 status;
};

static Launched launch(const LeverageCase& c)
{
    simt::Array<float> scores((size_t)(c.tokens * c.heads));
    if (c.skip_first + c.skip_last > 0) scores.fill(0);
    simt::Array<u64> status(std::vector<u64>{0});
    SketchLeverageParams p{};
    p.keys = c.keys();
    p.cu_seqlens = c.batch.cu_seqlens.address();
    p.chunk_starts = c.batch.chunk_starts.address();
    p.scores = scores.address();
    p.status = status.address();
    p.epsilon = c.epsilon;
    p.sequences = c.rows;
    p.skip_first = c.skip_first;
    p.skip_last = c.skip_last;
    LAUNCH(sketch_leverage, {(u32)(c.batch.chunks * c.heads)}, {THREADS}, SHARED, p);
    return {scores.values(), status[0]};
}

static void check(const LeverageCase& c, unsigned schedules, double tolerance = TOLERANCE)
{
    std::vector<double> expected = c.scores();
    std::vector<float> first;
    simt::over_schedules(schedules, [&] {
        Launched run = launch(c);
        CHECK(run.status == 0);
        CHECK_CLOSE(run.scores, expected, tolerance);
        if (first.empty()) first = run.scores;
        CHECK(first == run.scores);
    });
}

static void check_status()
{
    LeverageCase c({70, 40}, COMPACTOR_PAGED ? 2 : 1, CHUNK, 0, 0, true, false, 1e-2, 0);
    c.stored.set(c.storage(1, 33), 0, D - 1, -INFINITY);
    CHECK(launch(c).status == packed(STATUS_NON_FINITE_KEY, COMPACTOR_PAGED ? 33 : 103, COMPACTOR_PAGED ? 1 : 0));
    c.stored.set(c.storage(0, 69), 0, 3, NAN);
    CHECK(launch(c).status == packed(STATUS_NON_FINITE_KEY, COMPACTOR_PAGED ? 33 : 69, COMPACTOR_PAGED ? 1 : 0));
}

int main()
{
    return simt::test([] {
        check(LeverageCase({CHUNK + 5, 0, 1}, 1, CHUNK, 0, 0, true, false, 1e-2, BIAS), 2);
        check(LeverageCase({CHUNK - 7, 37}, COMPACTOR_PAGED ? 2 : 1, CHUNK, 4, 3, true, true, 5e-3, 2), 2);
        check(LeverageCase({90, 20, 16, 2}, 2, CHUNK, 0, 0, false, true, 1e-2, 0), 1);
        check(LeverageCase({9, 60}, COMPACTOR_PAGED ? 2 : 1, CHUNK, 0, 0, true, false, 0, 0), 1, ILL_CONDITIONED);
        check_status();
    });
}
