// engine/scheduler.c
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "client.h"

// The engine's step by hand, without its thread, so that every step can be looked at.
struct world {
    struct fake_model fake;
    struct eng_model model;
    struct eng_scheduler s;
    struct eng_sampler sampler;
    struct eng_decode_env env;
    struct eng_event_builder builder;
    uint64_t next_age;
};

static void open_world(struct world *w, struct eng_scheduler_limits limits)
{
    *w = (struct world){.fake = fake_model_default()};
    w->fake.n_pages = limits.n_pages;
    w->fake.page_size = limits.page_size;
    w->fake.shares = limits.prefix_cache;
    w->model = fake_model_open(&w->fake);
    w->env = (struct eng_decode_env){w->fake.mask_id, true, false, &w->sampler};
    assert_int_equal(eng_scheduler_init(&w->s, &limits), 0);
}

static void close_world(struct world *w)
{
    assert_string_equal(w->fake.fault, "");
    assert_int_equal(w->s.n_running, 0);
    assert_int_equal(w->s.tenants.n_waiting, 0);
    assert_int_equal(eng_kv_used(&w->s.kv), 0);
    assert_int_equal(w->s.n_free_slots, w->s.limits.max_sequences);
    eng_scheduler_done(&w->s);
    eng_sampler_reset(&w->sampler);
    eng_event_builder_done(&w->builder);
    w->model.close(w->model.ctx);
}

// Whose request, and when it came.
struct who {
    int32_t tenant, priority;
    int64_t submit_ns;
};

static struct eng_request *add_of(struct world *w, struct who who, enum eng_mode mode, int32_t n_prompt,
                                  int32_t max_tokens, int32_t block)
{
    struct eng_request_limits limits = {.n_vocab = w->fake.n_vocab,
                                        .max_context = w->s.limits.max_context,
                                        .modes = 15,
                                        .block_length = block,
                                        .threshold = 0.9f};
    int32_t *prompt = calloc((size_t)n_prompt, sizeof *prompt);
    for (int32_t i = 0; i < n_prompt; i++)
        prompt[i] = (int32_t)((w->next_age + 1) * 31 + (uint64_t)i) % 97;
    struct eng_params p = eng_params_default();
    p.mode = mode;
    p.max_tokens = max_tokens;
    p.tenant = who.tenant;
    p.priority = who.priority;
    struct eng_request *r;
    assert_int_equal(eng_request_make(&limits, &p, prompt, (size_t)n_prompt, &r, NULL, NULL, 0), 0);
    free(prompt);
    r->seq.age = w->next_age++;
    r->seq.submit_ns = who.submit_ns;
    eng_scheduler_add(&w->s, r);
    return r;
}

static struct eng_request *add(struct world *w, enum eng_mode mode, int32_t n_prompt, int32_t max_tokens, int32_t block)
{
    return add_of(w, (struct who){0}, mode, n_prompt, max_tokens, block);
}

// Admits and fills; what a step would compute can then be looked at.
static void fill(struct world *w)
{
    assert_null(eng_scheduler_admit(&w->s));
    for (int32_t i = 0; i < w->s.n_running; i++) {
        struct eng_seq *q = &w->s.running[i]->seq;
        if (eng_seq_at_boundary(q))
            eng_seq_set_mode(q, q->request->mode, q->request->params.block_length, "test");
    }
    eng_sampler_reset(&w->sampler);
    assert_null(eng_scheduler_fill(&w->s, &w->env, &w->s.steps[0]));
    assert_true(eng_kv_check(&w->s.kv));
    assert_true(w->s.steps[0].batch.n_segments > 0 && w->s.steps[0].batch.n_rows <= w->s.steps[0].batch.max_rows);
}

// Computes what was filled. Finished requests are freed; returns their number.
static int compute(struct world *w)
{
    int finished = 0;
    assert_int_equal(eng_model_forward(&w->model, &w->s.steps[0].batch), 0);
    for (int32_t i = 0; i < w->s.steps[0].batch.n_segments; i++) {
        const struct eng_segment *s = &w->s.steps[0].batch.segments[i];
        struct eng_request *r = w->s.steps[0].planned[i];
        struct eng_run run = {0};
        int32_t taken;
        assert_int_equal(r->seq.slot, s->slot);
        if (s->kind == ENG_PASS_PREFILL)
            eng_decode_prompt_commit(&r->seq, s, w->s.steps[0].batch.choices + s->first_wanted, &run);
        else
            eng_decode_of(r->seq.mode)->commit(&r->seq, &w->s.steps[0].batch, s, &run);
        eng_event_builder_reset(&w->builder);
        assert_int_equal(eng_seq_append(&r->seq, &run, &w->builder, &taken), 0);
        eng_scheduler_committed(&w->s, r, s->kind == ENG_PASS_VERIFY);
        if (r->seq.finish != ENG_FINISH_NONE) {
            eng_scheduler_remove(&w->s, r);
            eng_request_free(r);
            finished++;
        }
    }
    assert_true(eng_kv_check(&w->s.kv));
    return finished;
}

static int32_t rows_of(const struct world *w, const struct eng_request *r)
{
    for (int32_t i = 0; i < w->s.steps[0].batch.n_segments; i++)
        if (w->s.steps[0].planned[i] == r)
            return w->s.steps[0].batch.segments[i].rows;
    return 0;
}

static void run_out(struct world *w)
{
    for (int i = 0; w->s.n_running || w->s.tenants.head; i++) {
        fill(w);
        compute(w);
        assert_true(i < 100000);
    }
}

static struct eng_scheduler_limits roomy(void)
{
    return (struct eng_scheduler_limits){.max_sequences = 8,
                                         .max_step_rows = 128,
                                         .piece_rows = 32,
                                         .n_pages = 1000,
                                         .page_size = 4,
                                         .max_context = 500};
}

static void test_long_prompts_come_in_pieces_between_others_tokens(void **state)
{
    (void)state;
    struct world w;
    open_world(&w, roomy());
    struct eng_request *a = add(&w, ENG_MODE_AR, 3, 40, 8), *b = add(&w, ENG_MODE_SELF_SPECULATION, 3, 40, 8);
    fill(&w);
    compute(&w);
    struct eng_request *longest = add(&w, ENG_MODE_AR, 300, 5, 8);
    for (int32_t left = 300; left > 0;) {
        fill(&w);
        int32_t piece = rows_of(&w, longest);
        assert_int_equal(piece, left < 32 ? left : 32);
        assert_int_equal(rows_of(&w, a), 1);
        assert_true(rows_of(&w, b) > 1);
        left -= piece;
        compute(&w);
    }
    run_out(&w);
    close_world(&w);
}

static void test_a_prompt_alone_fills_the_step(void **state)
{
    (void)state;
    struct world w;
    open_world(&w, roomy());
    struct eng_request *a = add(&w, ENG_MODE_AR, 300, 5, 8);
    fill(&w);
    assert_int_equal(rows_of(&w, a), 128);
    compute(&w);
    run_out(&w);
    close_world(&w);
}

// Everyone, in every mode, gets rows within a bounded number of steps, however few there are.
static void test_nobody_starves_when_rows_are_short(void **state)
{
    (void)state;
    struct eng_scheduler_limits limits = roomy();
    limits.max_sequences = 40;
    limits.max_step_rows = 64;
    limits.n_pages = 10000;
    struct world w;
    open_world(&w, limits);
    uint64_t random = 3;
    for (int i = 0; i < 40; i++)
        add(&w, (enum eng_mode)(1 + i % 3), 1 + (int32_t)(test_random(&random) % 200), 60, i % 2 ? 64 : 32);
    int32_t waited[40] = {0}, longest = 0;
    while (w.s.n_running || w.s.tenants.head) {
        fill(&w);
        for (int32_t i = 0; i < w.s.n_running; i++) {
            struct eng_request *r = w.s.running[i];
            int32_t *n = &waited[r->seq.age];
            *n = rows_of(&w, r) ? 0 : *n + 1;
            longest = *n > longest ? *n : longest;
        }
        compute(&w);
    }
    assert_true(longest < 3 * 40);
    close_world(&w);
}

static void test_decoders_cannot_keep_a_prompt_out(void **state)
{
    (void)state;
    struct eng_scheduler_limits limits = roomy();
    limits.max_sequences = 70;
    limits.max_step_rows = 64;
    limits.n_pages = 10000;
    struct world w;
    open_world(&w, limits);
    for (int i = 0; i < 69; i++)
        add(&w, ENG_MODE_AR, 1, 400, 8);
    for (int i = 0; i < 4; i++) {
        fill(&w);
        compute(&w);
    }
    struct eng_request *late = add(&w, ENG_MODE_AR, 40, 300, 8);
    int steps = 0;
    for (; eng_seq_n_output(&late->seq) == 0; steps++) {
        fill(&w);
        compute(&w);
    }
    assert_true(steps <= 12); // an eighth of every other step
    run_out(&w);
    close_world(&w);
}

static void test_the_youngest_gives_way_when_pages_run_out(void **state)
{
    (void)state;
    struct eng_scheduler_limits limits = roomy();
    limits.n_pages = 30;
    limits.max_context = 110;
    struct world w;
    open_world(&w, limits);
    struct eng_request *oldest = add(&w, ENG_MODE_AR, 10, 100, 8);
    for (int i = 0; i < 5; i++)
        add(&w, (enum eng_mode)(1 + i % 3), 10, 60, 8);
    int finished = 0;
    bool oldest_runs = true;
    while (w.s.n_running || w.s.tenants.head) {
        fill(&w);
        if (oldest_runs) {
            assert_int_equal(oldest->seq.n_preempted, 0);
            assert_true(rows_of(&w, oldest) > 0);
            oldest_runs = oldest->seq.n_tokens < oldest->seq.limit - 1;
        }
        // The waiting ones are younger than all that run.
        for (const struct eng_request *r = w.s.tenants.head; r; r = r->next)
            for (int32_t i = 0; i < w.s.n_running; i++)
                assert_true(w.s.running[i]->seq.age < r->seq.age);
        finished += compute(&w);
    }
    assert_int_equal(finished, 6);
    assert_true(w.s.n_preemptions > 0);
    close_world(&w);
}

static void test_admission_waits_for_pages_and_slots(void **state)
{
    (void)state;
    struct eng_scheduler_limits limits = roomy();
    limits.max_sequences = 2;
    limits.n_pages = 40;
    limits.max_context = 160;
    struct world w;
    open_world(&w, limits);
    add(&w, ENG_MODE_AR, 100, 5, 8);
    struct eng_request *big = add(&w, ENG_MODE_AR, 100, 5, 8), *small = add(&w, ENG_MODE_AR, 4, 5, 8);
    fill(&w);
    assert_int_equal(w.s.n_running, 1);
    assert_int_equal(big->seq.slot, -1);
    assert_int_equal(small->seq.slot, -1); // it does not overtake
    compute(&w);
    run_out(&w);
    for (int i = 0; i < 3; i++)
        add(&w, ENG_MODE_AR, 4, 5, 8);
    fill(&w);
    assert_int_equal(w.s.n_running, 2);
    assert_int_equal(w.s.tenants.n_waiting, 1);
    compute(&w);
    run_out(&w);
    close_world(&w);
}

static void test_removal_from_any_list_frees_everything(void **state)
{
    (void)state;
    uint64_t random = 6;
    for (int round = 0; round < 50; round++) {
        struct eng_scheduler_limits limits = roomy();
        limits.n_pages = 40;
        limits.max_context = 100;
        limits.max_sequences = 4;
        struct world w;
        struct eng_request *all[10];
        open_world(&w, limits);
        for (int i = 0; i < 10; i++)
            all[i] = add(&w, (enum eng_mode)(1 + i % 3), 1 + (int32_t)(test_random(&random) % 40), 99, 16);
        int steps = (int)(test_random(&random) % 9); // too few for any to end
        for (int i = 0; i < steps; i++) {
            fill(&w);
            if (compute(&w))
                break;
        }
        // Whoever ended was freed; the lists hold the rest.
        int n = 0;
        for (int32_t i = 0; i < w.s.n_running; i++)
            all[n++] = w.s.running[i];
        for (struct eng_request *r = w.s.tenants.head; r; r = r->next)
            all[n++] = r;
        while (n) {
            int i = (int)(test_random(&random) % (uint32_t)n);
            eng_scheduler_remove(&w.s, all[i]);
            eng_request_free(all[i]);
            all[i] = all[--n];
            assert_true(eng_kv_check(&w.s.kv));
        }
        close_world(&w);
    }
}

static void test_limits_are_checked(void **state)
{
    (void)state;
    struct eng_scheduler s;
    struct eng_scheduler_limits limits = roomy();
    limits.max_step_rows = 63;
    assert_int_equal(eng_scheduler_init(&s, &limits), ENG_EINVAL);
    limits = roomy();
    limits.max_context = 4001;
    assert_int_equal(eng_scheduler_init(&s, &limits), ENG_EINVAL);
    limits = roomy();
    limits.max_sequences = 0;
    assert_int_equal(eng_scheduler_init(&s, &limits), ENG_EINVAL);
}

// ---- the prefix cache -----------------------------------------------------------------------------------------------

static struct eng_scheduler_limits sharing(void)
{
    struct eng_scheduler_limits limits = roomy();
    limits.prefix_cache = true;
    return limits;
}

// The same prompt as the request added first.
static struct eng_request *add_again(struct world *w, enum eng_mode mode, int32_t n_prompt, int32_t max_tokens)
{
    uint64_t age = w->next_age;
    w->next_age = 0;
    struct eng_request *r = add(w, mode, n_prompt, max_tokens, 8);
    r->seq.age = age;
    w->next_age = age + 1;
    return r;
}

static void test_a_page_is_shared_once_the_pass_that_wrote_it_was_committed(void **state)
{
    (void)state;
    struct world w;
    open_world(&w, sharing());
    add(&w, ENG_MODE_AR, 41, 30, 8);
    fill(&w);
    struct eng_request *early = add_again(&w, ENG_MODE_AR, 41, 30); // before the first pass was computed
    assert_null(eng_scheduler_admit(&w.s));
    assert_int_equal(early->seq.n_kv, 0);
    compute(&w);
    struct eng_request *late = add_again(&w, ENG_MODE_AR, 41, 30);
    fill(&w);
    assert_int_equal(late->seq.n_kv, 40);
    assert_int_equal(late->seq.stats.cached_tokens, 40);
    assert_int_equal(rows_of(&w, late), 1);
    assert_int_equal(rows_of(&w, early), 32); // a piece: others decode
    assert_int_equal(w.s.prefix_queries, 3 * 41);
    assert_int_equal(w.s.prefix_hits, 40);
    run_out(&w);
    close_world(&w);
}

static void test_admission_needs_only_pages_that_the_cache_does_not_have(void **state)
{
    (void)state;
    struct world w;
    struct eng_scheduler_limits limits = sharing();
    limits.n_pages = 30;
    limits.max_context = 120;
    open_world(&w, limits);
    add(&w, ENG_MODE_AR, 81, 30, 8); // 21 pages and more; two of them do not fit
    fill(&w);
    compute(&w);
    struct eng_request *same = add_again(&w, ENG_MODE_AR, 81, 30), *other = add(&w, ENG_MODE_AR, 81, 30, 8);
    fill(&w);
    assert_true(same->seq.slot >= 0);
    assert_int_equal(same->seq.n_kv, 80);
    assert_int_equal(other->seq.slot, -1);
    compute(&w);
    run_out(&w);
    close_world(&w);
}

// Whoever was preempted finds its own pages again, as far as they were not needed.
static void test_a_preempted_sequence_finds_its_own_pages(void **state)
{
    (void)state;
    struct world w;
    struct eng_scheduler_limits limits = sharing();
    limits.n_pages = 40;
    limits.max_context = 110;
    open_world(&w, limits);
    for (int i = 0; i < 6; i++)
        add(&w, (enum eng_mode)(1 + i % 3), 10, 60, 8);
    while (w.s.n_running || w.s.tenants.head) {
        fill(&w);
        for (int32_t i = 0; i < w.s.n_running; i++) // nothing of a prompt was there when it came
            assert_int_equal(w.s.running[i]->seq.stats.cached_tokens, 0);
        compute(&w);
    }
    assert_true(w.s.n_preemptions > 0);
    assert_true(w.s.prefix_hits > 0); // no two prompts are alike
    assert_int_equal(eng_kv_available(&w.s.kv), 40);
    close_world(&w);
}

// ---- the step after -------------------------------------------------------------------------------------------------

// Plans what follows the step that fill() filled. The number of segments.
static int32_t fill_ahead(struct world *w)
{
    bool any = eng_scheduler_fill_ahead(&w->s, &w->s.steps[0], &w->s.steps[1]);
    assert_true(eng_kv_check(&w->s.kv));
    assert_int_equal(any, w->s.steps[1].batch.n_segments > 0);
    return w->s.steps[1].batch.n_segments;
}

static const struct eng_segment *segment_of(const struct eng_step *step, const struct eng_request *r)
{
    for (int32_t i = 0; i < step->batch.n_segments; i++)
        if (step->planned[i] == r)
            return &step->batch.segments[i];
    fail_msg("the request is not in the step");
    return NULL;
}

static void test_the_step_after_takes_its_tokens_by_links(void **state)
{
    (void)state;
    struct world w;
    open_world(&w, roomy());
    struct eng_request *a = add(&w, ENG_MODE_AR, 3, 40, 8), *b = add(&w, ENG_MODE_SELF_SPECULATION, 3, 40, 8);
    fill(&w);
    assert_int_equal(fill_ahead(&w), 0); // prompts
    compute(&w);
    fill(&w);
    assert_int_equal(fill_ahead(&w), 2);
    const struct eng_step *now = &w.s.steps[0], *next = &w.s.steps[1];
    const struct eng_segment *row = segment_of(next, a), *block = segment_of(next, b);
    const struct eng_segment *before = segment_of(now, a), *draft = segment_of(now, b);
    assert_int_equal(row->kind, ENG_PASS_AR);
    assert_int_equal(row->first_pos, before->first_pos + 1);
    assert_int_equal(next->batch.links[row->row], before->first_wanted);
    assert_int_equal(next->batch.wanted[row->first_wanted].position, before->first_pos + 2);
    assert_int_equal(block->kind, ENG_PASS_VERIFY);
    assert_int_equal(block->first_pos, draft->first_pos);
    assert_true(block->rows == 8 && block->n_wanted == 8 && block->accept == 0 && block->keep);
    assert_int_equal(next->batch.tokens[block->row], b->seq.tokens[b->seq.n_kv]);
    assert_int_equal(next->batch.links[block->row], -1);
    for (int32_t i = 1; i < 8; i++)
        assert_int_equal(next->batch.links[block->row + i], draft->first_wanted + i - 1);
    compute(&w);
    fill(&w);                            // the same verification, now with its tokens
    assert_int_equal(fill_ahead(&w), 0); // how much of it is accepted is its choices' matter
    compute(&w);
    run_out(&w);
    close_world(&w);
}

static void test_whoever_is_certain_to_end_is_not_planned(void **state)
{
    (void)state;
    struct world w;
    open_world(&w, roomy());
    struct eng_request *a = add(&w, ENG_MODE_AR, 3, 40, 8);
    add(&w, ENG_MODE_AR, 3, 2, 8); // the prompt's token and one more
    fill(&w);
    compute(&w);
    fill(&w);
    assert_int_equal(fill_ahead(&w), 1);
    assert_ptr_equal(w.s.steps[1].planned[0], a);
    compute(&w);
    run_out(&w);
    close_world(&w);
}

static void test_who_leaves_is_dropped_from_both_steps(void **state)
{
    (void)state;
    struct world w;
    open_world(&w, roomy());
    struct eng_request *a = add(&w, ENG_MODE_AR, 3, 40, 8), *b = add(&w, ENG_MODE_AR, 3, 40, 8);
    fill(&w);
    compute(&w);
    fill(&w);
    assert_int_equal(fill_ahead(&w), 2);
    eng_scheduler_remove(&w.s, a);
    eng_request_free(a);
    for (int k = 0; k < 2; k++)
        for (int32_t i = 0; i < 2; i++)
            assert_true(w.s.steps[k].planned[i] == b || !w.s.steps[k].planned[i]);
    assert_int_equal(fill_ahead(&w), 1); // the other one goes on
    assert_int_equal(eng_model_forward(&w.model, &w.s.steps[0].batch), 0);
    eng_batch_reset(&w.s.steps[0].batch);
    run_out(&w);
    close_world(&w);
}

// Prompt and first AR row of as many requests as given, so that the next step could be planned ahead.
static void to_first_row(struct world *w, int n)
{
    while (n-- > 0)
        add(w, ENG_MODE_AR, 3, 10, 4);
    fill(w);
    compute(w);
    fill(w);
}

static void test_what_makes_the_next_step_wait(void **state)
{
    (void)state;
    struct world w;
    open_world(&w, roomy());
    to_first_row(&w, 2);
    assert_int_equal(fill_ahead(&w), 2);
    struct eng_request *late = add(&w, ENG_MODE_AR, 3, 10, 8); // it could start
    assert_int_equal(fill_ahead(&w), 0);
    compute(&w);
    fill(&w);
    assert_int_equal(rows_of(&w, late), 3);
    compute(&w);
    run_out(&w);
    close_world(&w);

    struct eng_scheduler_limits limits = roomy();
    limits.max_sequences = 2;
    open_world(&w, limits);
    to_first_row(&w, 3); // the third has no slot and would have to wait anyway
    assert_int_equal(fill_ahead(&w), 2);
    compute(&w);
    run_out(&w);
    close_world(&w);

    open_world(&w, roomy());
    struct eng_request *a = add(&w, ENG_MODE_AR, 3, 10, 8);
    a->params.presence_penalty = 0.5f;
    to_first_row(&w, 1);
    assert_int_equal(fill_ahead(&w), 0); // its choice depends on the token before
    compute(&w);
    run_out(&w);
    close_world(&w);

    open_world(&w, roomy());
    add(&w, ENG_MODE_DIFFUSION, 3, 10, 8);
    to_first_row(&w, 1);
    assert_int_equal(fill_ahead(&w), 0);
    compute(&w);
    run_out(&w);
    close_world(&w);
}

static void test_pages_are_never_taken_from_others_ahead(void **state)
{
    (void)state;
    struct world w;
    struct eng_scheduler_limits limits = roomy();
    limits.page_size = 1;
    limits.n_pages = limits.max_context = 26;
    open_world(&w, limits);
    for (int i = 0; i < 2; i++)
        add(&w, ENG_MODE_AR, 3, 20, 4);
    for (fill(&w); w.s.kv.n_free > 2; fill(&w))
        compute(&w);
    assert_int_equal(w.s.kv.n_free, 2);
    assert_int_equal(fill_ahead(&w), 2); // one page for each
    assert_int_equal(w.s.kv.n_free, 0);
    compute(&w);
    fill(&w);
    assert_int_equal(fill_ahead(&w), 0);
    assert_int_equal(w.s.n_preemptions, 0);
    compute(&w);
    run_out(&w);
    close_world(&w);
}

// ---- tenants and priorities -----------------------------------------------------------------------------------------

static int32_t running_of(const struct world *w, int32_t tenant)
{
    return w->s.tenants.all[tenant].n_running;
}

// One tenant holds every slot and has two hundred more waiting; the other's request runs in the next pass. That costs
// one preemption, of the newest, and no other one follows.
static void test_a_tenant_with_many_requests_gives_a_slot_up_at_once(void **state)
{
    (void)state;
    struct world w;
    open_world(&w, roomy());
    struct eng_request *newest = NULL;
    for (int i = 0; i < 200; i++) {
        struct eng_request *r = add_of(&w, (struct who){.tenant = 1}, ENG_MODE_AR, 5, 60, 8);
        newest = i == 7 ? r : newest;
    }
    for (int i = 0; i < 10; i++) {
        fill(&w);
        compute(&w);
    }
    assert_int_equal(running_of(&w, 1), 8);
    struct eng_request *small = add_of(&w, (struct who){.tenant = 2}, ENG_MODE_AR, 5, 30, 8);
    fill(&w);
    assert_int_equal(rows_of(&w, small), 5);
    assert_int_equal(w.s.n_preemptions, 1);
    assert_int_equal(newest->seq.n_preempted, 1);
    compute(&w);
    while (running_of(&w, 2)) { // small is freed with its last token
        fill(&w);
        assert_int_equal(w.s.n_preemptions, 1);
        compute(&w);
    }
    fill(&w);
    assert_true(newest->seq.slot >= 0); // before the 192 that never ran
    compute(&w);
    run_out(&w);
    close_world(&w);
}

static void test_tenants_that_want_it_get_equal_slots(void **state)
{
    (void)state;
    struct world w;
    open_world(&w, roomy());
    for (int i = 0; i < 60; i++)
        add_of(&w, (struct who){.tenant = 1}, ENG_MODE_AR, 5, 20 + i % 7, 8);
    fill(&w);
    compute(&w);
    for (int i = 0; i < 90; i++)
        add_of(&w, (struct who){.tenant = 2 + i % 3}, ENG_MODE_AR, 5, 20 + i % 7, 8);
    for (int i = 0; i < 60; i++) {
        fill(&w);
        for (int t = 1; t <= 4; t++)
            assert_int_equal(running_of(&w, t), 2);
        compute(&w);
    }
    assert_int_equal(w.s.n_preemptions, 6); // as many slots as the first had too many, once
    run_out(&w);
    close_world(&w);
}

static void test_more_tenants_than_slots_take_turns_without_preempting(void **state)
{
    (void)state;
    struct world w;
    struct eng_scheduler_limits limits = roomy();
    limits.max_sequences = 2;
    open_world(&w, limits);
    for (int i = 0; i < 40; i++)
        add_of(&w, (struct who){.tenant = i % 5, .submit_ns = 5 - i % 5}, ENG_MODE_AR, 5, 20, 8);
    run_out(&w);
    assert_int_equal(w.s.n_preemptions, 0);
    close_world(&w);
}

// A slot that is about to come free is waited for.
static void test_nobody_is_preempted_for_a_slot_that_comes_free(void **state)
{
    (void)state;
    struct world w;
    struct eng_scheduler_limits limits = roomy();
    limits.max_sequences = 3;
    open_world(&w, limits);
    for (int i = 0; i < 3; i++)
        add_of(&w, (struct who){.tenant = 1}, ENG_MODE_AR, 5, i ? 50 : 4, 8);
    for (int i = 0; i < 3; i++) {
        fill(&w);
        compute(&w);
    }
    struct eng_request *other = add_of(&w, (struct who){.tenant = 2}, ENG_MODE_AR, 5, 5, 8);
    fill(&w);
    assert_int_equal(other->seq.slot, -1); // the first one's last token is being computed
    compute(&w);
    fill(&w);
    assert_true(other->seq.slot >= 0);
    assert_int_equal(w.s.n_preemptions, 0);
    compute(&w);
    run_out(&w);
    close_world(&w);
}

// Pages run out: of the rest, the lowest priority gives way, though others are younger; the first of all never does,
// whatever its priority.
static void test_the_lowest_priority_gives_way(void **state)
{
    (void)state;
    struct world w;
    struct eng_scheduler_limits limits = roomy();
    limits.n_pages = 40;
    limits.max_context = 110;
    open_world(&w, limits);
    struct eng_request *first = add_of(&w, (struct who){.priority = 9}, ENG_MODE_AR, 8, 60, 8);
    fill(&w);
    compute(&w);
    first->turn_ns = 0; // the others came long after
    int64_t later = 1000 * ENG_PRIORITY_NS;
    struct eng_request *low = add_of(&w, (struct who){.priority = 2, .submit_ns = later}, ENG_MODE_AR, 8, 60, 8);
    add_of(&w, (struct who){.priority = 1, .submit_ns = later}, ENG_MODE_AR, 8, 60, 8);
    struct eng_request *high = add_of(&w, (struct who){.priority = 0, .submit_ns = later}, ENG_MODE_AR, 8, 60, 8);
    while (!w.s.n_preemptions) {
        fill(&w);
        assert_int_equal(w.s.n_running + (int32_t)w.s.n_preemptions, 4);
        compute(&w);
    }
    assert_int_equal(low->seq.n_preempted, 1);
    assert_int_equal(first->seq.n_preempted + high->seq.n_preempted, 0);
    run_out(&w);
    close_world(&w);
}

// Of one priority, the tenant that has more pages than its share gives way, though its requests are older.
static void test_the_tenant_over_its_share_of_pages_gives_way(void **state)
{
    (void)state;
    struct world w;
    struct eng_scheduler_limits limits = roomy();
    limits.n_pages = 60;
    limits.max_context = 200;
    open_world(&w, limits);
    struct eng_request *first = add_of(&w, (struct who){.tenant = 1}, ENG_MODE_AR, 10, 90, 8);
    struct eng_request *wide = add_of(&w, (struct who){.tenant = 1}, ENG_MODE_AR, 100, 90, 8);
    struct eng_request *young = add_of(&w, (struct who){.tenant = 2}, ENG_MODE_AR, 10, 90, 8);
    while (!w.s.n_preemptions) {
        fill(&w);
        compute(&w);
    }
    assert_int_equal(wide->seq.n_preempted, 1);
    assert_int_equal(first->seq.n_preempted + young->seq.n_preempted, 0);
    run_out(&w);
    close_world(&w);
}

// Someone with the lowest of five priorities, while two more important requests arrive in every pass of 50 ms. It ends,
// and not before some of those that came after it.
static void test_a_low_priority_waits_a_bounded_time(void **state)
{
    (void)state;
    struct world w;
    struct eng_scheduler_limits limits = roomy();
    limits.max_sequences = 4;
    limits.n_pages = 40;
    limits.max_context = 100;
    open_world(&w, limits);
    struct eng_request *low = NULL;
    int64_t now = 0, started = 0, ended = 0;
    for (int i = 0; !ended; i++, now += ENG_PRIORITY_NS / 200) {
        for (int k = 0; k < 2; k++)
            add_of(&w, (struct who){.tenant = k, .submit_ns = now}, ENG_MODE_AR, 5, 10, 8);
        if (i == 20)
            low = add_of(&w, (struct who){.priority = 4, .submit_ns = now}, ENG_MODE_AR, 5, 50, 8);
        int64_t low_age = low ? (int64_t)low->seq.age : -1;
        fill(&w);
        if (low && !started && low->seq.slot >= 0)
            started = now;
        compute(&w);
        bool there = false;
        for (int32_t k = 0; k < w.s.n_running; k++)
            there = there || (int64_t)w.s.running[k]->seq.age == low_age;
        for (const struct eng_request *r = w.s.tenants.head; r; r = r->next)
            there = there || (int64_t)r->seq.age == low_age;
        ended = low && !there ? now : 0;
        assert_true(i < 20000);
    }
    // Its turn is that of what came forty seconds later: those before it are served first, at two in ten passes.
    assert_true(started > 40 * (ENG_PRIORITY_NS / 10));
    print_message("# started after %.0f s, ended after %.0f s\n", (double)started / 1e9, (double)ended / 1e9);
    while (w.s.tenants.head) {
        struct eng_request *r = w.s.tenants.head;
        eng_scheduler_remove(&w.s, r);
        eng_request_free(r);
    }
    run_out(&w);
    close_world(&w);
}

static void test_rows_lost_to_preemption_are_counted(void **state)
{
    (void)state;
    for (int cache = 0; cache < 2; cache++) {
        struct world w;
        struct eng_scheduler_limits limits = roomy();
        limits.max_sequences = 2;
        limits.prefix_cache = cache;
        open_world(&w, limits);
        add_of(&w, (struct who){.tenant = 1}, ENG_MODE_AR, 41, 200, 8);
        struct eng_request *victim = add_of(&w, (struct who){.tenant = 1}, ENG_MODE_AR, 41, 200, 8);
        for (int i = 0; i < 10; i++) {
            fill(&w);
            compute(&w);
        }
        int32_t computed = victim->seq.n_kv;
        assert_int_equal(computed, 50);
        add_of(&w, (struct who){.tenant = 2}, ENG_MODE_AR, 5, 2, 8);
        fill(&w);
        assert_int_equal(victim->seq.n_preempted, 1);
        while (victim->seq.slot < 0) {
            compute(&w);
            fill(&w);
        }
        assert_int_equal(victim->seq.n_kv, cache ? 48 : 0); // whole pages of what is to be computed, but for its last
        assert_int_equal(w.s.lost_rows, cache ? 2 : 50);
        compute(&w);
        add_of(&w, (struct who){.tenant = 2}, ENG_MODE_AR, 5, 2, 8);
        fill(&w);
        assert_int_equal(victim->seq.n_preempted, 2);
        computed = victim->seq.n_lost;
        eng_scheduler_remove(&w.s, victim); // while it waits: all it had is lost
        eng_request_free(victim);
        assert_int_equal(w.s.lost_rows, (cache ? 2 : 50) + computed);
        compute(&w);
        run_out(&w);
        close_world(&w);
    }
}

// Fresh requests leave those that run room to go on.
static void test_admission_keeps_a_reserve(void **state)
{
    (void)state;
    struct world w;
    struct eng_scheduler_limits limits = roomy();
    limits.n_pages = 100;
    limits.max_context = 400;
    open_world(&w, limits);
    add(&w, ENG_MODE_AR, 40, 40, 8); // 10 pages
    fill(&w);
    compute(&w);
    struct eng_request *big =
        add(&w, ENG_MODE_AR, 337, 40, 8); // 87 pages with a block; there are 90, less 4 of reserve
    fill(&w);
    assert_int_equal(big->seq.slot, -1);
    eng_scheduler_remove(&w.s, big);
    eng_request_free(big);
    compute(&w);
    big = add(&w, ENG_MODE_AR, 332, 40, 8); // 85; there are 89
    fill(&w);
    assert_true(big->seq.slot >= 0);
    compute(&w);
    run_out(&w);
    close_world(&w);
}

// Any mixture of tenants, priorities and modes over too few pages and slots comes to its end.
static void test_everything_ends_whatever_is_mixed(void **state)
{
    (void)state;
    uint64_t random = 8;
    for (int round = 0; round < 30; round++) {
        struct world w;
        struct eng_scheduler_limits limits = roomy();
        limits.max_sequences = 1 + (int32_t)(test_random(&random) % 7);
        limits.page_size = 1 + (int32_t)(test_random(&random) % 9);
        limits.max_context = 100;
        limits.n_pages = (100 + limits.page_size - 1) / limits.page_size + (int32_t)(test_random(&random) % 20);
        limits.prefix_cache = test_random(&random) % 2;
        open_world(&w, limits);
        int steps = 0;
        for (int i = 0; i < 60 || w.s.n_running || w.s.tenants.head; i++) {
            for (int k = 0; i < 60 && k < 2; k++)
                add_of(&w,
                       (struct who){.tenant = (int32_t)(test_random(&random) % 4),
                                    .priority = (int32_t)(test_random(&random) % 5),
                                    .submit_ns = i * (ENG_PRIORITY_NS / 10)},
                       (enum eng_mode)(1 + test_random(&random) % 3), 1 + (int32_t)(test_random(&random) % 50),
                       1 + (int32_t)(test_random(&random) % 45), 16);
            fill(&w);
            compute(&w);
            assert_true(++steps < 60000);
        }
        close_world(&w);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_long_prompts_come_in_pieces_between_others_tokens),
        cmocka_unit_test(test_a_prompt_alone_fills_the_step),
        cmocka_unit_test(test_nobody_starves_when_rows_are_short),
        cmocka_unit_test(test_decoders_cannot_keep_a_prompt_out),
        cmocka_unit_test(test_the_youngest_gives_way_when_pages_run_out),
        cmocka_unit_test(test_admission_waits_for_pages_and_slots),
        cmocka_unit_test(test_removal_from_any_list_frees_everything),
        cmocka_unit_test(test_limits_are_checked),
        cmocka_unit_test(test_a_page_is_shared_once_the_pass_that_wrote_it_was_committed),
        cmocka_unit_test(test_admission_needs_only_pages_that_the_cache_does_not_have),
        cmocka_unit_test(test_a_preempted_sequence_finds_its_own_pages),
        cmocka_unit_test(test_the_step_after_takes_its_tokens_by_links),
        cmocka_unit_test(test_whoever_is_certain_to_end_is_not_planned),
        cmocka_unit_test(test_who_leaves_is_dropped_from_both_steps),
        cmocka_unit_test(test_what_makes_the_next_step_wait),
        cmocka_unit_test(test_pages_are_never_taken_from_others_ahead),
        cmocka_unit_test(test_a_tenant_with_many_requests_gives_a_slot_up_at_once),
        cmocka_unit_test(test_tenants_that_want_it_get_equal_slots),
        cmocka_unit_test(test_more_tenants_than_slots_take_turns_without_preempting),
        cmocka_unit_test(test_nobody_is_preempted_for_a_slot_that_comes_free),
        cmocka_unit_test(test_the_lowest_priority_gives_way),
        cmocka_unit_test(test_the_tenant_over_its_share_of_pages_gives_way),
        cmocka_unit_test(test_a_low_priority_waits_a_bounded_time),
        cmocka_unit_test(test_rows_lost_to_preemption_are_counted),
        cmocka_unit_test(test_admission_keeps_a_reserve),
        cmocka_unit_test(test_everything_ends_whatever_is_mixed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
