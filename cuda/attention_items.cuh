// What attention of query rows over paged keys works on: its parameters, how shared memory is laid out, and the (row, tile, split) items that blocks find. Needs COMPACTOR_ELEMENT,
// COMPACTOR_HEAD_DIM and COMPACTOR_GROUP.
//
// A query row is a (query token, query head of the group); rows of one KV head share its keys: row r of sequence b is token r / G, head r % G.
// Logits are kept in base 2: scale and soft cap arrive multiplied by log2(e).
#pragma once
#include "element.cuh"
#include "tensor.cuh"

struct AttentionParams
{
    Tensor query;            // [Nq, Hq, D], packed: Nq query tokens of all sequences
    Paged cache;             // rows of keys and values begin at multiples of 16 bytes
    PagedTables tables;      // rows: B·Hkv, or B where heads share a table; lengths count the new tokens too
    u64 query_starts;        // i32 [B+1] first query token of each sequence, or 0: one a sequence
    u64 query_positions;     // i32 [Nq], read where window > 0
    u64 sinks;               // f32 [Hq] logits that take part in the sum only, or 0
    u64 output;              // f32 [Nq, Hq, D]
    u64 log_sum_exp;         // f32 [Nq, Hq], natural, sinks included, or 0
    u64 partial_starts;      // i32 [B] first partial row of each sequence, in tokens, or 0: query_starts
    u64 partial_sums;        // f32x2 [partial rows·Hq, most_splits] maximum and sum
    u64 partial_values;      // f32 [partial rows·Hq, most_splits, D]
    float scale, soft_cap;   // times log2(e); soft_cap 0: none
    i32 sequences, kv_heads, block_size, most_splits;
    i32 window;              // a slot is seen from positions below its own + window; 0: from all
    i32 query_tokens;        // Nq
};

constexpr i32 DIM = COMPACTOR_HEAD_DIM, GROUP = COMPACTOR_GROUP, ROW_BYTES = DIM * ELEMENT_BYTES, UNITS = ROW_BYTES / 16, UNIT_ELEMENTS = 16 / ELEMENT_BYTES;
// Rows in shared memory: units of 16 bytes, swizzled where 8 units divide a row, else with an odd stride; 8 rows of a unit then lie in different banks.
constexpr i32 ROW_STRIDE = UNITS % 8 == 0 ? ROW_BYTES : (UNITS | 1) * 16;
constexpr i32 WARPS = ROW_BYTES <= 256 ? 4 : ROW_BYTES <= 512 ? 2 : 1, THREADS = WARPS * 32;
constexpr i32 ROWS = IS_F32 ? 8 : 16, TILE_KEYS = 16;
// Columns of the values that a warp sums: beyond 128, accumulators of all would not fit its registers, and two warps share the rows, each with half of the columns.
constexpr i32 COLUMNS = !IS_F32 && DIM > 128 ? DIM / 2 : DIM, COLUMN_WARPS = DIM / COLUMNS;
// Keys of a split: a sequence with few query rows is split, so that one long sequence fills the device; one with many has rows enough.
constexpr i32 SPLIT_KEYS = 512, SPLIT_ROWS = 64, UNBOUNDED = 1 << 30;
__device__ __forceinline__ float minus_infinity() { return __uint_as_float(0xff800000); }

template <i32 Team, i32 TileRows> struct AttentionShape
{
    static_assert(Team % COLUMN_WARPS == 0 && COLUMNS % 16 == 0 && TileRows <= Team / COLUMN_WARPS * ROWS, "a team's warps hold its rows and columns");
    static constexpr i32 TEAMS = WARPS / Team, STAGE_KEYS = TILE_KEYS * Team;
    static constexpr i32 STAGE_BYTES = WARPS * (2 * TILE_KEYS * ROW_STRIDE + TILE_KEYS * 4), QUERY_BYTES = TileRows * ROW_STRIDE, SUMS_BYTES = TEAMS * TileRows * 8;
    static constexpr i32 STAGES = 3 * STAGE_BYTES + QUERY_BYTES + SUMS_BYTES <= 99 * 1024 ? 3 : 2;
    static constexpr i32 SLOT_BYTES = 2 * STAGE_KEYS * ROW_STRIDE;                        // keys, then values, of a stage of one team
    static constexpr i32 QUERY = STAGES * WARPS * 2 * TILE_KEYS * ROW_STRIDE, POSITIONS = QUERY + QUERY_BYTES;
    static constexpr i32 SUMS = POSITIONS + STAGES * WARPS * TILE_KEYS * 4, SHARED_BYTES = SUMS + SUMS_BYTES;   // (maximum, sum) of each team's rows
    static_assert(TileRows * DIM * 4 <= SLOT_BYTES, "what a team hands over fits into a slot of its ring");
};

__device__ __forceinline__ u32 unit_at(i32 row, i32 unit) { return row * ROW_STRIDE + (UNITS % 8 == 0 ? unit ^ (row & 7) : unit) * 16; }

// Where unit 2·pair + odd of a row lies, given where unit odd does (odd: 0 or 1). Swizzled rows begin at multiples of 128, so that the units' bits are the address's.
__device__ __forceinline__ u32 pair_at(u32 first, i32 pair) { return UNITS % 8 == 0 ? (first ^ pair % 4 * 32) + pair / 4 * 128 : first + pair * 32; }

__device__ __forceinline__ i32 query_start(const AttentionParams& p, i32 b) { return p.query_starts ? ((const i32*)p.query_starts)[b] : b; }
__device__ __forceinline__ i32 table_row(const AttentionParams& p, i32 row) { return p.tables.rows == p.sequences ? row / p.kv_heads : row; }
__device__ __forceinline__ i32 split_keys(i32 tokens) { return tokens * GROUP <= SPLIT_ROWS ? SPLIT_KEYS : UNBOUNDED; }
__device__ __forceinline__ i64 partial_row(const AttentionParams& p, i32 b, i32 token, i32 query_head)
{
    i32 start = p.partial_starts ? ((const i32*)p.partial_starts)[b] : query_start(p, b);
    return (i64)(start + token) * p.kv_heads * GROUP + query_head;
}

// What a block works on.
struct Item
{
    i32 sequence, head, row, tokens, length, tile, split, splits;
};

// Finds item `index` among all (row, tile, split), walking on from the rows of the last one. All lanes of a warp together.
struct Walk
{
    i32 first_row = 0;
    i64 before = 0;
};
template <i32 TileRows> __device__ __forceinline__ bool find_item(const AttentionParams& p, Walk& walk, i64 index, Item& item)
{
    i32 lane = threadIdx.x % 32, rows = p.sequences * p.kv_heads;
    for (; walk.first_row < rows;)
    {
        i32 row = walk.first_row + lane, tokens = 0, length = 0, splits = 0, items = 0;
        if (row < rows)
        {
            i32 b = row / p.kv_heads;
            tokens = query_start(p, b + 1) - query_start(p, b);
            length = ((const i32*)p.tables.lengths)[table_row(p, row)];
            splits = (length + split_keys(tokens) - 1) / split_keys(tokens);
            items = splits * ceil_div(tokens * GROUP, TileRows);
        }
        i32 up_to = items;
#pragma unroll
        for (i32 step = 1; step < 32; step *= 2)
        {
            i32 below = __shfl_up_sync(0xffffffff, up_to, step);
            up_to += lane >= step ? below : 0;
        }
        u32 found = __ballot_sync(0xffffffff, index < walk.before + up_to);
        if (found != 0)
        {
            i32 from = __ffs(found) - 1, local = (i32)(index - walk.before) - __shfl_sync(0xffffffff, up_to - items, from);
            item.row = walk.first_row + from;
            item.sequence = item.row / p.kv_heads;
            item.head = item.row - item.sequence * p.kv_heads;
            item.tokens = __shfl_sync(0xffffffff, tokens, from);
            item.length = __shfl_sync(0xffffffff, length, from);
            item.splits = __shfl_sync(0xffffffff, splits, from);
            item.tile = local / item.splits;
            item.split = local - item.tile * item.splits;
            return true;
        }
        walk.before += __shfl_sync(0xffffffff, up_to, 31);
        walk.first_row += 32;
    }
    return false;
}

// Slots that one query row sees: those before `limit` whose position is above `oldest`.
struct Sight { i32 limit, oldest; };
__device__ __forceinline__ Sight sight_of(const AttentionParams& p, const Item& item, i32 row)
{
    i32 token = row / GROUP;
    if (token >= item.tokens)
        token = item.tokens - 1;
    i32 oldest = p.window > 0 ? ((const i32*)p.query_positions)[query_start(p, item.sequence) + token] - p.window : -2147483647 - 1;
    return {item.length - item.tokens + token + 1, oldest};
}

// The slots of an item that its rows see, and the rounds a block takes for them: WARPS tiles of keys each, one where there are none.
constexpr i32 ROUND_KEYS = WARPS * TILE_KEYS;
static_assert(SPLIT_KEYS % ROUND_KEYS == 0 && UNBOUNDED % ROUND_KEYS == 0, "a split ends with a whole round, so that no row sees keys of the next");
struct Reach { i32 begin, end, oldest, rounds; };
template <i32 TileRows> __device__ __forceinline__ i32 rows_of(const Item& item)
{
    i32 rows = item.tokens * GROUP - item.tile * TileRows;
    return rows < TileRows ? rows : TileRows;
}
template <i32 TileRows> __device__ __forceinline__ Reach reach_of(const AttentionParams& p, const Item& item)
{
    i32 first_row = item.tile * TileRows, begin = item.split * split_keys(item.tokens), seen = sight_of(p, item, first_row + rows_of<TileRows>(item) - 1).limit;
    i32 end = item.length - begin < split_keys(item.tokens) ? item.length : begin + split_keys(item.tokens);
    end = end < seen ? end : seen;
    return {begin, end, sight_of(p, item, first_row).oldest, end > begin ? ceil_div(end - begin, ROUND_KEYS) : 1};
}

// cap·tanh(x / cap) = cap - 2·cap / (1 + exp(2x / cap))
__device__ __forceinline__ float capped(const AttentionParams& p, float logit)
{
    return p.soft_cap - 2 * p.soft_cap * reciprocal_approx(1 + exp2_approx(logit * (2.885390082f / p.soft_cap)));
}
