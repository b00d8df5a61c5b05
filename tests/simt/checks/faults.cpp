// Every planted fault of faults.cu is reported; without a fault nothing is.
#include "faults.cu"
#include "planted.hpp"

static const std::vector<Planted> planted = {
    PLANT(exchange, 0, nullptr), PLANT(exchange, 1, "shared"), PLANT(exchange, 2, "data race"), PLANT(exchange, 3, "never written"),
    PLANT(exchange_warp, 0, nullptr), PLANT(exchange_warp, 1, "shared"), PLANT(exchange_warp, 2, "data race"),
    PLANT(hand_over, 0, nullptr), PLANT(hand_over, 1, "deadlock"), PLANT(hand_over, 2, ""), PLANT(hand_over, 3, "shared"),
    PLANT(diverge, 0, nullptr), PLANT(diverge, 1, "divergent barrier"), PLANT(diverge, 2, "deadlock"), PLANT(diverge, 3, "divergent barrier"),
    PLANT(collect, 0, nullptr), PLANT(collect, 1, "mismatched collective"), PLANT(collect, 2, "mismatched collective"), PLANT(collect, 3, "mismatched collective"),
    PLANT(collect, 4, "mismatched collective"), PLANT(collect, 5, "not in mask"), PLANT(collect, 6, "different kinds of shuffle"), PLANT(collect, 7, "width 5"),
    PLANT(copy_async, 0, nullptr), PLANT(copy_async, 1, "cp.async"), PLANT(copy_async, 2, "not been waited for"), PLANT(copy_async, 3, "shared"),
    PLANT(copy_async, 4, "not been waited for"), PLANT(copy_async, 5, "not aligned to 16"), PLANT(copy_async, 6, "outside every allocation"), PLANT(copy_async, 7, "not been waited for"),
    PLANT(reach, 0, nullptr), PLANT(reach, 1, "outside every allocation"), PLANT(reach, 2, "outside every allocation"), PLANT(reach, 3, "not aligned to 4"),
    PLANT(reach, 4, "not aligned to 16"), PLANT(reach, 5, "outside every allocation"), PLANT(reach, 6, "outside the block's 1024 bytes"), PLANT(reach, 7, "not aligned to 4"),
    PLANT(reach, 8, "not aligned to 16"),
    PLANT(sum_blocks, 0, nullptr), PLANT(sum_blocks, 1, "data race on 4 bytes of global"), PLANT(sum_blocks, 2, "data race on 4 bytes of global"),
    PLANT(sum_blocks, 3, "data race on 4 bytes of global"), PLANT(sum_blocks, 4, "data race on 4 bytes of global"),
    PLANT(write_rows, 0, nullptr), PLANT(write_rows, 1, "data race on 2 bytes of global"), PLANT(write_rows, 2, "data race on 2 bytes of global"),
    PLANT(write_rows, 4, "non-coherent load"), PLANT(write_rows, 5, "data race on 4 bytes of global"),
    PLANT(multiply, 0, nullptr), PLANT(multiply, 1, "not aligned to 16"), PLANT(multiply, 2, "mismatched collective"), PLANT(multiply, 3, "mismatched collective"),
    PLANT(multiply, 4, "never written"),
};

int main()
{
    return simt::test([] { check_planted(planted, 64, 64 * 16, "copy_async"); });
}
