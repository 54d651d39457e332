// HTTP itself: routes, methods, keys, body limits and types, request ids, and header blocks meant to smuggle.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "client.h"
#include "http_guard.h"

static struct srv_config config;
static char key_path[] = "/tmp/trimode-key-XXXXXX";

static void set(const char *key, const char *value)
{
    char err[200];
    assert_int_equal(srv_config_set(&config, key, value, SRV_FROM_FLAG, "test", err, sizeof err), 0);
}

static int setup(void **state)
{
    (void)state;
    test_config(&config);
    set("max_body", "4096");
    test_start(&config);
    return 0;
}

static int setup_keys(void **state)
{
    (void)state;
    FILE *f = fopen(key_path, "w");
    fputs("# keys\n\nsecret-one\r\nsecret-two\n", f);
    fclose(f);
    test_config(&config);
    set("api_key_file", key_path);
    set("metrics_key_file", key_path);
    set("cors_origin", "https://chat.example");
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

static int status_of(const char *bytes)
{
    int fd = client_connect();
    client_sendz(fd, bytes);
    struct reply r = client_reply(fd);
    int status = r.status;
    reply_free(&r);
    close(fd);
    return status;
}

static void test_unknown_paths_are_named(void **state)
{
    (void)state;
    cJSON *j = get_json("/v1/v1/models", 404);
    assert_string_equal(text_at(j, "error.message"), "Invalid URL (GET /v1/v1/models)");
    assert_true(cJSON_IsNull(at(j, "error.code")));
    cJSON_Delete(j);
    j = post_json("/v1/embeddings", "{}", 404);
    cJSON_Delete(j);
}

static void test_wrong_methods_get_allow(void **state)
{
    (void)state;
    struct reply r = http_get("/v1/chat/completions", "");
    assert_int_equal(r.status, 405);
    assert_string_equal(header_of(&r, "Allow"), "POST, OPTIONS");
    assert_non_null(strstr(r.body, "method_not_supported"));
    reply_free(&r);
    r = http_post("/health", "{}");
    assert_int_equal(r.status, 405);
    assert_string_equal(header_of(&r, "Allow"), "GET, HEAD, OPTIONS");
    reply_free(&r);
    assert_int_equal(status_of("HEAD /health HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n"), 200);
    assert_int_equal(status_of("DELETE /v1/models HTTP/1.1\r\nHost: t\r\n\r\n"), 405);
}

static void test_body_limits(void **state)
{
    (void)state;
    char *big = malloc(20000);
    memset(big, ' ', 19999);
    big[19999] = 0;
    // Announced and short enough to be thrown away: the connection stays usable.
    big[6000] = 0;
    int fd = client_connect();
    client_post(fd, "/tokenize", "", big);
    struct reply r = client_reply(fd);
    assert_int_equal(r.status, 413);
    assert_non_null(strstr(r.body, "request_too_large"));
    reply_free(&r);
    client_post(fd, "/tokenize", "", "{\"prompt\":\"ab\"}");
    r = client_reply(fd);
    assert_int_equal(r.status, 200);
    reply_free(&r);
    close(fd);
    // Asked for first: answered before any body.
    assert_int_equal(
        status_of("POST /tokenize HTTP/1.1\r\nHost: t\r\nContent-Length: 5000\r\nExpect: 100-continue\r\n\r\n"), 413);
    // Far too long: answered at once.
    assert_int_equal(status_of("POST /tokenize HTTP/1.1\r\nHost: t\r\nContent-Length: 99999999\r\n\r\n"), 413);
    // Without a length: noticed on the way.
    fd = client_connect();
    client_sendz(fd, "POST /tokenize HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n1388\r\n");
    big[5000] = 0;
    client_sendz(fd, big);
    client_sendz(fd, "\r\n0\r\n\r\n");
    r = client_reply(fd);
    assert_int_equal(r.status, 413);
    reply_free(&r);
    close(fd);
    free(big);
}

static void test_content_types(void **state)
{
    (void)state;
    static const struct {
        const char *type;
        int status;
    } cases[] = {{"", 200},
                 {"Content-Type: application/json\r\n", 200},
                 {"Content-Type: Application/JSON; charset=utf-8\r\n", 200},
                 {"Content-Type: application/vnd.x+json\r\n", 200},
                 {"Content-Type: application/x-www-form-urlencoded\r\n", 200},
                 {"Content-Type: text/html\r\n", 415},
                 {"Content-Type: multipart/form-data; boundary=x\r\n", 415},
                 {"Content-Type: application/jsonx\r\n", 415}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int fd = client_connect();
        client_post(fd, "/tokenize", cases[i].type, "{\"prompt\":\"ab\"}");
        struct reply r = client_reply(fd);
        if (r.status != cases[i].status)
            fail_msg("%s gave %d", cases[i].type, r.status);
        reply_free(&r);
        close(fd);
    }
}

static void test_bad_json_is_a_400(void **state)
{
    (void)state;
    static const char *const bodies[] = {"",
                                         "nonsense",
                                         "[1]",
                                         "{\"prompt\":\"a\"} x",
                                         "{\"prompt\":\"\xff\"}",
                                         "{\"prompt\":\"\\u0000\"}",
                                         "{\"prompt\":1e999}"};
    for (size_t i = 0; i < sizeof bodies / sizeof *bodies; i++) {
        cJSON *j = post_json("/v1/completions", bodies[i], 400);
        assert_string_equal(text_at(j, "error.type"), "invalid_request_error");
        cJSON_Delete(j);
    }
}

// Symptom: a proxy and libmicrohttpd 0.9.75 disagree where a request ends, and a hidden second one gets through.
static void test_smuggling_is_refused_and_the_connection_closed(void **state)
{
    (void)state;
    static const char *const heads[] = {
        "Content-Length: 2\r\nContent-Length: 40\r\n",
        "Content-Length: 2\r\nContent-Length: 2\r\n",
        "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: xchunked\r\n",
        "Transfer-Encoding: gzip, chunked\r\n",
        "Content-Length : 5\r\n",
        "Host: other\r\nContent-Length: 2\r\n",
    };
    for (size_t i = 0; i < sizeof heads / sizeof *heads; i++) {
        char request[512];
        snprintf(request, sizeof request,
                 "POST /tokenize HTTP/1.1\r\nHost: t\r\n%s\r\n{}GET /version HTTP/1.1\r\nHost: t\r\n\r\n", heads[i]);
        int fd = client_connect();
        client_sendz(fd, request);
        char *all = client_read_until(fd, "never", 3000);
        if (strncmp(all, "HTTP/1.1 400", 12))
            fail_msg("%s gave %.40s", heads[i], all);
        assert_null(strstr(all, "libmicrohttpd"));
        assert_null(strstr(all + 1, "HTTP/1.1 "));
        free(all);
        close(fd);
    }
    assert_int_equal(status_of("GET /health HTTP/1.1\r\n\r\n"), 400); // no Host
}

static void test_header_blocks_are_bounded(void **state)
{
    (void)state;
    char *head = malloc(400000);
    static const int sizes[] = {20000, 300000}, statuses[] = {200, 431};
    for (int i = 0; i < 2; i++) {
        int n = sprintf(head, "GET /health HTTP/1.1\r\nHost: t\r\n");
        for (int k = 0; n < sizes[i]; k++)
            n += sprintf(head + n, "X-Header-%d: some value of no interest to anybody\r\n", k);
        strcpy(head + n, "\r\n");
        assert_int_equal(status_of(head), statuses[i]);
    }
    head[0] = 0;
    char *path = malloc(300000);
    memset(path, 'a', 299999);
    path[299999] = 0;
    sprintf(head, "GET /%s HTTP/1.1\r\nHost: t\r\n\r\n", path);
    assert_int_equal(status_of(head), 414);
    assert_int_equal(status_of("GET /health HTTP/1.1\r\nHost: t\r\n\r\n"), 200);
    free(path);
    free(head);
}

static void test_a_body_on_get_is_not_the_next_request(void **state)
{
    (void)state;
    int fd = client_connect();
    client_sendz(
        fd, "GET /health HTTP/1.1\r\nHost: t\r\nContent-Length: 37\r\n\r\nGET /version HTTP/1.1\r\nHost: other\r\n\r\n"
            "GET /nope HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n");
    char *all = client_read_until(fd, "never", 3000);
    assert_null(strstr(all, "libuv"));
    assert_non_null(strstr(all, "Invalid URL (GET /nope)"));
    free(all);
    close(fd);
}

static void test_request_ids(void **state)
{
    (void)state;
    struct reply r = http_get("/health", "X-Request-Id: abc-123\r\n");
    assert_string_equal(header_of(&r, "x-request-id"), "abc-123");
    reply_free(&r);
    r = http_get("/health", "X-Request-Id: with space\r\n");
    assert_int_equal(strncmp(header_of(&r, "x-request-id"), "req_", 4), 0);
    reply_free(&r);
    char text[200], out[130];
    memset(text, 'a', 129);
    text[129] = 0;
    srv_http_request_id(text, out, sizeof out);
    assert_int_equal(strncmp(out, "req_", 4), 0);
    text[128] = 0;
    srv_http_request_id(text, out, sizeof out);
    assert_string_equal(out, text);
}

static void test_pipelined_requests_are_answered_in_order(void **state)
{
    (void)state;
    int fd = client_connect();
    client_sendz(
        fd, "GET /health HTTP/1.1\r\nHost: t\r\n\r\nPOST /tokenize HTTP/1.1\r\nHost: t\r\nContent-Length: 14\r\n\r\n"
            "{\"prompt\":\"a\"}GET /nope HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n");
    char *all = client_read_until(fd, "Invalid URL", 3000);
    char *first = strstr(all, "\"ok\""), *second = strstr(all, "\"count\":1"), *third = strstr(all, "Invalid URL");
    assert_true(first && second && third && first < second && second < third);
    free(all);
    close(fd);
}

static void test_keys(void **state)
{
    (void)state;
    struct reply r = http_get("/v1/models", "");
    assert_int_equal(r.status, 401);
    assert_string_equal(header_of(&r, "WWW-Authenticate"), "Bearer");
    assert_non_null(strstr(r.body, "\"code\":null"));
    reply_free(&r);
    static const struct {
        const char *header;
        int status;
    } cases[] = {{"Authorization: Bearer secret-one\r\n", 200}, {"Authorization: bearer secret-two\r\n", 200},
                 {"Authorization: Bearer secret-on\r\n", 401},  {"Authorization: Bearer secret-onex\r\n", 401},
                 {"Authorization: Bearer \r\n", 401},           {"Authorization: Basic secret-one\r\n", 401},
                 {"Authorization: Bearer # keys\r\n", 401}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        r = http_get("/v1/models", cases[i].header);
        assert_int_equal(r.status, cases[i].status);
        reply_free(&r);
        r = http_get("/metrics", cases[i].header);
        assert_int_equal(r.status, cases[i].status);
        reply_free(&r);
    }
    r = http_get("/health", "");
    assert_int_equal(r.status, 200);
    reply_free(&r);
    r = http_get("/status", "");
    assert_int_equal(r.status, 401);
    reply_free(&r);
}

static void test_cors(void **state)
{
    (void)state;
    int fd = client_connect();
    client_sendz(fd, "OPTIONS /v1/chat/completions HTTP/1.1\r\nHost: t\r\nOrigin: https://chat.example\r\n"
                     "Access-Control-Request-Method: POST\r\n\r\n");
    char *all = client_read_until(fd, "\r\n\r\n", 2000);
    assert_int_equal(strncmp(all, "HTTP/1.1 204", 12), 0);
    assert_non_null(strstr(all, "Access-Control-Allow-Origin: https://chat.example\r\n"));
    assert_non_null(strstr(all, "Access-Control-Allow-Headers: "));
    free(all);
    close(fd);
    struct reply r = http_get("/v1/models", "");
    assert_string_equal(header_of(&r, "Access-Control-Allow-Origin"), "https://chat.example");
    reply_free(&r);
}

int main(void)
{
    int fd = mkstemp(key_path);
    if (fd < 0)
        return 1;
    close(fd);
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
#define K(f) cmocka_unit_test_setup_teardown(f, setup_keys, teardown)
    const struct CMUnitTest tests[] = {
        T(test_unknown_paths_are_named),
        T(test_wrong_methods_get_allow),
        T(test_body_limits),
        T(test_content_types),
        T(test_bad_json_is_a_400),
        T(test_smuggling_is_refused_and_the_connection_closed),
        T(test_header_blocks_are_bounded),
        T(test_a_body_on_get_is_not_the_next_request),
        T(test_request_ids),
        T(test_pipelined_requests_are_answered_in_order),
        K(test_keys),
        K(test_cors),
    };
    int status = cmocka_run_group_tests(tests, NULL, NULL);
    unlink(key_path);
    return status;
}
