// Event bytes, and the escaper below them.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <string.h>

#include "sse.h"

static void expect(struct srv_buf *b, const char *text)
{
    assert_false(b->failed);
    assert_string_equal(b->data, text);
    srv_buf_free(b);
}

static void test_strings_are_escaped(void **state)
{
    (void)state;
    struct srv_buf b = {0};
    srv_buf_json(&b, "a\"\\\n\r\t\x01\x7f/\xe2\x82\xac", 12);
    expect(&b, "\"a\\\"\\\\\\n\\r\\t\\u0001\\u007f/\xe2\x82\xac\"");
    srv_buf_json(&b, "\xe2\x82", 2); // half a character
    expect(&b, "\"\\ufffd\\ufffd\"");
    srv_buf_json(&b, "a\0b", 3);
    expect(&b, "\"a\\u0000b\"");
    srv_buf_jsonz(&b, NULL);
    expect(&b, "null");
}

static void test_numbers_are_json(void **state)
{
    (void)state;
    struct srv_buf b = {0};
    srv_buf_number(&b, -0.25);
    srv_buf_puts(&b, " ");
    srv_buf_number(&b, 1.0 / 0.0);
    expect(&b, "-0.25 0");
}

static void test_long_formats_fit(void **state)
{
    (void)state;
    char text[1000];
    memset(text, 'x', 999);
    text[999] = 0;
    struct srv_buf b = {0};
    srv_buf_printf(&b, "<%s>", text);
    assert_int_equal(b.len, 1001);
    assert_int_equal(b.data[1000], '>');
    srv_buf_free(&b);
}

static void test_every_event_is_one_data_line_and_a_blank_line(void **state)
{
    (void)state;
    struct srv_buf b = {0};
    struct srv_error e;
    srv_error_set(&e, "invalid_value", "a.b", "line one\nline two");
    srv_sse_error(&b, &e);
    expect(&b, "data: {\"error\":{\"message\":\"line one\\nline two\",\"type\":\"invalid_request_error\","
               "\"param\":\"a.b\",\"code\":\"invalid_value\"}}\n\n");
    srv_error_status(&e, 500, "server_error", NULL, "x");
    srv_sse_error_object(&b, &e);
    expect(&b, "{\"error\":{\"message\":\"x\",\"type\":\"server_error\",\"param\":null,\"code\":null}}");
    srv_sse_chunk(&b, "id-1", "chat.completion.chunk", 7, "m\"");
    expect(
        &b,
        "data: {\"id\":\"id-1\",\"object\":\"chat.completion.chunk\",\"created\":7,\"model\":\"m\\\"\",\"choices\":[");
    srv_sse_ping(&b);
    srv_sse_done(&b);
    expect(&b, ": ping\n\ndata: [DONE]\n\n");
}

static void test_utf8(void **state)
{
    (void)state;
    assert_true(srv_utf8_valid("a\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80", 10));
    assert_int_equal(srv_utf8_count("a\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80", 10), 4);
    static const char *const bad[] = {
        "\x80",     "\xc1\xbf", "\xe0\x9f\x80", "\xed\xbf\xbf", "\xf0\x8f\x80\x80", "\xf4\x90\x80\x80",
        "\xe2\x82", "\xc3("};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_false(srv_utf8_valid(bad[i], strlen(bad[i])));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_strings_are_escaped),
        cmocka_unit_test(test_numbers_are_json),
        cmocka_unit_test(test_long_formats_fit),
        cmocka_unit_test(test_every_event_is_one_data_line_and_a_blank_line),
        cmocka_unit_test(test_utf8),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
