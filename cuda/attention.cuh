// Attention of query rows over paged keys and values: the parts that decode and extend share.
//
// A tile of rows meets a split of keys in one block. Its warps form teams that share a ring of key and value slots filled by cp.async; a warp multiplies ROWS query rows with
// 16 keys at a time (attention_rows.cuh).
// Partial results (maximum, sum, weighted values) of teams meet in shared memory in team order; those of splits in a second kernel, in split order.
#pragma once
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
        static_assert(TILE_KEYS * UNITS % 32 == 0, "a warp's copies are whole");
        i64 offset = real ? paged_offset(p.cache, block, slot % p.block_size, item.head, ELEMENT_BYTES) : 0;
#pragma unroll 4
        for (i32 i = 0; i < TILE_KEYS * UNITS / 32; i++)
        {
            i32 copy = lane + 32 * i, row = copy / UNITS, unit = copy - row * UNITS;
            i64 from = __shfl_sync(0xffffffff, offset, row % 16) + unit * 16;
            u32 bytes = first_slot + first_key + row < end_slot ? 16 : 0;
            cp_async_16(ring + unit_at(first_key + row, unit), (const void*)(p.cache.keys + from), bytes);
            cp_async_16(ring + Shape::STAGE_KEYS * ROW_STRIDE + unit_at(first_key + row, unit), (const void*)(p.cache.values + from), bytes);
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
