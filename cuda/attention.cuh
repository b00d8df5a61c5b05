// Attention of query rows over paged keys and values: the parts that decode and extend share.
//
// A tile of rows meets a split of keys in one block. Its warps form teams that share a ring of key and value slots filled by cp.async (attention_feed.cuh); a warp multiplies its
// query rows with 16 keys at a time (attention_rows.cuh).
// Partial results (maximum, sum, weighted values) of teams meet in shared memory in team order; those of splits in a second kernel, in split order.
#pragma once
#include "attention_feed.cuh"
#include "attention_rows.cuh"

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

template <i32 Team, i32 TileRows, i32 Tiles> struct Attention
{
    typedef AttentionShape<Team, TileRows> Shape;

    __device__ __forceinline__ static void team_barrier()
    {
        static_assert(Team == 1 || Team == WARPS, "a team is a warp or the block");
        if constexpr (Team > 1)
            __syncthreads();
        else
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

    __device__ __forceinline__ static void merge_teams(const AttentionParams& p, const Item& item, i32 first_row, i32 rows, i32 slot)
    {
        u32 exchange = shared_base() + slot * Shape::SLOT_BYTES;
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
                f32x4 part = load_shared_f32x4(exchange + team * Shape::STAGES * Shape::SLOT_BYTES + (row * DIM + column) * 4);
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

    // All items of a fixed grid of blocks, in turn. A warp's copies run ahead of it, over the ends of items; what a team hands over to the others lies in the slot it read last,
    // which is the one that no copy fills.
    __device__ __forceinline__ static void run(const AttentionParams& p)
    {
        i32 team = threadIdx.x / 32 / Team, member = threadIdx.x / 32 % Team, row_warp = member / COLUMN_WARPS;
        u32 ring = shared_base() + team * Shape::STAGES * Shape::SLOT_BYTES, positions = shared_base() + Shape::POSITIONS + team * Shape::STAGES * Shape::STAGE_KEYS * 4;
        Feed<Team, TileRows> feed(p);
#pragma unroll 1
        for (i32 n = -1; n < Shape::STAGES - 1; n++)   // the first step finds an item
            feed.step(p, ring + n * Shape::SLOT_BYTES, positions + n * Shape::STAGE_KEYS * 4);
        i32 slot = 0;
        for (i32 n = 0; n < feed.found; n++)
        {
            Item item = feed.item_of(n);
            Reach reach = reach_of<TileRows>(p, item);
            i32 first_row = item.tile * TileRows, rows = rows_of<TileRows>(item);
            load_queries(p, item, first_row);
            __syncthreads();   // queries are there, and what was handed over has been read
            WarpRows<(TileRows < ROWS ? TileRows : ROWS), Tiles> warp_rows;
            warp_rows.start(p, item, shared_base() + Shape::QUERY, row_warp * ROWS, TileRows, member % COLUMN_WARPS);
            i32 first_slot = reach.begin + team * Shape::STAGE_KEYS;
#pragma unroll 1
            for (i32 round = 0; round < reach.rounds; round++, first_slot += ROUND_KEYS)
            {
                cp_async_wait<Shape::STAGES - 2>();
                team_barrier();
                i32 free = slot == 0 ? Shape::STAGES - 1 : slot - 1;
                feed.step(p, ring + free * Shape::SLOT_BYTES, positions + free * Shape::STAGE_KEYS * 4);
                u32 keys = ring + slot * Shape::SLOT_BYTES;
#pragma unroll 1
                for (i32 first_key = 0; first_key < Shape::STAGE_KEYS && first_slot + first_key < reach.end; first_key += TILE_KEYS)
                {
                    u32 at = positions + (slot * Shape::STAGE_KEYS + first_key) * 4;
                    if (p.window > 0 && !__any_sync(0xffffffff, (i32)load_shared(at + threadIdx.x % 16 * 4) > reach.oldest))
                        continue;
                    warp_rows.take(p, keys, keys + Shape::STAGE_KEYS * ROW_STRIDE, first_key, first_slot + first_key, at);
                }
                slot = slot == Shape::STAGES - 1 ? 0 : slot + 1;
            }
            team_barrier();   // the slot has been read
            i32 last = slot == 0 ? Shape::STAGES - 1 : slot - 1;
            warp_rows.leave(ring + last * Shape::SLOT_BYTES, shared_base() + Shape::SUMS + team * TileRows * 8, row_warp * ROWS, rows);
            __syncthreads();
            merge_teams(p, item, first_row, rows, last);
        }
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
#pragma unroll 8
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
