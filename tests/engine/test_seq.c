// engine/seq.c
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "core.h"
#include "text/tokenizer.h"

// The tiny checkpoints' tokenizer: ids 0 .. 127 are special, 128 + b is the byte b.
static struct eng_tokenizer *tokenizer;
static const int32_t eos[] = {11};

static int load(void **state)
{
    (void)state;
    char err[200] = "";
    return eng_tokenizer_load(TRIMODE_SOURCE_DIR "/tests/vectors/models/wide_q/tokenizer.json", &tokenizer, err,
                              sizeof err);
}

static int unload(void **state)
{
    (void)state;
    eng_tokenizer_free(tokenizer);
    return 0;
}

static struct eng_request *start(struct eng_params p)
{
    struct eng_request_limits limits = {.n_vocab = 384,
                                        .max_context = 60,
                                        .eos_ids = eos,
                                        .n_eos = 1,
                                        .modes = 15,
                                        .block_length = 8,
                                        .threshold = 0.9f,
                                        .tokenizer = tokenizer};
    int32_t prompt[] = {1, 2, 3};
    struct eng_request *r;
    assert_int_equal(eng_request_make(&limits, &p, prompt, 3, &r, NULL, NULL, 0), 0);
    assert_int_equal(eng_seq_start(&r->seq), 0);
    assert_int_equal(eng_seq_start(&r->seq), 0);
    r->seq.n_kv = 3;
    return r;
}

// Appends bytes as tokens, `at_once` to a run; returns how many counted. Text is collected in b.
static int32_t append_bytes(struct eng_request *r, struct eng_event_builder *b, const char *bytes, int at_once)
{
    int32_t taken, sum = 0;
    for (size_t i = 0, n = strlen(bytes); i < n;) {
        struct eng_run run = {0};
        while (run.n < at_once && i < n)
            run.tokens[run.n++] = 128 + (unsigned char)bytes[i++];
        assert_int_equal(eng_seq_append(&r->seq, &run, b, &taken), 0);
        sum += taken;
    }
    return sum;
}

static void test_a_stop_string_is_found_across_runs_and_never_sent(void **state)
{
    (void)state;
    for (int at_once = 1; at_once < 9; at_once++) {
        const char *stops[] = {"STOP", "zzz"};
        struct eng_event_builder b = {0};
        struct eng_params p = eng_params_default();
        p.max_tokens = 50;
        p.stops = stops;
        p.n_stops = 2;
        struct eng_request *r = start(p);
        assert_int_equal(append_bytes(r, &b, "abSTOSTOPxyz", at_once), 9);
        assert_string_equal(b.text.data, "abSTO");
        assert_int_equal(r->seq.finish, ENG_FINISH_STOP);
        assert_string_equal(r->seq.stop, "STOP");
        assert_int_equal(r->seq.stop_id, -1);
        assert_int_equal(b.n_tokens, 9);
        assert_int_equal(b.tokens[8].text_end, 5);
        assert_int_equal(r->seq.stats.completion_tokens, 9);
        eng_event_builder_done(&b);
        eng_request_free(r);
    }
}

static void test_held_back_text_comes_out_at_the_end(void **state)
{
    (void)state;
    const char *stops[] = {"STOP"};
    struct eng_event_builder b = {0};
    struct eng_params p = eng_params_default();
    p.max_tokens = 5;
    p.stops = stops;
    p.n_stops = 1;
    struct eng_request *r = start(p);
    append_bytes(r, &b, "abST", 2);
    assert_string_equal(b.text.data, "ab");
    append_bytes(r, &b, "O", 1);
    assert_int_equal(r->seq.finish, ENG_FINISH_LENGTH);
    assert_string_equal(b.text.data, "abSTO");
    eng_event_builder_done(&b);
    eng_request_free(r);
    // So it does on a cancel.
    b = (struct eng_event_builder){0};
    r = start(p);
    append_bytes(r, &b, "abST", 2);
    eng_seq_end(&r->seq, ENG_FINISH_CANCELLED, NULL, &b);
    assert_string_equal(b.text.data, "abST");
    eng_event_builder_done(&b);
    eng_request_free(r);
}

static void test_half_a_character_waits_for_its_other_half(void **state)
{
    (void)state;
    struct eng_event_builder b = {0};
    struct eng_params p = eng_params_default();
    p.max_tokens = 7;
    struct eng_request *r = start(p);
    append_bytes(r, &b, "a\xc3", 2);
    assert_string_equal(b.text.data, "a");
    assert_int_equal(b.tokens[1].text_end, 1);
    append_bytes(r, &b, "\xa9", 1);
    assert_string_equal(b.text.data, "a\xc3\xa9");
    append_bytes(r, &b, "\xf0\x9f\x98", 3);
    append_bytes(r, &b, "z", 1);
    assert_string_equal(b.text.data, "a\xc3\xa9\xef\xbf\xbdz");
    eng_event_builder_done(&b);
    eng_request_free(r);
    // An end in the middle of a character sends a replacement for it.
    b = (struct eng_event_builder){0};
    p.max_tokens = 2;
    r = start(p);
    append_bytes(r, &b, "a\xc3", 2);
    assert_int_equal(r->seq.finish, ENG_FINISH_LENGTH);
    assert_string_equal(b.text.data, "a\xef\xbf\xbd");
    eng_event_builder_done(&b);
    eng_request_free(r);
}

static void test_end_ids_end_and_special_tokens_are_left_out(void **state)
{
    (void)state;
    for (int skip = 0; skip < 2; skip++) {
        struct eng_event_builder b = {0};
        struct eng_params p = eng_params_default();
        p.skip_special = skip;
        struct eng_request *r = start(p);
        struct eng_run run = {.n = 4, .tokens = {128 + 'a', 20, 11, 128 + 'b'}};
        int32_t taken;
        assert_int_equal(eng_seq_append(&r->seq, &run, &b, &taken), 0);
        assert_int_equal(taken, 3);
        assert_int_equal(r->seq.finish, ENG_FINISH_STOP);
        assert_int_equal(r->seq.stop_id, 11);
        assert_int_equal(b.n_tokens, 2);
        assert_int_equal(r->seq.stats.completion_tokens, 3);
        if (skip)
            assert_string_equal(b.text.data, "a");
        else
            assert_true(b.text.len > 1 && b.text.data[b.text.len - 1] != 'b');
        eng_event_builder_done(&b);
        eng_request_free(r);
    }
}

static void test_stop_strings_are_not_looked_for_before_min_tokens(void **state)
{
    (void)state;
    const char *stops[] = {"ab"};
    struct eng_event_builder b = {0};
    struct eng_params p = eng_params_default();
    p.stops = stops;
    p.n_stops = 1;
    p.min_tokens = 4;
    struct eng_request *r = start(p);
    assert_int_equal(append_bytes(r, &b, "ababcab", 3), 7);
    assert_string_equal(b.text.data, "ababc");
    eng_event_builder_done(&b);
    eng_request_free(r);
}

static void test_the_limit_is_the_smaller_of_max_tokens_and_context(void **state)
{
    (void)state;
    struct eng_event_builder b = {0};
    struct eng_params p = eng_params_default();
    p.max_tokens = 1000;
    struct eng_request *r = start(p);
    assert_int_equal(eng_seq_wanted(&r->seq), 57);
    for (int i = 0; i < 57; i++)
        append_bytes(r, &b, "x", 1);
    assert_int_equal(r->seq.finish, ENG_FINISH_LENGTH);
    assert_int_equal(r->seq.n_tokens, 60);
    eng_event_builder_done(&b);
    eng_request_free(r);
}

static void test_preemption_keeps_tokens_and_goes_back_to_the_prompt(void **state)
{
    (void)state;
    struct eng_event_builder b = {0};
    struct eng_request *r = start(eng_params_default());
    struct eng_seq *q = &r->seq;
    q->n_kv = 2;
    assert_true(eng_seq_in_prompt(q));
    eng_seq_preempt(q);
    assert_int_equal(q->prefill_end, 3); // the prompt was not through yet
    q->n_kv = 3;
    append_bytes(r, &b, "abcd", 4);
    q->n_kv = 6;
    assert_false(eng_seq_in_prompt(q));
    eng_seq_preempt(q);
    assert_int_equal(q->n_kv, 0);
    assert_int_equal(q->prefill_end, 6); // all but the seed
    assert_int_equal(q->n_tokens, 7);
    q->n_kv = 4;
    eng_seq_preempt(q);
    assert_int_equal(q->prefill_end, 6);
    assert_int_equal(q->n_preempted, 3);
    eng_event_builder_done(&b);
    eng_request_free(r);
}

static void test_spans_name_each_change_once(void **state)
{
    (void)state;
    struct eng_event_builder b = {0};
    struct eng_params p = eng_params_default();
    p.max_tokens = 57;
    struct eng_request *r = start(p);
    struct eng_seq *q = &r->seq;
    eng_seq_set_mode(q, ENG_MODE_AR, 8, "first");
    append_bytes(r, &b, "a", 1);
    eng_seq_set_mode(q, ENG_MODE_SELF_SPECULATION, 8, "second");
    assert_int_equal(q->stats.n_spans, 1); // only the seed was there, and it is the new mode's
    append_bytes(r, &b, "bcd", 3);
    eng_seq_set_mode(q, ENG_MODE_SELF_SPECULATION, 8, "third");
    eng_seq_set_mode(q, ENG_MODE_AR, 8, "fourth");
    assert_int_equal(q->stats.n_spans, 2);
    assert_int_equal(q->stats.spans[0].from_token, 0);
    assert_int_equal(q->stats.spans[0].mode, ENG_MODE_SELF_SPECULATION);
    assert_int_equal(q->stats.spans[0].block_length, 8);
    assert_int_equal(q->stats.spans[1].from_token, 4);
    assert_int_equal(q->stats.spans[1].block_length, 0);
    assert_string_equal(q->stats.reason, "fourth");
    for (int i = 0; i < 40; i++) {
        append_bytes(r, &b, "x", 1);
        eng_seq_set_mode(q, i % 2 ? ENG_MODE_AR : ENG_MODE_SELF_SPECULATION, 8, "again");
    }
    assert_int_equal(q->stats.n_spans, ENG_MAX_SPANS);
    eng_event_builder_done(&b);
    eng_request_free(r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_stop_string_is_found_across_runs_and_never_sent),
        cmocka_unit_test(test_held_back_text_comes_out_at_the_end),
        cmocka_unit_test(test_half_a_character_waits_for_its_other_half),
        cmocka_unit_test(test_end_ids_end_and_special_tokens_are_left_out),
        cmocka_unit_test(test_stop_strings_are_not_looked_for_before_min_tokens),
        cmocka_unit_test(test_the_limit_is_the_smaller_of_max_tokens_and_context),
        cmocka_unit_test(test_preemption_keeps_tokens_and_goes_back_to_the_prompt),
        cmocka_unit_test(test_spans_name_each_change_once),
    };
    return cmocka_run_group_tests(tests, load, unload);
}
