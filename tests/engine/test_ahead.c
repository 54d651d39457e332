// The engine on an asynchronous model: the next step is planned while the present one runs. Every test compares with
// the same load on a synchronous one, or counts. engine_engine runs on such a model as well (see meson.build).
#include <setjmp.h>
#include <stdatomic.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "client.h"
#include "text/tokenizer.h"

enum { N = 60, MAX_PROMPT = 40 };

static struct eng_tokenizer *tokenizer;

static int open_tokenizer(void **state)
{
    char err[200];
    (void)state;
    return eng_tokenizer_load(TRIMODE_SOURCE_DIR "/tests/vectors/models/wide_q/tokenizer.json", &tokenizer, err,
                              sizeof err);
}

static int free_tokenizer(void **state)
{
    (void)state;
    eng_tokenizer_free(tokenizer);
    return 0;
}

// Of the tokenizer's vocabulary, with an end id.
static struct fake_model model(bool async)
{
    struct fake_model f = fake_model_default();
    f.n_vocab = eng_tokenizer_n_vocab(tokenizer);
    f.end_id = 11;
    f.end_rate = 0.02;
    f.async = async;
    return f;
}

struct load {
    uint64_t seed;
    unsigned modes;       // bits: which ones requests ask for
    int penalties, stops; // one request in so many; 0: none
    int32_t n_pages, max_sequences;
};

static void submit_one(struct client *c, struct answer *a, const struct load *load, uint64_t *random)
{
    static const int32_t lengths[] = {4, 8, 16, 32};
    static const char *const stops[] = {"e", "ab", "x"};
    int32_t prompt[MAX_PROMPT], n = 1 + (int32_t)(test_random(random) % MAX_PROMPT);
    struct eng_params p = eng_params_default();
    for (int32_t i = 0; i < n; i++)
        prompt[i] = (int32_t)(test_random(random) % 97);
    do
        p.mode = (enum eng_mode)(test_random(random) % ENG_N_MODES);
    while (!(load->modes >> p.mode & 1));
    p.max_tokens = (int32_t)(test_random(random) % 60);
    p.block_length = lengths[test_random(random) % 4];
    p.temperature = test_random(random) % 2 ? 0.8f : 0;
    p.seed = test_random(random);
    p.min_tokens = test_random(random) % 4 ? 0 : p.max_tokens / 2;
    p.n_top = (int32_t)(test_random(random) % 4) - 1;
    if (load->penalties && test_random(random) % (uint32_t)load->penalties == 0)
        p.repetition_penalty = 1.2f;
    if (load->stops && test_random(random) % (uint32_t)load->stops == 0) {
        p.stops = stops;
        p.n_stops = 3;
    }
    client_submit(c, a, &p, prompt, (size_t)n);
}

// Runs the load. ret_ahead: passes that were submitted while another one ran.
static struct answer *run(const struct load *load, bool async, uint64_t *ret_ahead, struct eng_stats *ret_stats)
{
    struct client c;
    struct fake_model f = model(async);
    struct eng_options o = client_options();
    struct answer *answers = calloc(N, sizeof *answers);
    uint64_t random = load->seed;
    f.n_pages = load->n_pages;
    o.max_sequences = load->max_sequences;
    client_open(&c, &f, o, 120, tokenizer);
    for (int i = 0; i < N; i++)
        submit_one(&c, &answers[i], load, &random);
    client_wait(&c);
    eng_stats(c.engine, ret_stats);
    client_close(&c);
    *ret_ahead = f.ahead;
    return answers;
}

// least_ahead: 0: it must not happen at all; -1: how often is a matter of company.
static void compare(const struct load *load, int least_ahead)
{
    uint64_t ahead, behind;
    struct eng_stats with, without;
    struct answer *a = run(load, true, &ahead, &with), *b = run(load, false, &behind, &without);
    for (int i = 0; i < N; i++) {
        if (!answer_equal(&a[i], &b[i]))
            fail_msg("seed %d, request %d: %d tokens, finish %d against %d tokens, finish %d", (int)load->seed, i,
                     a[i].n_tokens, (int)a[i].finish, b[i].n_tokens, (int)b[i].finish);
        answer_free(&a[i]);
        answer_free(&b[i]);
    }
    free(a);
    free(b);
    assert_int_equal(behind, 0);
    assert_int_equal(without.wasted_ahead, 0);
    assert_int_equal(with.generated_tokens[ENG_MODE_AR], without.generated_tokens[ENG_MODE_AR]);
    if (least_ahead > 0)
        assert_true(ahead >= (uint64_t)least_ahead);
    if (least_ahead == 0)
        assert_int_equal(ahead, 0);
}

enum { AR = 1u << ENG_MODE_AR, SS = 1u << ENG_MODE_SELF_SPECULATION, DIFFUSION = 1u << ENG_MODE_DIFFUSION };

static void test_text_does_not_depend_on_it(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 6; seed++) {
        compare(&(struct load){seed, AR, 0, 3, 256, 4}, 100);
        compare(&(struct load){seed, SS, 0, 3, 256, 1}, 100);
        compare(&(struct load){seed, AR | SS, 0, 3, 256, 8}, -1);
        compare(&(struct load){seed, AR | SS | DIFFUSION, 3, 3, 256, 4}, -1);
    }
}

static void test_text_does_not_depend_on_it_when_pages_are_few(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 6; seed++) {
        compare(&(struct load){seed, AR | SS, 0, 3, 30, 8}, -1); // as many as one sequence needs
        compare(&(struct load){seed, AR, 5, 0, 34, 3}, 20);
    }
}

static void test_what_depends_on_choices_waits_for_them(void **state)
{
    (void)state;
    compare(&(struct load){3, DIFFUSION, 0, 0, 256, 4}, 0);
    compare(&(struct load){3, AR | SS, 1, 0, 256, 4}, 0); // penalties look at the tokens before
}

// One request alone: prompt, then AR rows of which only the first follows a step that was not its own kind.
static void test_ar_runs_ahead_all_the_time(void **state)
{
    (void)state;
    struct client c;
    struct answer a;
    struct fake_model f = model(true);
    f.end_id = -1;
    int32_t prompt[] = {1, 2};
    client_open(&c, &f, client_options(), 0, tokenizer);
    struct eng_params p = eng_params_default();
    p.mode = ENG_MODE_AR;
    p.max_tokens = 50;
    client_submit(&c, &a, &p, prompt, 2);
    client_wait(&c);
    struct eng_stats st;
    eng_stats(c.engine, &st);
    client_close(&c);
    assert_int_equal(a.n_tokens, 50);
    assert_int_equal(f.steps, 50);
    assert_int_equal(f.ahead, 48); // but the prompt and the first row
    assert_int_equal(f.links, 48);
    assert_int_equal(st.steps, 50);
    assert_int_equal(st.wasted_ahead, 0); // the limit is known before
    answer_free(&a);
}

static void test_a_draft_is_verified_without_a_wait(void **state)
{
    (void)state;
    struct client c;
    struct answer a;
    struct fake_model f = model(true);
    f.end_id = -1;
    f.agree = 1;
    int32_t prompt[] = {1, 2};
    client_open(&c, &f, client_options(), 0, tokenizer);
    struct eng_params p = eng_params_default();
    p.mode = ENG_MODE_SELF_SPECULATION;
    p.block_length = 8;
    p.max_tokens = 1 + 4 * 8;
    client_submit(&c, &a, &p, prompt, 2);
    client_close(&c);
    assert_int_equal(a.stats.blocks, 4);
    assert_int_equal(a.stats.accepted_tokens, 4 * 7);
    assert_int_equal(f.ahead, 4);
    assert_int_equal(f.links, 4 * 7); // the seed is known
    answer_free(&a);
}

static void test_an_end_nobody_could_know_costs_its_row(void **state)
{
    (void)state;
    struct client c;
    struct answer a;
    struct fake_model f = model(true);
    f.end_rate = 0.1;
    int32_t prompt[] = {1, 2};
    client_open(&c, &f, client_options(), 0, tokenizer);
    struct eng_params p = eng_params_default();
    p.mode = ENG_MODE_AR;
    p.max_tokens = 190;
    client_submit(&c, &a, &p, prompt, 2);
    client_wait(&c);
    struct answer second;
    client_submit(&c, &second, &p, prompt, 2); // and the engine goes on
    client_wait(&c);
    struct eng_stats st;
    eng_stats(c.engine, &st);
    client_close(&c);
    assert_int_equal(a.finish, ENG_FINISH_STOP);
    assert_true(a.n_tokens > 2);
    assert_true(answer_equal(&a, &second));
    assert_in_range(st.wasted_ahead, 1, 2); // the second one's may not be published yet
    assert_int_equal(a.stats.forward_passes, a.n_tokens);
    answer_free(&a);
    answer_free(&second);
}

static void test_cancels_at_any_time_lose_nothing(void **state)
{
    (void)state;
    static const struct load load = {7, AR | SS, 0, 0, 40, 4};
    uint64_t ahead, random = 99;
    struct eng_stats st;
    struct answer *whole = run(&load, false, &ahead, &st);
    for (int round = 0; round < 4; round++) {
        struct client c;
        struct fake_model f = model(true);
        struct eng_options o = client_options();
        static struct answer got[N];
        uint64_t jobs = load.seed;
        f.n_pages = load.n_pages;
        f.step_us = 20;
        o.max_sequences = load.max_sequences;
        client_open(&c, &f, o, 120, tokenizer);
        for (int i = 0; i < N; i++) {
            submit_one(&c, &got[i], &load, &jobs);
            if (test_random(&random) % 2)
                client_poll(&c, 0);
            int victim = (int)(test_random(&random) % (uint32_t)(i + 1));
            if (got[victim].n_finishes == 0 && test_random(&random) % 2)
                eng_cancel(got[victim].request);
        }
        client_close(&c);
        int cancelled = 0;
        for (int i = 0; i < N; i++) {
            cancelled += got[i].finish == ENG_FINISH_CANCELLED;
            assert_int_equal(got[i].n_finishes, 1);
            assert_true(got[i].n_tokens <= whole[i].n_tokens);
            if (got[i].n_tokens)
                assert_memory_equal(got[i].tokens, whole[i].tokens, (size_t)got[i].n_tokens * sizeof(int32_t));
            if (got[i].finish != ENG_FINISH_CANCELLED)
                assert_true(answer_equal(&got[i], &whole[i]));
            answer_free(&got[i]);
        }
        assert_true(cancelled > 0);
        assert_true(f.ahead > 0);
    }
    for (int i = 0; i < N; i++)
        answer_free(&whole[i]);
    free(whole);
}

static void test_a_device_lost_at_any_step_ends_everyone(void **state)
{
    (void)state;
    for (int step = 1; step < 30; step++) {
        struct client c;
        struct fake_model f = model(true);
        static struct answer got[6];
        f.fail_at_step = step;
        f.end_id = -1;
        client_open(&c, &f, client_options(), 120, tokenizer);
        int n = 0;
        for (; n < 6 && !eng_failure(c.engine); n++) {
            struct eng_params p = eng_params_default();
            int32_t prompt[] = {n, 2};
            got[n] = (struct answer){0};
            p.mode = n % 2 ? ENG_MODE_AR : ENG_MODE_SELF_SPECULATION;
            p.max_tokens = 60;
            p.user = &got[n];
            assert_int_equal(eng_request_new(c.engine, &p, prompt, 2, &got[n].request, NULL, NULL, 0), 0);
            if (eng_submit(c.engine, got[n].request)) {
                eng_request_free(got[n].request);
                break; // it failed meanwhile
            }
            c.n_open++;
        }
        client_close(&c);
        for (int i = 0; i < n; i++) {
            assert_int_equal(got[i].finish, ENG_FINISH_ERROR);
            assert_string_equal(got[i].error, "the fake device fell off the bus");
            answer_free(&got[i]);
        }
    }
}

// ---- the end of the engine ------------------------------------------------------------------------------------------

// A model around the fake one: its third wait lasts until the engine is closed, and the next one fails. By then the
// fourth step is under way.
static struct {
    struct eng_model inner;
    _Atomic(struct eng_engine *) engine;
    atomic_int waits;
} closing;

static int wait_until_closed(void *ctx, struct eng_batch *batch)
{
    int rc = closing.inner.wait(ctx, batch), nth = atomic_fetch_add(&closing.waits, 1) + 1;
    struct eng_engine *e;
    if (nth < 3 || rc)
        return rc;
    while (!(e = atomic_load(&closing.engine)) || !atomic_load(&e->closing))
        usleep(100);
    return nth == 3 ? 0 : KRN_EDEVICE;
}

// Nobody takes events any more, so a failure then must not end requests a second time, or leave their last events lost.
static void test_a_device_lost_while_the_engine_closes_leaves_nothing(void **state)
{
    (void)state;
    struct fake_model f = model(true);
    struct eng_options o = client_options();
    struct eng_engine *e;
    struct eng_request *r;
    char err[100];
    f.end_id = -1;
    closing.inner = fake_model_open(&f);
    atomic_store(&closing.waits, 0);
    atomic_store(&closing.engine, NULL);
    struct eng_parts parts = {
        .model = closing.inner,
        .info = {.n_pages = f.n_pages, .page_size = f.page_size, .max_context = 200},
    };
    parts.model.wait = wait_until_closed;
    assert_int_equal(eng_open_model(&o, &parts, &e, err, sizeof err), 0);
    struct eng_params p = eng_params_default();
    int32_t prompt[] = {1, 2};
    p.mode = ENG_MODE_AR;
    p.max_tokens = 50;
    assert_int_equal(eng_request_new(e, &p, prompt, 2, &r, NULL, NULL, 0), 0);
    assert_int_equal(eng_submit(e, r), 0);
    atomic_store(&closing.engine, e);
    while (atomic_load(&closing.waits) < 3)
        usleep(100);
    eng_close(e);
    assert_int_equal(atomic_load(&closing.waits), 4); // the step ahead was waited for
    assert_string_equal(f.fault, "");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_text_does_not_depend_on_it),
        cmocka_unit_test(test_text_does_not_depend_on_it_when_pages_are_few),
        cmocka_unit_test(test_what_depends_on_choices_waits_for_them),
        cmocka_unit_test(test_ar_runs_ahead_all_the_time),
        cmocka_unit_test(test_a_draft_is_verified_without_a_wait),
        cmocka_unit_test(test_an_end_nobody_could_know_costs_its_row),
        cmocka_unit_test(test_cancels_at_any_time_lose_nothing),
        cmocka_unit_test(test_a_device_lost_at_any_step_ends_everyone),
        cmocka_unit_test(test_a_device_lost_while_the_engine_closes_leaves_nothing),
    };
    return cmocka_run_group_tests(tests, open_tokenizer, free_tokenizer);
}
