// First read of the keys of long chunks, up to whole sequences: sums of X and of X^T·X, X = (keys - center)·Phi, over parts of each chunk.
// sketch_center finds the centers, sketch_gram the sums, factor.cu adds them up and factorises, leverage_apply.cu reads the keys again and scores them.
// Keys [N, Hkv, D] or slots of a paged cache, Phi bf16 [count, k, D]; centers f32 [chunks·Hkv, D]; partials f32 [parts·Hkv, 256·blocks + k], the
// blocks of 16 x 16 on or below the diagonal, by rows, and the column sums. A sequence that arrives piece by piece keeps the center of its first piece and adds up its totals in factor.cu.
//
// Cost: 4·D·k + 5.3·k² flops a token and head, one read of the keys. L8 at N = 131,072, k = 48: 268 MB, 63 us; 39 GFLOP, 67 us at the rate of mma.sync.
//
// Shape. A block is one part of one head: at most 96 parts a chunk (94 of 1408 at L8: 752 blocks, 1.9 waves of three an SM), of at least 512 tokens. Its warps take 32 tokens each
// straight into fragments and leave X^T in a tile of 128 tokens in shared memory, from which they compute the Gram blocks; a warp goes on to its next keys
// while others multiply. X to 2^-17 relative, sums of a part in float32, sums of parts in double.
//
// Launch: sketch_center: grid (chunks·Hkv), block 128, no shared memory. sketch_gram: grid (parts·Hkv), block 128, with T = k <= 64 ? 128 : 64,
//     shared = 16·k + max(4·k·T + 4·D + 2·D·k, 1024·blocks + 4·k), at most 99 KB.
// Paged: Hkv is 1, sequences are rows. Dense keys: address and strides are multiples of 16 bytes.
// L8: 38,144 bytes, at most 168 registers, three blocks an SM.
constexpr int WARPS = 4;
#include "gram.cuh"

constexpr i32 TOKENS = WARPS * WARP_TOKENS, MIN_BLOCKS = K <= 64 && D <= 128 && COMPACTOR_ROTARY == 0 ? 3 : 2;
// The warps' columns; the tile, the center and Phi, whose place the sums of a part take at the end.
constexpr i32 PARTS_AT = 0, TILE_AT = PARTS_AT + COLUMN_PARTS_BYTES, CENTER_AT = TILE_AT + K * TOKENS * 4, PHI_AT = CENTER_AT + CENTER_BYTES;

struct SketchCenterParams
{
    Keys keys;
    u64 cu_seqlens, chunk_starts;
    u64 centers;
    i32 sequences, chunk_size, skip_first, skip_last;
};

struct SketchGramParams
{
    Keys keys;
    u64 cu_seqlens, chunk_starts, part_starts;   // see chunks.cuh
    u64 centers, partials, status;
    i32 sequences, chunk_size, skip_first, skip_last;
};

extern "C" __global__ void __launch_bounds__(THREADS) sketch_center(const __grid_constant__ SketchCenterParams p)
{
    i32 heads = heads_of(p.keys), head = blockIdx.x % heads;
    Chunk chunk = find_chunk(p.cu_seqlens, p.chunk_starts, p.sequences, blockIdx.x / heads, p.chunk_size, p.skip_first, p.skip_last);
    Place place = place_of(p.keys, p.cu_seqlens, chunk.sequence, head);
    for (i32 d = threadIdx.x; d < D; d += THREADS)
        ((float*)p.centers)[(i64)blockIdx.x * D + d] = center_of(p.keys, place, chunk, d);
}

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS) sketch_gram(const __grid_constant__ SketchGramParams p)
{
    i32 thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
    i32 heads = heads_of(p.keys), head = blockIdx.x % heads;
    Part part = find_part(p.cu_seqlens, p.chunk_starts, p.part_starts, p.sequences, blockIdx.x / heads, p.chunk_size, p.skip_first, p.skip_last);
    Place place = place_of(p.keys, p.cu_seqlens, part.chunk.sequence, head);
    i32 first = part.chunk.token + part.first, end = first + part.count;
    u32 at = shared_base();

    stage_phi<Operand::First>(at + PHI_AT, place.phi, thread);
    const float* center = (const float*)p.centers + ((i64)part.segment * heads + head) * D;
    for (i32 d = thread; d < D; d += THREADS)
        stage_center(at + CENTER_AT, d, center[d]);
    __syncthreads();

    GramBlocks gram = {};
    for (i32 tile = 0; tile < part.count; tile += TOKENS)
    {
        i32 token = tile + warp * WARP_TOKENS, left = part.count - tile;
        f32x4 x[K_TILES][N_TILES];
        if (token < part.count)
        {
            sketch_transposed(x, p.keys, begin_keys(p.keys, place, part.chunk.start, first + token, end, lane), first + token, end, at + PHI_AT, at + CENTER_AT, lane);
            if (__any_sync(0xffffffff, !add_columns(at + PARTS_AT + warp * K * 4, x, tile == 0, lane)))
                report_keys(p.keys, place, part.chunk.start, first + token, end, p.status, lane);
        }
        __syncthreads();   // the last tile is used up
        if (token < part.count)
            store_sketch<TOKENS>(at + TILE_AT, x, warp * N_TILES, lane);
        __syncthreads();
        prefetch_keys(p.keys, place, part.chunk.start, first + token + TOKENS, end, lane);
        add_gram<TOKENS>(gram, at + TILE_AT, ceil_div(left < TOKENS ? left : TOKENS, 16), warp, lane);
    }
    __syncthreads();
    meet_gram(at + TILE_AT, at + TILE_AT + GRAM * 4, at + PARTS_AT, gram, part.count < TOKENS ? ceil_div(part.count, WARP_TOKENS) : WARPS, thread);
    float* partial = (float*)p.partials + (i64)blockIdx.x * (GRAM + K);
    for (i32 i = thread; i < GRAM + K; i += THREADS)
        partial[i] = load_shared_f32(at + TILE_AT + i * 4);
}
