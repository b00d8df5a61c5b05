/*
 * Opening CUDA: `absent` where libcuda.so.1 is no library, `present` where it is the driver of fake_cuda.c, whose memory is the host's and whose kernels do nothing:
 * what is checked is which context and stream work goes to, what is released, and that nothing in device memory is read on the calling thread.
 */
#define _GNU_SOURCE
#include <compactor.h>

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char logged[4096];

static void remember(void *user_data, int32_t level, const char *message)
{
    (void)user_data, (void)level;
    snprintf(logged, sizeof logged, "%s", message);
}

static void expect(int holds, const char *what)
{
    if (!holds) {
        fprintf(stderr, "not so: %s (last error: %s; logged: %s)\n", what, compactor_last_error(), logged);
        exit(1);
    }
}

static int says(const char *part) { return strstr(compactor_last_error(), part) != NULL; }

static compactor_status open_with(int32_t kind, void *context, void *stream, compactor_backend *backend)
{
    compactor_backend_options options = { .struct_size = sizeof options, .kind = kind, .context = context, .stream = stream };
    *backend = 0;
    logged[0] = '\0';
    return compactor_backend_open(&options, backend);
}

static int32_t kind_of(compactor_backend backend)
{
    compactor_backend_info info = { .struct_size = sizeof info };
    expect(compactor_backend_describe(backend, &info) == COMPACTOR_OK, "a backend describes itself");
    return info.kind;
}

static void falls_back(const char *reason)
{
    int mark;
    compactor_backend backend;
    expect(open_with(COMPACTOR_BACKEND_AUTO, NULL, NULL, &backend) == COMPACTOR_OK && kind_of(backend) == COMPACTOR_BACKEND_CPU, "auto is the CPU");
    expect(strstr(logged, reason) != NULL && strstr(logged, "CPU") != NULL, "and says why");
    expect(compactor_backend_close(backend) == COMPACTOR_OK, "it closes");
    compactor_status refused = open_with(COMPACTOR_BACKEND_CUDA, NULL, NULL, &backend);
    expect(refused != COMPACTOR_OK && backend == 0 && says(reason), "cuda is refused with the reason");
    expect(open_with(COMPACTOR_BACKEND_AUTO, &mark, NULL, &backend) == refused && backend == 0 && says(reason) && says("does not stand in"), "auto with a context does not fall back");
    expect(open_with(COMPACTOR_BACKEND_AUTO, NULL, &mark, &backend) == refused && backend == 0, "nor with a stream");
    expect(logged[0] == '\0', "what fails announces nothing");
}

static int (*get_alive)(void), (*get_retained)(void), (*get_depth)(void);
static void *(*get_context)(void), *(*get_stream)(void);
static void (*fail)(const char *call, int status), (*fail_later)(const char *call, int status, int after);

static void released(void) { expect(get_alive() == 0 && get_retained() == 0 && get_depth() == 0, "all that was made is released, and no context stays current"); }

static compactor_cache new_cache(compactor_backend backend)
{
    compactor_cache cache;
    compactor_cache_options options = { .struct_size = sizeof options, .layers = 1, .kv_heads = 1, .head_dim = 64, .blocks = 8, .block_size = 16 };
    expect(compactor_cache_create(backend, &options, &cache) == COMPACTOR_OK, "a cache is made in device memory");
    return cache;
}

/* Two heads' tokens in memory nobody can read: right only if none of it is read here. */
static void stages_read_nothing(compactor_backend backend)
{
    enum { TOKENS = 100, DIM = 64 };
    char *device = (char *)0x10000;
    int32_t cu[] = { 0, TOKENS };
    compactor_shape shape = { .struct_size = sizeof shape, .sequences = 1, .cu_seqlens = cu, .kv_heads = 1, .head_dim = DIM };
    compactor_options method = { .struct_size = sizeof method };
    compactor_budget budget = { .struct_size = sizeof budget, .amount = 0.5 };
    compactor_plan plan;
    compactor_plan_info info = { .struct_size = sizeof info };
    expect(compactor_options_preset(COMPACTOR_PRESET_PAPER, &method) == COMPACTOR_OK && compactor_plan_create(&shape, &method, &budget, 1, &plan) == COMPACTOR_OK
           && compactor_plan_describe(plan, &info) == COMPACTOR_OK, "a plan");
    compactor_tensor keys = { .struct_size = sizeof keys, .data = device, .data_bytes = TOKENS * DIM * 4, .tokens = TOKENS, .heads = 1, .dim = DIM, .token_stride = DIM, .head_stride = DIM };
    float *leverage = (float *)(device + 0x10000), *scores = (float *)(device + 0x20000);
    int32_t *indices = (int32_t *)(device + 0x30000), *offsets = (int32_t *)(device + 0x40000);
    uint64_t bytes = (uint64_t)info.kept_pairs * DIM * 4;
    expect(compactor_leverage(backend, plan, &keys, NULL, NULL, 0, leverage, info.pairs) == COMPACTOR_OK
           && compactor_fuse(backend, plan, leverage, NULL, NULL, scores, info.pairs, NULL) == COMPACTOR_OK
           && compactor_select(backend, plan, scores, info.pairs, indices, info.kept_pairs, offsets, 2) == COMPACTOR_OK
           && compactor_compact(backend, plan, &keys, indices, info.kept_pairs, offsets, 2, device + 0x50000, bytes) == COMPACTOR_OK, "stages are queued");
    compactor_layer layer = { .struct_size = sizeof layer, .policy = COMPACTOR_POLICY_LEVERAGE, .key = &keys, .value = &keys, .key_pre_rope = &keys };
    expect(compactor_compress_layer(backend, plan, &layer, device + 0x60000, info.workspace_bytes, indices, info.kept_pairs, offsets, 2, device + 0x70000, bytes,
                                    device + 0x80000, bytes) == COMPACTOR_OK, "so is a layer in one call");
    compactor_paged_view view = { .struct_size = sizeof view, .keys = device, .values = device + 0x10000, .bytes = 0x10000, .blocks = 8, .block_size = 16, .kv_heads = 1,
                                  .dim = DIM, .block_stride = 16 * DIM, .slot_stride = DIM };
    compactor_tensor query = keys;
    query.data = device + 0x90000, query.tokens = 1, query.data_bytes = DIM * 4;
    expect(compactor_decode_attention(backend, &view, &query, indices, 8, 8, offsets, 1, NULL, scores, DIM, NULL, 0) == COMPACTOR_OK, "so is attention, whose tables are the device's");
    expect(compactor_backend_synchronize(backend) == COMPACTOR_OK, "and nothing is found wrong");
    fail("cuLaunchKernel", 701);
    expect(compactor_leverage(backend, plan, &keys, NULL, NULL, 0, leverage, info.pairs) == COMPACTOR_DEVICE_FAILED && says("CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES"), "a refused launch is told");
    fail("", 0);
    expect(compactor_plan_destroy(plan) == COMPACTOR_OK, "the plan goes");
}

static void tables_are_on_both_sides(compactor_cache cache)
{
    static float rows[20 * 64];
    compactor_sequence sequence;
    compactor_tables tables;
    compactor_tables_info info = { .struct_size = sizeof info };
    compactor_tensor tensor = { .struct_size = sizeof tensor, .data = rows, .data_bytes = sizeof rows, .tokens = 20, .heads = 1, .dim = 64, .token_stride = 64, .head_stride = 64 };
    int32_t length = 0, end = 0;
    expect(compactor_sequence_create(cache, &sequence) == COMPACTOR_OK && compactor_sequence_store(sequence, 0, &tensor, &tensor, 0, 20, 5) == COMPACTOR_OK, "tokens are stored");
    expect(compactor_sequence_lengths(sequence, 0, &length, 1, &end) == COMPACTOR_OK && length == 20 && end == 25, "lengths are the host's, and there at once");
    expect(compactor_tables_create(&sequence, 1, 0, &tables) == COMPACTOR_OK && compactor_tables_describe(tables, &info) == COMPACTOR_OK, "tables are exported");
    expect(info.rows == 1 && info.row_stride == 2 && info.pages == 2 && info.host_lengths[0] == 20 && info.host_last_page_lengths[0] == 4, "as they are");
    expect(info.device_tables != info.host_tables && memcmp(info.device_tables, info.host_tables, 2 * sizeof(int32_t)) == 0 && info.device_lengths[0] == 20
           && memcmp(info.device_indptr, info.host_indptr, 2 * sizeof(int32_t)) == 0 && memcmp(info.device_indices, info.host_indices, 2 * sizeof(int32_t)) == 0
           && info.device_last_page_lengths[0] == 4, "on both sides");
    expect(compactor_tables_destroy(tables) == COMPACTOR_OK && compactor_sequence_free(sequence) == COMPACTOR_OK, "they go");
}

static void present(void)
{
    void *driver = dlopen("libcuda.so.1", RTLD_NOW);
    if (driver == NULL) {
        fprintf(stderr, "%s\n", dlerror());
        exit(2);
    }
    *(void **)&get_alive = dlsym(driver, "fake_alive");
    *(void **)&get_retained = dlsym(driver, "fake_retained");
    *(void **)&get_depth = dlsym(driver, "fake_depth");
    *(void **)&get_context = dlsym(driver, "fake_context");
    *(void **)&get_stream = dlsym(driver, "fake_stream");
    *(void **)&fail = dlsym(driver, "fake_fail");
    *(void **)&fail_later = dlsym(driver, "fake_fail_later");

    compactor_backend backend;
    compactor_backend_info info = { .struct_size = sizeof info };
    expect(open_with(COMPACTOR_BACKEND_CUDA, (void *)0x77, (void *)0x780, &backend) == COMPACTOR_OK, "cuda opens in a context and on a stream of the caller's");
    expect(compactor_backend_describe(backend, &info) == COMPACTOR_OK && info.kind == COMPACTOR_BACKEND_CUDA && strstr(info.description, "Fake GPU") != NULL
           && info.threads == 0 && info.simd_bits == 0 && strncmp(info.compiler, "NVRTC ", 6) == 0, "and says what it is, and what compiled its kernels");
    expect(get_retained() == 0, "the primary context is left alone");
    compactor_cache cache = new_cache(backend);
    expect(get_context() == (void *)0x77 && get_stream() == (void *)0x780 && get_depth() == 0, "work goes to them");
    tables_are_on_both_sides(cache);
    stages_read_nothing(backend);
    expect(get_context() == (void *)0x77 && get_stream() == (void *)0x780 && get_depth() == 0, "all of it");
    expect(compactor_backend_close(backend) == COMPACTOR_IN_USE, "a backend is not closed under its cache");
    expect(compactor_cache_destroy(cache) == COMPACTOR_OK && compactor_backend_close(backend) == COMPACTOR_OK, "it closes after it");
    released();

    expect(open_with(COMPACTOR_BACKEND_AUTO, NULL, NULL, &backend) == COMPACTOR_OK && kind_of(backend) == COMPACTOR_BACKEND_CUDA && logged[0] == '\0', "auto is cuda where it can be had");
    cache = new_cache(backend);
    expect(get_retained() == 1 && get_context() == (void *)0x1000, "in the primary context");
    expect(get_stream() == (void *)1, "on the legacy default stream, which waits for work of the host's there");
    compactor_cache second;
    fail_later("cuMemAllocAsync", 2, 1);
    compactor_cache_options large = { .struct_size = sizeof large, .layers = 1, .kv_heads = 1, .head_dim = 128, .blocks = 64, .block_size = 16 };
    expect(compactor_cache_create(backend, &large, &second) == COMPACTOR_OUT_OF_MEMORY && says("bytes are free"), "too little memory has a status of its own");
    fail("cuMemAllocAsync", 2);
    large.blocks = 16; /* of another size, so that the pool of what was given back is let go */
    int allocated = get_alive();
    expect(compactor_cache_create(backend, &large, &second) == COMPACTOR_OUT_OF_MEMORY && get_alive() < allocated, "what a cache that cannot be had took is free for the next");
    fail("", 0);
    expect(compactor_cache_destroy(cache) == COMPACTOR_OK && compactor_backend_close(backend) == COMPACTOR_OK, "it closes");
    released();

    expect(open_with(COMPACTOR_BACKEND_CUDA, NULL, (void *)2, &backend) == COMPACTOR_INVALID_ARGUMENT && says("per-thread"), "the per-thread default stream is refused");
    compactor_backend_options options = { .struct_size = sizeof options, .kind = COMPACTOR_BACKEND_CUDA, .device = 3 };
    expect(compactor_backend_open(&options, &backend) == COMPACTOR_NO_DEVICE && says("device 3"), "a device that is not there is named");
    options = (compactor_backend_options){ .struct_size = sizeof options, .kind = COMPACTOR_BACKEND_CUDA, .threads = 2 };
    expect(compactor_backend_open(&options, &backend) == COMPACTOR_INVALID_ARGUMENT && says("options.threads"), "options of the CPU are refused");
    released();
    fail("cuInit", 100);
    falls_back("cuInit failed");
    released();
}

int main(int argc, char **argv)
{
    int64_t handles;
    if (argc != 2)
        return 2;
    expect(compactor_set_log(remember, NULL) == COMPACTOR_OK, "a log callback is taken");
    if (strcmp(argv[1], "present") == 0)
        present();
    else {
        falls_back("No CUDA driver was found. Looked at: libcuda.so.1");
        compactor_backend backend;
        expect(open_with(COMPACTOR_BACKEND_CUDA, NULL, NULL, &backend) == COMPACTOR_NO_DEVICE, "no driver is no device");
    }
    expect(compactor_live_handles(&handles) == COMPACTOR_OK && handles == 0, "nothing is left");
    puts("as promised");
    return 0;
}
