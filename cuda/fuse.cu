// Fusion, s = z(pool(a·||v||)) + lambda·z(o), z = (x - mean)/std over a head, a sequence or a chunk; +inf for protected tokens; the first digit of the top-k.
// Elements that are not finite take no part in the statistics and end as the lowest finite score. z is 0 where std <= 2^-16·max|x|, or is no normal float32.
//
// leverage, attention, scores f32 [N, Hkv] (ragged: [pairs], head by head, leverage alone). A block takes a tile (radix.cuh) of one chunk of scored tokens, keeps it in
// registers, and leaves its mean and the squares about that mean, in double, a scope; the block that ends a chunk adds its tiles in their order:
//     mean = sum n_i·m_i / n,   squares = sum q_i + n_i·(m_i - mean)²
// which shifts as two passes over the elements do, without the second. Means and squares depend on their own scope's elements alone.
//
// Bytes: a is read once (its neighbours from L1), o twice, scores written twice and read once: 24 bytes a pair, in L2 (4 MB each at L8). Flops: 6 in double a pair of either term. 8 heads of 131072
// tokens: 512 tiles a term, 4096 partials of 24 bytes. Two launches of about 6 us at 1.05 M pairs, of which the loads that all wait for one another's latency (tables, elements,
// counter, partials) are two thirds.
//
// fuse_statistics  grid: (most tiles of a term, 2)                                  threads: 256   shared: 17408 bytes   pools, writes pooled a to scores; means, deviations
// fuse_scores      grid: (tile_starts[B] of the segments, segments of a sequence)   threads: 256   shared: 8256 bytes   z, blend, protection, status, first digit
// Of a term and sequence: n = its scored tokens (ragged: the most of a head); chunk C = chunk, or n where chunk is 0; tiles = ceil(n / C)·ceil(C / tokens of a tile);
// scopes = ceil(n / chunk), or where chunk is 0: Hkv where per_head, else 1. A term is left out by raw = 0 and tiles = 0.
// Workspace of a term: 24 bytes a tile and scope of its chunk (Hkv where per_head, else 1), 16 a scope, and 4 a scope of counters, which are zero before and after.
// status and non_finite are zero before.
#include "radix.cuh"
#include "status.cuh"

struct FuseTerm
{
    u64 raw;             // f32, the scores as computed
    u64 tile_starts;     // i32 [B+1]
    u64 scope_starts;    // i32 [B+1], used where chunk > 0
    u64 partials;        // Partials, 24 bytes a tile and scope of its chunk
    u64 statistics;      // Statistics [scopes]
    u64 counters;        // u32 [scopes], one a chunk in use
    i32 chunk, pieces;   // tokens, and the tiles of so many; 0 where a chunk is a sequence
    i32 per_head, tiles; // tiles of all sequences
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

// What a tile leaves a scope, in three arrays of [chunk][scope][tile], so that who adds up tiles reads neighbouring words.
struct Extent
{
    float largest;
    u32 count;
};
struct Partials
{
    double *means, *squares;
    Extent* extents;
};
__device__ __forceinline__ Partials partials_of(const FuseTerm& term, i32 scopes, i64 first)
{
    double* means = (double*)term.partials;
    i64 all = (i64)term.tiles * scopes;
    return {means + first, means + all + first, (Extent*)(means + 2 * all) + first};
}
// z = ((x - mean) - rest)·inverse in float32: mean and rest are the mean in two parts, so that x near it loses no digits.
struct alignas(16) Statistics { float mean, rest, inverse, none; };

// The scored tokens of a head: all, or all but the protected ones.
struct Range { i32 begin, end; };
__device__ __forceinline__ Range scored_tokens(const FuseParams& p, i32 length)
{
    if (p.score_protected)
        return {0, length};
    return length <= (i64)p.protect_first + p.protect_last ? Range{0, 0} : Range{p.protect_first, length - p.protect_last};
}

__device__ __forceinline__ bool is_finite(float x) { return fabsf(x) <= 3.40282347e38f; }

__device__ __forceinline__ i32 first_scope(const FuseTerm& term, i32 heads, i32 b)
{
    return term.chunk > 0 ? ((const i32*)term.scope_starts)[b] : term.per_head ? b * heads : b;
}

// The chunk that a block's tile is a piece of, with the scopes it holds.
struct FuseTile
{
    i32 sequence, chunk, piece, pieces;
    i32 first_scope, scopes;
    Span span;
};
__device__ __forceinline__ FuseTile tile_of_block(const FuseParams& p, const FuseTerm& term)
{
    const i32* tile_starts = (const i32*)term.tile_starts;
    i32 heads = p.segments.pairs.heads;
    FuseTile tile;
    i32 b = tile.sequence = row_of(tile_starts, p.segments.sequences, blockIdx.x), first = tile_starts[b], end = tile_starts[b + 1], local = blockIdx.x - first;
    tile.span = span_of(p.segments.pairs, b);
    tile.pieces = term.chunk > 0 ? term.pieces : end - first;
    tile.chunk = local / tile.pieces;
    tile.piece = local - tile.chunk * tile.pieces;
    tile.scopes = term.per_head ? heads : 1;
    tile.first_scope = first_scope(term, heads, b) + tile.chunk;
    return tile;
}
__device__ __forceinline__ Strand strand_of(const FuseTerm& term, const FuseTile& tile, const Place& place, const Row& row, const Range& scored)
{
    i64 origin = scored.begin + (i64)tile.chunk * term.chunk, begin = origin + (i64)tile.piece * THREAD_TOKENS * place.groups, end = scored.end;
    end = term.chunk > 0 && origin + term.chunk < end ? origin + term.chunk : end;
    return strand_of(place, row, (i32)begin, (i32)end);
}

// Shared memory: words to pool, then 16 bytes a thread, 8 a thread, 8 a scope. Windows of more than three tokens, or of more than POOL_REACH heads, are read from L1.
constexpr i32 POOL_REACH = 128, POOL_WORDS = THREAD_TOKENS * PAIR_THREADS + 2 * POOL_REACH;
constexpr u32 THREAD_SUMS = POOL_WORDS * 4, THREAD_SQUARES = THREAD_SUMS + PAIR_THREADS * 16, SCOPE_MEANS = THREAD_SQUARES + PAIR_THREADS * 8;
constexpr i32 FUSE_SHARED_BYTES = SCOPE_MEANS + PAIR_THREADS * 8;

struct Sum
{
    double sum;
    float largest;
    u32 count;
};
__device__ __forceinline__ void operator+=(Sum& x, const Sum& y)
{
    x.sum += y.sum;
    x.largest = fmaxf(x.largest, y.largest);
    x.count += y.count;
}
__device__ __forceinline__ double warp_sum(double x)
{
#pragma unroll
    for (i32 step = 16; step > 0; step /= 2)
        x += __shfl_xor_sync(0xffffffff, x, step);
    return x;
}
__device__ __forceinline__ Sum warp_sum(Sum x)
{
    x.sum = warp_sum(x.sum);
#pragma unroll
    for (i32 step = 16; step > 0; step /= 2)
        x.largest = fmaxf(x.largest, __shfl_xor_sync(0xffffffff, x.largest, step));
    x.count = __reduce_add_sync(0xffffffff, x.count);
    return x;
}

// Who adds up what the threads of a tile have of a scope, thread t of scope t % scopes: a warp each of up to 8 scopes, a thread each of more, which have few threads then.
struct Team { i32 scope, lane, lanes; };
__device__ __forceinline__ Team team_of(i32 scopes)
{
    i32 lanes = scopes <= PAIR_WARPS ? 32 : 1;
    return {(i32)threadIdx.x / lanes, (i32)threadIdx.x % lanes, lanes};
}

__device__ __forceinline__ Sum scope_sum(const Team& team, i32 scopes, const Sum& own)
{
    u32 shared = shared_base() + THREAD_SUMS;
    u64 bits = (u64)__double_as_longlong(own.sum);
    store_shared_x4(shared + threadIdx.x * 16, {(u32)bits, (u32)(bits >> 32), __float_as_uint(own.largest), own.count});
    __syncthreads();
    Sum sum = {0, 0, 0};
    if (team.scope < scopes)
        for (i32 i = team.lane; i < PAIR_THREADS / scopes; i += team.lanes)
        {
            u32x4 x = load_shared_x4(shared + (i * scopes + team.scope) * 16);
            sum += {__longlong_as_double((i64)((u64)x.y << 32 | x.x)), __uint_as_float(x.z), x.w};
        }
    return team.lanes == 32 ? warp_sum(sum) : sum;
}
__device__ __forceinline__ double scope_squares(const Team& team, i32 scopes, double own)
{
    u32 shared = shared_base() + THREAD_SQUARES;
    store_shared_f64(shared + threadIdx.x * 8, own);
    __syncthreads();
    double sum = 0;
    if (team.scope < scopes)
        for (i32 i = team.lane; i < PAIR_THREADS / scopes; i += team.lanes)
            sum += load_shared_f64(shared + (i * scopes + team.scope) * 8);
    return team.lanes == 32 ? warp_sum(sum) : sum;
}

// Statistics of a scope from its tiles, a warp's work, in one pass about the first tile's mean: that is no further from the mean than the squares can bear.
__device__ __forceinline__ Statistics statistics_of(const FuseParams& p, const Partials& partials, i32 tiles)
{
    double center = partials.means[0], squares = 0;
    Sum sum = {0, 0, 0};
#pragma unroll 8
    for (i32 i = threadIdx.x % 32; i < tiles; i += 32)
    {
        Extent extent = partials.extents[i];
        double from_center = extent.count == 0 ? 0 : partials.means[i] - center, weighted = extent.count * from_center;
        sum += {weighted, extent.largest, extent.count};
        squares += partials.squares[i] + weighted * from_center;
    }
    sum = warp_sum(sum);
    squares = warp_sum(squares);
    double shift = sum.count == 0 ? 0 : sum.sum / sum.count, mean = center + shift;
    squares -= sum.sum * shift;
    u32 divisor = p.unbiased && sum.count > 0 ? sum.count - 1 : sum.count;
    double deviation = sqrt((squares > 0 ? squares : 0) / (divisor > 0 ? divisor : 1));
    bool varies = deviation > (double)sum.largest / 65536 && deviation >= 1.17549435e-38;
    float high = (float)mean;
    return {high, (float)(mean - high), varies ? (float)(1 / (deviation > p.deviation_floor ? deviation : p.deviation_floor)) : 0, 0};
}

// Zeros outside the scored tokens, where nothing was written.
struct Tile { float x[THREAD_TOKENS]; };
__device__ __forceinline__ Tile load_tile(const float* from, const Strand& s, const Range& scored)
{
    Tile tile;
#pragma unroll
    for (i32 k = 0; k < THREAD_TOKENS; k++)
        tile.x[k] = s.has(k) && s.token(k) >= scored.begin && s.token(k) < scored.end ? from[s.at(k)] : 0;
    return tile;
}

// Mean of a·||v|| over a window of tokens, zeros outside, divided by the full width. Attention scores are never ragged.
__device__ __forceinline__ Tile load_pooled(const FuseParams& p, const Span& span, const Place& place, const Strand& s, const Range& scored)
{
    i32 half = (i32)p.pool_width / 2, heads = p.segments.pairs.heads;
    const float *scores = (const float*)p.attention.raw, *norms = (const float*)p.value_norms;
    Tile tile;
    if (half == 0 && !norms)
        return load_tile(scores, s, scored);
    if (half <= 1 && half * heads <= POOL_REACH)
    {
        // The tile's words and those of a token on both sides pass through shared memory, in their own order, zeros where nothing is scored. Float32 rounds three terms by 2^-23.
        i32 reach = half * heads, step = place.groups * heads, words = THREAD_TOKENS * step + 2 * reach;
        i32 origin = (s.first - place.group) * heads - reach, begin = scored.begin * heads - origin, end = scored.end * heads - origin;
        u32 first = (u32)span.start * heads + origin, shared = shared_base();
        float own[POOL_WORDS / PAIR_THREADS], weights[POOL_WORDS / PAIR_THREADS];
        end = end < words ? end : words;
#pragma unroll
        for (i32 i = 0; i < POOL_WORDS / PAIR_THREADS; i++)
        {
            i32 word = threadIdx.x + i * PAIR_THREADS;
            bool scores_word = word >= begin && word < end;
            own[i] = scores_word ? scores[first + word] : 0;
            weights[i] = scores_word && norms ? norms[first + word] : 1;
        }
#pragma unroll
        for (i32 i = 0; i < POOL_WORDS / PAIR_THREADS; i++)
            store_shared_f32(shared + (threadIdx.x + i * PAIR_THREADS) * 4, own[i] * weights[i]);
        __syncthreads();
        float scale = 1 / (float)p.pool_width;
#pragma unroll
        for (i32 k = 0; k < THREAD_TOKENS; k++)
        {
            u32 before = shared + (threadIdx.x + k * step) * 4, self = before + reach * 4;
            tile.x[k] = load_shared_f32(self);
            if (half == 1)
                tile.x[k] = load_shared_f32(before) + tile.x[k] + load_shared_f32(self + reach * 4);
            tile.x[k] *= scale;
        }
        return tile;
    }
    double scale = 1 / (double)p.pool_width;
#pragma unroll
    for (i32 k = 0; k < THREAD_TOKENS; k++)
    {
        i32 first = s.token(k) - half, last = s.token(k) + half;
        first = first < scored.begin ? scored.begin : first;
        last = s.has(k) ? last < scored.end ? last : scored.end - 1 : first - 1;
        double sum = 0;
#pragma unroll 1
        for (i32 t = first; t <= last; t++)
        {
            u32 pair = s.at(k) + (t - s.token(k)) * heads;
            sum += norms ? scores[pair] * norms[pair] : scores[pair];
        }
        tile.x[k] = (float)(sum * scale);
    }
    return tile;
}

extern "C" __global__ void __launch_bounds__(PAIR_THREADS, 4) fuse_statistics(const __grid_constant__ FuseParams p)
{
    bool attention = blockIdx.y == 0;
    const FuseTerm& term = attention ? p.attention : p.leverage;
    if ((i32)blockIdx.x >= term.tiles)
        return;
    FuseTile tile = tile_of_block(p, term);
    Place place = place_of(p.segments.pairs.heads);
    Row row = row_of(p.segments.pairs, tile.span, tile.sequence, place.head);
    Range scored = scored_tokens(p, row.length);
    Strand s = strand_of(term, tile, place, row, scored);
    Tile own = attention ? load_pooled(p, tile.span, place, s, scored) : load_tile((const float*)term.raw, s, scored);
    Sum sum = {0, 0, 0};
#pragma unroll
    for (i32 k = 0; k < THREAD_TOKENS; k++)
        if (s.has(k))
        {
            if (attention)
                ((float*)p.scores)[s.at(k)] = own.x[k];
            if (is_finite(own.x[k]))
                sum += {own.x[k], fabsf(own.x[k]), 1};
        }
    Team team = team_of(tile.scopes);
    sum = scope_sum(team, tile.scopes, sum);
    double mean = sum.count == 0 ? 0 : sum.sum / sum.count;
    bool leads = team.lane == 0 && team.scope < tile.scopes;
    if (leads)
        store_shared_f64(shared_base() + SCOPE_MEANS + team.scope * 8, mean);
    __syncthreads();
    double center = load_shared_f64(shared_base() + SCOPE_MEANS + (term.per_head ? place.head : 0) * 8), squares = 0;
#pragma unroll
    for (i32 k = 0; k < THREAD_TOKENS; k++)
        if (s.has(k) && is_finite(own.x[k]))
            squares += (own.x[k] - center) * (own.x[k] - center);
    squares = scope_squares(team, tile.scopes, squares);
    i64 first = (i64)(blockIdx.x - tile.piece) * tile.scopes;
    if (leads)
    {
        Partials partials = partials_of(term, tile.scopes, first + (i64)team.scope * tile.pieces + tile.piece);
        *partials.means = mean;
        *partials.squares = squares;
        *partials.extents = {sum.largest, sum.count};
    }
    if (!is_last_block((u32*)term.counters + tile.first_scope, tile.pieces))
        return;
    for (i32 scope = threadIdx.x / 32; scope < tile.scopes; scope += PAIR_WARPS)
    {
        Statistics statistics = statistics_of(p, partials_of(term, tile.scopes, first + (i64)scope * tile.pieces), tile.pieces);
        if (threadIdx.x % 32 == 0)
            ((Statistics*)term.statistics)[tile.first_scope + scope] = statistics;
    }
}

// What a thread's elements of a term become z by: they are of one head, but may be of several chunks.
struct Normalization
{
    const Statistics* all;
    Statistics statistics;
    i32 end;   // token
};
__device__ __forceinline__ Normalization normalization_of(const FuseTerm& term, i32 heads, i32 sequence, i32 head, const Range& scored)
{
    Normalization scope = {(const Statistics*)term.statistics + first_scope(term, heads, sequence), {0, 0, 0, 0}, scored.begin};
    if (term.chunk == 0 && scored.begin < scored.end)
    {
        scope.statistics = scope.all[term.per_head ? head : 0];
        scope.end = scored.end;
    }
    return scope;
}
__device__ __forceinline__ float z_of(const FuseTerm& term, Normalization& scope, const Range& scored, i32 token, float x)
{
    if (token >= scope.end)
    {
        i32 chunk = (token - scored.begin) / term.chunk;
        scope.statistics = scope.all[chunk];
        scope.end = scored.begin + (chunk + 1) * term.chunk;
    }
    return ((x - scope.statistics.mean) - scope.statistics.rest) * scope.statistics.inverse;
}

extern "C" __global__ void __launch_bounds__(PAIR_THREADS, 4) fuse_scores(const __grid_constant__ FuseParams p)
{
    Segment g = segment_of_block(p.segments);
    Place place = place_of(g.heads);
    i32 head = g.first_head + place.head;
    Row row = row_of(p.segments.pairs, g.span, g.sequence, head);
    Strand s = strand_of(place, row, g.tile * THREAD_TOKENS * place.groups, row.length);
    Range scored = scored_tokens(p, row.length);
    bool digits = p.segments.histograms != 0, with_attention = p.attention.raw != 0, with_leverage = p.leverage.raw != 0;
    Tile a = {}, o = {};
    if (with_attention)
        a = load_tile((const float*)p.scores, s, scored);
    if (with_leverage)
        o = load_tile((const float*)p.leverage.raw, s, scored);
    Normalization scope_a = {}, scope_o = {};
    if (with_attention)
        scope_a = normalization_of(p.attention, p.segments.pairs.heads, g.sequence, head, scored);
    if (with_leverage)
        scope_o = normalization_of(p.leverage, p.segments.pairs.heads, g.sequence, head, scored);
    double weight = ((const double*)p.weights)[g.sequence];
    if (digits)
        clear_digits();
    u32 bad = 0;
    i32 first_bad = 0;
#pragma unroll
    for (i32 k = 0; k < THREAD_TOKENS; k++)
        if (s.has(k))
        {
            i32 token = s.token(k);
            float fused = 0;
            if (token >= scored.begin && token < scored.end)
            {
                fused = with_attention ? z_of(p.attention, scope_a, scored, token, a.x[k]) : 0;
                fused += with_leverage ? (float)weight * z_of(p.leverage, scope_o, scored, token, o.x[k]) : 0;
            }
            if (!is_finite(fused))
            {
                fused = -3.40282347e38f;
                first_bad = bad == 0 ? token : first_bad;
                bad++;
            }
            if (token < p.protect_first || token >= row.length - (i64)p.protect_last)
                fused = __uint_as_float(0x7f800000);
            ((float*)p.scores)[s.at(k)] = fused;
            if (digits)
                count_digit(key_of(fused), 0, 0);
        }
    if (bad != 0)
    {
        atomic_add_global((u32*)p.non_finite, bad);
        report(p.status, STATUS_NON_FINITE_SCORE, row.start + first_bad, head);
    }
    if (digits)
    {
        const i32* kept_starts = (const i32*)p.segments.kept_starts;
        finish_round(p.segments, g, 0, {0, (u32)(kept_starts[g.index + 1] - kept_starts[g.index]), -1});
    }
}
