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

static void test_drafts_go_between_the_chunks_and_change_nothing(void **state)
{
    (void)state;
    int fd = client_connect();
    client_post(fd, TEXT, "",
                "{\"prompt\":\"a\",\"max_tokens\":400,\"stream\":true,\"stream_draft\":true,"
                "\"stream_options\":{\"include_usage\":true,\"continuous_usage_stats\":true}}");
    assert_true(fake_wait_submitted(1, 2000));
    assert_true(fake_params(0).stream_draft);
    fake_say(0, "Hi");
    fake_draft(0, "_ab__\"c");
    fake_say(0, " there");
    fake_draft(0, "");
    fake_finish(0, ENG_FINISH_STOP, NULL);
    struct reply r = client_reply(fd);
    close(fd);
    static const char *const objects[] = {"text_completion", "trimode.draft", "text_completion", "trimode.draft",
                                          "text_completion"};
    for (int i = 0; i < 5; i++) {
        cJSON *j = event_at(&r, i);
        assert_string_equal(text_at(j, "object"), objects[i]);
        if (i % 2) {
            assert_int_equal(cJSON_GetArraySize(at(j, "choices")), 0);
            assert_null(at(j, "usage"));
            assert_null(at(j, "trimode"));
            assert_string_equal(text_at(j, "mode"), "diffusion");
            assert_int_equal(number_at(j, "index"), 0);
            assert_int_equal(number_at(j, "pass"), 2);
        }
        cJSON_Delete(j);
    }
    cJSON *j = event_at(&r, 1);
    assert_int_equal(number_at(j, "from_token"), 2);
    assert_int_equal(number_at(j, "n_tokens"), 7);
    assert_string_equal(text_at(j, "text"), "\xe2\x96\x91"
                                            "ab\xe2\x96\x91\xe2\x96\x91\"c");
    assert_int_equal(number_at(j, "pieces.0.masked"), 1);
    assert_string_equal(text_at(j, "pieces.1.text"), "ab");
    assert_int_equal(number_at(j, "pieces.2.masked"), 2);
    assert_string_equal(text_at(j, "pieces.3.text"), "\"c");
    assert_null(at(j, "pieces.4"));
    cJSON_Delete(j);
    j = event_at(&r, 3);
    assert_string_equal(text_at(j, "text"), "");
    assert_int_equal(number_at(j, "from_token"), 8);
    cJSON_Delete(j);
    j = event_at(&r, 5);
    assert_int_equal(number_at(j, "usage.completion_tokens"), 8);
    cJSON_Delete(j);
    assert_int_equal(event_count(&r), 7);
    reply_free(&r);
    wait_all_freed();
}

static void test_a_reader_who_is_behind_goes_without_drafts(void **state)
{
    (void)state;
    int fd = client_connect(), small = 2048;
    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
    client_post(fd, TEXT, "", "{\"prompt\":\"a\",\"max_tokens\":400,\"stream\":true,\"stream_draft\":true}");
    assert_true(fake_wait_submitted(1, 2000));
    for (int i = 0; i < 8000 && !fake_cancelled(0); i++) // about 1.3 KB each, more than the sockets hold
        fake_draft(0, "a_b_c_d_a_b_c_d_a_b_c_d_a_b_c_d_a_b_c_d_a_b_c_d_a_b_c_d_a_b_c_d_");
    usleep(200000);
    assert_false(fake_cancelled(0));
    assert_true(server->metrics.slow_readers == 0);
    fake_say(0, "the text");
    fake_finish(0, ENG_FINISH_STOP, NULL);
    // Megabytes of drafts come first; the text must be among the last bytes.
    char last[2048] = "";
    size_t kept = 0;
    for (ssize_t n; !strstr(last, "[DONE]") && (n = recv(fd, last + kept, sizeof last / 2 - 1, 0)) > 0;) {
        size_t len = kept + (size_t)n, drop = len > sizeof last / 2 ? len - sizeof last / 2 : 0;
        memmove(last, last + drop, len - drop);
        kept = len - drop;
        last[kept] = 0;
    }
    close(fd);
    assert_non_null(strstr(last, "the text"));
    assert_non_null(strstr(last, "[DONE]"));
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
        T(test_drafts_go_between_the_chunks_and_change_nothing),
        T(test_a_reader_who_is_behind_goes_without_drafts),
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
