// server/api_format.c: pieces of JSON that answers are made of, from streams that were never submitted.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "api_common.h"
#include "client.h"

static struct srv_prompt prompts[2] = {{.n = 5}, {.n = 7}};
static int32_t stop_ids[] = {11, 12};
static char model[] = "m\"x";
static struct srv_server server = {.model_name = model};
static struct srv_gen gen;
static struct srv_stream *s;
static struct srv_buf out;

// Two prompts with two choices each.
static int setup(void **state)
{
    (void)state;
    gen = (struct srv_gen){.server = &server, .id = "id-1", .created = 9, .n = 2, .n_prompts = 2, .prompts = prompts};
    s = calloc(1, sizeof *s + 4 * sizeof s->choices[0]);
    s->server = &server;
    s->data = &gen;
    s->n_choices = 4;
    for (int i = 0; i < 4; i++) {
        s->choices[i].stream = s;
        s->choices[i].index = i;
        s->choices[i].stop_id = -1;
        s->choices[i].stats = (struct eng_request_stats){.mode = ENG_MODE_AR, .reason = "because"};
    }
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    for (int i = 0; i < 4; i++)
        srv_buf_free(&s->choices[i].ids);
    free(s);
    srv_buf_free(&out);
    return 0;
}

static void expect(const char *text)
{
    assert_string_equal(out.data, text);
    srv_buf_reset(&out);
}

static void test_small_pieces(void **state)
{
    (void)state;
    assert_string_equal(srv_api_finish_name(ENG_FINISH_STOP), "stop");
    assert_string_equal(srv_api_finish_name(ENG_FINISH_LENGTH), "length");
    static const int32_t ids[] = {0, -1, INT32_MAX};
    srv_api_ids(&out, ids, 0);
    srv_api_ids(&out, ids, 1);
    srv_api_ids(&out, ids, 3);
    expect("[][0][0,-1,2147483647]");
    static const float values[] = {-0.25f, 0, -INFINITY, INFINITY, NAN};
    for (int i = 0; i < 5; i++) {
        srv_api_logprob(&out, values[i]);
        srv_buf_puts(&out, " ");
    }
    expect("-0.25 0 -9999 -9999 -9999 ");
}

static void test_ids_are_gathered_when_asked_for(void **state)
{
    (void)state;
    struct eng_token tokens[2] = {{.id = 3}, {.id = 44}};
    struct eng_event ev = {.tokens = tokens, .n_tokens = 2};
    srv_api_gather_ids(&s->choices[0], &ev);
    assert_int_equal(s->choices[0].ids.len, 0);
    gen.return_ids = true;
    srv_api_gather_ids(&s->choices[0], &ev);
    ev.n_tokens = 1;
    srv_api_gather_ids(&s->choices[0], &ev);
    ev.n_tokens = 0;
    srv_api_gather_ids(&s->choices[0], &ev);
    assert_string_equal(s->choices[0].ids.data, "3,44,3");
}

static void test_usage_counts_a_prompt_once_and_every_choice(void **state)
{
    (void)state;
    for (int i = 0; i < 4; i++) {
        s->choices[i].n_tokens = 1;
        s->choices[i].stats.completion_tokens = 100;
        s->choices[i].stats.cached_tokens = i + 1; // choices after a prompt's first share its cache
    }
    s->choices[3].finish = ENG_FINISH_LENGTH; // then its statistics count, not what was seen
    srv_api_usage(&out, s);
    expect("{\"prompt_tokens\":12,\"completion_tokens\":103,\"total_tokens\":115,"
           "\"prompt_tokens_details\":{\"cached_tokens\":4}}");
}

static void test_stop_reasons(void **state)
{
    (void)state;
    struct srv_choice *c = &s->choices[1];
    char text[] = "E\"ND";
    gen.stop_ids = stop_ids;
    gen.params.n_stop_ids = 2;
    c->finish = ENG_FINISH_STOP;
    c->stop_id = 12;
    srv_api_stop_reason(&out, c);
    expect("\"stop_reason\":12");
    c->stop_id = 13; // the model's own end, which nobody asked for
    srv_api_stop_reason(&out, c);
    expect("\"stop_reason\":null");
    c->stop_id = 12;
    c->finish = ENG_FINISH_LENGTH;
    srv_api_stop_reason(&out, c);
    expect("\"stop_reason\":null");
    c->stop = text;
    srv_api_stop_reason(&out, c);
    expect("\"stop_reason\":\"E\\\"ND\"");
}

static void test_the_trimode_object(void **state)
{
    (void)state;
    struct eng_request_stats *st = &s->choices[0].stats;
    *st = (struct eng_request_stats){.mode = ENG_MODE_SELF_SPECULATION,
                                     .block_length = 16,
                                     .forward_passes = 14,
                                     .completion_tokens = 83,
                                     .blocks = 7,
                                     .drafted_tokens = 105,
                                     .accepted_tokens = 76,
                                     .queue_ms = 0.25,
                                     .total_ms = 203,
                                     .n_spans = 99};
    strcpy(st->reason, "412 tok/s\n\"fast\"");
    for (int i = 0; i < ENG_MAX_SPANS; i++)
        st->spans[i] = (struct eng_span){i, i % 2 ? ENG_MODE_DIFFUSION : ENG_MODE_AR, i % 2 ? 8 : 0};
    srv_api_trimode(&out, s, &s->choices[0]);
    cJSON *j = cJSON_Parse(out.data);
    assert_string_equal(text_at(j, "mode"), "self_speculation");
    assert_string_equal(text_at(j, "reason"), st->reason);
    assert_true(number_at(j, "tokens_per_forward") == 5.929 && number_at(j, "queue_ms") == 0.25);
    assert_true(number_at(j, "block_length") == 16 && number_at(j, "forward_passes") == 14);
    assert_true(number_at(j, "drafted_tokens") == 105 && number_at(j, "accepted_tokens") == 76);
    assert_int_equal(cJSON_GetArraySize(at(j, "timeline")), ENG_MAX_SPANS); // no more are kept than that
    assert_true(cJSON_IsNull(at(j, "timeline.0.block_length")));
    assert_int_equal(number_at(j, "timeline.15.from_token"), 15);
    assert_null(at(j, "choices"));
    cJSON_Delete(j);
    srv_buf_reset(&out);
    srv_api_trimode(&out, s, NULL);
    j = cJSON_Parse(out.data);
    assert_int_equal(cJSON_GetArraySize(at(j, "choices")), 4);
    assert_int_equal(number_at(j, "choices.3.index"), 3);
    assert_int_equal(number_at(j, "choices.3.tokens_per_forward"), 0); // without passes there is no quotient
    assert_true(cJSON_IsNull(at(j, "choices.3.block_length")));
    assert_true(cJSON_IsArray(at(j, "choices.3.timeline")));
    cJSON_Delete(j);
}

#define HEAD(object) "data: {\"id\":\"id-1\",\"object\":\"" object "\",\"created\":9,\"model\":\"m\\\"x\",\"choices\":["

static void test_chunks_end_as_the_options_ask(void **state)
{
    (void)state;
    srv_api_chunk(&out, s);
    expect(HEAD("text_completion"));
    gen.chat = true;
    srv_api_chunk(&out, s);
    expect(HEAD("chat.completion.chunk"));
    srv_api_chunk_end(&out, s, NULL);
    expect("}\n\n");
    gen.include_usage = true;
    srv_api_chunk_end(&out, s, NULL);
    expect(",\"usage\":null}\n\n");
    gen.continuous_usage = true;
    srv_api_chunk_end(&out, s, &s->choices[1]);
    assert_non_null(strstr(out.data, ",\"usage\":{\"prompt_tokens\":12,"));
    assert_non_null(strstr(out.data, ",\"trimode\":{\"mode\":\"ar\",\"reason\":\"because\""));
    srv_buf_reset(&out);
    srv_api_stream_end(&out, s);
    assert_int_equal(strncmp(out.data, HEAD("chat.completion.chunk") "],\"usage\":{", 101), 0);
    assert_non_null(strstr(out.data, "}\n\ndata: [DONE]\n\n"));
    srv_buf_reset(&out);
    gen.include_usage = false;
    srv_api_stream_end(&out, s);
    expect("data: [DONE]\n\n");
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(test_small_pieces),
        T(test_ids_are_gathered_when_asked_for),
        T(test_usage_counts_a_prompt_once_and_every_choice),
        T(test_stop_reasons),
        T(test_the_trimode_object),
        T(test_chunks_end_as_the_options_ask),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
