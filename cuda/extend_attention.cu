// Attention of several new query tokens a sequence over what its heads hold, themselves included: a turn on a compressed prefix, a chunk of a prefill, tokens proposed
// by a draft. The new tokens are the last T slots of every head (stored before); query token i sees the slots before them and up to its own: causal by slot, whatever was
// evicted. Scale, soft cap, sinks, window, tables and output as decode_attention; query [Nq, Hq, D], query_starts i32 [B+1], T of a sequence from 0 up.
//
// Query rows are (token, head of the group) pairs, T·G of a KV head. A block holds a tile of WARPS·16 rows (f32: WARPS·8; D 256 in 16 bits: 16); its warps share a ring of key and value slots
// of 16·WARPS keys, so each key is read T·G / (WARPS·16) times, from L2. Flops: 4·D a (row, visible slot), 3/2 of it in mma for the split weights.
// T·G <= 64: keys are split by 512 and merged, as in decode (draft tokens, short turns); above, a tile walks all its keys and writes its result.
// A tile of 64 rows of D 128 does 3·D·64·2 flops for the 512 bytes of a key: 96 flops a byte, L2 gives 24 bytes a clock and SM: balanced with mma.sync at about half its peak.
//
// extend_attention   grid: SMs·blocks an SM   threads: 32·WARPS   shared: AttentionShape<WARPS, TileRows>::SHARED_BYTES (decode_attention.cu has the formula, teams = 1), TileRows = WARPS·rows, halved for 16-bit elements with D > 128
// extend_merge       grid: ceil(Nq·Hq / 4)    threads: 128        shared: 0
//   (bf16, D 128: 82944 bytes, 220 to 228 registers; two blocks an SM on sm_80 and sm_90, one on sm_86, 89)
// Workspace: (sum of T over sequences with T·G <= 64)·Hq·most_splits·(D + 2)·4 bytes; partial_starts [B] counts those tokens before each sequence.
#include "attention.cuh"

typedef Attention<WARPS, WARPS / COLUMN_WARPS * ROWS, UNBOUNDED / TILE_KEYS> Extend;

extern "C" __global__ void __launch_bounds__(THREADS, 2) extend_attention(const __grid_constant__ AttentionParams p) { Extend::run(p); }

extern "C" __global__ void __launch_bounds__(MERGE_THREADS) extend_merge(const __grid_constant__ AttentionParams p) { merge_splits(p); }
