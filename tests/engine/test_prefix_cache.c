// The prefix cache in the whole engine, on the fake model: what it finds, what it never finds, and that no text ever
// tells whether it is on. The model checks every read of every pass.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "client.h"

enum { N = 80, CONTEXT = 200 };

// Tokens in front of the prompts; two families that differ in the first token only, so that a mix-up is certain to be
// seen in the text.
static void family(int32_t *prompt, int32_t n, int which)
{
    for (int32_t i = 0; i < n; i++)
        prompt[i] = 10 + i % 80;
    prompt[0] = which;
}

static struct eng_params params(enum eng_mode mode, int32_t max_tokens)
{
    struct eng_params p = eng_params_default();
    p.mode = mode;
    p.max_tokens = max_tokens;
    p.block_length = 8;
    return p;
}

// One request to its end. Returns its cached tokens.
static int32_t ask(struct client *c, struct answer *a, const struct eng_params *p, const int32_t *prompt, int32_t n)
{
    client_submit(c, a, p, prompt, (size_t)n);
    client_wait(c);
    return a->stats.cached_tokens;
}

// Conversations: each asks, then asks again with its prompt, the answer and something new. Mixed modes and company.
struct chat {
    int32_t prompt[CONTEXT], n_prompt;
    struct eng_params params;
    struct answer first, second;
};

static void make_chats(struct chat *chats, uint64_t *random)
{
    for (int i = 0; i < N; i++) {
        struct chat *ch = &chats[i];
        memset(ch, 0, sizeof *ch);
        ch->n_prompt = 1 + (int32_t)(test_random(random) % 60);
        family(ch->prompt, ch->n_prompt, (int)(test_random(random) % 3));
        if (test_random(random) % 2) // some leave the family at a point of their own
            ch->prompt[test_random(random) % (uint32_t)ch->n_prompt] = (int32_t)(test_random(random) % 97);
        ch->params =
            params((enum eng_mode)(test_random(random) % ENG_N_MODES), 1 + (int32_t)(test_random(random) % 50));
        ch->params.block_length = 4 << test_random(random) % 5;
        ch->params.temperature = test_random(random) % 2 ? 0.9f : 0;
        ch->params.seed = test_random(random);
        ch->params.cache_salt = test_random(random) % 4 ? NULL : "tenant";
        if (test_random(random) % 4 == 0)
            ch->params.presence_penalty = 0.5f;
    }
}

static void run_chats(struct chat *chats, struct fake_model f, struct eng_options o, uint64_t key_mask,
                      struct eng_stats *ret)
{
    struct client c;
    client_open(&c, &f, o, CONTEXT, NULL);
    c.engine->sched.kv.prefix.key_mask = key_mask; // nothing was submitted yet
    for (int i = 0; i < N; i++)
        client_submit(&c, &chats[i].first, &chats[i].params, chats[i].prompt, (size_t)chats[i].n_prompt);
    client_wait(&c);
    for (int i = 0; i < N; i++) {
        int32_t prompt[CONTEXT], n = chats[i].n_prompt;
        const struct answer *a = &chats[i].first;
        memcpy(prompt, chats[i].prompt, (size_t)n * sizeof *prompt);
        for (int32_t k = 0; k < a->n_tokens; k++)
            prompt[n++] = a->tokens[k];
        prompt[n++] = i % 97;
        client_submit(&c, &chats[i].second, &chats[i].params, prompt, (size_t)n);
    }
    client_wait(&c);
    eng_stats(c.engine, ret);
    client_close(&c);
}

static void free_chats(struct chat *chats)
{
    for (int i = 0; i < N; i++) {
        answer_free(&chats[i].first);
        answer_free(&chats[i].second);
    }
}

static void test_text_is_the_same_with_and_without(void **state)
{
    (void)state;
    static const struct {
        int32_t page_size, n_pages, max_sequences;
        uint64_t key_mask;
    } settings[] = {
        {4, 400, 8, ~UINT64_C(0)},
        {1, 300, 8, ~UINT64_C(0)},
        {16, 40, 8, ~UINT64_C(0)},
        {64, 5, 8, ~UINT64_C(0)},
        {4, 50, 8, ~UINT64_C(0)},
        {3, 70, 1, ~UINT64_C(0)},
        {7, 1000, 30, ~UINT64_C(0)},
        {4, 400, 8, 0},
        {4, 50, 8, 1},
        {2, 101, 30, 3},
    };
    static struct chat with[N], without[N];
    uint64_t random = 1, hits = 0;
    for (size_t k = 0; k < sizeof settings / sizeof *settings; k++) {
        struct fake_model f = fake_model_default();
        struct eng_options o = client_options();
        struct eng_stats st;
        make_chats(with, &random);
        memcpy(without, with, sizeof without);
        f.end_id = 11;
        f.end_rate = 0.02;
        f.page_size = settings[k].page_size;
        f.n_pages = settings[k].n_pages;
        o.max_sequences = settings[k].max_sequences;
        run_chats(with, f, o, settings[k].key_mask, &st);
        hits += st.prefix_hits;
        assert_true(st.prefix_hits < st.prefix_queries);
        uint64_t cached = 0, prompts = 0;
        o.prefix_cache = false;
        run_chats(without, f, o, ~UINT64_C(0), &st);
        assert_int_equal(st.prefix_queries, 0);
        for (int i = 0; i < N; i++) {
            if (!answer_equal(&with[i].first, &without[i].first) || !answer_equal(&with[i].second, &without[i].second))
                fail_msg("setting %d: request %d differs", (int)k, i);
            assert_int_equal(without[i].second.stats.cached_tokens, 0);
            cached += (uint64_t)with[i].second.stats.cached_tokens;
            prompts += (uint64_t)with[i].second.stats.prompt_tokens;
        }
        // Where all conversations fit, most of every second turn is there.
        assert_true(settings[k].n_pages * settings[k].page_size < 7000 || cached > prompts / 2);
        free_chats(with);
        free_chats(without);
    }
    assert_true(hits > 1000);
}

// What one mode wrote serves another: all whole pages of prompt and answer but the last token.
static void test_a_second_turn_finds_what_any_mode_wrote(void **state)
{
    (void)state;
    for (enum eng_mode mode = ENG_MODE_AR; mode < ENG_N_MODES; mode++)
        for (enum eng_mode next = ENG_MODE_AR; next < ENG_N_MODES; next++) {
            struct fake_model f = fake_model_default();
            struct client c;
            struct answer first, second;
            int32_t prompt[CONTEXT];
            struct eng_stats st;
            client_open(&c, &f, client_options(), CONTEXT, NULL);
            family(prompt, 30, 1);
            struct eng_params p = params(mode, 41);
            assert_int_equal(ask(&c, &first, &p, prompt, 30), 0);
            memcpy(prompt + 30, first.tokens, 41 * sizeof *prompt);
            prompt[71] = 3;
            p = params(next, 5);
            int32_t cached = ask(&c, &second, &p, prompt, 72);
            // Diffusion seals blocks; what stands in the last one when the limit is met has no causal KV.
            assert_true(mode == ENG_MODE_DIFFUSION ? cached >= 60 : cached == 68);
            eng_stats(c.engine, &st);
            assert_int_equal(st.prefix_queries, 30 + 72);
            assert_int_equal(st.prefix_hits, cached);
            assert_int_equal(st.prompt_tokens, 30 + 72);
            assert_int_equal(st.cached_prompt_tokens, cached);
            assert_int_equal(st.pages_used, 0);
            assert_true(st.pages_cached >= cached / 4);
            assert_int_equal(f.rows[ENG_PASS_PREFILL], 30 + 72 - cached);
            client_close(&c);
            answer_free(&first);
            answer_free(&second);
        }
}

// A hit that left nothing to compute crashed another server (its prompt was a multiple of the page).
static void test_the_last_prompt_token_is_always_computed(void **state)
{
    (void)state;
    for (int32_t n = 1; n < 26; n++) {
        struct fake_model f = fake_model_default();
        struct client c;
        struct answer a[3];
        int32_t prompt[CONTEXT];
        family(prompt, n, 1);
        client_open(&c, &f, client_options(), CONTEXT, NULL);
        struct eng_params p = params(ENG_MODE_AR, 6);
        for (int k = 0; k < 3; k++)
            assert_int_equal(ask(&c, &a[k], &p, prompt, n), k ? (n - 1) / 4 * 4 : 0);
        client_close(&c);
        assert_true(answer_equal(&a[1], &a[0]) && answer_equal(&a[2], &a[0]));
        for (int k = 0; k < 3; k++)
            answer_free(&a[k]);
    }
}

static void test_salts_do_not_find_each_others_pages(void **state)
{
    (void)state;
    struct fake_model f = fake_model_default();
    struct client c;
    struct answer a;
    int32_t prompt[CONTEXT];
    static const char *const salts[] = {NULL, "one", "two"};
    client_open(&c, &f, client_options(), CONTEXT, NULL);
    family(prompt, 50, 1);
    for (int i = 0; i < 6; i++) {
        char copy[8] = "";
        struct eng_params p = params(ENG_MODE_AR, 4);
        p.cache_salt = salts[i % 3] ? strcpy(copy, salts[i % 3]) : NULL; // the request has its own
        client_submit(&c, &a, &p, prompt, 50);
        memset(copy, 'x', sizeof copy - 1);
        client_wait(&c);
        assert_int_equal(a.stats.cached_tokens, i < 3 ? 0 : 48);
        answer_free(&a);
    }
    client_close(&c);
}

// With keys that are all the same, the wrong pages are found by hash at every turn.
static void test_forced_collisions_find_the_right_pages(void **state)
{
    (void)state;
    struct fake_model f = fake_model_default();
    struct client c;
    struct answer a, b;
    int32_t prompt[CONTEXT];
    client_open(&c, &f, client_options(), CONTEXT, NULL);
    c.engine->sched.kv.prefix.key_mask = 0;
    struct eng_params p = params(ENG_MODE_AR, 10);
    family(prompt, 50, 1);
    assert_int_equal(ask(&c, &a, &p, prompt, 50), 0);
    answer_free(&a);
    family(prompt, 50, 2); // every page but the first has the same tokens
    assert_int_equal(ask(&c, &a, &p, prompt, 50), 0);
    assert_int_equal(ask(&c, &b, &p, prompt, 50), 48);
    assert_true(answer_equal(&a, &b));
    answer_free(&a);
    answer_free(&b);
    client_close(&c);
}

// Requests that begin alike and run together come to use the same pages.
static void test_pages_computed_twice_at_once_are_kept_once(void **state)
{
    (void)state;
    struct fake_model f = fake_model_default();
    struct client c;
    struct answer a[8];
    int32_t prompt[CONTEXT];
    struct eng_stats st;
    struct eng_options o = client_options();
    o.max_step_rows = 512;
    client_open(&c, &f, o, CONTEXT, NULL);
    family(prompt, 60, 1);
    struct eng_params p = params(ENG_MODE_AR, 20);
    f.step_us = 2000; // the first step holds the first request alone, the next one all others
    for (int i = 0; i < 8; i++)
        client_submit(&c, &a[i], &p, prompt, 60);
    client_wait(&c);
    eng_stats(c.engine, &st);
    // 79 positions have KV, in whole pages 19.
    assert_int_equal(st.pages_cached, 19);
    assert_true(f.foreign > 0);
    client_close(&c);
    for (int i = 7; i >= 0; i--) {
        assert_true(answer_equal(&a[i], &a[0]));
        answer_free(&a[i]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_text_is_the_same_with_and_without),
        cmocka_unit_test(test_a_second_turn_finds_what_any_mode_wrote),
        cmocka_unit_test(test_the_last_prompt_token_is_always_computed),
        cmocka_unit_test(test_salts_do_not_find_each_others_pages),
        cmocka_unit_test(test_forced_collisions_find_the_right_pages),
        cmocka_unit_test(test_pages_computed_twice_at_once_are_kept_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
