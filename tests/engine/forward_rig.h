// What the tests of engine/forward.c share: the golden vectors of tests/vectors (written by another implementation),
// and a model on the CPU backend with one batch and the pages of a few sequences. Included after cmocka.h.
#pragma once

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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

static inline char *read_whole(const char *path, size_t *ret_n)
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

static inline const cJSON *member(const cJSON *object, const char *key)
{
    const cJSON *v = cJSON_GetObjectItemCaseSensitive(object, key);
    if (!v)
        fail_msg("no \"%s\"", key);
    return v;
}

static inline int32_t read_ints(const cJSON *array, int32_t *ret)
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

static inline void golden_open(struct golden *g, const char *name)
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

static inline void golden_close(struct golden *g)
{
    cJSON_Delete(g->json);
    free(g->rows);
}

// where: {"first_row", "n_rows"}
static inline const float *golden_rows(const struct golden *g, const cJSON *where, int32_t expected)
{
    assert_int_equal(member(where, "n_rows")->valueint, expected);
    return g->rows + (size_t)member(where, "first_row")->valueint * (size_t)g->n_vocab;
}

// ---- a model and its batch ------------------------------------------------------------------------------------------

static const struct eng_forward_sizes sizes = {
    .max_rows = MAX_ROWS, .max_segments = MAX_ROWS, .n_pages = N_PAGES, .page_size = PAGE_SIZE, .kv_type = KRN_N_TYPES};

struct rig {
    struct krn_backend *backend;
    struct eng_weights *weights;
    struct eng_model model;
    struct eng_batch batch;
    int32_t tokens[MAX_ROWS], links[MAX_ROWS];
    struct eng_segment segments[MAX_ROWS];
    struct krn_select_row wanted[MAX_ROWS];
    struct krn_choice choices[MAX_ROWS];
    struct krn_accept accepts[MAX_ROWS];
    struct krn_accepted accepted[MAX_ROWS];
    int32_t pages[N_SEQS][SEQ_PAGES];
    float *logits; // [MAX_ROWS][n_vocab]
};

static inline void rig_weights(struct rig *r, const char *name, const char *weights, const char *adapter)
{
    char path[512], err[512] = "";
    snprintf(path, sizeof path, "%s/tests/vectors/models/%s", TRIMODE_SOURCE_DIR, name);
    if (eng_weights_load(path, weights, adapter, r->backend, NULL, NULL, &r->weights, err, sizeof err) != 0)
        fail_msg("%s: %s", name, err);
}

static inline void rig_open_kv(struct rig *r, const char *name, const char *weights, const char *adapter,
                               uint32_t cpu_mask, enum krn_type kv_type)
{
    char err[512] = "";
    struct eng_forward_sizes with_type = sizes;
    with_type.kv_type = kv_type;
    memset(r, 0, sizeof *r);
    if (krn_open_cpu(2, cpu_mask, &r->backend, err, sizeof err) != 0)
        fail_msg("%s", err);
    rig_weights(r, name, weights, adapter);
    if (eng_forward_open(r->backend, r->weights, &with_type, &r->model, err, sizeof err) != 0)
        fail_msg("%s", err);
    // the sequences' pages are interleaved and run backwards: nothing may rely on their order
    for (int s = 0; s < N_SEQS; s++)
        for (int p = 0; p < SEQ_PAGES; p++)
            r->pages[s][p] = N_PAGES - 1 - (p * N_SEQS + s);
    r->logits = calloc((size_t)MAX_ROWS * (size_t)r->model.n_vocab, sizeof(float));
    r->batch = (struct eng_batch){.max_rows = MAX_ROWS,
                                  .tokens = r->tokens,
                                  .links = r->links,
                                  .max_segments = MAX_ROWS,
                                  .segments = r->segments,
                                  .wanted = r->wanted,
                                  .choices = r->choices,
                                  .accepts = r->accepts,
                                  .accepted = r->accepted};
}

static inline void rig_open(struct rig *r, const char *name, const char *weights, const char *adapter,
                            uint32_t cpu_mask)
{
    rig_open_kv(r, name, weights, adapter, cpu_mask, KRN_N_TYPES);
}

static inline void rig_close(struct rig *r)
{
    free(r->logits);
    r->model.close(r->model.ctx);
    eng_weights_free(r->weights, r->backend);
    r->backend->close(r->backend->ctx);
}

static inline void rig_reset(struct rig *r)
{
    eng_batch_reset(&r->batch);
}

static inline void rig_want(struct rig *r, int32_t row)
{
    r->wanted[r->batch.n_wanted++] = (struct krn_select_row){.row = row, .top_p = 1, .repetition_penalty = 1};
}

// One segment; every row is wanted.
static inline void rig_add(struct rig *r, int32_t seq, const int32_t *tokens, int32_t n, int32_t first_pos,
                           enum krn_mask mask, bool adapter)
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
                                                        .n_wanted = n,
                                                        .accept = -1};
    for (int32_t i = 0; i < n; i++) {
        b->tokens[b->n_rows + i] = tokens[i];
        b->links[b->n_rows + i] = -1;
        rig_want(r, b->n_rows + i);
    }
    b->n_rows += n;
}

static inline const float *rig_run(struct rig *r)
{
    assert_int_equal(eng_forward_logits(&r->model, &r->batch, r->logits), 0);
    return r->logits;
}

// A batch of this one segment.
static inline const float *rig_run_one(struct rig *r, int32_t seq, const int32_t *tokens, int32_t n, int32_t first_pos,
                                       enum krn_mask mask, bool adapter)
{
    rig_reset(r);
    rig_add(r, seq, tokens, n, first_pos, mask, adapter);
    return rig_run(r);
}

static inline float *copy_rows(const float *rows, int32_t n, int32_t width)
{
    float *p = malloc((size_t)n * (size_t)width * sizeof *p);
    memcpy(p, rows, (size_t)n * (size_t)width * sizeof *p);
    return p;
}

static inline void assert_same_bits(const float *a, const float *b, int32_t rows, int32_t width)
{
    assert_memory_equal(a, b, (size_t)rows * (size_t)width * sizeof *a);
}

// 1e-4 of the row's largest logit.
static inline void assert_close(const char *what, const float *got, const float *want, int32_t n)
{
    float most = 0;
    for (int32_t i = 0; i < n; i++)
        most = fmaxf(most, fabsf(want[i]));
    for (int32_t i = 0; i < n; i++)
        if (!(fabsf(got[i] - want[i]) <= 1e-4f * most))
            fail_msg("%s: logit %d is %.7g, expected %.7g", what, i, (double)got[i], (double)want[i]);
}

// The versions of the kernels this machine can run; each test body runs on all.
static inline int cpu_masks(uint32_t ret[3])
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

static inline void on_versions(void (*body)(struct rig *r, const struct golden *g), enum krn_type kv_type)
{
    uint32_t masks[3];
    int n = cpu_masks(masks);
    for (int m = 0; m < N_MODELS; m++)
        for (int i = 0; i < n; i++) {
            struct golden g;
            struct rig r;
            golden_open(&g, models[m]);
            rig_open_kv(&r, models[m], "auto", "auto", masks[i], kv_type);
            body(&r, &g);
            rig_close(&r);
            golden_close(&g);
        }
}

static inline void on_every_version(void (*body)(struct rig *r, const struct golden *g))
{
    on_versions(body, KRN_N_TYPES);
}

// And on every type of keys and values that the CPU has.
static inline void on_every_kv_type(void (*body)(struct rig *r, const struct golden *g))
{
    static const enum krn_type types[] = {KRN_F32, KRN_BF16, KRN_Q8};
    for (size_t t = 0; t < sizeof types / sizeof *types; t++)
        on_versions(body, types[t]);
}
