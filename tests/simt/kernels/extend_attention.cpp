// variant: COMPACTOR_HEAD_DIM=128 COMPACTOR_ELEMENT=2 COMPACTOR_GROUP=4
// variant: COMPACTOR_HEAD_DIM=64 COMPACTOR_ELEMENT=1 COMPACTOR_GROUP=1
// variant: COMPACTOR_HEAD_DIM=96 COMPACTOR_ELEMENT=2 COMPACTOR_GROUP=5
// variant: COMPACTOR_HEAD_DIM=256 COMPACTOR_ELEMENT=1 COMPACTOR_GROUP=2
// variant: COMPACTOR_HEAD_DIM=80 COMPACTOR_ELEMENT=0 COMPACTOR_GROUP=2
// variant: COMPACTOR_HEAD_DIM=256 COMPACTOR_ELEMENT=0 COMPACTOR_GROUP=3
#include "../../../cuda/extend_attention.cu"
#include "attention_test.hpp"

static void check(const attention::Case& c, u32 seed)
{
    attention::check(c, true, [](const AttentionParams& params, u32 grid) {
        LAUNCH(extend_attention, {grid}, {THREADS}, Extend::Shape::SHARED_BYTES, params);
        LAUNCH(extend_merge, {(u32)ceil_div(params.query_tokens * params.kv_heads * GROUP, MERGE_THREADS / 32)}, {MERGE_THREADS}, 0, params);
    }, seed);
}

int main()
{
    return simt::test([] {
        using namespace attention;
        check({{40, 25, 3, 9, 0, 0, 70, 64}, {5, 3, 0, 64}, 2, 16}, 1);                               // turns on prefixes of any lengths, none, and a prompt
        check({{1050, 700}, {4}, 2, 64}, 2);                                                          // draft tokens over splits
        check({{60, 37}, {2, 37}, 2, 24, Nhd}, 3);
        check({{200, 100}, {30}, 2, 48, HeadBlocks, 0.5f}, 5);                                        // maxima that rise by more than the margin, and by less
        check({{90, 70}, {40}, 2, 32, HeadBlocks, 0.1f, 4.0f, 60, true, false}, 4);                   // window, soft cap, sinks
    });
}
