/* Memory whose last byte is followed by a page that nothing may touch, and random numbers: what the misuse test hands to the library. */
#ifndef GUARDED_H
#define GUARDED_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { ARENAS = 32, ARENA_BYTES = 256 * 1024, PAGE = 4096 };

static unsigned char *arena_ends[ARENAS];

/* Outputs of the call under way, as they were before it. */
static struct {
    unsigned char *at, *before;
    size_t bytes;
} outputs[ARENAS];
static int output_count;

static void make_arenas(void)
{
    for (int i = 0; i < ARENAS; i++) {
        unsigned char *memory = mmap(NULL, PAGE + ARENA_BYTES + PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED || mprotect(memory + PAGE, ARENA_BYTES, PROT_READ | PROT_WRITE) != 0) {
            perror("mmap");
            exit(2);
        }
        arena_ends[i] = memory + PAGE + ARENA_BYTES;
        outputs[i].before = malloc(ARENA_BYTES);
    }
}

/* The last bytes of an arena. */
static void *flush_buffer(int arena, size_t bytes)
{
    if (bytes > ARENA_BYTES) {
        fprintf(stderr, "a buffer of %zu bytes does not fit an arena\n", bytes);
        exit(2);
    }
    return arena_ends[arena] - bytes;
}

/* The same for an output, which must stay as it is when a call fails. */
static void *flush_output(int arena, size_t bytes)
{
    unsigned char *at = flush_buffer(arena, bytes);
    memset(at, 0xA5, bytes);
    outputs[output_count].at = at;
    outputs[output_count].bytes = bytes;
    memcpy(outputs[output_count++].before, at, bytes);
    return at;
}

static int outputs_unchanged(void)
{
    for (int i = 0; i < output_count; i++)
        if (memcmp(outputs[i].at, outputs[i].before, outputs[i].bytes) != 0)
            return 0;
    return 1;
}

static uint64_t random_state;

static uint64_t random_bits(void)
{
    random_state += 0x9E3779B97F4A7C15u;
    uint64_t z = random_state;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

static int below(int n) { return (int)(random_bits() % (uint64_t)n); }

static int chance(int percent) { return below(100) < percent; }

static float unit(void) { return (float)(random_bits() >> 40) / 8388608.0f - 1.0f; }

#endif
