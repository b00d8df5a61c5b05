// A warp's query rows against 16 keys and values in shared memory: logits, their running maximum and sum, and the weighted values.
//
//   bf16, fp16   mma with the rows as its 16 (unused rows cost nothing: memory bounds this); weights enter P·V as high + low parts, two mma, so that they keep
//                16 bits and more: relative error below 1e-5, where weights rounded once would give 1e-3
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
