// engine/output.c: detokeniser and stop strings joined.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/err.h"
#include "output.h"
#include "text/tokenizer.h"

// The tiny checkpoints' tokenizer: ids 0 .. 127 are special, 128 + b is the byte b.
static struct eng_tokenizer *load(void)
{
    struct eng_tokenizer *t = NULL;
    assert_int_equal(eng_tokenizer_load(TRIMODE_SOURCE_DIR "/tests/vectors/models/wide_q/tokenizer.json", &t, NULL, 0),
                     0);
    return t;
}

// Pushes bytes, the first n_unsearched without a search; the index of the stop that was found.
static int32_t push(struct eng_output *o, const char *bytes, size_t n_unsearched, struct eng_buf *text)
{
    for (size_t i = 0; bytes[i]; i++) {
        int32_t stop;
        assert_int_equal(eng_output_push(o, 128 + (unsigned char)bytes[i], i >= n_unsearched, text, &stop), 0);
        if (stop >= 0)
            return stop;
    }
    return -1;
}

static void check(const char *bytes, size_t n_unsearched, int32_t want_stop, const char *before_end, const char *want)
{
    static const char *const stops[] = {"STOP", "\xC3\xA9!"};
    struct eng_tokenizer *t = load();
    struct eng_output o;
    struct eng_buf text = {0};
    assert_int_equal(eng_output_init(&o, t, true, stops, 2), 0);
    assert_int_equal(push(&o, bytes, n_unsearched, &text), want_stop);
    assert_string_equal(text.data ? text.data : "", before_end);
    assert_int_equal(eng_output_end(&o, &text), 0);
    assert_string_equal(text.data ? text.data : "", want);
    eng_output_done(&o);
    eng_output_done(&o); // of a zeroed one
    eng_buf_free(&text);
    eng_tokenizer_free(t);
}

static void test_stops_and_what_is_held_back(void **state)
{
    (void)state;
    check("abc", 0, -1, "abc", "abc");
    check("abSTOPc", 0, 0, "ab", "ab");
    check("abSTO", 0, -1, "ab", "abSTO");
    check("x\xC3\xA9!y", 0, 1, "x", "x");
    check("x\xC3\xA9?", 0, -1, "x\xC3\xA9?", "x\xC3\xA9?");
    check("x\xC3", 0, -1, "x", "x\xEF\xBF\xBD");
    check("STOPSTOP", 4, 0, "STOP", "STOP"); // not searched for in the first four
}

static void test_without_stops_and_unknown_ids(void **state)
{
    (void)state;
    struct eng_tokenizer *t = load();
    struct eng_output o;
    struct eng_buf text = {0};
    int32_t stop;
    assert_int_equal(eng_output_init(&o, t, true, NULL, 0), 0);
    assert_int_equal(push(&o, "ok", 0, &text), -1);
    assert_int_equal(eng_output_push(&o, 11, true, &text, &stop), 0); // special: no text
    assert_int_equal(eng_output_push(&o, 100000, true, &text, &stop), 0);
    assert_int_equal(push(&o, "\xE4\xBD", 0, &text), -1);
    assert_int_equal(eng_output_end(&o, &text), 0);
    assert_string_equal(text.data, "ok\xEF\xBF\xBD");
    eng_output_done(&o);
    eng_buf_free(&text);
    eng_tokenizer_free(t);
}

static void test_without_a_tokenizer_there_is_no_text(void **state)
{
    (void)state;
    struct eng_output o;
    struct eng_buf text = {0};
    int32_t stop = 5;
    assert_int_equal(eng_output_init(&o, NULL, true, NULL, 0), 0);
    assert_int_equal(eng_output_push(&o, 200, true, &text, &stop), 0);
    assert_int_equal(stop, -1);
    assert_int_equal(eng_output_end(&o, &text), 0);
    assert_int_equal(text.len, 0);
    eng_output_done(&o);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_stops_and_what_is_held_back),
        cmocka_unit_test(test_without_stops_and_unknown_ids),
        cmocka_unit_test(test_without_a_tokenizer_there_is_no_text),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
