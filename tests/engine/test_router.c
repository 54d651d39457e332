// engine/router.c
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "batch.h"
#include "request.h"
#include "route_machine.h"
#include "router.h"

static const unsigned ALL = 15, AR = 1u << ENG_MODE_AR, SS = 1u << ENG_MODE_SELF_SPECULATION,
                      DIFFUSION = 1u << ENG_MODE_DIFFUSION;

enum { MOST = 64 };

// A router over one of the machines, and requests that it decides for.
struct rig {
    struct eng_router router;
    struct eng_cost cost;
    struct eng_cost_live live;
    struct eng_request *r[MOST];
    int32_t n;
};

static struct rig *open_rig(struct eng_cost cost, unsigned auto_modes)
{
    struct rig *g = calloc(1, sizeof *g);
    g->cost = cost;
    g->router.rules = (struct eng_plan_rules){
        .modes = ALL, .auto_modes = auto_modes, .auto_rows = 64, .cost = &g->cost, .live = &g->live};
    return g;
}

static void add(struct rig *g, int32_t n, struct eng_params p, enum eng_mode configured)
{
    struct eng_request_limits limits = {
        .n_vocab = 50, .max_context = 1000, .modes = ALL, .block_length = 32, .threshold = 0.9f, .mode = configured};
    int32_t prompt[] = {1};
    p.max_tokens = 500;
    while (n--) {
        struct eng_request *r;
        assert_int_equal(eng_request_make(&limits, &p, prompt, 1, &r, NULL, NULL, 0), 0);
        r->seq.n_kv = 1;
        r->seq.n_tokens = 2;
        g->r[g->n++] = r;
    }
}

static void close_rig(struct rig *g)
{
    while (g->n)
        eng_request_free(g->r[--g->n]);
    free(g);
}

// What the request is told at `now`, as the engine asks; true: it changed.
static bool ask(struct rig *g, int32_t i, double now_s, struct eng_route *to)
{
    int64_t now = (int64_t)(now_s * 1e9);
    *to = (struct eng_route){0};
    eng_router_plan(&g->router, g->r, g->n, now);
    bool changed = eng_router_wants(&g->router, g->r[i], now, to);
    assert_int_equal(changed, eng_router_wants(&g->router, g->r[i], now, NULL));
    if (changed)
        eng_seq_set_mode(&g->r[i]->seq, to->mode, to->block_length, to->reason);
    eng_router_follow(&g->router, g->r[i], changed, now);
    return changed;
}

static struct eng_route decide(struct eng_cost cost, unsigned auto_modes, struct eng_params p, enum eng_mode configured,
                               int32_t n)
{
    struct rig *g = open_rig(cost, auto_modes);
    struct eng_route to;
    add(g, n, p, configured);
    assert_true(ask(g, 0, 1, &to));
    assert_true(strlen(to.reason) > 10 && strlen(to.reason) < sizeof to.reason - 1);
    close_rig(g);
    return to;
}

static const struct eng_cost no_model;

static struct eng_params params(enum eng_mode mode)
{
    struct eng_params p = eng_params_default();
    p.mode = mode;
    return p;
}

// A verified draft of `rows` rows, `kept` of whose drafts were accepted.
static void verify(struct rig *g, int32_t i, int32_t rows, int32_t kept, double now_s)
{
    struct eng_segment s = {.kind = ENG_PASS_VERIFY, .rows = rows};
    struct eng_run run = {.n = kept + 1, .drafted = rows - 1, .accepted = kept};
    eng_router_learn(&g->router, g->r[i], &s, &run, kept + 1, (int64_t)(now_s * 1e9));
}

// ---- what was asked for ---------------------------------------------------------------------------------------------

static void test_a_forced_mode_is_honoured_under_any_load(void **state)
{
    (void)state;
    for (enum eng_mode mode = ENG_MODE_AR; mode < ENG_N_MODES; mode++)
        for (int32_t n = 1; n <= MOST; n *= 4)
            for (unsigned modes = 2; modes < 16; modes += 2) {
                struct eng_route to = decide(machine_cpu(), modes, params(mode), ENG_MODE_AUTO, n);
                assert_int_equal(to.mode, mode);
                assert_int_equal(to.cause, ENG_CAUSE_REQUESTED);
                assert_non_null(strstr(to.reason, "request"));
                assert_int_equal(decide(no_model, modes, params(mode), ENG_MODE_AUTO, n).mode, mode);
            }
}

static void test_the_configured_mode_is_the_default_only(void **state)
{
    (void)state;
    struct eng_route to = decide(machine_cpu(), AR | SS, params(ENG_MODE_AUTO), ENG_MODE_DIFFUSION, 8);
    assert_int_equal(to.mode, ENG_MODE_DIFFUSION);
    assert_int_equal(to.cause, ENG_CAUSE_DEFAULT);
    assert_non_null(strstr(to.reason, "configuration"));
    to = decide(machine_cpu(), AR | SS, params(ENG_MODE_AR), ENG_MODE_DIFFUSION, 1);
    assert_int_equal(to.mode, ENG_MODE_AR);
    assert_int_equal(to.cause, ENG_CAUSE_REQUESTED);
    // A server that resolves its default itself says so.
    struct eng_params p = params(ENG_MODE_AR);
    p.mode_by_default = true;
    assert_int_equal(decide(machine_cpu(), AR | SS, p, ENG_MODE_AUTO, 1).cause, ENG_CAUSE_DEFAULT);
    // A lossless request is not given a configured diffusion.
    p = params(ENG_MODE_AUTO);
    p.lossless = true;
    assert_int_equal(decide(no_model, AR | SS, p, ENG_MODE_DIFFUSION, 1).mode, ENG_MODE_SELF_SPECULATION);
}

static void test_a_given_block_length_is_kept(void **state)
{
    (void)state;
    for (int32_t length = 4; length <= 64; length *= 2) {
        struct eng_params p = params(ENG_MODE_SELF_SPECULATION);
        p.block_length = length;
        for (int32_t n = 1; n <= MOST; n *= 4)
            assert_int_equal(decide(machine_cpu(), AR | SS, p, ENG_MODE_AUTO, n).block_length, length);
        p.mode = ENG_MODE_AUTO;
        struct eng_route to = decide(machine_gpu(), AR | SS, p, ENG_MODE_AUTO, 1);
        assert_int_equal(to.mode, ENG_MODE_SELF_SPECULATION);
        assert_int_equal(to.block_length, length);
    }
    // Diffusion's text depends on it, so it is the configuration's.
    assert_int_equal(decide(machine_cpu(), AR | SS, params(ENG_MODE_DIFFUSION), ENG_MODE_AUTO, 1).block_length, 32);
    // Self-speculation's does not.
    struct eng_route few = decide(machine_cpu(), AR | SS, params(ENG_MODE_SELF_SPECULATION), ENG_MODE_AUTO, 1);
    struct eng_route many = decide(machine_cpu(), AR | SS, params(ENG_MODE_SELF_SPECULATION), ENG_MODE_AUTO, MOST);
    assert_true(few.block_length > many.block_length);
}

// ---- auto -----------------------------------------------------------------------------------------------------------

static void test_without_a_cost_model_auto_speculates_while_all_blocks_fit(void **state)
{
    (void)state;
    struct eng_route to = decide(no_model, AR | SS, params(ENG_MODE_AUTO), ENG_MODE_AUTO, 2);
    assert_int_equal(to.mode, ENG_MODE_SELF_SPECULATION);
    assert_int_equal(to.cause, ENG_CAUSE_AUTO_ROWS);
    assert_int_equal(to.block_length, 32);
    assert_string_equal(to.reason, "2 active requests: blocks of 64 rows in all fit auto-rows 64");
    to = decide(no_model, AR | SS, params(ENG_MODE_AUTO), ENG_MODE_AUTO, 3);
    assert_int_equal(to.mode, ENG_MODE_AR);
    assert_string_equal(to.reason, "3 active requests: blocks of 96 rows in all exceed auto-rows 64");
}

static void test_auto_uses_diffusion_only_where_it_is_allowed(void **state)
{
    (void)state;
    struct eng_params p = params(ENG_MODE_AUTO);
    for (int measured = 0; measured < 2; measured++) {
        struct eng_cost cost = measured ? machine_gpu() : no_model;
        assert_int_equal(decide(cost, AR, p, ENG_MODE_AUTO, 1).mode, ENG_MODE_AR);
        assert_int_equal(decide(cost, AR, p, ENG_MODE_AUTO, 1).cause, ENG_CAUSE_ONLY_MODE);
        assert_int_equal(decide(cost, AR | DIFFUSION, p, ENG_MODE_AUTO, 1).mode, ENG_MODE_DIFFUSION);
        assert_int_equal(decide(cost, DIFFUSION, p, ENG_MODE_AUTO, MOST).mode, ENG_MODE_DIFFUSION);
        p.allow_diffusion = true;
        assert_int_equal(decide(cost, AR, p, ENG_MODE_AUTO, 1).mode, ENG_MODE_DIFFUSION);
        p.allow_diffusion = false;
        p.lossless = true;
        assert_int_equal(decide(cost, AR | DIFFUSION, p, ENG_MODE_AUTO, 1).mode, ENG_MODE_AR);
        assert_int_equal(decide(cost, DIFFUSION, p, ENG_MODE_AUTO, 1).mode, ENG_MODE_AR);
        p.lossless = false;
    }
    assert_int_equal(decide(machine_cpu(), AR | DIFFUSION, p, ENG_MODE_AUTO, MOST).mode, ENG_MODE_AR);
}

static void test_blocks_become_shorter_with_the_load_and_then_end(void **state)
{
    (void)state;
    int32_t before = 64;
    for (int32_t n = 1; n <= MOST; n++) {
        struct eng_route to = decide(machine_gpu(), AR | SS, params(ENG_MODE_AUTO), ENG_MODE_AUTO, n);
        int32_t length = to.mode == ENG_MODE_AR ? 1 : to.block_length;
        assert_true(length <= before);
        assert_int_equal(to.cause, ENG_CAUSE_FASTEST);
        assert_non_null(strstr(to.reason, "tok/s"));
        before = length;
    }
    assert_int_equal(decide(machine_gpu(), AR | SS, params(ENG_MODE_AUTO), ENG_MODE_AUTO, 1).block_length, 32);
    assert_true(before < 32);
    assert_int_equal(decide(machine_cpu(), AR | SS, params(ENG_MODE_AUTO), ENG_MODE_AUTO, MOST).mode, ENG_MODE_AR);
}

static void test_a_request_whose_drafts_fail_goes_to_ar_alone(void **state)
{
    (void)state;
    struct rig *g = open_rig(machine_gpu(), AR | SS);
    struct eng_route to;
    add(g, 4, params(ENG_MODE_AUTO), ENG_MODE_AUTO);
    for (int32_t i = 0; i < 4; i++)
        assert_true(ask(g, i, 1, &to) && to.mode == ENG_MODE_SELF_SPECULATION);
    for (int k = 0; k < 20; k++)
        for (int32_t i = 0; i < 4; i++)
            verify(g, i, 32, i ? 20 : 0, 1);
    assert_true(ask(g, 0, 1.1, &to));
    assert_int_equal(to.mode, ENG_MODE_AR);
    assert_int_equal(to.cause, ENG_CAUSE_POOR_DRAFTS);
    assert_non_null(strstr(to.reason, "tokens each"));
    for (int32_t i = 1; i < 4; i++) {
        ask(g, i, 1.1, &to);
        assert_int_equal(g->r[i]->seq.mode, ENG_MODE_SELF_SPECULATION);
        assert_true(g->r[i]->seq.routing.predicted > 2 * g->r[0]->seq.routing.predicted);
    }
    // What one request did not do well says little about the next.
    add(g, 1, params(ENG_MODE_AUTO), ENG_MODE_AUTO);
    assert_true(ask(g, 4, 1.2, &to) && to.mode == ENG_MODE_SELF_SPECULATION);
    close_rig(g);
}

// Where passes cost by the row, a neighbour in blocks would slow down one that was forced into AR.
static void test_nobody_is_slower_than_with_ar(void **state)
{
    (void)state;
    struct rig *g = open_rig(machine_cpu(), AR | SS);
    struct eng_route to;
    add(g, 1, params(ENG_MODE_AUTO), ENG_MODE_AUTO);
    assert_true(ask(g, 0, 1, &to) && to.mode == ENG_MODE_SELF_SPECULATION);
    add(g, 1, params(ENG_MODE_AR), ENG_MODE_AUTO);
    assert_true(ask(g, 0, 1.5, &to));
    assert_int_equal(to.mode, ENG_MODE_AR);
    close_rig(g);
}

// ---- hysteresis -----------------------------------------------------------------------------------------------------

static void test_a_request_changes_once_in_two_seconds_unless_the_load_does(void **state)
{
    (void)state;
    struct rig *g = open_rig(machine_cpu(), AR | SS);
    struct eng_route to;
    add(g, 1, params(ENG_MODE_AUTO), ENG_MODE_AUTO);
    assert_true(ask(g, 0, 1, &to) && to.mode == ENG_MODE_SELF_SPECULATION);
    for (int i = 0; i < 30; i++)
        verify(g, 0, 16, 0, 1);
    assert_true(ask(g, 0, 1.1, &to) && to.mode == ENG_MODE_AR); // the first change is free
    double now = 1.1;
    for (int i = 0; i < 60; i++)
        verify(g, 0, 16, 15, now);
    for (; now < 3.05; now += 0.05)
        assert_false(ask(g, 0, now, &to));
    assert_true(ask(g, 0, 3.2, &to) && to.mode == ENG_MODE_SELF_SPECULATION);
    // Many more requests are a reason at once.
    add(g, 40, params(ENG_MODE_AUTO), ENG_MODE_AUTO);
    assert_true(ask(g, 0, 3.3, &to) && to.mode == ENG_MODE_AR);
    while (g->n > 1)
        eng_request_free(g->r[--g->n]);
    assert_true(ask(g, 0, 3.4, &to) && to.mode == ENG_MODE_SELF_SPECULATION);
    close_rig(g);
}

static void test_where_drafts_are_known_to_fail_they_are_tried_now_and_then(void **state)
{
    (void)state;
    struct rig *g = open_rig(machine_cpu(), AR | SS);
    struct eng_route to;
    int32_t trials = 0;
    for (int k = 0; k < 400; k++) {
        double now = 1 + k * 0.01;
        add(g, 1, params(ENG_MODE_AUTO), ENG_MODE_AUTO);
        assert_true(ask(g, 0, now, &to));
        if (to.mode == ENG_MODE_SELF_SPECULATION) {
            for (int i = 0; i < 6; i++)
                verify(g, 0, to.block_length, 0, now);
            assert_true(k < 5 || strstr(to.reason, "trying"));
            trials += k >= 5;
            assert_true(ask(g, 0, now + 0.005, &to));
        }
        assert_int_equal(to.mode, ENG_MODE_AR);
        eng_request_free(g->r[--g->n]);
    }
    assert_true(trials >= 4 && trials <= 120);
    close_rig(g);
}

// Makes all believe that drafts are never accepted.
static void disappoint(struct rig *g, double now_s)
{
    for (int k = 0; k < 40; k++) {
        add(g, 1, params(ENG_MODE_AUTO), ENG_MODE_AUTO);
        for (int i = 0; i < 5; i++)
            verify(g, g->n - 1, 16, 0, now_s);
        eng_request_free(g->r[--g->n]);
    }
}

static void test_while_trials_turn_out_well_the_next_one_comes_at_once(void **state)
{
    (void)state;
    for (int good = 0; good < 2; good++) {
        struct rig *g = open_rig(machine_cpu(), AR | SS);
        struct eng_route to;
        int32_t trials = 0;
        disappoint(g, 1);
        for (int k = 0; k < 5; k++) {
            add(g, 1, params(ENG_MODE_AUTO), ENG_MODE_AUTO);
            assert_true(ask(g, 0, 1 + k * 0.002, &to));
            for (int i = 0; i < 6 && to.mode == ENG_MODE_SELF_SPECULATION; i++)
                verify(g, 0, to.block_length, good ? to.block_length - 1 : 0, 1 + k * 0.002);
            trials += to.mode == ENG_MODE_SELF_SPECULATION;
            eng_request_free(g->r[--g->n]);
        }
        assert_int_equal(trials, good ? 5 : 1);
        close_rig(g);
    }
}

// Where drafts are known to be as good as one hopes and AR is chosen all the same, a trial would tell nothing.
static void test_nothing_is_tried_that_is_known(void **state)
{
    (void)state;
    for (int known = 0; known < 2; known++) {
        struct rig *g = open_rig(machine_cpu(), AR | SS);
        struct eng_route to;
        int32_t trials = 0, cases = 0;
        for (int i = 0; known && i < 50; i++) {
            add(g, 1, params(ENG_MODE_AUTO), ENG_MODE_AUTO);
            verify(g, g->n - 1, 16, 14, 1);
            eng_request_free(g->r[--g->n]);
        }
        if (!known)
            disappoint(g, 1);
        // Rows of all prices: at some of them blocks would just be faster, and AR stays since it was chosen before.
        for (int k = 0; k < 200; k++) {
            for (int i = 0; i < 3; i++)
                g->cost.slopes[i] = (10 + 0.2 * k) * 1e-6;
            add(g, 1, params(ENG_MODE_AUTO), ENG_MODE_AUTO);
            g->router.plan = (struct eng_plan){.number = 1, .active = 50};
            assert_true(ask(g, 0, 2 + k, &to));
            cases += !g->router.plan.cap && eng_plan_hope(&g->router.rules, g->r, 1, 0);
            trials += g->r[0]->seq.routing.trial > 0;
            eng_request_free(g->r[--g->n]);
        }
        assert_true(cases > 0);
        assert_true(known ? trials == 0 : trials > 0);
        close_rig(g);
    }
}

static void test_a_request_in_ar_forgets_its_failures(void **state)
{
    (void)state;
    struct rig *g = open_rig(machine_cpu(), AR | SS);
    struct eng_segment s = {.kind = ENG_PASS_AR, .rows = 1};
    struct eng_run run = {.n = 1};
    add(g, 1, params(ENG_MODE_AUTO), ENG_MODE_AUTO);
    for (int i = 0; i < 20; i++)
        verify(g, 0, 16, 0, 1);
    for (int k = 0; k < 60; k++) { // the others do well meanwhile
        add(g, 1, params(ENG_MODE_AUTO), ENG_MODE_AUTO);
        verify(g, 1, 16, 15, 1);
        eng_request_free(g->r[--g->n]);
    }
    assert_true(g->r[0]->seq.routing.tokens[2] < 2);
    for (int i = 0; i < 500; i++)
        eng_router_learn(&g->router, g->r[0], &s, &run, 1, 1000000000);
    assert_true(g->r[0]->seq.routing.tokens[2] > 8);
    close_rig(g);
}

// ---- how much of a draft is verified --------------------------------------------------------------------------------

static void test_only_rows_worth_their_time_are_verified(void **state)
{
    (void)state;
    struct rig *cpu = open_rig(machine_cpu(), AR | SS), *gpu = open_rig(machine_gpu(), AR | SS);
    struct eng_route to;
    for (int k = 0; k < 2; k++) {
        struct rig *g = k ? gpu : cpu;
        add(g, 1, params(ENG_MODE_AUTO), ENG_MODE_AUTO);
        assert_true(ask(g, 0, 1, &to) && to.mode == ENG_MODE_SELF_SPECULATION);
        struct eng_block *b = &g->r[0]->seq.block;
        b->rows = b->drafted = 8;
        for (int i = 0; i < 7; i++)
            b->confidence[i] = i == 3 ? 0.05f : 0.999f;
        int32_t rows = eng_router_verified_rows(&g->router, g->r[0]);
        if (k)
            assert_true(g->r[0]->seq.routing.row_price < ENG_FREE_ROW_PRICE); // and nobody waits to ask
        else
            assert_int_equal(rows, 4); // the seed and three sure drafts
        static int32_t end = 33;
        int32_t *own = g->r[0]->end_ids;
        g->r[0]->end_ids = &end;
        g->r[0]->n_end_ids = 1;
        b->tokens[2] = end;
        assert_int_equal(eng_router_verified_rows(&g->router, g->r[0]), 2); // the second row tells whether it ends
        b->tokens[1] = end;
        assert_int_equal(eng_router_verified_rows(&g->router, g->r[0]), 1);
        g->r[0]->end_ids = own;
        g->r[0]->n_end_ids = 0;
    }
    close_rig(cpu);
    close_rig(gpu);
}

// ---- in simulated time ----------------------------------------------------------------------------------------------

static const struct machine_text good = {.9, .99, .9, 64}, fair = {.6, .97, .7, 64}, hopeless = {0, 0, .02, 64},
                                 lengthy = {.95, .995, .9, 1000};

static struct machine machine_of(struct eng_cost cost, double host_s)
{
    return (struct machine){.cost = cost, .believed = cost, .host_s = host_s, .denoise_passes = 3, .seed = 1};
}

// Auto against AR and every block length up to 32, at loads of 1 to 64: `least` of the best, least_of_ar of AR, and
// least_at_one of it with one client.
static void check_loads(struct machine m, double seconds, double least, double least_of_ar, double least_at_one)
{
    for (int32_t clients = 1; clients <= 64; clients *= 4) {
        double best = 0, ar = 0;
        for (int32_t length = 0; length <= 32; length = length ? 2 * length : 4) {
            struct machine_mode how = {length ? ENG_MODE_SELF_SPECULATION : ENG_MODE_AR, length};
            double rate = machine_run(&m, how, clients, seconds).rate;
            best = rate > best ? rate : best;
            ar = length ? ar : rate;
        }
        struct machine_result got = machine_run(&m, (struct machine_mode){ENG_MODE_AUTO, 0}, clients, seconds);
        if (got.rate < least * best || got.rate < (clients == 1 ? least_at_one : least_of_ar) * ar)
            fail_msg("%d clients: auto %.0f tok/s, best %.0f, ar %.0f", (int)clients, got.rate, best, ar);
        assert_true(got.shortest_between_s > 1.99);
    }
}

static void test_auto_is_as_fast_as_the_best_fixed_mode(void **state)
{
    (void)state;
    const struct machine_text texts[] = {good, fair, hopeless, lengthy};
    for (int t = 0; t < 4; t++) {
        struct machine m = machine_of(machine_gpu(), 0);
        m.n_texts = 1;
        m.texts[0] = texts[t];
        check_loads(m, 12, 0.95, 0.95, t == 2 ? 0.95 : 1.5);
        m = machine_of(machine_cpu(), 20e-6);
        m.n_texts = 1;
        m.texts[0] = texts[t];
        check_loads(m, 2, 0.95, 0.95, t == 0 || t == 3 ? 1.3 : 0.95);
    }
}

static void test_auto_is_as_fast_with_texts_of_all_kinds(void **state)
{
    (void)state;
    struct machine m = machine_of(machine_gpu(), 0);
    m.n_texts = 3;
    m.texts[0] = good;
    m.texts[1] = fair;
    m.texts[2] = lengthy;
    check_loads(m, 20, 0.9, 0.95, 1.5);
    // Among requests that blocks would slow down, a fixed block length may be faster in all at their cost; auto is not.
    m.n_texts = 4;
    m.texts[3] = hopeless;
    check_loads(m, 20, 0.6, 0.97, 1.5);
}

// The router is told that rows cost half of what they do; steps teach it.
static void test_a_wrong_cost_model_is_corrected(void **state)
{
    (void)state;
    struct machine m = machine_of(machine_cpu(), 20e-6);
    for (int32_t k = 0; k < m.believed.n_knots; k++)
        m.believed.slopes[k] /= 2;
    m.n_texts = 1;
    m.texts[0] = fair;
    check_loads(m, 6, 0.9, 0.9, 0.9);
}

static void test_a_change_of_load_settles_within_a_second(void **state)
{
    (void)state;
    for (int k = 0; k < 2; k++) {
        struct machine m = machine_of(k ? machine_gpu() : machine_cpu(), 0);
        double settled;
        m.n_texts = 1;
        m.texts[0] = good;
        machine_step(&m, 1, 64, 3, &settled);
        assert_true(settled < 1);
        machine_step(&m, 64, 1, 3, &settled);
        assert_true(settled < 1);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_forced_mode_is_honoured_under_any_load),
        cmocka_unit_test(test_the_configured_mode_is_the_default_only),
        cmocka_unit_test(test_a_given_block_length_is_kept),
        cmocka_unit_test(test_without_a_cost_model_auto_speculates_while_all_blocks_fit),
        cmocka_unit_test(test_auto_uses_diffusion_only_where_it_is_allowed),
        cmocka_unit_test(test_blocks_become_shorter_with_the_load_and_then_end),
        cmocka_unit_test(test_a_request_whose_drafts_fail_goes_to_ar_alone),
        cmocka_unit_test(test_nobody_is_slower_than_with_ar),
        cmocka_unit_test(test_a_request_changes_once_in_two_seconds_unless_the_load_does),
        cmocka_unit_test(test_where_drafts_are_known_to_fail_they_are_tried_now_and_then),
        cmocka_unit_test(test_while_trials_turn_out_well_the_next_one_comes_at_once),
        cmocka_unit_test(test_nothing_is_tried_that_is_known),
        cmocka_unit_test(test_a_request_in_ar_forgets_its_failures),
        cmocka_unit_test(test_only_rows_worth_their_time_are_verified),
        cmocka_unit_test(test_auto_is_as_fast_as_the_best_fixed_mode),
        cmocka_unit_test(test_auto_is_as_fast_with_texts_of_all_kinds),
        cmocka_unit_test(test_a_wrong_cost_model_is_corrected),
        cmocka_unit_test(test_a_change_of_load_settles_within_a_second),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
