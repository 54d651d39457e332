// engine/request.c
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include <math.h>

#include "base/err.h"
#include "request.h"

static const int32_t eos[] = {11, 12};
static const struct eng_request_limits limits = {
    .n_vocab = 50, .max_context = 100, .eos_ids = eos, .n_eos = 2, .modes = 15, .block_length = 32, .threshold = 0.8f};
static const int32_t prompt[100] = {1, 2, 3};

// The field that is refused, or "" when all is well.
static const char *refused(struct eng_params p)
{
    struct eng_request *r;
    const char *param = "?";
    char err[200] = "";
    int rc = eng_request_make(&limits, &p, prompt, 3, &r, &param, err, sizeof err);
    if (!rc) {
        eng_request_free(r);
        return "";
    }
    assert_int_equal(rc, ENG_EINVAL);
    assert_true(strlen(err) > 10);
    return param;
}

#define REFUSED(name, ...)                          \
    do {                                            \
        struct eng_params p = eng_params_default(); \
        __VA_ARGS__;                                \
        assert_string_equal(refused(p), name);      \
    } while (0)

static void test_ranges_are_checked_and_named(void **state)
{
    (void)state;
    REFUSED("", (void)p);
    REFUSED("max_tokens", p.max_tokens = -1);
    REFUSED("", p.max_tokens = 0);
    REFUSED("min_tokens", p.min_tokens = 17);
    REFUSED("min_tokens", p.min_tokens = -1);
    REFUSED("temperature", p.temperature = 2.01f);
    REFUSED("temperature", p.temperature = -0.1f);
    REFUSED("temperature", p.temperature = NAN);
    REFUSED("temperature", p.temperature = INFINITY);
    REFUSED("top_k", p.top_k = -1);
    REFUSED("top_p", p.top_p = 0);
    REFUSED("top_p", p.top_p = NAN);
    REFUSED("min_p", p.min_p = 1.1f);
    REFUSED("repetition_penalty", p.repetition_penalty = 0);
    REFUSED("repetition_penalty", p.repetition_penalty = INFINITY);
    REFUSED("frequency_penalty", p.frequency_penalty = 2.1f);
    REFUSED("presence_penalty", p.presence_penalty = -2.1f);
    REFUSED("block_length", p.block_length = 5);
    REFUSED("block_length", p.block_length = 128);
    REFUSED("top_logprobs", p.n_top = 21);
    REFUSED("top_logprobs", p.n_top = -2);
    REFUSED("timeout_ms", p.timeout_ms = -1);
    REFUSED("timeout_ms", p.timeout_ms = INT64_MAX);
    REFUSED("mode", p.mode = ENG_N_MODES);
    REFUSED("threshold", p.threshold = 1.1f);
    REFUSED("steps", p.steps = -1);
    REFUSED("steps", p.steps = 65);
    REFUSED("commit_policy", p.commit_policy = ENG_N_COMMIT);
}

static void test_combinations_that_make_no_sense_are_refused(void **state)
{
    (void)state;
    REFUSED("threshold", p.mode = ENG_MODE_AR, p.threshold = 0.5f);
    REFUSED("steps", p.mode = ENG_MODE_SELF_SPECULATION, p.steps = 3);
    REFUSED("commit_policy", p.mode = ENG_MODE_AR, p.commit_policy = ENG_COMMIT_LEFTMOST);
    REFUSED("", p.mode = ENG_MODE_DIFFUSION, p.threshold = 0.5f);
    REFUSED("", p.threshold = 0.5f); // auto may become diffusion
    REFUSED("steps", p.mode = ENG_MODE_DIFFUSION, p.threshold = 0.5f, p.steps = 3);
    REFUSED("commit_policy", p.mode = ENG_MODE_DIFFUSION, p.commit_policy = ENG_COMMIT_SCHEDULE);
    REFUSED("", p.mode = ENG_MODE_DIFFUSION, p.commit_policy = ENG_COMMIT_SCHEDULE, p.steps = 4);
    REFUSED("threshold", p.mode = ENG_MODE_DIFFUSION, p.commit_policy = ENG_COMMIT_LEFTMOST, p.threshold = 0.5f);
    REFUSED("lossless", p.mode = ENG_MODE_DIFFUSION, p.lossless = true);
    REFUSED("lossless", p.allow_diffusion = true, p.lossless = true);
}

static void test_lists_are_checked(void **state)
{
    (void)state;
    int32_t ids[] = {3, 50};
    const char *strings[] = {"a", ""}, *not_utf8[] = {"a\xff"};
    struct eng_logit_bias biases[] = {{3, 1}, {4, 101}}, unknown[] = {{-1, 1}}, nan[] = {{1, NAN}};
    REFUSED("stop_token_ids", p.stop_ids = ids, p.n_stop_ids = 2);
    REFUSED("", p.stop_ids = ids, p.n_stop_ids = 1);
    REFUSED("stop", p.stops = strings, p.n_stops = 2);
    REFUSED("stop", p.stops = not_utf8, p.n_stops = 1);
    REFUSED("", p.stops = strings, p.n_stops = 1);
    REFUSED("logit_bias", p.biases = biases, p.n_biases = 2);
    REFUSED("logit_bias", p.biases = unknown, p.n_biases = 1);
    REFUSED("logit_bias", p.biases = nan, p.n_biases = 1);
    REFUSED("", p.biases = biases, p.n_biases = 1);
}

static void test_the_prompt_must_fit_and_be_known(void **state)
{
    (void)state;
    struct eng_params p = eng_params_default();
    struct eng_request *r;
    const char *param;
    int32_t unknown[] = {1, 50};
    assert_int_equal(eng_request_make(&limits, &p, prompt, 0, &r, &param, NULL, 0), ENG_EINVAL);
    assert_string_equal(param, "prompt");
    assert_int_equal(eng_request_make(&limits, &p, prompt, 100, &r, &param, NULL, 0), ENG_EINVAL);
    assert_int_equal(eng_request_make(&limits, &p, unknown, 2, &r, &param, NULL, 0), ENG_EINVAL);
    assert_int_equal(eng_request_make(&limits, &p, prompt, 99, &r, NULL, NULL, 0), 0);
    assert_int_equal(r->seq.limit, 100);
    eng_request_free(r);
}

static void test_everything_is_copied(void **state)
{
    (void)state;
    int32_t ids[] = {3}, mine[] = {7, 8};
    char text[] = "stop", salt[] = "salt";
    const char *strings[] = {text, "b"};
    struct eng_logit_bias biases[] = {{3, 1.5f}};
    struct eng_params p = eng_params_default();
    struct eng_request *r;
    p.stop_ids = ids;
    p.n_stop_ids = 1;
    p.stops = strings;
    p.n_stops = 2;
    p.biases = biases;
    p.n_biases = 1;
    p.cache_salt = salt;
    assert_int_equal(eng_request_make(&limits, &p, mine, 2, &r, NULL, NULL, 0), 0);
    ids[0] = mine[0] = biases[0].token = 0;
    text[0] = salt[0] = 'x';
    strings[1] = NULL;
    assert_int_equal(r->prompt[0], 7);
    assert_int_equal(r->params.stop_ids[0], 3);
    assert_string_equal(r->params.stops[0], "stop");
    assert_string_equal(r->params.stops[1], "b");
    assert_string_equal(r->params.cache_salt, "salt");
    assert_int_equal(r->biases[0].token, 3);
    assert_int_equal(r->params.block_length, 32);
    assert_true(r->params.threshold == 0.8f);
    eng_request_free(r);
    eng_request_free(NULL);
}

static bool allows(const uint32_t *bits, int32_t id)
{
    return !bits || bits[id / 32] >> id % 32 & 1;
}

static void test_end_ids_and_what_is_allowed_when(void **state)
{
    (void)state;
    struct eng_params p = eng_params_default();
    struct eng_request *r;
    int32_t ids[] = {40, 12};
    p.stop_ids = ids;
    p.n_stop_ids = 2;
    p.min_tokens = 3;
    p.ignore_eos = true;
    assert_int_equal(eng_request_make(&limits, &p, prompt, 3, &r, NULL, NULL, 0), 0);
    assert_int_equal(r->n_end_ids, 2);
    assert_false(allows(r->allowed_early, 40) || allows(r->allowed_early, 11) || allows(r->allowed_early, 12));
    assert_true(allows(r->allowed_early, 10) && allows(r->allowed_early, 49));
    // ignore_eos forbids end of text, but not an id that the client named itself.
    assert_false(allows(r->allowed, 11));
    assert_true(allows(r->allowed, 12) && allows(r->allowed, 40));
    eng_request_free(r);
    p = eng_params_default();
    assert_int_equal(eng_request_make(&limits, &p, prompt, 3, &r, NULL, NULL, 0), 0);
    assert_null(r->allowed);
    assert_null(r->allowed_early);
    assert_int_equal(r->n_end_ids, 2);
    eng_request_free(r);
}

static void test_names(void **state)
{
    (void)state;
    for (enum eng_mode m = 0; m < ENG_N_MODES; m++)
        assert_int_equal(eng_mode_parse(eng_mode_name(m)), m);
    for (enum eng_commit_policy c = 0; c < ENG_N_COMMIT; c++)
        assert_int_equal(eng_commit_policy_parse(eng_commit_policy_name(c)), c);
    assert_int_equal(eng_mode_parse("AR"), -1);
    assert_int_equal(eng_commit_policy_parse(""), -1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ranges_are_checked_and_named),
        cmocka_unit_test(test_combinations_that_make_no_sense_are_refused),
        cmocka_unit_test(test_lists_are_checked),
        cmocka_unit_test(test_the_prompt_must_fit_and_be_known),
        cmocka_unit_test(test_everything_is_copied),
        cmocka_unit_test(test_end_ids_and_what_is_allowed_when),
        cmocka_unit_test(test_names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
