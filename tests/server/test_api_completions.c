// POST /v1/completions over a socket, on the scripted engine.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <string.h>

#include "client.h"

#define TEXT "/v1/completions"

static struct srv_config config;

static int setup(void **state)
{
    (void)state;
    test_config(&config);
    test_start(&config);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    int status = test_stop();
    srv_config_done(&config);
    return status;
}

static void test_text_prompt_and_default_of_16_tokens(void **state)
{
    (void)state;
    fake.reply = "0123456789abcdefghij";
    cJSON *j = post_json(TEXT, "{\"prompt\":\"Once\"}", 200);
    assert_string_equal(text_at(j, "object"), "text_completion");
    assert_int_equal(strncmp(text_at(j, "id"), "cmpl-", 5), 0);
    assert_string_equal(text_at(j, "choices.0.text"), "0123456789abcdef");
    assert_string_equal(text_at(j, "choices.0.finish_reason"), "length");
    assert_int_equal(number_at(j, "usage.prompt_tokens"), 4);
    assert_int_equal(number_at(j, "usage.completion_tokens"), 16);
    cJSON_Delete(j);
    assert_int_equal(fake_params(0).max_tokens, 16);
}

static void test_every_form_of_prompt(void **state)
{
    (void)state;
    static const struct {
        const char *prompt;
        int choices;
    } cases[] = {{"\"ab\"", 1}, {"[\"ab\"]", 1}, {"[97,98]", 1}, {"[[97,98]]", 1}, {"[\"ab\",[97,98],\"ab\"]", 3}};
    int seen = 0;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char body[128];
        snprintf(body, sizeof body, "{\"prompt\":%s,\"n\":2}", cases[i].prompt);
        cJSON *j = post_json(TEXT, body, 200);
        int n = cJSON_GetArraySize(at(j, "choices"));
        assert_int_equal(n, 2 * cases[i].choices);
        assert_int_equal(number_at(j, "usage.prompt_tokens"), 2 * cases[i].choices);
        for (int k = 0; k < n; k++)
            assert_string_equal(fake_prompt(seen + k), "ab");
        seen += n;
        cJSON_Delete(j);
    }
}

static void test_bad_prompts(void **state)
{
    (void)state;
    static const struct {
        const char *prompt, *param;
    } cases[] = {{"null", "prompt"},         {"5", "prompt"},
                 {"[]", "prompt"},           {"\"\"", "prompt"},
                 {"[97,258]", "prompt"},     {"[97,-1]", "prompt"},
                 {"[97,1.5]", "prompt"},     {"[97,\"a\"]", "prompt"},
                 {"[\"a\",5]", "prompt[1]"}, {"[[97],[999]]", "prompt[1]"},
                 {"{}", "prompt"},           {"[[]]", "prompt"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char body[128];
        snprintf(body, sizeof body, "{\"prompt\":%s}", cases[i].prompt);
        cJSON *j = post_json(TEXT, body, 400);
        assert_string_equal(text_at(j, "error.param"), cases[i].param);
        cJSON_Delete(j);
    }
}

static void test_echo(void **state)
{
    (void)state;
    cJSON *j = post_json(TEXT, "{\"prompt\":[79,110],\"echo\":true,\"max_tokens\":5}", 200);
    assert_string_equal(text_at(j, "choices.0.text"), "OnHello");
    cJSON_Delete(j);
    j = post_json(TEXT, "{\"prompt\":\"Once\",\"echo\":true,\"max_tokens\":0}", 200);
    assert_string_equal(text_at(j, "choices.0.text"), "Once");
    cJSON_Delete(j);
    struct reply r = http_post(TEXT, "{\"prompt\":\"Once\",\"echo\":true,\"stream\":true}");
    cJSON *first = event_at(&r, 0), *second = event_at(&r, 1);
    assert_string_equal(text_at(first, "choices.0.text"), "OnceHello");
    assert_string_equal(text_at(second, "choices.0.text"), ", wor");
    cJSON_Delete(first);
    cJSON_Delete(second);
    reply_free(&r);
    j = post_json(TEXT, "{\"prompt\":\"a\",\"echo\":true,\"logprobs\":1}", 400);
    assert_string_equal(text_at(j, "error.code"), "unsupported_parameter");
    cJSON_Delete(j);
}

static void test_old_columnar_logprobs(void **state)
{
    (void)state;
    cJSON *j = post_json(TEXT, "{\"prompt\":\"a\",\"logprobs\":2,\"max_tokens\":7}", 200);
    assert_int_equal(cJSON_GetArraySize(at(j, "choices.0.logprobs.tokens")), 7);
    assert_string_equal(text_at(j, "choices.0.logprobs.tokens.1"), "e");
    assert_true(number_at(j, "choices.0.logprobs.token_logprobs.0") == -0.5);
    assert_int_equal(number_at(j, "choices.0.logprobs.text_offset.6"), 6);
    assert_true(number_at(j, "choices.0.logprobs.top_logprobs.0.b") == -2);
    assert_true(number_at(j, "choices.0.logprobs.top_logprobs.0.H") == -0.5); // the chosen one is always there
    cJSON_Delete(j);
    j = post_json(TEXT, "{\"prompt\":\"a\",\"logprobs\":0}", 200);
    assert_true(cJSON_IsNull(at(j, "choices.0.logprobs.top_logprobs.0")));
    cJSON_Delete(j);
    struct reply r = http_post(TEXT, "{\"prompt\":\"a\",\"logprobs\":0,\"stream\":true}");
    cJSON *second = event_at(&r, 1);
    assert_int_equal(number_at(second, "choices.0.logprobs.text_offset.0"), 5);
    assert_int_equal(cJSON_GetArraySize(at(second, "choices.0.logprobs.tokens")), 5);
    cJSON_Delete(second);
    reply_free(&r);
}

// A byte that is no character alone is spelled out, and offsets count characters.
static void test_tokens_that_are_not_utf8(void **state)
{
    (void)state;
    fake.reply = "\xe2\x82\xacx";
    fake.run = 4;
    cJSON *j = post_json(TEXT, "{\"prompt\":\"a\",\"logprobs\":0}", 200);
    assert_string_equal(text_at(j, "choices.0.text"), "\xe2\x82\xacx");
    assert_string_equal(text_at(j, "choices.0.logprobs.tokens.0"), "bytes:\\xe2");
    assert_int_equal(number_at(j, "choices.0.logprobs.text_offset.3"), 1);
    cJSON_Delete(j);
}

static void test_stream_ends_with_finish_usage_and_done(void **state)
{
    (void)state;
    struct reply r =
        http_post(TEXT, "{\"prompt\":[\"a\",\"b\"],\"stream\":true,\"stream_options\":{\"include_usage\":true}}");
    int n = event_count(&r);
    assert_int_equal(n, 8); // three runs of two choices, usage, [DONE]
    cJSON *usage = event_at(&r, n - 2);
    assert_int_equal(number_at(usage, "usage.prompt_tokens"), 2);
    assert_int_equal(number_at(usage, "usage.completion_tokens"), 24);
    cJSON_Delete(usage);
    int finished = 0;
    for (int i = 0; i < n - 2; i++) {
        cJSON *ev = event_at(&r, i);
        finished += cJSON_IsString(at(ev, "choices.0.finish_reason"));
        assert_true(cJSON_IsNull(at(ev, "usage")));
        cJSON_Delete(ev);
    }
    assert_int_equal(finished, 2);
    reply_free(&r);
}

static void test_unsupported(void **state)
{
    (void)state;
    static const char *const fields[][2] = {{"suffix", "\"x\""},
                                            {"best_of", "3"},
                                            {"prompt_logprobs", "1"},
                                            {"use_beam_search", "true"},
                                            {"response_format", "{\"type\":\"json_object\"}"}};
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        char body[128];
        snprintf(body, sizeof body, "{\"prompt\":\"a\",\"%s\":%s}", fields[i][0], fields[i][1]);
        cJSON *j = post_json(TEXT, body, 400);
        assert_string_equal(text_at(j, "error.code"), "unsupported_parameter");
        assert_string_equal(text_at(j, "error.param"), fields[i][0]);
        cJSON_Delete(j);
    }
    cJSON *j =
        post_json(TEXT, "{\"prompt\":\"a\",\"suffix\":\"\",\"best_of\":2,\"n\":2,\"use_beam_search\":false}", 200);
    cJSON_Delete(j);
}

static void test_more_choices_than_the_queue_can_ever_hold(void **state)
{
    (void)state;
    config.max_queue = 2;
    config.max_sequences = 2;
    cJSON *j = post_json(TEXT, "{\"prompt\":\"a\",\"n\":5}", 400);
    assert_string_equal(text_at(j, "error.param"), "n");
    cJSON_Delete(j);
}

static void test_server_default_mode_and_its_limits(void **state)
{
    (void)state;
    config.mode = "ar";
    cJSON *j = post_json(TEXT, "{\"prompt\":\"a\"}", 200);
    assert_string_equal(text_at(j, "trimode.mode"), "ar");
    cJSON_Delete(j);
    j = post_json(TEXT, "{\"prompt\":\"a\",\"mode\":\"auto\"}", 200);
    cJSON_Delete(j);
    assert_int_equal(fake_params(1).mode, ENG_MODE_AUTO);
    j = post_json(TEXT, "{\"prompt\":\"a\",\"threshold\":0.5}", 400);
    assert_non_null(strstr(text_at(j, "error.message"), "the server's default mode"));
    cJSON_Delete(j);
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(test_text_prompt_and_default_of_16_tokens),
        T(test_every_form_of_prompt),
        T(test_bad_prompts),
        T(test_echo),
        T(test_old_columnar_logprobs),
        T(test_tokens_that_are_not_utf8),
        T(test_stream_ends_with_finish_usage_and_done),
        T(test_unsupported),
        T(test_more_choices_than_the_queue_can_ever_hold),
        T(test_server_default_mode_and_its_limits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
