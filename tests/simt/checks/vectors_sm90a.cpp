// The emulator's wrappers give what vectors_sm90a.txt records.
#include "../vectors/vectors_sm90a.cu"
#include "vectors.hpp"

static const std::map<std::string, Wrapper> wrappers = {{"wgmma_bf16", WGMMA_BF16}, {"wgmma_f16", WGMMA_F16}, {"bulk_copy", BULK_COPY}, {"mbarrier_arrive", MBARRIER_ARRIVE}};

int main()
{
    return simt::test([] { check_vectors(SIMT_FOLDER "/vectors/vectors_sm90a.txt", wrappers, 128, &simt::call<&wrapper_vectors_sm90a>, 16384 + 8); });
}
