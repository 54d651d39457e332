// engine/scheduler.c
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "schedule_rig.h"

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
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
