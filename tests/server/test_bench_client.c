// server/bench_client.c: one client against a scripted peer: what goes over the wire, connections that are kept,
// closed, cut, reset or silent.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <arpa/inet.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "bench_client.h"

// ---- the peer -------------------------------------------------------------------------------------------------------

enum then { KEEP, CLOSE, RESET, HANG }; // after an answer; HANG: until the client goes away
struct step {
    const char *answer;
    enum then then;
};
static const struct step *steps;
static int n_steps, n_connections, listener, port;
static char asked[8][1024]; // by step

static bool read_request(int fd, char *text)
{
    size_t n = 0;
    for (text[0] = 0; !strstr(text, "\r\n\r\n");) {
        ssize_t got = recv(fd, text + n, 1023 - n, 0);
        if (got <= 0)
            return false;
        n += (size_t)got;
        text[n] = 0;
    }
    return true;
}

static void *peer(void *user)
{
    (void)user;
    for (int i = 0; i < n_steps;) {
        int fd = accept(listener, NULL, NULL);
        enum then then = KEEP;
        n_connections++;
        while (then == KEEP && i < n_steps && read_request(fd, asked[i])) {
            send(fd, steps[i].answer, strlen(steps[i].answer), MSG_NOSIGNAL);
            then = steps[i++].then;
        }
        char byte;
        if (then == HANG || then == KEEP)
            while (recv(fd, &byte, 1, 0) > 0)
                ;
        if (then == RESET)
            setsockopt(fd, SOL_SOCKET, SO_LINGER, &(struct linger){1, 0}, sizeof(struct linger));
        close(fd);
    }
    return NULL;
}

// ---- the client -----------------------------------------------------------------------------------------------------

static uv_loop_t loop;
static struct srv_bench_target target;
static struct srv_bench_client client;
static const struct srv_bench_expect *expect;
static int n_wanted, n_done, pause_ms;
static char errors[8][300];
static char err[640];

static void on_done(struct srv_bench_client *c)
{
    snprintf(errors[n_done++], sizeof errors[0], "%s", c->error);
    if (n_done == n_wanted) {
        uv_stop(&loop);
        return;
    }
    usleep((unsigned)pause_ms * 1000);
    srv_bench_client_send(c, "/again", NULL, expect);
}

// n requests, one after the other, against the script.
static void talk(const struct step *script, int n_script, int n, const struct srv_bench_expect *stream)
{
    pthread_t thread;
    char url[64];
    steps = script;
    n_steps = n_script;
    n_connections = n_done = 0;
    n_wanted = n;
    expect = stream;
    pthread_create(&thread, NULL, peer, NULL);
    uv_loop_init(&loop);
    uint64_t timeout = target.timeout_ms;
    memset(&target, 0, sizeof target);
    target.loop = &loop;
    target.timeout_ms = timeout;
    snprintf(target.key, sizeof target.key, "k1");
    snprintf(url, sizeof url, "http://127.0.0.1:%d/sub/v1/", port);
    assert_int_equal(srv_bench_target_open(&target, url, err, sizeof err), 0);
    srv_bench_client_done(&client); // the last talk's
    srv_bench_client_init(&client, &target);
    client.on_done = on_done;
    struct srv_buf json = {0};
    srv_buf_puts(&json, "{}");
    srv_bench_client_send(&client, "/first", stream ? &json : NULL, stream);
    uv_run(&loop, UV_RUN_DEFAULT);
    srv_bench_client_close(&client);
    while (uv_run(&loop, UV_RUN_DEFAULT))
        ;
    assert_int_equal(uv_loop_close(&loop), 0);
    pthread_join(thread, NULL);
    assert_int_equal(n_done, n);
    srv_buf_free(&json);
}

#define TALK(n, stream, ...)                                     \
    do {                                                         \
        static const struct step script[] = {__VA_ARGS__};       \
        talk(script, sizeof script / sizeof *script, n, stream); \
    } while (0)

static int setup(void **state)
{
    (void)state;
    target.timeout_ms = 20000;
    pause_ms = 0;
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    srv_bench_client_done(&client);
    return 0;
}

#define OK "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
static const struct srv_bench_expect one = {.prompt_tokens = 1, .output_tokens = 1};
#define SSE "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
#define TOKEN                                                                                                        \
    "data: {\"id\":\"a\",\"object\":\"text_completion\",\"choices\":[{\"index\":0,\"text\":\"x\",\"finish_reason\":" \
    "\"length\",\"token_ids\":[5]}]}\n\n"
#define USAGE                                                                                           \
    "data: {\"id\":\"a\",\"object\":\"text_completion\",\"choices\":[],\"usage\":{\"prompt_tokens\":1," \
    "\"completion_tokens\":1,\"total_tokens\":2}}\n\n"
#define END "data: [DONE]\n\n"

static void test_requests_share_a_connection(void **state)
{
    (void)state;
    TALK(3, NULL, {OK, KEEP}, {OK, KEEP}, {OK, CLOSE});
    assert_int_equal(n_connections, 1);
    char text[300];
    snprintf(text, sizeof text,
             "GET /sub/first HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUser-Agent: trimode-bench\r\nAuthorization: Bearer "
             "k1\r\n\r\n",
             port);
    assert_string_equal(asked[0], text);
    for (int i = 0; i < 3; i++)
        assert_string_equal(errors[i], "");
    assert_string_equal(client.body.data, "{}");
}

static void test_a_stream_is_verified_and_timed(void **state)
{
    (void)state;
    TALK(1, &one, {SSE "\r\n" TOKEN USAGE END, CLOSE});
    assert_string_equal(errors[0], "");
    assert_non_null(strstr(asked[0], "POST /sub/first HTTP/1.1\r\n"));
    assert_non_null(strstr(asked[0], "Content-Length: 2\r\n\r\n"));
    const struct srv_bench_check *k = &client.check;
    assert_int_equal(k->tokens, 1);
    assert_true(k->start_ms > 0 && k->first_ms > k->start_ms && client.ended_ms >= k->first_ms);
}

// A server may close a connection that rests, or just as the next request is sent: no error, another connection.
static void test_a_closed_connection_is_opened_again(void **state)
{
    (void)state;
    pause_ms = 50;
    TALK(3, NULL, {OK, CLOSE}, {OK, RESET}, {OK, CLOSE});
    assert_int_equal(n_connections, 3);
    for (int i = 0; i < 3; i++)
        assert_string_equal(errors[i], "");
    pause_ms = 0;
    TALK(2, NULL, {"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}", HANG}, {OK, CLOSE});
    assert_int_equal(n_connections, 2);
    assert_string_equal(errors[1], "");
}

static void test_every_failure_has_its_reason_and_the_next_request_goes_well(void **state)
{
    (void)state;
    static const struct step bad[][2] = {
        {{SSE "\r\n" TOKEN USAGE, CLOSE}},
        {{SSE "\r\n" USAGE, HANG}},
        {{SSE "Content-Length: 999\r\n\r\n" TOKEN, CLOSE}},
        {{"", CLOSE}},
        {{"HTTP/1.1 503 Busy\r\nContent-Length: 41\r\n\r\n{\"error\":{\"message\":\"the queue is full\"}}", HANG}},
        {{"HTTP/1.1 500 Oh\r\nContent-Length: 2\r\n\r\nno", KEEP}},
        {{OK, KEEP}},
        {{"hello\r\n", HANG}},
        {{SSE "Content-Length: 999\r\n\r\n" TOKEN, RESET}},
    };
    static const char *const reasons[] = {"the stream has no [DONE]",
                                          "the usage comes before the finish",
                                          "the connection ended in the middle of the answer",
                                          "the connection ended before an answer",
                                          "status 503",
                                          "status 500",
                                          "the answer is no event stream",
                                          "the answer does not begin with a status line",
                                          "connection "}; // libuv may tell a reset as an end;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        const struct step script[] = {bad[i][0], {SSE "\r\n" TOKEN USAGE END, CLOSE}};
        talk(script, 2, 2, &one);
        if (!strstr(errors[0], reasons[i]) || *errors[1])
            fail_msg("should be: %s\nis: %s, then: %s", reasons[i], errors[0], errors[1]);
    }
}

static void test_the_servers_own_words_are_kept(void **state)
{
    (void)state;
    TALK(1, &one,
         {"HTTP/1.1 503 Busy\r\nContent-Length: 41\r\n\r\n{\"error\":{\"message\":\"the queue is full\"}}", CLOSE});
    assert_string_equal(errors[0], "status 503: the queue is full");
}

static void test_silence_is_an_error(void **state)
{
    (void)state;
    target.timeout_ms = 100;
    TALK(2, &one, {"", HANG}, {SSE "\r\n" TOKEN, HANG});
    assert_string_equal(errors[0], "no answer within 0.1 s");
    assert_string_equal(errors[1], "no end of the answer within 0.1 s");
}

static void test_nobody_listens(void **state)
{
    (void)state;
    int fd = socket(AF_INET, SOCK_STREAM, 0), listening = port;
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof a;
    bind(fd, (struct sockaddr *)&a, size);
    getsockname(fd, (struct sockaddr *)&a, &size); // bound, so nobody else's, and refusing
    port = ntohs(a.sin_port);
    talk(NULL, 0, 3, NULL);
    port = listening;
    close(fd);
    for (int i = 0; i < 3; i++)
        assert_string_equal(errors[i], "cannot connect: connection refused");
}

static void test_urls(void **state)
{
    (void)state;
    static const struct {
        const char *url, *host, *path;
    } right[] = {
        {"http://127.0.0.1:8000", "127.0.0.1:8000", ""},
        {"http://127.0.0.1:8000/", "127.0.0.1:8000", ""},
        {"http://127.0.0.1", "127.0.0.1:80", ""},
        {"http://[::1]:90/v1", "[::1]:90", ""},
        {"http://127.0.0.1:1/a/b//", "127.0.0.1:1", "/a/b"},
        {"http://127.0.0.1:1/a/v1/", "127.0.0.1:1", "/a"},
    };
    static const char *const wrong[] = {"",           "127.0.0.1:8000", "https://127.0.0.1", "http://",
                                        "http://:80", "http://h:",      "http://h:0",        "http://h:70000",
                                        "http://h:x", "http://h:1x",    "http://h/?a",       "http://h:1/a b",
                                        "http://[::", "http://h:1#f",   "http://[::1]x"};
    uv_loop_init(&loop);
    target.loop = &loop;
    for (size_t i = 0; i < sizeof right / sizeof *right; i++) {
        if (srv_bench_target_open(&target, right[i].url, err, sizeof err))
            fail_msg("%s: %s", right[i].url, err);
        assert_string_equal(target.host, right[i].host);
        assert_string_equal(target.path, right[i].path);
    }
    assert_int_equal(target.address.ss_family, AF_INET);
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        if (!srv_bench_target_open(&target, wrong[i], err, sizeof err) || !strstr(err, "allowed: http://"))
            fail_msg("%s: %s", wrong[i], err);
    assert_int_equal(srv_bench_target_open(&target, "http://a..b", err, sizeof err), -1);
    assert_non_null(strstr(err, "a..b"));
    uv_run(&loop, UV_RUN_DEFAULT);
    uv_loop_close(&loop);
}

int main(void)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof a;
    listener = socket(AF_INET, SOCK_STREAM, 0);
    if (bind(listener, (struct sockaddr *)&a, size) || listen(listener, 8) ||
        getsockname(listener, (struct sockaddr *)&a, &size))
        return 1;
    port = ntohs(a.sin_port);
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(test_requests_share_a_connection),
        T(test_a_stream_is_verified_and_timed),
        T(test_a_closed_connection_is_opened_again),
        T(test_every_failure_has_its_reason_and_the_next_request_goes_well),
        T(test_the_servers_own_words_are_kept),
        T(test_silence_is_an_error),
        T(test_nobody_listens),
        cmocka_unit_test_setup(test_urls, setup),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
