// server/bench_check.c: a good stream in pieces of any size, and every way in which a stream can be wrong.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <string.h>

#include "bench_check.h"

static struct srv_bench_check k;
static char stream[8192];

#define HEAD "data: {\"id\":\"a\",\"object\":\"chat.completion.chunk\","
#define ROLE \
    HEAD "\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"finish_reason\":null}]}\n\n"
#define TEXT(ids)                                                                                                    \
    HEAD "\"choices\":[{\"index\":0,\"delta\":{\"content\":\"x\"},\"finish_reason\":null,\"token_ids\":[" ids "]}]}" \
         "\n\n"
#define FINISH(why) HEAD "\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"" why "\"}]}\n\n"
#define COUNTS(p, c, t)                                                                                       \
    HEAD "\"choices\":[],\"usage\":{\"prompt_tokens\":" p ",\"completion_tokens\":" c ",\"total_tokens\":" t  \
         ",\"prompt_tokens_details\":{\"cached_tokens\":2}},\"trimode\":{\"forward_passes\":2,\"timeline\":[" \
         "{\"from_token\":0,\"mode\":\"ar\"},{\"from_token\":1,\"mode\":\"self_speculation\"}]}}\n\n"
#define USAGE COUNTS("7", "3", "10")
#define DONE "data: [DONE]\n\n"
#define GOOD ROLE TEXT("1,2") ": ping\n\n" TEXT("3") FINISH("length") USAGE DONE

static const struct srv_bench_expect chat = {.chat = true, .prompt_tokens = 7, .output_tokens = 3};

static int check_as(const struct srv_bench_expect *expect, const char *text, size_t step)
{
    srv_bench_check_begin(&k, expect, 1);
    for (size_t i = 0, n = strlen(text); i < n; i += step)
        if (srv_bench_check_feed(&k, text + i, n - i < step ? n - i : step))
            return -1;
    return srv_bench_check_end(&k);
}

static void test_a_good_stream_in_pieces_of_any_size(void **state)
{
    (void)state;
    for (size_t step = 1; step < sizeof GOOD; step += 1 + step / 20) {
        if (check_as(&chat, GOOD, step))
            fail_msg("%zu: %s", step, k.error);
        assert_int_equal(k.tokens, 3);
        assert_int_equal(k.prompt_tokens, 7);
        assert_int_equal(k.cached_tokens, 2);
        assert_int_equal(k.forward_passes, 2);
        assert_int_equal(k.mode_tokens[ENG_MODE_AR], 1);
        assert_int_equal(k.mode_tokens[ENG_MODE_SELF_SPECULATION], 2);
    }
}

// A random model's answer with U+0000 in it used to count as an error.
static void test_an_answer_may_hold_any_character(void **state)
{
    (void)state;
    static const char *const texts[] = {"\\u0000", "a\\u0000\\u0000b", "\\\\u0000", "\\\\\\u0000\\n", "\\\"\\u0000"};
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        snprintf(stream, sizeof stream,
                 ROLE HEAD "\"choices\":[{\"index\":0,\"delta\":{\"content\":\"%s\"},\"finish_reason\":null,"
                           "\"token_ids\":[1,2,3]}]}\n\n" FINISH("length") USAGE DONE,
                 texts[i]);
        if (check_as(&chat, stream, 7))
            fail_msg("%s: %s", texts[i], k.error);
    }
}

static void test_a_stream_cut_at_any_byte_is_wrong(void **state)
{
    (void)state;
    for (size_t n = 0; n < sizeof GOOD - 1; n++) {
        snprintf(stream, sizeof stream, "%.*s", (int)n, GOOD);
        assert_int_equal(check_as(&chat, stream, 64), -1);
        assert_true(*k.error);
    }
}

static void test_everything_that_can_be_wrong(void **state)
{
    (void)state;
    static const char *const wrong[][2] = {
        {ROLE TEXT("1,2,3") USAGE FINISH("length") DONE, "before the finish"},
        {ROLE TEXT("1,2,3") FINISH("length") FINISH("length") USAGE DONE, "a second finish"},
        {ROLE TEXT("1,2") FINISH("length") TEXT("3") USAGE DONE, "a chunk after the finish"},
        {ROLE TEXT("1,2,3") USAGE DONE, "before the finish"},
        {ROLE TEXT("1,2,3") FINISH("length") DONE, "no usage"},
        {ROLE TEXT("1,2,3") DONE, "no finish"},
        {ROLE TEXT("1,2,3") FINISH("length") USAGE, "no [DONE]"},
        {ROLE TEXT("1,2,3") FINISH("length") USAGE USAGE DONE, "after the usage"},
        {GOOD DONE, "after [DONE]"},
        {GOOD ROLE, "after [DONE]"},
        {ROLE TEXT("1,2") FINISH("length") USAGE DONE, "says 3 completion tokens, the stream had 2"},
        {ROLE TEXT("1,2,3,4") FINISH("stop") USAGE DONE, "says 3 completion tokens, the stream had 4"},
        {ROLE TEXT("1,2,3") FINISH("length") COUNTS("8", "3", "11") DONE, "says 8 prompt tokens, 7 were sent"},
        {ROLE TEXT("1,2,3") FINISH("length") COUNTS("7", "3", "11") DONE, "does not add up"},
        {ROLE TEXT("1,2") FINISH("length") COUNTS("7", "2", "9") DONE, "2 tokens came, 3 were asked for"},
        {ROLE TEXT("1,2,3") FINISH("stop") USAGE DONE, "were asked for"},
        {TEXT("1,2,3") FINISH("length") USAGE DONE, "no role"},
        {ROLE ROLE TEXT("1,2,3") FINISH("length") USAGE DONE, "role comes twice"},
        {ROLE "data: {\"id\":\"b\",\"object\":\"chat.completion.chunk\",\"choices\":[]}\n\n", "id changes"},
        {"data: {\"id\":\"a\",\"object\":\"text_completion\",\"choices\":[]}\n\n", "no chat.completion.chunk"},
        {"data: {\"object\":\"chat.completion.chunk\",\"choices\":[]}\n\n", "no id"},
        {ROLE HEAD "\"choices\":[]}\n\n", "neither choices nor a usage"},
        {ROLE HEAD "\"choices\":[{\"index\":1,\"delta\":{}}]}\n\n", "nobody asked for"},
        {ROLE HEAD "\"choices\":[{\"index\":0}]}\n\n", "no delta"},
        {ROLE HEAD "\"choices\":[{\"index\":0,\"delta\":{\"content\":1}}]}\n\n", "no string"},
        {ROLE HEAD "\"choices\":[{\"index\":0,\"delta\":{},\"token_ids\":1}]}\n\n", "no list"},
        {ROLE HEAD "\"choices\":{}}\n\n", "one choice"},
        {ROLE "data: {\"error\":{\"message\":\"out of pages\"}}\n\n", "an error in the stream: out of pages"},
        {ROLE "data: {\"error\"\n\n", "not JSON"},
        {ROLE "data: {}\ndata: {}\n\n", "not one data line"},
        {ROLE "event: x\n\n", "not one data line"},
        {ROLE "data:{}\n\n", "not one data line"},
        {ROLE "\n", "ends no event"},
        {ROLE "\r\n", "not one data line"},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        if (!check_as(&chat, wrong[i][0], 50) || !strstr(k.error, wrong[i][1]))
            fail_msg("%s\nshould be: %s\nis: %s", wrong[i][0], wrong[i][1], k.error);
}

// The end-of-text token counts but is not sent, so that one more is right, after `stop` only.
static void test_an_answer_that_ended_by_itself(void **state)
{
    (void)state;
    static const struct srv_bench_expect free_length = {.chat = true};
    assert_int_equal(check_as(&free_length, ROLE TEXT("1,2") FINISH("stop") USAGE DONE, 9), 0);
    assert_int_equal(k.tokens, 3);
    assert_int_equal(check_as(&free_length, ROLE TEXT("1,2,3") FINISH("stop") USAGE DONE, 9), 0);
    assert_int_equal(check_as(&free_length, ROLE TEXT("1") FINISH("stop") USAGE DONE, 9), -1);
    assert_int_equal(check_as(&free_length, ROLE TEXT("1,2") FINISH("length") USAGE DONE, 9), -1);
}

static void test_completions_have_text(void **state)
{
    (void)state;
    static const struct srv_bench_expect completion = {.prompt_tokens = 1, .output_tokens = 1};
#define PIECE(fields) "data: {\"id\":\"a\",\"object\":\"text_completion\",\"choices\":[{\"index\":0," fields "}]}\n\n"
#define TAIL                                                                                                   \
    "data: "                                                                                                   \
    "{\"id\":\"a\",\"object\":\"text_completion\",\"choices\":[],\"usage\":{\"prompt_tokens\":1,\"completion_" \
    "tokens\":1,\"total_tokens\":2}}\n\n" DONE
    assert_int_equal(
        check_as(&completion, PIECE("\"text\":\"x\",\"finish_reason\":\"length\",\"token_ids\":[5]") TAIL, 11), 0);
    assert_int_equal(k.forward_passes, 0);
    assert_int_equal(check_as(&completion, PIECE("\"finish_reason\":\"length\",\"token_ids\":[5]") TAIL, 11), -1);
    assert_non_null(strstr(k.error, "no text"));
}

// Tokens that arrive together share the time since those before them; the first ones have no time before.
static void test_gaps(void **state)
{
    (void)state;
    srv_bench_check_begin(&k, &chat, 5);
    srv_bench_check_feed(&k, ROLE, strlen(ROLE));
    srv_bench_check_arrived(&k, 8);
    assert_true(k.first_ms == 0);
    srv_bench_check_feed(&k, TEXT("1,2"), strlen(TEXT("1,2")));
    srv_bench_check_arrived(&k, 10);
    assert_true(k.first_ms == 10 && k.gaps.n == 0);
    srv_bench_check_feed(&k, TEXT("3,4") TEXT("5,6"), 2 * strlen(TEXT("1,2")));
    srv_bench_check_arrived(&k, 14);
    srv_bench_check_arrived(&k, 20);
    assert_int_equal(k.gaps.n, 4);
    for (int i = 0; i < 4; i++)
        assert_true(k.gaps.values[i] == 1);
    srv_bench_check_feed(&k, TEXT("7"), strlen(TEXT("7")));
    srv_bench_check_arrived(&k, 24);
    assert_true(k.gaps.n == 5 && k.gaps.values[4] == 10);
    srv_bench_check_begin(&k, &chat, 30);
    assert_true(k.gaps.n == 0 && k.tokens == 0 && k.first_ms == 0 && !*k.error);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_good_stream_in_pieces_of_any_size),
        cmocka_unit_test(test_an_answer_may_hold_any_character),
        cmocka_unit_test(test_a_stream_cut_at_any_byte_is_wrong),
        cmocka_unit_test(test_everything_that_can_be_wrong),
        cmocka_unit_test(test_an_answer_that_ended_by_itself),
        cmocka_unit_test(test_completions_have_text),
        cmocka_unit_test(test_gaps),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    srv_bench_check_free(&k);
    return failed;
}
