// server/api_params.c: ranges, forms and defaults of the fields that reach the engine, without a socket.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "api_common.h"

static struct srv_config config;
static struct eng_info info = {.n_vocab = 258, .max_context = 512};
static struct srv_server server = {.config = &config, .info = &info};
static struct srv_exchange x = {.server = &server};
static struct srv_gen *g; // of the last parse
static struct srv_error e;

static int setup(void **state)
{
    (void)state;
    config = (struct srv_config){.mode = "auto", .request_timeout = 600};
    info.modes = 1u << ENG_MODE_AR | 1u << ENG_MODE_DIFFUSION | 1u << ENG_MODE_SELF_SPECULATION;
    info.has_adapter = true;
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    srv_gen_free(g);
    srv_buf_free(&x.body);
    g = NULL;
    return 0;
}

static int parse(bool chat, const char *fields)
{
    teardown(NULL);
    e = (struct srv_error){0};
    g = calloc(1, sizeof *g);
    g->server = &server;
    g->chat = chat;
    g->params = (struct eng_params){.n_top = -1, .skip_special = true};
    srv_buf_printf(&x.body, "{%s}", fields);
    if (srv_json_parse(x.body.data, x.body.len, &g->body, &e))
        fail_msg("%s: %s", fields, e.message);
    return srv_api_params(&x, g, &e);
}

static void take(bool chat, const char *fields)
{
    if (parse(chat, fields))
        fail_msg("%s: %s", fields, e.message);
}

static void refuse(bool chat, const char *fields, const char *param, const char *says)
{
    if (!parse(chat, fields))
        fail_msg("accepted: %s", fields);
    assert_int_equal(e.status, 400);
    assert_string_equal(e.param, param);
    if (!strstr(e.message, says))
        fail_msg("%s: %s", fields, e.message);
}

static void test_drafts_are_for_streams(void **state)
{
    (void)state;
    for (int chat = 0; chat < 2; chat++) {
        take(chat, "\"stream\":true");
        assert_false(g->params.stream_draft);
        take(chat, "\"stream\":true,\"stream_draft\":true");
        assert_true(g->params.stream_draft);
        take(chat, "\"stream_draft\":false");
        assert_false(g->params.stream_draft);
        refuse(chat, "\"stream_draft\":true", "stream_draft", "'stream'");
        refuse(chat, "\"stream\":false,\"stream_draft\":true", "stream_draft", "'stream'");
        refuse(chat, "\"stream\":true,\"stream_draft\":1", "stream_draft", "boolean");
    }
}

static void test_null_is_as_good_as_absent(void **state)
{
    (void)state;
    static const char *const bodies[] = {
        "", "\"temperature\":null,\"top_p\":null,\"top_k\":null,\"min_p\":null,\"repetition_penalty\":null,\"n\":null,"
            "\"seed\":null,\"presence_penalty\":null,\"stop\":null,\"stop_token_ids\":null,\"logit_bias\":null,"
            "\"mode\":null,\"stream\":null,\"stream_options\":null,\"max_tokens\":null,\"logprobs\":null,"
            "\"block_length\":null,\"threshold\":null,\"steps\":null,\"commit_policy\":null,\"lossless\":null,"
            "\"timeout_ms\":null,\"min_tokens\":null"};
    for (int i = 0; i < 4; i++) {
        take(i % 2, bodies[i / 2]);
        const struct eng_params *p = &g->params;
        assert_true(p->temperature == 1 && p->top_p == 1 && p->repetition_penalty == 1 && p->n_top == -1);
        assert_true(p->mode == ENG_MODE_AUTO && !p->lossless && !p->allow_diffusion);
        assert_true(p->threshold == 0 && p->steps == 0 && p->block_length == 0 && p->timeout_ms == 600000);
        assert_true(g->n == 1 && g->max_tokens == -1 && !g->stream && !p->mode_by_default);
    }
}

// Both ends of the ranges.
static void test_ends_of_ranges(void **state)
{
    (void)state;
    take(true,
         "\"temperature\":2,\"presence_penalty\":2,\"frequency_penalty\":-2,\"min_p\":1,\"top_k\":2147483647,"
         "\"n\":128,\"logprobs\":true,\"top_logprobs\":20,\"repetition_penalty\":100,\"steps\":64,\"block_length\":64");
    assert_true(g->params.top_k == INT32_MAX && g->n == 128 && g->params.n_top == 20 && g->params.block_length == 64);
    take(true, "\"temperature\":0,\"top_k\":-1,\"logprobs\":true,\"block_length\":4,\"threshold\":1,\"min_tokens\":0");
    assert_true(g->params.temperature == 0 && g->params.top_k == 0 && g->params.n_top == 0);
    take(false, "\"max_tokens\":0,\"logprobs\":20,\"min_tokens\":0");
    assert_true(g->max_tokens == 0 && g->params.n_top == 20);
    take(true, "\"min_tokens\":7,\"max_tokens\":7");
    refuse(true, "\"top_k\":-2", "top_k", "not between");
    refuse(true, "\"top_k\":2147483648", "top_k", "not between");
    refuse(true, "\"temperature\":2.0000001", "temperature", "at most 2");
    refuse(true, "\"temperature\":-1e-9", "temperature", "at least 0");
    refuse(true, "\"repetition_penalty\":0", "repetition_penalty", "above 0");
    refuse(true, "\"threshold\":1.0001", "threshold", "at most 1");
    refuse(false, "\"logprobs\":21", "logprobs", "not between");
    refuse(false, "\"logprobs\":true", "logprobs", "a boolean");
    refuse(true, "\"logprobs\":1", "logprobs", "an integer");
    refuse(true, "\"max_completion_tokens\":0", "max_completion_tokens", "not between");
    refuse(true, "\"max_tokens\":1e300", "max_tokens", "not between");
    refuse(true, "\"min_tokens\":9,\"max_tokens\":99,\"max_completion_tokens\":8", "min_tokens",
           "9 is more than the 8");
}

// Symptom: a positive number below the smallest float became 0, which the engine refuses or reads as its default.
static void test_tiny_numbers_stay_positive(void **state)
{
    (void)state;
    static const char *const tiny[] = {"\"top_p\":0", "\"top_p\":1e-60", "\"top_p\":1e-300"};
    for (int i = 0; i < 3; i++) {
        take(true, tiny[i]);
        assert_true(g->params.top_p > 0 && g->params.top_p < 1e-6f);
    }
    take(true, "\"threshold\":1e-60,\"repetition_penalty\":1e-60");
    assert_true(g->params.threshold > 0 && g->params.threshold < 1e-6f);
    assert_true(g->params.repetition_penalty > 0);
}

static void test_time_limits_are_the_smaller_of_two(void **state)
{
    (void)state;
    take(true, "\"timeout_ms\":5");
    assert_int_equal(g->params.timeout_ms, 5);
    take(true, "\"timeout_ms\":700000");
    assert_int_equal(g->params.timeout_ms, 600000);
    config.request_timeout = 0;
    take(true, "\"timeout_ms\":700000");
    assert_int_equal(g->params.timeout_ms, 700000);
    take(true, "");
    assert_int_equal(g->params.timeout_ms, 0);
    refuse(true, "\"timeout_ms\":0", "timeout_ms", "not between");
}

static void test_seeds(void **state)
{
    (void)state;
    take(true, "\"seed\":-9223372036854775808");
    assert_true(g->params.seed == (uint64_t)INT64_MIN);
    take(true, "\"s\\u0065ed\":42");
    assert_true(g->params.seed == 42);
    refuse(true, "\"s\\u0065ed\":1.5", "seed", "an integer");
    refuse(true, "\"seed\":true", "seed", "an integer");
    take(true, "");
    uint64_t one = g->params.seed;
    take(true, "");
    assert_true(one != g->params.seed);
}

static void test_stops(void **state)
{
    (void)state;
    char fields[8000] = "\"stop\":[\"\\n\"";
    take(true, "\"stop\":\"END\"");
    assert_true(g->params.n_stops == 1 && !strcmp(g->params.stops[0], "END"));
    take(true, "\"stop\":[]");
    assert_true(g->params.n_stops == 0);
    refuse(true, "\"stop\":[\"a\",null]", "stop", "'stop[1]': expected a string, but got null");
    refuse(true, "\"stop\":[\"a\",\"\"]", "stop", "'stop[1]': 1 to 1024 bytes");
    for (int i = 1; i < 64; i++)
        strcat(fields, ",\"x\"");
    strcat(fields, "]");
    take(true, fields);
    assert_int_equal(g->params.n_stops, 64);
    strcpy(strrchr(fields, ']'), ",\"x\"]");
    refuse(true, fields, "stop", "at most 64");
    for (size_t n = 1024; n <= 1025; n++) {
        snprintf(fields, sizeof fields, "\"stop\":\"%0*d\"", (int)n, 0);
        assert_int_equal(parse(true, fields), n == 1024 ? 0 : -1);
    }
    take(true, "\"stop_token_ids\":[0,257]");
    assert_true(g->params.n_stop_ids == 2 && g->params.stop_ids[1] == 257);
    refuse(true, "\"stop_token_ids\":[1,-1]", "stop_token_ids",
           "'stop_token_ids[1]': expected a token id from 0 to 257");
    refuse(true, "\"stop_token_ids\":[1.5]", "stop_token_ids", "stop_token_ids[0]");
    refuse(true, "\"stop_token_ids\":[\"1\"]", "stop_token_ids", "stop_token_ids[0]");
    refuse(true, "\"stop_token_ids\":{\"0\":1}", "stop_token_ids", "must be an array");
}

static void test_biases(void **state)
{
    (void)state;
    take(true, "\"logit_bias\":{\"0\":-100,\"257\":99.5}");
    assert_int_equal(g->params.n_biases, 2);
    assert_true(g->params.biases[1].token == 257 && g->params.biases[1].bias == 99.5f);
    take(true, "\"logit_bias\":{}");
    assert_int_equal(g->params.n_biases, 0);
    static const char *const bad[] = {
        "\"\":1",    "\"258\":1",   "\"-1\":1",   "\"1x\":1",   "\"99999999999999999999\":1",
        "\"1.0\":1", "\"1\":\"1\"", "\"1\":null", "\"1\":true", "\"1\":-100.01"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char fields[96];
        snprintf(fields, sizeof fields, "\"logit_bias\":{%s}", bad[i]);
        refuse(true, fields, "logit_bias", "logit_bias");
    }
    refuse(true, "\"logit_bias\":[1]", "logit_bias", "an array");
}

static void test_stream_options(void **state)
{
    (void)state;
    take(true, "\"stream\":true,\"stream_options\":{\"include_usage\":true,\"continuous_usage_stats\":true}");
    assert_true(g->stream && g->include_usage && g->continuous_usage);
    take(true, "\"stream\":true,\"stream_options\":{\"continuous_usage_stats\":true,\"include_obfuscation\":false}");
    assert_true(!g->include_usage && !g->continuous_usage);
    refuse(true, "\"stream\":1", "stream", "a boolean");
    refuse(true, "\"stream\":true,\"stream_options\":true", "stream_options", "an object");
    refuse(true, "\"stream\":true,\"stream_options\":{\"include_usage\":\"yes\"}", "stream_options.include_usage",
           "a boolean");
}

static void test_modes_and_what_may_come_with_them(void **state)
{
    (void)state;
    take(true, "\"threshold\":0.5,\"steps\":4,\"commit_policy\":\"schedule\"");
    assert_true(g->params.steps == 4 && g->params.commit_policy == ENG_COMMIT_SCHEDULE);
    take(true, "\"lossless\":false");
    assert_true(g->params.allow_diffusion && !g->params.lossless);
    take(true, "\"lossless\":true");
    assert_true(!g->params.allow_diffusion && g->params.lossless);
    config.mode = "diffusion";
    take(true, "");
    assert_true(g->params.mode == ENG_MODE_DIFFUSION && g->params.mode_by_default);
    take(true, "\"lossless\":true"); // the request's wish beats the server's default
    assert_true(g->params.mode == ENG_MODE_AUTO && !g->params.mode_by_default);
    take(true, "\"mode\":\"auto\"");
    assert_true(g->params.mode == ENG_MODE_AUTO);
    take(true, "\"mode\":\"ar\"");
    assert_true(g->params.mode == ENG_MODE_AR && !g->params.mode_by_default);
    refuse(true, "\"mode\":\"AR\"", "mode", "'AR'; allowed are auto");
    refuse(true, "\"block_length\":24", "block_length", "24; allowed are 4, 8, 16, 32 and 64");
    info.modes = 1u << ENG_MODE_AR;
    info.has_adapter = false;
    refuse(true, "\"mode\":\"self_speculation\"", "mode",
           "self_speculation without its draft adapter; it has auto, ar.");
    refuse(true, "\"mode\":\"diffusion\"", "mode", "cannot decode with diffusion; it has auto, ar.");
    assert_string_equal(e.code, "unsupported_value");
}

static void test_a_priority_is_a_small_integer_and_a_key_is_a_tenant(void **state)
{
    (void)state;
    for (int chat = 0; chat < 2; chat++) {
        x.key = 0;
        take(chat, "");
        assert_true(g->params.priority == 0 && g->params.tenant == 0);
        x.key = 3;
        take(chat, "\"priority\":-1000");
        assert_true(g->params.priority == -1000 && g->params.tenant == 3);
        x.key = ENG_MAX_TENANTS + 5; // more keys than tenants: some share one
        take(chat, "\"priority\":1000");
        assert_true(g->params.priority == 1000 && g->params.tenant == 5);
        refuse(chat, "\"priority\":1001", "priority", "not between -1000 and 1000");
        refuse(chat, "\"priority\":-1001", "priority", "not between -1000 and 1000");
        refuse(chat, "\"priority\":1.5", "priority", "expected an integer");
        refuse(chat, "\"priority\":\"1\"", "priority", "expected an integer");
    }
    x.key = 0;
}

static void test_the_cache_salt_is_a_text_that_is_not_empty(void **state)
{
    (void)state;
    for (int chat = 0; chat < 2; chat++) {
        take(chat, "\"cache_salt\":\"tenant 7\"");
        assert_string_equal(g->params.cache_salt, "tenant 7");
        take(chat, "\"cache_salt\":null");
        assert_null(g->params.cache_salt);
        refuse(chat, "\"cache_salt\":\"\"", "cache_salt", "1 to 1024 bytes");
        refuse(chat, "\"cache_salt\":7", "cache_salt", "expected a string");
        char fields[1200] = "\"cache_salt\":\"";
        memset(fields + strlen(fields), 's', 1025);
        strcat(fields, "\"");
        refuse(chat, fields, "cache_salt", "1 to 1024 bytes");
    }
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(test_drafts_are_for_streams),
        T(test_null_is_as_good_as_absent),
        T(test_ends_of_ranges),
        T(test_tiny_numbers_stay_positive),
        T(test_time_limits_are_the_smaller_of_two),
        T(test_seeds),
        T(test_stops),
        T(test_biases),
        T(test_stream_options),
        T(test_modes_and_what_may_come_with_them),
        T(test_a_priority_is_a_small_integer_and_a_key_is_a_tenant),
        T(test_the_cache_salt_is_a_text_that_is_not_empty),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
