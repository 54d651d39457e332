// server/api_fields.c: what becomes of every top-level key.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "api_common.h"

static struct srv_exchange x;
static struct srv_error e;

static int check(const char *json, bool chat)
{
    srv_buf_reset(&x.ignored);
    e = (struct srv_error){0};
    cJSON *body = cJSON_Parse(json);
    assert_non_null(body);
    int status = srv_api_check_fields(&x, body, chat, &e);
    cJSON_Delete(body);
    return status;
}

static const char *ignored(void)
{
    return x.ignored.data ? x.ignored.data : "";
}

static int check_one(const char *name, const char *value, bool chat)
{
    char json[256];
    snprintf(json, sizeof json, "{\"%s\":%s}", name, value);
    return check(json, chat);
}

static void test_used_and_harmless_fields_pass_in_silence(void **state)
{
    (void)state;
    // Whether a used field's value makes sense is looked at elsewhere.
    assert_int_equal(check("{\"model\":5,\"temperature\":\"hot\",\"stop\":{},\"mode\":null,\"lossless\":1}", true), 0);
    assert_string_equal(ignored(), "");
    assert_int_equal(check("{\"user\":\"u\",\"metadata\":{\"a\":1},\"store\":true,\"service_tier\":\"flex\","
                           "\"safety_identifier\":\"s\",\"prompt_cache_key\":\"k\",\"cache_salt\":\"z\","
                           "\"priority\":3}",
                           false),
                     0);
    assert_string_equal(ignored(), "");
    assert_int_equal(check("{}", true), 0);
}

static void test_the_endpoints_know_different_fields(void **state)
{
    (void)state;
    static const char *const chat_only[] = {"messages", "max_completion_tokens", "top_logprobs", "reasoning_effort",
                                            "tools"};
    static const char *const text_only[] = {"prompt", "echo", "suffix"};
    for (size_t i = 0; i < sizeof chat_only / sizeof *chat_only; i++) {
        assert_int_equal(check_one(chat_only[i], "[1]", false), 0);
        assert_string_equal(ignored(), chat_only[i]);
        check_one(chat_only[i], "[1]", true);
        assert_string_equal(ignored(), "");
    }
    for (size_t i = 0; i < sizeof text_only / sizeof *text_only; i++) {
        assert_int_equal(check_one(text_only[i], "[1]", true), 0);
        assert_string_equal(ignored(), text_only[i]);
        check_one(text_only[i], "[1]", false);
        assert_string_equal(ignored(), "");
    }
}

static void test_unsupported_fields_are_named_unless_they_ask_for_nothing(void **state)
{
    (void)state;
    static const struct {
        const char *name, *neutral[5], *asking[5];
    } cases[] = {
        {"tools", {"[]", "null", "false"}, {"[{}]", "true", "\"x\""}},
        {"tool_choice", {"\"none\"", "\"auto\"", "null"}, {"\"required\"", "{\"type\":\"function\"}", "1"}},
        {"function_call", {"\"none\""}, {"{\"name\":\"f\"}"}},
        {"response_format",
         {"{\"type\":\"text\"}", "{}", "null"},
         {"{\"type\":\"json_schema\"}", "\"text\"", "{\"Type\":\"text\"}", "[{\"type\":\"text\"}]", "{\"type\":5}"}},
        {"modalities", {"[\"text\"]", "[]"}, {"[\"audio\"]", "[\"text\",\"text\"]", "\"text\"", "[5]"}},
        {"length_penalty", {"1", "1.0"}, {"2", "-1", "\"1\""}},
        {"best_of", {"1", "0", "null"}, {"2", "1.5", "-1", "\"1\"", "[1]"}},
        {"chat_template", {"\"\""}, {"\" \"", "\"{{x}}\""}},
        {"guided_regex", {"\"\""}, {"\"a*\""}},
        {"include_stop_str_in_output", {"false"}, {"true"}},
        {"prompt_logprobs", {"null", "false"}, {"0", "1", "-1", "true"}}, // 0 asks for the tokens of the prompt
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (int k = 0; k < 5; k++) {
            const char *good = cases[i].neutral[k], *bad = cases[i].asking[k];
            if (good && check_one(cases[i].name, good, true))
                fail_msg("%s: %s was refused", cases[i].name, good);
            if (!bad)
                continue;
            if (!check_one(cases[i].name, bad, true))
                fail_msg("%s: %s was accepted", cases[i].name, bad);
            assert_int_equal(e.status, 400);
            assert_string_equal(e.code, "unsupported_parameter");
            assert_string_equal(e.param, cases[i].name);
            assert_non_null(strstr(e.message, cases[i].name));
        }
}

static void test_best_of_may_say_what_n_says(void **state)
{
    (void)state;
    assert_int_equal(check("{\"n\":3,\"best_of\":3}", false), 0);
    assert_int_equal(check("{\"best_of\":3,\"n\":3}", false), 0);
    assert_int_equal(check("{\"n\":3,\"best_of\":1}", false), -1);
    assert_int_equal(check("{\"n\":\"3\",\"best_of\":3}", false), -1);
}

static void test_unknown_names_are_reported_header_safe(void **state)
{
    (void)state;
    assert_int_equal(check("{\"zzz\":1,\"a,b c\\r\\nX: y\":2,\"caf\xc3\xa9\":3,\"Model\":4,\"\\u007f\":5}", true), 0);
    assert_string_equal(ignored(), "zzz, a?b?c??X:?y, caf??, Model, ?");
    char name[300], json[400];
    memset(name, 'n', 299);
    name[299] = 0;
    snprintf(json, sizeof json, "{\"%s\":1}", name);
    assert_int_equal(check(json, true), 0);
    assert_int_equal(strlen(ignored()), 63);
}

static void test_the_report_is_bounded(void **state)
{
    (void)state;
    cJSON *body = cJSON_CreateObject();
    for (int i = 0; i < 5000; i++) {
        char name[16];
        snprintf(name, sizeof name, "unknown-%d", i);
        cJSON_AddNullToObject(body, name);
    }
    srv_buf_reset(&x.ignored);
    assert_int_equal(srv_api_check_fields(&x, body, true, &e), 0);
    assert_in_range(x.ignored.len, 800, 900);
    assert_int_equal(strncmp(x.ignored.data, "unknown-0, unknown-1, ", 22), 0);
    assert_int_equal(strspn(strrchr(x.ignored.data, '-') + 1, "0123456789"), strlen(strrchr(x.ignored.data, '-') + 1));
    cJSON_Delete(body);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_used_and_harmless_fields_pass_in_silence),
        cmocka_unit_test(test_the_endpoints_know_different_fields),
        cmocka_unit_test(test_unsupported_fields_are_named_unless_they_ask_for_nothing),
        cmocka_unit_test(test_best_of_may_say_what_n_says),
        cmocka_unit_test(test_unknown_names_are_reported_header_safe),
        cmocka_unit_test(test_the_report_is_bounded),
    };
    int status = cmocka_run_group_tests(tests, NULL, NULL);
    srv_buf_free(&x.ignored);
    return status;
}
