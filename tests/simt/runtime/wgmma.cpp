// Matrix products of warpgroups. They are computed when they are waited for: until then the accumulators hold poison that must stay, and shared memory must hold what
// it held when the product was issued, and is read by the warp at both times.
#include "access.hpp"
#include "warp.hpp"
#include <cstring>

namespace simt {

constexpr u32 poison = 0xffc0dead, most_tiles = 32;

struct Product
{
    bool f16 = false, accumulate = false;
    u32 tiles = 0, group = 0;
    u64 a = 0, b = 0;                           // descriptors
    f32x4* c[32];
    std::vector<u16> rows, columns;             // what they named when it was issued: [64][16], [8·tiles][16]
};

struct WarpProducts
{
    bool fenced = false;                        // since the registers were last the thread's own
    u32 groups = 0;                             // committed
    std::vector<Product> issued;
    std::vector<f32x4> values;                  // [32][tiles] of the accumulators, while products into them are under way
    std::vector<u64> sequence;                  // what was issued, for comparison with the other warps of the group
};

// What lanes meet with.
struct Wgmma
{
    u32 what;                                   // 0 product, 1 fence, 2 commit, 3 wait
    Product product;
    u32 pending;
};

static WarpProducts& products_of(Warp& warp)
{
    if (warp.products == nullptr) warp.products = std::make_shared<WarpProducts>();
    return *warp.products;
}

// The 16-bit elements [rows][16] that a descriptor names: K-major, 128-byte swizzle. The warp's first lane stands for it in race detection.
static void read_operand(Warp& warp, u64 d, u32 rows, std::vector<u16>& elements)
{
    u32 start = (u32)(d & 0x3fff) << 4, stride = (u32)(d >> 32 & 0x3fff) << 4;
    if (d >> 62 != 1) fault("wgmma: the emulator knows the 128-byte swizzle (1) alone, the descriptor says %u", (u32)(d >> 62));
    if ((d >> 49 & 7) != 0 || (start & 1023) > 96 || stride % 1024 != 0) fault("wgmma: eight rows begin at multiples of 1024 bytes, the descriptor says 0x%x, then every %u", start, stride);
    elements.resize(rows * 16);
    Thread& reader = *warp.threads[0];
    for (u32 row = 0; row < rows; row++)
        for (u32 half = 0; half < 2; half++) {
            u32 at = start + row / 8 * stride + row % 8 * 128 + half * 16;
            at ^= (at >> 7 & 7) << 4;
            const u8* place = check_async(reader, at, "wgmma's read");
            const u8* state = warp.block->state + (at - shared_window);
            for (u32 i = 0; i < 16; i++) {
                if (state[i] == shared_in_flight) fault("wgmma reads shared memory at 0x%x, where a cp.async or bulk copy has not been waited for", at);
                if (state[i] == shared_unwritten) fault("wgmma reads shared memory at 0x%x, which was never written", at);
            }
            if (reader.launch->what->check_races != 0)
                if (const Record* other = check_shared_access(reader, warp.block->accesses, at - shared_window, 16, Access::read)) race(reader, "shared", at, 16, Access::read, *other);
            std::memcpy(elements.data() + row * 16 + half * 8, place, 16);
        }
}

static void poison_accumulators(const Product& product)
{
    for (f32x4* c : product.c)
        for (u32 i = 0; i < product.tiles * 4; i++) std::memcpy((u8*)c + i * 4, &poison, 4);
}

static void check_poison(const Warp& warp, const Product& product)
{
    for (u32 lane = 0; lane < 32; lane++)
        for (u32 i = 0; i < product.tiles * 4; i++) {
            u32 bits;
            std::memcpy(&bits, (const u8*)product.c[lane] + i * 4, 4);
            if (bits != poison) fault("an accumulator of thread %u was written to while a wgmma into it was under way", warp.threads[lane]->index);
        }
}

static void issue(Thread& self, Warp& warp)
{
    WarpProducts& all = products_of(warp);
    const Product& mine = ((const Wgmma*)self.operand)->product;
    if (!all.fenced) fault("wgmma without wgmma_fence since registers were last written");
    all.issued.push_back(mine);
    Product& product = all.issued.back();
    product.group = all.groups;
    for (u32 lane = 0; lane < 32; lane++) {
        const Product& other = ((const Wgmma*)warp.threads[lane]->operand)->product;
        if (other.a != mine.a || other.b != mine.b || other.tiles != mine.tiles || other.f16 != mine.f16 || other.accumulate != mine.accumulate)
            fault("mismatched collective: threads %u and %u meet at different wgmma", self.index, warp.threads[lane]->index);
        product.c[lane] = other.c[0];
    }
    // All warps of a warpgroup issue the same.
    u32 number = warp.threads[0]->index / 32, first = number / 4 * 4;
    if (first + 4 > warp.block->warps.size()) fault("wgmma by warp %u, which has no whole group of four", number);
    all.sequence.push_back(mix(mine.b ^ mix(mine.a ^ mix((u64)mine.tiles << 2 | (u64)mine.f16 << 1 | (u64)mine.accumulate))));
    for (u32 w = first; w < first + 4; w++) {
        const WarpProducts* other = warp.block->warps[w].products.get();
        if (other != nullptr && other->sequence.size() >= all.sequence.size() && other->sequence[all.sequence.size() - 1] != all.sequence.back())
            fault("mismatched collective: wgmma number %zu of warp %u is not that of warp %u of its group", all.sequence.size(), number, w);
    }
    read_operand(warp, product.a, 64, product.rows);
    read_operand(warp, product.b, product.tiles * 8, product.columns);
    if (all.issued.size() > 1) {
        if (all.issued[0].c[0] != product.c[0] || all.issued[0].tiles != product.tiles) fault("wgmma: the emulator knows one set of accumulators under way at a time");
        check_poison(warp, product);
        return;
    }
    all.values.resize(32 * product.tiles);
    for (u32 lane = 0; lane < 32; lane++) std::memcpy(&all.values[lane * product.tiles], product.c[lane], product.tiles * sizeof(f32x4));
    poison_accumulators(product);
}

static void complete(Warp& warp, u32 pending)
{
    WarpProducts& all = products_of(warp);
    size_t done = 0;
    for (; done < all.issued.size() && all.issued[done].group + pending < all.groups; done++) {
        const Product& product = all.issued[done];
        check_poison(warp, product);
        static thread_local std::vector<u16> rows, columns;
        read_operand(warp, product.a, 64, rows);
        read_operand(warp, product.b, product.tiles * 8, columns);
        if (rows != product.rows || columns != product.columns) fault("shared memory that a wgmma reads was written to while it was under way");
        u32x4 a[32];
        f32x4* c[32];
        for (u32 lane = 0; lane < 32; lane++) {
            const u16* row = rows.data() + (warp.threads[0]->index / 32 % 4 * 16 + lane / 4) * 16 + lane % 4 * 2;
            u32 pairs[4];   // rows l / 4 and + 8, then the next 8 elements of both
            for (u32 i = 0; i < 4; i++) std::memcpy(&pairs[i], row + i % 2 * 8 * 16 + i / 2 * 8, 4);
            a[lane] = {pairs[0], pairs[1], pairs[2], pairs[3]};
            c[lane] = &all.values[lane * product.tiles];
            if (!product.accumulate) std::memset(c[lane], 0, product.tiles * sizeof(f32x4));
        }
        multiply_columns(product.f16, product.tiles, a, columns.data(), c);
    }
    if (done > 0 && done == all.issued.size())
        for (u32 lane = 0; lane < 32; lane++) std::memcpy(all.issued[0].c[lane], &all.values[lane * all.issued[0].tiles], all.issued[0].tiles * sizeof(f32x4));
    all.issued.erase(all.issued.begin(), all.issued.begin() + (std::ptrdiff_t)done);
    if (pending == 0) all.fenced = false;
}

// The warp's lanes come to one of the instructions; true for the last, which does it for all.
static bool come(Thread& self, Wgmma& mine)
{
    if (!meet(self, Wait::wgmma, 0xffffffffu, &mine)) return false;
    for (const Thread* thread : self.warp->threads) {
        const Wgmma& other = *(const Wgmma*)thread->operand;
        if (other.what != mine.what || other.pending != mine.pending) fault("mismatched collective: threads %u and %u meet at different instructions of wgmma", self.index, thread->index);
    }
    return true;
}

void finish_products(const Warp& warp)
{
    const WarpProducts* all = warp.products.get();
    u32 number = warp.threads[0]->index / 32;
    if (all != nullptr && !all->issued.empty()) fault("warp %u ends while a wgmma is under way%s", number, all->issued[0].group == all->groups ? ", never committed" : "");
    // The last of its group compares.
    u32 first = number / 4 * 4;
    for (u32 w = first; w < first + 4 && w < warp.block->warps.size(); w++) {
        const Warp& other = warp.block->warps[w];
        if (&other != &warp && other.exited != other.present) return;
    }
    for (u32 w = first; w < first + 4 && w < warp.block->warps.size(); w++) {
        const WarpProducts* other = warp.block->warps[w].products.get();
        size_t mine = all == nullptr ? 0 : all->sequence.size(), others = other == nullptr ? 0 : other->sequence.size();
        if (mine != others) fault("warp %u has issued %zu wgmma, warp %u of its group %zu", number, mine, w, others);
    }
}

}

using namespace simt;

extern "C" {

void simt_wgmma(bool f16, f32x4* c, u32 tiles, u64 a, u64 b, bool accumulate)
{
    SIMT_ENTER(self);
    if (tiles == 0 || tiles > most_tiles) fault("wgmma of %u columns", tiles * 8);
    Wgmma mine{};
    mine.product.f16 = f16;
    mine.product.accumulate = accumulate;
    mine.product.tiles = tiles;
    mine.product.a = a;
    mine.product.b = b;
    mine.product.c[0] = c;
    if (come(self, mine)) issue(self, *self.warp);
}

void simt_wgmma_fence()
{
    SIMT_ENTER(self);
    Wgmma mine{};
    mine.what = 1;
    if (come(self, mine)) products_of(*self.warp).fenced = true;
}

void simt_wgmma_commit()
{
    SIMT_ENTER(self);
    Wgmma mine{};
    mine.what = 2;
    if (come(self, mine)) products_of(*self.warp).groups++;
}

void simt_wgmma_wait(u32 pending)
{
    SIMT_ENTER(self);
    Wgmma mine{};
    mine.what = 3;
    mine.pending = pending;
    if (come(self, mine)) complete(*self.warp, pending);
}

}
