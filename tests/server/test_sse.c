// Event bytes.
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_event_is_one_data_line_and_a_blank_line),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
