// Models, tokenize, probes, version, status, and what they say before the model is there.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "client.h"

static struct srv_config config;

static int setup(void **state)
{
    (void)state;
    test_config(&config);
    char err[200];
    srv_config_set(&config, "served_model_name", "org/fake model", SRV_FROM_FLAG, "test", err, sizeof err);
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

static void test_models(void **state)
{
    (void)state;
    cJSON *j = get_json("/v1/models", 200);
    assert_string_equal(text_at(j, "object"), "list");
    assert_string_equal(text_at(j, "data.0.id"), "org/fake model");
    assert_int_equal(number_at(j, "data.0.max_model_len"), FAKE_CONTEXT);
    assert_int_equal(number_at(j, "data.0.vocab_size"), FAKE_VOCAB);
    assert_int_equal(cJSON_GetArraySize(at(j, "data.0.modes")), 3);
    cJSON_Delete(j);
    j = get_json("/v1/models/org/fake%20model", 200);
    assert_string_equal(text_at(j, "id"), "org/fake model");
    cJSON_Delete(j);
    j = get_json("/v1/models/org%2Ffake%20model", 200);
    cJSON_Delete(j);
    j = get_json("/v1/models/other", 404);
    assert_string_equal(text_at(j, "error.code"), "model_not_found");
    cJSON_Delete(j);
}

static void test_tokenize_and_back(void **state)
{
    (void)state;
    cJSON *j = post_json("/tokenize", "{\"prompt\":\"abc\",\"return_token_strs\":true}", 200);
    assert_int_equal(number_at(j, "count"), 3);
    assert_int_equal(number_at(j, "tokens.2"), 'c');
    assert_string_equal(text_at(j, "token_strs.0"), "a");
    assert_int_equal(number_at(j, "max_model_len"), FAKE_CONTEXT);
    cJSON_Delete(j);
    j = post_json("/tokenize", "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]}", 200);
    assert_int_equal(number_at(j, "count"), strlen("user:x\nassistant:"));
    cJSON_Delete(j);
    j = post_json("/detokenize", "{\"tokens\":[97,98]}", 200);
    assert_string_equal(text_at(j, "prompt"), "ab");
    cJSON_Delete(j);
    static const char *const bad[] = {"{}", "{\"tokens\":5}", "{\"tokens\":[258]}", "{\"tokens\":[\"a\"]}"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        cJSON_Delete(post_json("/detokenize", bad[i], 400));
    cJSON_Delete(post_json("/tokenize", "{}", 400));
    cJSON_Delete(post_json("/tokenize", "{\"messages\":7}", 400));
    cJSON_Delete(post_json("/tokenize", "{\"prompt\":\"a\",\"model\":\"x\"}", 404));
}

// Symptom: /tokenize handed a message without a role to the template, or wrong kwargs to the engine.
static void test_tokenize_checks_messages_as_chat_does(void **state)
{
    (void)state;
    cJSON *j = post_json("/tokenize", "{\"messages\":[{\"content\":\"x\"}]}", 400);
    assert_string_equal(text_at(j, "error.param"), "messages[0].role");
    cJSON_Delete(j);
    cJSON_Delete(post_json("/tokenize", "{\"messages\":[5]}", 400));
    cJSON_Delete(post_json("/tokenize", "{\"messages\":[]}", 400));
}

static void test_probes(void **state)
{
    (void)state;
    cJSON_Delete(get_json("/health", 200));
    cJSON_Delete(get_json("/ready", 200));
    fake.failure = "GPU 0 fell off the \"bus\"";
    cJSON_Delete(get_json("/health", 503));
    cJSON *j = get_json("/ready", 503);
    assert_string_equal(text_at(j, "status"), "failed");
    assert_string_equal(text_at(j, "reason"), "GPU 0 fell off the \"bus\"");
    cJSON_Delete(j);
    fake.failure = NULL;
}

static void test_version_and_status(void **state)
{
    (void)state;
    cJSON *j = get_json("/version", 200);
    assert_string_equal(text_at(j, "backend"), "cpu");
    assert_string_equal(text_at(j, "version"), TRIMODE_VERSION);
    assert_string_equal(text_at(j, "backend_reason"), "there is no GPU");
    cJSON_Delete(j);
    fake.hold = true;
    int fd = client_connect();
    client_post(fd, "/v1/completions", "X-Request-Id: live-one\r\n", "{\"prompt\":\"abc\",\"mode\":\"ar\"}");
    assert_true(fake_wait_submitted(1, 2000));
    j = get_json("/status", 200);
    assert_string_equal(text_at(j, "status"), "ready");
    assert_string_equal(text_at(j, "requests.0.request_id"), "live-one");
    assert_string_equal(text_at(j, "requests.0.mode"), "ar");
    assert_int_equal(number_at(j, "kv_pages.total"), 32);
    assert_int_equal(number_at(j, "kv_pages.cached"), 10);
    assert_string_equal(text_at(j, "kv_pages.type"), "f32");
    assert_string_equal(text_at(j, "backend_reason"), "there is no GPU");
    assert_string_equal(text_at(j, "cost_model.origin"), "file");
    assert_int_equal(number_at(j, "cost_model.samples"), 87);
    assert_int_equal(number_at(j, "cost_model.base"), 3);
    assert_true(number_at(j, "cost_model.predicted_step_error_ratio") == 1.25);
    assert_int_equal(number_at(j, "cost_model.rows.1.from"), 24);
    assert_true(number_at(j, "cost_model.rows.1.seconds_a_row") == 0.25);
    assert_int_equal(number_at(j, "cost_model.beyond.1.context"), 8192);
    assert_int_equal(number_at(j, "cost_model.beyond.1.seconds_a_position"), 8);
    assert_int_equal(number_at(j, "memory.total"), 0);
    assert_int_equal(number_at(j, "memory.categories.weights"), 1000);
    assert_int_equal(number_at(j, "memory.categories.kv"), 70);
    cJSON_Delete(j);
    fake_finish(0, ENG_FINISH_STOP, NULL);
    struct reply r = client_reply(fd);
    assert_int_equal(r.status, 200);
    reply_free(&r);
    close(fd);
}

static void test_status_shows_how_each_request_is_decoded(void **state)
{
    (void)state;
    fake.hold = true;
    int fd = client_connect();
    client_post(fd, "/v1/completions", "X-Request-Id: two\r\n", "{\"prompt\":\"abc\",\"n\":2,\"stream\":true}");
    assert_true(fake_wait_submitted(2, 2000));
    cJSON *j = get_json("/status", 200);
    assert_int_equal(cJSON_GetArraySize(at(j, "requests.0.decoding")), 0); // both wait
    cJSON_Delete(j);
    fake_say(1, "hello");
    free(client_read_until(fd, "hello", 2000));
    j = get_json("/status", 200);
    assert_int_equal(cJSON_GetArraySize(at(j, "requests.0.decoding")), 1);
    assert_string_equal(text_at(j, "requests.0.mode"), "auto");
    assert_int_equal(number_at(j, "requests.0.decoding.0.index"), 1);
    assert_string_equal(text_at(j, "requests.0.decoding.0.mode"), "self_speculation");
    assert_string_equal(text_at(j, "requests.0.decoding.0.reason"), "scripted");
    assert_int_equal(number_at(j, "requests.0.decoding.0.block_length"), 16);
    assert_int_equal(number_at(j, "requests.0.decoding.0.tokens"), 5);
    assert_int_equal(number_at(j, "requests.0.decoding.0.computed_tokens"), 9);
    assert_true(number_at(j, "requests.0.decoding.0.acceptance") == 0.75);
    assert_true(number_at(j, "requests.0.decoding.0.tokens_per_second") == 123.4);
    assert_true(number_at(j, "requests.0.decoding.0.predicted_tokens_per_second") == 150.5);
    cJSON_Delete(j);
    fake_finish(0, ENG_FINISH_STOP, NULL);
    fake_finish(1, ENG_FINISH_STOP, NULL);
    free(client_read_until(fd, "[DONE]", 2000));
    close(fd);
    j = get_json("/status", 200);
    assert_int_equal(cJSON_GetArraySize(at(j, "requests")), 0);
    cJSON_Delete(j);
}

static void test_no_cost_model_is_null(void **state)
{
    (void)state;
    test_config(&config);
    fake.no_cost = true;
    test_start(&config);
    cJSON *j = get_json("/status", 200);
    assert_true(cJSON_IsNull(cJSON_GetObjectItem(j, "cost_model")));
    cJSON_Delete(j);
    struct reply r = http_get("/metrics", "");
    assert_null(strstr(r.body, "predicted_step_error_ratio"));
    reply_free(&r);
    assert_int_equal(test_stop(), 0);
    srv_config_done(&config);
}

static void test_before_the_model_is_loaded(void **state)
{
    (void)state;
    test_config(&config);
    fake.load_ms = 600;
    test_start(&config);
    cJSON_Delete(get_json("/health", 200));
    cJSON *j = get_json("/ready", 503);
    assert_string_equal(text_at(j, "status"), "loading");
    cJSON_Delete(j);
    struct reply r = http_post("/v1/completions", "{\"prompt\":\"a\"}");
    assert_int_equal(r.status, 503);
    assert_string_equal(header_of(&r, "Retry-After"), "2");
    assert_non_null(strstr(r.body, "server_is_overloaded"));
    reply_free(&r);
    cJSON_Delete(get_json("/v1/models", 503));
    cJSON_Delete(get_json("/status", 200));
    cJSON_Delete(get_json("/version", 200));
    r = http_get("/metrics", "");
    assert_int_equal(r.status, 200);
    reply_free(&r);
    for (int i = 0; i < 200; i++) {
        r = http_get("/ready", "");
        int status = r.status;
        reply_free(&r);
        if (status == 200)
            break;
        usleep(10000);
    }
    cJSON_Delete(post_json("/v1/completions", "{\"prompt\":\"a\"}", 200));
    assert_int_equal(test_stop(), 0);
    srv_config_done(&config);
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(test_models),
        T(test_tokenize_and_back),
        T(test_tokenize_checks_messages_as_chat_does),
        T(test_probes),
        T(test_version_and_status),
        T(test_status_shows_how_each_request_is_decoded),
        cmocka_unit_test(test_no_cost_model_is_null),
        cmocka_unit_test(test_before_the_model_is_loaded),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
