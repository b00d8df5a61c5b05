// variant: COMPACTOR_HEAD_DIM=128 COMPACTOR_ELEMENT=2 COMPACTOR_GROUP=4
// variant: COMPACTOR_HEAD_DIM=64 COMPACTOR_ELEMENT=1 COMPACTOR_GROUP=1
// variant: COMPACTOR_HEAD_DIM=80 COMPACTOR_ELEMENT=2 COMPACTOR_GROUP=16
// variant: COMPACTOR_HEAD_DIM=256 COMPACTOR_ELEMENT=2 COMPACTOR_GROUP=7
// variant: COMPACTOR_HEAD_DIM=96 COMPACTOR_ELEMENT=0 COMPACTOR_GROUP=4
// variant: COMPACTOR_HEAD_DIM=256 COMPACTOR_ELEMENT=0 COMPACTOR_GROUP=12
#include "../../../cuda/decode_attention.cu"
#include "attention_test.hpp"

static void check(const attention::Case& c, u32 seed)
{
    attention::check(c, false, [](const AttentionParams& params, u32 grid) {
        LAUNCH(decode_attention, {grid}, {THREADS}, Decode::Shape::SHARED_BYTES, params);
        LAUNCH(decode_merge, {(u32)ceil_div(params.query_tokens * params.kv_heads * GROUP, MERGE_THREADS / 32)}, {MERGE_THREADS}, 0, params);
    }, seed);
}

int main()
{
    return simt::test([] {
        using namespace attention;
        check({{1, 17, 0, 64, 130, 33}, {1, 1, 1}, 2, 16}, 1);                                        // short, empty, one slot
        check({{1100, 300}, {1}, 2, 128}, 2);                                                         // splits
        check({{45, 16}, {1, 1}, 3, 24, Nhd}, 3);                                                     // a host's tables
        check({{70}, {1}, 2, 16, Hnd, 0.1f, 3.0f, 0, true, false}, 4);                                // soft cap, sinks, queries of any alignment
        check({{600, 90}, {1}, 2, 32, HeadBlocks, 0.1f, 0, 300}, 5);                                  // window
        check({{400, 130}, {1}, 2, 48, HeadBlocks, 0.5f}, 7);                                         // maxima that rise by more than the margin, and by less
        check({{130, 64}, {1, 1}, 2, 32, Nhd, 0.5f, 0, 0, true}, 8);                                  // whole tiles of rows that are apart
        check({{0, 40}, {1}, 2, 16, HeadBlocks, 0.1f, 0, 5, true}, 6);                                // a head that sees nothing but its sink
    });
}
