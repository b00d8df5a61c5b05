// Barriers in shared memory, and the bulk copies that report to them. A copy's bytes are taken when it starts; they arrive when a thread that waits for their phase sees it
// complete, no sooner, so that whoever does not wait meets memory that may not be touched.
#include "access.hpp"
#include <cstring>

namespace simt {

struct BulkCopy
{
    u32 to;
    std::vector<u8> data;
    Released started;
};

struct Mbarrier
{
    u32 arrivals = 0, missing = 0;     // of a phase; still to come in the present one
    i64 expected = 0, flying = 0;      // bytes of the present phase
    u32 phase = 0;
    i32 number = -1;                   // among those that bulk copies report to
    Writer made{};                     // by which thread, after how many fences
    std::vector<BulkCopy> copies;
    std::vector<Thread*> waiting;
    Released arriving, complete;       // of the present phase, of the one before
};

struct Mbarriers
{
    std::map<u32, Mbarrier> at;
    u32 with_copies = 0;

    ~Mbarriers()
    {
        for (auto& [place, mbarrier] : at) {
            for (BulkCopy& copy : mbarrier.copies) release(copy.started);
            release(mbarrier.arriving);
            release(mbarrier.complete);
        }
    }
};

static u64 pattern(u32 at) { return 0x6d62617200000000ull | at; }   // what the 8 bytes hold: nobody else may write them

static Mbarrier& find(Thread& self, u32 at)
{
    u64 bits;
    std::memcpy(&bits, check_shared(self, at, 8, Access::atomic), 8);
    Mbarriers* all = self.block->mbarriers.get();
    if (all == nullptr || all->at.find(at) == all->at.end()) fault("there is no mbarrier at 0x%x", at);
    if (bits != pattern(at)) fault("the mbarrier at 0x%x has been overwritten", at);
    return all->at[at];
}

static void wake(Mbarrier& mbarrier)
{
    for (Thread* thread : mbarrier.waiting) make_runnable(*thread);
    mbarrier.waiting.clear();
}

static void check_bytes(u32 at, const Mbarrier& mbarrier)
{
    if (mbarrier.missing == 0 && mbarrier.flying > mbarrier.expected)
        fault("the mbarrier at 0x%x expects %lld bytes of its phase, and bulk copies bring %lld", at, (long long)mbarrier.expected, (long long)mbarrier.flying);
}

// All arrivals of the phase have come and all bytes it expects are on the way.
static bool can_complete(const Mbarrier& mbarrier) { return mbarrier.missing == 0 && mbarrier.flying == mbarrier.expected; }

static void complete(Thread& self, Mbarrier& mbarrier)
{
    Block& block = *self.block;
    for (BulkCopy& copy : mbarrier.copies) {
        u32 offset = copy.to - shared_window, bytes = (u32)copy.data.size();
        std::memset(block.state + offset, shared_written, bytes);
        std::memcpy(block.shared + offset, copy.data.data(), bytes);
        if (self.launch->what->check_races != 0)
            for (u32 i = 0; i < bytes; i += 16)
                if (const Record* other = check_bulk_write(self, mbarrier.number, copy.started, offset + i)) race(self, "shared", copy.to + i, 16, Access::write, *other);
        release(copy.started);
    }
    if (!mbarrier.copies.empty()) arrive_bulk(self, mbarrier.number, mbarrier.arriving);
    mbarrier.copies.clear();
    mbarrier.missing = mbarrier.arrivals;
    mbarrier.expected = mbarrier.flying = 0;
    mbarrier.phase++;
    release(mbarrier.complete);
    mbarrier.complete = mbarrier.arriving;
    mbarrier.arriving = {};
    wake(mbarrier);
}

void finish_bulk_copies(const Block& block)
{
    if (block.mbarriers == nullptr) return;
    for (const auto& [at, mbarrier] : block.mbarriers->at)
        if (!mbarrier.copies.empty()) fault("the block ends while a bulk copy to shared address 0x%x is on its way", mbarrier.copies.front().to);
}

}

using namespace simt;

extern "C" {

void simt_mbarrier_init(u32 at, u32 arrivals)
{
    SIMT_ENTER(self);
    if (arrivals == 0 || arrivals >= 1u << 20) fault("mbarrier of %u arrivals: 1 to 1048575", arrivals);
    u64 bits = pattern(at);
    std::memcpy(check_shared(self, at, 8, Access::write), &bits, 8);
    if (self.block->mbarriers == nullptr) self.block->mbarriers = std::make_shared<Mbarriers>();
    Mbarrier& mbarrier = self.block->mbarriers->at[at];
    if (!mbarrier.copies.empty() || !mbarrier.waiting.empty()) fault("the mbarrier at 0x%x is made anew while it is in use", at);
    release(mbarrier.arriving);
    release(mbarrier.complete);
    i32 number = mbarrier.number;
    mbarrier = {};
    mbarrier.number = number;
    mbarrier.arrivals = mbarrier.missing = arrivals;
    mbarrier.made = {(u16)self.index, self.proxy_fences};
}

void simt_mbarrier_arrive(u32 at, u32 bytes)
{
    SIMT_ENTER(self);
    Mbarrier& mbarrier = find(self, at);
    if (mbarrier.missing == 0) fault("arrival at the mbarrier at 0x%x, whose phase has its %u arrivals and has not been seen complete", at, mbarrier.arrivals);
    if (bytes >= 1u << 20) fault("the mbarrier at 0x%x expects %u bytes: 1048575 at most", at, bytes);
    leave(self, mbarrier.arriving);
    mbarrier.expected += bytes;
    mbarrier.missing--;
    check_bytes(at, mbarrier);
    if (can_complete(mbarrier) && mbarrier.flying == 0) complete(self, mbarrier);
    else if (can_complete(mbarrier)) wake(mbarrier);
}

bool simt_mbarrier_try_wait(u32 at, u32 parity)
{
    SIMT_ENTER(self);
    if (parity > 1) fault("parity %u of an mbarrier: 0 or 1", parity);
    for (;;) {
        Mbarrier& mbarrier = find(self, at);
        if ((mbarrier.phase & 1) != parity) {
            take(self, mbarrier.complete);
            return true;
        }
        if (self.launch->random.below(4) == 0) return false;   // now and then the answer is no, whatever has happened
        if (can_complete(mbarrier)) complete(self, mbarrier);
        else {
            mbarrier.waiting.push_back(&self);
            wait_for(Wait::mbarrier, at);
        }
    }
}

void simt_fence_async_proxy()
{
    SIMT_ENTER(self);
    if (++self.proxy_fences == 0xffff) fault("the emulator counts 65534 proxy fences of a thread");
}

void simt_bulk_copy(u32 to, const void* from, u32 bytes, u32 mbarrier_at)
{
    SIMT_ENTER(self);
    if (bytes == 0 || bytes % 16 != 0) fault("bulk copy of %u bytes, which is not a multiple of 16", bytes);
    if (((u64)from & 15) != 0 || (to & 15) != 0) fault("bulk copy from 0x%llx to shared address 0x%x, which are not both aligned to 16", (u64)from, to);
    check_global(self, (u64)from, bytes, 16, Access::read);
    Mbarrier& mbarrier = find(self, mbarrier_at);
    if (self.block->threads[mbarrier.made.thread]->proxy_fences == mbarrier.made.fences)
        fault("bulk copy to the mbarrier at 0x%x, which thread %u has made without fence_async_proxy behind it", mbarrier_at, mbarrier.made.thread);
    if (mbarrier.number < 0) mbarrier.number = (i32)self.block->mbarriers->with_copies++;
    if (mbarrier.number >= (i32)bulk_threads) fault("the emulator follows bulk copies to %u mbarriers of a block, not more", bulk_threads);
    mbarrier.copies.push_back({to, std::vector<u8>((const u8*)from, (const u8*)from + bytes), {}});
    BulkCopy& copy = mbarrier.copies.back();
    leave(self, copy.started);
    for (u32 i = 0; i < bytes; i += 16) {
        u8* place = check_async(self, to + i, "bulk copy");
        u8* state = self.block->state + (to + i - shared_window);
        for (u32 b = 0; b < 16; b++)
            if (state[b] == shared_in_flight) fault("bulk copy to shared address 0x%x, where another copy has not been waited for", to + i);
        if (self.launch->what->check_races != 0)
            if (const Record* other = check_bulk_write(self, mbarrier.number, copy.started, to + i - shared_window)) race(self, "shared", to + i, 16, Access::write, *other);
        std::memset(place, 0xff, 16);
        std::memset(state, shared_in_flight, 16);
        std::memset(self.block->writers + (to + i - shared_window) / 4, 0, 4 * sizeof(Writer));
    }
    mbarrier.flying += bytes;
    check_bytes(mbarrier_at, mbarrier);
    if (can_complete(mbarrier)) wake(mbarrier);
}

}
