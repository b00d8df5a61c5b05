// Every planted fault of faults_sm90a.cu is reported; without a fault nothing is.
#include "faults_sm90a.cu"
#include "planted.hpp"

static const std::vector<Planted> planted = {
    PLANT(bring, 0, nullptr), PLANT(bring, 1, "shared read"), PLANT(bring, 2, "shared read"), PLANT(bring, 3, ""), PLANT(bring, 4, "deadlock"),
    PLANT(bring, 5, "not both aligned to 16"), PLANT(bring, 6, "not a multiple of 16"), PLANT(bring, 7, "outside every allocation"), PLANT(bring, 8, "without fence_async_proxy"),
    PLANT(bring, 9, "on its way"), PLANT(bring, 10, ""), PLANT(bring, 11, ""), PLANT(bring, 12, ""), PLANT(bring, 13, "without fence_async_proxy"),
    PLANT(bring, 14, "has not been seen complete"), PLANT(bring, 15, "shared"), PLANT(bring, 16, "0x"), PLANT(bring, 17, "parity 2"), PLANT(bring, 18, ""),
    PLANT(hand_over_counted, 0, nullptr), PLANT(hand_over_counted, 1, "deadlock"), PLANT(hand_over_counted, 2, ""), PLANT(hand_over_counted, 3, ""),
    PLANT(hand_over_counted, 4, ""),
    PLANT(multiply_group, 0, nullptr), PLANT(multiply_group, 1, "without fence_async_proxy"), PLANT(multiply_group, 2, "without wgmma_fence"), PLANT(multiply_group, 3, "under way"),
    PLANT(multiply_group, 4, "never committed"), PLANT(multiply_group, 5, "accumulator"), PLANT(multiply_group, 6, ""), PLANT(multiply_group, 7, "mismatched collective"),
    PLANT(multiply_group, 8, "mismatched collective"), PLANT(multiply_group, 9, "never written"), PLANT(multiply_group, 10, "multiples of 1024"),
    PLANT(multiply_group, 11, ""), PLANT(multiply_group, 12, ""), PLANT(multiply_group, 13, "data race"), PLANT(multiply_group, 14, "under way"),
    PLANT(multiply_group, 15, "128-byte swizzle"),
};

int main()
{
    return simt::test([] { check_planted(planted, 128, 64 * 128 + 1024, ""); });
}
