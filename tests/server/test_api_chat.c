// POST /v1/chat/completions over a socket, on the scripted engine.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "client.h"

#define CHAT "/v1/chat/completions"
#define USER "\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]"

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

static void test_answers_with_text_usage_and_trimode(void **state)
{
    (void)state;
    cJSON *j = post_json(CHAT, "{" USER "}", 200);
    assert_string_equal(text_at(j, "object"), "chat.completion");
    assert_string_equal(text_at(j, "model"), "fake");
    assert_int_equal(strncmp(text_at(j, "id"), "chatcmpl-", 9), 0);
    assert_string_equal(text_at(j, "choices.0.message.content"), "Hello, world");
    assert_string_equal(text_at(j, "choices.0.message.role"), "assistant");
    assert_string_equal(text_at(j, "choices.0.finish_reason"), "stop");
    assert_true(cJSON_IsNull(at(j, "choices.0.logprobs")));
    assert_int_equal(number_at(j, "usage.completion_tokens"), 12);
    assert_int_equal(number_at(j, "usage.prompt_tokens"), strlen("user:hi\nassistant:"));
    assert_int_equal(number_at(j, "usage.prompt_tokens_details.cached_tokens"), 0);
    assert_string_equal(text_at(j, "trimode.mode"), "self_speculation");
    assert_int_equal(number_at(j, "trimode.timeline.0.block_length"), 16);
    cJSON_Delete(j);
    assert_string_equal(fake_prompt(0), "user:hi\nassistant:");
    assert_int_equal(fake_params(0).max_tokens, FAKE_CONTEXT - (int)strlen(fake_prompt(0)));
    assert_true(fake_params(0).temperature == 1.0f);
}

static void test_streams_role_text_finish_and_done(void **state)
{
    (void)state;
    struct reply r = http_post(CHAT, "{" USER ",\"stream\":true}");
    assert_int_equal(r.status, 200);
    assert_true(r.complete);
    assert_string_equal(header_of(&r, "Content-Type"), "text/event-stream; charset=utf-8");
    assert_string_equal(header_of(&r, "X-Accel-Buffering"), "no");
    assert_int_equal(event_count(&r), 6); // role, three runs, finish, [DONE]
    cJSON *role = event_at(&r, 0), *text = event_at(&r, 1), *finish = event_at(&r, 4);
    assert_string_equal(text_at(role, "choices.0.delta.role"), "assistant");
    assert_string_equal(text_at(text, "choices.0.delta.content"), "Hello");
    assert_string_equal(text_at(finish, "choices.0.finish_reason"), "stop");
    assert_null(at(finish, "usage"));
    assert_string_equal(text_at(finish, "trimode.mode"), "self_speculation");
    assert_string_equal(text_at(role, "id"), text_at(finish, "id"));
    assert_non_null(strstr(r.body, "data: [DONE]\n\n"));
    cJSON_Delete(role);
    cJSON_Delete(text);
    cJSON_Delete(finish);
    reply_free(&r);
}

static void test_usage_chunk_comes_last_and_is_null_before(void **state)
{
    (void)state;
    struct reply r = http_post(CHAT, "{" USER ",\"stream\":true,\"stream_options\":{\"include_usage\":true}}");
    assert_int_equal(event_count(&r), 7);
    cJSON *first = event_at(&r, 0), *usage = event_at(&r, 5);
    assert_true(cJSON_IsNull(at(first, "usage")));
    assert_int_equal(cJSON_GetArraySize(at(usage, "choices")), 0);
    assert_true(cJSON_IsArray(at(usage, "choices")));
    assert_int_equal(number_at(usage, "usage.completion_tokens"), 12);
    assert_string_equal(text_at(usage, "trimode.mode"), "self_speculation");
    cJSON_Delete(first);
    cJSON_Delete(usage);
    reply_free(&r);
    r = http_post(CHAT, "{" USER ",\"stream\":true,\"stream_options\":{\"include_usage\":true,"
                        "\"continuous_usage_stats\":true}}");
    cJSON *second = event_at(&r, 1);
    assert_true(cJSON_IsNumber(at(second, "usage.completion_tokens")));
    cJSON_Delete(second);
    reply_free(&r);
}

static void test_n_choices_have_their_own_chunks_and_seeds(void **state)
{
    (void)state;
    struct reply r = http_post(CHAT, "{" USER ",\"n\":3,\"seed\":-5,\"stream\":true}");
    int roles = 0, finishes = 0, indexes = 0;
    for (int i = 0; i < event_count(&r) - 1; i++) {
        cJSON *ev = event_at(&r, i);
        roles += at(ev, "choices.0.delta.role") != NULL;
        finishes += cJSON_IsString(at(ev, "choices.0.finish_reason"));
        indexes |= 1 << (int)number_at(ev, "choices.0.index");
        cJSON_Delete(ev);
    }
    assert_int_equal(roles, 3);
    assert_int_equal(finishes, 3);
    assert_int_equal(indexes, 7);
    reply_free(&r);
    assert_true(fake_params(0).seed == (uint64_t)-5);
    assert_true(fake_params(2).seed == (uint64_t)-3);
    cJSON *j = post_json(CHAT, "{" USER ",\"n\":2}", 200);
    assert_int_equal(cJSON_GetArraySize(at(j, "choices")), 2);
    assert_int_equal(number_at(j, "usage.completion_tokens"), 24);
    assert_int_equal(cJSON_GetArraySize(at(j, "trimode.choices")), 2);
    cJSON_Delete(j);
}

static void test_logprobs_carry_bytes_and_alternatives(void **state)
{
    (void)state;
    cJSON *j = post_json(CHAT, "{" USER ",\"logprobs\":true,\"top_logprobs\":2}", 200);
    assert_int_equal(cJSON_GetArraySize(at(j, "choices.0.logprobs.content")), 12);
    assert_string_equal(text_at(j, "choices.0.logprobs.content.0.token"), "H");
    assert_int_equal(number_at(j, "choices.0.logprobs.content.0.bytes.0"), 'H');
    assert_int_equal(cJSON_GetArraySize(at(j, "choices.0.logprobs.content.0.top_logprobs")), 2);
    cJSON_Delete(j);
}

static void test_return_token_ids(void **state)
{
    (void)state;
    cJSON *j = post_json(CHAT, "{" USER ",\"return_token_ids\":true,\"max_tokens\":2}", 200);
    assert_int_equal(number_at(j, "choices.0.token_ids.1"), 'e');
    assert_int_equal(number_at(j, "prompt_token_ids.0"), 'u');
    assert_string_equal(text_at(j, "choices.0.finish_reason"), "length");
    cJSON_Delete(j);
    struct reply r = http_post(CHAT, "{" USER ",\"return_token_ids\":true,\"max_tokens\":2,\"stream\":true}");
    cJSON *first = event_at(&r, 0), *second = event_at(&r, 1);
    assert_int_equal(number_at(first, "prompt_token_ids.0"), 'u');
    assert_int_equal(number_at(second, "choices.0.token_ids.0"), 'H');
    cJSON_Delete(first);
    cJSON_Delete(second);
    reply_free(&r);
}

static void test_developer_is_system_and_parts_are_joined(void **state)
{
    (void)state;
    cJSON *j =
        post_json(CHAT,
                  "{\"messages\":[{\"role\":\"developer\",\"content\":\"be brief\"},{\"role\":\"user\",\"content\":"
                  "[{\"type\":\"text\",\"text\":\"a\"},{\"type\":\"text\",\"text\":\"b\"}]}]}",
                  200);
    cJSON_Delete(j);
    assert_string_equal(fake_prompt(0), "system:be brief\nuser:ab\nassistant:");
    j = post_json(CHAT,
                  "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"assistant\",\"content\":\"b\"}],"
                  "\"continue_final_message\":true}",
                  200);
    cJSON_Delete(j);
    assert_string_equal(fake_prompt(1), "user:a\nassistant:b");
}

static void test_fields_reach_the_engine(void **state)
{
    (void)state;
    cJSON *j =
        post_json(CHAT,
                  "{" USER ",\"model\":\"fake\",\"max_tokens\":9,\"max_completion_tokens\":7,\"temperature\":0.5,"
                  "\"top_p\":0.25,\"top_k\":-1,\"min_p\":0.1,\"repetition_penalty\":1.5,\"presence_penalty\":-2,"
                  "\"frequency_penalty\":2,\"stop\":[\"x\",\"y\"],\"stop_token_ids\":[3],\"logit_bias\":{\"5\":-100},"
                  "\"seed\":9223372036854775807,\"min_tokens\":2,\"ignore_eos\":true,\"skip_special_tokens\":false,"
                  "\"mode\":\"diffusion\",\"block_length\":16,\"threshold\":0.5,\"steps\":8,"
                  "\"commit_policy\":\"leftmost\",\"lossless\":false,\"timeout_ms\":5000,\"priority\":-3,\"user\":"
                  "\"me\",\"tools\":[],"
                  "\"response_format\":{\"type\":\"text\"},\"best_of\":1}",
                  200);
    assert_string_equal(text_at(j, "choices.0.stop_reason"), "(none)");
    cJSON_Delete(j);
    struct eng_params p = fake_params(0);
    assert_int_equal(p.max_tokens, 7);
    assert_true(p.temperature == 0.5f && p.top_p == 0.25f && p.min_p == 0.1f && p.repetition_penalty == 1.5f);
    assert_true(p.presence_penalty == -2 && p.frequency_penalty == 2 && p.threshold == 0.5f);
    assert_int_equal(p.top_k, 0);
    assert_int_equal(p.n_stops, 2);
    assert_int_equal(p.n_stop_ids, 1);
    assert_int_equal(p.n_biases, 1);
    assert_true(p.seed == INT64_MAX);
    assert_int_equal(p.min_tokens, 2);
    assert_true(p.ignore_eos && !p.skip_special && p.allow_diffusion && !p.lossless);
    assert_int_equal(p.mode, ENG_MODE_DIFFUSION);
    assert_int_equal(p.block_length, 16);
    assert_int_equal(p.steps, 8);
    assert_int_equal(p.commit_policy, ENG_COMMIT_LEFTMOST);
    assert_int_equal(p.timeout_ms, 5000);
    assert_int_equal(p.priority, -3);
}

static void test_refusals_name_the_field(void **state)
{
    (void)state;
    static const struct {
        const char *fields, *param, *code;
    } cases[] = {
        {"\"temperature\":3", "temperature", "invalid_value"},
        {"\"temperature\":\"hot\"", "temperature", "invalid_type"},
        {"\"top_p\":1.5", "top_p", "invalid_value"},
        {"\"n\":0", "n", "invalid_value"},
        {"\"n\":129", "n", "invalid_value"},
        {"\"n\":1.5", "n", "invalid_type"},
        {"\"max_tokens\":0", "max_tokens", "invalid_value"},
        {"\"max_tokens\":100000", "messages", "context_length_exceeded"},
        {"\"seed\":1.5", "seed", "invalid_type"},
        {"\"seed\":9223372036854775808", "seed", "invalid_value"},
        {"\"stop\":\"\"", "stop", "invalid_value"},
        {"\"stop\":5", "stop", "invalid_type"},
        {"\"stop_token_ids\":[258]", "stop_token_ids", "invalid_value"},
        {"\"logit_bias\":{\"x\":1}", "logit_bias", "invalid_value"},
        {"\"logit_bias\":{\"1\":101}", "logit_bias", "invalid_value"},
        {"\"top_logprobs\":3", "top_logprobs", "invalid_value"},
        {"\"logprobs\":true,\"top_logprobs\":21", "top_logprobs", "invalid_value"},
        {"\"stream_options\":{\"include_usage\":true}", "stream_options", "invalid_value"},
        {"\"mode\":\"fast\"", "mode", "invalid_value"},
        {"\"mode\":7", "mode", "invalid_type"},
        {"\"block_length\":12", "block_length", "invalid_value"},
        {"\"mode\":\"ar\",\"threshold\":0.5", "threshold", "unsupported_parameter"},
        {"\"mode\":\"self_speculation\",\"steps\":4", "steps", "unsupported_parameter"},
        {"\"mode\":\"ar\",\"commit_policy\":\"leftmost\"", "commit_policy", "unsupported_parameter"},
        {"\"commit_policy\":\"best\"", "commit_policy", "invalid_value"},
        {"\"threshold\":0", "threshold", "invalid_value"},
        {"\"mode\":\"diffusion\",\"lossless\":true", "lossless", "invalid_value"},
        {"\"mode\":\"diffusion\",\"block_length\":8,\"steps\":9", "steps", "invalid_value"},
        {"\"min_tokens\":5,\"max_tokens\":4", "min_tokens", "invalid_value"},
        {"\"tools\":[{\"type\":\"function\"}]", "tools", "unsupported_parameter"},
        {"\"response_format\":{\"type\":\"json_object\"}", "response_format", "unsupported_parameter"},
        {"\"functions\":[{}]", "functions", "unsupported_parameter"},
        {"\"audio\":{\"voice\":\"x\"}", "audio", "unsupported_parameter"},
        {"\"modalities\":[\"text\",\"audio\"]", "modalities", "unsupported_parameter"},
        {"\"best_of\":2", "best_of", "unsupported_parameter"},
        {"\"priority\":1001", "priority", "invalid_value"},
        {"\"priority\":\"high\"", "priority", "invalid_type"},
        {"\"guided_json\":{\"type\":\"object\"}", "guided_json", "unsupported_parameter"},
        {"\"add_generation_prompt\":true,\"continue_final_message\":true", "continue_final_message", "invalid_value"},
        {"\"chat_template_kwargs\":{\"fail\":true}", "messages", "invalid_value"},
        {"\"chat_template_kwargs\":3", "chat_template_kwargs", "invalid_type"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char body[512];
        snprintf(body, sizeof body, "{" USER ",%s}", cases[i].fields);
        cJSON *j = post_json(CHAT, body, 400);
        assert_string_equal(text_at(j, "error.param"), cases[i].param);
        assert_string_equal(text_at(j, "error.code"), cases[i].code);
        assert_string_equal(text_at(j, "error.type"), "invalid_request_error");
        cJSON_Delete(j);
    }
    assert_int_equal(fake_live(), 0);
}

static void test_bad_messages_name_the_path(void **state)
{
    (void)state;
    static const struct {
        const char *messages, *param;
    } cases[] = {
        {"[]", "messages"},
        {"{}", "messages"},
        {"[5]", "messages[0]"},
        {"[{\"content\":\"x\"}]", "messages[0].role"},
        {"[{\"role\":\"robot\",\"content\":\"x\"}]", "messages[0].role"},
        {"[{\"role\":\"user\"}]", "messages[0].content"},
        {"[{\"role\":\"user\",\"content\":7}]", "messages[0].content"},
        {"[{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"user\",\"content\":[{\"type\":\"image_url\"}]}]",
         "messages[1].content[0]"},
        {"[{\"role\":\"user\",\"content\":[{\"type\":\"text\"}]}]", "messages[0].content[0]"},
        {"[{\"role\":\"assistant\",\"content\":\"x\",\"tool_calls\":[{}]}]", "messages[0].tool_calls"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char body[512];
        snprintf(body, sizeof body, "{\"messages\":%s}", cases[i].messages);
        cJSON *j = post_json(CHAT, body, 400);
        assert_string_equal(text_at(j, "error.param"), cases[i].param);
        cJSON_Delete(j);
    }
    cJSON *j = post_json(CHAT, "{}", 400);
    assert_string_equal(text_at(j, "error.code"), "missing_required_parameter");
    cJSON_Delete(j);
}

static void test_other_models_are_not_found(void **state)
{
    (void)state;
    cJSON *j = post_json(CHAT, "{\"model\":\"gpt-9\"," USER "}", 404);
    assert_string_equal(text_at(j, "error.code"), "model_not_found");
    assert_non_null(strstr(text_at(j, "error.message"), "`gpt-9` does not exist"));
    cJSON_Delete(j);
}

static void test_long_prompts_say_the_context_length(void **state)
{
    (void)state;
    char *text = calloc(1, 100001), *body = malloc(200000);
    memset(text, 'a', 100000);
    snprintf(body, 200000, "{\"messages\":[{\"role\":\"user\",\"content\":\"%s\"}]}", text);
    free(text);
    cJSON *j = post_json(CHAT, body, 400);
    assert_string_equal(text_at(j, "error.code"), "context_length_exceeded");
    assert_non_null(strstr(text_at(j, "error.message"), "maximum context length is 512 tokens"));
    cJSON_Delete(j);
    free(body);
}

static void test_unknown_fields_are_reported(void **state)
{
    (void)state;
    struct reply r = http_post(CHAT, "{" USER ",\"zzz\":1,\"a,b\":2,\"metadata\":{}}");
    assert_int_equal(r.status, 200);
    assert_string_equal(header_of(&r, "x-trimode-ignored"), "zzz, a?b");
    reply_free(&r);
}

static void test_engine_failure_before_the_head_is_a_status(void **state)
{
    (void)state;
    fake.hold = true;
    int fd = client_connect();
    client_post(fd, CHAT, "", "{" USER ",\"stream\":true}");
    assert_true(fake_wait_submitted(1, 2000));
    fake_finish(0, ENG_FINISH_ERROR, "not finite");
    struct reply r = client_reply(fd);
    assert_int_equal(r.status, 500);
    assert_non_null(strstr(r.body, "not finite"));
    reply_free(&r);
    close(fd);
    fd = client_connect();
    client_post(fd, CHAT, "", "{" USER "}");
    assert_true(fake_wait_submitted(2, 2000));
    fake_finish(1, ENG_FINISH_TIMEOUT, NULL);
    r = client_reply(fd);
    assert_int_equal(r.status, 504);
    assert_string_equal(header_of(&r, "x-should-retry"), "false");
    reply_free(&r);
    close(fd);
}

static void test_engine_failure_after_the_head_is_an_event_and_no_last_chunk(void **state)
{
    (void)state;
    fake.hold = true;
    int fd = client_connect();
    client_post(fd, CHAT, "", "{" USER ",\"stream\":true}");
    assert_true(fake_wait_submitted(1, 2000));
    fake_say(0, "abc");
    free(client_read_until(fd, "abc", 2000));
    fake_finish(0, ENG_FINISH_ERROR, "not finite");
    char *rest = client_read_until(fd, "\r\n0\r\n", 2000);
    assert_non_null(strstr(rest, "data: {\"error\":{\"message\":\"The model failed: not finite.\""));
    assert_null(strstr(rest, "[DONE]"));
    assert_null(strstr(rest, "\r\n0\r\n"));
    free(rest);
    close(fd);
}

static void test_a_matched_stop_string_is_named(void **state)
{
    (void)state;
    cJSON *j = post_json(CHAT, "{" USER ",\"stop\":\"END\"}", 200);
    assert_string_equal(text_at(j, "choices.0.stop_reason"), "END");
    cJSON_Delete(j);
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(test_answers_with_text_usage_and_trimode),
        T(test_streams_role_text_finish_and_done),
        T(test_usage_chunk_comes_last_and_is_null_before),
        T(test_n_choices_have_their_own_chunks_and_seeds),
        T(test_logprobs_carry_bytes_and_alternatives),
        T(test_return_token_ids),
        T(test_developer_is_system_and_parts_are_joined),
        T(test_fields_reach_the_engine),
        T(test_refusals_name_the_field),
        T(test_bad_messages_name_the_path),
        T(test_other_models_are_not_found),
        T(test_long_prompts_say_the_context_length),
        T(test_unknown_fields_are_reported),
        T(test_engine_failure_before_the_head_is_a_status),
        T(test_engine_failure_after_the_head_is_an_event_and_no_last_chunk),
        T(test_a_matched_stop_string_is_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
