/* One random call of every function that can fail. Part of misuse.c. */

/* Handles come out in an output of their own. */
static uint64_t *new_handle(void) { return pointer(flush_output(0, sizeof(uint64_t)), sizeof(uint64_t)); }

static compactor_status call_live_handles(void)
{
    int64_t *count = flush_output(0, sizeof *count);
    return compactor_live_handles(pointer(count, sizeof *count));
}

static compactor_status call_backend_open(void)
{
    compactor_backend_options *o = flush_buffer(1, sizeof *o);
    *o = (compactor_backend_options){ .struct_size = struct_size(sizeof *o), .kind = wrong() ? integer(0) : COMPACTOR_BACKEND_CPU, .device = integer(0),
                                      .threads = wrong() ? integer(0) % 64 : 1, .simd_bits = integer(0), .reserved = integer(0) };
    o->context = wrong() ? (void *)1 : NULL;
    o->stream = wrong() ? (void *)1 : NULL;
    compactor_backend *out = new_handle();
    if (object_counts[BACKEND] >= 3)
        out = NULL;
    compactor_status status = compactor_backend_open(chance(80) ? struct_pointer(o) : NULL, out);
    if (status == COMPACTOR_OK)
        born(BACKEND, &(object){ .handle = *out });
    return status;
}

static compactor_status call_backend_describe(void)
{
    compactor_backend_info *info = flush_output(0, sizeof *info);
    info->struct_size = struct_size(sizeof *info);
    memcpy(outputs[0].before, info, sizeof info->struct_size);
    return compactor_backend_describe(handle_of(some(BACKEND)), struct_pointer(info));
}

static compactor_status call_backend_synchronize(void) { return compactor_backend_synchronize(handle_of(some(BACKEND))); }

static compactor_status close_one(int kind, compactor_status (*close)(uint64_t))
{
    /* rarely the right one, so that there is always something alive */
    uint64_t handle = chance(40) ? handle_of(some(kind)) : graves[below(GRAVES)];
    compactor_status status = close(handle);
    if (status == COMPACTOR_OK)
        died(kind, handle);
    return status;
}

static compactor_status call_backend_close(void) { return close_one(BACKEND, compactor_backend_close); }
static compactor_status call_plan_destroy(void) { return close_one(PLAN, compactor_plan_destroy); }
static compactor_status call_cache_destroy(void) { return close_one(CACHE, compactor_cache_destroy); }
static compactor_status call_sequence_free(void) { return close_one(SEQUENCE, compactor_sequence_free); }
static compactor_status call_tables_destroy(void) { return close_one(TABLES, compactor_tables_destroy); }
static compactor_status call_compaction_complete(void) { return close_one(COMPACTION, compactor_compaction_complete); }
static compactor_status call_compaction_cancel(void) { return close_one(COMPACTION, compactor_compaction_cancel); }

static compactor_status call_options_preset(void)
{
    compactor_options *o = flush_output(0, sizeof *o);
    o->struct_size = struct_size(sizeof *o);
    memcpy(outputs[0].before, o, sizeof o->struct_size);
    return compactor_options_preset(integer(below(3)), struct_pointer(o));
}

static compactor_status call_plan_create(void)
{
    object plan = { .sequences = below(MOST_SEQUENCES + 1) };
    int32_t *cu = flush_buffer(1, (size_t)(plan.sequences + 1) * sizeof *cu);
    int64_t *ids = flush_buffer(2, (size_t)plan.sequences * sizeof *ids);
    cu[0] = 0;
    for (int32_t b = 0; b < plan.sequences; b++) {
        ids[b] = (int64_t)random_bits();
        cu[b + 1] = cu[b] + below(MOST_TOKENS / MOST_SEQUENCES + 1);
    }
    memcpy(plan.cu, cu, (size_t)(plan.sequences + 1) * sizeof *cu);
    plan.tokens = cu[plan.sequences];
    int spoilt = wrong();
    if (spoilt)
        cu[below(plan.sequences + 1)] = integer(3);
    compactor_shape *s = flush_buffer(3, sizeof *s);
    *s = (compactor_shape){ .struct_size = struct_size(sizeof *s), .sequences = claim(plan.sequences), .cu_seqlens = pointer(cu, (size_t)(plan.sequences + 1) * sizeof *cu),
                            .sequence_ids = chance(30) ? pointer(ids, (size_t)plan.sequences * sizeof *ids) : NULL, .query_heads = integer(QUERY_HEADS), .kv_heads = integer(KV_HEADS),
                            .head_dim = integer(DIM), .element_type = integer(COMPACTOR_FLOAT32), .layer = integer(0), .first_head = integer(0) };
    int32_t count = chance(50) ? 1 : plan.sequences;
    compactor_plan *out = new_handle();
    if (object_counts[PLAN] >= ALIVE - 2)
        out = NULL;
    compactor_status status = compactor_plan_create(struct_pointer(s), options(4), budgets(5, count), claim(count), out);
    if (status == COMPACTOR_OK) {
        /* a shape that was not meant is a plan all the same, of more than the buffers here hold */
        plan.handle = *out;
        if (spoilt || s->sequences != plan.sequences || s->cu_seqlens != cu || s->query_heads != QUERY_HEADS || s->kv_heads != KV_HEADS || s->head_dim != DIM) {
            must_close_plan(plan.handle);
        } else {
            describe_plan(&plan);
            born(PLAN, &plan);
        }
    }
    return status;
}

static compactor_status call_plan_create_held(void)
{
    int32_t count = 1 + below(2);
    compactor_plan *out = new_handle();
    if (object_counts[PLAN] >= ALIVE - 2)
        out = NULL;
    uint64_t *sequences = batch(1, count);
    int64_t ids[] = { 7, 9 };
    compactor_status status = compactor_plan_create_held(sequences, claim(count), layer_index(), integer(0), chance(50) ? ids : NULL, options(2), budgets(3, 1), 1, out);
    if (status == COMPACTOR_OK) {
        object plan = { .handle = *out, .owner = sequences[0], .sequences = count };
        describe_plan(&plan);
        /* it fits no dense buffer: kept for recompressing only */
        plan.kept = plan.pairs = 0;
        born(PLAN, &plan);
    }
    return status;
}

static compactor_status call_plan_describe(void)
{
    compactor_plan_info *info = flush_output(0, sizeof *info);
    info->struct_size = struct_size(sizeof *info);
    memcpy(outputs[0].before, info, sizeof info->struct_size);
    return compactor_plan_describe(handle_of(some(PLAN)), struct_pointer(info));
}

static const object nothing;

/* A plan that calls can be made for; where there is none, one that is not alive. */
static const object *a_plan(void)
{
    const object *plan = some(PLAN);
    return plan == NULL ? &nothing : plan;
}

static uint64_t backend_or_none(void) { return handle_of(some(BACKEND)); }

static compactor_status call_plan_kept(void)
{
    const object *plan = a_plan();
    int64_t *kept = flush_output(0, (size_t)plan->sequences * sizeof *kept);
    return compactor_plan_kept(handle_of(plan), pointer(kept, (size_t)plan->sequences * sizeof *kept), count32(plan->sequences));
}

static float *scores_in(int arena, const object *plan) { return pointer(rows(arena, (size_t)plan->pairs), (size_t)plan->pairs * sizeof(float)); }

static float *scores_out(int arena, const object *plan)
{
    return pointer(flush_output(arena, (size_t)plan->pairs * sizeof(float)), (size_t)plan->pairs * sizeof(float));
}

static compactor_status call_leverage(void)
{
    const object *plan = a_plan();
    const compactor_tensor *keys = layer_tensor(1, plan, KV_HEADS);
    const compactor_rotary *undo = chance(50) ? rotary(3, plan->tokens) : NULL;
    const float *phi = chance(20) ? rows(8, DIM * SKETCH) : NULL;
    return compactor_leverage(backend_or_none(), handle_of(plan), keys, undo, phi, phi == NULL ? 0 : claim(DIM * SKETCH), scores_out(9, plan), count64(plan->pairs));
}

static compactor_status call_attention_scores(void)
{
    const object *plan = a_plan();
    const compactor_tensor *query = layer_tensor(1, plan, QUERY_HEADS), *key = layer_tensor(3, plan, KV_HEADS);
    return compactor_attention_scores(backend_or_none(), handle_of(plan), query, key, scores_out(5, plan), count64(plan->pairs));
}

static compactor_status call_fuse(void)
{
    const object *plan = a_plan();
    const float *leverage = chance(90) ? scores_in(1, plan) : NULL, *attention = chance(90) ? scores_in(2, plan) : NULL;
    const compactor_tensor *value = layer_tensor(3, plan, KV_HEADS);
    int64_t *non_finite = chance(50) ? pointer(flush_output(5, sizeof *non_finite), sizeof *non_finite) : NULL;
    return compactor_fuse(backend_or_none(), handle_of(plan), leverage, attention, value, scores_out(6, plan), count64(plan->pairs), non_finite);
}

static int32_t *kept_out(int arena, const object *plan)
{
    return pointer(flush_output(arena, (size_t)plan->kept * sizeof(int32_t)), (size_t)plan->kept * sizeof(int32_t));
}

static int64_t offset_count(const object *plan) { return (int64_t)plan->sequences * KV_HEADS + 1; }

static int32_t *offsets_out(int arena, const object *plan)
{
    return pointer(flush_output(arena, (size_t)offset_count(plan) * sizeof(int32_t)), (size_t)offset_count(plan) * sizeof(int32_t));
}

static compactor_status call_select(void)
{
    const object *plan = a_plan();
    const float *scores = scores_in(1, plan);
    return compactor_select(backend_or_none(), handle_of(plan), scores, count64(plan->pairs), kept_out(2, plan), count64(plan->kept), offsets_out(3, plan),
                            count64(offset_count(plan)));
}

static compactor_status call_compact(void)
{
    const object *plan = a_plan();
    const compactor_tensor *source = layer_tensor(1, plan, KV_HEADS);
    int32_t *indices, *offsets;
    kept_lists(3, plan, &indices, &offsets);
    size_t bytes = (size_t)plan->kept * DIM * sizeof(float);
    void *destination = pointer(flush_output(5, bytes), bytes);
    return compactor_compact(backend_or_none(), handle_of(plan), source, indices, count64(plan->kept), offsets, count64(offset_count(plan)), destination, (uint64_t)count64((int64_t)bytes));
}

static compactor_status call_compress_layer(void)
{
    const object *plan = a_plan();
    const compactor_layer *layer = layer_inputs(1, plan);
    /* the workspace starts on its boundary and ends flush: its size is a multiple of 256 */
    void *workspace = pointer(flush_buffer(16, plan->workspace), plan->workspace);
    size_t bytes = (size_t)plan->kept * DIM * sizeof(float);
    int gather = chance(50);
    void *key = gather ? pointer(flush_output(17, bytes), bytes) : NULL, *value = gather ? pointer(flush_output(18, bytes), bytes) : NULL;
    int64_t workspace_bytes = count64((int64_t)plan->workspace);
    if (workspace_bytes > (int64_t)plan->workspace)
        workspace_bytes = 0;
    return compactor_compress_layer(backend_or_none(), handle_of(plan), layer, workspace, (uint64_t)workspace_bytes, kept_out(19, plan), count64(plan->kept),
                                    offsets_out(20, plan), count64(offset_count(plan)), key, gather ? (uint64_t)count64((int64_t)bytes) : 0,
                                    value, gather ? (uint64_t)count64((int64_t)bytes) : 0);
}

static compactor_status call_cache_create(void)
{
    compactor_cache_options *o = flush_buffer(1, sizeof *o);
    *o = (compactor_cache_options){ .struct_size = struct_size(sizeof *o), .layers = integer(LAYERS), .kv_heads = integer(KV_HEADS), .head_dim = integer(DIM),
                                    .element_type = integer(COMPACTOR_FLOAT32), .blocks = integer(48), .block_size = integer(16), .reserved = integer(0) };
    compactor_cache *out = new_handle();
    if (object_counts[CACHE] >= 3)
        out = NULL;
    const object *backend = some(BACKEND);
    compactor_status status = compactor_cache_create(handle_of(backend), struct_pointer(o), out);
    if (status == COMPACTOR_OK)
        born(CACHE, &(object){ .handle = *out });
    return status;
}

static compactor_status call_cache_describe(void)
{
    compactor_cache_info *info = flush_output(0, sizeof *info);
    info->struct_size = struct_size(sizeof *info);
    memcpy(outputs[0].before, info, sizeof info->struct_size);
    return compactor_cache_describe(handle_of(some(CACHE)), struct_pointer(info));
}

static compactor_status call_sequence_create(void)
{
    compactor_sequence *out = new_handle();
    if (object_counts[SEQUENCE] >= ALIVE / 2)
        out = NULL;
    compactor_status status = compactor_sequence_create(handle_of(some(CACHE)), out);
    if (status == COMPACTOR_OK)
        born(SEQUENCE, &(object){ .handle = *out });
    return status;
}

static compactor_status call_sequence_fork(void)
{
    compactor_sequence *out = new_handle();
    if (object_counts[SEQUENCE] >= ALIVE - 2)
        out = NULL;
    compactor_status status = compactor_sequence_fork(handle_of(some(SEQUENCE)), out);
    if (status == COMPACTOR_OK)
        born(SEQUENCE, &(object){ .handle = *out });
    return status;
}

static compactor_status call_sequence_reserve(void) { return compactor_sequence_reserve(handle_of(some(SEQUENCE)), layer_index(), integer(below(40))); }

static compactor_status call_sequence_store(void)
{
    int32_t tokens = below(40);
    const compactor_tensor *key = tensor(1, 1, tokens, NULL, KV_HEADS), *value = tensor(3, 1, tokens, NULL, KV_HEADS);
    int32_t first = below(tokens + 1);
    return compactor_sequence_store(handle_of(some(SEQUENCE)), layer_index(), key, value, integer(first), integer(tokens - first), integer(below(1000)));
}

static compactor_status call_sequence_append(void)
{
    int32_t count = 1 + below(2);
    uint64_t *sequences = batch(1, count);
    const compactor_tensor *key = tensor(2, 1, count, NULL, KV_HEADS), *value = tensor(4, 1, count, NULL, KV_HEADS);
    int32_t *positions = flush_buffer(6, (size_t)count * sizeof *positions);
    for (int32_t b = 0; b < count; b++)
        positions[b] = integer(100);
    return compactor_sequence_append(sequences, claim(count), layer_index(), key, value, pointer(positions, (size_t)count * sizeof *positions));
}

static compactor_status call_sequence_lengths(void)
{
    int32_t *lengths = flush_output(0, KV_HEADS * sizeof *lengths), *end = flush_output(1, sizeof *end);
    return compactor_sequence_lengths(handle_of(some(SEQUENCE)), layer_index(), pointer(lengths, KV_HEADS * sizeof *lengths), count32(KV_HEADS),
                                      chance(50) ? pointer(end, sizeof *end) : NULL);
}

static compactor_status call_sequence_read(void)
{
    uint64_t sequence = handle_of(some(SEQUENCE));
    int32_t lengths[KV_HEADS] = { 0 }, layer = layer_index(), head = integer(below(KV_HEADS));
    compactor_sequence_lengths(sequence, layer, lengths, KV_HEADS, NULL);
    size_t n = head >= 0 && head < KV_HEADS ? (size_t)lengths[head] : 1, bytes = n * DIM * sizeof(float);
    void *keys = pointer(flush_output(0, bytes), bytes), *values = pointer(flush_output(1, bytes), bytes);
    int32_t *positions = pointer(flush_output(2, n * sizeof *positions), n * sizeof *positions);
    return compactor_sequence_read(sequence, layer, head, keys, (uint64_t)count64((int64_t)bytes), values, (uint64_t)count64((int64_t)bytes), positions, count32((int32_t)n));
}

static compactor_status begun(compactor_status status, const uint64_t *out)
{
    if (status == COMPACTOR_OK && out != NULL)
        born(COMPACTION, &(object){ .handle = *out });
    return status;
}

static uint64_t *new_compaction(void) { return chance(50) || object_counts[COMPACTION] >= 3 ? NULL : new_handle(); }

static compactor_status call_sequence_compress(void)
{
    const object *plan = a_plan();
    int32_t count = plan->sequences == 0 ? 1 : plan->sequences, positions[] = { 0, integer(50) };
    uint64_t *sequences = batch(21, count), *out = new_compaction();
    const compactor_layer *layer = layer_inputs(1, plan);
    return begun(compactor_sequence_compress(sequences, claim(count), layer_index(), handle_of(plan), layer, chance(30) ? positions : NULL, out), out);
}

/* A sequence that holds just what a plan of one sequence is of. */
static compactor_status call_sequence_compact(void)
{
    const object *plan = a_plan(), *cache = some(CACHE);
    uint64_t sequence = 0, *out = new_compaction(), *sequences = flush_buffer(21, sizeof *sequences);
    int32_t layer_of = below(LAYERS);
    int64_t bytes = (int64_t)plan->tokens * KV_HEADS * DIM * (int64_t)sizeof(float);
    if (plan->sequences == 1 && cache != NULL && object_counts[SEQUENCE] < ALIVE && compactor_sequence_create(cache->handle, &sequence) == COMPACTOR_OK) {
        born(SEQUENCE, &(object){ .handle = sequence });
        cache_prepared = 1;
        compactor_tensor all = { .struct_size = sizeof all, .data = flush_buffer(22, (size_t)bytes), .data_bytes = (uint64_t)bytes, .tokens = plan->tokens, .heads = KV_HEADS,
                                 .dim = DIM, .token_stride = KV_HEADS * DIM, .head_stride = DIM };
        compactor_sequence_store(sequence, layer_of, &all, &all, 0, plan->tokens, 0);
    }
    *sequences = wrong() ? handle_of(some(SEQUENCE)) : sequence;
    const compactor_layer *layer = layer_inputs(1, plan);
    return begun(compactor_sequence_compact(pointer(sequences, sizeof *sequences), claim(1), wrong() ? layer_index() : layer_of, handle_of(plan), layer, out), out);
}

static compactor_status call_sequence_recompress(void)
{
    const object *plan = a_plan();
    int32_t count = plan->sequences == 0 ? 1 : plan->sequences;
    uint64_t *sequences = batch(21, count), *out = new_compaction();
    if (plan->owner != 0 && !wrong())
        sequences = memcpy(flush_buffer(21, sizeof(uint64_t)), &plan->owner, sizeof(uint64_t));
    return begun(compactor_sequence_recompress(sequences, plan->owner != 0 ? 1 : claim(count), layer_index(), handle_of(plan), chance(50) ? rotary(1, MOST_TOKENS) : NULL, out), out);
}

static compactor_status call_compaction_ready(void)
{
    int32_t *ready = flush_output(0, sizeof *ready);
    return compactor_compaction_ready(handle_of(some(COMPACTION)), pointer(ready, sizeof *ready));
}

static compactor_status call_tables_create(void)
{
    int32_t count = 1 + below(2);
    compactor_tables *out = new_handle();
    if (object_counts[TABLES] >= 3)
        out = NULL;
    compactor_status status = compactor_tables_create(batch(1, count), claim(count), layer_index(), out);
    if (status == COMPACTOR_OK)
        born(TABLES, &(object){ .handle = *out });
    return status;
}

static compactor_status call_tables_describe(void)
{
    compactor_tables_info *info = flush_output(0, sizeof *info);
    info->struct_size = struct_size(sizeof *info);
    memcpy(outputs[0].before, info, sizeof info->struct_size);
    return compactor_tables_describe(handle_of(some(TABLES)), struct_pointer(info));
}

static const compactor_decode_options *decode_options(int arena)
{
    compactor_decode_options *o = flush_buffer(arena, sizeof *o);
    *o = (compactor_decode_options){ .struct_size = struct_size(sizeof *o), .reserved = integer(0), .scale = number(0.25), .soft_cap = number(0) };
    return chance(50) ? struct_pointer(o) : NULL;
}

static float *attention_out(int arena, int32_t count) { return pointer(flush_output(arena, (size_t)count * sizeof(float)), (size_t)count * sizeof(float)); }

static compactor_status call_decode_attention(void)
{
    int32_t sequences = 1 + below(2), stride = HOST_BLOCKS / 2, lengths_given = chance(50) ? sequences : sequences * KV_HEADS;
    const compactor_paged_view *cache = view(1);
    const compactor_tensor *query = tensor(4, 1, sequences, NULL, QUERY_HEADS);
    int32_t *tables = block_ids(6, lengths_given * stride), *lengths = flush_buffer(7, (size_t)lengths_given * sizeof *lengths);
    for (int32_t row = 0; row < lengths_given; row++)
        lengths[row] = integer(below(stride * HOST_BLOCK));
    int lse = below(2);
    return compactor_decode_attention(backend_or_none(), cache, query, pointer(tables, (size_t)(lengths_given * stride) * sizeof *tables), count64(lengths_given * stride),
                                      wrong() ? -below(3) : claim(stride), pointer(lengths, (size_t)lengths_given * sizeof *lengths), claim(lengths_given), decode_options(8),
                                      attention_out(9, sequences * QUERY_HEADS * DIM), count64(sequences * QUERY_HEADS * DIM),
                                      lse ? attention_out(10, sequences * QUERY_HEADS) : NULL, lse ? count64(sequences * QUERY_HEADS) : 0);
}

static compactor_status call_sequence_attend(void)
{
    int32_t count = 1 + below(2);
    uint64_t *sequences = batch(1, count);
    const compactor_tensor *query = tensor(2, 1, count, NULL, QUERY_HEADS);
    int lse = below(2);
    return compactor_sequence_attend(sequences, claim(count), layer_index(), query, decode_options(4), attention_out(5, count * QUERY_HEADS * DIM), count64(count * QUERY_HEADS * DIM),
                                     lse ? attention_out(6, count * QUERY_HEADS) : NULL, lse ? count64(count * QUERY_HEADS) : 0);
}

static compactor_status call_host_cache_compact(void)
{
    const object *plan = a_plan();
    int32_t stride = HOST_BLOCKS / 2, sequences = plan->sequences, *indices, *offsets;
    const compactor_paged_view *cache = view(1);
    int32_t *tables = block_ids(4, sequences * stride);
    kept_lists(5, plan, &indices, &offsets);
    int32_t *lengths = pointer(flush_output(7, (size_t)sequences * sizeof *lengths), (size_t)sequences * sizeof *lengths);
    return compactor_host_cache_compact(backend_or_none(), cache, handle_of(plan), pointer(tables, (size_t)(sequences * stride) * sizeof *tables), count64(sequences * stride),
                                        wrong() ? -below(3) : claim(stride), indices, count64(plan->kept), offsets, count64(offset_count(plan)), lengths, count32(sequences));
}

static const compactor_calibration *a_calibration(int arena)
{
    compactor_calibration *c = flush_buffer(arena, sizeof *c);
    *c = (compactor_calibration){ .struct_size = struct_size(sizeof *c), .samples = integer(3), .alpha = number(-2), .beta = number(-1), .error = number(0.1) };
    return struct_pointer(c);
}

static compactor_status call_calibration_fit(void)
{
    int32_t count = 2 + below(4);
    compactor_calibration_sample *samples = flush_buffer(1, (size_t)count * sizeof *samples);
    for (int32_t i = 0; i < count; i++)
        samples[i] = (compactor_calibration_sample){ .struct_size = struct_size(sizeof *samples), .reserved = integer(0), .retention = number(below(10) / 10.0),
                                                     .context_nll = number(1 + i), .quality = number(below(11) / 10.0) };
    compactor_calibration *out = flush_output(2, sizeof *out);
    out->struct_size = struct_size(sizeof *out);
    memcpy(outputs[0].before, out, sizeof out->struct_size);
    /* a fit takes a millisecond: one in eight is of right arguments */
    return compactor_calibration_fit(chance(88) ? NULL : struct_pointer(samples), claim(count), number(4), struct_pointer(out));
}

static compactor_status call_calibration_retention(void)
{
    double *out = flush_output(0, sizeof *out);
    return compactor_calibration_retention(a_calibration(1), number(0.9), number(2), pointer(out, sizeof *out));
}

static compactor_status call_calibration_quality(void)
{
    double *out = flush_output(0, sizeof *out);
    return compactor_calibration_quality(a_calibration(1), number(0.5), number(2), pointer(out, sizeof *out));
}

static const char *path(int arena)
{
    static const char *const paths[] = { "", "/nonexistent/folder/file", "/", "misuse-calibration.json", "misuse-calibration.json", "misuse-other.json" };
    const char *chosen = paths[below(6)];
    size_t bytes = strlen(chosen) + 1;
    char *at = memcpy(flush_buffer(arena, bytes), chosen, bytes);
    return wrong() ? NULL : at;
}

static compactor_status call_calibration_save(void) { return chance(80) ? compactor_calibration_save(NULL, NULL) : compactor_calibration_save(path(1), a_calibration(2)); }

static compactor_status call_calibration_load(void)
{
    compactor_calibration *out = flush_output(0, sizeof *out);
    out->struct_size = struct_size(sizeof *out);
    memcpy(outputs[0].before, out, sizeof out->struct_size);
    return compactor_calibration_load(path(1), struct_pointer(out));
}

static const struct {
    const char *name;
    compactor_status (*make)(void);
} calls_of[] = {
#define CALL(name) { "compactor_" #name, call_##name }
    CALL(live_handles), CALL(backend_open), CALL(backend_describe), CALL(backend_synchronize), CALL(backend_close), CALL(options_preset), CALL(plan_create),
    CALL(plan_create_held), CALL(plan_describe), CALL(plan_kept), CALL(plan_destroy), CALL(leverage), CALL(attention_scores), CALL(fuse), CALL(select), CALL(compact),
    CALL(compress_layer), CALL(cache_create), CALL(cache_describe), CALL(cache_destroy), CALL(sequence_create), CALL(sequence_fork), CALL(sequence_free),
    CALL(sequence_reserve), CALL(sequence_store), CALL(sequence_append), CALL(sequence_lengths), CALL(sequence_read), CALL(sequence_compress), CALL(sequence_compact),
    CALL(sequence_recompress), CALL(compaction_ready), CALL(compaction_complete), CALL(compaction_cancel), CALL(tables_create), CALL(tables_describe),
    CALL(tables_destroy), CALL(decode_attention), CALL(sequence_attend), CALL(host_cache_compact), CALL(calibration_fit), CALL(calibration_retention),
    CALL(calibration_quality), CALL(calibration_load), CALL(calibration_save),
#undef CALL
};

enum { CALL_COUNT = sizeof calls_of / sizeof *calls_of };
