/*
 * A host engine in small: prefill of two layers goes through compression into a paged cache, one token is decoded, and the result is compared with plain
 * attention over what the cache says it kept. Exit status 0 if it agrees.
 */
#include <compactor.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { LAYERS = 2, TOKENS = 400, QUERY_HEADS = 8, KV_HEADS = 2, DIM = 64, BLOCKS = 64 };

/* What an engine would do: name the call and stop. */
#define CHECK(call)                                                                                             \
    do {                                                                                                        \
        compactor_status status_ = (call);                                                                      \
        if (status_ != COMPACTOR_OK) {                                                                          \
            fprintf(stderr, "%s: %s: %s\n", #call, compactor_status_name(status_), compactor_last_error());     \
            exit(1);                                                                                            \
        }                                                                                                       \
    } while (0)

static void log_message(void *user_data, int32_t level, const char *message)
{
    (void)user_data;
    fprintf(stderr, "%s: %s\n", level == COMPACTOR_LOG_WARNING ? "warning" : "info", message);
}

/* Keys, values and queries as a prefill would leave them. */
static float *random_rows(size_t count, uint32_t seed)
{
    float *rows = malloc(count * sizeof *rows);
    for (size_t i = 0; i < count; i++) {
        seed = seed * 1664525u + 1013904223u;
        rows[i] = (float)(seed >> 8) / 8388608.0f - 1.0f;
    }
    return rows;
}

static compactor_tensor packed(const float *data, int32_t tokens, int32_t heads)
{
    compactor_tensor tensor = { .struct_size = sizeof tensor, .element_type = COMPACTOR_FLOAT32 };
    tensor.data = data;
    tensor.data_bytes = (uint64_t)tokens * (uint64_t)heads * DIM * sizeof(float);
    tensor.tokens = tokens;
    tensor.heads = heads;
    tensor.dim = DIM;
    tensor.token_stride = (int64_t)heads * DIM;
    tensor.head_stride = DIM;
    return tensor;
}

/* Largest difference from attention over the rows that the cache gives back, in double. */
static double difference(compactor_sequence sequence, int32_t layer, const float *query, const float *output)
{
    int32_t lengths[KV_HEADS], end;
    double largest = 0;
    CHECK(compactor_sequence_lengths(sequence, layer, lengths, KV_HEADS, &end));
    for (int32_t head = 0; head < KV_HEADS; head++) {
        size_t n = (size_t)lengths[head], bytes = n * DIM * sizeof(float);
        float *keys = malloc(bytes), *values = malloc(bytes);
        int32_t *positions = malloc(n * sizeof *positions);
        CHECK(compactor_sequence_read(sequence, layer, head, keys, bytes, values, bytes, positions, (int32_t)n));
        for (int g = 0; g < QUERY_HEADS / KV_HEADS; g++) {
            const float *q = query + (head * (QUERY_HEADS / KV_HEADS) + g) * DIM;
            double out[DIM] = { 0 }, sum = 0;
            for (size_t i = 0; i < n; i++) {
                double logit = 0;
                for (int d = 0; d < DIM; d++)
                    logit += (double)q[d] * keys[i * DIM + d];
                double weight = exp(logit / sqrt(DIM));
                sum += weight;
                for (int d = 0; d < DIM; d++)
                    out[d] += weight * values[i * DIM + d];
            }
            for (int d = 0; d < DIM; d++)
                largest = fmax(largest, fabs(out[d] / sum - output[q - query + d]));
        }
        free(keys);
        free(values);
        free(positions);
    }
    return largest;
}

int main(void)
{
    if (compactor_abi_version() != COMPACTOR_ABI_VERSION) {
        fprintf(stderr, "built for ABI %d, found %u\n", COMPACTOR_ABI_VERSION, compactor_abi_version());
        return 1;
    }
    CHECK(compactor_set_log(log_message, NULL));

    compactor_backend backend;
    compactor_backend_info backend_info = { .struct_size = sizeof backend_info };
    /* the tensors below are in host memory, which a CUDA backend does not take */
    compactor_backend_options backend_options = { .struct_size = sizeof backend_options, .kind = COMPACTOR_BACKEND_CPU };
    CHECK(compactor_backend_open(&backend_options, &backend));
    CHECK(compactor_backend_describe(backend, &backend_info));
    printf("libcompactor_native %s on the %s\n", compactor_version(), backend_info.description);

    /* Once: the pool for all layers, and a sequence. */
    compactor_cache_options cache_options = { .struct_size = sizeof cache_options, .layers = LAYERS, .kv_heads = KV_HEADS, .head_dim = DIM,
                                              .element_type = COMPACTOR_FLOAT32, .blocks = BLOCKS, .block_size = 16 };
    compactor_cache cache;
    compactor_sequence sequence;
    CHECK(compactor_cache_create(backend, &cache_options, &cache));
    CHECK(compactor_sequence_create(cache, &sequence));

    compactor_options options = { .struct_size = sizeof options };
    CHECK(compactor_options_preset(COMPACTOR_PRESET_PAPER, &options));
    compactor_budget budget = { .struct_size = sizeof budget, .unit = COMPACTOR_BUDGET_RETENTION, .amount = 0.5 };
    int32_t cu_seqlens[] = { 0, TOKENS };

    float *key = NULL, *value = NULL, *query = NULL;
    compactor_compaction compactions[LAYERS];
    for (int32_t layer = 0; layer < LAYERS; layer++) {
        compactor_shape shape = { .struct_size = sizeof shape, .sequences = 1, .cu_seqlens = cu_seqlens, .query_heads = QUERY_HEADS, .kv_heads = KV_HEADS,
                                  .head_dim = DIM, .element_type = COMPACTOR_FLOAT32, .layer = layer };
        compactor_plan plan;
        CHECK(compactor_plan_create(&shape, &options, &budget, 1, &plan));

        key = random_rows(TOKENS * KV_HEADS * DIM, 3u * (uint32_t)layer + 1u);
        value = random_rows(TOKENS * KV_HEADS * DIM, 3u * (uint32_t)layer + 2u);
        query = random_rows(TOKENS * QUERY_HEADS * DIM, 3u * (uint32_t)layer + 3u);
        compactor_tensor keys = packed(key, TOKENS, KV_HEADS), values = packed(value, TOKENS, KV_HEADS), queries = packed(query, TOKENS, QUERY_HEADS);
        compactor_rotary rotary = { .struct_size = sizeof rotary, .style = COMPACTOR_ROTARY_HALF, .rotary_dim = DIM, .theta = 10000 };
        compactor_layer inputs = { .struct_size = sizeof inputs, .policy = COMPACTOR_POLICY_COMPACTOR, .key = &keys, .value = &values, .query = &queries,
                                   .rotary = &rotary };
        CHECK(compactor_sequence_compress(&sequence, 1, layer, plan, &inputs, NULL, &compactions[layer]));
        CHECK(compactor_plan_destroy(plan));
        CHECK(compactor_backend_synchronize(backend)); /* the inputs have been read */
        free(key);
        free(value);
        free(query);
    }
    for (int32_t layer = 0; layer < LAYERS; layer++)
        CHECK(compactor_compaction_complete(compactions[layer])); /* blocks reserved too much are free again */

    compactor_cache_info cache_info = { .struct_size = sizeof cache_info };
    CHECK(compactor_cache_describe(cache, &cache_info));
    printf("%d tokens a head: %d of %d blocks in use, %lld slots unused\n", TOKENS, cache_info.blocks - cache_info.free_blocks, cache_info.blocks,
           (long long)cache_info.unused_slots);

    /* One decode step in every layer: the new token goes behind the survivors, at its own position. */
    double largest = 0;
    for (int32_t layer = 0; layer < LAYERS; layer++) {
        int32_t position = TOKENS;
        float output[QUERY_HEADS * DIM];
        key = random_rows(KV_HEADS * DIM, 100u + (uint32_t)layer);
        value = random_rows(KV_HEADS * DIM, 200u + (uint32_t)layer);
        query = random_rows(QUERY_HEADS * DIM, 300u + (uint32_t)layer);
        compactor_tensor keys = packed(key, 1, KV_HEADS), values = packed(value, 1, KV_HEADS), queries = packed(query, 1, QUERY_HEADS);
        CHECK(compactor_sequence_append(&sequence, 1, layer, &keys, &values, &position));
        CHECK(compactor_sequence_attend(&sequence, 1, layer, &queries, NULL, output, QUERY_HEADS * DIM, NULL, 0));
        CHECK(compactor_backend_synchronize(backend));
        largest = fmax(largest, difference(sequence, layer, query, output));
        free(key);
        free(value);
        free(query);
    }
    printf("decode attention differs from plain attention over the survivors by %.1e at most\n", largest);

    int64_t handles;
    CHECK(compactor_sequence_free(sequence));
    CHECK(compactor_cache_destroy(cache));
    CHECK(compactor_backend_close(backend));
    CHECK(compactor_live_handles(&handles));
    printf("%lld handles left\n", (long long)handles);
    return largest < 1e-5 && handles == 0 ? 0 : 1;
}
