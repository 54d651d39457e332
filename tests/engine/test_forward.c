// engine/forward.c on the CPU backend: its numbers, against the golden vectors and against themselves.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "forward_rig.h"

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

// The distance between the rows that a model computes and those of the golden file, relative to their size.
static double distance_from_golden(struct rig *r, const struct golden *g)
{
    int32_t positions[MAX_ROWS];
    const cJSON *causal = member(g->logits, "causal");
    int32_t n = read_ints(member(causal, "positions"), positions);
    const float *want = golden_rows(g, causal, n);
    const float *got = rig_run_one(r, 0, g->tokens, g->n, 0, KRN_MASK_CAUSAL, false);
    double difference = 0, size = 0;
    for (int32_t i = 0; i < n; i++)
        for (int32_t t = 0; t < g->n_vocab; t++) {
            double w = want[(size_t)i * (size_t)g->n_vocab + (size_t)t];
            double d = got[(size_t)positions[i] * (size_t)g->n_vocab + (size_t)t] - w;
            difference += d * d;
            size += w * w;
        }
    return sqrt(difference / size);
}

static void test_rounded_keys_and_values_stay_near_the_reference(void **state)
{
    (void)state;
    static const struct {
        enum krn_type type;
        double least, most;
    } cases[] = {{KRN_F32, 0, 1e-5}, {KRN_BF16, 1e-5, 1e-2}, {KRN_Q8, 1e-5, 3e-2}};
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++)
        for (int m = 0; m < N_MODELS; m++) {
            struct golden g;
            struct rig r;
            golden_open(&g, models[m]);
            rig_open_kv(&r, models[m], "auto", "auto", ~0u, cases[c].type);
            double d = distance_from_golden(&r, &g);
            if (!(d >= cases[c].least && d <= cases[c].most))
                fail_msg("%s with %s keys and values: %g", models[m], krn_type_name(cases[c].type), d);
            rig_close(&r);
            golden_close(&g);
        }
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
    on_every_kv_type(check_pieces);
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
    on_every_kv_type(check_neighbours);
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
    on_every_kv_type(check_scratch);
}

// In chunks of the logits buffer, every choice is what it is in one.
static void check_wanted(struct rig *r, const struct golden *g)
{
    int32_t width = g->n_vocab;
    float *all = copy_rows(rig_run_one(r, 0, g->tokens, g->n, 0, KRN_MASK_CAUSAL, false), g->n, width);
    struct krn_choice choices[MAX_ROWS];
    memcpy(choices, r->choices, sizeof choices);
    static const int32_t rows[] = {3, 0, 3, 7, 7, 7, 12};
    enum { N = sizeof rows / sizeof *rows };
    for (int32_t chunk = N; chunk >= 1; chunk--) {
        eng_forward_limit_chunk(&r->model, chunk);
        rig_reset(r);
        rig_add(r, 1, g->tokens, g->n, 0, KRN_MASK_CAUSAL, false);
        r->batch.n_wanted = 0;
        for (int i = 0; i < N; i++)
            rig_want(r, rows[i]);
        if (chunk == N)
            rig_run(r);
        else
            assert_int_equal(eng_model_forward(&r->model, &r->batch), 0);
        for (int i = 0; i < N; i++) {
            const float *row = all + (size_t)rows[i] * (size_t)width;
            if (chunk == N)
                assert_same_bits(r->logits + (size_t)i * (size_t)width, row, 1, width);
            int32_t best = -1;
            for (int32_t t = 0; t < width; t++)
                if (t != r->model.mask_id && (best < 0 || row[t] > row[best]))
                    best = t;
            assert_int_equal(r->choices[i].token, best);
            assert_true(r->choices[i].confidence == choices[rows[i]].confidence);
            assert_true(r->choices[i].logprob == choices[rows[i]].logprob);
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
    assert_int_equal(eng_model_forward(&r.model, &r.batch), 0);
    rig_add(&r, 0, g.tokens, 5, 0, KRN_MASK_CAUSAL, false);
    r.batch.n_wanted = 0; // a prompt piece that asks for nothing still writes its KV
    assert_int_equal(eng_model_forward(&r.model, &r.batch), 0);
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
    assert_int_equal(eng_forward_page_bytes(r.backend, r.weights, 16, KRN_N_TYPES),
                     (int64_t)2 * c->n_layers * c->n_kv_heads * c->head_dim * 16 * 4);
    assert_int_equal(eng_forward_page_bytes(r.backend, r.weights, 16, KRN_Q8),
                     (int64_t)2 * c->n_layers * c->n_kv_heads * (c->head_dim + 4) * 16);
    rig_close(&r);
    rig_open(&r, "three_heads", "auto", "auto", ~0u);
    assert_true(r.model.has_adapter && !r.model.block_adapter);
    rig_close(&r);
}

static void *no_rows(void *ctx, enum krn_rows_kind kind, int32_t rows, int32_t width, const char *purpose)
{
    (void)ctx, (void)kind, (void)rows, (void)width, (void)purpose;
    return NULL;
}

static void small_device(void *ctx, struct krn_memory *ret)
{
    (void)ctx;
    *ret = (struct krn_memory){.total = (int64_t)16 << 30, .free = (int64_t)3 << 29};
}

static void test_passes_that_do_not_fit_are_refused_with_the_numbers(void **state)
{
    (void)state;
    struct rig r;
    struct eng_model model;
    char err[200];
    rig_open(&r, "three_heads", "auto", "auto", ~0u);
    const struct krn_backend good = *r.backend;
    const struct eng_forward_sizes large = {
        .max_rows = 4096, .max_segments = 1, .n_pages = 4, .page_size = 4, .kv_type = KRN_N_TYPES};
    r.backend->alloc_rows = no_rows;
    assert_int_equal(eng_forward_open(r.backend, r.weights, &large, &model, err, sizeof err), ENG_ENOMEM);
    assert_string_equal(err, "no memory for the forward pass (4096 rows a step)"); // of the CPU nobody knows how much
    r.backend->memory = small_device;
    assert_int_equal(eng_forward_open(r.backend, r.weights, &large, &model, err, sizeof err), ENG_ENOMEM);
    assert_string_equal(err, "no memory for the forward pass (4096 rows a step): when it ended, 1.50 of the cpu "
                             "backend's 16.00 GiB were free");
    *r.backend = good;
    rig_close(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_logits_are_the_reference),
        cmocka_unit_test(test_widened_weights_give_the_reference_too),
        cmocka_unit_test(test_rounded_weights_stay_near),
        cmocka_unit_test(test_rounded_keys_and_values_stay_near_the_reference),
        cmocka_unit_test(test_a_prompt_in_pieces_is_the_whole_prompt),
        cmocka_unit_test(test_a_row_does_not_depend_on_its_neighbours),
        cmocka_unit_test(test_a_block_pass_leaves_no_trace),
        cmocka_unit_test(test_wanted_rows_in_any_order_and_number),
        cmocka_unit_test(test_nothing_to_do_is_no_work),
        cmocka_unit_test(test_without_an_adapter_its_flag_means_nothing),
        cmocka_unit_test(test_what_the_model_says_of_itself),
        cmocka_unit_test(test_passes_that_do_not_fit_are_refused_with_the_numbers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
