// server/bench_http.c: answers whole, byte by byte, cut at every byte, and wrong.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <string.h>

#include "bench_http.h"
#include "buf.h"

static struct srv_bench_http h;
static struct srv_buf body;
static int body_fails;

static int on_body(void *user, const char *bytes, size_t n)
{
    (void)user;
    srv_buf_append(&body, bytes, n);
    return body_fails ? -1 : 0;
}

// Reads an answer in pieces of `step` bytes; the last result that was not 0.
static int read_answer(const char *text, size_t n, size_t step)
{
    srv_buf_reset(&body);
    srv_bench_http_begin(&h);
    for (size_t i = 0; i < n; i += step) {
        int status = srv_bench_http_feed(&h, text + i, n - i < step ? n - i : step);
        if (status < 0 || (status > 0 && i + step >= n))
            return status;
        assert_int_equal(status, 0);
    }
    return 0;
}

static const struct {
    const char *text;
    int status;
    bool keep, event_stream;
    const char *body;
} right[] = {
    {"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", 200, true, false, "hello"},
    {"HTTP/1.1 503\r\ncontent-length:0\r\nX: y\r\n\r\n", 503, true, false, ""},
    {"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
     "3\r\nabc\r\nA;x=y\r\n0123456789\r\n0\r\nTrailer: t\r\n\r\n",
     200, true, true, "abc0123456789"},
    {"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 1\r\n\r\nx", 200, false, false, "x"},
    {"HTTP/1.0 404 Not Found\r\nContent-Length:\t2 \r\n\r\nno", 404, false, false, "no"},
    {"HTTP/1.1 204 No Content\r\n\r\n", 204, true, false, ""},
};

static void test_answers_in_pieces_of_any_size(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof right / sizeof *right; i++)
        for (size_t step = 1; step < 80; step++) {
            assert_int_equal(read_answer(right[i].text, strlen(right[i].text), step), 1);
            assert_int_equal(h.status, right[i].status);
            assert_int_equal(h.keep, right[i].keep);
            assert_int_equal(h.event_stream, right[i].event_stream);
            assert_string_equal(body.data ? body.data : "", right[i].body);
            assert_int_equal(srv_bench_http_feed(&h, "x", 1), -1);
            assert_non_null(strstr(h.why, "more came"));
        }
}

static void test_a_cut_answer_is_cut_wherever_it_is_cut(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof right / sizeof *right; i++)
        for (size_t n = 0; n < strlen(right[i].text); n++) {
            assert_int_equal(read_answer(right[i].text, n, 7), 0);
            assert_int_equal(srv_bench_http_eof(&h), -1);
            assert_non_null(strstr(h.why, h.status ? "in the middle" : "before an answer"));
        }
}

static void test_a_body_may_end_with_the_connection(void **state)
{
    (void)state;
    const char *text = "HTTP/1.1 200 OK\r\n\r\nuntil the end";
    assert_int_equal(read_answer(text, strlen(text), 3), 0);
    assert_int_equal(srv_bench_http_eof(&h), 1);
    assert_false(h.keep);
    assert_string_equal(body.data, "until the end");
}

static void test_what_is_not_http(void **state)
{
    (void)state;
    static const char *const wrong[] = {
        "SSH-2.0-OpenSSH\r\n",
        "HTTP/2 200\r\n",
        "HTTP/1.1 20\r\n",
        "HTTP/1.1 2000\r\n",
        "HTTP/1.1 100 Continue\r\n",
        "HTTP/1.1 200 OK\n",
        "HTTP/1.1 200 OK\r\nno colon\r\n",
        "HTTP/1.1 200 OK\r\n: x\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: x\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length:\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 9999999999999999\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 1\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\ng\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n",
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        if (read_answer(wrong[i], strlen(wrong[i]), 1) != -1)
            fail_msg("%s", wrong[i]);
        assert_true(h.why && *h.why);
    }
    static char longest[9000];
    memset(longest, 'x', sizeof longest);
    memcpy(longest, "HTTP/1.1 200 ", 13);
    assert_int_equal(read_answer(longest, sizeof longest, 512), -1);
    assert_int_equal(read_answer("HTTP/1.1 200 \0\r\n", 16, 16), -1);
}

static void test_the_reader_of_the_body_may_stop(void **state)
{
    (void)state;
    body_fails = 1;
    h.why = NULL;
    assert_int_equal(read_answer(right[0].text, strlen(right[0].text), 100), -1);
    assert_null(h.why);
    body_fails = 0;
}

int main(void)
{
    h.on_body = on_body;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_answers_in_pieces_of_any_size),
        cmocka_unit_test(test_a_cut_answer_is_cut_wherever_it_is_cut),
        cmocka_unit_test(test_a_body_may_end_with_the_connection),
        cmocka_unit_test(test_what_is_not_http),
        cmocka_unit_test(test_the_reader_of_the_body_may_stop),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    srv_buf_free(&body);
    return failed;
}
