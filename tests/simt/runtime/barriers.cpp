#include "execution.hpp"

namespace simt {

static void release_all(std::vector<Thread*>& threads, Thread& self)
{
    for (Thread* thread : threads)
        if (thread != &self) make_runnable(*thread);
    threads.clear();
}

}

using namespace simt;

extern "C" void simt_sync_threads()
{
    SIMT_ENTER(self);
    Block& block = *self.block;
    if (block.alive != block.threads.size()) {
        const Thread* gone = nullptr;
        for (const Thread* thread : block.threads)
            if (thread->exited) { gone = thread; break; }
        fault("divergent barrier: the thread reaches __syncthreads, but thread %u has exited", gone->index);
    }
    block.at_barrier.push_back(&self);
    if (block.at_barrier.size() < block.threads.size()) {
        wait_for(Wait::block_barrier, 0);
        return;
    }
    join_block(block.at_barrier.data(), (u32)block.at_barrier.size());
    release_all(block.at_barrier, self);
}

extern "C" void simt_named_barrier(unsigned id, unsigned threads)
{
    SIMT_ENTER(self);
    Block& block = *self.block;
    if (id == 0 || id > 15) fault("named barrier %u: a block has barriers 1 to 15 beside __syncthreads", id);
    if (threads == 0 || threads % 32 != 0 || threads > block.threads.size()) fault("named barrier %u: %u threads are not whole warps of a block of %zu", id, threads, block.threads.size());
    NamedBarrier& barrier = block.named[id];
    if (barrier.arrived.empty()) barrier.expected = threads;
    else if (barrier.expected != threads)
        fault("named barrier %u: the thread expects %u threads, thread %u expects %u", id, threads, barrier.arrived.front()->index, barrier.expected);
    barrier.arrived.push_back(&self);
    if (barrier.arrived.size() < threads) {
        wait_for(Wait::named_barrier, id);
        return;
    }
    join(barrier.arrived.data(), threads);
    release_all(barrier.arrived, self);
}
