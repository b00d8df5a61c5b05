// X = (keys - center)·Phi for a few token rows a warp, straight from global memory into mma fragments.
//
// Phi is bf16, transposed: [count, k, D]. A contraction may take its terms in any order, so lane (row, quad) loads 4 or 8 neighbouring elements of its
// token's row, 8 or 16 bytes, and calls them elements 2·quad, 2·quad + 1, 2·quad + 8 and 2·quad + 9 of an mma step; Phi's fragments are laid out to match.
// Keys need no shared memory, no ldmatrix and no barrier. There are two products a step:
// * bf16 keys as they are, and the center, itself bf16, with its sign changed. Products are exact, and a common bias leaves the sum in the step it enters by: sums
//   lose 2^-24 of the bias at most twice. Nothing is computed from the keys but the products.
// * Others (fp16, float32, keys whose rotation is undone) less the center, which leaves up to 16 significant bits: high and low bf16 parts.
// The same registers serve as either operand: with Phi first the accumulators are X^T (both operands of the Gram product), with keys first they are X
// (the first operand of the solve).
// The including file defines WARPS, the warps of its blocks.
#pragma once
#include "tensor.cuh"
#include "element.cuh"
#include "split.cuh"
#include "chunks.cuh"
#include "status.cuh"

constexpr i32 D = COMPACTOR_HEAD_DIM, K = COMPACTOR_SKETCH_DIM;
constexpr i32 STEPS = D / 16, K_TILES = K / 16;
constexpr i32 THREADS = 32 * WARPS;

// Tiles of 8 tokens a warp sketches at once, so that a fragment of Phi is read once for all: 4·K_TILES·N_TILES accumulators a thread, and two blocks of 8 warps on an SM
// have 128 registers a thread.
constexpr i32 N_TILES = K <= 64 && WARPS <= 4 ? 4 : 2, WARP_TOKENS = 8 * N_TILES;

// Elements a lane loads at once.
constexpr i32 PIECE = !IS_F32 && D % 32 == 0 && COMPACTOR_ROTARY == 0 ? 8 : 4, PIECES = D / (4 * PIECE);

// Keys are multiplied as they are.
constexpr bool EXACT = COMPACTOR_ELEMENT == COMPACTOR_BF16 && COMPACTOR_ROTARY == 0;

constexpr i32 PHI_BYTES = D * K * 2, CENTER_BYTES = D * 4, COLUMN_PARTS_BYTES = WARPS * K * 4;   // of shared memory

// Keys [N, Hkv, D], or slots of a paged cache, whose (sequence, head) rows count as sequences of one head.
struct Keys
{
    Tensor dense;
    Paged cache;
    PagedTables tables;
    u64 phi;
    u64 rotations;              // f32 [rows, R]: R/2 cosines, then R/2 sines, each over cos² + sin²; a row a position where paged
    i32 rotary_dim, kv_heads;
    i32 rotations_of_batch;     // dense: 1 where rotations have a row a token of the batch, 0 where one a token of a sequence
    i32 phi_per_head;           // 1 where every sequence and head has its own Phi
    i32 center;
    i32 unused;
};

// A head of a sequence, by the block that works on it.
struct Place
{
    i32 sequence, head;         // of the tables or tensor: head is 0 where paged
    Named named;
    const u8* phi;
};

__device__ __forceinline__ i32 heads_of(const Keys& keys) { return COMPACTOR_PAGED ? 1 : keys.kv_heads; }

__device__ __forceinline__ Place place_of(const Keys& keys, u64 cu_seqlens, i32 sequence, i32 head)
{
    i32 row = sequence * heads_of(keys) + head;
    const u8* phi = (const u8*)keys.phi + (keys.phi_per_head ? (i64)row * (K * D * 2) : 0);
    return {sequence, head, name_of(cu_seqlens, sequence, head, keys.kv_heads, COMPACTOR_PAGED), phi};
}

struct KeyRow
{
    const u8* bytes;
    const float* rotation;
};

__device__ __forceinline__ KeyRow key_row(const Keys& keys, const Place& place, [[maybe_unused]] i32 start, i32 token)
{
#if COMPACTOR_PAGED
    i32 block = ((const i32*)keys.tables.tables)[(i64)place.sequence * keys.tables.row_stride + token / COMPACTOR_BLOCK_SIZE];
    i32 slot = token % COMPACTOR_BLOCK_SIZE;
    const u8* bytes = (const u8*)keys.cache.keys + (block * keys.cache.block_stride + slot * keys.cache.slot_stride) * ELEMENT_BYTES;
    i64 angle = COMPACTOR_ROTARY ? ((const i32*)keys.cache.positions)[(i64)block * COMPACTOR_BLOCK_SIZE + slot] : 0;
#else
    const u8* bytes = (const u8*)keys.dense.address + tensor_offset(keys.dense, place.sequence, start, token, place.head, ELEMENT_BYTES);
    i64 angle = keys.rotations_of_batch ? start + token : token;
#endif
    return {bytes, COMPACTOR_ROTARY ? (const float*)keys.rotations + angle * keys.rotary_dim : nullptr};
}

// Element d of a row, before its rotation.
__device__ inline float key_element(const KeyRow& row, i32 d, [[maybe_unused]] i32 rotary_dim)
{
    const Element* x = (const Element*)row.bytes;
    float own = to_f32(x[d]);
#if COMPACTOR_ROTARY
    if (d >= rotary_dim)
        return own;
    i32 pairs = rotary_dim / 2;
    bool first = COMPACTOR_ROTARY == 1 ? d < pairs : d % 2 == 0;
    i32 pair = COMPACTOR_ROTARY == 1 ? (first ? d : d - pairs) : d / 2;
    float other = to_f32(x[COMPACTOR_ROTARY == 1 ? (first ? d + pairs : d - pairs) : d ^ 1]);
    float sine = row.rotation[pairs + pair];
    return fmaf(row.rotation[pair], own, (first ? sine : -sine) * other);
#else
    return own;
#endif
}

// First of the four elements that a lane contributes to a step.
__device__ __forceinline__ constexpr i32 step_element(i32 step, i32 quad)
{
    return PIECE == 8 ? step / 2 * 32 + quad * 8 + step % 2 * 4 : step * 16 + quad * 4;
}

// Sketch columns 16·tile + lane / 4 and + 8, at the four elements of a step: a first operand of mma, or the two second operands of 8 columns each.
enum class Operand { First, Second };
template <Operand As> __device__ __forceinline__ u32x4 gather_phi(const u8* phi, i32 step, i32 tile, i32 lane)
{
    const u8* at = phi + ((tile * 16 + lane / 4) * D + step_element(step, lane % 4)) * 2;
    u32x2 x = *(const u32x2*)at, y = *(const u32x2*)(at + 8 * D * 2);
    return As == Operand::First ? u32x4{x.x, y.x, x.y, y.y} : u32x4{x.x, x.y, y.x, y.y};
}

// By `threads` threads.
template <Operand As> __device__ __forceinline__ void stage_phi(u32 phi_at, const u8* phi, i32 thread, i32 threads = THREADS)
{
    for (i32 i = thread; i < STEPS * K_TILES * 32; i += threads)
        store_shared_x4(phi_at + i * 16, gather_phi<As>(phi, i / 32 / K_TILES, i / 32 % K_TILES, i % 32));
}

// The center as sketches take it: with its sign changed.
__device__ __forceinline__ void stage_center(u32 center_at, i32 d, float center) { store_shared_f32(center_at + d * 4, -center); }

// A point near the mean, from rows spread evenly over a chunk, and a bf16 number: what is left of the mean is removed algebraically after squaring.
constexpr i32 CENTER_ROWS = 16;
__device__ __forceinline__ float center_of(const Keys& keys, const Place& place, const Chunk& chunk, i32 d)
{
    if (!keys.center)
        return 0;
    i32 rows = chunk.count < CENTER_ROWS ? chunk.count : CENTER_ROWS;
    float sum = 0;
    // Loads depend on nothing, so that several are on their way; rows that are not there are the last one again, and are not added.
#pragma unroll (COMPACTOR_ROTARY == 0 ? CENTER_ROWS : 4)
    for (i32 i = 0; i < CENTER_ROWS; i++)
    {
        i32 token = rows < CENTER_ROWS ? (i < rows ? i : rows - 1) : (i32)((i64)i * chunk.count / CENTER_ROWS);
        float x = key_element(key_row(keys, place, chunk.start, chunk.token + token), d, keys.rotary_dim);
        sum += i < rows ? x : 0;
    }
    return __uint_as_float(pack_bf16(sum / rows, 0) << 16);
}

// Asks for a warp's token rows ahead of their use.
__device__ __forceinline__ void prefetch_keys(const Keys& keys, const Place& place, i32 start, i32 token, i32 end, i32 lane)
{
    i32 own = token + lane;
    if (lane >= WARP_TOKENS || own >= end)
        return;
    const u8* row = key_row(keys, place, start, own).bytes;
    for (i32 at = 0; at < D * ELEMENT_BYTES; at += 128)
        prefetch_l2(row + at);
}

struct Piece { u32 words[4]; };   // two of them where a piece has 8 bytes

__device__ __forceinline__ Piece load_piece(const u8* row, i32 piece)
{
    const u8* at = row + piece * (PIECE * ELEMENT_BYTES);
    if (PIECE * ELEMENT_BYTES == 16)
    {
        u32x4 words = load_streaming(at);
        return {{words.x, words.y, words.z, words.w}};
    }
    u32x2 words = *(const u32x2*)at;
    return {{words.x, words.y, 0, 0}};
}

// Elements 4·part to 4·part + 3 of a piece as float32.
__device__ __forceinline__ f32x4 piece_values(const Piece& piece, [[maybe_unused]] i32 part)
{
#if COMPACTOR_ELEMENT == COMPACTOR_F32
    return {__uint_as_float(piece.words[0]), __uint_as_float(piece.words[1]), __uint_as_float(piece.words[2]), __uint_as_float(piece.words[3])};
#else
    f32x2 x = unpack(piece.words[part * 2]), y = unpack(piece.words[part * 2 + 1]);
    return {x.x, x.y, y.x, y.y};
#endif
}

// Elements d to d + 3 of a row, d a multiple of 4, before its rotation.
__device__ __forceinline__ f32x4 rotate_back(const KeyRow& row, i32 d, f32x4 x, i32 rotary_dim)
{
    i32 pairs = rotary_dim / 2;
    if (pairs % 4 != 0 || PIECE != 4)
        return {key_element(row, d, rotary_dim), key_element(row, d + 1, rotary_dim), key_element(row, d + 2, rotary_dim), key_element(row, d + 3, rotary_dim)};
    if (d >= rotary_dim)
        return x;
    if constexpr (COMPACTOR_ROTARY == 1)
    {
        bool first = d < pairs;
        i32 pair = first ? d : d - pairs;
        f32x4 other = piece_values(load_piece(row.bytes, (first ? d + pairs : d - pairs) / 4), 0);
        f32x4 cosine = *(const f32x4*)(row.rotation + pair), sine = *(const f32x4*)(row.rotation + pairs + pair);
        float sign = first ? 1 : -1;
        return {fmaf(cosine.x, x.x, sign * sine.x * other.x), fmaf(cosine.y, x.y, sign * sine.y * other.y),
                fmaf(cosine.z, x.z, sign * sine.z * other.z), fmaf(cosine.w, x.w, sign * sine.w * other.w)};
    }
    else
    {
        f32x2 cosine = *(const f32x2*)(row.rotation + d / 2), sine = *(const f32x2*)(row.rotation + pairs + d / 2);
        return {fmaf(cosine.x, x.x, sine.x * x.y), fmaf(cosine.x, x.y, -sine.x * x.x), fmaf(cosine.y, x.z, sine.y * x.w), fmaf(cosine.y, x.w, -sine.y * x.z)};
    }
}

// A lane's rows among a warp's tokens, 8·n + lane / 4, and the first piece of each on its way; in place of rows beyond the end the last one.
struct LaneKeys
{
    KeyRow rows[N_TILES];
    const u8* bytes[N_TILES];   // the lane's first piece
    Piece first[N_TILES];
};

__device__ __forceinline__ LaneKeys begin_keys(const Keys& keys, const Place& place, i32 start, i32 token, i32 end, i32 lane)
{
    LaneKeys lane_keys;
#pragma unroll
    for (i32 n = 0; n < N_TILES; n++)
    {
        i32 own = token + n * 8 + lane / 4;
        lane_keys.rows[n] = key_row(keys, place, start, own < end ? own : end - 1);
        lane_keys.bytes[n] = lane_keys.rows[n].bytes + lane % 4 * (PIECE * ELEMENT_BYTES);
        lane_keys.first[n] = load_piece(lane_keys.bytes[n], 0);
    }
    return lane_keys;
}

// Sketches N_TILES tiles of tokens. For every step,
// multiply(phi_at, first, second) takes where the step's fragments of Phi begin, and the tiles' fragments, the first to be added first. Phi and the center are staged in
// shared memory.
template <class Multiply>
__device__ __forceinline__ void for_each_step(const Keys& keys, const LaneKeys& lane_keys, u32 phi_at, u32 center_at, i32 lane, Multiply multiply)
{
    i32 quad = lane % 4;
    Piece pieces[2][N_TILES];
#pragma unroll
    for (i32 n = 0; n < N_TILES; n++)
        pieces[0][n] = lane_keys.first[n];
#pragma unroll
    for (i32 piece = 0; piece < PIECES; piece++)
    {
        if ((D <= 64 || WARPS == 4) && piece > 0)
            keep_place();   // ptxas would load the Phi of several pieces at once, and spill
        if (piece + 1 < PIECES)
#pragma unroll
            for (i32 n = 0; n < N_TILES; n++)
                pieces[(piece + 1) % 2][n] = load_piece(lane_keys.bytes[n], (piece + 1) * 4);
#pragma unroll
        for (i32 part = 0; part < PIECE / 4; part++)
        {
            i32 step = piece * (PIECE / 4) + part, d = step_element(step, quad);
            f32x4 center = load_shared_f32x4(center_at + d * 4);
            u32x2 first[N_TILES], second[N_TILES];
#pragma unroll
            for (i32 n = 0; n < N_TILES; n++)
            {
                const Piece& own = pieces[piece % 2][n];
                if constexpr (EXACT)
                {
                    first[n] = {pack_bf16(center.x, center.y), pack_bf16(center.z, center.w)};
                    second[n] = {own.words[part * 2], own.words[part * 2 + 1]};
                }
                else
                {
                    f32x4 x = piece_values(own, part);
                    if constexpr (COMPACTOR_ROTARY != 0)
                        x = rotate_back(lane_keys.rows[n], d, x, keys.rotary_dim);
                    SplitPair left = split_bf16(x.x + center.x, x.y + center.y), right = split_bf16(x.z + center.z, x.w + center.w);
                    first[n] = {left.low, right.low};
                    second[n] = {left.high, right.high};
                }
            }
            multiply(phi_at + (step * K_TILES * 32 + lane) * 16, first, second);
        }
    }
}

// X^T, with Phi as the first operand: sketch columns 16·i + lane / 4, + 8 of tokens 8·n + 2·quad, + 1, zeros beyond the end.
__device__ __forceinline__ void sketch_transposed(f32x4 (&x)[K_TILES][N_TILES], const Keys& keys, const LaneKeys& lane_keys, i32 token, i32 end,
    u32 phi_at, u32 center_at, i32 lane)
{
#pragma unroll
    for (i32 i = 0; i < K_TILES; i++)
#pragma unroll
        for (i32 n = 0; n < N_TILES; n++)
            x[i][n] = {0, 0, 0, 0};
    for_each_step(keys, lane_keys, phi_at, center_at, lane, [&](u32 phi_at, const u32x2(&first)[N_TILES], const u32x2(&second)[N_TILES]) {
#pragma unroll
        for (i32 i = 0; i < K_TILES; i++)
        {
            u32x4 phi = load_shared_x4(phi_at + i * 512);
#pragma unroll
            for (i32 n = 0; n < N_TILES; n++)
                mma_bf16(x[i][n], phi, first[n]);
#pragma unroll
            for (i32 n = 0; n < N_TILES; n++)
                mma_bf16(x[i][n], phi, second[n]);
        }
    });
    if (token + WARP_TOKENS > end)
    {
        keep_branch();
#pragma unroll
        for (i32 n = 0; n < N_TILES; n++)
#pragma unroll
            for (i32 i = 0; i < K_TILES; i++)
            {
                if (token + n * 8 + lane % 4 * 2 >= end)
                    x[i][n].x = x[i][n].z = 0;
                if (token + n * 8 + lane % 4 * 2 + 1 >= end)
                    x[i][n].y = x[i][n].w = 0;
            }
    }
}

// X, with Phi as the second operand: tokens 16·m + lane / 4, + 8 and sketch columns 8·c + 2·quad, + 1; beyond the end the last token.
__device__ __forceinline__ void sketch(f32x4 (&x)[N_TILES / 2][2 * K_TILES], const Keys& keys, const LaneKeys& lane_keys, u32 phi_at, u32 center_at, i32 lane)
{
#pragma unroll
    for (i32 m = 0; m < N_TILES / 2; m++)
#pragma unroll
        for (i32 c = 0; c < 2 * K_TILES; c++)
            x[m][c] = {0, 0, 0, 0};
    for_each_step(keys, lane_keys, phi_at, center_at, lane, [&](u32 phi_at, const u32x2(&first)[N_TILES], const u32x2(&second)[N_TILES]) {
#pragma unroll
        for (i32 i = 0; i < K_TILES; i++)
        {
            u32x4 phi = load_shared_x4(phi_at + i * 512);
#pragma unroll
            for (i32 order = 0; order < 2; order++)
#pragma unroll
                for (i32 m = 0; m < N_TILES / 2; m++)
                {
                    u32x2 even = order == 0 ? first[2 * m] : second[2 * m], odd = order == 0 ? first[2 * m + 1] : second[2 * m + 1];
                    u32x4 rows = {even.x, odd.x, even.y, odd.y};
                    mma_bf16(x[m][2 * i], rows, {phi.x, phi.y});
                    mma_bf16(x[m][2 * i + 1], rows, {phi.z, phi.w});
                }
        }
    });
}

// Sums over the lanes that differ in the bits First down to Last of their number: at each, lanes give away half of the values they hold, the upper half where they
// have the bit clear, until one is left, the whole sum of a value; where there are fewer values than lanes, the last bits' lanes have the same.
template <i32 First, i32 Last, i32 Values> __device__ __forceinline__ float sum_by_halves(float (&values)[Values], i32 lane)
{
#pragma unroll
    for (i32 mask = First, kept = Values / 2; mask >= Last; mask /= 2, kept /= 2)
        if (kept == 0)
            values[0] += __shfl_xor_sync(0xffffffff, values[0], mask);
        else
#pragma unroll
            for (i32 i = 0; i < kept; i++)
            {
                bool upper = (lane & mask) != 0;
                float away = upper ? values[i] : values[i + kept];
                values[i] = (upper ? values[i + kept] : values[i]) + __shfl_xor_sync(0xffffffff, away, mask);
            }
    return values[0];
}

// Names the keys that are not finite among a warp's tokens.
__device__ inline void report_keys(const Keys& keys, const Place& place, i32 start, i32 token, i32 end, u64 status, i32 lane)
{
    i32 own = token + lane;
    if (lane < WARP_TOKENS && own < end && row_has_non_finite(key_row(keys, place, start, own).bytes))
        report(status, STATUS_NON_FINITE_KEY, place.named.start + own, place.named.head);
}
