// The whole forward over several devices: engine/forward.c on a composite of CPU backends against one CPU backend, on
// checkpoints of two kv heads and on a random model that eight devices can share.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <math.h>
#include <cmocka.h>

#include "../kernels/host_comm.h"
#include "../kernels/kern_util.h"
#include "forward.h"
#include "model/weights.h"

enum { MAX_ROWS = 48, PAGE_SIZE = 4, N_PAGES = 32, PROMPT = 13, BLOCK = 6 };

static const struct eng_forward_sizes sizes = {
    .max_rows = MAX_ROWS, .max_segments = 4, .n_pages = N_PAGES, .page_size = PAGE_SIZE, .kv_type = KRN_N_TYPES};

// ---- a model on some devices ----------------------------------------------------------------------------------------

struct rig {
    struct krn_backend *backend;
    struct host_comm *comm; // NULL: one device
    struct eng_weights *weights;
    struct eng_model model;
    struct eng_batch batch;
    int32_t pages[N_PAGES];
    float *logits; // [MAX_ROWS][n_vocab]
};

static void rig_backend(struct rig *r, int32_t n)
{
    memset(r, 0, sizeof *r);
    if (n > 1)
        r->backend = open_tensor_parallel_cpu(n, NULL, &r->comm);
    else if (krn_open_cpu(1, ~0u, &r->backend, NULL, 0) != 0)
        fail_msg("no cpu backend");
}

static void rig_model(struct rig *r)
{
    char err[512] = "";
    if (eng_forward_open(r->backend, r->weights, &sizes, &r->model, err, sizeof err) != 0)
        fail_msg("%s", err);
    for (int32_t p = 0; p < N_PAGES; p++)
        r->pages[p] = N_PAGES - 1 - p;
    assert_int_equal(eng_batch_init(&r->batch, MAX_ROWS, 4), 0);
    r->logits = must(calloc((size_t)MAX_ROWS * (size_t)r->model.n_vocab, sizeof(float)));
}

static void rig_open(struct rig *r, const char *path, int32_t n)
{
    char dir[512], err[512] = "";
    rig_backend(r, n);
    snprintf(dir, sizeof dir, "%s/%s", TRIMODE_SOURCE_DIR, path);
    if (eng_weights_load(dir, "auto", "auto", r->backend, NULL, NULL, &r->weights, err, sizeof err) != 0)
        fail_msg("%s: %s", path, err);
    rig_model(r);
}

static void rig_close_model(struct rig *r)
{
    free(r->logits);
    eng_batch_done(&r->batch);
    r->model.close(r->model.ctx);
}

static void rig_close(struct rig *r)
{
    rig_close_model(r);
    eng_weights_free(r->weights, r->backend);
    r->backend->close(r->backend->ctx);
}

// A segment whose every row is wanted.
static struct eng_segment *rig_add(struct rig *r, const int32_t *tokens, int32_t n, int32_t first_pos,
                                   enum krn_mask mask, bool adapter)
{
    struct eng_segment *s = eng_batch_add(&r->batch, 0, 0, first_pos, n);
    assert_non_null(s);
    s->mask = mask;
    s->adapter = adapter;
    s->pages = r->pages;
    memcpy(r->batch.tokens + s->row, tokens, (size_t)n * sizeof *tokens);
    for (int32_t i = 0; i < n; i++) {
        struct krn_select_row *row = eng_batch_want(&r->batch, s, i);
        row->top_p = row->repetition_penalty = 1;
        row->temperature = 0;
    }
    return s;
}

static void rig_run(struct rig *r)
{
    assert_int_equal(eng_forward_logits(&r->model, &r->batch, r->logits), 0);
}

// ---- one device and several -----------------------------------------------------------------------------------------

// Sums in another order: a hundred roundings of the row's largest logit. Returns whether any bit differs.
static bool assert_same_pass(const struct rig *one, const struct rig *many)
{
    int32_t width = one->model.n_vocab;
    for (int32_t r = 0; r < one->batch.n_wanted; r++) {
        const float *want = one->logits + (size_t)r * (size_t)width, *got = many->logits + (size_t)r * (size_t)width;
        float most = 0;
        for (int32_t i = 0; i < width; i++)
            most = fmaxf(most, fabsf(want[i]));
        assert_true(most > 0);
        for (int32_t i = 0; i < width; i++)
            if (!(fabsf(got[i] - want[i]) <= 1e-5f * most))
                fail_msg("row %d, logit %d: %.8g, expected %.8g", r, i, (double)got[i], (double)want[i]);
        assert_int_equal(many->batch.choices[r].token, one->batch.choices[r].token);
        assert_true(fabsf(many->batch.choices[r].confidence - one->batch.choices[r].confidence) <= 1e-4f);
    }
    for (int32_t i = 0; i < one->batch.n_accepts; i++) {
        assert_int_equal(many->batch.accepted[i].n, one->batch.accepted[i].n);
        assert_int_equal(many->batch.accepted[i].seed, one->batch.accepted[i].seed);
    }
    return memcmp(one->logits, many->logits, (size_t)one->batch.n_wanted * (size_t)width * sizeof(float)) != 0;
}

// A prompt, a draft block with the adapter on, its verification, and one row that is linked to what that chose.
static void run_cycle(struct rig *r, int step)
{
    int32_t prompt[PROMPT], block[BLOCK];
    int32_t mask_id = r->model.mask_id;
    for (int32_t i = 0; i < PROMPT; i++)
        prompt[i] = (17 * i + 5) % 97 + 2;
    for (int32_t i = 0; i < BLOCK; i++)
        block[i] = i == 0 ? 7 : step == 1 ? mask_id : 30 + i;
    eng_batch_reset(&r->batch);
    if (step == 0)
        rig_add(r, prompt, PROMPT, 0, KRN_MASK_CAUSAL, false);
    else if (step == 1)
        rig_add(r, block, BLOCK, PROMPT, KRN_MASK_BLOCK, true);
    else if (step == 2)
        eng_batch_accept(&r->batch, rig_add(r, block, BLOCK, PROMPT, KRN_MASK_CAUSAL, false));
    else {
        rig_add(r, block, 1, PROMPT + BLOCK, KRN_MASK_CAUSAL, false);
        eng_batch_link(&r->batch, 0, BLOCK - 1);
    }
    rig_run(r);
}

static void check_cycle(struct rig *one, struct rig *many)
{
    int differences = 0;
    for (int step = 0; step < 4; step++) {
        int before = many->comm->reductions;
        run_cycle(one, step);
        run_cycle(many, step);
        differences += assert_same_pass(one, many);
        // one all-reduce after o and one after down
        assert_int_equal(many->comm->reductions - before, 2 * one->weights->config.n_layers);
    }
    assert_true(differences > 0); // the sums were really divided
    assert_int_equal(many->comm->passes, 0);
    // Alone or among others, a row has the same bits.
    size_t width = (size_t)many->model.n_vocab;
    int32_t token = 7;
    run_cycle(many, 2);
    float *row = must(malloc(width * sizeof *row));
    memcpy(row, many->logits, width * sizeof *row);
    eng_batch_reset(&many->batch);
    rig_add(many, &token, 1, PROMPT, KRN_MASK_CAUSAL, false);
    rig_run(many);
    assert_memory_equal(many->logits, row, width * sizeof *row);
    free(row);
}

static void test_two_devices_compute_the_model(void **state)
{
    static const char *const paths[] = {"tests/vectors/models/wide_q", "tests/vectors/models/one_layer_f32",
                                        "tests/vectors/models/yarn_attention", "config/models/nano"};
    (void)state;
    for (size_t i = 0; i < sizeof paths / sizeof *paths; i++) {
        struct rig one, many;
        rig_open(&one, paths[i], 1);
        rig_open(&many, paths[i], 2);
        assert_int_equal(many.weights->resident_bytes, one.weights->resident_bytes);
        check_cycle(&one, &many);
        assert_int_equal(many.comm->gathers > 0, !one.weights->config.tied_head);
        rig_close(&many);
        rig_close(&one);
    }
}

static void test_the_adapter_changes_the_draft_on_two_devices(void **state)
{
    (void)state;
    struct rig r;
    int32_t block[BLOCK] = {7, 3, 4, 5, 6, 8};
    rig_open(&r, "tests/vectors/models/wide_q", 2);
    size_t width = (size_t)r.model.n_vocab;
    float *off = must(malloc(width * sizeof *off));
    rig_add(&r, block, BLOCK, 0, KRN_MASK_BLOCK, false);
    rig_run(&r);
    memcpy(off, r.logits, width * sizeof *off);
    eng_batch_reset(&r.batch);
    rig_add(&r, block, BLOCK, 0, KRN_MASK_BLOCK, true);
    rig_run(&r);
    assert_memory_not_equal(r.logits, off, width * sizeof *off);
    free(off);
    rig_close(&r);
}

static void test_nano_writes_the_same_text_on_two_devices(void **state)
{
    (void)state;
    enum { N = 24 };
    int32_t texts[2][N];
    for (int i = 0; i < 2; i++) {
        struct rig r;
        int32_t token = 1;
        rig_open(&r, "config/models/nano", 1 + i);
        for (int32_t pos = 0; pos < N; pos++) {
            eng_batch_reset(&r.batch);
            rig_add(&r, &token, 1, pos, KRN_MASK_CAUSAL, false);
            rig_run(&r);
            texts[i][pos] = token = r.batch.choices[0].token;
        }
        rig_close(&r);
    }
    assert_memory_equal(texts[0], texts[1], sizeof texts[0]);
}

// ---- a model for eight devices --------------------------------------------------------------------------------------

enum { MAX_TENSORS = 64 };

// A random model made in memory: 16 heads, 8 kv heads, a head of its own, an adapter.
struct made {
    struct krn_tensor host[MAX_TENSORS];
    int n;
};

static void make(struct rig *r, struct made *m, enum krn_type type, int32_t rows, int32_t cols, enum krn_split split,
                 struct krn_tensor *ret)
{
    struct random random = {(uint64_t)m->n + 1}; // the same values every time
    struct krn_tensor *host = &m->host[m->n++];
    *host = tensor_random(&random, KRN_F32, rows, cols);
    float *values = (float *)(uintptr_t)host->data;
    for (int32_t i = 0; rows > 1 && i < rows * cols; i++)
        values[i] *= 1.7f / sqrtf((float)cols);
    assert_int_equal(r->backend->import_weights(r->backend->ctx, host, type, split, ret), 0);
}

static void made_open(struct rig *r, struct made *m, int32_t n, enum krn_type type)
{
    enum { HIDDEN = 32, HEADS = 16, KV = 8, DIM = 8, FF = 56, VOCAB = 120, RANK = 5, LAYERS = 2 };
    rig_backend(r, n);
    m->n = 0;
    struct eng_weights *w = must(calloc(1, sizeof *w));
    w->config = (struct eng_config){.hidden = HIDDEN,
                                    .n_layers = LAYERS,
                                    .ff = FF,
                                    .n_heads = HEADS,
                                    .n_kv_heads = KV,
                                    .head_dim = DIM,
                                    .n_vocab = VOCAB,
                                    .max_positions = 128,
                                    .rms_eps = 1e-5f,
                                    .mask_id = 100,
                                    .rope_theta = 10000,
                                    .original_max_positions = 128};
    w->layers = must(calloc(LAYERS, sizeof *w->layers));
    w->has_adapter = true;
    w->adapter_rank = RANK;
    make(r, m, type, VOCAB, HIDDEN, KRN_SPLIT_NONE, &w->embed);
    make(r, m, KRN_F32, 1, HIDDEN, KRN_SPLIT_NONE, &w->norm);
    make(r, m, type, VOCAB, HIDDEN, KRN_SPLIT_OUTPUTS, &w->head);
    for (int32_t i = 0; i < LAYERS; i++) {
        struct eng_layer *l = &w->layers[i];
        make(r, m, KRN_F32, 1, HIDDEN, KRN_SPLIT_NONE, &l->input_norm);
        make(r, m, KRN_F32, 1, HIDDEN, KRN_SPLIT_NONE, &l->post_norm);
        make(r, m, type, HEADS * DIM, HIDDEN, KRN_SPLIT_OUTPUTS, &l->q);
        make(r, m, type, KV * DIM, HIDDEN, KRN_SPLIT_OUTPUTS, &l->k);
        make(r, m, type, KV * DIM, HIDDEN, KRN_SPLIT_OUTPUTS, &l->v);
        make(r, m, type, HIDDEN, HEADS * DIM, KRN_SPLIT_INPUTS, &l->o);
        make(r, m, type, FF, HIDDEN, KRN_SPLIT_OUTPUTS, &l->gate);
        make(r, m, type, FF, HIDDEN, KRN_SPLIT_OUTPUTS, &l->up);
        make(r, m, type, HIDDEN, FF, KRN_SPLIT_INPUTS, &l->down);
        make(r, m, KRN_F32, RANK, HEADS * DIM, KRN_SPLIT_INPUTS, &l->adapter_o.a);
        make(r, m, KRN_F32, HIDDEN, RANK, KRN_SPLIT_NONE, &l->adapter_o.b);
        l->adapter_o.scale = 0.5f;
    }
    r->weights = w;
    rig_model(r);
}

static void made_close(struct rig *r, struct made *m)
{
    rig_close_model(r);
    r->backend->close(r->backend->ctx);
    for (int i = 0; i < m->n; i++)
        tensor_free(&m->host[i]);
    free(r->weights->layers);
    free(r->weights);
}

static void test_four_and_eight_devices_compute_the_model(void **state)
{
    (void)state;
    for (int32_t n = 2; n <= 8; n *= 2)
        for (int t = 0; t < 2; t++) {
            struct rig one, many;
            struct made made_one, made_many;
            enum krn_type type = t ? KRN_BF16 : KRN_F32;
            made_open(&one, &made_one, 1, type);
            made_open(&many, &made_many, n, type);
            check_cycle(&one, &many);
            made_close(&many, &made_many);
            made_close(&one, &made_one);
        }
}

// ---- failures -------------------------------------------------------------------------------------------------------

static void test_a_model_that_does_not_divide_is_refused(void **state)
{
    (void)state;
    struct rig r;
    char dir[512], err[512] = "";
    rig_backend(&r, 4); // 2 kv heads; every matrix but k's and v's heads would divide
    snprintf(dir, sizeof dir, "%s/config/models/nano", TRIMODE_SOURCE_DIR);
    assert_int_equal(eng_weights_load(dir, "auto", "auto", r.backend, NULL, NULL, &r.weights, err, sizeof err), 0);
    assert_int_equal(eng_forward_open(r.backend, r.weights, &sizes, &r.model, err, sizeof err), KRN_ENOTSUP);
    assert_non_null(strstr(r.backend->error(r.backend->ctx), "2 kv heads cannot be divided among 4 devices"));
    eng_weights_free(r.weights, r.backend);
    r.backend->close(r.backend->ctx);
}

static void test_an_exchange_that_fails_ends_the_pass_with_its_words(void **state)
{
    (void)state;
    struct rig r;
    int32_t token = 3;
    rig_open(&r, "tests/vectors/models/wide_q", 2);
    rig_add(&r, &token, 1, 0, KRN_MASK_CAUSAL, false);
    r.comm->fail_in = 3;
    assert_int_equal(eng_model_forward(&r.model, &r.batch), KRN_EDEVICE);
    assert_string_equal(r.model.error(r.model.ctx, KRN_EDEVICE), "the exchange broke off");
    assert_int_equal(eng_model_forward(&r.model, &r.batch), KRN_EDEVICE);
    rig_close(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_two_devices_compute_the_model),
        cmocka_unit_test(test_the_adapter_changes_the_draft_on_two_devices),
        cmocka_unit_test(test_nano_writes_the_same_text_on_two_devices),
        cmocka_unit_test(test_four_and_eight_devices_compute_the_model),
        cmocka_unit_test(test_a_model_that_does_not_divide_is_refused),
        cmocka_unit_test(test_an_exchange_that_fails_ends_the_pass_with_its_words),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
