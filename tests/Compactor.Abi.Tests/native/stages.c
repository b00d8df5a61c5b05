/*
 * What calls compute: the stages one by one against one call a layer, a host's own cache compacted in place and attended to against plain attention, exported tables
 * against what sequences say, calibration against its formula, and bytes of unknown format stored, compacted and given back.
 */
#include <compactor.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TOKENS = 200, QUERY_HEADS = 4, KV_HEADS = 2, DIM = 32, GROUP = QUERY_HEADS / KV_HEADS };

#define CHECK(call)                                                                                                                     \
    do {                                                                                                                                \
        compactor_status status_ = (call);                                                                                              \
        if (status_ != COMPACTOR_OK) {                                                                                                  \
            fprintf(stderr, "%d: %s: %s: %s\n", __LINE__, #call, compactor_status_name(status_), compactor_last_error());               \
            exit(1);                                                                                                                    \
        }                                                                                                                               \
    } while (0)

#define EXPECT(holds)                                                                                   \
    do {                                                                                                \
        if (!(holds)) {                                                                                 \
            fprintf(stderr, "%d: not so: %s (%s)\n", __LINE__, #holds, compactor_last_error());         \
            exit(1);                                                                                    \
        }                                                                                               \
    } while (0)

static compactor_backend backend;
static compactor_options options = { .struct_size = sizeof options };
static float key[TOKENS * KV_HEADS * DIM], value[TOKENS * KV_HEADS * DIM], query[TOKENS * QUERY_HEADS * DIM];
static compactor_tensor keys, values, queries;

static float next(void)
{
    static uint32_t state = 1;
    state = state * 1664525u + 1013904223u;
    return (float)(state >> 8) / 8388608.0f - 1.0f;
}

static compactor_tensor packed(const void *data, int32_t tokens, int32_t heads, int32_t type, size_t size)
{
    return (compactor_tensor){ .struct_size = sizeof(compactor_tensor), .element_type = type, .data = data, .data_bytes = (uint64_t)tokens * (uint64_t)heads * DIM * size,
                               .tokens = tokens, .heads = heads, .dim = DIM, .token_stride = (int64_t)heads * DIM, .head_stride = DIM };
}

static compactor_plan make_plan(int32_t scope, double retention, int64_t *kept, uint64_t *workspace)
{
    int32_t cu[] = { 0, TOKENS };
    compactor_shape shape = { .struct_size = sizeof shape, .sequences = 1, .cu_seqlens = cu, .query_heads = QUERY_HEADS, .kv_heads = KV_HEADS, .head_dim = DIM };
    compactor_budget budget = { .struct_size = sizeof budget, .unit = COMPACTOR_BUDGET_RETENTION, .amount = retention };
    compactor_plan_info info = { .struct_size = sizeof info };
    compactor_plan plan;
    int64_t by_sequence = -1;
    options.selection_scope = scope;
    CHECK(compactor_plan_create(&shape, &options, &budget, 1, &plan));
    CHECK(compactor_plan_describe(plan, &info));
    CHECK(compactor_plan_kept(plan, &by_sequence, 1));
    EXPECT(by_sequence == info.kept_pairs && info.pairs == TOKENS * KV_HEADS && info.tokens == TOKENS);
    *kept = info.kept_pairs;
    *workspace = info.workspace_bytes;
    return plan;
}

/* out = softmax(q.k / sqrt(D)) V over rows at strides, in double. */
static void plain_attention(const float *q, const float *k, const float *v, const int32_t *rows, int32_t count, int64_t stride, double *out)
{
    double sum = 0;
    memset(out, 0, DIM * sizeof *out);
    for (int32_t i = 0; i < count; i++) {
        double logit = 0;
        for (int d = 0; d < DIM; d++)
            logit += (double)q[d] * k[rows[i] * stride + d];
        double weight = exp(logit / sqrt(DIM));
        sum += weight;
        for (int d = 0; d < DIM; d++)
            out[d] += weight * v[rows[i] * stride + d];
    }
    for (int d = 0; d < DIM; d++)
        out[d] /= sum;
}

static void stages_are_the_one_call(void)
{
    int64_t kept, non_finite = -1, pairs = TOKENS * KV_HEADS;
    uint64_t workspace_bytes;
    compactor_plan plan = make_plan(COMPACTOR_SELECT_SEQUENCE, 0.4, &kept, &workspace_bytes);
    compactor_rotary rotary = { .struct_size = sizeof rotary, .style = COMPACTOR_ROTARY_HALF, .rotary_dim = DIM, .theta = 10000 };
    compactor_layer layer = { .struct_size = sizeof layer, .key = &keys, .value = &values, .query = &queries, .rotary = &rotary };
    static float leverage[TOKENS * KV_HEADS], attention[TOKENS * KV_HEADS], scores[TOKENS * KV_HEADS];
    static int32_t indices[2][TOKENS * KV_HEADS], offsets[2][KV_HEADS + 1];
    static float rows[2][TOKENS * KV_HEADS * DIM], rows_of_values[TOKENS * KV_HEADS * DIM];
    uint64_t bytes = (uint64_t)kept * DIM * sizeof(float);
    void *workspace = aligned_alloc(256, workspace_bytes);

    CHECK(compactor_leverage(backend, plan, &keys, &rotary, NULL, 0, leverage, pairs));
    CHECK(compactor_attention_scores(backend, plan, &queries, &keys, attention, pairs));
    CHECK(compactor_fuse(backend, plan, leverage, attention, NULL, scores, pairs, &non_finite));
    CHECK(compactor_select(backend, plan, scores, pairs, indices[0], kept, offsets[0], KV_HEADS + 1));
    CHECK(compactor_compact(backend, plan, &keys, indices[0], kept, offsets[0], KV_HEADS + 1, rows[0], bytes));
    CHECK(compactor_compress_layer(backend, plan, &layer, workspace, workspace_bytes, indices[1], kept, offsets[1], KV_HEADS + 1, rows[1], bytes, rows_of_values, bytes));
    EXPECT(non_finite == 0);
    EXPECT(memcmp(indices[0], indices[1], (size_t)kept * sizeof(int32_t)) == 0 && memcmp(offsets[0], offsets[1], sizeof offsets[0]) == 0);
    EXPECT(memcmp(rows[0], rows[1], bytes) == 0);
    for (int32_t head = 0; head < KV_HEADS; head++)
        for (int32_t i = offsets[0][head]; i < offsets[0][head + 1]; i++) {
            EXPECT(memcmp(&rows[0][i * DIM], &key[(indices[0][i] * KV_HEADS + head) * DIM], DIM * sizeof(float)) == 0);
            EXPECT(memcmp(&rows_of_values[i * DIM], &value[(indices[0][i] * KV_HEADS + head) * DIM], DIM * sizeof(float)) == 0);
        }
    /* a chunk of queries is a distribution over its keys: the scores of a full chunk of C tokens sum to C G */
    int32_t chunk = options.attention_chunk;
    options.attention_chunk = 64;
    compactor_plan chunked = make_plan(COMPACTOR_SELECT_SEQUENCE, 0.4, &kept, &workspace_bytes);
    CHECK(compactor_attention_scores(backend, chunked, &queries, &keys, attention, pairs));
    double sum = 0;
    for (int t = 0; t < 64; t++)
        sum += attention[t * KV_HEADS];
    EXPECT(fabs(sum - 64.0 * GROUP) < 1e-3);
    options.attention_chunk = chunk;
    CHECK(compactor_plan_destroy(chunked));
    CHECK(compactor_plan_destroy(plan));
    free(workspace);
}

/* A cache as vLLM and FlashInfer have it, [blocks, 2, block_size, Hkv, D]: keys and values of a block side by side. */
static void host_cache_is_compacted_in_place(void)
{
    enum { BLOCK = 16, BLOCKS = 20, HELD = (TOKENS + BLOCK - 1) / BLOCK, HALF = BLOCK * KV_HEADS * DIM };
    static float cache[BLOCKS * 2 * HALF];
    int32_t table[HELD], length = -1, shared_length = 0;
    int64_t kept;
    uint64_t workspace_bytes;
    for (int i = 0; i < HELD; i++)
        table[i] = (7 * i + 3) % BLOCKS;
    for (int t = 0; t < TOKENS; t++) {
        float *at = cache + (table[t / BLOCK] * 2) * HALF + (t % BLOCK) * KV_HEADS * DIM;
        memcpy(at, &key[t * KV_HEADS * DIM], KV_HEADS * DIM * sizeof(float));
        memcpy(at + HALF, &value[t * KV_HEADS * DIM], KV_HEADS * DIM * sizeof(float));
    }
    compactor_paged_view view = { .struct_size = sizeof view, .keys = cache, .values = cache + HALF, .bytes = sizeof cache - HALF * sizeof(float), .blocks = BLOCKS, .block_size = BLOCK,
                                  .kv_heads = KV_HEADS, .dim = DIM, .block_stride = 2 * HALF, .slot_stride = KV_HEADS * DIM, .head_stride = DIM };
    compactor_layer layer = { .struct_size = sizeof layer, .key = &keys, .value = &values, .query = &queries, .key_pre_rope = &keys };
    compactor_plan ragged = make_plan(COMPACTOR_SELECT_SEQUENCE, 0.3, &kept, &workspace_bytes);
    static int32_t indices[TOKENS * KV_HEADS], offsets[KV_HEADS + 1];
    EXPECT(compactor_host_cache_compact(backend, &view, ragged, table, HELD, HELD, indices, kept, offsets, KV_HEADS + 1, &length, 1) == COMPACTOR_UNSUPPORTED);
    CHECK(compactor_plan_destroy(ragged));

    compactor_plan plan = make_plan(COMPACTOR_SELECT_HEAD, 0.3, &kept, &workspace_bytes);
    void *workspace = aligned_alloc(256, workspace_bytes);
    CHECK(compactor_compress_layer(backend, plan, &layer, workspace, workspace_bytes, indices, kept, offsets, KV_HEADS + 1, NULL, 0, NULL, 0));
    int32_t twice = table[1];
    table[1] = table[0];
    EXPECT(compactor_host_cache_compact(backend, &view, plan, table, HELD, HELD, indices, kept, offsets, KV_HEADS + 1, &length, 1) == COMPACTOR_INVALID_ARGUMENT && length == -1);
    table[1] = twice;
    CHECK(compactor_host_cache_compact(backend, &view, plan, table, HELD, HELD, indices, kept, offsets, KV_HEADS + 1, &length, 1));
    EXPECT(length == kept / KV_HEADS);

    compactor_tensor one = packed(query, 1, QUERY_HEADS, COMPACTOR_FLOAT32, sizeof(float));
    float output[QUERY_HEADS * DIM], lse[QUERY_HEADS];
    shared_length = length;
    CHECK(compactor_decode_attention(backend, &view, &one, table, HELD, HELD, &shared_length, 1, NULL, output, QUERY_HEADS * DIM, lse, QUERY_HEADS));
    for (int q = 0; q < QUERY_HEADS; q++) {
        double expected[DIM];
        int head = q / GROUP;
        plain_attention(&query[q * DIM], &key[head * DIM], &value[head * DIM], indices + offsets[head], length, KV_HEADS * DIM, expected);
        for (int d = 0; d < DIM; d++)
            EXPECT(fabs(expected[d] - output[q * DIM + d]) < 1e-5);
        EXPECT(isfinite(lse[q]));
    }
    CHECK(compactor_plan_destroy(plan));
    free(workspace);
}

static void tables_are_what_sequences_say(void)
{
    compactor_cache_options pages = { .struct_size = sizeof pages, .layers = 1, .kv_heads = KV_HEADS, .head_dim = DIM, .blocks = 64, .block_size = 16 };
    compactor_cache_info info = { .struct_size = sizeof info };
    compactor_tables_info of = { .struct_size = sizeof of };
    compactor_cache cache;
    compactor_sequence batch[2];
    compactor_tables tables;
    int64_t kept;
    uint64_t unused;
    compactor_plan plan = make_plan(COMPACTOR_SELECT_SEQUENCE, 0.35, &kept, &unused);
    compactor_layer layer = { .struct_size = sizeof layer, .key = &keys, .value = &values, .query = &queries, .key_pre_rope = &keys };
    CHECK(compactor_cache_create(backend, &pages, &cache));
    CHECK(compactor_sequence_create(cache, &batch[0]));
    CHECK(compactor_sequence_create(cache, &batch[1]));
    CHECK(compactor_sequence_compress(&batch[0], 1, 0, plan, &layer, NULL, NULL));
    CHECK(compactor_sequence_store(batch[1], 0, &keys, &values, 0, 5, 0));
    CHECK(compactor_tables_create(batch, 2, 0, &tables));
    CHECK(compactor_tables_describe(tables, &of));
    CHECK(compactor_cache_describe(cache, &info));
    EXPECT(of.rows == 2 * KV_HEADS && of.host_indptr[0] == 0 && of.host_indptr[of.rows] == of.pages);
    int32_t total = 0;
    for (int b = 0; b < 2; b++) {
        int32_t lengths[KV_HEADS], end = 0;
        CHECK(compactor_sequence_lengths(batch[b], 0, lengths, KV_HEADS, &end));
        EXPECT(end == (b == 0 ? TOKENS : 5));
        for (int h = 0; h < KV_HEADS; h++) {
            int row = b * KV_HEADS + h, blocks = (lengths[h] + 15) / 16;
            total += lengths[h];
            EXPECT(of.host_lengths[row] == lengths[h] && of.host_indptr[row + 1] - of.host_indptr[row] == blocks && of.host_last_page_lengths[row] == (lengths[h] - 1) % 16 + 1);
            for (int i = 0; i < of.row_stride; i++)
                EXPECT(of.host_tables[row * of.row_stride + i] == (i < blocks ? of.host_indices[of.host_indptr[row] + i] : -1));
        }
    }
    EXPECT(total == kept + 5 * KV_HEADS);
    EXPECT(memcmp(of.host_tables, of.device_tables, (size_t)(of.rows * of.row_stride) * sizeof(int32_t)) == 0);
    EXPECT(memcmp(of.host_indices, of.device_indices, (size_t)of.pages * sizeof(int32_t)) == 0);

    /* the library's own memory through the general call, as an engine's kernel would read it, is the special call */
    compactor_paged_view view = { .struct_size = sizeof view, .keys = (void *)info.keys, .values = (void *)info.values, .bytes = (uint64_t)info.blocks * 16 * DIM * sizeof(float),
                                  .blocks = info.blocks, .block_size = 16, .kv_heads = KV_HEADS, .dim = DIM, .block_stride = 16 * DIM, .slot_stride = DIM, .head_stride = 0 };
    compactor_tensor two = packed(query, 2, QUERY_HEADS, COMPACTOR_FLOAT32, sizeof(float));
    float general[2 * QUERY_HEADS * DIM], special[2 * QUERY_HEADS * DIM];
    compactor_decode_options scaled = { .struct_size = sizeof scaled, .scale = 0.1, .soft_cap = 20 };
    CHECK(compactor_decode_attention(backend, &view, &two, of.device_tables, (int64_t)of.rows * of.row_stride, of.row_stride, of.device_lengths, of.rows, &scaled, general,
                                     2 * QUERY_HEADS * DIM, NULL, 0));
    CHECK(compactor_sequence_attend(batch, 2, 0, &two, &scaled, special, 2 * QUERY_HEADS * DIM, NULL, 0));
    EXPECT(memcmp(general, special, sizeof general) == 0);
    CHECK(compactor_tables_destroy(tables));
    CHECK(compactor_sequence_free(batch[0]));
    CHECK(compactor_sequence_free(batch[1]));
    CHECK(compactor_cache_destroy(cache));
    CHECK(compactor_plan_destroy(plan));
}

static void bytes_of_unknown_format_are_kept(void)
{
    static unsigned char bytes[TOKENS * KV_HEADS * DIM], got_keys[TOKENS * DIM], got_values[TOKENS * DIM];
    static int32_t positions[TOKENS];
    for (size_t i = 0; i < sizeof bytes; i++)
        bytes[i] = (unsigned char)(i * 31 + i / 251);
    compactor_cache_options pages = { .struct_size = sizeof pages, .layers = 1, .kv_heads = KV_HEADS, .head_dim = DIM, .element_type = COMPACTOR_OPAQUE8, .blocks = 64, .block_size = 16 };
    compactor_tensor tensor = packed(bytes, TOKENS, KV_HEADS, COMPACTOR_OPAQUE8, 1), attend = packed(query, 1, QUERY_HEADS, COMPACTOR_FLOAT32, sizeof(float));
    compactor_cache cache;
    compactor_sequence sequence;
    float output[QUERY_HEADS * DIM];
    CHECK(compactor_cache_create(backend, &pages, &cache));
    CHECK(compactor_sequence_create(cache, &sequence));
    CHECK(compactor_sequence_store(sequence, 0, &tensor, &tensor, 50, TOKENS - 50, 50));
    CHECK(compactor_sequence_read(sequence, 0, 1, got_keys, (TOKENS - 50) * DIM, got_values, (TOKENS - 50) * DIM, positions, TOKENS - 50));
    for (int t = 50; t < TOKENS; t++)
        EXPECT(positions[t - 50] == t && memcmp(&got_keys[(t - 50) * DIM], &bytes[(t * KV_HEADS + 1) * DIM], DIM) == 0);
    EXPECT(compactor_sequence_attend(&sequence, 1, 0, &attend, NULL, output, QUERY_HEADS * DIM, NULL, 0) == COMPACTOR_UNSUPPORTED);
    CHECK(compactor_sequence_free(sequence));
    CHECK(compactor_cache_destroy(cache));
}

static void calibration_follows_its_formula(const char *path)
{
    compactor_calibration_sample samples[12];
    double alpha = -2.5, beta = -1;
    for (int i = 0; i < 12; i++) {
        double r = 0.1 + 0.2 * (i % 4), nll = 1 + i / 4, b = alpha * nll + beta;
        samples[i] = (compactor_calibration_sample){ .struct_size = sizeof *samples, .retention = r, .context_nll = nll, .quality = expm1(r * b) / expm1(b) };
    }
    compactor_calibration fitted = { .struct_size = sizeof fitted }, loaded = fitted;
    CHECK(compactor_calibration_fit(samples, 12, 4, &fitted));
    EXPECT(fabs(fitted.alpha - alpha) < 1e-5 && fabs(fitted.beta - beta) < 1e-5 && fitted.samples == 12 && fitted.error < 1e-6);
    double retention, quality, b = fitted.alpha * 2 + fitted.beta;
    CHECK(compactor_calibration_retention(&fitted, 0.95, 2, &retention));
    CHECK(compactor_calibration_quality(&fitted, retention, 2, &quality));
    EXPECT(fabs(retention - log1p(0.95 * expm1(b)) / b) < 1e-9 && fabs(quality - 0.95) < 1e-9);
    CHECK(compactor_calibration_save(path, &fitted));
    CHECK(compactor_calibration_load(path, &loaded));
    EXPECT(memcmp(&fitted, &loaded, sizeof fitted) == 0);
    remove(path);
    EXPECT(compactor_calibration_load(path, &loaded) == COMPACTOR_IO_ERROR);
    samples[3].quality = NAN;
    EXPECT(compactor_calibration_fit(samples, 12, 4, &fitted) == COMPACTOR_INVALID_ARGUMENT);
}

int main(void)
{
    int64_t handles;
    for (size_t i = 0; i < sizeof key / sizeof *key; i++) {
        key[i] = next();
        value[i] = next();
    }
    for (size_t i = 0; i < sizeof query / sizeof *query; i++)
        query[i] = next();
    keys = packed(key, TOKENS, KV_HEADS, COMPACTOR_FLOAT32, sizeof(float));
    values = packed(value, TOKENS, KV_HEADS, COMPACTOR_FLOAT32, sizeof(float));
    queries = packed(query, TOKENS, QUERY_HEADS, COMPACTOR_FLOAT32, sizeof(float));
    compactor_backend_options cpu = { .struct_size = sizeof cpu, .kind = COMPACTOR_BACKEND_CPU };
    CHECK(compactor_backend_open(&cpu, &backend));
    CHECK(compactor_options_preset(COMPACTOR_PRESET_PAPER, &options));
    stages_are_the_one_call();
    host_cache_is_compacted_in_place();
    tables_are_what_sequences_say();
    bytes_of_unknown_format_are_kept();
    calibration_follows_its_formula("stages-calibration.json");
    CHECK(compactor_backend_close(backend));
    CHECK(compactor_live_handles(&handles));
    EXPECT(handles == 0);
    puts("all agree");
    return 0;
}
