// A launch in progress: blocks of warps of threads, each thread a fiber.
#pragma once
#include "../simt_api.hpp"
#include "arithmetic.hpp"
#include "fiber.hpp"
#include "races.hpp"
#include "random.hpp"
#include "types.hpp"
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace simt {

struct Block;
struct Warp;
struct Launch;

// What a thread waits for.
enum class Wait : u8 { nothing, block_barrier, named_barrier, sync_warp, shuffle, vote, reduce, ldmatrix, ldmatrix_trans, mma_bf16, mma_f16, wgmma, mbarrier };
const char* name_of(Wait wait);

struct AsyncCopy
{
    u32 to, group;
    u32x4 data;
};

struct Thread : Fiber
{
    Launch* launch = nullptr;
    Block* block = nullptr;
    Warp* warp = nullptr;
    u32 lane = 0, index = 0;             // in the warp, in the block
    SimtIndex position{};
    bool exited = false;

    Wait waits = Wait::nothing;
    u32 mask = 0;                        // lanes it wants to meet, or the barrier's number
    void* operand = nullptr;             // of the collective, on this thread's stack; the result is written there
    const void* code = nullptr;          // return address of its latest call into the runtime

    u16 clock = 1;
    Clocks* known = nullptr;             // null: nothing within this phase
    Knowledge* foreign = nullptr;

    std::vector<AsyncCopy> copies;       // in flight
    u32 committed_groups = 0;
    u16 proxy_fences = 0;                // fence_async_proxy so far
};

struct WarpProducts;                     // of wgmma, see wgmma.cpp
struct Mbarriers;                        // see mbarriers.cpp

// Who wrote a word of shared memory by stores, and how many fences it had passed: until the next, bulk copies and wgmma do not see it. Thread + 1; 0 where they do.
struct Writer { u16 thread, fences; };

struct Warp
{
    Block* block = nullptr;
    std::vector<Thread*> threads;
    u32 present = 0, runnable = 0, waiting = 0, exited = 0;   // lanes; waiting: at a warp collective
    Wait meeting = Wait::nothing;        // what the waiting lanes wait for when all wait for the same,
    u32 meeting_mask = 0;                // with the same mask
    i32 ready_position = -1;             // in Launch::ready
    std::shared_ptr<WarpProducts> products;
};

struct NamedBarrier { u32 expected = 0; std::vector<Thread*> arrived; };

struct Block
{
    Launch* launch = nullptr;
    SimtIndex position{};
    u32 serial = 0, phase = 0;
    u32 alive = 0;
    std::vector<Thread*> threads;
    std::vector<Warp> warps;
    std::vector<Thread*> at_barrier;
    std::map<u32, NamedBarrier> named;

    // Shared memory: bytes, the state of each, race records.
    u8* shared = nullptr;
    u8* state = nullptr;
    Cell* accesses = nullptr;
    Writer* writers = nullptr;
    u32 shared_bytes = 0;
    u16 bulk_clocks[bulk_threads] = {};  // of race detection
    std::shared_ptr<Mbarriers> mbarriers;
};

enum SharedState : u8 { shared_unwritten, shared_written, shared_in_flight };
constexpr u32 shared_window = 1024;      // address of the block's first shared byte

struct Launch
{
    const SimtLaunch* what;
    Arithmetic arithmetic;
    Fiber host;
    Random random;
    std::vector<Warp*> ready;            // warps with a runnable lane
    Block* finished = nullptr;
    u32 first_serial = 0, last_serial = 0;   // of this launch's blocks
    u32 until_preemption = 0;
    std::map<u64, Knowledge*> released;  // at addresses of acquire/release atomics
    std::string error;
    const void* error_code = nullptr;

    explicit Launch(const SimtLaunch& launch) : what(&launch), arithmetic(launch.arithmetic_seed) {}
};

// The thread running now on this OS thread, or null outside a launch.
extern __thread Thread* running __attribute__((tls_model("initial-exec")));

// Ends the launch with a message about the running thread.
[[noreturn]] void fault(const char* format, ...) __attribute__((format(printf, 1, 2)));
std::string describe(const Thread& thread);

void make_runnable(Thread& thread);
// The running thread stops being runnable and others run until somebody makes it runnable.
void wait_for(Wait what, u32 mask);
// Perhaps lets another thread run.
void preempt();
// Faults where the thread, the last of its block if the block has none alive, leaves asynchronous work unfinished.
void finish_products(const Warp& warp);
void finish_bulk_copies(const Block& block);
inline void access_happens(Launch& launch)
{
    if (launch.until_preemption != 0 && --launch.until_preemption == 0) preempt();
}

}

// First line of every function device code calls.
#define SIMT_ENTER(self) \
    simt::Thread& self = *simt::running; \
    self.code = __builtin_return_address(0)
