/*
 * 16 threads share one backend and one cache, each with sequences of its own: every round compresses, decodes, forks, recompresses and frees, and must give the
 * bits that the same work gave on one thread. Threads are made anew every ten rounds. Resident memory and live handles must not grow after the first quarter of the
 * rounds. Arguments: rounds (default 1000), seconds before it counts as a deadlock (default 300).
 */
#define _DEFAULT_SOURCE
#include <compactor.h>

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { THREADS = 16, ROUNDS_OF_A_THREAD = 10, TOKENS = 96, QUERY_HEADS = 4, KV_HEADS = 2, DIM = 32, LAYERS = 2, PAIRS = TOKENS * KV_HEADS };

typedef struct {
    int32_t lengths[2][KV_HEADS];
    float output[3][QUERY_HEADS * DIM];
    float survivors[PAIRS * DIM];
} answer;

typedef struct {
    float key[TOKENS * KV_HEADS * DIM], value[TOKENS * KV_HEADS * DIM], query[TOKENS * QUERY_HEADS * DIM];
    answer expected;
    int wrong;
} job;

static compactor_backend backend;
static compactor_cache cache;
static compactor_plan plan;
static compactor_options options = { .struct_size = sizeof options };
static const compactor_budget budget = { .struct_size = sizeof budget, .unit = COMPACTOR_BUDGET_RETENTION, .amount = 0.5 };
static job jobs[THREADS];

#define CHECK(call)                                                                                                          \
    do {                                                                                                                     \
        compactor_status status_ = (call);                                                                                   \
        if (status_ != COMPACTOR_OK) {                                                                                       \
            fprintf(stderr, "%s: %s: %s\n", #call, compactor_status_name(status_), compactor_last_error());                  \
            exit(1);                                                                                                         \
        }                                                                                                                    \
    } while (0)

static compactor_tensor packed(const float *data, int32_t tokens, int32_t heads)
{
    return (compactor_tensor){ .struct_size = sizeof(compactor_tensor), .data = data, .data_bytes = (uint64_t)tokens * (uint64_t)heads * DIM * sizeof(float),
                               .tokens = tokens, .heads = heads, .dim = DIM, .token_stride = (int64_t)heads * DIM, .head_stride = DIM };
}

static void work(job *of, answer *out)
{
    compactor_sequence sequence, fork;
    compactor_tensor keys = packed(of->key, TOKENS, KV_HEADS), values = packed(of->value, TOKENS, KV_HEADS), queries = packed(of->query, TOKENS, QUERY_HEADS);
    compactor_tensor one_key = packed(of->key, 1, KV_HEADS), one_value = packed(of->value, 1, KV_HEADS), one_query = packed(of->query, 1, QUERY_HEADS);
    compactor_layer layer = { .struct_size = sizeof layer, .key = &keys, .value = &values, .query = &queries, .key_pre_rope = &keys };
    compactor_compaction compaction;
    int32_t position = TOKENS;
    memset(out, 0, sizeof *out);
    CHECK(compactor_sequence_create(cache, &sequence));
    CHECK(compactor_sequence_compress(&sequence, 1, 0, plan, &layer, NULL, &compaction));
    CHECK(compactor_compaction_complete(compaction));
    CHECK(compactor_sequence_append(&sequence, 1, 0, &one_key, &one_value, &position));
    CHECK(compactor_sequence_lengths(sequence, 0, out->lengths[0], KV_HEADS, NULL));
    CHECK(compactor_sequence_attend(&sequence, 1, 0, &one_query, NULL, out->output[0], QUERY_HEADS * DIM, NULL, 0));

    CHECK(compactor_sequence_fork(sequence, &fork));
    compactor_plan held;
    CHECK(compactor_plan_create_held(&fork, 1, 0, 0, NULL, &options, &budget, 1, &held));
    CHECK(compactor_sequence_recompress(&fork, 1, 0, held, NULL, NULL));
    CHECK(compactor_plan_destroy(held));
    CHECK(compactor_sequence_lengths(fork, 0, out->lengths[1], KV_HEADS, NULL));
    CHECK(compactor_sequence_attend(&fork, 1, 0, &one_query, NULL, out->output[1], QUERY_HEADS * DIM, NULL, 0));

    CHECK(compactor_sequence_store(sequence, 1, &keys, &values, 0, TOKENS, 0));
    CHECK(compactor_sequence_compact(&sequence, 1, 1, plan, &layer, NULL));
    CHECK(compactor_sequence_attend(&sequence, 1, 1, &one_query, NULL, out->output[2], QUERY_HEADS * DIM, NULL, 0));
    int32_t length[KV_HEADS], positions[TOKENS];
    static _Thread_local float rows[TOKENS * DIM];
    CHECK(compactor_sequence_lengths(sequence, 1, length, KV_HEADS, NULL));
    uint64_t bytes = (uint64_t)length[0] * DIM * sizeof(float);
    CHECK(compactor_sequence_read(sequence, 1, 0, out->survivors, bytes, rows, bytes, positions, length[0]));
    CHECK(compactor_sequence_free(sequence));
    CHECK(compactor_sequence_free(fork));
    /* a failure of each thread's own, whose message must be its own too */
    if (compactor_sequence_free(sequence) != COMPACTOR_INVALID_HANDLE || strstr(compactor_last_error(), "closed before") == NULL) {
        fprintf(stderr, "freeing twice: %s\n", compactor_last_error());
        exit(1);
    }
}

static void *run(void *argument)
{
    job *of = argument;
    static _Thread_local answer now;
    for (int i = 0; i < ROUNDS_OF_A_THREAD; i++) {
        work(of, &now);
        of->wrong += memcmp(&now, &of->expected, sizeof now) != 0;
    }
    return NULL;
}

static long resident_kilobytes(void)
{
    long pages = 0, resident = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    if (file == NULL || fscanf(file, "%ld %ld", &pages, &resident) != 2)
        exit(2);
    fclose(file);
    return resident * (sysconf(_SC_PAGESIZE) / 1024);
}

int main(int argc, char **argv)
{
    int rounds = argc > 1 ? atoi(argv[1]) : 1000;
    alarm(argc > 2 ? (unsigned)atoi(argv[2]) : 300);
    int32_t cu[] = { 0, TOKENS };
    compactor_cache_options pages = { .struct_size = sizeof pages, .layers = LAYERS, .kv_heads = KV_HEADS, .head_dim = DIM, .blocks = 1024, .block_size = 16 };
    compactor_shape shape = { .struct_size = sizeof shape, .sequences = 1, .cu_seqlens = cu, .query_heads = QUERY_HEADS, .kv_heads = KV_HEADS, .head_dim = DIM };
    compactor_backend_options cpu = { .struct_size = sizeof cpu, .kind = COMPACTOR_BACKEND_CPU };
    CHECK(compactor_backend_open(&cpu, &backend));
    CHECK(compactor_options_preset(COMPACTOR_PRESET_PAPER, &options));
    CHECK(compactor_plan_create(&shape, &options, &budget, 1, &plan));
    CHECK(compactor_cache_create(backend, &pages, &cache));
    uint32_t seed = 1;
    for (int j = 0; j < THREADS; j++) {
        float *all[] = { jobs[j].key, jobs[j].value, jobs[j].query };
        size_t counts[] = { TOKENS * KV_HEADS * DIM, TOKENS * KV_HEADS * DIM, TOKENS * QUERY_HEADS * DIM };
        for (int a = 0; a < 3; a++)
            for (size_t i = 0; i < counts[a]; i++)
                all[a][i] = (float)((seed = seed * 1664525u + 1013904223u) >> 8) / 8388608.0f - 1.0f;
        work(&jobs[j], &jobs[j].expected);
    }
    int64_t handles_before = 0, handles = 0;
    long memory_before = 0;
    CHECK(compactor_live_handles(&handles_before));
    for (int round = 0; round < rounds; round += ROUNDS_OF_A_THREAD) {
        if (round == rounds / 4 / ROUNDS_OF_A_THREAD * ROUNDS_OF_A_THREAD)
            memory_before = resident_kilobytes();
        pthread_t threads[THREADS];
        for (int j = 0; j < THREADS; j++)
            if (pthread_create(&threads[j], NULL, run, &jobs[j]) != 0)
                return 2;
        for (int j = 0; j < THREADS; j++)
            pthread_join(threads[j], NULL);
    }
    long growth = resident_kilobytes() - memory_before;
    compactor_cache_info info = { .struct_size = sizeof info };
    CHECK(compactor_live_handles(&handles));
    CHECK(compactor_cache_describe(cache, &info));
    int wrong = 0;
    for (int j = 0; j < THREADS; j++)
        wrong += jobs[j].wrong;
    printf("%d threads, %d rounds each: %d wrong answers, %lld handles more, %d blocks not returned, %ld kB more resident (of %ld)\n", THREADS, rounds, wrong,
           (long long)(handles - handles_before), info.blocks - info.free_blocks, growth, memory_before);
    return wrong == 0 && handles == handles_before && info.free_blocks == info.blocks && growth < 4096 ? 0 : 1;
}
