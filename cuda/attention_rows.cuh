// A warp's query rows against 16 keys and values in shared memory: logits, their running maximum and sum, and the weighted values.
//
//   bf16, fp16   logits: mma with the query rows as its 16; weighted values: mma with 16 columns and 8 query rows. Weights enter P·V as high + low parts, so that they keep
//                16 bits and more: relative error below 1e-5, where weights rounded once would give 1e-3. Up to 4 rows take one mma for both parts, more take two.
//   fp32         FMA, 8 rows; a lane takes a key and half of D for the logits, four columns and more of every value for the sum
#pragma once
#include "attention_items.cuh"

#if COMPACTOR_ELEMENT != COMPACTOR_F32

#if COMPACTOR_ELEMENT == COMPACTOR_F16
__device__ __forceinline__ void mma(f32x4& c, u32x4 a, u32x2 b) { mma_f16(c, a, b); }
__device__ __forceinline__ u32 pack(float low, float high) { return pack_f16(low, high); }
#else
__device__ __forceinline__ void mma(f32x4& c, u32x4 a, u32x2 b) { mma_bf16(c, a, b); }
__device__ __forceinline__ u32 pack(float low, float high) { return pack_bf16(low, high); }
#endif

// A warp's query rows, 8 or 16. Logits: a lane holds row lane / 4 (and + 8), of keys 2(lane % 4), + 1, + 8, + 9, which is how the second operand of mma wants weights.
// Values are summed transposed, columns as the first operand's rows: a lane holds columns lane / 4 and + 8 of every 16, of rows 2(lane % 4) and + 1 (and + 8).
// Tiles: as many tiles of keys as a warp may take for the same rows.
template <i32 Rows, i32 Tiles> struct WarpRows
{
    static constexpr i32 HALVES = Rows > 8 ? 2 : 1, CHAINS = HALVES == 1 ? 2 : 1, LOADED = HALVES == 1 ? 8 : 1;
    static constexpr bool PAIRED = Rows <= 4;        // rows 4 to 7 are rows 0 to 3 again, with the low parts of their weights: one mma for both parts
    static constexpr bool HELD = HALVES == 1;        // queries stay in registers
    // mma truncates: summed over many keys in its accumulator, values would lose 2^-24 a step. Few steps may; else each tile has its own, and float32 adds them, rounded.
    static constexpr bool CHAINED = Tiles * (PAIRED ? 1 : 2) <= 8;
    static constexpr float MARGIN = 8;
    f32x4 values[HALVES][COLUMNS / 16];
    u32x4 queries[HELD ? DIM / 16 : 1];
    i32 first_column, plain_end;                     // all rows see all slots before plain_end
    float origin[HALVES], sum[HALVES];               // weights are exp2(logit - origin); an origin of -inf: nothing was seen
    Sight sights[HALVES];

    // Rows first_row on of the tile, of which `rows` are there.
    __device__ __forceinline__ void start(const AttentionParams& p, const Item& item, u32 query_rows, i32 first_row, i32 rows, i32 column_warp)
    {
        i32 lane = threadIdx.x % 32, first = item.tile * rows + first_row;
        first_column = column_warp * COLUMNS;
#pragma unroll
        for (i32 h = 0; h < HALVES; h++)
        {
#pragma unroll
            for (i32 n = 0; n < COLUMNS / 16; n++)
                values[h][n] = {0, 0, 0, 0};
            origin[h] = minus_infinity();
            sum[h] = 0;
            sights[h] = sight_of(p, item, first + (PAIRED ? lane / 4 % 4 : lane / 4 + 8 * h));
        }
        plain_end = p.window > 0 ? -2147483647 - 1 : sight_of(p, item, first).limit;
        i32 row = first_row + (PAIRED ? lane % 4 : lane % 16);
        query = query_rows + unit_at(row < rows ? row : rows - 1, lane / 16);
        if (HELD)
#pragma unroll
            for (i32 k = 0; k < DIM / 16; k++)
                queries[k] = ldmatrix_x4(pair_at(query, k));
    }

    // Takes in 16 keys and values, slots first_slot on.
    __device__ __forceinline__ void take(const AttentionParams& p, u32 keys, u32 value_rows, i32 first_key, i32 first_slot, u32 positions)
    {
        i32 lane = threadIdx.x % 32;
        u32 key = keys + first_key * ROW_STRIDE + unit_at(lane / 16 * 8 + lane % 8, lane / 8 % 2);
        f32x4 s[CHAINS][2];
#pragma unroll
        for (i32 c = 0; c < CHAINS; c++)
            s[c][0] = s[c][1] = {0, 0, 0, 0};
#pragma unroll
        for (i32 first = 0; first < DIM / 16; first += LOADED)
        {
            u32x4 b[LOADED];
#pragma unroll
            for (i32 i = 0; i < LOADED; i++)
                if (first + i < DIM / 16)
                    b[i] = ldmatrix_x4(pair_at(key, first + i));
#pragma unroll
            for (i32 i = 0; i < LOADED; i++)
            {
                i32 k = first + i;
                if (k >= DIM / 16)
                    continue;
                u32x4 a = HELD ? queries[HELD ? k : 0] : ldmatrix_x4(pair_at(query, k));
                mma(s[k % CHAINS][0], a, {b[i].x, b[i].y});
                mma(s[k % CHAINS][1], a, {b[i].z, b[i].w});
            }
        }
        float x[HALVES][4];
#pragma unroll
        for (i32 h = 0; h < HALVES; h++)
#pragma unroll
            for (i32 j = 0; j < 4; j++)
            {
                float logit = part(s[0][j / 2], 2 * h + j % 2);
                if (CHAINS == 2)
                    logit += part(s[CHAINS - 1][j / 2], 2 * h + j % 2);
                x[h][j] = logit * p.scale;
            }
        if (p.soft_cap > 0)
        {
            keep_branch();
#pragma unroll
            for (i32 h = 0; h < HALVES; h++)
#pragma unroll
                for (i32 j = 0; j < 4; j++)
                    x[h][j] = capped(p, x[h][j]);
        }
        if (first_slot + TILE_KEYS > plain_end)
        {
            keep_branch();
#pragma unroll
            for (i32 j = 0; j < 4; j++)
            {
                i32 column = lane % 4 * 2 + j % 2 + j / 2 * 8, position = p.window > 0 ? (i32)load_shared(positions + column * 4) : 2147483647;
#pragma unroll
                for (i32 h = 0; h < HALVES; h++)
                    x[h][j] = first_slot + column < sights[h].limit && position > sights[h].oldest ? x[h][j] : minus_infinity();
            }
        }
        weigh(x);
#pragma unroll
        for (i32 h = 0; h < HALVES; h++)
            sum[h] += (x[h][0] + x[h][1]) + (x[h][2] + x[h][3]);
        u32x2 high[HALVES], low[HALVES];
#pragma unroll
        for (i32 h = 0; h < HALVES; h++)
        {
            high[h] = {pack(x[h][0], x[h][1]), pack(x[h][2], x[h][3])};
            low[h] = {rest(high[h].x, x[h][0], x[h][1]), rest(high[h].y, x[h][2], x[h][3])};
            if (PAIRED)
                high[h] = {lane < 16 ? high[h].x : low[h].x, lane < 16 ? high[h].y : low[h].y};
        }
#pragma unroll
        for (i32 n = 0; n < COLUMNS / 16; n++)
        {
            u32x4 v = ldmatrix_x4_trans(pair_at(key, n) + (value_rows - keys) + first_column * ELEMENT_BYTES);
#pragma unroll
            for (i32 h = 0; h < HALVES; h++)
            {
                f32x4 fresh = {0, 0, 0, 0};
                f32x4& to = CHAINED ? values[h][n] : fresh;
                if (!PAIRED)
                    mma(to, v, low[h]);
                mma(to, v, high[h]);
                if (!CHAINED)
                    values[h][n] = {values[h][n].x + fresh.x, values[h][n].y + fresh.y, values[h][n].z + fresh.z, values[h][n].w + fresh.w};
            }
        }
    }

    // Leaves the warp's rows in the exchange, rows first_row on of `rows`.
    __device__ __forceinline__ void leave(u32 exchange, u32 sums, i32 first_row, i32 rows)
    {
        i32 lane = threadIdx.x % 32;
#pragma unroll
        for (i32 h = 0; h < HALVES; h++)
        {
            sum[h] += __shfl_xor_sync(0xffffffff, sum[h], 1);
            sum[h] += __shfl_xor_sync(0xffffffff, sum[h], 2);
            i32 row = first_row + lane / 4 + 8 * h;
            if (row < rows && lane % 4 == 0 && first_column == 0)
                store_shared_x2(sums + row * 8, {__float_as_uint(origin[h]), __float_as_uint(sum[h])});
#pragma unroll
            for (i32 n = 0; n < COLUMNS / 16; n++)
            {
                f32x4 v = values[h][n];
                if (PAIRED)   // high and low parts
                    v = {v.x + __shfl_xor_sync(0xffffffff, v.x, 2), v.y + __shfl_xor_sync(0xffffffff, v.y, 2), v.z + __shfl_xor_sync(0xffffffff, v.z, 2), v.w + __shfl_xor_sync(0xffffffff, v.w, 2)};
#pragma unroll
                for (i32 i = 0; i < 2; i++)
                {
                    i32 of = first_row + lane % 4 * 2 + i + 8 * h;
                    u32 to = exchange + (of * DIM + first_column + n * 16 + lane / 4) * 4;
                    if (of >= rows)
                        continue;
                    store_shared_f32(to, part(v, i));
                    store_shared_f32(to + 32, part(v, 2 + i));
                }
            }
        }
    }

private:
    u32 query;   // this lane's row

    __device__ __forceinline__ static float part(f32x4 x, i32 i) { return i == 0 ? x.x : i == 1 ? x.y : i == 2 ? x.z : x.w; }

    // Logits become weights. The origin of a row follows its maximum only when that has risen by more than MARGIN: weights of up to 2^MARGIN are as exact as those below 1,
    // and tiles seldom move it, so that rows need not meet the other lanes' and values are not rescaled. A row decides for itself, whatever the rows beside it do.
    __device__ __forceinline__ void weigh(float (&x)[HALVES][4])
    {
        float largest[HALVES];
        bool risen = false;
#pragma unroll
        for (i32 h = 0; h < HALVES; h++)
        {
            largest[h] = fmaxf(fmaxf(x[h][0], x[h][1]), fmaxf(x[h][2], x[h][3]));
            risen |= largest[h] > origin[h] + MARGIN;
        }
        if (__any_sync(0xffffffff, risen))
        {
            keep_branch();
#pragma unroll
            for (i32 h = 0; h < HALVES; h++)
            {
                largest[h] = fmaxf(largest[h], __shfl_xor_sync(0xffffffff, largest[h], 1));
                largest[h] = fmaxf(largest[h], __shfl_xor_sync(0xffffffff, largest[h], 2));
                bool rises = largest[h] > origin[h] + MARGIN;
                float shrink = rises ? exp2_approx(origin[h] - largest[h]) : 1;
                origin[h] = rises ? largest[h] : origin[h];
                sum[h] *= shrink;
                float even = __shfl_sync(0xffffffff, shrink, threadIdx.x % 4 * 8), odd = __shfl_sync(0xffffffff, shrink, threadIdx.x % 4 * 8 + 4);
#pragma unroll
                for (i32 n = 0; n < COLUMNS / 16; n++)
                    values[h][n] = {values[h][n].x * even, values[h][n].y * odd, values[h][n].z * even, values[h][n].w * odd};
            }
        }
#pragma unroll
        for (i32 h = 0; h < HALVES; h++)
        {
            float from = origin[h] == minus_infinity() ? 0 : origin[h];
#pragma unroll
            for (i32 j = 0; j < 4; j++)
                x[h][j] = exp2_approx(x[h][j] - from);
        }
    }

    __device__ __forceinline__ static u32 rest(u32 high, float low_half, float high_half)
    {
        f32x2 rounded = unpack(high);
        return pack(low_half - rounded.x, high_half - rounded.y);
    }
};

#else

// A warp's 8 query rows: lane l holds key l % 16 of the logits, columns 4l to 4l + 3 (and + 128) of the values.
template <i32 Rows, i32 Tiles> struct WarpRows
{
    static constexpr i32 LANE_UNITS = (UNITS + 31) / 32;
    f32x4 values[ROWS][LANE_UNITS];
    float maximum[ROWS], sum[ROWS];
    Sight sights[ROWS];
    u32 query;
    i32 first_query, rows;

    __device__ __forceinline__ void start(const AttentionParams& p, const Item& item, u32 query_rows, i32 first_row, i32 tile_rows, i32)
    {
        query = query_rows;
        first_query = first_row;
        rows = tile_rows;
#pragma unroll
        for (i32 r = 0; r < ROWS; r++)
        {
#pragma unroll
            for (i32 c = 0; c < LANE_UNITS; c++)
                values[r][c] = {0, 0, 0, 0};
            maximum[r] = minus_infinity();
            sum[r] = 0;
            sights[r] = sight_of(p, item, item.tile * rows + first_row + r);
        }
    }

    __device__ __forceinline__ void take(const AttentionParams& p, u32 keys, u32 value_rows, i32 first_key, i32 first_slot, u32 positions)
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
            float logit = x[r] * p.scale;
            if (p.soft_cap > 0)
                logit = capped(p, logit);
            x[r] = slot < sights[r].limit && position > sights[r].oldest ? logit : minus_infinity();
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

    __device__ __forceinline__ void leave(u32 exchange, u32 sums, i32 first_row, i32 rows_there)
    {
        i32 lane = threadIdx.x % 32;
#pragma unroll
        for (i32 r = 0; r < ROWS; r++)
        {
#pragma unroll
            for (i32 step = 8; step > 0; step /= 2)
                sum[r] += __shfl_xor_sync(0xffffffff, sum[r], step);
            i32 row = first_row + r;
            if (row >= rows_there)
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
