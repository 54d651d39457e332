// engine/engine.c, open.c: the whole engine with its thread, on the fake model.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "client.h"
#include "route_machine.h"

enum { N_REQUESTS = 60 };

// One request of a generated load.
struct job {
    int32_t prompt[120], n_prompt;
    struct eng_params params;
    int32_t stop_ids[2];
};

static void make_job(struct job *j, uint64_t *random, enum eng_mode mode)
{
    static const int32_t lengths[] = {4, 8, 16, 32, 64};
    static const float temperatures[] = {0, 0.7f, 1.3f};
    *j = (struct job){.params = eng_params_default()};
    struct eng_params *p = &j->params;
    j->n_prompt = 1 + (int32_t)(test_random(random) % (test_random(random) % 4 ? 20 : 120));
    for (int32_t i = 0; i < j->n_prompt; i++)
        j->prompt[i] = (int32_t)(test_random(random) % 97); // the mask id among them
    p->max_tokens = (int32_t)(test_random(random) % 70);
    p->mode = mode;
    p->block_length = lengths[test_random(random) % 5];
    p->temperature = temperatures[test_random(random) % 3];
    p->seed = test_random(random);
    if (test_random(random) % 3 == 0) {
        p->repetition_penalty = 1.2f;
        p->presence_penalty = 0.5f;
    }
    if (test_random(random) % 3 == 0)
        p->min_tokens = (int32_t)(test_random(random) % (uint32_t)(p->max_tokens + 1));
    p->ignore_eos = test_random(random) % 5 == 0;
    if (test_random(random) % 3 == 0) {
        j->stop_ids[0] = (int32_t)(test_random(random) % 97);
        p->n_stop_ids = 1;
    }
    p->n_top = (int32_t)(test_random(random) % 4) - 1;
    if (mode == ENG_MODE_DIFFUSION && test_random(random) % 2)
        p->steps = 1 + (int32_t)(test_random(random) % 8);
    else if (mode == ENG_MODE_DIFFUSION)
        p->commit_policy = test_random(random) % 2 ? ENG_COMMIT_LEFTMOST : ENG_COMMIT_CONFIDENCE;
    p->tenant = (int32_t)(test_random(random) % 4);
    p->priority = (int32_t)(test_random(random) % 5) - 2;
}

static void submit_job(struct client *c, struct answer *a, struct job *j)
{
    j->params.stop_ids = j->stop_ids;
    client_submit(c, a, &j->params, j->prompt, (size_t)j->n_prompt);
}

static struct fake_model ending_model(void)
{
    struct fake_model f = fake_model_default();
    f.end_id = 11;
    f.end_rate = 0.02;
    return f;
}

// Runs all jobs at once and returns their answers.
static struct answer *run_jobs(struct fake_model f, struct eng_options o, struct job *jobs, int n)
{
    struct client c;
    struct answer *answers = calloc((size_t)n, sizeof *answers);
    client_open(&c, &f, o, 200, NULL);
    for (int i = 0; i < n; i++)
        submit_job(&c, &answers[i], &jobs[i]);
    client_wait(&c);
    client_close(&c);
    return answers;
}

static void assert_same(const struct answer *a, const struct answer *b, int i)
{
    if (!answer_equal(a, b))
        fail_msg("request %d: %d tokens, finish %d against %d tokens, finish %d", i, a->n_tokens, (int)a->finish,
                 b->n_tokens, (int)b->finish);
}

static void free_answers(struct answer *a, int n)
{
    for (int i = 0; i < n; i++)
        answer_free(&a[i]);
    free(a);
}

static void test_ar_is_one_choice_after_another(void **state)
{
    (void)state;
    struct fake_model f = ending_model();
    uint64_t random = 1;
    struct job jobs[N_REQUESTS];
    for (int i = 0; i < N_REQUESTS; i++) {
        make_job(&jobs[i], &random, ENG_MODE_AR);
        jobs[i].params.repetition_penalty = 1;
        jobs[i].params.presence_penalty = 0;
        jobs[i].params.min_tokens = 0;
        jobs[i].params.ignore_eos = false;
    }
    struct answer *got = run_jobs(f, client_options(), jobs, N_REQUESTS);
    for (int i = 0; i < N_REQUESTS; i++) {
        const struct job *j = &jobs[i];
        uint64_t chain = fake_chain(j->prompt, j->n_prompt);
        enum eng_finish finish = ENG_FINISH_LENGTH;
        int32_t n = 0;
        while (n < j->params.max_tokens) {
            struct krn_select_row row = {.temperature = j->params.temperature,
                                         .top_p = 1,
                                         .repetition_penalty = 1,
                                         .seed = j->params.seed,
                                         .position = j->n_prompt + n};
            struct krn_choice choice;
            fake_choose(&f, chain, &row, &choice);
            if (choice.token == 11 || (j->params.n_stop_ids && choice.token == j->stop_ids[0])) {
                finish = ENG_FINISH_STOP;
                assert_int_equal(got[i].stop_id, choice.token);
                assert_int_equal(got[i].stats.completion_tokens, n + 1);
                break;
            }
            assert_true(n < got[i].n_tokens);
            assert_int_equal(got[i].tokens[n], choice.token);
            assert_true(got[i].logprobs[n] == choice.logprob);
            chain = fake_chain_next(chain, choice.token);
            n++;
        }
        assert_int_equal(got[i].n_tokens, n);
        assert_int_equal(got[i].finish, finish);
        assert_int_equal(got[i].n_finishes, 1);
        if (finish == ENG_FINISH_LENGTH) {
            assert_int_equal(got[i].stats.completion_tokens, n);
            assert_int_equal(got[i].stats.forward_passes, n ? n - 1 : 0);
        }
    }
    free_answers(got, N_REQUESTS);
}

static void test_self_speculation_gives_the_text_of_ar(void **state)
{
    (void)state;
    uint64_t random = 2;
    for (int round = 0; round < 8; round++) {
        struct job jobs[N_REQUESTS];
        for (int i = 0; i < N_REQUESTS; i++)
            make_job(&jobs[i], &random, ENG_MODE_AR);
        struct fake_model f = ending_model();
        f.has_adapter = round % 2;
        f.agree = round == 7 ? 1.0 : round == 6 ? 0.0 : 0.8;
        struct answer *ar = run_jobs(f, client_options(), jobs, N_REQUESTS);
        for (int i = 0; i < N_REQUESTS; i++)
            jobs[i].params.mode = ENG_MODE_SELF_SPECULATION;
        struct answer *ss = run_jobs(f, client_options(), jobs, N_REQUESTS);
        // auto moves between the two as the load changes.
        for (int i = 0; i < N_REQUESTS; i++)
            jobs[i].params.mode = ENG_MODE_AUTO;
        struct eng_options o = client_options();
        o.auto_rows = 100;
        struct answer *mixed = run_jobs(f, o, jobs, N_REQUESTS);
        for (int i = 0; i < N_REQUESTS; i++) {
            assert_same(&ss[i], &ar[i], i);
            assert_same(&mixed[i], &ar[i], i);
            assert_int_equal(ss[i].stats.completion_tokens, ar[i].stats.completion_tokens);
            if (ar[i].n_tokens)
                assert_memory_equal(ss[i].logprobs, ar[i].logprobs, (size_t)ar[i].n_tokens * sizeof(float));
        }
        free_answers(ar, N_REQUESTS);
        free_answers(ss, N_REQUESTS);
        free_answers(mixed, N_REQUESTS);
    }
}

static void test_max_tokens_is_exact_around_the_block(void **state)
{
    (void)state;
    for (enum eng_mode mode = ENG_MODE_AR; mode < ENG_N_MODES; mode++)
        for (int32_t block = 4; block <= 64; block *= 2)
            for (int32_t k = 0; k < 8; k++) {
                int32_t wanted[] = {0, 1, 2, block - 1, block, block + 1, 2 * block, 2 * block + 1};
                struct fake_model f = fake_model_default();
                struct client c;
                struct answer a;
                int32_t prompt[] = {7, 8, 9};
                client_open(&c, &f, client_options(), 0, NULL);
                struct eng_params p = eng_params_default();
                p.max_tokens = wanted[k];
                p.mode = mode;
                p.block_length = block;
                client_submit(&c, &a, &p, prompt, 3);
                client_close(&c);
                assert_int_equal(a.n_tokens, wanted[k]);
                assert_int_equal(a.stats.completion_tokens, wanted[k]);
                assert_int_equal(a.finish, ENG_FINISH_LENGTH);
                assert_int_equal(a.stats.mode, mode);
                answer_free(&a);
            }
}

static void test_the_context_ends_a_generation(void **state)
{
    (void)state;
    for (enum eng_mode mode = ENG_MODE_AR; mode < ENG_N_MODES; mode++)
        for (int32_t n_prompt = 1; n_prompt < 40; n_prompt += 3) {
            struct fake_model f = fake_model_default();
            f.page_size = 5;
            f.n_pages = 8;
            struct client c;
            struct answer a;
            int32_t prompt[40] = {1};
            client_open(&c, &f, client_options(), 40, NULL);
            struct eng_params p = eng_params_default();
            p.max_tokens = 1000;
            p.mode = mode;
            p.block_length = 16;
            client_submit(&c, &a, &p, prompt, (size_t)n_prompt);
            client_close(&c);
            assert_int_equal(a.n_tokens, 40 - n_prompt);
            assert_int_equal(a.finish, ENG_FINISH_LENGTH);
            answer_free(&a);
        }
}

// A draft event follows each denoise pass and each draft, and changes nothing.
static void test_drafts_are_told_to_those_who_ask(void **state)
{
    (void)state;
    uint64_t random = 8;
    struct job jobs[N_REQUESTS];
    for (int i = 0; i < N_REQUESTS; i++) {
        make_job(&jobs[i], &random, (enum eng_mode)(1 + i % 3));
        jobs[i].params.max_tokens += 2;
    }
    struct answer *silent = run_jobs(ending_model(), client_options(), jobs, N_REQUESTS);
    for (int i = 0; i < N_REQUESTS; i++)
        jobs[i].params.stream_draft = i % 4 != 0;
    struct answer *told = run_jobs(ending_model(), client_options(), jobs, N_REQUESTS);
    int32_t n_drafts = 0, n_masked = 0, n_drafted = 0;
    for (int i = 0; i < N_REQUESTS; i++) {
        const struct answer *a = &told[i];
        assert_same(a, &silent[i], i);
        assert_int_equal(a->n_events, silent[i].n_events);
        assert_int_equal(silent[i].n_drafts, 0);
        int32_t passes = a->stats.denoise_passes;
        if (a->stats.mode == ENG_MODE_SELF_SPECULATION)
            passes = a->stats.drafted_tokens > 0 ? -1 : 0;
        if (!jobs[i].params.stream_draft || !passes)
            assert_int_equal(a->n_drafts, 0);
        else if (passes > 0) // the pass that brings the end tells nothing after it
            assert_in_range(a->n_drafts, passes - 1, passes);
        else
            assert_in_range(a->n_drafts, 1, a->stats.forward_passes / 2 + 1);
        if (a->n_drafts) // nothing past max_tokens
            assert_true(a->last_from + a->last_n <= jobs[i].params.max_tokens);
        n_drafts += a->n_drafts;
        n_masked += a->n_masked;
        n_drafted += a->n_drafted;
    }
    assert_true(n_drafts > 50 && n_masked > 50 && n_drafted > 50);
    free_answers(silent, N_REQUESTS);
    free_answers(told, N_REQUESTS);
}

// They used to be counted when the pass under way was over.
static void test_who_is_submitted_during_a_pass_is_counted_at_once(void **state)
{
    (void)state;
    struct fake_model f = fake_model_default();
    f.step_us = 100000;
    struct eng_options o = client_options();
    o.max_sequences = 2;
    struct client c;
    struct answer a[4];
    struct eng_stats st;
    int32_t prompt[] = {1, 2};
    client_open(&c, &f, o, 0, NULL);
    struct eng_params p = eng_params_default();
    p.max_tokens = 2;
    p.mode = ENG_MODE_AR;
    for (int i = 0; i < 4; i++) {
        client_submit(&c, &a[i], &p, prompt, 2);
        eng_stats(c.engine, &st);
        assert_int_equal(st.waiting + st.running[ENG_MODE_AR], i + 1);
    }
    client_wait(&c);
    eng_stats(c.engine, &st);
    assert_int_equal(st.waiting + st.running[ENG_MODE_AR], 0);
    client_close(&c);
    for (int i = 0; i < 4; i++)
        answer_free(&a[i]);
}

static void test_the_live_picture_shows_who_runs(void **state)
{
    (void)state;
    struct fake_model f = fake_model_default();
    f.step_us = 2000;
    f.agree = 1;
    struct client c;
    struct answer a[2];
    struct eng_live live[4];
    int32_t prompt[] = {1, 2, 3}, n = 0;
    client_open(&c, &f, client_options(), 200, NULL);
    struct eng_params p = eng_params_default();
    p.max_tokens = 190;
    p.mode = ENG_MODE_AR;
    client_submit(&c, &a[0], &p, prompt, 3);
    p.mode = ENG_MODE_SELF_SPECULATION;
    p.block_length = 4;
    client_submit(&c, &a[1], &p, prompt, 3);
    for (int i = 0; i < 200 && (n < 2 || live[0].completion_tokens < 2); i++) {
        client_poll(&c, 5);
        n = eng_live(c.engine, live, 4);
    }
    assert_int_equal(n, 2);
    assert_int_equal(eng_live(c.engine, live, 1), 1);
    eng_live(c.engine, live, 4);
    const struct eng_live *ar = live[0].user == &a[0] ? &live[0] : &live[1];
    const struct eng_live *ss = live[0].user == &a[0] ? &live[1] : &live[0];
    assert_ptr_equal(ar->user, &a[0]);
    assert_ptr_equal(ss->user, &a[1]);
    assert_int_equal(ar->mode, ENG_MODE_AR);
    assert_int_equal(ar->block_length, 0);
    assert_int_equal(ss->mode, ENG_MODE_SELF_SPECULATION);
    assert_int_equal(ss->block_length, 4);
    assert_int_equal(ss->accepted_tokens, ss->drafted_tokens);
    assert_true(ss->drafted_tokens > 0 && ss->completion_tokens > ar->completion_tokens);
    // A pass takes 2 ms at least.
    assert_true(ar->tokens_per_second > 0 && ar->tokens_per_second < 501);
    assert_non_null(strstr(ar->reason, "asked for"));
    client_close(&c);
    for (int i = 0; i < 2; i++)
        answer_free(&a[i]);
}

static void test_ten_thousand_wait_in_line(void **state)
{
    (void)state;
    enum { N = 10000 };
    struct fake_model f = fake_model_default();
    struct eng_options o = client_options();
    struct client c;
    struct answer *answers = calloc(N, sizeof *answers);
    int32_t prompt[] = {1, 2};
    o.max_sequences = 64;
    client_open(&c, &f, o, 0, NULL);
    struct eng_params p = eng_params_default();
    p.max_tokens = 3;
    for (int i = 0; i < N; i++)
        client_submit(&c, &answers[i], &p, prompt, 2);
    client_wait(&c);
    client_close(&c);
    for (int i = 0; i < N; i++) {
        assert_int_equal(answers[i].n_tokens, 3);
        assert_int_equal(answers[i].n_finishes, 1);
    }
    free_answers(answers, N);
}

static void test_a_full_queue_answers_at_once(void **state)
{
    (void)state;
    struct fake_model f = fake_model_default();
    f.step_us = 2000;
    struct eng_options o = client_options();
    o.max_sequences = 2;
    o.max_queue = 3;
    struct client c;
    struct answer answers[5];
    int32_t prompt[] = {1, 2};
    client_open(&c, &f, o, 0, NULL);
    struct eng_params p = eng_params_default();
    p.max_tokens = 50;
    p.mode = ENG_MODE_AR;
    for (int i = 0; i < 5; i++)
        client_submit(&c, &answers[i], &p, prompt, 2);
    struct eng_request *r;
    assert_int_equal(eng_request_new(c.engine, &p, prompt, 2, &r, NULL, NULL, 0), 0);
    assert_int_equal(eng_submit(c.engine, r), ENG_EBUSY);
    eng_drain(c.engine);
    assert_int_equal(eng_submit(c.engine, r), ENG_ECLOSED);
    eng_request_free(r);
    client_close(&c);
    for (int i = 0; i < 5; i++) {
        assert_int_equal(answers[i].n_tokens, 50);
        answer_free(&answers[i]);
    }
}

static void test_a_lost_backend_ends_everyone(void **state)
{
    (void)state;
    struct fake_model f = fake_model_default();
    f.fail_at_step = 6;
    struct eng_options o = client_options();
    o.max_sequences = 2;
    struct client c;
    struct answer answers[5];
    int32_t prompt[] = {1, 2};
    client_open(&c, &f, o, 0, NULL);
    struct eng_params p = eng_params_default();
    p.max_tokens = 100;
    p.mode = ENG_MODE_AR;
    int n = 0;
    for (; n < 5; n++) {
        struct eng_params q = p;
        answers[n] = (struct answer){0};
        q.user = &answers[n];
        assert_int_equal(eng_request_new(c.engine, &q, prompt, 2, &answers[n].request, NULL, NULL, 0), 0);
        if (eng_submit(c.engine, answers[n].request))
            break; // it failed meanwhile
        c.n_open++;
    }
    if (n < 5)
        eng_request_free(answers[n].request);
    client_wait(&c);
    struct eng_request *r;
    assert_int_equal(eng_request_new(c.engine, &p, prompt, 2, &r, NULL, NULL, 0), 0);
    assert_int_equal(eng_submit(c.engine, r), ENG_EDEVICE);
    eng_request_free(r);
    assert_string_equal(eng_failure(c.engine), "the fake device fell off the bus");
    client_close(&c);
    for (int i = 0; i < n; i++) {
        assert_int_equal(answers[i].finish, ENG_FINISH_ERROR);
        assert_string_equal(answers[i].error, "the fake device fell off the bus");
        answer_free(&answers[i]);
    }
}

// A pass block that could not grow used to cost the whole backend.
static void test_a_step_without_memory_ends_its_requests_and_nobody_else(void **state)
{
    (void)state;
    for (int32_t step = 1; step < 12; step++) {
        struct fake_model f = fake_model_default();
        f.full_at_step = step;
        struct client c;
        struct answer answers[6];
        client_open(&c, &f, client_options(), 0, NULL);
        struct eng_params p = eng_params_default();
        int32_t prompt[] = {7, 2};
        p.max_tokens = 20;
        for (int i = 0; i < 5; i++) {
            p.mode = (enum eng_mode)(1 + i % 3);
            client_submit(&c, &answers[i], &p, prompt, 2);
        }
        client_wait(&c);
        assert_null(eng_failure(c.engine));
        client_submit(&c, &answers[5], &p, prompt, 2);
        client_close(&c);
        assert_int_equal(answers[5].finish, ENG_FINISH_LENGTH);
        int ended = 0;
        for (int i = 0; i < 6; i++) {
            if (answers[i].finish == ENG_FINISH_ERROR) {
                assert_string_equal(answers[i].error, "out of device memory");
                ended++;
            } else
                assert_int_equal(answers[i].finish, ENG_FINISH_LENGTH);
            answer_free(&answers[i]);
        }
        assert_true(ended > 0);
    }
}

static void test_logits_that_are_not_finite_end_one_request_only(void **state)
{
    (void)state;
    struct fake_model f = fake_model_default();
    f.poison = 3;
    struct client c;
    struct answer answers[9];
    client_open(&c, &f, client_options(), 0, NULL);
    struct eng_params p = eng_params_default();
    for (int i = 0; i < 9; i++) {
        int32_t prompt[] = {i, 2};
        p.mode = (enum eng_mode)(1 + i % 3);
        client_submit(&c, &answers[i], &p, prompt, 2);
    }
    client_close(&c);
    for (int i = 0; i < 9; i++) {
        assert_int_equal(answers[i].finish, i == 3 ? ENG_FINISH_ERROR : ENG_FINISH_LENGTH);
        answer_free(&answers[i]);
    }
}

static void test_a_timeout_ends_waiting_and_running_requests(void **state)
{
    (void)state;
    struct fake_model f = fake_model_default();
    f.step_us = 1000;
    struct eng_options o = client_options();
    o.max_sequences = 1;
    struct client c;
    struct answer answers[3];
    int32_t prompt[] = {1};
    client_open(&c, &f, o, 0, NULL);
    struct eng_params p = eng_params_default();
    p.max_tokens = 190;
    p.mode = ENG_MODE_AR;
    p.timeout_ms = 30;
    client_submit(&c, &answers[0], &p, prompt, 1);
    p.timeout_ms = 15;
    client_submit(&c, &answers[1], &p, prompt, 1);
    p.timeout_ms = 0;
    p.max_tokens = 5;
    client_submit(&c, &answers[2], &p, prompt, 1);
    client_close(&c);
    assert_int_equal(answers[0].finish, ENG_FINISH_TIMEOUT);
    assert_int_equal(answers[1].finish, ENG_FINISH_TIMEOUT);
    assert_int_equal(answers[1].n_tokens, 0);
    assert_int_equal(answers[2].finish, ENG_FINISH_LENGTH);
    for (int i = 0; i < 3; i++)
        answer_free(&answers[i]);
}

// Closing frees running and waiting requests and events nobody took; the sanitizers watch.
static void test_close_frees_what_still_runs(void **state)
{
    (void)state;
    for (int round = 0; round < 5; round++) {
        struct fake_model f = fake_model_default();
        f.step_us = 100;
        struct eng_options o = eng_options_default();
        o.max_sequences = 4;
        struct eng_parts parts = {.model = fake_model_open(&f),
                                  .info = {.n_pages = f.n_pages, .page_size = f.page_size, .max_context = 200}};
        struct eng_engine *e;
        assert_int_equal(eng_open_model(&o, &parts, &e, NULL, 0), 0);
        for (int i = 0; i < 12; i++) {
            struct eng_params p = eng_params_default();
            int32_t prompt[] = {i};
            struct eng_request *r;
            p.max_tokens = i % 2 ? 2 : 150;
            assert_int_equal(eng_request_new(e, &p, prompt, 1, &r, NULL, NULL, 0), 0);
            assert_int_equal(eng_submit(e, r), 0);
        }
        usleep((useconds_t)round * 1000);
        eng_close(e);
    }
    eng_close(NULL);
}

static void test_a_model_without_a_mask_decodes_in_ar_only(void **state)
{
    (void)state;
    struct fake_model f = fake_model_default();
    f.mask_id = -1;
    struct client c;
    struct answer a;
    int32_t prompt[] = {1};
    client_open(&c, &f, client_options(), 0, NULL);
    assert_int_equal(eng_info(c.engine)->modes, 1u << ENG_MODE_AUTO | 1u << ENG_MODE_AR);
    struct eng_params p = eng_params_default();
    struct eng_request *r;
    const char *param;
    p.mode = ENG_MODE_DIFFUSION;
    assert_int_equal(eng_request_new(c.engine, &p, prompt, 1, &r, &param, NULL, 0), ENG_EINVAL);
    assert_string_equal(param, "mode");
    p.mode = ENG_MODE_AUTO;
    client_submit(&c, &a, &p, prompt, 1);
    client_close(&c);
    assert_int_equal(a.stats.mode, ENG_MODE_AR);
    answer_free(&a);
}

static void test_spans_and_reason_tell_how_it_was_decoded(void **state)
{
    (void)state;
    struct fake_model f = fake_model_default();
    f.agree = 1;
    struct client c;
    struct answer a;
    int32_t prompt[] = {1, 2, 3};
    client_open(&c, &f, client_options(), 0, NULL);
    struct eng_params p = eng_params_default();
    p.max_tokens = 33;
    p.block_length = 16;
    client_submit(&c, &a, &p, prompt, 3);
    client_close(&c);
    assert_int_equal(a.stats.n_spans, 1);
    assert_int_equal(a.stats.spans[0].from_token, 0);
    assert_int_equal(a.stats.spans[0].mode, ENG_MODE_SELF_SPECULATION);
    assert_int_equal(a.stats.spans[0].block_length, 16);
    assert_non_null(strstr(a.stats.reason, "16 rows"));
    // The seed from the prompt, then two full blocks of 16.
    assert_int_equal(a.stats.forward_passes, 4);
    assert_int_equal(a.stats.blocks, 2);
    assert_int_equal(a.stats.drafted_tokens, 30);
    assert_int_equal(a.stats.accepted_tokens, 30);
    answer_free(&a);
}

// Passes cost what one of two machines says, requests come one after the other and their drafts are worth little at
// first, so auto moves them in the middle of their answers, with blocks of all lengths and parts of drafts verified.
static void test_the_router_moves_requests_and_their_text_stays(void **state)
{
    (void)state;
    enum { N = 24 };
    static struct job jobs[N];
    uint64_t random = 17, switched = 0, lengths = 0, drafted = 0, verified = 0;
    for (int round = 0; round < 8; round++) {
        struct fake_model f = ending_model();
        struct client c;
        for (int i = 0; i < N; i++) {
            make_job(&jobs[i], &random, ENG_MODE_AR);
            jobs[i].params.block_length = 0;
        }
        f.agree = round % 4 * 0.33;
        struct answer *ar = run_jobs(f, client_options(), jobs, N);
        struct answer *a = calloc(N, sizeof *a);
        f.cost = round % 2 ? machine_gpu() : machine_cpu();
        client_open(&c, &f, client_options(), 200, NULL);
        for (int i = 0; i < N; i++) {
            jobs[i].params.mode = i % 5 ? ENG_MODE_AUTO : ENG_MODE_SELF_SPECULATION;
            submit_job(&c, &a[i], &jobs[i]);
            for (uint32_t wait = test_random(&random) % 6; wait; wait--)
                client_poll(&c, 1);
        }
        client_wait(&c);
        client_close(&c);
        for (int i = 0; i < N; i++) {
            assert_same(&a[i], &ar[i], i);
            switched += (uint64_t)a[i].stats.switches;
            bool routed = a[i].stats.cause == ENG_CAUSE_FASTEST || a[i].stats.cause == ENG_CAUSE_POOR_DRAFTS;
            assert_true(i % 5 ? routed : a[i].stats.cause == ENG_CAUSE_REQUESTED);
            for (int k = 0; k < a[i].stats.n_spans; k++)
                lengths |= (uint64_t)a[i].stats.spans[k].block_length;
        }
        drafted += f.rows[ENG_PASS_DRAFT];
        verified += f.rows[ENG_PASS_VERIFY];
        free_answers(ar, N);
        free_answers(a, N);
    }
    assert_true(switched > 10);
    assert_true(verified > 0 && verified < drafted);
    assert_true((lengths & (lengths - 1)) != 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ar_is_one_choice_after_another),
        cmocka_unit_test(test_self_speculation_gives_the_text_of_ar),
        cmocka_unit_test(test_max_tokens_is_exact_around_the_block),
        cmocka_unit_test(test_the_context_ends_a_generation),
        cmocka_unit_test(test_drafts_are_told_to_those_who_ask),
        cmocka_unit_test(test_who_is_submitted_during_a_pass_is_counted_at_once),
        cmocka_unit_test(test_the_live_picture_shows_who_runs),
        cmocka_unit_test(test_ten_thousand_wait_in_line),
        cmocka_unit_test(test_a_full_queue_answers_at_once),
        cmocka_unit_test(test_a_lost_backend_ends_everyone),
        cmocka_unit_test(test_a_step_without_memory_ends_its_requests_and_nobody_else),
        cmocka_unit_test(test_logits_that_are_not_finite_end_one_request_only),
        cmocka_unit_test(test_a_timeout_ends_waiting_and_running_requests),
        cmocka_unit_test(test_close_frees_what_still_runs),
        cmocka_unit_test(test_a_model_without_a_mask_decodes_in_ar_only),
        cmocka_unit_test(test_spans_and_reason_tell_how_it_was_decoded),
        cmocka_unit_test(test_the_router_moves_requests_and_their_text_stays),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
