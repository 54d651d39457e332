// server/api_common.c: what is refused before the engine hears of it, and budgets of tokens.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "api_common.h"
#include "client.h"

#define TEXT "/v1/completions"

static struct srv_config config;
static struct srv_error e;

static int setup(void **state)
{
    (void)state;
    test_config(&config);
    config.max_context = 40;
    config.max_queue = 4;
    config.max_sequences = 2;
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

static struct eng_info info = {.n_vocab = FAKE_VOCAB, .max_context = 40, .modes = 0xE};
static char name[] = "fake";

static void test_nothing_is_accepted_unless_ready(void **state)
{
    (void)state;
    struct srv_server s = {.state = SRV_READY};
    assert_int_equal(srv_api_available(&s, &e), 0);
    s.state = SRV_LOADING;
    assert_int_equal(srv_api_available(&s, &e), -1);
    assert_int_equal(e.status, 503);
    assert_int_equal(e.retry_after, 2);
    assert_non_null(strstr(e.message, "loaded"));
    struct srv_exchange x = {.server = &s}; // not even looked at: there is no body
    assert_null(srv_gen_parse(&x, true, &e));
    s.state = SRV_DRAINING;
    assert_null(srv_gen_parse(&x, true, &e));
    assert_string_equal(e.code, "server_is_overloaded");
    assert_in_range(e.retry_after, 1, 60);
    assert_non_null(strstr(e.message, "shutting down"));
}

static int check_model(const char *json)
{
    struct srv_server s = {.model_name = name};
    cJSON *body = cJSON_Parse(json);
    int status = srv_api_check_model(&s, body, &e);
    cJSON_Delete(body);
    return status;
}

static void test_a_model_is_ours_or_unnamed(void **state)
{
    (void)state;
    assert_int_equal(check_model("{\"model\":\"fake\"}"), 0);
    assert_int_equal(check_model("{}"), 0);
    assert_int_equal(check_model("{\"model\":null}"), 0);
    static const char *const others[] = {"{\"model\":\"\"}", "{\"model\":\"Fake\"}", "{\"model\":\"fake \"}"};
    for (int i = 0; i < 3; i++) {
        assert_int_equal(check_model(others[i]), -1);
        assert_int_equal(e.status, 404);
        assert_string_equal(e.param, "model");
        assert_string_equal(e.code, "model_not_found");
    }
    assert_int_equal(check_model("{\"model\":[\"fake\"]}"), -1);
    assert_int_equal(e.status, 400);
}

static void test_ids_are_distinct(void **state)
{
    (void)state;
    char one[64], two[64], small[8];
    srv_api_id("chatcmpl", one, sizeof one);
    srv_api_id("chatcmpl", two, sizeof two);
    assert_int_equal(strlen(one), 9 + 32);
    assert_int_equal(strncmp(one, "chatcmpl-", 9), 0);
    assert_int_equal(strspn(one + 9, "0123456789abcdef"), 32);
    assert_string_not_equal(one, two);
    srv_api_id("chatcmpl", small, sizeof small);
    assert_string_equal(small, "chatcmp");
}

// The engine is not asked (there is none) when the bytes alone say that the text is too long.
static void test_endless_texts_are_refused_unread(void **state)
{
    (void)state;
    struct srv_server s = {.info = &info, .longest_token = 5};
    char text[202];
    memset(text, 'a', 201);
    text[201] = 0;
    int32_t *ids = NULL;
    size_t n = 0;
    assert_int_equal(srv_api_encode(&s, text, "prompt", &ids, &n, &e), -1);
    assert_string_equal(e.code, "context_length_exceeded");
    assert_string_equal(e.param, "prompt");
    assert_string_equal(e.message, "This model's maximum context length is 40 tokens. However, your prompt resulted in "
                                   "at least 40 tokens. Please reduce the length of the prompt.");
    text[199] = 0; // 39.8 tokens at least: the engine decides
    assert_int_equal(srv_api_encode(&s, text, "prompt", &ids, &n, &e), 0);
    assert_int_equal(n, 199);
    free(ids);
}

static void test_a_parsed_body_becomes_a_generation(void **state)
{
    (void)state;
    struct srv_server s = {.state = SRV_READY, .info = &info, .config = &config, .model_name = name};
    struct srv_exchange x = {.server = &s};
    config = (struct srv_config){.mode = "ar"};
    srv_buf_puts(&x.body, "{\"n\":2,\"stop\":\"x\",\"what\":1,\"max_tokens\":3}");
    struct srv_gen *g = srv_gen_parse(&x, false, &e);
    assert_non_null(g);
    assert_true(g->n == 2 && g->max_tokens == 3 && !g->chat && g->params.n_stops == 1 && g->params.skip_special);
    assert_int_equal(strncmp(g->id, "cmpl-", 5), 0);
    assert_string_equal(x.ignored.data, "what");
    srv_gen_free(g);
    srv_gen_free(NULL);
    // The first fault in order of model, fields, values is the one that is told.
    srv_buf_reset(&x.body);
    srv_buf_puts(&x.body, "{\"model\":\"other\",\"suffix\":\"x\",\"n\":0}");
    assert_null(srv_gen_parse(&x, false, &e));
    assert_int_equal(e.status, 404);
    srv_buf_reset(&x.body);
    srv_buf_puts(&x.body, "{\"n\":0,\"suffix\":\"x\"}");
    assert_null(srv_gen_parse(&x, false, &e));
    assert_string_equal(e.param, "suffix");
    srv_buf_free(&x.body);
    srv_buf_free(&x.ignored);
}

static int budget_of(const char *fields, int status)
{
    char body[256];
    static int submitted;
    submitted = 0;
    while (fake_wait_submitted(submitted + 1, 0))
        submitted++;
    snprintf(body, sizeof body, "{\"prompt\":\"0123456789\"%s}", fields);
    cJSON_Delete(post_json(TEXT, body, status));
    return status == 200 ? fake_params(submitted).max_tokens : -1;
}

static void test_budgets_end_with_the_context(void **state)
{
    (void)state;
    assert_int_equal(budget_of("", 200), 16);
    assert_int_equal(budget_of(",\"min_tokens\":20", 200), 20); // more than the default of 16
    assert_int_equal(budget_of(",\"min_tokens\":31", 200), 30); // more than there is room for
    assert_int_equal(budget_of(",\"max_tokens\":30", 200), 30);
    assert_int_equal(budget_of(",\"max_tokens\":0", 200), 0);
    budget_of(",\"max_tokens\":31", 400);
    cJSON *j = post_json(TEXT, "{\"prompt\":\"0123456789\",\"max_tokens\":2147483647}", 400);
    assert_non_null(
        strstr(text_at(j, "error.message"), "you requested 2147483657 tokens (10 in the prompt, 2147483647 in"));
    cJSON_Delete(j);
    j = post_json("/v1/chat/completions", "{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]}", 200);
    cJSON_Delete(j);
    assert_int_equal(fake_params(5).max_tokens, 40 - (int)strlen("user:hi\nassistant:"));
    char longest[41] = "\"";
    memset(longest, '0', 40);
    for (int n = 39; n <= 40; n++) {
        char body[128];
        snprintf(body, sizeof body, "{\"prompt\":\"%.*s\"}", n, longest);
        cJSON_Delete(post_json(TEXT, body, n == 39 ? 200 : 400));
    }
    assert_int_equal(fake_params(6).max_tokens, 1);
}

static void test_as_many_generations_as_can_wait(void **state)
{
    (void)state;
    cJSON_Delete(post_json(TEXT, "{\"prompt\":\"a\",\"n\":6}", 200));
    cJSON *j = post_json(TEXT, "{\"prompt\":\"a\",\"n\":7}", 400);
    assert_string_equal(text_at(j, "error.param"), "n");
    cJSON_Delete(j);
    j = post_json(TEXT, "{\"prompt\":[\"a\",\"b\",\"c\",\"d\",\"e\",\"f\",\"g\"]}", 400);
    assert_string_equal(text_at(j, "error.param"), "prompt");
    assert_non_null(strstr(text_at(j, "error.message"), "asks for 7 generations; this server takes at most 6"));
    cJSON_Delete(j);
    // One prompt of several is at fault: none of them runs.
    cJSON_Delete(post_json(TEXT, "{\"prompt\":[\"a\",\"\"]}", 400));
    assert_false(fake_wait_submitted(7, 20));
    assert_int_equal(fake_live(), 0);
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_nothing_is_accepted_unless_ready),
        cmocka_unit_test(test_a_model_is_ours_or_unnamed),
        cmocka_unit_test(test_ids_are_distinct),
        cmocka_unit_test(test_endless_texts_are_refused_unread),
        cmocka_unit_test(test_a_parsed_body_becomes_a_generation),
        T(test_budgets_end_with_the_context),
        T(test_as_many_generations_as_can_wait),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
