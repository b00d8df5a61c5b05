// Attention scores by wgmma and bulk copies: blocks that walk over several items, items of an odd number of tiles, unused columns.
// variant: COMPACTOR_ELEMENT=2 COMPACTOR_HEAD_DIM=128 COMPACTOR_CHUNK=256
// variant: COMPACTOR_ELEMENT=1 COMPACTOR_HEAD_DIM=64 COMPACTOR_CHUNK=64
// variant: COMPACTOR_ELEMENT=2 COMPACTOR_HEAD_DIM=64 COMPACTOR_CHUNK=100
// variant: COMPACTOR_ELEMENT=1 COMPACTOR_HEAD_DIM=128 COMPACTOR_CHUNK=192
#include "attention_scores_hopper.cu"

#define KERNEL attention_scores_hopper
constexpr u32 SHARED = 2 * COLUMNS * 2 * D + 4 * 64 * 2 * D + 2 * 8 * COLUMNS * 4 + 8 * 6 + 8 * 2 * 32;
static u32 grid(i32 items) { return items < 3 ? (u32)items : 3; }

#include "attention_scores.hpp"

int main()
{
    return simt::test([] {
        check_all();
        check({{3 * CHUNK + 70}, 3, 2, 2, 3, true, 0.5}, 2);
    });
}
