// engine/budget.c
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include <math.h>

#include "budget.h"
#include "client.h"

enum { MAX = 256 };

// The running requests of a scheduler, without pages and batches.
struct world {
    struct eng_tenants tenants;
    struct eng_budget b;
    struct eng_cost cost;
    struct eng_cost_live live;
    struct eng_decode_env env;
    struct eng_request *running[MAX], *parts[MAX];
    int32_t n;
};

// base seconds, then `row` a row. per position of context `position`.
static struct eng_cost linear_cost(double base, double row)
{
    return (struct eng_cost){.n_knots = 1, .knots = {0}, .slopes = {row}, .base = base};
}

static void open_world(struct world *w, int32_t max_rows, double stretch, struct eng_cost cost)
{
    *w = (struct world){.cost = cost, .env = {.mask_id = 5, .has_adapter = true}};
    assert_int_equal(eng_tenants_init(&w->tenants, MAX), 0);
    assert_int_equal(eng_budget_init(&w->b, MAX), 0);
    w->b.max_rows = max_rows;
    w->b.piece_rows = 32;
    w->b.stretch = stretch;
    w->b.cost = &w->cost;
    w->b.live = &w->live;
}

static void close_world(struct world *w)
{
    while (w->n) {
        eng_tenants_stopped(&w->tenants, w->running[--w->n]);
        eng_request_free(w->running[w->n]);
    }
    eng_budget_done(&w->b);
    eng_tenants_done(&w->tenants);
}

// A running request; prompt 0: it decodes.
static struct eng_request *add(struct world *w, int32_t tenant, enum eng_mode mode, int32_t block, int32_t n_prompt)
{
    static int32_t tokens[8000];
    struct eng_request_limits limits = {.n_vocab = 97, .max_context = 8192, .modes = 15, .block_length = block};
    struct eng_params p = eng_params_default();
    struct eng_request *r;
    p.tenant = tenant;
    p.max_tokens = 1000;
    p.mode = mode;
    size_t n = n_prompt ? (size_t)n_prompt : 10;
    assert_int_equal(eng_request_make(&limits, &p, tokens, n, &r, NULL, NULL, 0), 0);
    r->seq.mode = mode;
    r->seq.block_length = block;
    r->seq.n_kv = n_prompt ? 0 : 10;
    r->seq.n_tokens = n_prompt ? n_prompt : 11;
    eng_tenants_started(&w->tenants, r);
    w->running[w->n++] = r;
    return r;
}

static void leave(struct world *w, struct eng_request *r)
{
    int32_t i = 0;
    while (w->running[i] != r)
        i++;
    memmove(&w->running[i], &w->running[i + 1], (size_t)(--w->n - i) * sizeof(struct eng_request *));
    eng_tenants_stopped(&w->tenants, r);
    eng_request_free(r);
}

// Chooses a pass and moves those without rows to the front, as the scheduler does. Its expected time.
static double pass(struct world *w)
{
    struct eng_cost_pass pass = {0};
    struct eng_request *order[MAX];
    int32_t n = 0, n_parts = eng_budget_choose(&w->b, &w->tenants, &w->env, w->running, w->n, w->parts);
    assert_true(n_parts > 0);
    for (int32_t i = 0; i < n_parts; i++) {
        const struct eng_seq *q = &w->parts[i]->seq;
        assert_true(q->step_rows > 0);
        bool prompt = eng_seq_in_prompt(q);
        eng_cost_pass_add(&pass, q->step_rows, q->n_kv, prompt ? 0 : q->step_rows, false);
        if (!prompt)
            assert_int_equal(q->step_rows, q->mode == ENG_MODE_AR ? 1 : q->block_length); // whole or not at all
    }
    assert_true(pass.rows <= w->b.max_rows);
    for (int served = 0; served < 2; served++)
        for (int32_t i = 0; i < w->n; i++)
            if ((w->running[i]->seq.step_rows > 0) == served)
                order[n++] = w->running[i];
    memcpy(w->running, order, (size_t)n * sizeof *order);
    return eng_budget_time(&w->b, &pass);
}

// The prompts go on as the pass says.
static int32_t advance(struct world *w)
{
    int32_t rows = 0;
    for (int32_t i = 0; i < w->n; i++) {
        struct eng_seq *q = &w->running[i]->seq;
        if (eng_seq_in_prompt(q)) {
            q->n_kv += q->step_rows;
            rows += q->step_rows;
        }
    }
    return rows;
}

static void test_prompts_stretch_a_pass_no_more_than_they_may(void **state)
{
    (void)state;
    for (int32_t n_decoders = 1; n_decoders <= 64; n_decoders *= 4) {
        struct world w;
        open_world(&w, 2048, 1.6, linear_cost(1e-3, 1e-4));
        w.cost.pair = 1e-8; // rows behind a long context cost more
        for (int32_t i = 0; i < n_decoders; i++)
            add(&w, 0, ENG_MODE_AR, 32, 0);
        double alone = pass(&w);
        struct eng_request *prompts[2] = {add(&w, 0, ENG_MODE_AR, 32, 4000), add(&w, 0, ENG_MODE_AR, 32, 4000)};
        int passes = 0;
        while (eng_seq_in_prompt(&prompts[0]->seq)) {
            double with = pass(&w);
            int32_t rows = advance(&w);
            assert_true(rows >= ENG_LEAST_PROMPT_ROWS || !eng_seq_in_prompt(&prompts[0]->seq));
            assert_true(with <= 1.6 * alone * 1.0001 || rows == ENG_LEAST_PROMPT_ROWS);
            assert_true(++passes < 4000);
        }
        for (int32_t i = 0; i < w.n; i++)
            if (!eng_seq_in_prompt(&w.running[i]->seq))
                assert_true(w.running[i]->seq.step_rows == 1 || w.running[i] == prompts[0] ||
                            w.running[i] == prompts[1]);
        close_world(&w);
    }
}

static void test_however_little_time_there_is_prompts_progress(void **state)
{
    (void)state;
    struct world w;
    open_world(&w, 2048, 1, linear_cost(1e-3, 1e-4));
    add(&w, 0, ENG_MODE_AR, 32, 0);
    struct eng_request *p = add(&w, 0, ENG_MODE_AR, 32, 100);
    for (int i = 0; i < 100 / ENG_LEAST_PROMPT_ROWS; i++) {
        pass(&w);
        assert_int_equal(p->seq.step_rows, ENG_LEAST_PROMPT_ROWS);
        advance(&w);
    }
    assert_false(eng_seq_in_prompt(&p->seq));
    close_world(&w);
}

static void test_without_a_decoder_the_pass_is_shared_by_prompts(void **state)
{
    (void)state;
    struct world w;
    open_world(&w, 1000, 1.6, linear_cost(1e-3, 1e-4));
    struct eng_request *little = add(&w, 0, ENG_MODE_AR, 32, 40), *a = add(&w, 0, ENG_MODE_AR, 32, 4000);
    struct eng_request *b = add(&w, 0, ENG_MODE_AR, 32, 4000);
    pass(&w);
    assert_int_equal(little->seq.step_rows, 40);
    assert_int_equal(a->seq.step_rows, 480);
    assert_int_equal(b->seq.step_rows, 480);
    close_world(&w);
}

static void test_without_a_bound_prompts_come_in_pieces(void **state)
{
    (void)state;
    for (int without_model = 0; without_model < 2; without_model++) {
        struct world w;
        open_world(&w, 1000, without_model ? 1.6 : 0, linear_cost(1e-3, 1e-4));
        if (without_model)
            w.cost.n_knots = 0;
        add(&w, 0, ENG_MODE_AR, 32, 0);
        struct eng_request *p = add(&w, 0, ENG_MODE_AR, 32, 4000);
        pass(&w);
        assert_int_equal(p->seq.step_rows, 32);
        close_world(&w);
    }
}

// One tenant with a row a pass, the other with sixty: the first one's tokens take on average no more than 1.6 times
// what they take alone, and each of the other's is served within a bounded number of passes.
static void test_a_light_tenant_bounds_the_pass(void **state)
{
    (void)state;
    struct world w;
    open_world(&w, 2048, 1.6, linear_cost(1e-3, 1e-3));
    struct eng_request *light = add(&w, 3, ENG_MODE_AR, 32, 0);
    double alone = pass(&w), sum = 0;
    int32_t waited[61] = {0}, served = 0;
    for (int i = 0; i < 60; i++)
        add(&w, 9, ENG_MODE_AR, 32, 0)->seq.age = (uint64_t)i;
    for (int i = 0; i < 600; i++) {
        double time = pass(&w);
        sum += time;
        assert_true(time <= 2 * alone * 1.0001); // with what was saved
        assert_int_equal(light->seq.step_rows, 1);
        for (int32_t k = 0; k < w.n; k++)
            if (w.running[k] != light) {
                int32_t *n = &waited[w.running[k]->seq.age];
                served += w.running[k]->seq.step_rows;
                *n = w.running[k]->seq.step_rows ? 0 : *n + 1;
                assert_true(*n <= 60);
            }
    }
    assert_in_range(served, 700, 720); // 1.2 ms a pass, at 1 ms each
    assert_true(sum / 600 <= 1.6 * alone * 1.0001);
    close_world(&w);
}

// Where a pass is bound by the reading of the weights, nobody has to wait.
static void test_rows_that_cost_nothing_are_not_held_back(void **state)
{
    (void)state;
    struct world w;
    open_world(&w, 2048, 1.6, linear_cost(1e-2, 1e-5));
    add(&w, 0, ENG_MODE_AR, 32, 0);
    for (int i = 0; i < 63; i++)
        add(&w, 1, ENG_MODE_AR, 32, 0);
    pass(&w);
    for (int32_t i = 0; i < w.n; i++)
        assert_int_equal(w.running[i]->seq.step_rows, 1);
    close_world(&w);
}

// Blocks that cost more than a pass has to give wait until their tenant has saved enough.
static void test_blocks_are_saved_for(void **state)
{
    (void)state;
    struct world w;
    open_world(&w, 2048, 1.6, linear_cost(1e-3, 1e-3));
    struct eng_request *light = add(&w, 0, ENG_MODE_AR, 32, 0);
    for (int i = 0; i < 3; i++)
        add(&w, 1, ENG_MODE_SELF_SPECULATION, 16, 0);
    double time = 0;
    int blocks = 0, n = 0;
    for (; n < 280; n++) {
        time += pass(&w);
        assert_int_equal(light->seq.step_rows, 1);
        for (int32_t i = 0; i < w.n; i++)
            blocks += w.running[i] != light && w.running[i]->seq.step_rows;
    }
    assert_in_range(blocks, 19, 22); // 16 ms each, 1.2 ms a pass
    assert_true(time / n < 1.6 * 2e-3);
    close_world(&w);
}

// The light tenant's rows leave no room for a block, in any pass.
static void test_blocks_find_room_beside_many_rows(void **state)
{
    (void)state;
    struct world w;
    open_world(&w, 64, 1.6, linear_cost(1e-2, 1e-6));
    for (int i = 0; i < 60; i++)
        add(&w, 0, ENG_MODE_AR, 32, 0)->seq.age = (uint64_t)i;
    for (int i = 60; i < 63; i++)
        add(&w, 1, ENG_MODE_SELF_SPECULATION, 32, 0)->seq.age = (uint64_t)i;
    int32_t waited[63] = {0};
    for (int i = 0; i < 100; i++) {
        pass(&w);
        for (int32_t k = 0; k < w.n; k++) {
            int32_t *n = &waited[w.running[k]->seq.age];
            *n = w.running[k]->seq.step_rows ? 0 : *n + 1;
            assert_true(*n <= 6);
        }
    }
    close_world(&w);
}

// Two tenants with prompts beside decoders: the lighter one, which comes first, does not take all of the time that
// prompts have.
static void test_tenants_share_the_time_of_prompts(void **state)
{
    (void)state;
    struct world w;
    open_world(&w, 2048, 1.6, linear_cost(1e-2, 1e-4));
    for (int i = 0; i < 6; i++)
        add(&w, i > 0, ENG_MODE_AR, 32, 0);
    struct eng_request *a = add(&w, 0, ENG_MODE_AR, 32, 4000), *b = add(&w, 1, ENG_MODE_AR, 32, 4000);
    for (int i = 0; i < 40; i++) {
        pass(&w);
        advance(&w);
    }
    assert_true(a->seq.n_kv > 1000 && a->seq.n_kv < 2 * b->seq.n_kv && b->seq.n_kv < 2 * a->seq.n_kv);
    close_world(&w);
}

static void test_equal_tenants_fill_the_pass(void **state)
{
    (void)state;
    struct world w;
    open_world(&w, 64, 1.6, linear_cost(1e-3, 1e-3));
    for (int i = 0; i < 40; i++)
        add(&w, i % 2, ENG_MODE_SELF_SPECULATION, 16, 0);
    int32_t rows[2] = {0};
    for (int i = 0; i < 100; i++) {
        pass(&w);
        for (int32_t k = 0; k < w.n; k++)
            rows[w.running[k]->params.tenant] += w.running[k]->seq.step_rows;
    }
    assert_int_equal(rows[0] + rows[1], 6400);
    assert_in_range(rows[0], 1600, 4800);
    close_world(&w);
}

static void test_without_a_model_rows_stand_for_time(void **state)
{
    (void)state;
    struct world w;
    open_world(&w, 2048, 1.6, (struct eng_cost){0});
    struct eng_request *light = add(&w, 0, ENG_MODE_AR, 32, 0);
    for (int i = 0; i < 63; i++)
        add(&w, 1, ENG_MODE_AR, 32, 0);
    int32_t rows = 0;
    for (int i = 0; i < 100; i++) {
        pass(&w);
        assert_int_equal(light->seq.step_rows, 1);
        for (int32_t k = 0; k < w.n; k++)
            rows += w.running[k]->seq.step_rows;
    }
    // Beside the light one's row, 0.6 of a pass of that row alone.
    assert_in_range(rows / 100, 1 + 0.6 * (1 + ENG_EMPTY_PASS_ROWS) - 1, 1 + 0.6 * (1 + ENG_EMPTY_PASS_ROWS) + 1);
    close_world(&w);
}

// The tenant's decoders would take all that it may add, pass after pass.
static void test_decoders_do_not_keep_their_tenants_prompts_out(void **state)
{
    (void)state;
    struct world w;
    open_world(&w, 2048, 1.6, linear_cost(1e-2, 1e-4));
    add(&w, 0, ENG_MODE_AR, 32, 0);
    for (int i = 0; i < 100; i++)
        add(&w, 1, ENG_MODE_AR, 32, 0);
    struct eng_request *p = add(&w, 1, ENG_MODE_AR, 32, 200);
    int passes = 0;
    for (; eng_seq_in_prompt(&p->seq); passes++) {
        pass(&w);
        advance(&w);
        assert_true(passes < 16); // half of 6 ms in every other pass, at 0.1 ms a row
    }
    close_world(&w);
}

// The light tenant's next request finds no long pass under way: those after it left grow by a factor of two.
static void test_passes_grow_slowly_once_a_light_tenant_left(void **state)
{
    (void)state;
    struct world w;
    open_world(&w, 2048, 1.6, linear_cost(1e-3, 1e-3));
    struct eng_request *light = add(&w, 0, ENG_MODE_AR, 32, 0);
    for (int i = 0; i < 60; i++)
        add(&w, 1, ENG_MODE_AR, 32, 0);
    double last = pass(&w), time;
    leave(&w, light);
    int n = 0;
    for (; (time = pass(&w)) < 61e-3 * 0.9999; n++) {
        assert_true(time <= 2 * last * 1.0001);
        last = time;
    }
    assert_in_range(n, 4, 6);
    assert_true(isinf(w.b.ramp));
    close_world(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_prompts_stretch_a_pass_no_more_than_they_may),
        cmocka_unit_test(test_however_little_time_there_is_prompts_progress),
        cmocka_unit_test(test_without_a_decoder_the_pass_is_shared_by_prompts),
        cmocka_unit_test(test_without_a_bound_prompts_come_in_pieces),
        cmocka_unit_test(test_a_light_tenant_bounds_the_pass),
        cmocka_unit_test(test_rows_that_cost_nothing_are_not_held_back),
        cmocka_unit_test(test_blocks_are_saved_for),
        cmocka_unit_test(test_blocks_find_room_beside_many_rows),
        cmocka_unit_test(test_tenants_share_the_time_of_prompts),
        cmocka_unit_test(test_equal_tenants_fill_the_pass),
        cmocka_unit_test(test_without_a_model_rows_stand_for_time),
        cmocka_unit_test(test_decoders_do_not_keep_their_tenants_prompts_out),
        cmocka_unit_test(test_passes_grow_slowly_once_a_light_tenant_left),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
