/*
 * What the header promises about the process: loading under a limit of address space, dlclose, fork, the log callback, messages of threads, and what cannot be closed.
 * Argument: path of the library. It is not linked, so that loading is part of the test.
 */
#define _GNU_SOURCE
#include <compactor.h>

#include <dlfcn.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#define FUNCTIONS(f)                                                                                                                                   \
    f(compactor_version) f(compactor_abi_version) f(compactor_status_name) f(compactor_last_error) f(compactor_set_log) f(compactor_live_handles)       \
    f(compactor_backend_open) f(compactor_backend_describe) f(compactor_backend_close) f(compactor_options_preset) f(compactor_plan_create)             \
    f(compactor_plan_destroy) f(compactor_cache_create) f(compactor_cache_destroy) f(compactor_sequence_create) f(compactor_sequence_free)              \
    f(compactor_sequence_lengths) f(compactor_sequence_compress) f(compactor_sequence_store) f(compactor_compaction_ready) f(compactor_compaction_cancel)

#define DECLARE(name) static __typeof__(&name) p_##name;
FUNCTIONS(DECLARE)

static void load(const char *path, void **library)
{
    *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (*library == NULL) {
        fprintf(stderr, "%s\n", dlerror());
        exit(1);
    }
#define FIND(name) *(void **)&p_##name = dlsym(*library, #name);
    FUNCTIONS(FIND)
}

static void expect(int holds, const char *what)
{
    if (!holds) {
        fprintf(stderr, "not so: %s (last error: %s)\n", what, p_compactor_last_error());
        exit(1);
    }
}

static int says(const char *part) { return strstr(p_compactor_last_error(), part) != NULL; }

static char logged[512];
static void *logged_user;
static int32_t logged_level;

static void remember(void *user_data, int32_t level, const char *message)
{
    snprintf(logged, sizeof logged, "%s", message);
    logged_user = user_data;
    logged_level = level;
}

static compactor_sequence sequence_in_use;
static compactor_status status_inside;

/* Calls the library from inside a call: what that call uses is in use. */
static void call_back(void *user_data, int32_t level, const char *message)
{
    int32_t lengths[1];
    (void)user_data, (void)level, (void)message;
    status_inside = p_compactor_sequence_lengths(sequence_in_use, 0, lengths, 1, NULL);
}

static void *other_thread(void *was_empty)
{
    *(int *)was_empty = *p_compactor_last_error() == '\0';
    p_compactor_live_handles(NULL);
    *(int *)was_empty &= says("count is NULL");
    return NULL;
}

static sigjmp_buf before_fault;

/* What a host does about faults of its own. */
static void host_handler(int signal) { siglongjmp(before_fault, signal); }

static int child_status(pid_t child)
{
    int status = 0;
    return waitpid(child, &status, 0) == child && WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

int main(int argc, char **argv)
{
    if (argc < 2)
        return 2;
    void *library;
    alarm(60);
    struct sigaction mine = { .sa_handler = host_handler };
    sigaction(SIGSEGV, &mine, NULL);
    /* 20 GB of address space: the managed heap alone would reserve 256 if it were left to itself */
    int small = argc > 2 && strcmp(argv[2], "small") == 0;
    struct rlimit limit = { .rlim_cur = (small ? 6ull : 20ull) << 30, .rlim_max = RLIM_INFINITY };
    expect(setrlimit(RLIMIT_AS, &limit) == 0, "a limit of address space can be set");
    /* the same on a machine with a GPU */
    setenv("CUDA_VISIBLE_DEVICES", "", 1);
    load(argv[1], &library);
    expect(p_compactor_abi_version() == COMPACTOR_ABI_VERSION, "the ABI version is that of the header");
    char version[32];
    snprintf(version, sizeof version, "%d.%d.%d", COMPACTOR_VERSION_MAJOR, COMPACTOR_VERSION_MINOR, COMPACTOR_VERSION_PATCH);
    const char *said = p_compactor_version();
    expect(strncmp(said, version, strlen(version)) == 0 && (said[strlen(version)] == '\0' || (said[strlen(version)] == '+' && strspn(said + strlen(version) + 1, "0123456789abcdef") == 12 && strlen(said) == strlen(version) + 13)), "the version is that of the header, and at most a commit follows");
    if (argc > 2)
        return 0; /* the child that was executed anew */

    expect(dlclose(library) == 0, "dlclose succeeds");
    expect(p_compactor_version() == said, "dlclose leaves the library in place");
    load(argv[1], &library);
    expect(strcmp(p_compactor_last_error(), "") == 0, "there is no message before the first failure");
    expect(strcmp(p_compactor_status_name((compactor_status)99), "unknown status") == 0, "a number that is no status has a name too");

    int mark;
    compactor_backend backend = 0, none = 0;
    expect(p_compactor_set_log(remember, &mark) == COMPACTOR_OK, "a log callback is taken");
    expect(p_compactor_backend_open(NULL, &backend) == COMPACTOR_OK, "a backend opens by itself");
    expect(logged_user == &mark && logged_level == COMPACTOR_LOG_WARNING && strstr(logged, "no CUDA backend") != NULL && strstr(logged, "CPU") != NULL,
           "falling back to the CPU is announced with its reason");
    logged[0] = '\0';
    compactor_backend_options options = { .struct_size = sizeof options, .kind = COMPACTOR_BACKEND_CUDA };
    expect(p_compactor_backend_open(&options, &none) != COMPACTOR_OK && none == 0, "cuda is refused");
    expect(logged[0] == '\0', "what fails announces nothing");
    options = (compactor_backend_options){ .struct_size = sizeof options, .kind = COMPACTOR_BACKEND_CPU, .simd_bits = 512 };
    expect(p_compactor_backend_open(&options, &none) == COMPACTOR_UNSUPPORTED, "a width that was not compiled is refused");

    int was_empty = 0;
    pthread_t thread;
    pthread_create(&thread, NULL, other_thread, &was_empty);
    pthread_join(thread, NULL);
    expect(was_empty, "a thread has messages of its own");
    expect(says("512"), "and leaves those of others");

    enum { TOKENS = 100, DIM = 16 };
    static float rows[TOKENS * DIM];
    for (int i = 0; i < TOKENS * DIM; i++)
        rows[i] = (float)((i * 7919) % 1000) / 500.0f - 1.0f;
    compactor_cache_options pages = { .struct_size = sizeof pages, .layers = 1, .kv_heads = 1, .head_dim = DIM, .blocks = 32, .block_size = 16 };
    int32_t cu[] = { 0, TOKENS }, lengths[1], ready = -1;
    compactor_shape shape = { .struct_size = sizeof shape, .sequences = 1, .cu_seqlens = cu, .kv_heads = 1, .head_dim = DIM };
    compactor_options method = { .struct_size = sizeof method };
    compactor_budget budget = { .struct_size = sizeof budget, .unit = COMPACTOR_BUDGET_TOKENS, .amount = 50 };
    compactor_cache cache;
    compactor_sequence sequence;
    compactor_plan plan;
    compactor_compaction compaction;
    compactor_tensor tensor = { .struct_size = sizeof tensor, .data = rows, .data_bytes = sizeof rows, .tokens = TOKENS, .heads = 1, .dim = DIM, .token_stride = DIM, .head_stride = DIM };
    compactor_layer layer = { .struct_size = sizeof layer, .key = &tensor, .value = &tensor, .key_pre_rope = &tensor };
    expect(p_compactor_options_preset(COMPACTOR_PRESET_PAPER, &method) == COMPACTOR_OK, "a preset");
    expect(p_compactor_cache_create(backend, &pages, &cache) == COMPACTOR_OK && p_compactor_sequence_create(cache, &sequence) == COMPACTOR_OK, "a cache and a sequence");
    expect(p_compactor_plan_create(&shape, &method, &budget, 1, &plan) == COMPACTOR_OK, "a plan");
    expect(p_compactor_backend_close(backend) == COMPACTOR_IN_USE && says("1 other handle"), "a backend is not closed under its cache");
    expect(p_compactor_cache_destroy(cache) == COMPACTOR_IN_USE, "a cache is not destroyed under its sequence");

    sequence_in_use = sequence;
    expect(p_compactor_set_log(call_back, NULL) == COMPACTOR_OK, "another callback");
    expect(p_compactor_sequence_compress(&sequence, 1, 0, plan, &layer, NULL, &compaction) == COMPACTOR_OK, "compression without queries");
    expect(status_inside == COMPACTOR_IN_USE, "is announced by a callback, which may call the library, and the sequence is in use by the call");
    expect(p_compactor_set_log(NULL, NULL) == COMPACTOR_OK, "no callback");
    expect(p_compactor_compaction_ready(compaction, &ready) == COMPACTOR_OK && ready == 1, "on the CPU survivors are there at once");
    expect(p_compactor_sequence_free(sequence) == COMPACTOR_IN_USE, "a sequence is not freed under a compaction");
    expect(p_compactor_sequence_store(sequence, 0, &tensor, &tensor, 0, 1, 0) == COMPACTOR_INVALID_ARGUMENT && says("under way"), "nor changed in that layer");
    expect(p_compactor_compaction_cancel(compaction) == COMPACTOR_OK, "it is cancelled");
    expect(p_compactor_compaction_cancel(compaction) == COMPACTOR_INVALID_HANDLE, "once");
    expect(p_compactor_sequence_lengths(sequence, 0, lengths, 1, NULL) == COMPACTOR_OK && lengths[0] == 0, "and the sequence is as it was");

    static int *volatile no_pointer;
    if (sigsetjmp(before_fault, 1) == 0) {
        *no_pointer = 1;
        expect(0, "a fault of the host's goes unnoticed");
    }
    expect(p_compactor_sequence_lengths(sequence, 0, lengths, 1, NULL) == COMPACTOR_OK, "a fault of the host's goes to the host's handler, and the library works on");

    pid_t child = fork();
    if (child == 0) {
        int64_t handles;
        alarm(20);
        _exit(p_compactor_live_handles(&handles) == COMPACTOR_FORKED && p_compactor_backend_close(backend) == COMPACTOR_FORKED && says("forked") ? 0 : 1);
    }
    expect(child_status(child) == 0, "in a forked child calls return COMPACTOR_FORKED");
    child = fork();
    if (child == 0) {
        execl("/proc/self/exe", argv[0], argv[1], "again", (char *)NULL);
        _exit(1);
    }
    expect(child_status(child) == 0, "a child that calls exec can use the library");

    child = fork();
    if (child == 0) {
        setenv("DOTNET_GCRegionRange", "100000000", 1);
        execl("/proc/self/exe", argv[0], argv[1], "small", (char *)NULL);
        _exit(1);
    }
    expect(child_status(child) == 0, "with DOTNET_GCRegionRange 4 GB of addresses are enough for the managed heap");

    int64_t handles;
    expect(p_compactor_sequence_free(sequence) == COMPACTOR_OK && p_compactor_cache_destroy(cache) == COMPACTOR_OK && p_compactor_plan_destroy(plan) == COMPACTOR_OK
           && p_compactor_backend_close(backend) == COMPACTOR_OK, "all is closed in order");
    expect(p_compactor_live_handles(&handles) == COMPACTOR_OK && handles == 0, "and nothing is left");
    puts("as promised");
    return 0;
}
