// Attention of one new query a sequence over paged heads of any lengths: out = softmax(scale·q·k)·V, optionally with a soft cap, sink logits, and a window by stored position.
//
// query [B, Hq, D]; cache and tables as PagedView and PagedTables: head-blocks with a table a (sequence, head), or a host's NHD or HND blocks with a table a sequence;
// output f32 [B, Hq, D], log_sum_exp f32 [B, Hq]. A head that holds nothing gives 0 and -inf. G = Hq / Hkv query heads share every key that is read.
//
// Bytes: every key and value once, 4·D a slot for 16-bit elements. 32 sequences of L8 with 16384 slots a head: 2.15 GB, 0.5 ms at 4.3 TB/s. Flops: 4·G·D a slot.
// A block takes a split of 512 keys of one KV head; each of its warps runs on its own (team of one): 16 keys of 8 KB a step, three steps in a ring, so a warp never waits
// for a block barrier while it reads. In flight an SM: 2 blocks x 4 warps x 2 steps x 8 KB = 128 KB (bandwidth x latency asks for 33 KB), between items too: a warp's copies run on
// into the next ones.
// At 4.7 TB/s an SM gets 8 KB every 410 cycles: with 8 warps a step may take a warp 3280. It executes about 250 instructions, and 600 an item of 8 steps, 4 to 5 cycles each: 1500.
// What keeps them few: a tile inside one block is copied from one address (no table entry, division or shuffle a row); masks, soft cap and rescaling lie behind branches that whole
// tiles do not take; queries stay in registers; rows come as the 8 columns of the second mma, so that 4 rows fill them with both parts of their weights.
// Work of the tensor cores a step: 16 mma for the logits (half of their rows unused), 8 (G <= 4) or 16 for the values: 100 to 150 cycles.
// Lengths are read on the device: the grid is fixed, blocks take every gridDim-th split in row order, and splits depend on their own head's length alone.
// Accuracy: 1e-5 relative L2 of the float64 reference over the same inputs, on the emulator, whose mma truncates at every product.
//
// decode_attention   grid: SMs·blocks an SM (not more than B·Hkv·ceil(G / rows)·most_splits)   threads: 32·WARPS   shared: AttentionShape<COLUMN_WARPS, TileRows>::SHARED_BYTES
// decode_merge       grid: ceil(B·Hq / 4)   threads: 128   shared: 0
//   row = D·element bytes; WARPS = 4, 2, 1 for row <= 256, <= 512, else; rows = 8 for f32, else 16; TileRows = min(G, rows)
//   stride = row where row % 128 = 0, else ((row / 16) | 1)·16;  stage = WARPS·(32·stride + 64);  teams = WARPS, or 1 for 16-bit elements with D > 128
//   shared = STAGES·stage + TileRows·(stride + 8·teams), STAGES = 3 where that is <= 101376, else 2
//   (bf16, D 128, G 4: 100224 bytes, 157 to 166 registers; two blocks an SM on sm_90, one on sm_80, 86, 89)
// Workspace: B·Hq·most_splits·(D + 2)·4 bytes for partial_values, then partial_sums; most_splits = ceil(row_stride·block_size / 512).
#include "attention.cuh"

static_assert(GROUP <= SPLIT_ROWS, "keys are split");
typedef Attention<COLUMN_WARPS, (GROUP < ROWS ? GROUP : ROWS), SPLIT_KEYS / ROUND_KEYS * COLUMN_WARPS> Decode;

extern "C" __global__ void __launch_bounds__(THREADS, 2) decode_attention(const __grid_constant__ AttentionParams p) { Decode::run(p); }

extern "C" __global__ void __launch_bounds__(MERGE_THREADS) decode_merge(const __grid_constant__ AttentionParams p) { merge_splits(p); }
