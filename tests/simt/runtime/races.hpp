// Who touched a memory location, and whether that access is ordered before the present one.
//
// A block's time is divided into phases by __syncthreads: everything of an earlier phase is ordered. Inside a phase each thread has a clock, advanced where it
// synchronises, and a vector clock (what it knows of the other threads of its block) that __syncwarp, named barriers and mbarriers join. Shuffles, votes and mma order
// nothing. Across blocks only acquire/release atomics order: they carry Knowledge, the phase and vector clock of other blocks.
#pragma once
#include "types.hpp"

namespace simt {

struct Thread;

enum class Access : u8 { none, read, write, atomic };

// One access by one thread to some of the 8 bytes of a cell.
struct Record
{
    u32 block = 0;    // serial number over all launches; 0: empty
    u32 phase = 0;
    u16 clock = 0;
    u16 thread = 0;
    u8 bytes = 0;     // bit i: byte i of the cell
    Access access = Access::none;
    u16 unused = 0;
};
static_assert(sizeof(Record) == 16, "four to a cache line");

struct Cell { Record records[4]; };

// Checks an access of `bytes` bytes at `offset` of a memory whose records are `cells` and records it. Returns the record it races with, or null.
const Record* check_global_access(Thread& thread, Cell* cells, u64 offset, u32 bytes, Access access);
const Record* check_shared_access(Thread& thread, Cell* cells, u64 offset, u32 bytes, Access access);
// Whether any of the bytes was written in the present launch: what a non-coherent load must not read.
bool written_in_launch(const Thread& thread, const Cell* cells, u64 offset, u32 bytes);

// Times of a block's threads within a phase, shared by the threads that know the same.
struct Clocks
{
    u32 references;
    u32 threads;
    u16 at[];
};
void release(Clocks* clocks);

// What a thread knows of other blocks.
struct Knowledge;
void release(Knowledge* knowledge);

// All of `threads` (of one block) know afterwards what any of them knew.
void join(Thread** threads, u32 count);
// The same for a whole block, which enters its next phase.
void join_block(Thread** threads, u32 count);
// An acquire/release operation on `address`.
void synchronise_at(Thread& thread, u64 address);

// What threads of a block leave for others of it at an mbarrier.
struct Released
{
    Clocks* clocks = nullptr;
    u32 phase = 0;          // of the block; what is older is known to all
    Knowledge* foreign = nullptr;
};
void release(Released& released);
// What the thread knows and has done joins what is there.
void leave(Thread& thread, Released& there);
// The thread knows what is there.
void take(Thread& thread, const Released& there);

// Bulk copies are asynchronous to the thread that starts them. Those to one mbarrier count as one more thread of the block, whose accesses that mbarrier alone makes known.
constexpr u32 bulk_threads = 32;
// A bulk copy to mbarrier `number` writes 16 bytes: `started` is what its starter knew. Returns the record it races with, or null.
const Record* check_bulk_write(Thread& thread, i32 number, const Released& started, u32 offset);
// Bulk copies to an mbarrier have arrived: what they wrote is known to whoever takes `there`.
void arrive_bulk(Thread& thread, i32 number, Released& there);

}
