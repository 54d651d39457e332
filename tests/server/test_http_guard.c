// server/http_guard.c: header blocks, content types and request ids, behind a bare libmicrohttpd.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "http_guard.h"

static struct MHD_Daemon *daemon_;
static struct srv_exchange seen;
static uint64_t length;
static bool refused;

static enum MHD_Result handle(void *user, struct MHD_Connection *connection, const char *url, const char *method,
                              const char *version, const char *upload, size_t *upload_size, void **exchange)
{
    (void)user, (void)url, (void)method, (void)version, (void)upload, (void)upload_size;
    if (*exchange)
        return MHD_NO;
    *exchange = &seen;
    seen = (struct srv_exchange){.connection = connection};
    refused = srv_http_guard(&seen, &length);
    struct MHD_Response *r = MHD_create_response_from_buffer(0, NULL, MHD_RESPMEM_PERSISTENT);
    MHD_add_response_header(r, "Connection", "close");
    enum MHD_Result ok = MHD_queue_response(connection, 299, r);
    MHD_destroy_response(r);
    return ok;
}

static int start(void **state)
{
    (void)state;
    struct sockaddr_in any = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    daemon_ = MHD_start_daemon(MHD_USE_EPOLL, 0, NULL, NULL, handle, NULL, MHD_OPTION_SOCK_ADDR, &any,
                               MHD_OPTION_CONNECTION_TIMEOUT, 3u, MHD_OPTION_STRICT_FOR_CLIENT, 1,
                               MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)(128 << 10), MHD_OPTION_END);
    return daemon_ ? 0 : -1;
}

static int stop(void **state)
{
    (void)state;
    MHD_stop_daemon(daemon_);
    return 0;
}

// Sends a header block: true when it got as far as the guard, false when MHD refused it.
static bool send_head(const char *lines)
{
    static char out[80 << 10];
    char in[64] = "";
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    to.sin_port = htons(MHD_get_daemon_info(daemon_, MHD_DAEMON_INFO_BIND_PORT)->port);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&to, sizeof to), 0);
    int n = snprintf(out, sizeof out, "POST / HTTP/1.1\r\nHost: t\r\n%s\r\n", lines);
    assert_true(n < (int)sizeof out);
    assert_int_equal(send(fd, out, (size_t)n, MSG_NOSIGNAL), n);
    for (int i = 0; i < 100 && recv(fd, in, sizeof in - 1, MSG_DONTWAIT) <= 0; i++)
        MHD_run_wait(daemon_, 50);
    close(fd);
    return !strncmp(in, "HTTP/1.1 299", 12);
}

static void test_lengths_are_told(void **state)
{
    (void)state;
    static const struct {
        const char *lines;
        uint64_t length;
    } cases[] = {
        {"", 0},
        {"Content-Length: 0\r\n", 0},
        {"content-length: 17\r\n", 17},
        {"Content-Length: 18446744073709551000\r\n", 18446744073709551000u},
        {"Transfer-Encoding: chunked\r\n", UINT64_MAX},
        {"transfer-encoding: CHUNKED\r\n", UINT64_MAX},
        {"X-Content-Length: 5\r\nX-Transfer-Encoding: gzip\r\nX-Host: a\r\n", 0},
        {"aZ09!#$%&'*+-.^_`|~: every character of a name\r\nEmpty:\r\n", 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        if (!send_head(cases[i].lines) || refused)
            fail_msg("refused: %s%s", cases[i].lines, seen.error.message);
        assert_true(length == cases[i].length);
        assert_int_equal(seen.has_body, length > 0);
        assert_int_equal(seen.error.status, 0);
    }
}

// Symptom of the last: the second half of a folded line was glued to the name, and the body became a second request.
static void test_what_two_parsers_could_read_differently_is_refused(void **state)
{
    (void)state;
    static const struct {
        const char *lines, *says;
    } cases[] = {
        {"Content-Length: 2\r\ncontent-length: 2\r\n", "more than one Content-Length"},
        {"Content-Length: 0\r\nTransfer-Encoding: chunked\r\n", "both Content-Length and Transfer-Encoding"},
        {"Transfer-Encoding: identity\r\n", "other than chunked"},
        {"Transfer-Encoding: chunked, chunked\r\n", "other than chunked"},
        {"Transfer-Encoding: chunked;x=y\r\n", "other than chunked"},
        {"Transfer-Encoding: \r\n", "other than chunked"},
        {"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", "other than chunked"},
        {"host: t\r\n", "more than one Host"},
        {"Bad(name): 1\r\n", "a header name with forbidden characters"},
        {"Transfer-Encoding\v: chunked\r\n", "a header name with forbidden characters"},
        {"Content-Length\xc2\xa0: 5\r\n", "a header name with forbidden characters"},
        {"X: 1\r\n Content-Length: 5\r\n", "a header name with forbidden characters"},
        {"Transfer-Encoding:\r\n chunked\r\n", "a folded"},
        {"transfer-encoding: chu\r\n\tnked\r\n", "a folded"},
        {"Content-Length:\r\n 40\r\n", "a folded"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        refused = false;
        if (!send_head(cases[i].lines) || !refused)
            fail_msg("accepted: %s", cases[i].lines);
        assert_int_equal(seen.error.status, 400);
        if (!strstr(seen.error.message, cases[i].says))
            fail_msg("%s: %s", cases[i].lines, seen.error.message);
    }
}

// 17 bytes of request line and 9 of Host stand before the lines, 2 of the empty line after them.
static void test_a_header_block_has_a_limit(void **state)
{
    (void)state;
    static char lines[SRV_MAX_HEADER_BLOCK];
    for (int over = 0; over <= 1; over++) {
        int n = SRV_MAX_HEADER_BLOCK - 28 + over;
        memset(lines, 'a', (size_t)n);
        memcpy(lines, "X: ", 3);
        memcpy(lines + n - 2, "\r\n", 3);
        assert_true(send_head(lines));
        assert_int_equal(refused, over);
        assert_int_equal(seen.error.status, over ? 431 : 0);
    }
}

// Numbers that strtoull would read in part never get as far as the guard.
static void test_malformed_lengths_are_refused_before(void **state)
{
    (void)state;
    static const char *const lengths[] = {"-1", "+5", "0x5", "5,5", "5 5", "a", "18446744073709551616"};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        char line[64];
        snprintf(line, sizeof line, "Content-Length: %s\r\n", lengths[i]);
        if (send_head(line) && !refused)
            fail_msg("accepted: %s as %llu", lengths[i], (unsigned long long)length);
    }
}

static void test_content_types_that_carry_json(void **state)
{
    (void)state;
    static const char *const good[] = {"",
                                       " ",
                                       "application/json",
                                       "APPLICATION/JSON",
                                       "application/json ; charset=x",
                                       "\tapplication/json",
                                       ";x",
                                       "application/x-www-form-urlencoded",
                                       "a/b+JSON;q=1"};
    static const char *const bad[] = {
        "application/jso", "application/json2", "application/json,text/html",           "text/plain", "json", "+json",
        "ab+json",         "a/b+jsonx",         "multipart/form-data; boundary=/a+json"};
    assert_true(srv_http_is_json(NULL));
    for (size_t i = 0; i < sizeof good / sizeof *good; i++)
        if (!srv_http_is_json(good[i]))
            fail_msg("refused: %s", good[i]);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        if (srv_http_is_json(bad[i]))
            fail_msg("accepted: %s", bad[i]);
}

static void test_ids_are_the_clients_or_new(void **state)
{
    (void)state;
    char given[200], out[130], other[130];
    memset(given, '~', sizeof given);
    given[128] = 0;
    srv_http_request_id(given, out, sizeof out);
    assert_string_equal(out, given);
    given[128] = '~';
    given[129] = 0;
    static const char *const bad[] = {NULL, "", "a b", "a\tb", "a\r\nb", "\x7f", "caf\xc3\xa9"};
    for (size_t i = 0; i <= sizeof bad / sizeof *bad; i++) {
        srv_http_request_id(i ? bad[i - 1] : given, out, sizeof out);
        assert_int_equal(strlen(out), 36);
        assert_int_equal(strncmp(out, "req_", 4), 0);
        assert_int_equal(strspn(out + 4, "0123456789abcdef"), 32);
        srv_http_request_id(i ? bad[i - 1] : given, other, sizeof other);
        assert_string_not_equal(out, other);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lengths_are_told),
        cmocka_unit_test(test_what_two_parsers_could_read_differently_is_refused),
        cmocka_unit_test(test_a_header_block_has_a_limit),
        cmocka_unit_test(test_malformed_lengths_are_refused_before),
        cmocka_unit_test(test_content_types_that_carry_json),
        cmocka_unit_test(test_ids_are_the_clients_or_new),
    };
    return cmocka_run_group_tests(tests, start, stop);
}
