/*
 * compactor.h: KV-cache compression for LLM inference, as one shared library (libcompactor_native.so).
 *
 * After prefill, every (token, KV head) of a layer is scored, the best part is kept, and survivors go to a paged cache whose freed blocks
 * return to the pool. Method: arXiv 2507.08143. This file is C99, needs nothing but the C library, and is the whole interface.
 *
 * ERRORS      Every function that can fail returns a compactor_status and, unless it is COMPACTOR_OK, has changed nothing and written to no output.
 *             (COMPACTOR_NON_FINITE, _FACTORIZATION_FAILED, _OUT_OF_MEMORY, _DEVICE_FAILED, _COMPILATION_FAILED and _INTERNAL can come once work has begun: output buffers
 *             and workspace then hold unspecified values; handles and caches are as they were.) compactor_last_error() says in words what was wrong and what to do. Nothing is thrown across this interface.
 *             Checked are: null and misaligned pointers, sizes, counts, ranges, strides against data_bytes, outputs that overlap other arguments,
 *             handles that are dead or of another kind. Not checkable: a pointer that is none, or memory shorter than the caller says.
 * HANDLES     64-bit integers of kind, slot and generation, never addresses; 0 is none. A handle that was closed stays dead for good; none comes twice. What others stand on
 *             cannot be closed (COMPACTOR_IN_USE): sequences before their cache, compactions before their sequences, all before their backend.
 * STRUCTS     Begin with struct_size: set it to sizeof(the struct), and every field you do not use, `reserved` included, to 0. A later version may add fields at
 *             the end. Any size is taken from that of the first published version on: fields that a smaller struct lacks are 0, and bytes of a larger one that this library
 *             does not know must be 0 (else COMPACTOR_UNSUPPORTED). A struct that is filled keeps its size, is written no further, and what is not known in it becomes 0.
 *             Structs of an array have one size. Strings are UTF-8.
 * OWNERSHIP   Structs and arrays passed in are copied before a call returns; tensors, caches of the host's and output buffers stay the caller's, and must stay in
 *             place until the queued work is done (see STREAMS). Counts are elements and must be exactly what is documented; sizes in bytes are at least that.
 * STREAMS     On the CPU backend everything is done when a call returns. On a CUDA backend tensors, score buffers, workspaces, outputs and caches are device memory; work
 *             is queued on the stream the backend was opened with, in order, and calls return before it is done. Arrays called "host" here are host memory on every
 *             backend: read before the call returns, or written when it returns. The context is made current for the length of a call and is the caller's otherwise.
 *             These wait for the stream: compactor_backend_synchronize, compactor_backend_close, compactor_compaction_complete and _cancel, compactor_sequence_compress,
 *             _compact and _recompress with compaction NULL, compactor_sequence_read, and compactor_fuse with non_finite. Others may, once, where a kernel is compiled or
 *             memory allocated that has not been used before; so no call may be made while the stream is captured into a graph.
 *             What queued scoring finds wrong with the data (COMPACTOR_NON_FINITE, _FACTORIZATION_FAILED) is returned by the call that waits for it: for compress, compact and
 *             recompress of sequences the one that completes the compaction; for single stages and compactor_compress_layer the next compactor_backend_synchronize, the
 *             first fault since the one before. COMPACTOR_DEVICE_FAILED may come from any later call. What lies in device memory (tables, lengths, kept indices and
 *             offsets) is not read by the host, and so not checked: it must be in range.
 * CUDA        What the CUDA backend takes is narrower than what field descriptions below allow, and the rest is COMPACTOR_UNSUPPORTED, by name: a head dimension of 64, 80, 96, 128
 *             or 256; addresses and strides of keys, queries and caches that are multiples of 16 bytes; queries of the type of the keys or cache they meet; a sketch whose
 *             numbers are bfloat16; rows of a paged cache of 16 to 1024 bytes, in steps of 16.
 * THREADS     Any thread may call. Backends, plans and caches are shared freely (scoring on one backend takes turns); a sequence, compaction or tables object is used
 *             by one call at a time, a second at the same moment gets COMPACTOR_IN_USE and changes nothing.
 * RUNTIME     The library holds a managed runtime (NativeAOT): it is never unloaded (dlclose does nothing), and does not work in a child forked after its first call
 *             (COMPACTOR_FORKED; exec is fine). It needs glibc 2.34 and an x86-64 CPU with AVX2 and FMA, and 16 GB of address space (not memory): under a tighter limit
 *             set DOTNET_GCRegionRange, hexadecimal bytes, say 100000000 for 4 GB. Without these the process ends at the first call: the runtime cannot start.
 */
#ifndef COMPACTOR_H
#define COMPACTOR_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define COMPACTOR_VERSION_MAJOR 0
#define COMPACTOR_VERSION_MINOR 1
#define COMPACTOR_VERSION_PATCH 0
/* Changes only when a program built against an earlier header would no longer work. */
#define COMPACTOR_ABI_VERSION 1

/* ---- Status ---- */

typedef enum compactor_status {
    COMPACTOR_OK = 0,
    COMPACTOR_INVALID_ARGUMENT = 1,     /* an option, shape, stride, size or pointer is wrong */
    COMPACTOR_UNSUPPORTED = 2,          /* a valid request that this library or backend does not serve */
    COMPACTOR_BUDGET_NOT_MET = 3,       /* a budget too small for what is always kept */
    COMPACTOR_NON_FINITE = 4,           /* keys, queries or scores hold NaN or infinity; the message names layer, token and head */
    COMPACTOR_INVALID_FILE = 5,         /* a file that is not what it should be */
    COMPACTOR_FACTORIZATION_FAILED = 6, /* the Gram matrix had no factorisation after every escalation of epsilon */
    COMPACTOR_OUT_OF_BLOCKS = 7,        /* a paged cache has too few free blocks */
    COMPACTOR_INVALID_HANDLE = 8,       /* a handle that is 0, dead, or of another kind */
    COMPACTOR_IN_USE = 9,               /* used by another call at this moment, or something else stands on it */
    COMPACTOR_OUT_OF_MEMORY = 10,       /* memory could not be had */
    COMPACTOR_IO_ERROR = 11,            /* a file cannot be read or written */
    COMPACTOR_FORKED = 12,              /* called in a child forked after the library was first used */
    COMPACTOR_INTERNAL = 13,            /* a defect of the library; please report the message */
    COMPACTOR_NO_DEVICE = 14,           /* no CUDA driver, device or kernel compiler that can be used; the message lists where each was looked for */
    COMPACTOR_DEVICE_FAILED = 15,       /* the CUDA driver refused a call, or reports that work failed */
    COMPACTOR_COMPILATION_FAILED = 16   /* a kernel does not compile; the message carries the compiler's log */
} compactor_status;

/* ---- Handles ---- */

typedef uint64_t compactor_backend;    /* where to compute: a device and a stream, or the CPU */
typedef uint64_t compactor_plan;       /* shape, options and counts of one layer's batch, made once a shape */
typedef uint64_t compactor_cache;      /* a paged cache: one pool of head-blocks for all layers */
typedef uint64_t compactor_sequence;   /* one sequence of a cache: per layer a block table and lengths for each KV head */
typedef uint64_t compactor_compaction; /* a compaction between its two phases */
typedef uint64_t compactor_tables;     /* exported block tables and lengths of a batch in one layer */

/* ---- Enumerations; fields that hold one are int32_t ---- */

enum { COMPACTOR_BACKEND_AUTO = 0, COMPACTOR_BACKEND_CUDA = 1, COMPACTOR_BACKEND_CPU = 2 };

/* OPAQUE8 is one byte of a format this library does not read (FP8, INT8): stored, moved and compacted, never scored or attended to. */
enum { COMPACTOR_FLOAT32 = 0, COMPACTOR_FLOAT16 = 1, COMPACTOR_BFLOAT16 = 2, COMPACTOR_OPAQUE8 = 3 };

/* The three published parameterisations. */
enum { COMPACTOR_PRESET_PAPER = 0, COMPACTOR_PRESET_KVPRESS = 1, COMPACTOR_PRESET_COMPACTOR_VLLM = 2 };

/* Which sketch matrices Phi are distinct: none; one a layer; one a (layer, sequence id, global head). */
enum { COMPACTOR_SKETCH_SHARED = 0, COMPACTOR_SKETCH_PER_LAYER = 1, COMPACTOR_SKETCH_PER_SEQUENCE_HEAD = 2 };

/* Over what mean and deviation of a score are taken: each head; all heads of a sequence; all heads of a chunk. */
enum { COMPACTOR_NORMALIZE_HEAD = 0, COMPACTOR_NORMALIZE_SEQUENCE = 1, COMPACTOR_NORMALIZE_CHUNK = 2 };

/* How query heads that share a KV head combine. */
enum { COMPACTOR_GROUP_SUM = 0, COMPACTOR_GROUP_MEAN = 1 };

/* Protected tokens are kept in addition to a retention, or come out of it. */
enum { COMPACTOR_PROTECTED_ON_TOP = 0, COMPACTOR_PROTECTED_INSIDE = 1 };

/* What competes: all (token, head) pairs of a sequence (ragged lengths); each head's tokens; one set of tokens for all heads. */
enum { COMPACTOR_SELECT_SEQUENCE = 0, COMPACTOR_SELECT_HEAD = 1, COMPACTOR_SELECT_TOKEN = 2 };

/* How a retention becomes a count: ceil(r N) a head; floor(r N) a head; max(1, round(r (N - first - last) H)), H = Hkv in sequence scope, else 1. */
enum { COMPACTOR_COUNT_CEILING = 0, COMPACTOR_COUNT_FLOOR = 1, COMPACTOR_COUNT_ROUND_UNPROTECTED = 2 };

/* Weight of leverage: the fixed leverage_weight, or 1 - retention. */
enum { COMPACTOR_WEIGHT_FIXED = 0, COMPACTOR_WEIGHT_ONE_MINUS_RETENTION = 1 };

/* Unit of a budget. RETENTION: amount in [0, 1]. TOKENS: whole tokens a head, 1 or more. BYTES: of keys and values of one sequence in one layer. */
enum { COMPACTOR_BUDGET_RETENTION = 0, COMPACTOR_BUDGET_TOKENS = 1, COMPACTOR_BUDGET_BYTES = 2 };

/* What scores. COMPACTOR without queries is leverage alone, announced through the log. RANDOM and RECENT are baselines. */
enum { COMPACTOR_POLICY_COMPACTOR = 0, COMPACTOR_POLICY_LEVERAGE = 1, COMPACTOR_POLICY_ATTENTION = 2, COMPACTOR_POLICY_RANDOM = 3, COMPACTOR_POLICY_RECENT = 4 };

/* RoPE pairs dimension i with i + R/2 (Llama in Hugging Face layout), or 2i with 2i + 1 (GPT-J). */
enum { COMPACTOR_ROTARY_HALF = 0, COMPACTOR_ROTARY_INTERLEAVED = 1 };

enum { COMPACTOR_LOG_INFO = 0, COMPACTOR_LOG_WARNING = 1 };

/* ---- The library ---- */

/* Semantic version; static. "0.1.0+8f14e45fceea" where the commit that was checked out when it was built is known (changes since are not told), else "0.1.0". */
const char *compactor_version(void);

/* COMPACTOR_ABI_VERSION the library was built with. A program works with a library whose ABI version is that of its header. */
uint32_t compactor_abi_version(void);

/* Name of a status, "COMPACTOR_OUT_OF_BLOCKS"; "unknown status" for a number that is none. Static. */
const char *compactor_status_name(compactor_status status);

/* Why the last call that failed on this thread did, and what to do; "" before the first. Valid until the next failing call on this thread, or its end. */
const char *compactor_last_error(void);

/*
 * Receives what the library announces, a fallback above all. It is called on the thread of the call that announces, with user_data; message is valid during
 * the call. It may call this library but not wait for a call on another
 * thread, and must return (no longjmp, no C++ exception).
 */
typedef void (*compactor_log_callback)(void *user_data, int32_t level, const char *message);

/* Sets the callback of the process; NULL for none. A call on another thread may still be inside the former when this returns. */
compactor_status compactor_set_log(compactor_log_callback callback, void *user_data);

/* Number of handles alive, of all kinds: what a host's leak test watches. */
compactor_status compactor_live_handles(int64_t *count);

/* ---- Backends ---- */

typedef struct compactor_backend_options {
    uint32_t struct_size; /* sizeof(compactor_backend_options) */
    int32_t kind;         /* COMPACTOR_BACKEND_*; AUTO is CUDA where it can be had, else the CPU, announced with the reason through the log */
    int32_t device;       /* CUDA device ordinal, 0 or more; not read with a context, which has one. Must be 0 for the CPU */
    int32_t threads;      /* CPU: threads to compute on, 0 for all cores; results do not depend on it. Must be 0 for CUDA */
    int32_t simd_bits;    /* CPU: bits of a vector, 128, 256, or, in the variant for AVX-512, 512; 0 for the widest the library was compiled for. Must be 0 for CUDA */
    int32_t reserved;     /* 0 */
    void *context;        /* CUcontext to adopt, or NULL for the device's primary one (the runtime API's, PyTorch's). It must outlive the backend */
    void *stream;         /* CUstream of that context that all work is queued on; NULL for the legacy default stream. It must outlive the backend. Not CU_STREAM_PER_THREAD */
} compactor_backend_options;

typedef struct compactor_backend_info {
    uint32_t struct_size;  /* sizeof(compactor_backend_info) */
    int32_t kind;          /* COMPACTOR_BACKEND_CUDA or _CPU */
    int32_t threads;       /* CPU: threads in use */
    int32_t simd_bits;     /* CPU: vector width in use */
    char description[112]; /* what it runs on, for people; ends with '\0' */
    char compiler[48];     /* CUDA: what compiled the kernels loaded so far, here and now or ahead of time, "NVRTC 13.0"; empty for the CPU; ends with '\0' */
} compactor_backend_info;

/*
 * Opens a backend. options: NULL for AUTO. CUDA needs a driver of CUDA 11.2 or later, a device of compute capability 8.0 or later, and NVRTC or folders of compiled kernels:
 * COMPACTOR_NO_DEVICE says what is missing and where it was looked for. The environment variable COMPACTOR_NVRTC names NVRTC, COMPACTOR_CACHE the folder that compiled
 * kernels are kept in; folders compactor-kernels beside this library and beside the program are asked first.
 * AUTO with a device, context or stream never falls back to the CPU, which does not reach device memory. Whose memory a backend that AUTO opened takes is told by
 * compactor_backend_describe: a host whose tensors are where they are opens that kind.
 */
compactor_status compactor_backend_open(const compactor_backend_options *options, compactor_backend *backend);

/* Says what it is. info->struct_size must be set, here and wherever a struct is filled. */
compactor_status compactor_backend_describe(compactor_backend backend, compactor_backend_info *info);

/* Waits until everything queued so far is done, and returns what queued stages and compactor_compress_layer found since the last time (see STREAMS). */
compactor_status compactor_backend_synchronize(compactor_backend backend);

/* Closes it, after waiting for its work; COMPACTOR_IN_USE while a cache or tables stand on it. With COMPACTOR_DEVICE_FAILED the handle is dead all the same. */
compactor_status compactor_backend_close(compactor_backend backend);

/* ---- Options, budgets, plans ---- */

/* Every choice of the method. Start from compactor_options_preset and change what you need. */
typedef struct compactor_options {
    uint32_t struct_size;                /* sizeof(compactor_options) */
    int32_t sketch_dimension;            /* columns k of Phi [D, k]: 16 to 128 in steps of 16 */
    int32_t sketch_sharing;              /* COMPACTOR_SKETCH_* */
    int32_t center_keys;                 /* 0 or 1: subtract the mean key of each leverage chunk before sketching */
    int32_t leverage_chunk;              /* tokens of a leverage chunk: 0 for the whole sequence, else 64 to 4096 */
    int32_t leverage_scope;              /* COMPACTOR_NORMALIZE_* of the leverage score */
    double epsilon;                      /* ridge of the Gram matrix, finite, 0 or more; raised by 10 per head, at most 5 times, after a bad pivot */
    int32_t attention_chunk;             /* tokens C of an attention chunk: 64 to 512 */
    int32_t group_reduction;             /* COMPACTOR_GROUP_* */
    double attention_scale;              /* multiplier of q.k before the softmax, above 0; the method uses 1 */
    int32_t weight_by_value_norm;        /* 0 or 1: multiply attention scores by the norm of the token's value */
    int32_t pool_width;                  /* width of the zero-padded mean pool over tokens: odd, 1 (none) to 63 */
    int32_t attention_scope;             /* COMPACTOR_NORMALIZE_* of the attention score */
    int32_t unbiased_standard_deviation; /* 0 or 1: divide by n - 1 */
    double standard_deviation_floor;     /* lower bound of a deviation, 0 or more */
    double leverage_weight;              /* lambda, 0 to 1e30, when leverage_weight_rule is FIXED */
    int32_t leverage_weight_rule;        /* COMPACTOR_WEIGHT_* */
    int32_t protect_first;               /* tokens at the start of a sequence that are always kept */
    int32_t protect_last;                /* tokens at its end that are always kept */
    int32_t score_protected;             /* 0 or 1: protected tokens take part in chunks, means and deviations */
    int32_t protected_budget;            /* COMPACTOR_PROTECTED_*; token and byte budgets always include them */
    int32_t selection_scope;             /* COMPACTOR_SELECT_* */
    int32_t retention_count;             /* COMPACTOR_COUNT_* */
    int32_t min_tokens_per_head;         /* every head keeps at least so many, or all it has */
    uint64_t seed;                       /* of Phi */
} compactor_options;

/* How much of one layer of one sequence is kept. */
typedef struct compactor_budget {
    uint32_t struct_size; /* sizeof(compactor_budget) */
    int32_t unit;         /* COMPACTOR_BUDGET_* */
    double amount;        /* in that unit; tokens and bytes are whole numbers */
} compactor_budget;

/* Shape of one layer of a batch of B sequences, N tokens in all. */
typedef struct compactor_shape {
    uint32_t struct_size;         /* sizeof(compactor_shape) */
    int32_t sequences;            /* B, 0 or more */
    const int32_t *cu_seqlens;    /* [B + 1], host: ascending from 0; sequence b holds tokens cu_seqlens[b] to cu_seqlens[b + 1] of the packed batch */
    const int64_t *sequence_ids;  /* [B], host: stable ids that key Phi where it is per sequence; NULL for 0, 1, 2, ... */
    int32_t query_heads;          /* Hq, a multiple of Hkv, at most 16 Hkv; 0 without queries */
    int32_t kv_heads;             /* Hkv, 1 to 65535; CUDA takes up to 256 */
    int32_t head_dim;             /* D: 16 to 256 in steps of 16 */
    int32_t element_type;         /* of keys and values */
    int32_t layer;                /* index of the layer: names it in messages and keys Phi */
    int32_t first_head;           /* global index of head 0, for a rank that holds part of the heads: keys Phi */
} compactor_shape;

typedef struct compactor_plan_info {
    uint32_t struct_size;      /* sizeof(compactor_plan_info) */
    int32_t sequences;         /* B */
    int32_t kv_heads;          /* Hkv; kept_offsets takes B Hkv + 1 entries */
    int32_t keeps_everything;  /* 1: nothing is scored */
    int64_t tokens;            /* N of all sequences */
    int64_t pairs;             /* N Hkv: elements of a score buffer */
    int64_t kept_pairs;        /* elements of kept_indices */
    uint64_t workspace_bytes;  /* what compactor_compress_layer takes, on any backend */
} compactor_plan_info;

/* Fills *options with a preset (COMPACTOR_PRESET_*); struct_size must be set. */
compactor_status compactor_options_preset(int32_t preset, compactor_options *options);

/* Checks shape, options and budgets together. budgets: host, one for all sequences (budget_count 1) or one each (budget_count B). */
compactor_status compactor_plan_create(const compactor_shape *shape, const compactor_options *options, const compactor_budget *budgets, int32_t budget_count,
                                       compactor_plan *plan);

/*
 * A plan of what sequences hold at this moment in a layer, for compactor_sequence_recompress only. sequence_ids: [count], or NULL. A budget's N is the average
 * of a sequence's heads. Scope SEQUENCE or HEAD.
 */
compactor_status compactor_plan_create_held(const compactor_sequence *sequences, int32_t count, int32_t layer, int32_t first_head, const int64_t *sequence_ids,
                                            const compactor_options *options, const compactor_budget *budgets, int32_t budget_count, compactor_plan *plan);

/* Says what it is of, and how large the buffers are that calls with it take. */
compactor_status compactor_plan_describe(compactor_plan plan, compactor_plan_info *info);

/* Kept (token, head) pairs of each sequence, [B]. Known before any data is read. */
compactor_status compactor_plan_kept(compactor_plan plan, int64_t *kept_pairs, int32_t count);

/* Destroys it; what was made with it stays. */
compactor_status compactor_plan_destroy(compactor_plan plan);

/* ---- Tensors ---- */

/*
 * A strided view of keys, values or queries, [token, head, dim], in memory the backend reaches (host memory for the CPU). The last dimension is dense; strides are in
 * elements, 0 or more. A packed batch [N, H, D] has token_stride H D, head_stride D, sequence_stride 0. A padded one [B, H, S, D] (Hugging Face, ONNX Runtime's
 * present.*) has token_stride D, head_stride S D, sequence_stride H S D, and tokens = N, those of the plan.
 */
typedef struct compactor_tensor {
    uint32_t struct_size;    /* sizeof(compactor_tensor) */
    int32_t element_type;    /* COMPACTOR_FLOAT32 ... */
    const void *data;        /* element 0 of token 0 of sequence 0, head 0; aligned to one element */
    uint64_t data_bytes;     /* bytes that may be read from data on; every row must lie within */
    int32_t tokens;          /* N of all sequences together */
    int32_t heads;           /* H */
    int32_t dim;             /* D */
    int32_t reserved;        /* 0 */
    int64_t token_stride;    /* elements from one token to the next */
    int64_t head_stride;     /* elements from one head to the next */
    int64_t sequence_stride; /* elements from one sequence's first token to the next one's; 0 when sequences follow each other as tokens */
} compactor_tensor;

/*
 * The rotation (RoPE) that keys carry, to be undone while loading. Exactly one of: theta > 0; inverse_frequencies; cos and sin. All arrays are in host memory and are copied;
 * the last four descriptions are kept, so that layers that give the same one share what is made of it (on a device: uploaded once).
 */
typedef struct compactor_rotary {
    uint32_t struct_size;              /* sizeof(compactor_rotary) */
    int32_t style;                     /* COMPACTOR_ROTARY_* */
    int32_t rotary_dim;                /* rotated dimensions R at the start of a head, even, 2 to D */
    int32_t reserved;                  /* 0 */
    double theta;                      /* base, above 1: frequencies theta^(-2i/R); 0 when another source is given */
    const double *inverse_frequencies; /* [R/2] radians a position (llama3, YaRN, linear scaling); NULL when another source is given */
    const int32_t *positions;          /* [position_count] of each packed token; NULL for its index in its sequence. Not with cos and sin */
    int64_t position_count;            /* N; 0 with positions NULL */
    const float *cos;                  /* [table_rows, R/2], one row a packed token; a row a position in compactor_sequence_recompress */
    const float *sin;                  /* [table_rows, R/2] */
    int64_t table_rows;                /* N; 0 without cos and sin */
} compactor_rotary;

/* One layer's inputs; all tensors hold the same tokens in the same order. */
typedef struct compactor_layer {
    uint32_t struct_size;                 /* sizeof(compactor_layer) */
    int32_t policy;                       /* COMPACTOR_POLICY_* */
    const compactor_tensor *key;          /* after RoPE, [N, Hkv, D] */
    const compactor_tensor *value;        /* [N, Hkv, D] */
    const compactor_tensor *key_pre_rope; /* [N, Hkv, D]; NULL with a rotary to undo instead */
    const compactor_tensor *query;        /* after RoPE, [N, Hq, D]; NULL to score by leverage alone */
    const compactor_rotary *rotary;       /* the rotation of key; NULL with key_pre_rope */
    const float *phi;                     /* host: Phi [D, k], or [B, Hkv, D, k], instead of one drawn from the seed; NULL to draw it */
    int64_t phi_count;                    /* floats, or 0 */
    uint64_t policy_seed;                 /* of COMPACTOR_POLICY_RANDOM */
} compactor_layer;

/* ---- Stages. Score buffers are float32 [N, Hkv], token-major, count = pairs of the plan, in memory the backend reaches. ---- */

/* Outlier scores (approximate leverage), 0 <= o < 1; keys before RoPE, or after it with undo. phi: see compactor_layer. */
compactor_status compactor_leverage(compactor_backend backend, compactor_plan plan, const compactor_tensor *keys, const compactor_rotary *undo,
                                    const float *phi, int64_t phi_count, float *leverage, int64_t count);

/* Non-causal attention scores within each chunk, after the group reduction. */
compactor_status compactor_attention_scores(compactor_backend backend, compactor_plan plan, const compactor_tensor *query, const compactor_tensor *key,
                                            float *attention, int64_t count);

/*
 * s = z(pool(a ||v||)) + lambda z(o); +inf on protected tokens. leverage or attention may be NULL, not both; value is read only when options weight by its norm.
 * Scores that are not finite become the lowest finite value; *non_finite (host, may be NULL) receives their number, for which a CUDA backend waits. With NULL a CUDA
 * backend tells of them in compactor_backend_synchronize.
 */
compactor_status compactor_fuse(compactor_backend backend, compactor_plan plan, const float *leverage, const float *attention, const compactor_tensor *value,
                                float *scores, int64_t count, int64_t *non_finite);

/* Segmented top-k. Kept tokens within their sequences, ascending per head, sequence by sequence and head by head; offsets [B Hkv + 1]: where each head's start. */
compactor_status compactor_select(compactor_backend backend, compactor_plan plan, const float *scores, int64_t count, int32_t *kept_indices, int64_t kept_count,
                                  int32_t *kept_offsets, int64_t offset_count);

/* Gathers survivors of one tensor into destination [kept pairs, D] of its element type, destination_bytes = kept pairs x D x element size. */
compactor_status compactor_compact(compactor_backend backend, compactor_plan plan, const compactor_tensor *source, const int32_t *kept_indices, int64_t kept_count,
                                   const int32_t *kept_offsets, int64_t offset_count, void *destination, uint64_t destination_bytes);

/*
 * All stages of a layer in one call: scores, selects, and gathers survivors of key and value into key_out and value_out [kept pairs, D] (both NULL to select only).
 * workspace: at least the plan's workspace_bytes, aligned to 256; its content is unspecified afterwards.
 */
compactor_status compactor_compress_layer(compactor_backend backend, compactor_plan plan, const compactor_layer *layer, void *workspace, uint64_t workspace_bytes,
                                          int32_t *kept_indices, int64_t kept_count, int32_t *kept_offsets, int64_t offset_count,
                                          void *key_out, uint64_t key_bytes, void *value_out, uint64_t value_bytes);

/* ---- Paged cache ---- */

typedef struct compactor_cache_options {
    uint32_t struct_size; /* sizeof(compactor_cache_options) */
    int32_t layers;       /* 1 to 65535 */
    int32_t kv_heads;     /* Hkv, 1 to 65535; layers x Hkv at most 1048576 */
    int32_t head_dim;     /* D, 1 to 256 */
    int32_t element_type; /* COMPACTOR_FLOAT32 ... */
    int32_t blocks;       /* head-blocks in the pool, each of 2 block_size D elements: 0 or more, blocks x block_size below 2^31 */
    int32_t block_size;   /* tokens of a head-block: 16 to 256; 0 for 128 */
    int32_t reserved;     /* 0 */
} compactor_cache_options;

typedef struct compactor_cache_info {
    uint32_t struct_size;     /* sizeof(compactor_cache_info) */
    int32_t block_size;       /* tokens of a head-block */
    int32_t blocks;           /* in the pool */
    int32_t free_blocks;      /* at this moment */
    int64_t unused_slots;     /* slots of blocks in use that hold no token */
    const void *keys;         /* backend memory [blocks, block_size, D]; read only */
    const void *values;       /* the same for values */
    const int32_t *positions; /* backend memory [blocks, block_size]; read only */
} compactor_cache_info;

/* Allocates a cache whose blocks are all free, in memory of the backend. */
compactor_status compactor_cache_create(compactor_backend backend, const compactor_cache_options *options, compactor_cache *cache);
/* Says how full it is and where its memory is. */
compactor_status compactor_cache_describe(compactor_cache cache, compactor_cache_info *info);

/* Gives its memory back; COMPACTOR_IN_USE while a sequence is alive. */
compactor_status compactor_cache_destroy(compactor_cache cache);

/* An empty sequence. */
compactor_status compactor_sequence_create(compactor_cache cache, compactor_sequence *sequence);

/* A sequence with the same content: full blocks are shared, the partial last block of each head is copied. */
compactor_status compactor_sequence_fork(compactor_sequence sequence, compactor_sequence *fork);

/* Gives its blocks back; COMPACTOR_IN_USE while a compaction is under way. */
compactor_status compactor_sequence_free(compactor_sequence sequence);

/* Takes the blocks that so many more tokens in every head of a layer need. */
compactor_status compactor_sequence_reserve(compactor_sequence sequence, int32_t layer, int32_t tokens);

/* Adds tokens first_token .. first_token + tokens - 1 of packed tensors [., Hkv, D] to every head of a layer, at positions first_position and following. */
compactor_status compactor_sequence_store(compactor_sequence sequence, int32_t layer, const compactor_tensor *key, const compactor_tensor *value,
                                          int32_t first_token, int32_t tokens, int32_t first_position);

/* A decode step: adds token b of packed tensors [count, Hkv, D] to sequence b, at positions[b] (host); all sequences or none. */
compactor_status compactor_sequence_append(const compactor_sequence *sequences, int32_t count, int32_t layer, const compactor_tensor *key,
                                           const compactor_tensor *value, const int32_t *positions);

/* Tokens each head of a layer holds, [Hkv], and, if position_end is not NULL, a position above every one stored there: where decoding goes on. */
compactor_status compactor_sequence_lengths(compactor_sequence sequence, int32_t layer, int32_t *lengths, int32_t count, int32_t *position_end);

/* Copies what one head holds, n = its length, to host memory, and waits for it: keys and values [n, D], bytes = n D x element size, positions [n]. */
compactor_status compactor_sequence_read(compactor_sequence sequence, int32_t layer, int32_t head, void *keys, uint64_t key_bytes,
                                         void *values, uint64_t value_bytes, int32_t *positions, int32_t position_count);

/*
 * Scores a prefill, selects, and stores the survivors behind what the sequences hold: one call a layer. first_positions: host [count], position of each sequence's
 * token 0; NULL for 0. compaction: receives the second phase, to be completed or cancelled; NULL to complete at once, which waits.
 */
compactor_status compactor_sequence_compress(const compactor_sequence *sequences, int32_t count, int32_t layer, compactor_plan plan, const compactor_layer *inputs,
                                             const int32_t *first_positions, compactor_compaction *compaction);

/* The same for a prefill that the sequences hold already, all of it and nothing else (slot t is token t): compacts in place, the blocks come back. */
compactor_status compactor_sequence_compact(const compactor_sequence *sequences, int32_t count, int32_t layer, compactor_plan plan, const compactor_layer *inputs,
                                            compactor_compaction *compaction);

/* Compresses what sequences hold further, by leverage alone. plan: of compactor_plan_create_held. rotary: without positions; NULL for keys without rotation. */
compactor_status compactor_sequence_recompress(const compactor_sequence *sequences, int32_t count, int32_t layer, compactor_plan plan,
                                               const compactor_rotary *rotary, compactor_compaction *compaction);

/* *ready = 1 if survivors have been moved, so that completing does not wait. */
compactor_status compactor_compaction_ready(compactor_compaction compaction, int32_t *ready);

/*
 * Reclaims: the sequences have the survivors, other blocks are free. Waits if it must. The handle is dead afterwards. Where it fails (COMPACTOR_NON_FINITE, on CUDA) the
 * sequences are as they were and the handle lives: cancel it.
 */
compactor_status compactor_compaction_complete(compactor_compaction compaction);

/* The sequences stay as they were, reserved blocks are free. Waits for survivors under way. The handle is dead afterwards. */
compactor_status compactor_compaction_cancel(compactor_compaction compaction);

/* ---- Block tables and decode attention ---- */

/*
 * Rows are (sequence, KV head), row = b Hkv + h. The last five arrays of each set are FlashInfer's page table for one KV head and batch B Hkv. Pointers are owned by
 * the tables object, valid until it is destroyed, read only; the device's are there when the stream has got so far, and must not be in use on other streams when they are
 * destroyed. On the CPU both sets are host memory.
 */
typedef struct compactor_tables_info {
    uint32_t struct_size;                   /* sizeof(compactor_tables_info) */
    int32_t rows;                           /* B Hkv */
    int32_t row_stride;                     /* entries of a row of tables: blocks of the longest head */
    int32_t pages;                          /* entries of indices */
    const int32_t *host_tables;             /* [rows, row_stride] block ids, -1 beyond a head's blocks */
    const int32_t *host_lengths;            /* [rows] tokens held */
    const int32_t *host_indptr;             /* [rows + 1] */
    const int32_t *host_indices;            /* [pages] */
    const int32_t *host_last_page_lengths;  /* [rows], 1 to block_size, 0 for an empty row */
    const int32_t *device_tables;           /* the same in backend memory */
    const int32_t *device_lengths;          /* [rows] */
    const int32_t *device_indptr;           /* [rows + 1] */
    const int32_t *device_indices;          /* [pages] */
    const int32_t *device_last_page_lengths; /* [rows] */
} compactor_tables_info;

/* Tables and lengths of a batch in one layer as they are at this moment. */
compactor_status compactor_tables_create(const compactor_sequence *sequences, int32_t count, int32_t layer, compactor_tables *tables);
/* Says where they are. */
compactor_status compactor_tables_describe(compactor_tables tables, compactor_tables_info *info);
/* Destroys them; the pointers of the info are then no longer valid. */
compactor_status compactor_tables_destroy(compactor_tables tables);

/*
 * A paged cache in memory the backend reaches: the library's own, or one that its host owns. Element d of a slot is at block block_stride + slot slot_stride
 * + head head_stride + d, in elements, the same for keys and values. NHD [blocks, block_size, Hkv, D]: block_size Hkv D, Hkv D, D. HND [blocks, Hkv, block_size, D]:
 * Hkv block_size D, D, block_size D. Head-blocks [blocks, block_size, D]: block_size D, D, 0.
 */
typedef struct compactor_paged_view {
    uint32_t struct_size; /* sizeof(compactor_paged_view) */
    int32_t element_type; /* COMPACTOR_FLOAT32 ... */
    void *keys;           /* block 0 of the keys, aligned to one element; written only by compactor_host_cache_compact */
    void *values;         /* block 0 of the values */
    uint64_t bytes;       /* that may be used from keys on, and from values on */
    int32_t blocks;       /* in the cache; ids in tables are below it */
    int32_t block_size;   /* slots of a block, 1 or more */
    int32_t kv_heads;     /* Hkv */
    int32_t dim;          /* D */
    int64_t block_stride; /* elements from one block to the next */
    int64_t slot_stride;  /* elements from one slot of a block to the next */
    int64_t head_stride;  /* elements from one KV head to the next in a block; 0 where a block holds one head */
} compactor_paged_view;

typedef struct compactor_decode_options {
    uint32_t struct_size; /* sizeof(compactor_decode_options) */
    int32_t reserved;     /* 0 */
    double scale;         /* multiplier of q.k; 0 for 1/sqrt(D) */
    double soft_cap;      /* logits become cap tanh(logit / cap) (Gemma 2); 0 for none */
} compactor_decode_options;

/*
 * Attention of one new token a sequence over what heads hold: out = softmax(scale q.k) V. query: packed [B, Hq, D]. tables [rows, row_stride] and lengths [rows]: backend
 * memory, rows B Hkv, or B where all heads share a table. output: float32 [B, Hq, D]; log_sum_exp: natural, [B, Hq], or NULL with count 0. options: NULL for defaults.
 * Heads that hold nothing give 0 and -infinity.
 */
compactor_status compactor_decode_attention(compactor_backend backend, const compactor_paged_view *cache, const compactor_tensor *query, const int32_t *tables,
                                            int64_t table_count, int32_t row_stride, const int32_t *lengths, int32_t length_count,
                                            const compactor_decode_options *options, float *output, int64_t output_count, float *log_sum_exp, int64_t lse_count);

/* The same over what sequences of one cache hold in a layer. */
compactor_status compactor_sequence_attend(const compactor_sequence *sequences, int32_t count, int32_t layer, const compactor_tensor *query,
                                           const compactor_decode_options *options, float *output, int64_t output_count, float *log_sum_exp, int64_t lse_count);

/*
 * Compacts inside a cache its host owns, with one table for all heads of a sequence: survivors move to the front of the sequence's own blocks, the host reuses the rest.
 * plan: of the tokens the tables hold, scope HEAD or TOKEN (ragged is COMPACTOR_UNSUPPORTED). tables: host [B, row_stride]. kept_*: of compactor_select with this plan, backend memory.
 * lengths (host [B]) receives the tokens held afterwards; ceil(length / block_size) blocks at the front of a table hold them.
 */
compactor_status compactor_host_cache_compact(compactor_backend backend, const compactor_paged_view *cache, compactor_plan plan, const int32_t *tables,
                                              int64_t table_count, int32_t row_stride, const int32_t *kept_indices, int64_t kept_count,
                                              const int32_t *kept_offsets, int64_t offset_count, int32_t *lengths, int32_t length_count);

/* ---- Calibration: how much to keep for a wanted quality. f(r) = expm1(r b) / expm1(b), b = alpha NLL(context) + beta, NLL in nats per token. ---- */

typedef struct compactor_calibration {
    uint32_t struct_size; /* sizeof(compactor_calibration) */
    int32_t samples;      /* observations it was fitted on, or 0 */
    double alpha;         /* finite */
    double beta;          /* finite */
    double error;         /* root mean square of f - y over the observations */
} compactor_calibration;

typedef struct compactor_calibration_sample {
    uint32_t struct_size; /* sizeof(compactor_calibration_sample) */
    int32_t reserved;     /* 0 */
    double retention;     /* r, share of the cache that was kept, 0 to 1 */
    double context_nll;   /* nats per token */
    double quality;       /* y = NLL(answer | full) / NLL(answer | compressed), 0 to 1 */
} compactor_calibration_sample;

/* Least squares over two or more samples with 0 < r < 1; overestimate_penalty (4 is usual) weighs errors that promise too much. */
compactor_status compactor_calibration_fit(const compactor_calibration_sample *samples, int32_t count, double overestimate_penalty, compactor_calibration *calibration);

/* Smallest retention whose expected quality reaches `quality`, both in [0, 1]. */
compactor_status compactor_calibration_retention(const compactor_calibration *calibration, double quality, double context_nll, double *retention);

/* Expected quality at a retention, both in [0, 1]. */
compactor_status compactor_calibration_quality(const compactor_calibration *calibration, double retention, double context_nll, double *quality);

/* Reads the JSON file of the managed library; COMPACTOR_INVALID_FILE where it is none. path: UTF-8. */
compactor_status compactor_calibration_load(const char *path, compactor_calibration *calibration);
/* Writes the same file, whole or not at all; an existing one is replaced at once. path: UTF-8. */
compactor_status compactor_calibration_save(const char *path, const compactor_calibration *calibration);

#ifdef __cplusplus
}
#endif

#endif
