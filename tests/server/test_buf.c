// server/buf.c: growable bytes, JSON escaping and UTF-8.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <string.h>

#include "buf.h"

static void expect(struct srv_buf *b, const char *text)
{
    assert_false(b->failed);
    assert_int_equal(b->len, strlen(text));
    assert_string_equal(b->data, text);
    srv_buf_free(b);
}

static void test_appends_keep_every_byte_and_a_nul(void **state)
{
    (void)state;
    struct srv_buf b = {0};
    srv_buf_append(&b, "", 0);
    assert_string_equal(b.data, ""); // handlers rely on it
    srv_buf_append(&b, "a\0b", 3);
    srv_buf_puts(&b, "");
    srv_buf_puts(&b, "cd");
    assert_int_equal(b.len, 5);
    assert_memory_equal(b.data, "a\0bcd", 6);
    srv_buf_reset(&b);
    assert_int_equal(b.len, 0);
    assert_string_equal(b.data, "");
    srv_buf_free(&b);
    assert_true(!b.data && !b.cap);
}

static void test_every_length_around_a_growth_fits(void **state)
{
    (void)state;
    char text[600];
    memset(text, 'x', sizeof text);
    for (size_t first = 120; first < 135; first++)
        for (size_t second = 120; second < 135; second++) {
            struct srv_buf b = {0};
            srv_buf_append(&b, text, first);
            srv_buf_append(&b, text, second);
            assert_int_equal(b.len, first + second);
            assert_int_equal(strlen(b.data), b.len);
            srv_buf_free(&b);
        }
    for (size_t n = 250; n < 260; n++) { // the formatter's own memory ends at 256
        struct srv_buf b = {0};
        srv_buf_printf(&b, "<%.*s>", (int)n, text);
        assert_int_equal(b.len, n + 2);
        assert_int_equal(strlen(b.data), n + 2);
        assert_int_equal(b.data[n + 1], '>');
        srv_buf_free(&b);
    }
}

// Symptom: a length near SIZE_MAX doubled the capacity to zero and never returned.
static void test_a_failure_sticks_until_reset(void **state)
{
    (void)state;
    struct srv_buf b = {0};
    srv_buf_puts(&b, "kept");
    srv_buf_append(&b, "x", SIZE_MAX);
    assert_true(b.failed);
    srv_buf_puts(&b, "y");
    srv_buf_printf(&b, "%300d", 1);
    srv_buf_json(&b, "z", 1);
    assert_string_equal(b.data, "kept");
    srv_buf_reset(&b);
    srv_buf_puts(&b, "new");
    expect(&b, "new");
    srv_buf_append(&b, "x", SIZE_MAX / 2);
    assert_true(b.failed && !b.data);
    srv_buf_free(&b);
    assert_false(b.failed);
}

static void test_strings_are_escaped(void **state)
{
    (void)state;
    struct srv_buf b = {0};
    srv_buf_json(&b, "a\"\\\n\r\t\x01\x7f/\xe2\x82\xac", 12);
    expect(&b, "\"a\\\"\\\\\\n\\r\\t\\u0001\\u007f/\xe2\x82\xac\"");
    srv_buf_json(&b, "\xe2\x82", 2); // half a character
    expect(&b, "\"\\ufffd\\ufffd\"");
    srv_buf_json(&b, "\xff\xc3\xa9\x80z", 5); // what follows a bad byte survives
    expect(&b, "\"\\ufffd\xc3\xa9\\ufffdz\"");
    srv_buf_json(&b, "a\0b", 3);
    expect(&b, "\"a\\u0000b\"");
    srv_buf_json(&b, "abc", 0);
    srv_buf_jsonz(&b, NULL);
    srv_buf_jsonz(&b, "n");
    expect(&b, "\"\"null\"n\"");
}

static void test_numbers_are_json(void **state)
{
    (void)state;
    static const double values[] = {-0.25, INFINITY, -INFINITY, 1e300, 0};
    struct srv_buf b = {0};
    for (int i = 0; i < 5; i++) {
        srv_buf_number(&b, values[i]);
        srv_buf_puts(&b, " ");
    }
    srv_buf_number(&b, nan(""));
    expect(&b, "-0.25 0 0 1e+300 0 0");
}

static size_t encode(uint32_t c, unsigned char *p)
{
    if (c < 0x80) {
        p[0] = (unsigned char)c;
        return 1;
    }
    size_t n = c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    for (size_t i = n; i-- > 1; c >>= 6)
        p[i] = (unsigned char)(0x80 | (c & 0x3F));
    p[0] = (unsigned char)((0xF00 >> n) | c);
    return n;
}

static void test_exactly_the_code_points_are_characters(void **state)
{
    (void)state;
    unsigned char p[4];
    for (uint32_t c = 0; c < 0x120000; c++) {
        size_t n = encode(c, p), wanted = c > 0x10FFFF || (c >= 0xD800 && c < 0xE000) ? 0 : n;
        if (srv_utf8_char(p, n) != wanted || srv_utf8_char(p, n - 1) == n)
            fail_msg("U+%04X", c);
    }
    int two = 0, three = 0; // no other sequence is one: not overlong, not cut, not stray
    for (uint32_t v = 0x800000; v <= 0xFFFFFF; v++) {
        p[0] = (unsigned char)(v >> 16), p[1] = (unsigned char)(v >> 8), p[2] = (unsigned char)v;
        size_t n = srv_utf8_char(p, 3);
        two += n == 2 && p[2] == 0;
        three += n == 3;
    }
    assert_int_equal(two, 0x800 - 0x80);
    assert_int_equal(three, 0x10000 - 0x800 - 0x800);
}

static void test_texts_are_valid_as_a_whole(void **state)
{
    (void)state;
    const char *text = "a\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80";
    assert_true(srv_utf8_valid(text, 10) && srv_utf8_valid(text, 0));
    assert_int_equal(srv_utf8_count(text, 10), 4);
    assert_int_equal(srv_utf8_count(text, 0), 0);
    for (size_t n = 1; n < 10; n++)
        assert_int_equal(srv_utf8_valid(text, n), n == 1 || n == 3 || n == 6);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_appends_keep_every_byte_and_a_nul),
        cmocka_unit_test(test_every_length_around_a_growth_fits),
        cmocka_unit_test(test_a_failure_sticks_until_reset),
        cmocka_unit_test(test_strings_are_escaped),
        cmocka_unit_test(test_numbers_are_json),
        cmocka_unit_test(test_exactly_the_code_points_are_characters),
        cmocka_unit_test(test_texts_are_valid_as_a_whole),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
