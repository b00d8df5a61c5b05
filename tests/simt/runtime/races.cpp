#include "races.hpp"
#include "execution.hpp"
#include <algorithm>
#include <cstdlib>

namespace simt {

// -- clocks and knowledge ---------------------------------------------------------------------------------------------------------------

struct Knowledge
{
    struct Entry { u32 block, phase; Clocks* clocks; };   // clocks null: nothing of that phase itself
    u32 references = 1;
    std::vector<Entry> entries;                           // by block
};

static Clocks* new_clocks(u32 threads)
{
    Clocks* clocks = (Clocks*)std::calloc(1, sizeof(Clocks) + threads * sizeof(u16));
    if (clocks == nullptr) std::abort();
    clocks->references = 1;
    clocks->threads = threads;
    return clocks;
}

void release(Clocks* clocks)
{
    if (clocks != nullptr && --clocks->references == 0) std::free(clocks);
}

void release(Knowledge* knowledge)
{
    if (knowledge == nullptr || --knowledge->references != 0) return;
    for (Knowledge::Entry& entry : knowledge->entries) release(entry.clocks);
    delete knowledge;
}

static void add(Clocks& to, const Clocks* from)
{
    if (from == nullptr) return;
    for (u32 i = 0; i < to.threads; i++) to.at[i] = std::max(to.at[i], from->at[i]);
}

static Clocks* shared(Clocks* clocks)
{
    if (clocks != nullptr) clocks->references++;
    return clocks;
}

static Clocks* merged(Clocks* a, Clocks* b)
{
    if (a == b || b == nullptr) return shared(a);
    if (a == nullptr) return shared(b);
    Clocks* both = new_clocks(a->threads);
    add(*both, a);
    add(*both, b);
    return both;
}

// The union, with a reference of its own.
static Knowledge* merged(Knowledge* a, Knowledge* b)
{
    if (a == b || b == nullptr || a == nullptr) {
        Knowledge* one = a != nullptr ? a : b;
        if (one != nullptr) one->references++;
        return one;
    }
    Knowledge* both = new Knowledge;
    both->entries.reserve(a->entries.size() + b->entries.size());
    size_t i = 0, j = 0;
    while (i < a->entries.size() || j < b->entries.size()) {
        const Knowledge::Entry* x = i < a->entries.size() ? &a->entries[i] : nullptr;
        const Knowledge::Entry* y = j < b->entries.size() ? &b->entries[j] : nullptr;
        if (y == nullptr || (x != nullptr && x->block < y->block)) { both->entries.push_back({x->block, x->phase, shared(x->clocks)}); i++; }
        else if (x == nullptr || y->block < x->block) { both->entries.push_back({y->block, y->phase, shared(y->clocks)}); j++; }
        else {
            if (x->phase == y->phase) both->entries.push_back({x->block, x->phase, merged(x->clocks, y->clocks)});
            else {
                const Knowledge::Entry* later = x->phase > y->phase ? x : y;
                both->entries.push_back({later->block, later->phase, shared(later->clocks)});
            }
            i++, j++;
        }
    }
    return both;
}

static u32 clocks_of(const Block& block) { return (u32)block.threads.size() + bulk_threads; }

static void advance(Thread& thread)
{
    if (thread.clock == 0xffff) fault("the emulator's race detection counts 65535 synchronisations of a thread between two __syncthreads");
    thread.clock++;
}

static void join_foreign(Thread** threads, u32 count)
{
    bool same = true;
    for (u32 i = 1; i < count && same; i++) same = threads[i]->foreign == threads[0]->foreign;
    if (same) return;
    Knowledge* all = nullptr;
    for (u32 i = 0; i < count; i++) {
        if (threads[i]->foreign == nullptr || threads[i]->foreign == all) continue;
        Knowledge* more = merged(all, threads[i]->foreign);
        release(all);
        all = more;
    }
    for (u32 i = 0; i < count; i++) {
        release(threads[i]->foreign);
        threads[i]->foreign = all;
    }
    all->references += count - 1;
}

void join(Thread** threads, u32 count)
{
    Clocks* first = threads[0]->known;
    bool same = first != nullptr && first->references == count;
    for (u32 i = 1; i < count && same; i++) same = threads[i]->known == first;
    if (!same) {
        Clocks* all = new_clocks(clocks_of(*threads[0]->block));
        const Clocks* last = nullptr;
        for (u32 i = 0; i < count; i++) {
            if (threads[i]->known != last) add(*all, threads[i]->known);
            last = threads[i]->known;
        }
        for (u32 i = 0; i < count; i++) {
            release(threads[i]->known);
            threads[i]->known = all;
        }
        all->references = count;
        first = all;
    }
    for (u32 i = 0; i < count; i++) {
        first->at[threads[i]->index] = threads[i]->clock;
        advance(*threads[i]);
    }
    join_foreign(threads, count);
}

void join_block(Thread** threads, u32 count)
{
    threads[0]->block->phase++;
    for (u16& clock : threads[0]->block->bulk_clocks) clock = 0;
    for (u32 i = 0; i < count; i++) {
        release(threads[i]->known);
        threads[i]->known = nullptr;
        threads[i]->clock = 1;
    }
    join_foreign(threads, count);
}

void synchronise_at(Thread& thread, u64 address)
{
    Clocks* now = new_clocks(clocks_of(*thread.block));
    add(*now, thread.known);
    now->at[thread.index] = thread.clock;
    Knowledge* own = new Knowledge;
    own->entries.push_back({thread.block->serial, thread.block->phase, now});
    Knowledge* mine = merged(thread.foreign, own);
    release(own);
    Knowledge*& there = thread.launch->released[address];
    Knowledge* all = merged(there, mine);
    release(mine);
    release(there);
    release(thread.foreign);
    there = all;
    thread.foreign = all;
    all->references++;
    advance(thread);
}

void release(Released& released)
{
    release(released.clocks);
    release(released.foreign);
    released = {};
}

// Clocks of the block's present phase that nobody else holds.
static Clocks& present(const Block& block, Released& there)
{
    if (there.clocks != nullptr && there.phase != block.phase) {
        release(there.clocks);
        there.clocks = nullptr;
    }
    there.phase = block.phase;
    if (there.clocks == nullptr) there.clocks = new_clocks(clocks_of(block));
    return *there.clocks;
}

void leave(Thread& thread, Released& there)
{
    Clocks& clocks = present(*thread.block, there);
    add(clocks, thread.known);
    clocks.at[thread.index] = thread.clock;
    Knowledge* all = merged(there.foreign, thread.foreign);
    release(there.foreign);
    there.foreign = all;
    advance(thread);
}

void take(Thread& thread, const Released& there)
{
    if (there.clocks != nullptr && there.phase == thread.block->phase) {
        Clocks* all = new_clocks(clocks_of(*thread.block));
        add(*all, thread.known);
        add(*all, there.clocks);
        release(thread.known);
        thread.known = all;
    }
    Knowledge* all = merged(thread.foreign, there.foreign);
    release(thread.foreign);
    thread.foreign = all;
}

void arrive_bulk(Thread& thread, i32 number, Released& there)
{
    Block& block = *thread.block;
    present(block, there).at[block.threads.size() + (u32)number] = block.bulk_clocks[number];
}

// -- records ----------------------------------------------------------------------------------------------------------------------------

static bool happened_before(const Record& then, const Thread& now)
{
    const Block& block = *now.block;
    if (then.block == block.serial) {
        if (then.phase < block.phase) return true;
        if (now.known != nullptr && now.known->at[then.thread] >= then.clock) return true;
    }
    if (now.foreign == nullptr) return false;
    const std::vector<Knowledge::Entry>& entries = now.foreign->entries;
    auto at = std::lower_bound(entries.begin(), entries.end(), then.block, [](const Knowledge::Entry& e, u32 b) { return e.block < b; });
    if (at == entries.end() || at->block != then.block) return false;
    return then.phase < at->phase || (then.phase == at->phase && at->clocks != nullptr && at->clocks->at[then.thread] >= then.clock);
}

static u8 bytes_in_cell(u64 cell, u64 offset, u32 bytes)
{
    u64 from = offset > cell * 8 ? offset - cell * 8 : 0, to = std::min<u64>(offset + bytes - cell * 8, 8);
    return (u8)((0xffu << from) & (0xffu >> (8 - to)));
}

// `shared`: only the block itself sees the memory, so what lies before its present phase is of the past.
template <bool shared> static const Record* check(Thread& thread, Cell* cells, u64 offset, u32 bytes, Access access)
{
    static thread_local u32 victim = 0;
    const Block& block = *thread.block;
    u32 first_serial = thread.launch->first_serial, blocks = thread.launch->last_serial - first_serial;
    Record now;
    now.block = block.serial;
    now.phase = block.phase;
    now.clock = thread.clock;
    now.thread = (u16)thread.index;
    now.access = access;
    for (u64 cell = offset / 8; cell <= (offset + bytes - 1) / 8; cell++) {
        now.bytes = bytes_in_cell(cell, offset, bytes);
        Record* place = nullptr;
        bool known = false;
        for (Record& then : cells[cell].records) {
            if (shared ? then.block != now.block || then.phase != now.phase : then.block - first_serial > blocks) {
                if (place == nullptr) place = &then;
                continue;
            }
            bool covered = (then.bytes & ~now.bytes) == 0;
            if (then.thread == now.thread && then.block == now.block) {
                bool stronger = then.access == access || then.access == Access::write;
                if (stronger && then.phase == now.phase && then.clock == now.clock && (now.bytes & ~then.bytes) == 0) {
                    known = true;
                    break;
                }
                if (covered && (then.access == access || access == Access::write)) place = &then;
                continue;
            }
            if ((then.bytes & now.bytes) == 0) continue;
            bool conflict = then.access == Access::write || access == Access::write || then.access != access;
            if (!conflict && !(covered && place == nullptr)) continue;
            bool before = happened_before(then, thread);
            if (conflict && !before) return &then;
            if (before && covered && (access == Access::write || then.access == access)) place = &then;
        }
        if (known) continue;
        if (place == nullptr) place = &cells[cell].records[victim++ & 3];
        *place = now;
    }
    return nullptr;
}

const Record* check_global_access(Thread& thread, Cell* cells, u64 offset, u32 bytes, Access access) { return check<false>(thread, cells, offset, bytes, access); }
const Record* check_shared_access(Thread& thread, Cell* cells, u64 offset, u32 bytes, Access access) { return check<true>(thread, cells, offset, bytes, access); }

const Record* check_bulk_write(Thread& thread, i32 number, const Released& started, u32 offset)
{
    Block& block = *thread.block;
    if (block.bulk_clocks[number] == 0xffff) fault("the emulator's race detection counts 65535 pieces of bulk copies between two __syncthreads");
    Thread bulk;
    bulk.launch = thread.launch;
    bulk.block = &block;
    bulk.index = (u32)block.threads.size() + (u32)number;
    bulk.clock = ++block.bulk_clocks[number];
    bulk.known = started.phase == block.phase ? started.clocks : nullptr;
    bulk.foreign = started.foreign;
    return check<true>(bulk, block.accesses, offset, 16, Access::write);
}

bool written_in_launch(const Thread& thread, const Cell* cells, u64 offset, u32 bytes)
{
    for (u64 cell = offset / 8; cell <= (offset + bytes - 1) / 8; cell++)
        for (const Record& then : cells[cell].records)
            if (then.block >= thread.launch->first_serial && then.access != Access::read && (then.bytes & bytes_in_cell(cell, offset, bytes)) != 0) return true;
    return false;
}

}
