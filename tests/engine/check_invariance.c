// Random loads of the whole engine, each request compared with itself alone in an engine of its own.
//
//   check_invariance [--workloads N] [--seed S] [--model DIR]     seeds S .. S + N - 1; without --model: the fake model
//
// Alone means: one sequence, whole pages of 16, no prefix cache, nothing ahead, and in AR whatever mode of AR's text
// was asked for. A request of `auto` that may use diffusion is compared with what it says it did: with AR up to its
// first block of diffusion, or with diffusion alone where it was decoded in nothing else; beyond a change of mode into
// diffusion its text depends on the load by design. Of a request that was cancelled, timed out or refused by the
// backend, the tokens are a beginning of those alone. After each load all pages are free or cached, every request has
// had one end, and the sums over requests are the counters. scripts/check_invariance.sh runs many; meson a few.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <getopt.h>
#include <signal.h>
#include <unistd.h>
#include <cmocka.h>

#include "base/clock.h"
#include "client.h"
#include "model/config.h"
#include "text/tokenizer.h"
#include "workload.h"

static const char heldout[] = TRIMODE_SOURCE_DIR "/scripts/train/heldout.jsonl";
static const char byte_tokenizer[] = TRIMODE_SOURCE_DIR "/tests/vectors/models/wide_q/tokenizer.json";
enum { BYTE_IDS = 128 }; // of the byte tokenizer: special ids come first, then the bytes

static struct {
    const char *model; // NULL: the fake one
    int64_t n_workloads;
    uint64_t first_seed;
} args = {NULL, 60, 1};

// What all loads share.
static struct eng_tokenizer *tokenizer; // of the fake model
static struct eng_config shape;         // of the real one
static struct workload_vocab vocab;
static struct workload_pool pool;

static char again[400]; // how to run the load that runs; empty: none
static struct {
    uint64_t workloads, requests, tokens, left_out, preemptions, cancelled, timed_out, refused, found, switches, ahead;
} total;

// ---- engines --------------------------------------------------------------------------------------------------------

// A key or a value of one head at one position.
static int64_t vector_bytes(const char *kv_type)
{
    if (!strcmp(kv_type, "q8"))
        return shape.head_dim + 4;
    return (strcmp(kv_type, "bf16") ? 4 : 2) * shape.head_dim;
}

static void open_real(struct client *c, const struct workload *w, struct eng_options o, int32_t n_pages)
{
    char err[300] = "";
    o.model_dir = args.model;
    o.backend = "cpu";
    o.cold = true;
    o.max_context = w->max_context;
    o.kv_memory = (int64_t)n_pages * o.page_size * 2 * shape.n_layers * shape.n_kv_heads * vector_bytes(o.kv_type);
    if (client_open_dir(c, o, err, sizeof err))
        fail_msg("%s: %s", args.model, err);
    // No more than all sequences could fill.
    int32_t most = o.max_sequences * ((w->max_context + o.page_size - 1) / o.page_size);
    assert_int_equal(eng_info(c->engine)->n_pages, n_pages < most ? n_pages : most);
}

// fake: a copy of the load's, which is changed by its use.
static void open_engine(struct client *c, const struct workload *w, struct eng_options o, struct fake_model *fake)
{
    if (args.model)
        open_real(c, w, o, fake->n_pages);
    else
        client_open(c, fake, o, w->max_context, tokenizer);
}

// The request in an engine of its own.
static void run_alone(const struct workload *w, const struct eng_params *params, const int32_t *prompt, int32_t n,
                      struct answer *ret)
{
    struct client c;
    struct eng_params p = *params;
    struct eng_options o = w->options;
    struct fake_model f = w->fake;
    p.timeout_ms = 0;
    p.cache_salt = NULL;
    o.max_sequences = 1;
    o.max_step_rows = 64;
    o.prefix_cache = false;
    o.calibrate = false;
    o.threads = 1;
    o.page_size = f.page_size = 16;
    f.n_pages = (w->max_context + 15) / 16;
    f.async = false;
    f.step_us = f.full_at_step = 0;
    open_engine(&c, w, o, &f);
    client_submit(&c, ret, &p, prompt, (size_t)n);
    client_close(&c);
}

// ---- one load -------------------------------------------------------------------------------------------------------

struct run {
    struct workload w;
    int32_t n_vocab;
    int32_t (*prompts)[WORKLOAD_CONTEXT], *lengths;
    struct answer *alone, *got;
};

static struct eng_params params_alone(const struct workload_request *r)
{
    return r->params.mode == ENG_MODE_DIFFUSION ? r->params : workload_ar_params(r);
}

// In order, because prompts may continue earlier answers.
static void run_all_alone(struct run *run)
{
    for (int32_t i = 0; i < run->w.n_requests; i++) {
        const struct workload_request *r = &run->w.requests[i];
        int32_t before[2 * WORKLOAD_CONTEXT], n = 0;
        if (r->parent >= 0) {
            const struct answer *a = &run->alone[r->parent];
            n = run->lengths[r->parent];
            memcpy(before, run->prompts[r->parent], (size_t)n * sizeof *before);
            for (int32_t k = 0; k < a->n_tokens; k++)
                before[n++] = a->tokens[k];
        }
        run->lengths[i] = workload_prompt(&run->w, r, &pool, run->n_vocab, before, n, run->prompts[i]);
        struct eng_params p = params_alone(r);
        run_alone(&run->w, &p, run->prompts[i], run->lengths[i], &run->alone[i]);
    }
}

// Cancels whoever has shown as many tokens as he was to show.
static void cancel_the_fed_up(const struct run *run, int32_t n_submitted)
{
    for (int32_t i = 0; i < n_submitted; i++) {
        int32_t after = run->w.requests[i].cancel_after;
        if (after >= 0 && run->got[i].request && run->got[i].n_tokens >= after)
            eng_cancel(run->got[i].request);
    }
}

static bool look(struct client *c, const struct run *run, int32_t n_submitted, int ms)
{
    bool some = client_poll(c, ms);
    cancel_the_fed_up(run, n_submitted);
    return some;
}

static void look_until_idle(struct client *c, const struct run *run, int32_t n_submitted)
{
    while (c->n_open)
        if (!look(c, run, n_submitted, 60000) && c->n_open)
            fail_msg("%d requests did not finish within a minute", c->n_open);
}

static void pause_after(struct client *c, const struct run *run, int32_t n_submitted, enum workload_pause pause)
{
    cancel_the_fed_up(run, n_submitted);
    if (pause == PAUSE_LOOK)
        look(c, run, n_submitted, 1);
    else if (pause == PAUSE_EVENT && c->n_open)
        look(c, run, n_submitted, 20);
    else if (pause == PAUSE_IDLE)
        look_until_idle(c, run, n_submitted);
}

static void run_together(struct run *run, struct eng_stats *ret_stats)
{
    struct client c;
    const struct workload *w = &run->w;
    struct fake_model f = w->fake;
    open_engine(&c, w, w->options, &f);
    for (int32_t i = 0; i < w->n_requests; i++) {
        const struct workload_request *r = &w->requests[i];
        client_submit(&c, &run->got[i], &r->params, run->prompts[i], (size_t)run->lengths[i]);
        for (int32_t k = 0; k < i; k++)
            if (w->requests[k].cancel_with == i && run->got[k].request)
                eng_cancel(run->got[k].request);
        pause_after(&c, run, i + 1, r->pause);
    }
    look_until_idle(&c, run, w->n_requests);
    eng_stats(c.engine, ret_stats);
    client_close(&c); // checks the pages and what the fake model saw
    total.ahead += f.ahead;
}

// ---- comparing ------------------------------------------------------------------------------------------------------

static bool may_diffuse(const struct workload *w, const struct eng_params *p)
{
    return p->mode == ENG_MODE_AUTO && !p->lossless &&
           (p->allow_diffusion || w->options.mode == ENG_MODE_DIFFUSION ||
            w->options.auto_modes & 1u << ENG_MODE_DIFFUSION);
}

// How many of its tokens AR's text decides, by its own account.
static int32_t tokens_before_diffusion(const struct eng_request_stats *st)
{
    for (int32_t i = 0; i < st->n_spans; i++)
        if (st->spans[i].mode == ENG_MODE_DIFFUSION || i == ENG_MAX_SPANS - 1)
            return st->spans[i].from_token;
    return WORKLOAD_CONTEXT;
}

static bool only_diffusion(const struct eng_request_stats *st)
{
    return st->n_spans == 1 && st->spans[0].mode == ENG_MODE_DIFFUSION && !st->switches;
}

// Ended by others than itself.
static bool was_cut(const struct answer *a)
{
    return a->finish == ENG_FINISH_CANCELLED || a->finish == ENG_FINISH_TIMEOUT || a->finish == ENG_FINISH_ERROR;
}

static bool begins_alike(const struct answer *a, const struct answer *b, int32_t n)
{
    return n <= a->n_tokens && n <= b->n_tokens &&
           (!n || (!memcmp(a->tokens, b->tokens, (size_t)n * sizeof *a->tokens) &&
                   !memcmp(a->logprobs, b->logprobs, (size_t)n * sizeof *a->logprobs)));
}

// NULL, or what is wrong.
static const char *compare(const struct answer *got, const struct answer *alone, bool same_passes)
{
    total.tokens += (uint64_t)got->n_tokens;
    if (was_cut(got))
        return begins_alike(got, alone, got->n_tokens) ? NULL : "is no beginning of what it is alone";
    if (!answer_equal(got, alone) || !begins_alike(got, alone, alone->n_tokens))
        return "differs from what it is alone";
    return same_passes && got->stats.forward_passes != alone->stats.forward_passes ? "took other passes than alone"
                                                                                   : NULL;
}

static const char *compare_auto(const struct run *run, int32_t i)
{
    const struct answer *got = &run->got[i];
    if (only_diffusion(&got->stats)) {
        struct answer alone;
        struct eng_params p = run->w.requests[i].params;
        p.mode = ENG_MODE_DIFFUSION;
        p.block_length = got->stats.spans[0].block_length;
        run_alone(&run->w, &p, run->prompts[i], run->lengths[i], &alone);
        const char *wrong = compare(got, &alone, true);
        answer_free(&alone);
        return wrong;
    }
    int32_t n = tokens_before_diffusion(&got->stats);
    if (n >= got->n_tokens && n == WORKLOAD_CONTEXT)
        return compare(got, &run->alone[i], false);
    n = n < got->n_tokens ? n : got->n_tokens;
    total.tokens += (uint64_t)n;
    total.left_out++;
    return begins_alike(got, &run->alone[i], n) ? NULL : "differs from AR before its first block of diffusion";
}

// Nobody gets a mode that he did not ask for or excluded.
static const char *check_modes(const struct workload *w, const struct eng_params *p, const struct answer *a)
{
    const struct eng_request_stats *st = &a->stats;
    for (int32_t i = 0; i < st->n_spans; i++) {
        if (p->mode != ENG_MODE_AUTO && st->spans[i].mode != p->mode)
            return "was decoded in another mode than it asked for";
        if (p->mode == ENG_MODE_AUTO && st->spans[i].mode == ENG_MODE_DIFFUSION && !may_diffuse(w, p))
            return "was decoded in diffusion, which it does not allow";
    }
    return NULL;
}

static int32_t beginning(const int32_t *a, int32_t n_a, const int32_t *b, int32_t n_b)
{
    int32_t n = 0;
    while (n < n_a && n < n_b && a[n] == b[n])
        n++;
    return n;
}

static bool same_salt(const struct eng_params *a, const struct eng_params *b)
{
    return a->cache_salt && b->cache_salt ? !strcmp(a->cache_salt, b->cache_salt) : a->cache_salt == b->cache_salt;
}

// The prefix cache gave no more than what others of the same salt may have computed.
static const char *check_cached(const struct run *run, int32_t i)
{
    int32_t most = 0, n = run->lengths[i];
    for (int32_t j = 0; j < run->w.n_requests; j++) {
        if (j == i || !same_salt(&run->w.requests[i].params, &run->w.requests[j].params))
            continue;
        int32_t n_prompt = run->lengths[j], shared = beginning(run->prompts[i], n, run->prompts[j], n_prompt);
        if (shared == n_prompt)
            shared += beginning(run->prompts[i] + shared, n - shared, run->got[j].tokens, run->got[j].n_tokens);
        most = shared > most ? shared : most;
    }
    return run->got[i].stats.cached_tokens > most ? "found more in the prefix cache than others of its salt computed"
                                                  : NULL;
}

static const char *check_request(const struct run *run, int32_t i)
{
    const struct eng_params *p = &run->w.requests[i].params;
    const struct answer *got = &run->got[i];
    const char *wrong = check_modes(&run->w, p, got);
    wrong = wrong ? wrong : check_cached(run, i);
    if (wrong)
        return wrong;
    if (got->n_finishes != 1)
        return "has not exactly one end";
    if (got->finish == ENG_FINISH_ERROR && !run->w.fake.full_at_step)
        return got->error;
    if (may_diffuse(&run->w, p))
        return compare_auto(run, i);
    return compare(got, &run->alone[i], p->mode == ENG_MODE_AR || p->mode == ENG_MODE_DIFFUSION);
}

static void check_all(const struct run *run, const struct eng_stats *st)
{
    int32_t n_wrong = 0;
    for (int32_t i = 0; i < run->w.n_requests; i++) {
        const struct answer *got = &run->got[i], *alone = &run->alone[i];
        const char *wrong = check_request(run, i);
        if (wrong)
            print_error("seed %llu, request %d (%s): %s: %d tokens, finish %d, %d passes; alone %d, %d, %d\n",
                        (unsigned long long)run->w.seed, i, eng_mode_name(run->w.requests[i].params.mode), wrong,
                        got->n_tokens, (int)got->finish, got->stats.forward_passes, alone->n_tokens, (int)alone->finish,
                        alone->stats.forward_passes);
        n_wrong += wrong != NULL;
        total.cancelled += got->finish == ENG_FINISH_CANCELLED;
        total.timed_out += got->finish == ENG_FINISH_TIMEOUT;
        total.refused += got->finish == ENG_FINISH_ERROR;
        total.switches += (uint64_t)got->stats.switches;
        total.preemptions += (uint64_t)got->stats.preemptions;
    }
    assert_int_equal(n_wrong, 0);
    client_check_sums(run->got, run->w.n_requests, st);
    total.found += st->prefix_hits;
    total.requests += (uint64_t)run->w.n_requests;
    total.workloads++;
}

static void run_workload(uint64_t seed)
{
    struct run run = {0};
    struct eng_stats st;
    workload_make(&run.w, seed, &vocab, &pool);
    size_t n = (size_t)run.w.n_requests;
    run.n_vocab = args.model ? vocab.n_vocab : run.w.fake.n_vocab;
    run.prompts = calloc(n, sizeof *run.prompts);
    run.lengths = calloc(n, sizeof *run.lengths);
    run.alone = calloc(n, sizeof *run.alone);
    run.got = calloc(n, sizeof *run.got);
    run_all_alone(&run);
    run_together(&run, &st);
    check_all(&run, &st);
    for (size_t i = 0; i < n; i++) {
        answer_free(&run.alone[i]);
        answer_free(&run.got[i]);
    }
    free(run.prompts);
    free(run.lengths);
    free(run.alone);
    free(run.got);
    workload_done(&run.w);
}

// ---- all of them ----------------------------------------------------------------------------------------------------

static void test_every_text_equals_the_text_alone(void **state)
{
    (void)state;
    int64_t shown_ns = eng_now_ns();
    for (int64_t i = 0; i < args.n_workloads; i++) {
        uint64_t seed = args.first_seed + (uint64_t)i;
        snprintf(again, sizeof again, "to run it again: check_invariance --workloads 1 --seed %llu%s%s\n",
                 (unsigned long long)seed, args.model ? " --model " : "", args.model ? args.model : "");
        run_workload(seed);
        if (eng_now_ns() - shown_ns > 5000000000) {
            shown_ns = eng_now_ns();
            fprintf(stderr, "%lld of %lld workloads, %llu requests\n", (long long)i + 1, (long long)args.n_workloads,
                    (unsigned long long)total.requests);
        }
    }
    again[0] = '\0';
    // A run of some size that met none of these would prove nothing of them.
    if (args.n_workloads >= 50)
        assert_true(total.preemptions && total.cancelled && total.timed_out && total.found && total.switches);
    if (args.n_workloads >= 50 && !args.model)
        assert_true(total.ahead && total.refused);
}

static int tell_seed(void **state)
{
    (void)state;
    fputs(again, stderr);
    return 0;
}

// An assertion of the engine.
static void on_abort(int number)
{
    (void)number;
    if (write(STDERR_FILENO, again, strlen(again)) < 0)
        _exit(3);
}

// What the real model was trained for, so that its drafts are good.
static void fill_pool_with_chats(void)
{
    struct client c;
    struct workload w = {.options = client_options(), .max_context = WORKLOAD_CONTEXT};
    open_real(&c, &w, w.options, WORKLOAD_CONTEXT);
    FILE *f = fopen(heldout, "rb");
    assert_non_null(f);
    for (; pool.n < WORKLOAD_POOL; pool.n++) {
        pool.lengths[pool.n] = client_chat_prompt(c.engine, f, pool.ids[pool.n], WORKLOAD_CONTEXT);
        assert_true(pool.lengths[pool.n] > 0);
    }
    fclose(f);
    vocab.n_vocab = eng_info(c.engine)->n_vocab;
    client_close(&c);
}

static void fill_pool(void)
{
    uint64_t random = 1;
    for (; pool.n < WORKLOAD_POOL; pool.n++) {
        pool.lengths[pool.n] = WORKLOAD_CONTEXT;
        for (int32_t k = 0; k < WORKLOAD_CONTEXT; k++)
            pool.ids[pool.n][k] = (int32_t)(test_random(&random) & 0xffff);
    }
}

static int set_up(void **state)
{
    (void)state;
    char err[300] = "";
    if (args.model) {
        if (eng_config_load(args.model, &shape, err, sizeof err))
            fail_msg("%s", err);
        fill_pool_with_chats();
        return 0;
    }
    if (eng_tokenizer_load(byte_tokenizer, &tokenizer, err, sizeof err))
        fail_msg("%s", err);
    vocab.tokenizer_vocab = eng_tokenizer_n_vocab(tokenizer);
    vocab.letters = BYTE_IDS + 'a';
    fill_pool();
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    eng_tokenizer_free(tokenizer);
    return 0;
}

static void parse_arguments(int argc, char **argv)
{
    static const struct option options[] = {{"workloads", required_argument, NULL, 'w'},
                                            {"seed", required_argument, NULL, 's'},
                                            {"model", required_argument, NULL, 'm'},
                                            {NULL, 0, NULL, 0}};
    for (int o; (o = getopt_long(argc, argv, "", options, NULL)) >= 0;) {
        char *end = "";
        if (o == 'w')
            args.n_workloads = strtoll(optarg, &end, 10);
        else if (o == 's')
            args.first_seed = strtoull(optarg, &end, 10);
        else if (o == 'm')
            args.model = optarg;
        if (o == '?' || *end || args.n_workloads < 1 || args.first_seed < 1) {
            fprintf(stderr, "usage: check_invariance [--workloads N] [--seed S] [--model DIR]\n");
            exit(2);
        }
    }
}

int main(int argc, char **argv)
{
    parse_arguments(argc, argv);
    signal(SIGABRT, on_abort);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_every_text_equals_the_text_alone, tell_seed),
    };
    int n_failed = cmocka_run_group_tests(tests, set_up, tear_down);
    fprintf(stderr,
            "%s: %llu workloads, %llu requests, %llu tokens compared (%llu requests only up to their first block of "
            "diffusion), %llu preemptions, %llu cancelled, %llu timed out, %llu refused, %llu tokens from the prefix "
            "cache, %llu mode switches, %llu passes ahead, %d failures\n",
            args.model ? args.model : "fake model", (unsigned long long)total.workloads,
            (unsigned long long)total.requests, (unsigned long long)total.tokens, (unsigned long long)total.left_out,
            (unsigned long long)total.preemptions, (unsigned long long)total.cancelled,
            (unsigned long long)total.timed_out, (unsigned long long)total.refused, (unsigned long long)total.found,
            (unsigned long long)total.switches, (unsigned long long)total.ahead, n_failed);
    return n_failed;
}
