// Fusion, s = z(pool(a·||v||)) + lambda·z(o), z = (x - mean)/std over a head, a sequence or a chunk; +inf for protected tokens; the first digit of the top-k.
// Elements that are not finite take no part in the statistics and end as the lowest finite score. z is 0 where std <= 2^-16·max|x|.
//
// leverage, attention, scores f32 [N, Hkv] (ragged: [pairs], head by head, leverage alone); mean and variance in double, in two shifted passes.
// A unit is up to 512 scored tokens of one head within one chunk, a warp's work: its lanes' sums meet in a fixed tree and leave a partial; whichever warp ends a scope
// last adds the scope's partials in their order. So a statistic depends on its own scope's elements alone. 8 heads of 131072 tokens: 2048 partials, 32 KB.
//
// Bytes: a and o are read three times, scores written twice: 20 bytes a pair, in L2 (4 MB each at L8). Flops: about 12 in double a pair. Floor ~10 us with select;
// three launches of 1.05 M pairs at L2 speed take about 4 us each.
//
// fuse_sums      grid: (ceil(most units of a term / 8), 2)   threads: 256   shared: 0            pools, writes pooled a to scores, means
// fuse_squares   grid: the same                              threads: 256   shared: 0            deviations
// fuse_scores    grid: block_starts[B]                       threads: 256   shared: 8256 bytes   z, blend, protection, status, first digit
// Of a term and sequence: n = its scored tokens (ragged: the most of a head); chunk C = chunk, or n where chunk is 0; units = Hkv·ceil(n / C)·ceil(C / 512);
// scopes = Hkv where per_head (chunk is 0 then), else ceil(n / C), 1 for chunk 0 and n > 0. A term is left out by raw = 0.
// Workspace of a term: 16 bytes a unit, 24 a scope, and 4 a scope of counters, which are zero before and after. status and non_finite are zero before.
#include "radix.cuh"
#include "status.cuh"

struct FuseTerm
{
    u64 raw;             // f32, the scores as computed
    u64 unit_starts;     // i32 [B+1]
    u64 scope_starts;    // i32 [B+1]
    u64 partials;        // Partial [units]
    u64 statistics;      // Statistics [scopes]
    u64 counters;        // u32 [scopes]
    i32 chunk, per_head;
};

struct FuseParams
{
    FuseTerm attention, leverage;
    Segments segments;   // what select competes over; histograms 0: no first digit is taken
    u64 value_norms;     // f32 [N, Hkv], or 0
    u64 weights;         // f64 [B]: lambda, or 1 for leverage alone
    u64 scores;
    u64 status;          // u64: code 4; place is the token's index in the batch, or the pair's where ragged
    u64 non_finite;      // u32: how many scores were not
    double deviation_floor;
    i32 protect_first, protect_last;
    i32 score_protected, unbiased;
    i64 pool_width;
};

struct Partial
{
    double sum;
    float largest;
    u32 count;
};
struct Statistics
{
    double mean, inverse;
    float largest;
    u32 count;
};

// The scored tokens of a head: all, or all but the protected ones.
struct Range { i32 begin, end; };
__device__ __forceinline__ Range scored_tokens(const FuseParams& p, i32 length)
{
    if (p.score_protected)
        return {0, length};
    return length <= (i64)p.protect_first + p.protect_last ? Range{0, 0} : Range{p.protect_first, length - p.protect_last};
}

struct FuseUnit
{
    i32 sequence, head, scope;
    i32 begin, end;                       // tokens
    Range scored;
    i32 index;                            // among all units of the term
    i32 first_index, stride, scope_units; // the scope's units are first_index + stride·[0, scope_units)
};
__device__ __forceinline__ bool find_unit(const FuseParams& p, const FuseTerm& term, FuseUnit& unit)
{
    const i32* unit_starts = (const i32*)term.unit_starts;
    const i32* scope_starts = (const i32*)term.scope_starts;
    unit.index = blockIdx.x * PAIR_WARPS + threadIdx.x / 32;
    if (unit.index >= unit_starts[p.segments.sequences])
        return false;
    i32 b = unit.sequence = row_of(unit_starts, p.segments.sequences, unit.index);
    i32 heads = p.segments.pairs.heads, all = unit_starts[b + 1] - unit_starts[b], local = unit.index - unit_starts[b];
    i32 pieces = term.chunk > 0 ? ceil_div(term.chunk, STRIP) : all / heads;
    i32 slice = local / heads, chunk = slice / pieces, piece = slice - chunk * pieces;
    unit.head = local - slice * heads;
    unit.scope = scope_starts[b] + (term.per_head ? unit.head : chunk);
    unit.first_index = unit_starts[b] + (term.per_head ? unit.head : chunk * pieces * heads);
    unit.stride = term.per_head ? heads : 1;
    unit.scope_units = term.per_head ? pieces : pieces * heads;
    unit.scored = scored_tokens(p, length_of(p.segments.pairs, b, unit.head));
    i32 end = term.chunk > 0 && (piece + 1) * STRIP > term.chunk ? term.chunk : (piece + 1) * STRIP;
    i64 origin = (i64)unit.scored.begin + (i64)chunk * term.chunk;
    unit.begin = (i32)(origin + piece * STRIP < unit.scored.end ? origin + piece * STRIP : unit.scored.end);
    unit.end = (i32)(origin + end < unit.scored.end ? origin + end : unit.scored.end);
    return true;
}

__device__ __forceinline__ bool is_finite(float x) { return fabsf(x) <= 3.40282347e38f; }

__device__ __forceinline__ double warp_sum(double x)
{
#pragma unroll
    for (i32 step = 16; step > 0; step /= 2)
        x += __shfl_xor_sync(0xffffffff, x, step);
    return x;
}
__device__ __forceinline__ Partial warp_sum(Partial x)
{
    x.sum = warp_sum(x.sum);
#pragma unroll
    for (i32 step = 16; step > 0; step /= 2)
        x.largest = fmaxf(x.largest, __shfl_xor_sync(0xffffffff, x.largest, step));
    x.count = __reduce_add_sync(0xffffffff, x.count);
    return x;
}

// Leaves a unit's partial, and says whether the scope's partials are then complete.
__device__ __forceinline__ bool leave_partial(const FuseTerm& term, const FuseUnit& unit, Partial partial)
{
    u32 last = 0;
    if (threadIdx.x % 32 == 0)
    {
        ((Partial*)term.partials)[unit.index] = partial;
        u32* counter = (u32*)term.counters + unit.scope;
        last = atomic_add_acq_rel(counter, 1) == (u32)unit.scope_units - 1;
        if (last)
            *counter = 0;
    }
    __syncwarp();   // what lane 0 has acquired, all lanes may read
    return __shfl_sync(0xffffffff, last, 0) != 0;
}

__device__ __forceinline__ Partial scope_sum(const FuseTerm& term, const FuseUnit& unit)
{
    const Partial* partials = (const Partial*)term.partials + unit.first_index;
    Partial sum = {0, 0, 0};
#pragma unroll 4
    for (i32 i = threadIdx.x % 32; i < unit.scope_units; i += 32)
    {
        Partial one = partials[(i64)i * unit.stride];
        sum.sum += one.sum;
        sum.largest = fmaxf(sum.largest, one.largest);
        sum.count += one.count;
    }
    return warp_sum(sum);
}

// Mean of a·||v|| over a window of tokens, zeros outside, divided by the full width.
__device__ __forceinline__ float pooled(const FuseParams& p, const FuseUnit& unit, i32 token)
{
    i32 half = (i32)p.pool_width / 2, first = token - half, last = token + half;
    first = first < unit.scored.begin ? unit.scored.begin : first;
    last = last < unit.scored.end ? last : unit.scored.end - 1;
    double sum = 0;
    for (i32 t = first; t <= last; t++)
    {
        i64 pair = pair_of(p.segments.pairs, unit.sequence, unit.head, t);
        float a = ((const float*)p.attention.raw)[pair];
        sum += p.value_norms ? a * ((const float*)p.value_norms)[pair] : a;
    }
    return (float)(sum / (double)p.pool_width);
}

extern "C" __global__ void __launch_bounds__(PAIR_THREADS, 4) fuse_sums(const __grid_constant__ FuseParams p)
{
    bool attention = blockIdx.y == 0;
    const FuseTerm& term = attention ? p.attention : p.leverage;
    FuseUnit unit;
    if (term.raw == 0 || !find_unit(p, term, unit))
        return;
    Partial partial = {0, 0, 0};
    for (i32 token = unit.begin + threadIdx.x % 32; token < unit.end; token += 32)
    {
        i64 pair = pair_of(p.segments.pairs, unit.sequence, unit.head, token);
        float x = attention ? pooled(p, unit, token) : ((const float*)term.raw)[pair];
        if (attention)
            ((float*)p.scores)[pair] = x;
        if (is_finite(x))
        {
            partial.sum += x;
            partial.largest = fmaxf(partial.largest, fabsf(x));
            partial.count++;
        }
    }
    if (!leave_partial(term, unit, warp_sum(partial)))
        return;
    Partial all = scope_sum(term, unit);
    if (threadIdx.x % 32 == 0)
        ((Statistics*)term.statistics)[unit.scope] = {all.count == 0 ? 0 : all.sum / all.count, 0, all.largest, all.count};
}

extern "C" __global__ void __launch_bounds__(PAIR_THREADS, 4) fuse_squares(const __grid_constant__ FuseParams p)
{
    bool attention = blockIdx.y == 0;
    const FuseTerm& term = attention ? p.attention : p.leverage;
    FuseUnit unit;
    if (term.raw == 0 || !find_unit(p, term, unit))
        return;
    Statistics* statistics = (Statistics*)term.statistics + unit.scope;
    const float* source = attention ? (const float*)p.scores : (const float*)term.raw;
    double mean = statistics->mean;
    Partial partial = {0, 0, 0};
    for (i32 token = unit.begin + threadIdx.x % 32; token < unit.end; token += 32)
    {
        float x = source[pair_of(p.segments.pairs, unit.sequence, unit.head, token)];
        if (is_finite(x))
            partial.sum += (x - mean) * (x - mean);
    }
    if (!leave_partial(term, unit, warp_sum(partial)))
        return;
    double squares = scope_sum(term, unit).sum;
    if (threadIdx.x % 32 == 0)
    {
        u32 count = statistics->count, divisor = p.unbiased && count > 0 ? count - 1 : count;
        double deviation = sqrt(squares / (divisor > 0 ? divisor : 1));
        double inverse = 1 / (deviation > p.deviation_floor ? deviation : p.deviation_floor);
        statistics->inverse = deviation > (double)statistics->largest / 65536 ? inverse : 0;
    }
}

__device__ __forceinline__ double z_of(const FuseTerm& term, i32 b, i32 head, i32 token_from_first, float x)
{
    i32 within = term.per_head ? head : term.chunk > 0 ? token_from_first / term.chunk : 0;
    const Statistics* statistics = (const Statistics*)term.statistics + ((const i32*)term.scope_starts)[b] + within;
    return (x - statistics->mean) * statistics->inverse;
}

extern "C" __global__ void __launch_bounds__(PAIR_THREADS, 4) fuse_scores(const __grid_constant__ FuseParams p)
{
    Segment g = segment_of_block(p.segments);
    bool digits = p.segments.histograms != 0;
    if (digits)
        clear_digits();
    i32 length = length_of(p.segments.pairs, g.sequence, g.head), lane = threadIdx.x % 32;
    Range scored = scored_tokens(p, length);
    double weight = ((const double*)p.weights)[g.sequence];
    for (i32 first = g.strip * STRIP; first < length && first < (g.strip + 1) * STRIP; first += 32)
    {
        i32 token = first + lane;
        bool bad = false;
        i64 pair = pair_of(p.segments.pairs, g.sequence, g.head, token);
        if (token < length)
        {
            float fused = 0;
            if (token >= scored.begin && token < scored.end)
            {
                if (p.attention.raw)
                    fused = (float)z_of(p.attention, g.sequence, g.head, token - scored.begin, ((const float*)p.scores)[pair]);
                if (p.leverage.raw)
                {
                    double z = weight * z_of(p.leverage, g.sequence, g.head, token - scored.begin, ((const float*)p.leverage.raw)[pair]);
                    fused = (float)(p.attention.raw ? fused + z : z);
                }
            }
            bad = !is_finite(fused);
            if (bad)
                fused = -3.40282347e38f;
            if (token < p.protect_first || token >= length - (i64)p.protect_last)
                fused = __uint_as_float(0x7f800000);
            ((float*)p.scores)[pair] = fused;
            if (digits)
                count_digit(key_of(fused), 0, 0);
        }
        u32 found = __ballot_sync(0xffffffff, bad);
        if (found != 0 && lane == __ffs(found) - 1)
        {
            atomic_add_global((u32*)p.non_finite, __popc(found));
            report(p.status, STATUS_NON_FINITE_SCORE, p.segments.pairs.ragged ? (i32)pair : ((const i32*)p.segments.pairs.offsets)[g.sequence] + token, g.head);
        }
    }
    if (digits)
    {
        const i32* kept_starts = (const i32*)p.segments.kept_starts;
        finish_round(p.segments, g, 0, 0, kept_starts[g.index + 1] - kept_starts[g.index]);
    }
}
