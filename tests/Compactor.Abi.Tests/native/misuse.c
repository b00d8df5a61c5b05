/*
 * 200,000 random calls of every function with arguments that are right, or null, misaligned, overlapping, of wrong size, dead, of another kind, not a number.
 * Every buffer ends at a page that nothing may touch. Each call must return a status; one that fails must leave its outputs and the cache as they were, and a
 * valid engine beside it must go on giving the same answers. Arguments: calls (default 200000), seed (default 1).
 */
#define _DEFAULT_SOURCE
#include <compactor.h>

#include <float.h>
#include <limits.h>
#include <math.h>

#include "guarded.h"

enum { QUERY_HEADS = 4, KV_HEADS = 2, DIM = 16, SKETCH = 16, LAYERS = 2, MOST_TOKENS = 70, MOST_SEQUENCES = 2, ALIVE = 12, GRAVES = 64, HOST_BLOCKS = 12, HOST_BLOCK = 16 };
enum { BACKEND, PLAN, CACHE, SEQUENCE, COMPACTION, TABLES, KINDS };

typedef struct {
    uint64_t handle, owner;
    int32_t sequences, tokens, cu[MOST_SEQUENCES + 1];
    int64_t pairs, kept;
    uint64_t workspace;
} object;

static object objects[KINDS][ALIVE];
static int object_counts[KINDS];
static uint64_t graves[GRAVES];
static long calls_ok[64], calls_made[64];
static int cache_prepared; /* the call under way stored tokens first, rightly */
static int wrongness; /* percentage of arguments made wrong: varies, so that deep calls are reached too */

static int wrong(void) { return chance(wrongness); }

static void fail(const char *function, const char *what)
{
    fprintf(stderr, "%s: %s (last error: %s)\n", function, what, compactor_last_error());
    exit(1);
}

/* ---- Arguments, most of them right ---- */

static void *pointer(void *right, size_t bytes)
{
    if (!wrong())
        return right;
    switch (below(3)) {
    case 0: return NULL;
    case 1: return (unsigned char *)right - 1 - below(3);
    default: return flush_buffer(below(ARENAS), bytes);
    }
}

/* A struct is never taken from other memory: what it says of its size and points to would be neither, which no library can tell. */
static void *struct_pointer(void *right) { return !wrong() ? right : below(2) ? NULL : (unsigned char *)right - 1 - below(3); }

static int64_t count64(int64_t right)
{
    static const int64_t odd[] = { 0, -1, 1, INT_MAX, INT_MIN, INT64_MAX, INT64_MIN };
    if (!wrong())
        return right;
    switch (below(4)) {
    case 0: return right + 1;
    case 1: return right - 1;
    case 2: return odd[below(7)];
    default: return (int64_t)random_bits();
    }
}

static int32_t count32(int32_t right) { return (int32_t)count64(right); }

/* A size that is not the struct's; never one a later version could have, for the memory behind is not there. */
static uint32_t struct_size(size_t right)
{
    uint32_t size = (uint32_t)count32((int32_t)right);
    return size > right && size <= 4096 ? (uint32_t)right + 1 : size;
}

/* A count that only the caller knows: too small or impossible, never more than there is. */
static int32_t claim(int32_t right) { return !wrong() ? right : below(2) ? below(right + 1) : INT_MIN + below(4); }

static int32_t integer(int32_t right)
{
    static const int32_t odd[] = { 0, 1, -1, 2, 3, 7, 16, 64, 4096, INT_MAX, INT_MIN };
    return !wrong() ? right : below(2) ? odd[below(11)] : (int32_t)random_bits();
}

static double number(double right)
{
    static const double odd[] = { 0, -1, 1, 0.5, -0.0, 1e-320, DBL_MAX, -DBL_MAX, 3.5 };
    if (!wrong())
        return right;
    int which = below(12);
    return which < 9 ? odd[which] : which == 9 ? NAN : which == 10 ? INFINITY : -INFINITY;
}

static object *some(int kind) { return object_counts[kind] == 0 ? NULL : &objects[kind][below(object_counts[kind])]; }

/* Never another of the same kind: with a count that fits it by chance, a buffer would be claimed that is not there. */
static uint64_t handle_of(const object *right)
{
    if (right != NULL && !wrong())
        return right->handle;
    object *other = some(below(KINDS));
    switch (below(5)) {
    case 0: return 0;
    case 1: return graves[below(GRAVES)];
    case 2: return random_bits();
    case 3: return right == NULL ? 1 : right->handle ^ (UINT64_C(1) << (below(2) ? below(32) : 56 + below(8))); /* never the slot: it could be the engine's */
    default: return other == NULL || (right != NULL && other->handle >> 56 == right->handle >> 56) ? UINT64_MAX : other->handle;
    }
}

static float *rows(int arena, size_t count)
{
    float *data = flush_buffer(arena, count * sizeof(float));
    for (size_t i = 0; i < count; i++)
        data[i] = unit();
    if (wrong() && count > 0)
        data[below((int)count)] = below(2) ? NAN : 1e30f;
    return data;
}

static compactor_tensor *tensor(int arena, int32_t sequences, int32_t tokens, const int32_t *cu, int32_t heads)
{
    int32_t longest = 0;
    int padded = cu != NULL && sequences > 0 && chance(30);
    for (int32_t b = 0; padded && b < sequences; b++)
        longest = cu[b + 1] - cu[b] > longest ? cu[b + 1] - cu[b] : longest;
    size_t count = padded ? (size_t)sequences * (size_t)longest * (size_t)heads * DIM : (size_t)tokens * (size_t)heads * DIM;
    compactor_tensor t = { .struct_size = sizeof t, .element_type = COMPACTOR_FLOAT32, .data = rows(arena, count) };
    size_t bytes = count * sizeof(float);
    t.data = pointer((void *)t.data, bytes);
    t.data_bytes = wrong() ? random_bits() % (bytes + 1) : bytes;
    t.element_type = integer(t.element_type);
    t.struct_size = struct_size(sizeof t);
    t.tokens = integer(tokens);
    t.heads = integer(heads);
    t.dim = integer(DIM);
    t.reserved = integer(0);
    t.token_stride = count64(padded ? DIM : heads * DIM);
    t.head_stride = count64(padded ? longest * DIM : DIM);
    t.sequence_stride = count64(padded ? (int64_t)heads * longest * DIM : 0);
    compactor_tensor *at = flush_buffer(arena + 1, sizeof t);
    *at = t;
    return struct_pointer(at);
}

static compactor_tensor *layer_tensor(int arena, const object *plan, int32_t heads) { return tensor(arena, plan->sequences, plan->tokens, plan->cu, heads); }

static compactor_rotary *rotary(int arena, int32_t tokens)
{
    compactor_rotary r = { .struct_size = struct_size(sizeof r), .style = integer(below(2)), .rotary_dim = integer(DIM), .reserved = integer(0) };
    switch (below(3)) {
    case 0:
        r.theta = number(10000);
        break;
    case 1: {
        double *f = flush_buffer(arena + 1, DIM / 2 * sizeof *f);
        for (int i = 0; i < DIM / 2; i++)
            f[i] = number(1.0 / (i + 1));
        /* the frequencies are rotary_dim / 2: say no more than there are */
        r.rotary_dim = r.rotary_dim > DIM ? DIM : r.rotary_dim;
        r.inverse_frequencies = pointer(f, DIM / 2 * sizeof *f);
        break;
    }
    default: {
        float *c = flush_buffer(arena + 1, (size_t)tokens * DIM / 2 * sizeof *c), *s = flush_buffer(arena + 2, (size_t)tokens * DIM / 2 * sizeof *s);
        for (int i = 0; i < tokens * DIM / 2; i++) {
            c[i] = cosf((float)i);
            s[i] = sinf((float)i);
        }
        r.rotary_dim = r.rotary_dim > DIM ? DIM : r.rotary_dim;
        r.cos = pointer(c, (size_t)tokens * DIM / 2 * sizeof *c);
        r.sin = pointer(s, (size_t)tokens * DIM / 2 * sizeof *s);
        r.table_rows = claim(tokens);
    }
    }
    if (chance(10)) {
        int32_t *p = flush_buffer(arena + 3, (size_t)tokens * sizeof *p);
        for (int i = 0; i < tokens; i++)
            p[i] = integer(i);
        r.positions = p;
        r.position_count = claim(tokens);
    }
    compactor_rotary *at = flush_buffer(arena, sizeof r);
    *at = r;
    return struct_pointer(at);
}

static compactor_layer *layer_inputs(int arena, const object *plan)
{
    compactor_layer l = { .struct_size = struct_size(sizeof l), .policy = wrong() ? integer(0) : below(5), .policy_seed = random_bits() };
    l.key = layer_tensor(arena + 1, plan, KV_HEADS);
    l.value = layer_tensor(arena + 3, plan, KV_HEADS);
    l.query = chance(80) ? layer_tensor(arena + 5, plan, QUERY_HEADS) : NULL;
    l.key_pre_rope = chance(50) ? layer_tensor(arena + 7, plan, KV_HEADS) : NULL;
    l.rotary = l.key_pre_rope == NULL || chance(20) ? rotary(arena + 9, plan->tokens) : NULL;
    if (chance(20)) {
        l.phi = rows(arena + 13, DIM * SKETCH);
        l.phi_count = claim(DIM * SKETCH);
    }
    compactor_layer *at = flush_buffer(arena, sizeof l);
    *at = l;
    return struct_pointer(at);
}

static compactor_options *options(int arena)
{
    compactor_options *o = flush_buffer(arena, sizeof *o);
    o->struct_size = sizeof *o;
    compactor_options_preset(below(3), o);
    o->sketch_dimension = integer(SKETCH);
    o->leverage_chunk = integer(below(2) * 64);
    o->attention_chunk = integer(64);
    o->epsilon = number(o->epsilon);
    o->attention_scale = number(o->attention_scale);
    o->leverage_weight = number(o->leverage_weight);
    o->standard_deviation_floor = number(o->standard_deviation_floor);
    o->protect_first = integer(4);
    o->protect_last = integer(4);
    o->selection_scope = integer(below(3));
    o->min_tokens_per_head = integer(0);
    int32_t *flags[] = { &o->center_keys, &o->weight_by_value_norm, &o->unbiased_standard_deviation, &o->score_protected, &o->sketch_sharing, &o->leverage_scope,
                         &o->group_reduction, &o->pool_width, &o->attention_scope, &o->leverage_weight_rule, &o->protected_budget, &o->retention_count };
    int32_t *flag = flags[below(12)];
    *flag = integer(*flag);
    o->struct_size = struct_size(sizeof *o);
    return struct_pointer(o);
}

static compactor_budget *budgets(int arena, int32_t count)
{
    compactor_budget *b = flush_buffer(arena, (size_t)count * sizeof *b);
    for (int32_t i = 0; i < count; i++) {
        b[i].struct_size = struct_size(sizeof *b);
        b[i].unit = wrong() ? integer(0) : below(3);
        b[i].amount = number(b[i].unit == COMPACTOR_BUDGET_RETENTION ? below(11) / 10.0 : b[i].unit == COMPACTOR_BUDGET_TOKENS ? 1 + below(40) : 1 + below(20000));
    }
    return struct_pointer(b);
}

/* A batch of one or two sequences of a cache. */
static uint64_t *batch(int arena, int32_t count)
{
    uint64_t *handles = flush_buffer(arena, (size_t)count * sizeof *handles);
    int first = object_counts[SEQUENCE] == 0 ? 0 : below(object_counts[SEQUENCE]);
    for (int32_t b = 0; b < count; b++)
        handles[b] = handle_of(object_counts[SEQUENCE] == 0 ? NULL : &objects[SEQUENCE][(first + b) % object_counts[SEQUENCE]]);
    return pointer(handles, (size_t)count * sizeof *handles);
}

static int32_t layer_index(void) { return integer(below(LAYERS)); }

static const compactor_paged_view *view(int arena)
{
    size_t bytes = HOST_BLOCKS * HOST_BLOCK * KV_HEADS * DIM * sizeof(float);
    compactor_paged_view v = { .struct_size = struct_size(sizeof v), .element_type = integer(COMPACTOR_FLOAT32) };
    rows(arena + 1, bytes / sizeof(float));
    rows(arena + 2, bytes / sizeof(float));
    v.keys = pointer(flush_output(arena + 1, bytes), bytes);
    v.values = pointer(flush_output(arena + 2, bytes), bytes);
    v.bytes = wrong() ? random_bits() % (bytes + 1) : bytes;
    v.blocks = integer(HOST_BLOCKS);
    v.block_size = integer(HOST_BLOCK);
    v.kv_heads = integer(KV_HEADS);
    v.dim = integer(DIM);
    int nhd = below(2);
    v.block_stride = count64(HOST_BLOCK * KV_HEADS * DIM);
    v.slot_stride = count64(nhd ? KV_HEADS * DIM : DIM);
    v.head_stride = count64(nhd ? DIM : HOST_BLOCK * DIM);
    compactor_paged_view *at = flush_buffer(arena, sizeof v);
    *at = v;
    return struct_pointer(at);
}

static int32_t *block_ids(int arena, int32_t count)
{
    int32_t *ids = flush_buffer(arena, (size_t)count * sizeof *ids);
    for (int32_t i = 0; i < count; i++)
        ids[i] = integer(i % HOST_BLOCKS);
    return ids;
}

/* Kept lists as a selection of the plan would be: the first tokens of every head. */
static void kept_lists(int arena, const object *plan, int32_t **indices, int32_t **offsets)
{
    int32_t heads = plan->sequences * KV_HEADS, at = 0;
    *indices = flush_buffer(arena, (size_t)plan->kept * sizeof(int32_t));
    *offsets = flush_buffer(arena + 1, (size_t)(heads + 1) * sizeof(int32_t));
    (*offsets)[0] = 0;
    for (int32_t row = 0; row < heads; row++) {
        int32_t length = plan->cu[row / KV_HEADS + 1] - plan->cu[row / KV_HEADS], each = (int32_t)(plan->kept / heads) + (row < plan->kept % heads);
        for (int32_t i = 0; i < each; i++)
            (*indices)[at + i] = i < length ? integer(i) : i;
        at += each;
        (*offsets)[row + 1] = integer(at);
    }
    *indices = pointer(*indices, (size_t)plan->kept * sizeof(int32_t));
    *offsets = pointer(*offsets, (size_t)(heads + 1) * sizeof(int32_t));
}

/* ---- What became of handles ---- */

static void born(int kind, const object *made)
{
    if (object_counts[kind] == ALIVE) {
        fprintf(stderr, "too many objects of kind %d\n", kind);
        exit(2);
    }
    objects[kind][object_counts[kind]++] = *made;
}

static void died(int kind, uint64_t handle)
{
    for (int i = 0; i < object_counts[kind]; i++)
        if (objects[kind][i].handle == handle) {
            graves[below(GRAVES)] = handle;
            objects[kind][i] = objects[kind][--object_counts[kind]];
            return;
        }
    fail("close", "a handle died that was not alive");
}

static void describe_plan(object *plan)
{
    compactor_plan_info info = { .struct_size = sizeof info };
    if (compactor_plan_describe(plan->handle, &info) != COMPACTOR_OK)
        fail("compactor_plan_describe", "of a new plan");
    plan->pairs = info.pairs;
    plan->kept = info.kept_pairs;
    plan->workspace = info.workspace_bytes;
}

static void must_close_plan(uint64_t plan)
{
    if (compactor_plan_destroy(plan) != COMPACTOR_OK)
        fail("compactor_plan_destroy", "of a new plan");
}

#include "misuse_calls.h"

/* ---- A valid engine beside it ---- */

static struct {
    compactor_backend backend;
    compactor_cache cache;
    compactor_sequence sequence;
    compactor_plan plan;
    float key[MOST_TOKENS * KV_HEADS * DIM], value[MOST_TOKENS * KV_HEADS * DIM], query[MOST_TOKENS * QUERY_HEADS * DIM];
    compactor_tensor keys, values, queries, one;
    compactor_layer layer;
    int32_t kept[MOST_TOKENS * KV_HEADS], offsets[KV_HEADS + 1], first_kept[MOST_TOKENS * KV_HEADS];
    int64_t kept_count;
    uint64_t workspace_bytes;
    void *workspace;
    float first_out[QUERY_HEADS * DIM];
} engine;

static void must(compactor_status status, const char *what)
{
    if (status != COMPACTOR_OK)
        fail("valid engine", what);
}

static void engine_start(void)
{
    int32_t cu[] = { 0, MOST_TOKENS };
    compactor_options o = { .struct_size = sizeof o };
    compactor_budget half = { .struct_size = sizeof half, .unit = COMPACTOR_BUDGET_RETENTION, .amount = 0.5 };
    compactor_shape shape = { .struct_size = sizeof shape, .sequences = 1, .cu_seqlens = cu, .query_heads = QUERY_HEADS, .kv_heads = KV_HEADS, .head_dim = DIM };
    compactor_cache_options pages = { .struct_size = sizeof pages, .layers = 1, .kv_heads = KV_HEADS, .head_dim = DIM, .blocks = 32, .block_size = 16 };
    compactor_backend_options cpu = { .struct_size = sizeof cpu, .kind = COMPACTOR_BACKEND_CPU, .threads = 1 };
    /* every pointer here is to host memory: no backend may be another's */
    setenv("CUDA_VISIBLE_DEVICES", "", 1);
    must(compactor_backend_open(&cpu, &engine.backend), "open");
    must(compactor_options_preset(COMPACTOR_PRESET_PAPER, &o), "preset");
    must(compactor_plan_create(&shape, &o, &half, 1, &engine.plan), "plan");
    must(compactor_cache_create(engine.backend, &pages, &engine.cache), "cache");
    must(compactor_sequence_create(engine.cache, &engine.sequence), "sequence");
    object plan = { .handle = engine.plan };
    describe_plan(&plan);
    engine.kept_count = plan.kept;
    engine.workspace_bytes = plan.workspace;
    engine.workspace = aligned_alloc(256, plan.workspace);
    for (size_t i = 0; i < sizeof engine.query / sizeof(float); i++)
        engine.query[i] = unit();
    for (size_t i = 0; i < sizeof engine.key / sizeof(float); i++) {
        engine.key[i] = unit();
        engine.value[i] = unit();
    }
    engine.keys = (compactor_tensor){ .struct_size = sizeof(compactor_tensor), .data = engine.key, .data_bytes = sizeof engine.key, .tokens = MOST_TOKENS,
                                      .heads = KV_HEADS, .dim = DIM, .token_stride = KV_HEADS * DIM, .head_stride = DIM };
    engine.values = engine.keys;
    engine.values.data = engine.value;
    engine.queries = engine.keys;
    engine.queries.data = engine.query;
    engine.queries.data_bytes = sizeof engine.query;
    engine.queries.heads = QUERY_HEADS;
    engine.queries.token_stride = QUERY_HEADS * DIM;
    engine.one = engine.queries;
    engine.one.tokens = 1;
    engine.layer = (compactor_layer){ .struct_size = sizeof engine.layer, .key = &engine.keys, .value = &engine.values, .query = &engine.queries, .key_pre_rope = &engine.keys };
    must(compactor_sequence_compress(&engine.sequence, 1, 0, engine.plan, &engine.layer, NULL, NULL), "compress");
}

static void engine_answer(int32_t *kept, float *out)
{
    must(compactor_compress_layer(engine.backend, engine.plan, &engine.layer, engine.workspace, engine.workspace_bytes, kept, engine.kept_count, engine.offsets,
                                  KV_HEADS + 1, NULL, 0, NULL, 0), "compress_layer");
    must(compactor_sequence_attend(&engine.sequence, 1, 0, &engine.one, NULL, out, QUERY_HEADS * DIM, NULL, 0), "attend");
}

static void engine_check(void)
{
    float out[QUERY_HEADS * DIM];
    engine_answer(engine.kept, out);
    if (memcmp(engine.kept, engine.first_kept, (size_t)engine.kept_count * sizeof(int32_t)) != 0 || memcmp(out, engine.first_out, sizeof out) != 0)
        fail("valid engine", "gives another answer");
}

static void engine_stop(void)
{
    must(compactor_sequence_free(engine.sequence), "free");
    must(compactor_cache_destroy(engine.cache), "destroy");
    must(compactor_plan_destroy(engine.plan), "plan destroy");
    must(compactor_backend_close(engine.backend), "close");
    free(engine.workspace);
}

static void bury_all(void)
{
    while (object_counts[COMPACTION] > 0) {
        uint64_t handle = objects[COMPACTION][0].handle;
        must(compactor_compaction_cancel(handle), "cancel what is left");
        died(COMPACTION, handle);
    }
    static compactor_status (*const closes[])(uint64_t) = { [SEQUENCE] = compactor_sequence_free, [TABLES] = compactor_tables_destroy,
        [CACHE] = compactor_cache_destroy, [PLAN] = compactor_plan_destroy, [BACKEND] = compactor_backend_close };
    static const int order[] = { SEQUENCE, TABLES, CACHE, PLAN, BACKEND };
    for (int k = 0; k < 5; k++)
        while (object_counts[order[k]] > 0) {
            uint64_t handle = objects[order[k]][0].handle;
            must(closes[order[k]](handle), "close what is left");
            died(order[k], handle);
        }
}

int main(int argc, char **argv)
{
    long calls = argc > 1 ? atol(argv[1]) : 200000;
    random_state = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
    make_arenas();
    engine_start();
    engine_answer(engine.first_kept, engine.first_out);
    long ok = 0, by_status[COMPACTOR_COMPILATION_FAILED + 1] = { 0 };
    for (long i = 0; i < calls; i++) {
        static const int degrees[] = { 0, 1, 1, 3, 10 };
        wrongness = degrees[below(5)];
        int which = below(CALL_COUNT);
        output_count = cache_prepared = 0;
        compactor_cache_info before = { .struct_size = sizeof before }, after = before;
        object *watched = some(CACHE);
        uint64_t cache = watched == NULL ? 0 : watched->handle;
        int alive = cache != 0 && compactor_cache_describe(cache, &before) == COMPACTOR_OK;
        compactor_status status = calls_of[which].make();
        int of_device = status == COMPACTOR_NO_DEVICE || status == COMPACTOR_DEVICE_FAILED;
        if ((unsigned)status > COMPACTOR_DEVICE_FAILED || status == COMPACTOR_INTERNAL || status == COMPACTOR_FORKED
            || (of_device && strcmp(calls_of[which].name, "compactor_backend_open") != 0))
            fail(calls_of[which].name, "returned a status it must not");
        by_status[status]++;
        calls_made[which]++;
        ok += status == COMPACTOR_OK;
        calls_ok[which] += status == COMPACTOR_OK;
        if (status != COMPACTOR_OK) {
            if (*compactor_last_error() == '\0')
                fail(calls_of[which].name, "failed without a message");
            int begun = status == COMPACTOR_NON_FINITE || status == COMPACTOR_FACTORIZATION_FAILED || status == COMPACTOR_OUT_OF_MEMORY;
            if (!begun && !outputs_unchanged())
                fail(calls_of[which].name, "failed and wrote to an output");
            if (alive && !cache_prepared && compactor_cache_describe(cache, &after) == COMPACTOR_OK && memcmp(&before, &after, sizeof before) != 0)
                fail(calls_of[which].name, "failed and changed a cache");
        }
        if (i % 1000 == 0)
            engine_check();
    }
    engine_check();
    bury_all();
    engine_stop();
    int64_t live = -1;
    must(compactor_live_handles(&live), "live handles");
    int missed = 0;
    for (int i = 0; i < CALL_COUNT; i++)
        if (calls_ok[i] == 0 || calls_ok[i] == calls_made[i]) {
            printf("%s: %ld calls, %ld succeeded\n", calls_of[i].name, calls_made[i], calls_ok[i]);
            missed++;
        }
    printf("%ld calls, %ld succeeded; by status:", calls, ok);
    for (int s = 0; s <= COMPACTOR_DEVICE_FAILED; s++)
        printf(" %s %ld", compactor_status_name((compactor_status)s) + sizeof "COMPACTOR_" - 1, by_status[s]);
    printf("; %lld handles left\n", (long long)live);
    /* a run of full length reaches both ends of every function */
    return live == 0 && (missed == 0 || calls < 200000) ? 0 : 1;
}
