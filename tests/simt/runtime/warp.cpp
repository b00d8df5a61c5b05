// Warp collectives. Every lane deposits its operand and waits; the last to arrive computes all results.
#include "warp.hpp"
#include "access.hpp"

namespace simt {

bool meet(Thread& self, Wait what, u32 mask, void* operand)
{
    Warp& warp = *self.warp;
    u32 me = 1u << self.lane;
    if ((mask & me) == 0) fault("mismatched collective: mask %08x of %s does not name the calling lane %u", mask, name_of(what), self.lane);
    if ((mask & ~warp.present) != 0) fault("mismatched collective: mask %08x of %s names lanes the block does not have", mask, name_of(what));
    if ((mask & warp.exited) != 0) fault("mismatched collective: mask %08x of %s names lane %d, which has exited", mask, name_of(what), __builtin_ctz(mask & warp.exited));
    self.operand = operand;
    self.waits = what;
    self.mask = mask;
    u32 met = me;
    if (warp.waiting == 0) {
        warp.meeting = what;
        warp.meeting_mask = mask;
    }
    if (warp.meeting == what && warp.meeting_mask == mask) met |= warp.waiting;
    else {
        warp.meeting = Wait::nothing;
        for (u32 lanes = warp.waiting & mask; lanes != 0; lanes &= lanes - 1) {
            const Thread& other = *warp.threads[(u32)__builtin_ctz(lanes)];
            if (other.waits == what && other.mask == mask) met |= 1u << other.lane;
            else if ((other.mask & me) != 0)
                fault("mismatched collective: the thread is at %s (mask %08x), thread %u waits for it at %s (mask %08x)", name_of(what), mask, other.index, name_of(other.waits), other.mask);
        }
    }
    if (met != mask) {
        warp.waiting |= me;
        wait_for(what, mask);
        return false;
    }
    warp.waiting &= ~mask;
    warp.runnable |= mask;      // the warp has a runnable lane, the caller, so it is listed as ready
    return true;
}

namespace {

struct Shuffle
{
    u64 value, result;
    SimtShuffle how;
    u32 operand, width;
};

void perform(Thread& self, Warp& warp, u32 mask, SimtShuffle how)
{
    for (u32 lanes = mask; lanes != 0; lanes &= lanes - 1) {
        u32 lane = (u32)__builtin_ctz(lanes);
        Shuffle& mine = *(Shuffle*)warp.threads[lane]->operand;
        if (mine.how != how) fault("mismatched collective: threads %u and %u meet at different kinds of shuffle", self.index, warp.threads[lane]->index);
        u32 first = lane & ~(mine.width - 1), last = first + mine.width - 1, source = lane;
        switch (how) {
        case simt_shuffle_index: source = first + (mine.operand & (mine.width - 1)); break;
        case simt_shuffle_up: source = mine.operand > lane - first ? lane : lane - mine.operand; break;
        case simt_shuffle_down: source = mine.operand > last - lane ? lane : lane + mine.operand; break;
        case simt_shuffle_xor: source = (lane ^ mine.operand) > last ? lane : lane ^ mine.operand; break;
        }
        if ((mask >> (source & 31) & 1) == 0) fault("shuffle: lane %u reads lane %u, which is not in mask %08x", lane, source, mask);
        mine.result = ((const Shuffle*)warp.threads[source]->operand)->value;
    }
}

struct Word
{
    u32 how, value, result;
};

void check_same(Thread& self, Warp& warp, u32 mask, u32 how)
{
    for (u32 lanes = mask; lanes != 0; lanes &= lanes - 1) {
        const Thread& other = *warp.threads[(u32)__builtin_ctz(lanes)];
        if (((const Word*)other.operand)->how != how) fault("mismatched collective: threads %u and %u meet at different kinds of vote or reduction", self.index, other.index);
    }
}

void give_all(Warp& warp, u32 mask, u32 result)
{
    for (u32 lanes = mask; lanes != 0; lanes &= lanes - 1) ((Word*)warp.threads[(u32)__builtin_ctz(lanes)]->operand)->result = result;
}

struct Rows
{
    u32x4 row, result;
};

u32x4 load_matrices(u32 row, bool transposed)
{
    Thread& self = *running;
    Rows mine{};
    __builtin_memcpy(&mine.row, check_shared(self, row, 16, Access::read), 16);
    if (meet(self, transposed ? Wait::ldmatrix_trans : Wait::ldmatrix, 0xffffffffu, &mine)) {
        u16 elements[32][8];
        for (u32 lane = 0; lane < 32; lane++) __builtin_memcpy(elements[lane], &((const Rows*)self.warp->threads[lane]->operand)->row, 16);
        for (u32 lane = 0; lane < 32; lane++) {
            u32 result[4];
            for (u32 m = 0; m < 4; m++) {
                u32 i = lane / 4, j = lane % 4 * 2;
                u16 low = transposed ? elements[8 * m + j][i] : elements[8 * m + i][j];
                u16 high = transposed ? elements[8 * m + j + 1][i] : elements[8 * m + i][j + 1];
                result[m] = low | (u32)high << 16;
            }
            ((Rows*)self.warp->threads[lane]->operand)->result = {result[0], result[1], result[2], result[3]};
        }
    }
    return mine.result;
}

}
}

using namespace simt;

extern "C" {

void simt_sync_warp(unsigned mask)
{
    SIMT_ENTER(self);
    if (!meet(self, Wait::sync_warp, mask, nullptr)) return;
    Thread* threads[32];
    u32 count = 0;
    for (u32 lanes = mask; lanes != 0; lanes &= lanes - 1) threads[count++] = self.warp->threads[(u32)__builtin_ctz(lanes)];
    join(threads, count);
}

unsigned long long simt_shuffle(SimtShuffle how, unsigned mask, unsigned long long value, unsigned operand, unsigned width)
{
    SIMT_ENTER(self);
    if (width == 0 || width > 32 || (width & (width - 1)) != 0) fault("shuffle: width %u is not a power of two up to 32", width);
    Shuffle mine{value, 0, how, operand, width};
    if (meet(self, Wait::shuffle, mask, &mine)) perform(self, *self.warp, mask, how);
    return mine.result;
}

unsigned simt_vote(SimtVote how, unsigned mask, int predicate)
{
    SIMT_ENTER(self);
    Word mine{(u32)how, predicate != 0, 0};
    if (meet(self, Wait::vote, mask, &mine)) {
        check_same(self, *self.warp, mask, (u32)how);
        u32 ballot = 0;
        for (u32 lanes = mask; lanes != 0; lanes &= lanes - 1) {
            u32 lane = (u32)__builtin_ctz(lanes);
            ballot |= ((const Word*)self.warp->threads[lane]->operand)->value << lane;
        }
        give_all(*self.warp, mask, how == simt_vote_ballot ? ballot : how == simt_vote_any ? ballot != 0 : ballot == mask);
    }
    return mine.result;
}

unsigned simt_reduce(SimtReduce how, unsigned mask, unsigned value)
{
    SIMT_ENTER(self);
    Word mine{(u32)how, value, 0};
    if (meet(self, Wait::reduce, mask, &mine)) {
        check_same(self, *self.warp, mask, (u32)how);
        u32 result = value;
        for (u32 lanes = mask & ~(1u << self.lane); lanes != 0; lanes &= lanes - 1) {
            u32 other = ((const Word*)self.warp->threads[(u32)__builtin_ctz(lanes)]->operand)->value;
            switch (how) {
            case simt_reduce_add: result += other; break;
            case simt_reduce_min: result = other < result ? other : result; break;
            case simt_reduce_max: result = other > result ? other : result; break;
            case simt_reduce_and: result &= other; break;
            case simt_reduce_or: result |= other; break;
            case simt_reduce_xor: result ^= other; break;
            }
        }
        give_all(*self.warp, mask, result);
    }
    return mine.result;
}

u32x4 simt_ldmatrix_x4(u32 row) { SIMT_ENTER(self); (void)self; return load_matrices(row, false); }
u32x4 simt_ldmatrix_x4_trans(u32 row) { SIMT_ENTER(self); (void)self; return load_matrices(row, true); }

}
