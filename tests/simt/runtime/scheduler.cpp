// Runs a launch: blocks start in random order, a few at a time; threads run until they wait, and the next is drawn from a seeded generator.
#include "device_memory.hpp"
#include "execution.hpp"
#include "source_position.hpp"
#include <atomic>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#if defined(__SANITIZE_ADDRESS__)
#include <pthread.h>
#endif

namespace simt {

__thread Thread* running = nullptr;

static std::atomic<u32> next_serial{1};

constexpr u32 largest_block = 1024, largest_shared = 227 * 1024, most_resident = 4;

const char* name_of(Wait wait)
{
    switch (wait) {
    case Wait::nothing: return "nothing";
    case Wait::block_barrier: return "__syncthreads";
    case Wait::named_barrier: return "a named barrier";
    case Wait::sync_warp: return "__syncwarp";
    case Wait::shuffle: return "a shuffle";
    case Wait::vote: return "a vote";
    case Wait::reduce: return "a reduction";
    case Wait::ldmatrix: return "ldmatrix";
    case Wait::ldmatrix_trans: return "ldmatrix.trans";
    case Wait::mma_bf16: return "mma (bf16)";
    case Wait::mma_f16: return "mma (f16)";
    case Wait::wgmma: return "wgmma";
    case Wait::mbarrier: return "an mbarrier";
    }
    return "";
}

std::string describe(const Thread& thread)
{
    char text[160];
    SimtIndex b = thread.block->position, t = thread.position;
    std::snprintf(text, sizeof text, "block (%u, %u, %u), thread (%u, %u, %u)", b.x, b.y, b.z, t.x, t.y, t.z);
    return text;
}

void fault(const char* format, ...)
{
    Thread& self = *running;
    char text[1024];
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    Launch& launch = *self.launch;
    launch.error = std::string("kernel ") + launch.what->name + ", " + describe(self) + ": " + text;
    launch.error_code = self.code;
    switch_fiber(self, launch.host, true);
    __builtin_unreachable();
}

void make_runnable(Thread& thread)
{
    Warp& warp = *thread.warp;
    thread.waits = Wait::nothing;
    if (warp.runnable == 0) {
        std::vector<Warp*>& ready = thread.launch->ready;
        warp.ready_position = (i32)ready.size();
        ready.push_back(&warp);
    }
    warp.runnable |= 1u << thread.lane;
}

static void make_unrunnable(Thread& thread)
{
    Warp& warp = *thread.warp;
    warp.runnable &= ~(1u << thread.lane);
    if (warp.runnable != 0) return;
    std::vector<Warp*>& ready = thread.launch->ready;
    ready[(size_t)warp.ready_position] = ready.back();
    ready.back()->ready_position = warp.ready_position;
    ready.pop_back();
    warp.ready_position = -1;
}

// A runnable thread, usually of `near`; null when there is none.
static Thread* draw(Launch& launch, Warp* near)
{
    if (launch.ready.empty()) return nullptr;
    u32 random = launch.random.next();
    Warp* warp = near != nullptr && near->runnable != 0 && (random & 7) != 0 ? near : launch.ready[launch.random.below((u32)launch.ready.size())];
    u32 turn = random >> 27;
    u32 lanes = (warp->runnable >> turn) | (warp->runnable << ((32 - turn) & 31));
    return warp->threads[((u32)__builtin_ctz(lanes) + turn) & 31];
}

static void run(Fiber& from, Thread& thread, bool ends = false)
{
    running = &thread;
    switch_fiber(from, thread, ends);
}

void wait_for(Wait what, u32 mask)
{
    Thread& self = *running;
    if (has_overflowed(self)) fault("the thread's stack of %zu bytes has overflowed", stack_bytes);
    self.waits = what;
    self.mask = mask;
    make_unrunnable(self);
    Thread* next = draw(*self.launch, self.warp);
    if (next == nullptr) switch_fiber(self, self.launch->host);
    else run(self, *next);
}

void preempt()
{
    Thread& self = *running;
    Launch& launch = *self.launch;
    launch.until_preemption = 1 + launch.random.below(2 * launch.what->preempt_every);
    Thread* next = draw(launch, nullptr);
    if (next != &self) run(self, *next);
}

static void finish_thread(Thread& self)
{
    Block& block = *self.block;
    if (has_overflowed(self)) fault("the thread's stack of %zu bytes has overflowed", stack_bytes);
    for (const AsyncCopy& copy : self.copies)
        if (copy.group == self.committed_groups) fault("cp.async to shared address %u was never committed", copy.to);
    if (!block.at_barrier.empty())
        fault("divergent barrier: the thread exits while thread %u waits at __syncthreads", block.at_barrier.front()->index);
    Warp& warp = *self.warp;
    for (u32 lanes = warp.waiting; lanes != 0; lanes &= lanes - 1) {
        const Thread& other = *warp.threads[(u32)__builtin_ctz(lanes)];
        if (other.mask >> self.lane & 1)
            fault("mismatched collective: the thread exits while thread %u waits for it at %s (mask %08x)", other.index, name_of(other.waits), other.mask);
    }
    if ((warp.exited | 1u << self.lane) == warp.present) finish_products(warp);
    if (self.block->alive == 1) finish_bulk_copies(*self.block);
    self.exited = true;
    warp.exited |= 1u << self.lane;
    make_unrunnable(self);
    release(self.known);
    release(self.foreign);
    self.known = nullptr;
    self.foreign = nullptr;
    self.copies.clear();
    Launch& launch = *self.launch;
    if (--block.alive == 0) launch.finished = &block;
    Thread* next = launch.finished != nullptr ? nullptr : draw(launch, self.warp);
    if (next == nullptr) switch_fiber(self, launch.host, true);
    else run(self, *next, true);
}

static void thread_main()
{
    Thread& self = *running;
    fiber_started(self);
    self.launch->what->entry(self.launch->what->params);
    self.code = nullptr;
    finish_thread(self);
    __builtin_unreachable();
}

namespace {

// Stacks and shared memory of resident blocks, kept from launch to launch by each OS thread.
struct Place
{
    std::vector<std::unique_ptr<Thread>> threads;
    std::vector<void*> slabs;
    std::unique_ptr<u8[], decltype(&std::free)> shared{nullptr, std::free};
    std::unique_ptr<u8[]> state;
    std::unique_ptr<Cell[]> accesses;
    std::unique_ptr<Writer[]> writers;
    Block block;

    ~Place()
    {
        for (void* slab : slabs) free_slab(slab);
    }
};
thread_local std::vector<std::unique_ptr<Place>> places;

}

static void start_block(Launch& launch, Place& place, u32 number)
{
    const SimtLaunch& what = *launch.what;
    u32 threads = what.block[0] * what.block[1] * what.block[2];
    while (place.threads.size() < threads) {
        size_t i = place.threads.size();
        if (i % stacks_in_slab == 0) place.slabs.push_back(allocate_slab());
        place.threads.push_back(std::make_unique<Thread>());
        place_on(*place.threads.back(), place.slabs.back(), i % stacks_in_slab);
    }
    if (place.shared == nullptr) {
        place.shared.reset((u8*)std::aligned_alloc(1024, largest_shared));
        place.state.reset(new u8[largest_shared]);
        place.accesses.reset(new Cell[largest_shared / 8]());
        place.writers.reset(new Writer[largest_shared / 4]);
    }
    Block& block = place.block;
    block = Block{};
    block.launch = &launch;
    block.position = {number % what.grid[0], number / what.grid[0] % what.grid[1], number / what.grid[0] / what.grid[1]};
    block.serial = launch.first_serial + number;
    block.alive = threads;
    block.shared = place.shared.get();
    block.state = place.state.get();
    block.accesses = place.accesses.get();
    block.writers = place.writers.get();
    block.shared_bytes = what.shared_bytes;
    std::memset(block.shared, 0xff, what.shared_bytes);
    std::memset(block.state, shared_unwritten, what.shared_bytes);
    std::memset(block.writers, 0, (what.shared_bytes + 3) / 4 * sizeof(Writer));
    block.threads.resize(threads);
    block.warps.resize((threads + 31) / 32);
    for (u32 i = 0; i < threads; i++) {
        Thread& thread = *place.threads[i];
        Warp& warp = block.warps[i / 32];
        block.threads[i] = &thread;
        thread.launch = &launch;
        thread.block = &block;
        thread.warp = &warp;
        thread.lane = i % 32;
        thread.index = i;
        thread.position = {i % what.block[0], i / what.block[0] % what.block[1], i / what.block[0] / what.block[1]};
        thread.exited = false;
        thread.code = nullptr;
        thread.clock = 1;
        thread.known = nullptr;
        thread.foreign = nullptr;
        thread.copies.clear();
        thread.committed_groups = 0;
        thread.proxy_fences = 0;
        prepare(thread, thread_main);
        warp.block = &block;
        warp.threads.push_back(&thread);
        warp.present |= 1u << thread.lane;
        make_runnable(thread);
    }
}

static std::string deadlock(const Launch& launch, const std::vector<Place*>& resident)
{
    std::string text = std::string("kernel ") + launch.what->name + ": deadlock:";
    u32 named = 0, waiting = 0;
    Wait last = Wait::nothing;
    for (const Place* place : resident)
        for (const Thread* thread : place->block.threads) {
            if (thread->exited) continue;
            waiting++;
            if (thread->waits == last || named == 6) continue;
            last = thread->waits;
            text += (named++ == 0 ? " " : "; ") + describe(*thread) + " waits at " + name_of(thread->waits);
            char detail[64] = "";
            if (thread->waits == Wait::named_barrier)
                std::snprintf(detail, sizeof detail, " %u (%zu of %u arrived)", thread->mask, thread->block->named.at(thread->mask).arrived.size(), thread->block->named.at(thread->mask).expected);
            else if (thread->waits == Wait::mbarrier) std::snprintf(detail, sizeof detail, " at 0x%x", thread->mask);
            else if (thread->waits != Wait::block_barrier) std::snprintf(detail, sizeof detail, " (mask %08x)", thread->mask);
            text += detail;
            if (thread->code != nullptr) text += source_position(thread->code);
        }
    return text + "; " + std::to_string(waiting) + " threads wait in all";
}

static std::string refusal(const SimtLaunch& what)
{
    std::string kernel = std::string("kernel ") + (what.name != nullptr ? what.name : "(no name)") + ": ";
    u64 threads = (u64)what.block[0] * what.block[1] * what.block[2], blocks = (u64)what.grid[0] * what.grid[1] * what.grid[2];
    if (what.entry == nullptr || what.name == nullptr) return kernel + "no entry point";
    if (running != nullptr) return kernel + "a launch is already running on this thread";
    if (threads == 0 || threads > largest_block) return kernel + "a block has 1 to 1024 threads, not " + std::to_string(threads);
    if (blocks == 0 || what.grid[0] > 0x7fffffff || what.grid[1] > 65535 || what.grid[2] > 65535)
        return kernel + "grid (" + std::to_string(what.grid[0]) + ", " + std::to_string(what.grid[1]) + ", " + std::to_string(what.grid[2]) + ") is empty or larger than (2147483647, 65535, 65535)";
    if (blocks > 1u << 24) return kernel + "the emulator runs at most 16777216 blocks in a launch, not " + std::to_string(blocks);
    if (what.shared_bytes > largest_shared) return kernel + "a block has at most 232448 bytes of shared memory, not " + std::to_string(what.shared_bytes);
    return "";
}

static std::string run_launch(const SimtLaunch& what)
{
    std::string refused = refusal(what);
    if (!refused.empty()) return refused;

    u32 blocks = what.grid[0] * what.grid[1] * what.grid[2];
    Launch launch(what);
    launch.random.state = mix(what.schedule_seed + 1);
    launch.first_serial = next_serial.fetch_add(blocks);
    launch.last_serial = launch.first_serial + blocks - 1;
    if (what.preempt_every != 0) launch.until_preemption = 1 + launch.random.below(2 * what.preempt_every);
#if defined(__SANITIZE_ADDRESS__)
    pthread_attr_t attributes;
    pthread_getattr_np(pthread_self(), &attributes);
    pthread_attr_getstack(&attributes, &launch.host.stack, &launch.host.stack_size);
    pthread_attr_destroy(&attributes);
#endif

    u32 residents = what.resident_blocks != 0 ? what.resident_blocks : 1 + launch.random.below(most_resident);
    if (residents > blocks) residents = blocks;
    while (places.size() < residents) places.push_back(std::make_unique<Place>());
    std::vector<Place*> resident, idle;
    for (u32 i = 0; i < residents; i++) idle.push_back(places[i].get());

    // Blocks start in the order of a random permutation, drawn as they start.
    std::vector<u32> order(blocks);
    std::iota(order.begin(), order.end(), 0u);
    u32 started = 0;
    while (launch.error.empty()) {
        while (started < blocks && !idle.empty()) {
            std::swap(order[started], order[started + launch.random.below(blocks - started)]);
            start_block(launch, *idle.back(), order[started++]);
            resident.push_back(idle.back());
            idle.pop_back();
        }
        if (resident.empty()) break;
        Thread* next = draw(launch, nullptr);
        if (next == nullptr) {
            launch.error = deadlock(launch, resident);
            break;
        }
        run(launch.host, *next);
        running = nullptr;
        if (launch.finished != nullptr) {
            for (size_t i = 0; i < resident.size(); i++)
                if (&resident[i]->block == launch.finished) {
                    idle.push_back(resident[i]);
                    resident.erase(resident.begin() + (std::ptrdiff_t)i);
                    break;
                }
            launch.finished = nullptr;
        }
    }
    for (Place* place : resident)
        for (Thread* thread : place->block.threads) {
            release(thread->known);
            release(thread->foreign);
            thread->known = nullptr;
            thread->foreign = nullptr;
        }
    for (auto& at : launch.released) release(at.second);
    if (launch.error_code != nullptr) launch.error += source_position(launch.error_code);
    return launch.error;
}

}

extern "C" int simt_launch(const SimtLaunch* launch, char* error, unsigned capacity)
{
    std::string message = simt::run_launch(*launch);
    std::snprintf(error, capacity, "%s", message.c_str());
    return message.empty() ? 0 : 1;
}

extern "C" SimtIndex simt_thread_index() { return simt::running->position; }
extern "C" SimtIndex simt_block_index() { return simt::running->block->position; }
extern "C" SimtIndex simt_block_dim()
{
    const unsigned* d = simt::running->launch->what->block;
    return {d[0], d[1], d[2]};
}
extern "C" SimtIndex simt_grid_dim()
{
    const unsigned* d = simt::running->launch->what->grid;
    return {d[0], d[1], d[2]};
}
