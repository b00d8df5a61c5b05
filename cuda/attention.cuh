// Attention of query rows over paged keys and values: the parts that decode and extend share. Needs COMPACTOR_ELEMENT, COMPACTOR_HEAD_DIM and COMPACTOR_GROUP.
//
// A query row is a (query token, query head of the group); rows of one KV head share its keys: row r of sequence b is token r / G, head r % G. A tile of rows meets a split
// of keys in one block. Its warps form teams that share a ring of key and value slots filled by cp.async; a warp multiplies ROWS query rows with 16 keys at a time:
//   bf16, fp16   mma with the rows as its 16 (unused rows cost nothing: memory bounds this); weights enter P·V as high + low parts, two mma, so that they keep
//                16 bits and more: relative error below 1e-5, where weights rounded once would give 1e-3
//   fp32         FMA, 8 rows; a lane takes a key and half of D for the logits, four columns and more of every value for the sum
// Partial results (maximum, sum, weighted values) of teams meet in shared memory in team order; those of splits in a second kernel, in split order.
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
constexpr i32 SPLIT_KEYS = 512, SPLIT_ROWS = 64;
__device__ __forceinline__ float minus_infinity() { return __uint_as_float(0xff800000); }

template <i32 Team, i32 TileRows> struct AttentionShape
{
    static_assert(Team % COLUMN_WARPS == 0 && COLUMNS % 16 == 0 && TileRows <= Team / COLUMN_WARPS * ROWS, "a team's warps hold its rows and columns");
    static constexpr i32 TEAMS = WARPS / Team, STAGE_KEYS = TILE_KEYS * Team;
    static constexpr i32 STAGE_BYTES = WARPS * (2 * TILE_KEYS * ROW_STRIDE + TILE_KEYS * 4), QUERY_BYTES = TileRows * ROW_STRIDE;
    static constexpr i32 STAGES = 3 * STAGE_BYTES + QUERY_BYTES <= 99 * 1024 ? 3 : 2;
    static constexpr i32 SLOT_BYTES = 2 * STAGE_KEYS * ROW_STRIDE;                        // keys, then values, of a stage of one team
    static constexpr i32 QUERY = STAGES * WARPS * 2 * TILE_KEYS * ROW_STRIDE, POSITIONS = QUERY + QUERY_BYTES;
    static constexpr i32 SHARED_BYTES = POSITIONS + STAGES * WARPS * TILE_KEYS * 4;
    static constexpr i32 SUMS = TEAMS * TileRows * DIM * 4;                               // the exchange lies over the ring: values, then (maximum, sum)
    static_assert(SUMS + TEAMS * TileRows * 8 <= QUERY, "the exchange fits into the ring");
};

__device__ __forceinline__ u32 unit_at(i32 row, i32 unit) { return row * ROW_STRIDE + (UNITS % 8 == 0 ? unit ^ (row & 7) : unit) * 16; }

// The same for unit 2·pair + odd, with what a constant pair makes constant kept apart: a warp walks pairs, and few addresses stay in registers.
__device__ __forceinline__ u32 unit_at(i32 row, i32 pair, i32 odd)
{
    return UNITS % 8 == 0 ? unit_at(row, pair % 4 * 2 + odd) + pair / 4 * 128 : unit_at(row, odd) + pair * 32;
}

__device__ __forceinline__ i32 query_start(const AttentionParams& p, i32 b) { return p.query_starts ? ((const i32*)p.query_starts)[b] : b; }
__device__ __forceinline__ i32 table_row(const AttentionParams& p, i32 row) { return p.tables.rows == p.sequences ? row / p.kv_heads : row; }
__device__ __forceinline__ i32 split_keys(i32 tokens) { return tokens * GROUP <= SPLIT_ROWS ? SPLIT_KEYS : 1 << 30; }
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

__device__ __forceinline__ float logit_of(const AttentionParams& p, float product)
{
    float logit = product * p.scale;
    if (p.soft_cap > 0)   // cap·tanh(x / cap) = cap - 2·cap / (1 + exp(2x / cap))
        logit = p.soft_cap - 2 * p.soft_cap * reciprocal_approx(1 + exp2_approx(logit * (2.885390082f / p.soft_cap)));
    return logit;
}

#if COMPACTOR_ELEMENT != COMPACTOR_F32

#if COMPACTOR_ELEMENT == COMPACTOR_F16
__device__ __forceinline__ void mma(f32x4& c, u32x4 a, u32x2 b) { mma_f16(c, a, b); }
__device__ __forceinline__ u32 pack(float low, float high) { return pack_f16(low, high); }
#else
__device__ __forceinline__ void mma(f32x4& c, u32x4 a, u32x2 b) { mma_bf16(c, a, b); }
__device__ __forceinline__ u32 pack(float low, float high) { return pack_bf16(low, high); }
#endif

// A warp's 16 query rows. A lane holds rows lane / 4 and + 8, of keys 2(lane % 4), + 1, + 8, + 9 and of the same columns of every 8 values.
struct WarpRows
{
    f32x4 values[COLUMNS / 8];
    i32 first_column;
    float maximum[2], sum[2];
    Sight sights[2];

    __device__ __forceinline__ void start(const AttentionParams& p, const Item& item, i32 first_row, i32 column_warp)
    {
        first_column = column_warp * COLUMNS;
#pragma unroll
        for (i32 n = 0; n < COLUMNS / 8; n++)
            values[n] = {0, 0, 0, 0};
        for (i32 i = 0; i < 2; i++)
        {
            maximum[i] = minus_infinity();
            sum[i] = 0;
            sights[i] = sight_of(p, item, first_row + threadIdx.x % 32 / 4 + 8 * i);
        }
    }

    // Takes in 16 keys and values, slots first_slot on. `query` is row 0 of the warp, of which `rows` are there.
    __device__ __forceinline__ void take(const AttentionParams& p, u32 query, i32 first_query, i32 rows, u32 keys, u32 value_rows, i32 first_key, i32 first_slot, i32 end_slot, u32 positions)
    {
        i32 lane = threadIdx.x % 32, row = first_query + lane % 16 < rows ? first_query + lane % 16 : rows - 1;
        i32 key = first_key + lane / 16 * 8 + lane % 8;
        f32x4 s[2] = {{0, 0, 0, 0}, {0, 0, 0, 0}};
#pragma unroll
        for (i32 k = 0; k < DIM / 16; k++)
        {
            u32x4 a = ldmatrix_x4(query + unit_at(row, k, lane / 16)), b = ldmatrix_x4(keys + unit_at(key, k, lane / 8 % 2));
            mma(s[0], a, {b.x, b.y});
            mma(s[1], a, {b.z, b.w});
        }
        float x[2][4] = {{s[0].x, s[0].y, s[1].x, s[1].y}, {s[0].z, s[0].w, s[1].z, s[1].w}};
        float shrink[2];
#pragma unroll
        for (i32 i = 0; i < 2; i++)
        {
            float largest = maximum[i];
#pragma unroll
            for (i32 j = 0; j < 4; j++)
            {
                i32 column = lane % 4 * 2 + j % 2 + j / 2 * 8, slot = first_slot + column;
                bool seen = slot < end_slot && slot < sights[i].limit && (p.window == 0 || (i32)load_shared(positions + column * 4) > sights[i].oldest);
                x[i][j] = seen ? logit_of(p, x[i][j]) : minus_infinity();
                largest = fmaxf(largest, x[i][j]);
            }
            largest = fmaxf(largest, __shfl_xor_sync(0xffffffff, largest, 1));
            largest = fmaxf(largest, __shfl_xor_sync(0xffffffff, largest, 2));
            float origin = largest == minus_infinity() ? 0 : largest;
            shrink[i] = exp2_approx(maximum[i] - origin);
            maximum[i] = largest;
            sum[i] *= shrink[i];
#pragma unroll
            for (i32 j = 0; j < 4; j++)
            {
                x[i][j] = exp2_approx(x[i][j] - origin);
                sum[i] += x[i][j];
            }
        }
        u32x4 high = {pack(x[0][0], x[0][1]), pack(x[1][0], x[1][1]), pack(x[0][2], x[0][3]), pack(x[1][2], x[1][3])};
        u32x4 low = {rest(high.x, x[0][0], x[0][1]), rest(high.y, x[1][0], x[1][1]), rest(high.z, x[0][2], x[0][3]), rest(high.w, x[1][2], x[1][3])};
#pragma unroll
        for (i32 n = 0; n < COLUMNS / 16; n++)
        {
            u32x4 v = ldmatrix_x4_trans(value_rows + first_column * ELEMENT_BYTES + unit_at(first_key + lane % 16, n, lane / 16));
            add(values[2 * n], shrink, low, high, {v.x, v.y});
            add(values[2 * n + 1], shrink, low, high, {v.z, v.w});
        }
    }

    // Leaves the warp's rows in the exchange, rows first_row on of `rows`.
    __device__ __forceinline__ void leave(u32 exchange, u32 sums, i32 first_row, i32 rows)
    {
        i32 lane = threadIdx.x % 32;
#pragma unroll
        for (i32 i = 0; i < 2; i++)
        {
            sum[i] += __shfl_xor_sync(0xffffffff, sum[i], 1);
            sum[i] += __shfl_xor_sync(0xffffffff, sum[i], 2);
            i32 row = first_row + lane / 4 + 8 * i;
            if (row >= rows)
                continue;
            if (lane % 4 == 0 && first_column == 0)
                store_shared_x2(sums + row * 8, {__float_as_uint(maximum[i]), __float_as_uint(sum[i])});
#pragma unroll
            for (i32 n = 0; n < COLUMNS / 8; n++)
                store_shared_x2(exchange + (row * DIM + first_column + n * 8 + lane % 4 * 2) * 4,
                    {__float_as_uint(i == 0 ? values[n].x : values[n].z), __float_as_uint(i == 0 ? values[n].y : values[n].w)});
        }
    }

private:
    // mma truncates: summed over many keys in its accumulator, values would lose 2^-24 a step. Each tile has its own; float32 adds them, rounded.
    __device__ __forceinline__ static void add(f32x4& values, const float (&shrink)[2], u32x4 low, u32x4 high, u32x2 v)
    {
        f32x4 tile = {0, 0, 0, 0};
        mma(tile, low, v);
        mma(tile, high, v);
        values = {fmaf(values.x, shrink[0], tile.x), fmaf(values.y, shrink[0], tile.y), fmaf(values.z, shrink[1], tile.z), fmaf(values.w, shrink[1], tile.w)};
    }
    __device__ __forceinline__ static u32 rest(u32 high, float low_half, float high_half)
    {
        f32x2 rounded = unpack(high);
        return pack(low_half - rounded.x, high_half - rounded.y);
    }
};

#else

// A warp's 8 query rows: lane l holds key l % 16 of the logits, columns 4l to 4l + 3 (and + 128) of the values.
struct WarpRows
{
    static constexpr i32 LANE_UNITS = (UNITS + 31) / 32;
    f32x4 values[ROWS][LANE_UNITS];
    float maximum[ROWS], sum[ROWS];
    Sight sights[ROWS];

    __device__ __forceinline__ void start(const AttentionParams& p, const Item& item, i32 first_row, i32)
    {
#pragma unroll
        for (i32 r = 0; r < ROWS; r++)
        {
#pragma unroll
            for (i32 c = 0; c < LANE_UNITS; c++)
                values[r][c] = {0, 0, 0, 0};
            maximum[r] = minus_infinity();
            sum[r] = 0;
            sights[r] = sight_of(p, item, first_row + r);
        }
    }

    __device__ __forceinline__ void take(const AttentionParams& p, u32 query, i32 first_query, i32 rows, u32 keys, u32 value_rows, i32 first_key, i32 first_slot, i32 end_slot, u32 positions)
    {
        i32 lane = threadIdx.x % 32, key = lane % 16, slot = first_slot + key;
        float x[ROWS];
#pragma unroll
        for (i32 r = 0; r < ROWS; r++)
            x[r] = 0;
        for (i32 unit = lane / 16 * (UNITS / 2); unit < (lane / 16 + 1) * (UNITS / 2); unit++)
        {
            f32x4 k = load_shared_f32x4(keys + unit_at(first_key + key, unit));
#pragma unroll
            for (i32 r = 0; r < ROWS; r++)
            {
                f32x4 q = load_shared_f32x4(query + unit_at(first_query + r < rows ? first_query + r : rows - 1, unit));
                x[r] = fmaf(q.x, k.x, fmaf(q.y, k.y, fmaf(q.z, k.z, fmaf(q.w, k.w, x[r]))));
            }
        }
        i32 position = p.window > 0 ? (i32)load_shared(positions + key * 4) : 2147483647;
        bool moved = false;
        float shrink[ROWS];
#pragma unroll
        for (i32 r = 0; r < ROWS; r++)
        {
            x[r] += __shfl_xor_sync(0xffffffff, x[r], 16);
            bool seen = slot < end_slot && slot < sights[r].limit && position > sights[r].oldest;
            x[r] = seen ? logit_of(p, x[r]) : minus_infinity();
            float largest = x[r];
#pragma unroll
            for (i32 step = 8; step > 0; step /= 2)
                largest = fmaxf(largest, __shfl_xor_sync(0xffffffff, largest, step));
            largest = fmaxf(largest, maximum[r]);
            moved |= largest > maximum[r];
            float origin = largest == minus_infinity() ? 0 : largest;
            shrink[r] = exp2_approx(maximum[r] - origin);
            maximum[r] = largest;
            x[r] = exp2_approx(x[r] - origin);
            sum[r] = fmaf(sum[r], shrink[r], x[r]);
        }
        if (__any_sync(0xffffffff, moved))
        {
#pragma unroll
            for (i32 r = 0; r < ROWS; r++)
#pragma unroll
                for (i32 c = 0; c < LANE_UNITS; c++)
                    values[r][c] = {values[r][c].x * shrink[r], values[r][c].y * shrink[r], values[r][c].z * shrink[r], values[r][c].w * shrink[r]};
        }
#pragma unroll 4
        for (i32 j = 0; j < TILE_KEYS; j++)
        {
            f32x4 v[LANE_UNITS];
#pragma unroll
            for (i32 c = 0; c < LANE_UNITS; c++)
                v[c] = lane + 32 * c < UNITS ? load_shared_f32x4(value_rows + unit_at(first_key + j, lane + 32 * c)) : f32x4{0, 0, 0, 0};
#pragma unroll
            for (i32 r = 0; r < ROWS; r++)
            {
                float weight = __shfl_sync(0xffffffff, x[r], j);
#pragma unroll
                for (i32 c = 0; c < LANE_UNITS; c++)
                    values[r][c] = {fmaf(weight, v[c].x, values[r][c].x), fmaf(weight, v[c].y, values[r][c].y), fmaf(weight, v[c].z, values[r][c].z), fmaf(weight, v[c].w, values[r][c].w)};
            }
        }
    }

    __device__ __forceinline__ void leave(u32 exchange, u32 sums, i32 first_row, i32 rows)
    {
        i32 lane = threadIdx.x % 32;
#pragma unroll
        for (i32 r = 0; r < ROWS; r++)
        {
#pragma unroll
            for (i32 step = 8; step > 0; step /= 2)
                sum[r] += __shfl_xor_sync(0xffffffff, sum[r], step);
            i32 row = first_row + r;
            if (row >= rows)
                continue;
            if (lane == 0)
                store_shared_x2(sums + row * 8, {__float_as_uint(maximum[r]), __float_as_uint(sum[r])});
#pragma unroll
            for (i32 c = 0; c < LANE_UNITS; c++)
                if (lane + 32 * c < UNITS)
                    store_shared_f32x4(exchange + (row * DIM + (lane + 32 * c) * 4) * 4, values[r][c]);
        }
    }
};

#endif

// The result of a query row: values / sum, and the log-sum-exp; 0 and -inf where it sees nothing.
__device__ __forceinline__ void write_row(const AttentionParams& p, i64 query_row, i32 query_head, i32 column, f32x4 values, float maximum, float sum)
{
    float sink = p.sinks ? ((const float*)p.sinks)[query_head] * 1.442695041f : minus_infinity(), top = fmaxf(maximum, sink);
    float origin = top == minus_infinity() ? 0 : top, shrink = exp2_approx(maximum - origin);
    sum = sum * shrink + exp2_approx(sink - origin);
    float inverse = sum > 0 ? shrink / sum : 0;
    f32x4 result = {values.x * inverse, values.y * inverse, values.z * inverse, values.w * inverse};
    *(f32x4*)((float*)p.output + query_row * DIM + column) = result;
    if (column == 0 && p.log_sum_exp)
        ((float*)p.log_sum_exp)[query_row] = sum > 0 ? (origin + log2_approx(sum)) * 0.6931471806f : minus_infinity();
}

template <i32 Team, i32 TileRows> struct Attention
{
    typedef AttentionShape<Team, TileRows> Shape;

    // Fills a slot of the team's ring: each warp its 16 slots of the stage. `block` is the block of this lane's slot (lanes 0 to 15).
    __device__ __forceinline__ static void fill(const AttentionParams& p, const Item& item, i32 first_slot, i32 end_slot, i32 oldest, i32 block, u32 ring, u32 positions)
    {
        i32 lane = threadIdx.x % 32, first_key = threadIdx.x / 32 % Team * TILE_KEYS, slot = first_slot + first_key + lane % 16;
        bool real = slot < end_slot;
        if (p.window > 0)
        {
            i32 position = real ? ((const i32*)p.cache.positions)[(i64)block * p.block_size + slot % p.block_size] : -2147483647 - 1;
            if (lane < 16)
                store_shared(positions + (first_key + lane) * 4, (u32)position);
            if (!__any_sync(0xffffffff, position > oldest))
                return;
        }
        i64 offset = real ? paged_offset(p.cache, block, slot % p.block_size, item.head, ELEMENT_BYTES) : 0;
#pragma unroll 4
        for (i32 i = 0; i < (TILE_KEYS * UNITS + 31) / 32; i++)
        {
            i32 copy = lane + 32 * i, row = copy / UNITS, unit = copy - row * UNITS;
            i64 from = __shfl_sync(0xffffffff, offset, row % 16) + unit * 16;
            u32 bytes = first_slot + first_key + row < end_slot ? 16 : 0;
            if (TILE_KEYS * UNITS % 32 == 0 || copy < TILE_KEYS * UNITS)
            {
                cp_async_16(ring + unit_at(first_key + row, unit), (const void*)(p.cache.keys + from), bytes);
                cp_async_16(ring + Shape::STAGE_KEYS * ROW_STRIDE + unit_at(first_key + row, unit), (const void*)(p.cache.values + from), bytes);
            }
        }
    }

    __device__ __forceinline__ static i32 block_of(const AttentionParams& p, const i32* table, i32 first_slot, i32 end_slot)
    {
        i32 slot = first_slot + threadIdx.x / 32 % Team * TILE_KEYS + threadIdx.x % 16;
        return slot < end_slot ? table[slot / p.block_size] : 0;
    }

    __device__ __forceinline__ static void team_barrier()
    {
        static_assert(Team == 1 || Team == WARPS, "a team is a warp or the block");
        if (Team > 1)
        {
            __syncthreads();
            return;
        }
        __syncwarp();
    }

    __device__ __forceinline__ static void load_queries(const AttentionParams& p, const Item& item, i32 first_row)
    {
        for (i32 i = threadIdx.x; i < TileRows * UNITS; i += THREADS)
        {
            i32 row = i / UNITS, unit = i - row * UNITS, token = (first_row + row) / GROUP;
            union { u32x4 words; Element elements[UNIT_ELEMENTS]; } q;
            q.words = {0, 0, 0, 0};
            if (token < item.tokens)
            {
                i32 head = item.head * GROUP + (first_row + row) % GROUP;
                const Element* from = (const Element*)(p.query.address + tensor_offset(p.query, 0, 0, query_start(p, item.sequence) + token, head, ELEMENT_BYTES)) + unit * UNIT_ELEMENTS;
                if (((u64)from & 15) == 0)
                    q.words = *(const u32x4*)from;
                else
                    for (i32 e = 0; e < UNIT_ELEMENTS; e++)
                        q.elements[e] = from[e];
            }
            store_shared_x4(shared_base() + Shape::QUERY + unit_at(row, unit), q.words);
        }
    }

    // One (row, tile, split).
    __device__ __forceinline__ static void attend(const AttentionParams& p, const Item& item)
    {
        i32 team = threadIdx.x / 32 / Team, member = threadIdx.x / 32 % Team, row_warp = member / COLUMN_WARPS, first_row = item.tile * TileRows;
        i32 rows = item.tokens * GROUP - first_row < TileRows ? item.tokens * GROUP - first_row : TileRows;
        const i32* table = (const i32*)p.tables.tables + (i64)table_row(p, item.row) * p.tables.row_stride;
        i32 begin = item.split * split_keys(item.tokens), seen = sight_of(p, item, first_row + rows - 1).limit;
        i32 end = item.length - begin < split_keys(item.tokens) ? item.length : begin + split_keys(item.tokens);
        end = end < seen ? end : seen;
        i32 oldest = sight_of(p, item, first_row).oldest;
        i32 stages = end > begin ? ceil_div(end - begin, Shape::STAGE_KEYS) : 0;
        stages = stages > team ? ceil_div(stages - team, Shape::TEAMS) : 0;

        u32 ring = shared_base() + team * Shape::STAGES * Shape::SLOT_BYTES, positions = shared_base() + Shape::POSITIONS + team * Shape::STAGES * Shape::STAGE_KEYS * 4;
        i32 next = begin + team * Shape::STAGE_KEYS, block = block_of(p, table, next, end);
        __syncthreads();   // the exchange of the item before has been read
#pragma unroll
        for (i32 n = 0; n < Shape::STAGES - 1; n++)
        {
            if (n < stages)
                fill(p, item, next, end, oldest, block, ring + n * Shape::SLOT_BYTES, positions + n * Shape::STAGE_KEYS * 4);
            cp_async_commit();
            next += Shape::TEAMS * Shape::STAGE_KEYS;
            block = block_of(p, table, next, end);
        }
        load_queries(p, item, first_row);
        WarpRows warp_rows;
        warp_rows.start(p, item, first_row + row_warp * ROWS, member % COLUMN_WARPS);
        __syncthreads();
        i32 slot = 0;
        for (i32 n = 0; n < stages; n++)
        {
            cp_async_wait<Shape::STAGES - 2>();
            team_barrier();
            i32 free = slot == 0 ? Shape::STAGES - 1 : slot - 1;
            if (n + Shape::STAGES - 1 < stages)
                fill(p, item, next, end, oldest, block, ring + free * Shape::SLOT_BYTES, positions + free * Shape::STAGE_KEYS * 4);
            cp_async_commit();
            next += Shape::TEAMS * Shape::STAGE_KEYS;
            block = block_of(p, table, next, end);
            i32 first_slot = begin + (team + n * Shape::TEAMS) * Shape::STAGE_KEYS;
            u32 keys = ring + slot * Shape::SLOT_BYTES;
            for (i32 first_key = 0; first_key < Shape::STAGE_KEYS && first_slot + first_key < end; first_key += TILE_KEYS)
            {
                u32 at = positions + (slot * Shape::STAGE_KEYS + first_key) * 4;
                if (p.window > 0 && !__any_sync(0xffffffff, (i32)load_shared(at + threadIdx.x % 16 * 4) > oldest))
                    continue;
                warp_rows.take(p, shared_base() + Shape::QUERY, row_warp * ROWS, TileRows, keys, keys + Shape::STAGE_KEYS * ROW_STRIDE, first_key, first_slot + first_key, end, at);
            }
            slot = slot == Shape::STAGES - 1 ? 0 : slot + 1;
        }
        __syncthreads();   // all that was filled has been waited for; the exchange may lie over it
        warp_rows.leave(shared_base() + team * TileRows * DIM * 4, shared_base() + Shape::SUMS + team * TileRows * 8, row_warp * ROWS, rows);
        __syncthreads();
        merge_teams(p, item, first_row, rows);
    }

    __device__ __forceinline__ static void merge_teams(const AttentionParams& p, const Item& item, i32 first_row, i32 rows)
    {
        for (i32 i = threadIdx.x; i < rows * (DIM / 4); i += THREADS)
        {
            i32 row = i / (DIM / 4), column = (i - row * (DIM / 4)) * 4;
            f32x4 values = {0, 0, 0, 0};
            float maximum = minus_infinity(), sum = 0;
#pragma unroll
            for (i32 team = 0; team < Shape::TEAMS; team++)
                maximum = fmaxf(maximum, load_shared_f32(shared_base() + Shape::SUMS + (team * TileRows + row) * 8));
            float origin = maximum == minus_infinity() ? 0 : maximum;
#pragma unroll
            for (i32 team = 0; team < Shape::TEAMS; team++)
            {
                u32 at = shared_base() + Shape::SUMS + (team * TileRows + row) * 8;
                float weight = exp2_approx(load_shared_f32(at) - origin);
                f32x4 part = load_shared_f32x4(shared_base() + ((team * TileRows + row) * DIM + column) * 4);
                sum = fmaf(weight, load_shared_f32(at + 4), sum);
                values = {fmaf(weight, part.x, values.x), fmaf(weight, part.y, values.y), fmaf(weight, part.z, values.z), fmaf(weight, part.w, values.w)};
            }
            i32 token = (first_row + row) / GROUP, head = item.head * GROUP + (first_row + row) % GROUP;
            if (item.splits == 1)
                write_row(p, ((i64)query_start(p, item.sequence) + token) * p.kv_heads * GROUP + head, head, column, values, maximum, sum);
            else
            {
                i64 partial = partial_row(p, item.sequence, token, head) * p.most_splits + item.split;
                *(f32x4*)((float*)p.partial_values + partial * DIM + column) = values;
                if (column == 0)
                    ((f32x2*)p.partial_sums)[partial] = {maximum, sum};
            }
        }
    }

    // All items of a fixed grid of blocks, in turn.
    __device__ __forceinline__ static void run(const AttentionParams& p)
    {
        Walk walk;
        Item item;
        for (i64 index = blockIdx.x; find_item<TileRows>(p, walk, index, item); index += gridDim.x)
            attend(p, item);
    }
};

// Merges the splits of a query row, a warp a row; rows of one split are there already, rows without keys get 0.
constexpr i32 MERGE_THREADS = 128;
__device__ __forceinline__ void merge_splits(const AttentionParams& p)
{
    i32 lane = threadIdx.x % 32, query_heads = p.kv_heads * GROUP;
    i64 query_row = (i64)blockIdx.x * (MERGE_THREADS / 32) + threadIdx.x / 32;
    i32 token = (i32)(query_row / query_heads), query_head = (i32)(query_row - (i64)token * query_heads);
    if (token >= p.query_tokens)
        return;
    i32 b = p.query_starts ? row_of((const i32*)p.query_starts, p.sequences, token) : token, start = query_start(p, b), tokens = query_start(p, b + 1) - start;
    i32 length = ((const i32*)p.tables.lengths)[table_row(p, b * p.kv_heads + query_head / GROUP)], splits = (length + split_keys(tokens) - 1) / split_keys(tokens);
    if (splits == 1)
        return;
    i64 first = partial_row(p, b, token - start, query_head) * p.most_splits;
    const f32x2* sums = (const f32x2*)p.partial_sums + first;
    float maximum = minus_infinity();
    for (i32 s = lane; s < splits; s += 32)
        maximum = fmaxf(maximum, sums[s].x);
#pragma unroll
    for (i32 step = 16; step > 0; step /= 2)
        maximum = fmaxf(maximum, __shfl_xor_sync(0xffffffff, maximum, step));
    float origin = maximum == minus_infinity() ? 0 : maximum;
    for (i32 column = lane * 4; column < DIM; column += 128)
    {
        f32x4 values = {0, 0, 0, 0};
        float sum = 0;
#pragma unroll 4
        for (i32 s = 0; s < splits; s++)
        {
            float weight = exp2_approx(sums[s].x - origin);
            f32x4 part = *(const f32x4*)((const float*)p.partial_values + (first + s) * DIM + column);
            sum = fmaf(weight, sums[s].y, sum);
            values = {fmaf(weight, part.x, values.x), fmaf(weight, part.y, values.y), fmaf(weight, part.z, values.z), fmaf(weight, part.w, values.w)};
        }
        write_row(p, query_row, query_head, column, values, maximum, sum);
    }
}
