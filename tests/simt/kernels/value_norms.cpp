// Norms of values against a float64 loop: element types, packed and padded batches, rows that do not start at multiples of 16 bytes, empty sequences, a last block partly filled.
// variant: COMPACTOR_ELEMENT=2 COMPACTOR_HEAD_DIM=128
// variant: COMPACTOR_ELEMENT=1 COMPACTOR_HEAD_DIM=80
// variant: COMPACTOR_ELEMENT=0 COMPACTOR_HEAD_DIM=256
#include "value_norms.cu"
#include "scores.hpp"

constexpr i32 D = COMPACTOR_HEAD_DIM;

// D products and sums of float32, each within 2^-24, D / 16 of them in a row of a lane; a root halves the error.
constexpr double TOLERANCE = 2e-6;

static void check(const std::vector<i32>& lengths, i32 heads, bool padded, bool aligned, unsigned seed)
{
    i32 most = *std::max_element(lengths.begin(), lengths.end()), sequences = (i32)lengths.size(), shift = aligned ? 0 : 1;
    HostTensor value(padded ? sequences * most : (i32)c_tokens(lengths), heads, D + shift, seed, 3.0f);
    Batch batch(lengths, most, 0, 0);
    std::vector<double> expected;
    for (i32 b = 0; b < sequences; b++)
        for (i32 t = 0; t < lengths[(size_t)b]; t++)
            for (i32 h = 0; h < heads; h++) {
                double squares = 0;
                for (i32 d = shift; d < D + shift; d++) {
                    double x = value.at((padded ? b * most : batch.cu_seqlens[(size_t)b]) + t, h, d);
                    squares += x * x;
                }
                expected.push_back(std::sqrt(squares));
            }
    std::vector<float> first;
    simt::over_schedules(3, [&] {
        simt::Array<float> norms(expected.size());
        ValueNormsParams p{value.tensor(), batch.cu_seqlens.address(), norms.address(), sequences, heads};
        p.value.address += (u64)shift * sizeof(Element);
        p.value.sequence_stride = padded ? most * p.value.token_stride : 0;
        LAUNCH(value_norms, {(u32)ceil_div((i32)expected.size(), NORM_THREADS / ROW_LANES)}, {NORM_THREADS}, 0, p);
        CHECK_CLOSE(norms.values(), expected, TOLERANCE);
        if (first.empty()) first = norms.values();
        CHECK(first == norms.values());
    });
}

int main()
{
    return simt::test([] {
        check({1}, 1, false, true, 1);
        check({37, 0, 5}, 3, false, true, 2);
        check({9, 20, 0, 2}, 2, true, true, 3);
        check({33, 2}, 2, false, false, 4);
    });
}
