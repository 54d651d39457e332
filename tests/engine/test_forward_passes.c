// engine/forward.c: the order of passes, memory, and what happens when the backend fails.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "forward_rig.h"

// ---- passes ahead ---------------------------------------------------------------------------------------------------

// A second batch over the same rig, for two passes under way.
struct second {
    struct eng_batch batch;
    int32_t tokens[MAX_ROWS], links[MAX_ROWS];
    struct eng_segment segments[MAX_ROWS];
    struct krn_select_row wanted[MAX_ROWS];
    struct krn_choice choices[MAX_ROWS];
    struct krn_accept accepts[MAX_ROWS];
    struct krn_accepted accepted[MAX_ROWS];
};

static void second_open(struct second *s)
{
    memset(s, 0, sizeof *s);
    s->batch = (struct eng_batch){.max_rows = MAX_ROWS,
                                  .tokens = s->tokens,
                                  .links = s->links,
                                  .max_segments = MAX_ROWS,
                                  .segments = s->segments,
                                  .wanted = s->wanted,
                                  .choices = s->choices,
                                  .accepts = s->accepts,
                                  .accepted = s->accepted};
}

// AR by links, two passes under way: each pass's token is the choice of the one before, unseen by the host.
static void check_links(struct rig *r, const struct golden *g)
{
    enum { STEPS = 6 };
    struct second other;
    int32_t chosen[STEPS], token;
    second_open(&other);
    struct eng_batch *batches[2] = {&r->batch, &other.batch};
    rig_run_one(r, 0, g->tokens, g->prefix, 0, KRN_MASK_CAUSAL, false);
    token = r->choices[g->prefix - 1].token;
    for (int i = 0; i < STEPS; i++) {
        chosen[i] = token;
        rig_run_one(r, 0, &token, 1, g->prefix + i, KRN_MASK_CAUSAL, false);
        token = r->choices[0].token;
    }
    rig_run_one(r, 1, g->tokens, g->prefix, 0, KRN_MASK_CAUSAL, false);
    rig_reset(r);
    for (int i = 0; i <= STEPS; i++) {
        struct eng_batch *b = batches[i % 2], *before = batches[1 - i % 2];
        if (i < STEPS) {
            eng_batch_reset(b);
            struct eng_segment *s = eng_batch_add(b, 1, ENG_PASS_AR, g->prefix + i, 1);
            s->pages = r->pages[1];
            eng_batch_want(b, s, 0);
            if (i == 0)
                b->tokens[0] = chosen[0];
            else
                eng_batch_link(b, 0, 0);
            assert_int_equal(r->model.submit(r->model.ctx, b), 0);
        }
        if (i > 0)
            assert_int_equal(r->model.wait(r->model.ctx, before), 0);
        if (i > 0 && i < STEPS)
            assert_int_equal(before->choices[0].token, chosen[i]);
    }
}

static void test_links_carry_tokens_from_pass_to_pass(void **state)
{
    (void)state;
    on_every_version(check_links);
}

static void test_a_verified_block_is_measured_by_the_model(void **state)
{
    (void)state;
    struct golden g;
    struct rig r;
    golden_open(&g, "three_heads");
    rig_open(&r, "three_heads", "auto", "auto", ~0u);
    int32_t block[5];
    block[0] = g.tokens[g.prefix];
    rig_run_one(&r, 0, g.tokens, g.prefix, 0, KRN_MASK_CAUSAL, false);
    for (int i = 0; i < 4; i++) {
        rig_run_one(&r, 0, &block[i], 1, g.prefix + i, KRN_MASK_CAUSAL, false);
        block[i + 1] = r.choices[0].token;
    }
    for (int wrong = 1; wrong <= 5; wrong++) { // the first draft that is wrong; 5: none
        int32_t draft[5];
        memcpy(draft, block, sizeof draft);
        if (wrong < 5)
            draft[wrong] = (draft[wrong] + 1) % g.n_vocab;
        rig_reset(&r);
        rig_add(&r, 0, draft, 5, g.prefix, KRN_MASK_CAUSAL, false);
        eng_batch_accept(&r.batch, &r.batch.segments[0]);
        assert_int_equal(eng_model_forward(&r.model, &r.batch), 0);
        assert_int_equal(r.accepted[0].n, wrong);
        assert_int_equal(r.accepted[0].seed, r.choices[wrong - 1].token);
    }
    rig_close(&r);
    golden_close(&g);
}

// ---- memory and failures --------------------------------------------------------------------------------------------

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

static void *counted_rows(void *ctx, enum krn_rows_kind kind, int32_t rows, int32_t width, const char *purpose)
{
    (void)kind;
    return counted_alloc(ctx, (size_t)rows * (size_t)width * sizeof(float), purpose);
}

static void counted_release(void *ctx, void *p)
{
    assert_non_null(p);
    n_live--;
    real_backend->release(ctx, p);
}

static int counted_kv_open(void *ctx, struct krn_kv *kv)
{
    if (allocs_left == 0)
        return KRN_ENOMEM;
    allocs_left -= allocs_left > 0;
    n_live++;
    return real_backend->kv_open(ctx, kv);
}

static void counted_kv_close(void *ctx, struct krn_kv *kv)
{
    n_live--;
    real_backend->kv_close(ctx, kv);
}

static int counted_prepare(void *ctx, const struct krn_limits *limits)
{
    if (allocs_left == 0)
        return KRN_ENOMEM;
    allocs_left -= allocs_left > 0;
    assert_true(limits->max_rows == MAX_ROWS && limits->max_pages == N_PAGES && limits->rope->attention_factor > 0);
    return real_backend->prepare(ctx, limits);
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
    counted.alloc_rows = counted_rows;
    counted.kv_open = counted_kv_open;
    counted.kv_close = counted_kv_close;
    counted.prepare = counted_prepare;
    memset(&model, 0x5a, sizeof model);
    before = model;
    int rc = ENG_ENOMEM, needed = 0;
    for (; rc != 0; needed++) {
        assert_true(needed < 50);
        allocs_left = needed;
        err[0] = '\0';
        rc = eng_forward_open(&counted, r.weights, &sizes, &model, err, sizeof err);
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
    assert_int_equal(eng_model_forward(&model, &r.batch), 0);
    model.close(model.ctx);
    assert_int_equal(n_live, 0);
    struct eng_forward_sizes bad = sizes;
    bad.max_rows = 0;
    assert_int_equal(eng_forward_open(&counted, r.weights, &bad, &model, err, sizeof err), ENG_EINVAL);
    bad = sizes;
    bad.n_pages = 0; // and no bound of the pages
    assert_int_equal(eng_forward_open(&counted, r.weights, &bad, &model, err, sizeof err), ENG_EINVAL);
    bad = sizes;
    bad.page_size = 0;
    assert_int_equal(eng_forward_open(&counted, r.weights, &bad, &model, err, sizeof err), ENG_EINVAL);
    rig_close(&r);
    golden_close(&g);
}

static void test_the_kv_store_may_come_later(void **state)
{
    (void)state;
    struct golden g;
    struct rig r;
    struct eng_model model;
    char err[256] = "";
    golden_open(&g, "three_heads");
    rig_open(&r, "three_heads", "auto", "auto", ~0u);
    struct eng_forward_sizes later = sizes;
    later.n_pages = 0;
    later.max_pages = N_PAGES;
    assert_int_equal(eng_forward_open(r.backend, r.weights, &later, &model, err, sizeof err), 0);
    assert_int_equal(eng_forward_open_kv(&model, N_PAGES, err, sizeof err), 0);
    rig_add(&r, 0, g.tokens, g.n, 0, KRN_MASK_CAUSAL, false);
    assert_int_equal(eng_model_forward(&model, &r.batch), 0);
    model.close(model.ctx);
    assert_int_equal(eng_forward_open(r.backend, r.weights, &later, &model, err, sizeof err), 0);
    model.close(model.ctx); // without one
    later.kv_type = KRN_FP8;
    assert_int_equal(eng_forward_page_bytes(r.backend, r.weights, PAGE_SIZE, KRN_FP8), KRN_ENOTSUP);
    assert_int_equal(eng_forward_open(r.backend, r.weights, &later, &model, err, sizeof err), 0);
    assert_int_equal(eng_forward_open_kv(&model, N_PAGES, err, sizeof err), KRN_ENOTSUP);
    assert_string_equal(err, "the cpu backend cannot have the KV store (64 pages of 4 tokens, fp8): not supported by "
                             "this backend");
    model.close(model.ctx);
    rig_close(&r);
    golden_close(&g);
}

static int n_abandoned, n_submitted, n_ops, begin_code;

static int failing_op(void *ctx, void *y, const void *x, const struct krn_tensor *gate, const struct krn_tensor *up,
                      int32_t rows, void *const scratch[2])
{
    (void)ctx, (void)x, (void)y, (void)gate, (void)up, (void)rows, (void)scratch;
    return KRN_EDEVICE;
}

static void noted_abandon(void *ctx)
{
    n_abandoned++;
    real_backend->abandon(ctx);
}

static const char *device_error(void *ctx)
{
    (void)ctx;
    return "the device fell off the bus";
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
    real_backend = r.backend;
    struct krn_backend failing = *r.backend;
    failing.gated = failing_op;
    failing.abandon = noted_abandon;
    failing.error = device_error;
    assert_int_equal(eng_forward_open(&failing, r.weights, &sizes, &model, err, sizeof err), 0);
    rig_add(&r, 0, g.tokens, g.n, 0, KRN_MASK_CAUSAL, false);
    n_abandoned = 0;
    assert_int_equal(eng_model_forward(&model, &r.batch), KRN_EDEVICE);
    assert_int_equal(n_abandoned, 1);
    assert_string_equal(model.error(model.ctx, KRN_EDEVICE), "the device fell off the bus");
    assert_string_equal(model.error(model.ctx, KRN_EINVAL), "argument out of range");
    model.close(model.ctx);
    rig_close(&r);
    golden_close(&g);
}

static int chosen_begin(void *ctx, const struct krn_pass *pass)
{
    (void)ctx;
    for (int32_t i = 0; begin_code == KRN_REPLAY && i < pass->n_wanted; i++)
        pass->choices[i].token = 77;
    return begin_code;
}

static int counted_embed(void *ctx, void *x, const struct krn_tensor *table, const int32_t *tokens, int32_t rows)
{
    n_ops++;
    return real_backend->embed(ctx, x, table, tokens, rows);
}

static int noted_submit(void *ctx)
{
    (void)ctx;
    n_submitted++;
    return 0;
}

static void test_a_replayed_pass_calls_no_op(void **state)
{
    (void)state;
    struct golden g;
    struct rig r;
    struct eng_model model;
    char err[256];
    golden_open(&g, "three_heads");
    rig_open(&r, "three_heads", "auto", "auto", ~0u);
    real_backend = r.backend;
    struct krn_backend replaying = *r.backend;
    replaying.begin = chosen_begin;
    replaying.embed = counted_embed;
    replaying.submit = noted_submit;
    replaying.abandon = noted_abandon;
    assert_int_equal(eng_forward_open(&replaying, r.weights, &sizes, &model, err, sizeof err), 0);
    rig_add(&r, 0, g.tokens, g.n, 0, KRN_MASK_CAUSAL, false);
    n_ops = n_submitted = n_abandoned = 0;
    begin_code = KRN_REPLAY;
    assert_int_equal(eng_model_forward(&model, &r.batch), 0);
    assert_true(n_ops == 0 && n_submitted == 1 && r.choices[0].token == 77);
    begin_code = KRN_EINVAL; // a pass that did not begin is neither submitted nor abandoned
    assert_int_equal(eng_model_forward(&model, &r.batch), KRN_EINVAL);
    assert_true(n_ops == 0 && n_submitted == 1 && n_abandoned == 0);
    model.close(model.ctx);
    rig_close(&r);
    golden_close(&g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_links_carry_tokens_from_pass_to_pass),
        cmocka_unit_test(test_a_verified_block_is_measured_by_the_model),
        cmocka_unit_test(test_memory_is_taken_at_open_and_given_back),
        cmocka_unit_test(test_the_kv_store_may_come_later),
        cmocka_unit_test(test_a_failing_op_ends_the_pass_with_its_code),
        cmocka_unit_test(test_a_replayed_pass_calls_no_op),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
