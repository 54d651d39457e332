// engine/route_plan.c
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "request.h"
#include "route_machine.h"
#include "route_plan.h"

enum { MOST = 64 };

static struct eng_cost cost;
static struct eng_cost_live live;
static struct eng_experience all;
static struct eng_request *requests[MOST];
static int32_t n_requests;

static struct eng_plan_rules rules_of(struct eng_cost c)
{
    cost = c;
    live = (struct eng_cost_live){0};
    return (struct eng_plan_rules){.modes = 15,
                                   .auto_modes = 1u << ENG_MODE_AR | 1u << ENG_MODE_SELF_SPECULATION,
                                   .auto_rows = 64,
                                   .cost = &cost,
                                   .live = &live};
}

// n more requests; tokens: what a block yields them, of every drafted position alike. 0: as hoped.
static void add(int32_t n, enum eng_mode mode, int32_t block_length, int32_t max_tokens, float tokens)
{
    struct eng_request_limits limits = {
        .n_vocab = 50, .max_context = 1000, .modes = 15, .block_length = 32, .threshold = 0.9f};
    struct eng_params p = eng_params_default();
    int32_t prompt[] = {1};
    p.mode = mode;
    p.block_length = block_length;
    p.max_tokens = max_tokens;
    while (n--) {
        struct eng_request *r;
        assert_int_equal(eng_request_make(&limits, &p, prompt, 1, &r, NULL, NULL, 0), 0);
        struct eng_routing *own = &r->seq.routing;
        eng_acceptance_hope(own->tokens);
        for (int k = 0; tokens > 0 && k < ENG_BLOCK_LENGTHS; k++)
            own->tokens[k] = tokens < (float)eng_block_length(k) ? tokens : (float)eng_block_length(k);
        r->seq.n_kv = 1;
        r->seq.n_tokens = 2;
        requests[n_requests++] = r;
    }
}

static int clear(void **state)
{
    (void)state;
    while (n_requests)
        eng_request_free(requests[--n_requests]);
    return 0;
}

static struct eng_plan plan_of(struct eng_cost c)
{
    struct eng_plan_rules rules = rules_of(c);
    struct eng_plan plan = {0};
    eng_plan_make(&rules, &all, requests, n_requests, 0, 1, &plan);
    assert_int_equal(plan.number, 1);
    assert_int_equal(plan.active, n_requests);
    return plan;
}

static void test_the_numbers_are_the_cost_models(void **state)
{
    (void)state;
    add(3, ENG_MODE_AR, 0, 100, 0);
    struct eng_plan plan = plan_of(machine_cpu());
    double seconds = 3 / eng_cost_ar_rate(&cost, 3, 1);
    assert_true(plan.measured && plan.cap == 0);
    assert_float_equal((float)(plan.seconds / seconds), 1, 1e-4);
    assert_float_equal((float)(plan.rate * seconds / 3), 1, 1e-4);
    clear(state);
    // One block of 8: a draft pass and a verification.
    add(1, ENG_MODE_SELF_SPECULATION, 8, 100, 5);
    plan = plan_of(machine_cpu());
    struct eng_cost_pass draft = {0}, verify = {0};
    eng_cost_pass_add(&draft, 8, 1, 7, false);
    eng_cost_pass_add(&verify, 8, 1, 8, false);
    seconds = eng_cost_predict(&cost, &draft) + eng_cost_predict(&cost, &verify);
    assert_float_equal((float)(plan.rate * seconds / 5), 1, 1e-4);
    clear(state);
}

static void test_the_cap_is_the_fastest_block_length(void **state)
{
    (void)state;
    add(1, ENG_MODE_AUTO, 0, 100, 0);
    assert_int_equal(plan_of(machine_gpu()).cap, 32);
    add(15, ENG_MODE_AUTO, 0, 100, 0);
    int32_t cap = plan_of(machine_gpu()).cap;
    assert_true(cap == 16 || cap == 8);
    add(48, ENG_MODE_AUTO, 0, 100, 0);
    assert_true(plan_of(machine_gpu()).cap < cap);
    assert_int_equal(plan_of(machine_cpu()).cap, 0);
    clear(state);
    // The longest of all that somebody may have.
    add(1, ENG_MODE_AUTO, 64, 100, 0);
    assert_int_equal(plan_of(machine_gpu()).cap, 64);
    clear(state);
}

static void test_a_cap_stays_unless_another_is_clearly_better(void **state)
{
    (void)state;
    struct eng_plan_rules rules = rules_of(machine_cpu());
    // As fast with blocks of 8 as with AR: whatever was before stays.
    for (float tokens = 3; tokens < 8; tokens += 0.01f) {
        add(1, ENG_MODE_AUTO, 8, 100, tokens);
        struct eng_plan from_ar = {.number = 1, .cap = 0}, from_blocks = {.number = 1, .cap = 8};
        eng_plan_make(&rules, &all, requests, 1, 0, 1, &from_ar);
        eng_plan_make(&rules, &all, requests, 1, 0, 1, &from_blocks);
        double ratio = from_ar.other_rate / from_ar.ar_rate;
        if (ratio > 1 && ratio < 1.03) {
            assert_int_equal(from_ar.cap, 0);
            assert_int_equal(from_blocks.cap, 8);
            clear(state);
            return;
        }
        clear(state);
    }
    fail();
}

static void test_a_plan_that_slows_somebody_is_not_taken(void **state)
{
    (void)state;
    add(8, ENG_MODE_AUTO, 0, 100, 0);
    assert_true(plan_of(machine_gpu()).cap > 0);
    // Passes of the GPU hardly become longer by blocks, so one in AR does not mind; those of the CPU do.
    add(1, ENG_MODE_AR, 0, 100, 0);
    assert_true(plan_of(machine_gpu()).cap > 0);
    clear(state);
    add(1, ENG_MODE_AUTO, 0, 100, 0);
    assert_true(plan_of(machine_cpu()).cap > 0);
    add(1, ENG_MODE_AR, 0, 100, 0);
    struct eng_plan plan = plan_of(machine_cpu());
    assert_int_equal(plan.cap, 0);
    assert_true(plan.hindered || plan.other_rate <= plan.ar_rate * 1.04);
    clear(state);
}

static void test_short_answers_have_short_blocks(void **state)
{
    (void)state;
    add(1, ENG_MODE_AUTO, 0, 4, 0);
    struct eng_route_option o = eng_plan_speculation(&all, requests[0], 32);
    assert_int_equal(o.rows[0], 4);
    assert_true(o.tokens <= 2);
    clear(state);
    add(1, ENG_MODE_AUTO, 0, 1, 0);
    o = eng_plan_speculation(&all, requests[0], 32);
    assert_true(o.rows[0] == 1 && o.tokens == 1);
    clear(state);
}

static void test_a_row_has_a_price_where_rows_cost_time(void **state)
{
    (void)state;
    add(1, ENG_MODE_AUTO, 0, 100, 0);
    assert_true(plan_of(machine_gpu()).row_price < ENG_FREE_ROW_PRICE);
    float price = plan_of(machine_cpu()).row_price;
    assert_true(price > 0.1f && price < 0.9f);
    clear(state);
}

static void test_hope_is_for_where_blocks_could_pay(void **state)
{
    (void)state;
    add(1, ENG_MODE_AUTO, 0, 100, 1);
    assert_int_equal(plan_of(machine_cpu()).cap, 0);
    struct eng_plan_rules rules = rules_of(machine_cpu());
    assert_true(eng_plan_hope(&rules, requests, n_requests, 0) > 0);
    add(40, ENG_MODE_AUTO, 0, 100, 1);
    assert_int_equal(eng_plan_hope(&rules, requests, n_requests, 0), 0);
    clear(state);
}

static void test_nobody_needs_no_plan(void **state)
{
    (void)state;
    struct eng_plan plan = plan_of(machine_cpu());
    assert_int_equal(plan.cap, 0);
    assert_false(plan.measured);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_the_numbers_are_the_cost_models, clear),
        cmocka_unit_test_teardown(test_the_cap_is_the_fastest_block_length, clear),
        cmocka_unit_test_teardown(test_a_cap_stays_unless_another_is_clearly_better, clear),
        cmocka_unit_test_teardown(test_a_plan_that_slows_somebody_is_not_taken, clear),
        cmocka_unit_test_teardown(test_short_answers_have_short_blocks, clear),
        cmocka_unit_test_teardown(test_a_row_has_a_price_where_rows_cost_time, clear),
        cmocka_unit_test_teardown(test_hope_is_for_where_blocks_could_pay, clear),
        cmocka_unit_test_teardown(test_nobody_needs_no_plan, clear),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
