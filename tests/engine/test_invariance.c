// The promise that clients rely on, on a real model and the CPU's arithmetic: text does not depend on how it is
// computed.
//
// AR and self-speculation give the same bytes for any block length, temperature, adapter or company; diffusion and AR
// are not changed by their neighbours, by how prompts are cut, or by what the prefix cache gave.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "client.h"

enum { N_PROMPTS = 200, MAX_PROMPT = 56 };
static int n_prompts = N_PROMPTS;
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
static int n_alone = 12; // one at a time takes longest
#else
static int n_alone = N_PROMPTS;
#endif

static const float temperatures[] = {0, 0.7f, 1.3f};
enum { N_TEMPERATURES = 3 };

// Of keys and values. Text of one type is compared with text of the same.
static const char *kv_type = "auto";

static const char model_dir[] = TRIMODE_SOURCE_DIR "/config/models/nano";
static struct answer truth[N_TEMPERATURES][N_PROMPTS]; // AR, in company
static struct {
    int32_t ids[MAX_PROMPT], n;
} prompts[N_PROMPTS];

static int free_truth(void **state)
{
    (void)state;
    for (int t = 0; t < N_TEMPERATURES; t++)
        for (int i = 0; i < n_prompts; i++)
            answer_free(&truth[t][i]);
    return 0;
}

struct setting {
    enum eng_mode mode;
    int32_t block_length;
    bool adapter;
    int32_t max_sequences, max_step_rows, page_size;
    uint32_t cpu_mask;
};

static void open_engine_with(struct client *c, struct setting s, bool prefix_cache)
{
    char err[300] = "";
    struct eng_options o = eng_options_default();
    o.model_dir = model_dir;
    o.threads = 2;
    o.adapter = s.adapter ? "auto" : "none";
    o.max_sequences = s.max_sequences;
    o.max_step_rows = s.max_step_rows;
    o.page_size = s.page_size;
    o.kv_memory = 128 << 20;
    o.kv_type = kv_type;
    o.cpu_mask = s.cpu_mask;
    o.prefix_cache = prefix_cache;
    if (client_open_dir(c, o, err, sizeof err))
        fail_msg("%s: %s", model_dir, err);
}

static void open_engine(struct client *c, struct setting s)
{
    open_engine_with(c, s, true);
}

// Even prompts are random ids, where drafts are soon rejected; odd ones are what the model was trained for.
static int make_prompts(void **state)
{
    (void)state;
    struct client c;
    open_engine(&c, (struct setting){.max_sequences = 1, .max_step_rows = 64, .page_size = 16, .cpu_mask = ~0u});
    FILE *f = fopen(TRIMODE_SOURCE_DIR "/scripts/train/heldout.jsonl", "rb");
    assert_non_null(f);
    for (int i = 0; i < n_prompts; i++) {
        uint64_t random = (uint64_t)i + 1;
        if (i % 2) {
            prompts[i].n = client_chat_prompt(c.engine, f, prompts[i].ids, MAX_PROMPT);
            assert_true(prompts[i].n > 0);
            continue;
        }
        prompts[i].n = 1 + (int32_t)(test_random(&random) % (MAX_PROMPT - 1));
        for (int32_t k = 0; k < prompts[i].n; k++)
            prompts[i].ids[k] = (int32_t)(test_random(&random) % (uint32_t)eng_info(c.engine)->n_vocab);
    }
    fclose(f);
    client_close(&c);
    return 0;
}

static void submit(struct client *c, struct answer *a, struct setting s, int i, int t)
{
    struct eng_params p = eng_params_default();
    p.mode = s.mode;
    p.block_length = s.block_length;
    p.temperature = temperatures[t];
    p.seed = (uint64_t)i * 77 + (uint64_t)t;
    p.max_tokens = 16 + i % 17;
    if (i % 5 == 4)
        p.frequency_penalty = 0.4f;
    if (s.mode == ENG_MODE_DIFFUSION)
        p.threshold = 0.5f;
    client_submit(c, a, &p, prompts[i].ids, (size_t)prompts[i].n);
}

static void assert_same(const struct answer *got, const struct answer *expected, struct setting s, int i, int t)
{
    if (!answer_equal(got, expected) ||
        (got->n_tokens && memcmp(got->logprobs, expected->logprobs, (size_t)got->n_tokens * sizeof(float))))
        fail_msg("prompt %d at temperature %g: %s with block length %d differs (%d tokens against %d)", i,
                 temperatures[t], eng_mode_name(s.mode), s.block_length, got->n_tokens, expected->n_tokens);
}

// All prompts and temperatures in company; compared with `truth`, or kept there.
static void run_in_company(struct setting s, bool keep)
{
    static struct answer got[N_TEMPERATURES][N_PROMPTS];
    struct client c;
    open_engine_with(&c, s, !keep);
    for (int t = 0; t < N_TEMPERATURES; t++)
        for (int i = 0; i < n_prompts; i++)
            submit(&c, &got[t][i], s, i, t);
    client_close(&c);
    for (int t = 0; t < N_TEMPERATURES; t++)
        for (int i = 0; i < n_prompts; i++) {
            assert_true(got[t][i].finish == ENG_FINISH_LENGTH || got[t][i].finish == ENG_FINISH_STOP);
            if (keep) {
                truth[t][i] = got[t][i];
                continue;
            }
            assert_same(&got[t][i], &truth[t][i], s, i, t);
            answer_free(&got[t][i]);
        }
}

static const struct setting ar = {ENG_MODE_AR, 8, true, 32, 512, 16, ~0u};

static void test_ar_alone_is_ar_in_company(void **state)
{
    (void)state;
    run_in_company(ar, true);
    struct setting alone = ar;
    alone.max_sequences = 1;
    alone.max_step_rows = 64;
    alone.page_size = 3;
    struct client c;
    open_engine(&c, alone);
    for (int t = 0; t < N_TEMPERATURES; t++)
        for (int i = 0; i < n_alone; i++) {
            struct answer a;
            submit(&c, &a, alone, i, t);
            client_wait(&c);
            assert_same(&a, &truth[t][i], alone, i, t);
            answer_free(&a);
        }
    client_close(&c);
}

static void test_ar_does_not_depend_on_how_prompts_are_cut(void **state)
{
    (void)state;
    struct setting s = ar;
    s.max_step_rows = 64; // 32 sequences share them, so prompts come in many pieces
    s.page_size = 1;
    run_in_company(s, false);
}

static void test_self_speculation_is_ar_for_any_block_length(void **state)
{
    (void)state;
    for (int adapter = 0; adapter < 2; adapter++)
        for (int32_t block = 4; block <= 32; block *= 2) {
            struct setting s = {ENG_MODE_SELF_SPECULATION, block, adapter, 32, block == 8 ? 96 : 1024, block, ~0u};
            run_in_company(s, false);
        }
}

static void test_self_speculation_alone_is_ar(void **state)
{
    (void)state;
    for (int adapter = 0; adapter < 2; adapter++)
        for (int32_t block = 4; block <= 64; block *= 2) {
            struct setting s = {ENG_MODE_SELF_SPECULATION, block, adapter, 1, 64, 16, ~0u};
            struct client c;
            open_engine(&c, s);
            for (int t = 0; t < N_TEMPERATURES; t++)
                for (int i = 0; i < n_alone; i++) {
                    struct answer a;
                    submit(&c, &a, s, i, t);
                    client_wait(&c);
                    assert_same(&a, &truth[t][i], s, i, t);
                    answer_free(&a);
                }
            client_close(&c);
        }
}

// Requests of all modes together, each compared with itself alone.
static void test_diffusion_and_ar_are_not_changed_by_neighbours(void **state)
{
    (void)state;
    enum { N = 48 };
    struct setting alone = {ENG_MODE_DIFFUSION, 8, true, 1, 256, 16, ~0u};
    static struct answer before[N], got[N], others[N];
    struct client c;
    open_engine_with(&c, alone, false);
    for (int i = 0; i < N; i++) {
        alone.block_length = 4 << i % 4;
        submit(&c, &before[i], alone, i, i % 3);
    }
    client_close(&c);
    struct setting company = alone;
    company.max_sequences = 32;
    open_engine(&c, company);
    for (int i = 0; i < N; i++) {
        company.mode = ENG_MODE_DIFFUSION;
        company.block_length = 4 << i % 4;
        submit(&c, &got[i], company, i, i % 3);
        company.mode = i % 2 ? ENG_MODE_AR : ENG_MODE_SELF_SPECULATION;
        submit(&c, &others[i], company, i, i % 3);
    }
    client_close(&c);
    for (int i = 0; i < N; i++) {
        alone.block_length = 4 << i % 4;
        assert_same(&got[i], &before[i], alone, i, i % 3);
        assert_int_equal(got[i].stats.forward_passes, before[i].stats.forward_passes);
        assert_same(&others[i], &truth[i % 3][i], company, i, i % 3);
        answer_free(&got[i]);
        answer_free(&before[i]);
        answer_free(&others[i]);
    }
}

// Little more memory than one request may need, for sixteen at once: they are preempted and computed again.
static void test_preemption_does_not_change_text(void **state)
{
    (void)state;
    enum { N = 48 };
    struct client c;
    char err[300] = "";
    struct eng_options o = eng_options_default();
    static struct answer got[N];
    open_engine(&c, ar);
    int64_t page_bytes = (int64_t)4 * eng_info(c.engine)->kv_token_bytes;
    client_close(&c);
    o.model_dir = model_dir;
    o.threads = 2;
    o.page_size = 4;
    o.max_sequences = 16;
    o.max_context = 96;
    o.kv_memory = 40 * page_bytes;
    o.kv_type = kv_type;
    if (client_open_dir(&c, o, err, sizeof err))
        fail_msg("%s", err);
    assert_int_equal(eng_info(c.engine)->n_pages, 40);
    struct setting s = {.block_length = 8};
    for (int i = 0; i < N; i++) {
        s.mode = i % 2 ? ENG_MODE_AR : ENG_MODE_SELF_SPECULATION;
        submit(&c, &got[i], s, i, i % 3);
    }
    client_wait(&c);
    assert_true(c.engine->sched.n_preemptions > 0);
    client_close(&c);
    for (int i = 0; i < N; i++) {
        assert_same(&got[i], &truth[i % 3][i], s, i, i % 3);
        answer_free(&got[i]);
    }
}

static void submit_ids(struct client *c, struct answer *a, const int32_t *ids, int32_t n, enum eng_mode mode,
                       const char *salt)
{
    struct eng_params p = eng_params_default();
    p.mode = mode;
    p.block_length = 8;
    p.temperature = 0.7f;
    p.seed = (uint64_t)n;
    p.max_tokens = 24;
    p.ignore_eos = true;
    p.cache_salt = salt;
    if (mode == ENG_MODE_DIFFUSION)
        p.threshold = 0.5f;
    client_submit(c, a, &p, ids, (size_t)n);
}

// The first turn in one mode, the second, which repeats its prompt and answer, in another; the second once more under a
// salt of its own, where it finds nothing. All second turns of a pair of modes run together.
static void test_a_second_turn_from_the_cache_is_the_text_without_it(void **state)
{
    (void)state;
    enum { N = 12, LONGEST = MAX_PROMPT + 40 };
    struct client c;
    struct setting s = {ENG_MODE_AR, 8, true, 32, 512, 4, ~0u};
    open_engine(&c, s);
    for (enum eng_mode one = ENG_MODE_AR; one < ENG_N_MODES; one++)
        for (enum eng_mode two = ENG_MODE_AR; two < ENG_N_MODES; two++) {
            static struct answer first[N], hit[N], miss[N];
            char salt[8] = {(char)('a' + one), (char)('a' + two)};
            for (int i = 0; i < N; i++)
                submit_ids(&c, &first[i], prompts[i].ids, prompts[i].n, one, salt);
            client_wait(&c);
            for (int i = 0; i < N; i++) {
                int32_t ids[LONGEST], n = prompts[i].n;
                memcpy(ids, prompts[i].ids, (size_t)n * sizeof *ids);
                memcpy(ids + n, first[i].tokens, (size_t)first[i].n_tokens * sizeof *ids);
                n += first[i].n_tokens;
                for (int k = 0; k < 7; k++)
                    ids[n++] = 20 + i + k;
                char own[8] = {'x', (char)('a' + one), (char)('a' + two), (char)('a' + i)};
                submit_ids(&c, &hit[i], ids, n, two, salt);
                submit_ids(&c, &miss[i], ids, n, two, own);
            }
            client_wait(&c);
            for (int i = 0; i < N; i++) {
                int32_t computed = prompts[i].n + first[i].n_tokens;
                assert_int_equal(first[i].n_tokens, 24);
                assert_int_equal(miss[i].stats.cached_tokens, 0);
                // Diffusion seals whole blocks: of its last one there is nothing.
                assert_in_range(hit[i].stats.cached_tokens, computed - (one == ENG_MODE_DIFFUSION ? 12 : 4), computed);
                assert_same(&hit[i], &miss[i], (struct setting){.mode = two, .block_length = 8}, i, 1);
                answer_free(&first[i]);
                answer_free(&hit[i]);
                answer_free(&miss[i]);
            }
        }
    client_close(&c);
}

int main(void)
{
    const char *type = getenv("TRIMODE_TEST_KV_TYPE");
    if (type) {
        kv_type = type;
        n_prompts = 60; // what is not of the type is tested with f32
        n_alone = n_alone < 40 ? n_alone : 40;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ar_alone_is_ar_in_company), // first: it makes the truth
        cmocka_unit_test(test_ar_does_not_depend_on_how_prompts_are_cut),
        cmocka_unit_test(test_self_speculation_is_ar_for_any_block_length),
        cmocka_unit_test(test_self_speculation_alone_is_ar),
        cmocka_unit_test(test_diffusion_and_ar_are_not_changed_by_neighbours),
        cmocka_unit_test(test_preemption_does_not_change_text),
        cmocka_unit_test(test_a_second_turn_from_the_cache_is_the_text_without_it),
    };
    return cmocka_run_group_tests(tests, make_prompts, free_truth);
}
