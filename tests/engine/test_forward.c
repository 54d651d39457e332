// engine/forward.c on the CPU backend, against the golden vectors of tests/vectors (written by another implementation).
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <math.h>
#include <cmocka.h>
#include <cjson/cJSON.h>

#include "forward.h"
#include "model/weights.h"

enum { MAX_ROWS = 64, PAGE_SIZE = 4, N_PAGES = 64, SEQ_PAGES = 16, N_SEQS = 4 };

static const char *const models[] = {"one_layer_f32", "three_heads", "wide_q", "yarn", "yarn_attention", "rows_block"};
enum { N_MODELS = sizeof models / sizeof *models };

// ---- golden vectors -------------------------------------------------------------------------------------------------

struct golden {
    cJSON *json;
    const cJSON *logits, *block; // inside json
    float *rows;                 // [n_rows][n_vocab]
    int32_t tokens[MAX_ROWS], n, n_vocab, prefix, block_tokens[MAX_ROWS], n_block;
};

static char *read_whole(const char *path, size_t *ret_n)
{
    FILE *f = fopen(path, "rb");
    if (!f)
        fail_msg("cannot open %s", path);
    fseek(f, 0, SEEK_END);
    long n = ftell(f);
    rewind(f);
    char *data = malloc((size_t)n + 1);
    assert_int_equal(fread(data, 1, (size_t)n, f), n);
    data[n] = '\0';
    fclose(f);
    *ret_n = (size_t)n;
    return data;
}

static const cJSON *member(const cJSON *object, const char *key)
{
    const cJSON *v = cJSON_GetObjectItemCaseSensitive(object, key);
    if (!v)
        fail_msg("no \"%s\"", key);
    return v;
}

static int32_t read_ints(const cJSON *array, int32_t *ret)
{
    int32_t n = 0;
    const cJSON *v;
    cJSON_ArrayForEach(v, array)
    {
        assert_true(n < MAX_ROWS);
        ret[n++] = v->valueint;
    }
    return n;
}

static void golden_open(struct golden *g, const char *name)
{
    char path[512];
    size_t n;
    snprintf(path, sizeof path, "%s/tests/vectors/%s.json", TRIMODE_SOURCE_DIR, name);
    char *text = read_whole(path, &n);
    g->json = cJSON_Parse(text);
    free(text);
    assert_non_null(g->json);
    snprintf(path, sizeof path, "%s/tests/vectors/%s", TRIMODE_SOURCE_DIR, member(g->json, "logits_file")->valuestring);
    g->rows = (float *)(void *)read_whole(path, &n);
    g->n_vocab = member(g->json, "vocab")->valueint;
    assert_int_equal(n, (size_t)member(g->json, "logits_rows")->valueint * (size_t)g->n_vocab * sizeof(float));
    g->logits = member(g->json, "logits");
    g->block = member(g->logits, "block");
    g->n = read_ints(member(g->logits, "tokens"), g->tokens);
    g->prefix = member(g->block, "prefix_length")->valueint;
    g->n_block = read_ints(member(g->block, "tokens"), g->block_tokens);
}

static void golden_close(struct golden *g)
{
    cJSON_Delete(g->json);
    free(g->rows);
}

// where: {"first_row", "n_rows"}
static const float *golden_rows(const struct golden *g, const cJSON *where, int32_t expected)
{
    assert_int_equal(member(where, "n_rows")->valueint, expected);
    return g->rows + (size_t)member(where, "first_row")->valueint * (size_t)g->n_vocab;
}

// ---- a model and its batch ------------------------------------------------------------------------------------------

struct rig {
    struct krn_backend *backend;
    struct eng_weights *weights;
    struct eng_model model;
    struct eng_batch batch;
    int32_t tokens[MAX_ROWS];
    struct eng_segment segments[MAX_ROWS];
    struct krn_select_row wanted[MAX_ROWS];
    struct krn_choice choices[MAX_ROWS];
    int32_t pages[N_SEQS][SEQ_PAGES];
    float *logits; // [MAX_ROWS][n_vocab]
};

static void rig_weights(struct rig *r, const char *name, const char *weights, const char *adapter)
{
    char path[512], err[512] = "";
    snprintf(path, sizeof path, "%s/tests/vectors/models/%s", TRIMODE_SOURCE_DIR, name);
    if (eng_weights_load(path, weights, adapter, r->backend, NULL, NULL, &r->weights, err, sizeof err) != 0)
        fail_msg("%s: %s", name, err);
}

static void rig_open(struct rig *r, const char *name, const char *weights, const char *adapter, uint32_t cpu_mask)
{
    char err[512] = "";
    memset(r, 0, sizeof *r);
    if (krn_open_cpu(2, cpu_mask, &r->backend, err, sizeof err) != 0)
        fail_msg("%s", err);
    rig_weights(r, name, weights, adapter);
    if (eng_forward_open(r->backend, r->weights, MAX_ROWS, N_PAGES, PAGE_SIZE, &r->model, err, sizeof err) != 0)
        fail_msg("%s", err);
    // the sequences' pages are interleaved and run backwards: nothing may rely on their order
    for (int s = 0; s < N_SEQS; s++)
        for (int p = 0; p < SEQ_PAGES; p++)
            r->pages[s][p] = N_PAGES - 1 - (p * N_SEQS + s);
    r->logits = calloc((size_t)MAX_ROWS * (size_t)r->model.n_vocab, sizeof(float));
    r->batch = (struct eng_batch){.max_rows = MAX_ROWS,
                                  .tokens = r->tokens,
                                  .max_segments = MAX_ROWS,
                                  .segments = r->segments,
                                  .wanted = r->wanted,
                                  .choices = r->choices};
}

static void rig_close(struct rig *r)
{
    free(r->logits);
    r->model.close(r->model.ctx);
    eng_weights_free(r->weights, r->backend);
    r->backend->close(r->backend->ctx);
}

static void rig_reset(struct rig *r)
{
    r->batch.n_rows = r->batch.n_segments = r->batch.n_wanted = 0;
}

static void rig_want(struct rig *r, int32_t row)
{
    r->wanted[r->batch.n_wanted++] = (struct krn_select_row){.row = row, .top_p = 1, .repetition_penalty = 1};
}

// One segment; every row is wanted.
static void rig_add(struct rig *r, int32_t seq, const int32_t *tokens, int32_t n, int32_t first_pos, enum krn_mask mask,
                    bool adapter)
{
    struct eng_batch *b = &r->batch;
    assert_true(b->n_rows + n <= MAX_ROWS && first_pos + n <= SEQ_PAGES * PAGE_SIZE);
    b->segments[b->n_segments++] = (struct eng_segment){.slot = seq,
                                                        .row = b->n_rows,
                                                        .rows = n,
                                                        .first_pos = first_pos,
                                                        .mask = mask,
                                                        .keep = mask == KRN_MASK_CAUSAL,
                                                        .adapter = adapter,
                                                        .pages = r->pages[seq],
                                                        .first_wanted = b->n_wanted,
                                                        .n_wanted = n};
    for (int32_t i = 0; i < n; i++) {
        b->tokens[b->n_rows + i] = tokens[i];
        rig_want(r, b->n_rows + i);
    }
    b->n_rows += n;
}

static const float *rig_run(struct rig *r)
{
    assert_int_equal(eng_forward_logits(&r->model, &r->batch, r->logits), 0);
    return r->logits;
}

// A batch of this one segment.
static const float *rig_run_one(struct rig *r, int32_t seq, const int32_t *tokens, int32_t n, int32_t first_pos,
                                enum krn_mask mask, bool adapter)
{
    rig_reset(r);
    rig_add(r, seq, tokens, n, first_pos, mask, adapter);
    return rig_run(r);
}

static float *copy_rows(const float *rows, int32_t n, int32_t width)
{
    float *p = malloc((size_t)n * (size_t)width * sizeof *p);
    memcpy(p, rows, (size_t)n * (size_t)width * sizeof *p);
    return p;
}

static void assert_same_bits(const float *a, const float *b, int32_t rows, int32_t width)
{
    assert_memory_equal(a, b, (size_t)rows * (size_t)width * sizeof *a);
}

// 1e-4 of the row's largest logit.
static void assert_close(const char *what, const float *got, const float *want, int32_t n)
{
    float most = 0;
    for (int32_t i = 0; i < n; i++)
        most = fmaxf(most, fabsf(want[i]));
    for (int32_t i = 0; i < n; i++)
        if (!(fabsf(got[i] - want[i]) <= 1e-4f * most))
            fail_msg("%s: logit %d is %.7g, expected %.7g", what, i, (double)got[i], (double)want[i]);
}

// The versions of the kernels this machine can run; each test body runs on all.
static int cpu_masks(uint32_t ret[3])
{
    uint32_t have = krn_cpu_features();
    int n = 0;
    ret[n++] = 0;
    if (have & KRN_CPU_AVX2)
        ret[n++] = KRN_CPU_AVX2;
    if ((have & (KRN_CPU_AVX2 | KRN_CPU_AVX512)) == (KRN_CPU_AVX2 | KRN_CPU_AVX512))
        ret[n++] = KRN_CPU_AVX2 | KRN_CPU_AVX512;
    return n;
}

static void on_every_version(void (*body)(struct rig *r, const struct golden *g))
{
    uint32_t masks[3];
    int n = cpu_masks(masks);
    for (int m = 0; m < N_MODELS; m++)
        for (int i = 0; i < n; i++) {
            struct golden g;
            struct rig r;
            golden_open(&g, models[m]);
            rig_open(&r, models[m], "auto", "auto", masks[i]);
            body(&r, &g);
            rig_close(&r);
            golden_close(&g);
        }
}

// ---- golden logits --------------------------------------------------------------------------------------------------

static void check_golden(struct rig *r, const struct golden *g)
{
    int32_t positions[MAX_ROWS], width = g->n_vocab;
    const cJSON *causal = member(g->logits, "causal"), *on = cJSON_GetObjectItemCaseSensitive(g->block, "adapter_on");
    int32_t n = read_ints(member(causal, "positions"), positions);
    const float *want = golden_rows(g, causal, n);
    const float *got = rig_run_one(r, 0, g->tokens, g->n, 0, KRN_MASK_CAUSAL, false);
    for (int32_t i = 0; i < n; i++)
        assert_close("causal", got + (size_t)positions[i] * (size_t)width, want + (size_t)i * (size_t)width, width);

    // the block's rows overwrite the slots of the prompt's tail, which nothing reads again
    want = golden_rows(g, member(g->block, "adapter_off"), g->n_block);
    got = rig_run_one(r, 0, g->block_tokens, g->n_block, g->prefix, KRN_MASK_BLOCK, false);
    for (int32_t i = 0; i < g->n_block; i++)
        assert_close("block", got + (size_t)i * (size_t)width, want + (size_t)i * (size_t)width, width);
    assert_int_equal(r->model.has_adapter, on != NULL);
    if (!on)
        return;
    want = golden_rows(g, on, g->n_block);
    got = rig_run_one(r, 0, g->block_tokens, g->n_block, g->prefix, KRN_MASK_BLOCK, true);
    for (int32_t i = 0; i < g->n_block; i++)
        assert_close("adapter", got + (size_t)i * (size_t)width, want + (size_t)i * (size_t)width, width);
}

static void test_logits_are_the_reference(void **state)
{
    (void)state;
    on_every_version(check_golden);
}

static void test_widened_weights_give_the_reference_too(void **state)
{
    (void)state;
    for (int m = 0; m < N_MODELS; m++) {
        struct golden g;
        struct rig r;
        golden_open(&g, models[m]);
        rig_open(&r, models[m], "f32", "auto", ~0u);
        assert_int_equal(r.weights->type, KRN_F32);
        check_golden(&r, &g);
        rig_close(&r);
        golden_close(&g);
    }
}

static void test_rounded_weights_stay_near(void **state)
{
    (void)state;
    struct golden g;
    struct rig r;
    golden_open(&g, "one_layer_f32");
    rig_open(&r, "one_layer_f32", "bf16", "auto", ~0u);
    assert_int_equal(r.weights->type, KRN_BF16);
    float *a = copy_rows(rig_run_one(&r, 0, g.tokens, g.n, 0, KRN_MASK_CAUSAL, false), g.n, g.n_vocab);
    rig_close(&r);
    rig_open(&r, "one_layer_f32", "auto", "auto", ~0u);
    const float *b = rig_run_one(&r, 0, g.tokens, g.n, 0, KRN_MASK_CAUSAL, false);
    double difference = 0, size = 0;
    for (int32_t i = 0; i < g.n * g.n_vocab; i++) {
        difference += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
        size += (double)b[i] * b[i];
    }
    assert_true(difference > 0 && sqrt(difference / size) < 0.02); // 8 bits a weight: about 0.2 % each
    free(a);
    rig_close(&r);
    golden_close(&g);
}

// ---- exact properties -----------------------------------------------------------------------------------------------

static void check_pieces(struct rig *r, const struct golden *g)
{
    int32_t pieces[MAX_ROWS], width = g->n_vocab, at = 0;
    int32_t n = read_ints(member(g->logits, "pieces"), pieces);
    float *whole = copy_rows(rig_run_one(r, 0, g->tokens, g->n, 0, KRN_MASK_CAUSAL, false), g->n, width);
    for (int32_t i = 0; i < n; i++) {
        const float *part = rig_run_one(r, 1, g->tokens + at, pieces[i], at, KRN_MASK_CAUSAL, false);
        assert_same_bits(part, whole + (size_t)at * (size_t)width, pieces[i], width);
        at += pieces[i];
    }
    assert_int_equal(at, g->n);
    for (at = 0; at < g->n; at++) // one row at a time, as AR steps do
        assert_same_bits(rig_run_one(r, 2, g->tokens + at, 1, at, KRN_MASK_CAUSAL, false),
                         whole + (size_t)at * (size_t)width, 1, width);
    free(whole);
}

static void test_a_prompt_in_pieces_is_the_whole_prompt(void **state)
{
    (void)state;
    on_every_version(check_pieces);
}

static void check_neighbours(struct rig *r, const struct golden *g)
{
    int32_t width = g->n_vocab, half = g->n / 2;
    // alone: sequence 0 prompt tail, sequence 1 a draft, sequence 2 one AR row, sequence 3 a denoise pass
    for (int32_t s = 0; s < N_SEQS; s++)
        rig_run_one(r, s, g->tokens, s == 0 ? half : g->prefix, 0, KRN_MASK_CAUSAL, false);
    const struct {
        int32_t seq, n, first;
        const int32_t *tokens;
        enum krn_mask mask;
        bool adapter;
    } parts[] = {
        {1, g->n_block, g->prefix, g->block_tokens, KRN_MASK_BLOCK, true},
        {0, 9, half, g->tokens + half, KRN_MASK_CAUSAL, false},
        {2, 1, g->prefix, g->tokens + g->prefix, KRN_MASK_CAUSAL, false},
        {3, g->n_block, g->prefix, g->block_tokens, KRN_MASK_BLOCK, false},
    };
    float *alone[4];
    struct krn_choice choices[4][MAX_ROWS];
    for (int i = 0; i < 4; i++) {
        alone[i] = copy_rows(
            rig_run_one(r, parts[i].seq, parts[i].tokens, parts[i].n, parts[i].first, parts[i].mask, parts[i].adapter),
            parts[i].n, width);
        memcpy(choices[i], r->choices, sizeof r->choices);
    }
    rig_reset(r);
    for (int i = 0; i < 4; i++)
        rig_add(r, parts[i].seq, parts[i].tokens, parts[i].n, parts[i].first, parts[i].mask, parts[i].adapter);
    const float *together = rig_run(r);
    int32_t row = 0;
    for (int i = 0; i < 4; i++) {
        assert_same_bits(together + (size_t)row * (size_t)width, alone[i], parts[i].n, width);
        for (int32_t j = 0; j < parts[i].n; j++) {
            assert_int_equal(r->choices[row + j].token, choices[i][j].token);
            assert_true(r->choices[row + j].confidence == choices[i][j].confidence);
        }
        row += parts[i].n;
        free(alone[i]);
    }
}

static void test_a_row_does_not_depend_on_its_neighbours(void **state)
{
    (void)state;
    on_every_version(check_neighbours);
}

static void check_scratch(struct rig *r, const struct golden *g)
{
    int32_t width = g->n_vocab, tail = g->n - g->prefix;
    float *whole = copy_rows(rig_run_one(r, 0, g->tokens, g->n, 0, KRN_MASK_CAUSAL, false), g->n, width);
    rig_run_one(r, 1, g->tokens, g->prefix, 0, KRN_MASK_CAUSAL, false);
    rig_run_one(r, 1, g->block_tokens, g->n_block, g->prefix, KRN_MASK_BLOCK, true);
    const float *after = rig_run_one(r, 1, g->tokens + g->prefix, tail, g->prefix, KRN_MASK_CAUSAL, false);
    assert_same_bits(after, whole + (size_t)g->prefix * (size_t)width, tail, width);
    free(whole);
}

static void test_a_block_pass_leaves_no_trace(void **state)
{
    (void)state;
    on_every_version(check_scratch);
}

static void check_wanted(struct rig *r, const struct golden *g)
{
    int32_t width = g->n_vocab;
    float *all = copy_rows(rig_run_one(r, 0, g->tokens, g->n, 0, KRN_MASK_CAUSAL, false), g->n, width);
    static const int32_t rows[] = {3, 0, 3, 7, 7, 7, 12};
    enum { N = sizeof rows / sizeof *rows };
    for (int32_t chunk = 3; chunk >= 1; chunk--) {
        eng_forward_limit_chunk(&r->model, chunk);
        rig_reset(r);
        rig_add(r, 1, g->tokens, g->n, 0, KRN_MASK_CAUSAL, false);
        r->batch.n_wanted = 0;
        for (int i = 0; i < N; i++)
            rig_want(r, rows[i]);
        const float *some = rig_run(r);
        for (int i = 0; i < N; i++) {
            const float *row = all + (size_t)rows[i] * (size_t)width;
            assert_same_bits(some + (size_t)i * (size_t)width, row, 1, width);
            int32_t best = -1;
            for (int32_t t = 0; t < width; t++)
                if (t != r->model.mask_id && (best < 0 || row[t] > row[best]))
                    best = t;
            assert_int_equal(r->choices[i].token, best);
        }
    }
    free(all);
}

static void test_wanted_rows_in_any_order_and_number(void **state)
{
    (void)state;
    on_every_version(check_wanted);
}

// ---- edges ----------------------------------------------------------------------------------------------------------

static void test_nothing_to_do_is_no_work(void **state)
{
    (void)state;
    struct golden g;
    struct rig r;
    golden_open(&g, "three_heads");
    rig_open(&r, "three_heads", "auto", "auto", ~0u);
    assert_int_equal(r.model.forward(r.model.ctx, &r.batch), 0);
    rig_add(&r, 0, g.tokens, 5, 0, KRN_MASK_CAUSAL, false);
    r.batch.n_wanted = 0; // a prompt piece that asks for nothing still writes its KV
    assert_int_equal(r.model.forward(r.model.ctx, &r.batch), 0);
    float *rest = copy_rows(rig_run_one(&r, 0, g.tokens + 5, 4, 5, KRN_MASK_CAUSAL, false), 4, g.n_vocab);
    const float *whole = rig_run_one(&r, 1, g.tokens, 9, 0, KRN_MASK_CAUSAL, false);
    assert_same_bits(rest, whole + (size_t)5 * (size_t)g.n_vocab, 4, g.n_vocab);
    free(rest);
    rig_close(&r);
    golden_close(&g);
}

static void test_without_an_adapter_its_flag_means_nothing(void **state)
{
    (void)state;
    struct golden g;
    struct rig r;
    golden_open(&g, "wide_q");
    rig_open(&r, "wide_q", "auto", "none", ~0u);
    assert_false(r.model.has_adapter);
    rig_run_one(&r, 0, g.tokens, g.prefix, 0, KRN_MASK_CAUSAL, false);
    float *off =
        copy_rows(rig_run_one(&r, 0, g.block_tokens, g.n_block, g.prefix, KRN_MASK_BLOCK, false), g.n_block, g.n_vocab);
    const float *on = rig_run_one(&r, 0, g.block_tokens, g.n_block, g.prefix, KRN_MASK_BLOCK, true);
    assert_same_bits(on, off, g.n_block, g.n_vocab);
    free(off);
    rig_close(&r);
    golden_close(&g);
}

static void test_what_the_model_says_of_itself(void **state)
{
    (void)state;
    struct rig r;
    rig_open(&r, "rows_block", "auto", "auto", ~0u);
    assert_true(r.model.has_adapter && r.model.block_adapter);
    assert_int_equal(r.model.n_vocab, 384);
    assert_int_equal(r.model.mask_id, 100);
    const struct eng_config *c = &r.weights->config;
    assert_int_equal(eng_forward_page_bytes(r.weights, 16),
                     (int64_t)2 * c->n_layers * c->n_kv_heads * c->head_dim * 16 * 4);
    rig_close(&r);
    rig_open(&r, "three_heads", "auto", "auto", ~0u);
    assert_true(r.model.has_adapter && !r.model.block_adapter);
    rig_close(&r);
}

static const struct krn_backend *real_backend;
static int allocs_left, n_live; // allocs_left -1: all succeed

static void *counted_alloc(void *ctx, size_t bytes, const char *purpose)
{
    if (allocs_left == 0)
        return NULL;
    allocs_left -= allocs_left > 0;
    n_live++;
    return real_backend->alloc(ctx, bytes, purpose);
}

static void counted_release(void *ctx, void *p)
{
    n_live--;
    real_backend->release(ctx, p);
}

static void test_memory_is_taken_at_open_and_given_back(void **state)
{
    (void)state;
    struct golden g;
    struct rig r;
    struct eng_model model, before;
    char err[256];
    golden_open(&g, "three_heads");
    rig_open(&r, "three_heads", "auto", "auto", ~0u);
    real_backend = r.backend;
    struct krn_backend counted = *r.backend;
    counted.alloc = counted_alloc;
    counted.release = counted_release;
    memset(&model, 0x5a, sizeof model);
    before = model;
    int rc = ENG_ENOMEM, needed = 0;
    for (; rc != 0; needed++) {
        assert_true(needed < 50);
        allocs_left = needed;
        err[0] = '\0';
        rc = eng_forward_open(&counted, r.weights, MAX_ROWS, N_PAGES, PAGE_SIZE, &model, err, sizeof err);
        if (rc != 0) {
            assert_int_equal(rc, ENG_ENOMEM);
            assert_non_null(strstr(err, "memory"));
            assert_memory_equal(&model, &before, sizeof model);
            assert_int_equal(n_live, 0);
        }
    }
    assert_true(needed > 10);
    allocs_left = 0; // from here on nothing may be allocated
    rig_add(&r, 0, g.tokens, g.n, 0, KRN_MASK_CAUSAL, false);
    assert_int_equal(model.forward(model.ctx, &r.batch), 0);
    model.close(model.ctx);
    assert_int_equal(n_live, 0);
    assert_int_equal(eng_forward_open(&counted, r.weights, 0, 1, 1, &model, err, sizeof err), ENG_EINVAL);
    assert_int_equal(eng_forward_open(&counted, r.weights, 1, 0, 1, &model, err, sizeof err), ENG_EINVAL);
    assert_int_equal(eng_forward_open(&counted, r.weights, 1, 1, 0, &model, err, sizeof err), ENG_EINVAL);
    rig_close(&r);
    golden_close(&g);
}

static int failing_op(void *ctx, float *x, const float *y, const float *up, int32_t rows, int32_t width)
{
    (void)ctx, (void)x, (void)y, (void)up, (void)rows, (void)width;
    return KRN_EDEVICE;
}

static void test_a_failing_op_ends_the_pass_with_its_code(void **state)
{
    (void)state;
    struct golden g;
    struct rig r;
    struct eng_model model;
    char err[256];
    golden_open(&g, "three_heads");
    rig_open(&r, "three_heads", "auto", "auto", ~0u);
    struct krn_backend failing = *r.backend;
    failing.swiglu = failing_op;
    assert_int_equal(eng_forward_open(&failing, r.weights, MAX_ROWS, N_PAGES, PAGE_SIZE, &model, err, sizeof err), 0);
    rig_add(&r, 0, g.tokens, g.n, 0, KRN_MASK_CAUSAL, false);
    assert_int_equal(model.forward(model.ctx, &r.batch), KRN_EDEVICE);
    model.close(model.ctx);
    rig_close(&r);
    golden_close(&g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_logits_are_the_reference),
        cmocka_unit_test(test_widened_weights_give_the_reference_too),
        cmocka_unit_test(test_rounded_weights_stay_near),
        cmocka_unit_test(test_a_prompt_in_pieces_is_the_whole_prompt),
        cmocka_unit_test(test_a_row_does_not_depend_on_its_neighbours),
        cmocka_unit_test(test_a_block_pass_leaves_no_trace),
        cmocka_unit_test(test_wanted_rows_in_any_order_and_number),
        cmocka_unit_test(test_nothing_to_do_is_no_work),
        cmocka_unit_test(test_without_an_adapter_its_flag_means_nothing),
        cmocka_unit_test(test_what_the_model_says_of_itself),
        cmocka_unit_test(test_memory_is_taken_at_open_and_given_back),
        cmocka_unit_test(test_a_failing_op_ends_the_pass_with_its_code),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
