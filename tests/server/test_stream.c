// Clients that leave, read nothing, or wait long; and full queues.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "client.h"

#define BODY "{\"prompt\":\"a\",\"max_tokens\":400}"
#define STREAM "{\"prompt\":\"a\",\"max_tokens\":400,\"stream\":true}"
#define TEXT "/v1/completions"

static struct srv_config config;
static struct srv_server *server;

static int setup(void **state)
{
    (void)state;
    test_config(&config);
    fake.hold = true;
    server = test_open(&config);
    server->heartbeat_ms = 60;
    server->tick_ms = 20;
    server->max_outbox = 20000;
    test_run(server);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    int status = test_stop();
    srv_config_done(&config);
    return status;
}

static void wait_all_freed(void)
{
    for (int i = 0; i < 2000 && fake_live(); i++)
        usleep(1000);
    assert_int_equal(fake_live(), 0);
}

static void test_leaving_while_waiting_cancels_at_once(void **state)
{
    (void)state;
    int fd = client_connect();
    client_post(fd, TEXT, "", BODY);
    assert_true(fake_wait_submitted(1, 2000));
    usleep(20000);
    assert_false(fake_cancelled(0));
    close(fd);
    int ms = fake_wait_cancelled(0, 1000);
    assert_true(ms >= 0 && ms < 200);
    wait_all_freed();
}

static void test_leaving_a_silent_stream_cancels_at_once(void **state)
{
    (void)state;
    server->heartbeat_ms = 100000; // no ping may reveal it
    int fd = client_connect();
    client_post(fd, TEXT, "", STREAM);
    assert_true(fake_wait_submitted(1, 2000));
    fake_say(0, "abc");
    free(client_read_until(fd, "abc", 2000));
    usleep(20000);
    close(fd);
    int ms = fake_wait_cancelled(0, 1000);
    assert_true(ms >= 0 && ms < 200);
    wait_all_freed();
}

static void test_a_reset_cancels_at_once(void **state)
{
    (void)state;
    int fd = client_connect();
    client_post(fd, TEXT, "", BODY);
    assert_true(fake_wait_submitted(1, 2000));
    usleep(20000);
    struct linger now = {1, 0};
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
    close(fd);
    assert_true(fake_wait_cancelled(0, 1000) >= 0);
    wait_all_freed();
}

static void test_leaving_cancels_every_choice(void **state)
{
    (void)state;
    int fd = client_connect();
    client_post(fd, TEXT, "", "{\"prompt\":[\"a\",\"b\"],\"n\":2}");
    assert_true(fake_wait_submitted(4, 2000));
    usleep(20000);
    close(fd);
    for (int i = 0; i < 4; i++)
        assert_true(fake_wait_cancelled(i, 1000) >= 0);
    wait_all_freed();
}

static void test_a_silent_stream_gets_pings_and_its_head(void **state)
{
    (void)state;
    int fd = client_connect();
    client_post(fd, TEXT, "", STREAM);
    char *seen = client_read_until(fd, ": ping\n\n\r\na\r\n", 2000); // two of them
    assert_non_null(strstr(seen, "HTTP/1.1 200"));
    assert_non_null(strstr(seen, ": ping\n\n"));
    free(seen);
    fake_say(0, "abc");
    fake_finish(0, ENG_FINISH_STOP, NULL);
    seen = client_read_until(fd, "[DONE]", 2000);
    assert_non_null(strstr(seen, "abc"));
    assert_non_null(strstr(seen, "[DONE]"));
    free(seen);
    close(fd);
}

static void test_a_client_that_reads_nothing_is_cut(void **state)
{
    (void)state;
    char text[2001];
    memset(text, 'x', 2000);
    text[2000] = 0;
    int fd = client_connect(), small = 4096;
    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
    client_post(fd, TEXT, "", STREAM);
    assert_true(fake_wait_submitted(1, 2000));
    for (int i = 0; i < 5000 && !fake_cancelled(0); i++) {
        fake_say(0, text);
        usleep(200);
    }
    assert_true(fake_cancelled(0));
    close(fd);
    wait_all_freed();
}

static void test_many_streams_all_end(void **state)
{
    (void)state;
    enum { N = 60 };
    int fds[N];
    for (int i = 0; i < N; i++) {
        fds[i] = client_connect();
        client_post(fds[i], TEXT, "", STREAM);
    }
    assert_true(fake_wait_submitted(N, 5000));
    for (int round = 0; round < 20; round++) {
        for (int i = 0; i < N; i++)
            fake_say(i, "tick");
        usleep(2000);
    }
    for (int i = 0; i < N; i++)
        fake_finish(i, ENG_FINISH_STOP, NULL);
    for (int i = 0; i < N; i++) {
        struct reply r = client_reply(fds[i]);
        int ticks = 0;
        for (const char *p = r.body; (p = strstr(p, "tick")); p++)
            ticks++;
        assert_true(r.complete && strstr(r.body, "[DONE]"));
        assert_int_equal(ticks, 20);
        reply_free(&r);
        close(fds[i]);
    }
    wait_all_freed();
}

static void test_a_connection_serves_one_request_after_another(void **state)
{
    (void)state;
    fake.hold = false;
    int fd = client_connect();
    for (int i = 0; i < 20; i++) {
        client_post(fd, TEXT, "", i % 2 ? STREAM : BODY);
        struct reply r = client_reply(fd);
        assert_int_equal(r.status, 200);
        assert_true(r.complete);
        reply_free(&r);
    }
    close(fd);
}

static void test_a_full_queue_answers_at_once(void **state)
{
    (void)state;
    fake.queue_limit = 3;
    int fd = client_connect();
    client_post(fd, TEXT, "", "{\"prompt\":\"a\",\"n\":2}");
    assert_true(fake_wait_submitted(2, 2000));
    struct reply r = http_post(TEXT, "{\"prompt\":\"a\",\"n\":2,\"stream\":true}"); // room for one only
    assert_int_equal(r.status, 503);
    assert_string_equal(header_of(&r, "Retry-After"), "1");
    assert_non_null(strstr(r.body, "server_is_overloaded"));
    reply_free(&r);
    assert_true(fake_wait_cancelled(2, 1000) >= 0); // the half that was taken is given back
    fake_finish(0, ENG_FINISH_STOP, NULL);
    fake_finish(1, ENG_FINISH_LENGTH, NULL);
    r = client_reply(fd);
    assert_int_equal(r.status, 200);
    reply_free(&r);
    close(fd);
    wait_all_freed();
}

static void test_one_failed_choice_ends_the_whole(void **state)
{
    (void)state;
    int fd = client_connect();
    client_post(fd, TEXT, "", "{\"prompt\":\"a\",\"n\":3}");
    assert_true(fake_wait_submitted(3, 2000));
    fake_finish(1, ENG_FINISH_ERROR, "boom");
    struct reply r = client_reply(fd);
    assert_int_equal(r.status, 500);
    reply_free(&r);
    assert_true(fake_wait_cancelled(0, 1000) >= 0 && fake_wait_cancelled(2, 1000) >= 0);
    close(fd);
    wait_all_freed();
}

static void test_http_1_0_gets_its_stream_unchunked(void **state)
{
    (void)state;
    fake.hold = false;
    int fd = client_connect();
    client_sendz(
        fd, "POST /v1/completions HTTP/1.0\r\nHost: t\r\nContent-Length: 28\r\n\r\n{\"prompt\":\"a\",\"stream\":true}");
    char *all = client_read_until(fd, "[DONE]", 2000);
    assert_non_null(strstr(all, "[DONE]"));
    assert_null(strstr(all, "chunked"));
    free(all);
    close(fd);
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(test_leaving_while_waiting_cancels_at_once),
        T(test_leaving_a_silent_stream_cancels_at_once),
        T(test_a_reset_cancels_at_once),
        T(test_leaving_cancels_every_choice),
        T(test_a_silent_stream_gets_pings_and_its_head),
        T(test_a_client_that_reads_nothing_is_cut),
        T(test_many_streams_all_end),
        T(test_a_connection_serves_one_request_after_another),
        T(test_a_full_queue_answers_at_once),
        T(test_one_failed_choice_ends_the_whole),
        T(test_http_1_0_gets_its_stream_unchunked),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
