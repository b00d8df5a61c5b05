// How a kernel is tested: arrays, launches over several schedules, a float64 loop, equal bits whatever the schedule.
#include "column_sums.cu"
#include "../simt_test.hpp"

static void check(i32 rows, i32 blocks)
{
    i32 columns = blocks * COLUMNS;
    std::vector<float> input = simt::normal((size_t)(rows * columns), 7);
    std::vector<double> expected((size_t)columns, 0.0);
    for (i32 r = 0; r < rows; r++)
        for (i32 c = 0; c < columns; c++) expected[(size_t)c] += (double)input[(size_t)(r * columns + c)];

    simt::Array<bf16> stored(simt::elements<bf16>(input));
    std::vector<float> first;
    simt::over_schedules(5, [&] {
        simt::Array<float> sums((size_t)columns);
        ColumnSumsParams params{stored.address(), sums.address(), rows, columns};
        LAUNCH(column_sums, {(u32)blocks}, {THREADS}, 2 * TILE_BYTES, params);
        CHECK_CLOSE(sums.values(), expected, 1e-6);
        if (first.empty()) first = sums.values();
        CHECK(std::memcmp(first.data(), sums.data(), first.size() * sizeof(float)) == 0);
    });
}

int main()
{
    return simt::test([] {
        for (i32 rows : {1, 15, 16, 17, 100}) check(rows, 3);
    });
}
