// Starting, draining, stopping.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "client.h"
#include "loop.h"

static struct srv_config config;

static void start(double drain_timeout)
{
    test_config(&config);
    config.drain_timeout = drain_timeout;
    fake.hold = true;
    test_start(&config);
}

static void test_an_idle_server_stops_at_once(void **state)
{
    (void)state;
    start(30);
    assert_int_equal(test_stop(), 0);
    srv_config_done(&config);
}

static void test_drain_lets_running_requests_end(void **state)
{
    (void)state;
    start(30);
    int fd = client_connect(), idle = client_connect();
    client_post(fd, "/v1/completions", "", "{\"prompt\":\"a\",\"stream\":true}");
    assert_true(fake_wait_submitted(1, 2000));
    fake_say(0, "one ");
    free(client_read_until(fd, "one ", 2000));
    // Readiness goes first; new requests are refused and told to go elsewhere; probes still answer.
    client_sendz(idle, "GET /ready HTTP/1.1\r\nHost: t\r\n\r\n");
    free(client_read_until(idle, "ready", 2000));
    test_begin_drain();
    for (int i = 0; i < 200; i++) {
        struct reply r = http_get("/ready", "");
        int status = r.status;
        reply_free(&r);
        if (status == 503)
            break;
        usleep(5000);
    }
    cJSON *j = get_json("/ready", 503);
    assert_string_equal(text_at(j, "status"), "draining");
    cJSON_Delete(j);
    struct reply r = http_post("/v1/completions", "{\"prompt\":\"a\"}");
    assert_int_equal(r.status, 503);
    assert_string_equal(header_of(&r, "Connection"), "close");
    assert_non_null(header_of(&r, "Retry-After"));
    reply_free(&r);
    cJSON_Delete(get_json("/health", 200));
    fake_say(0, "two");
    fake_finish(0, ENG_FINISH_STOP, NULL);
    char *rest = client_read_until(fd, "\r\n0\r\n", 2000);
    assert_non_null(strstr(rest, "two"));
    assert_non_null(strstr(rest, "[DONE]"));
    free(rest);
    close(fd);
    close(idle);
    assert_int_equal(test_join(), 0);
    srv_config_done(&config);
}

static void test_drain_timeout_cancels_with_an_error_event(void **state)
{
    (void)state;
    start(0.2);
    int fd = client_connect(), plain = client_connect();
    client_post(fd, "/v1/completions", "", "{\"prompt\":\"a\",\"stream\":true}");
    assert_true(fake_wait_submitted(1, 2000));
    client_post(plain, "/v1/completions", "", "{\"prompt\":\"a\"}");
    assert_true(fake_wait_submitted(2, 2000));
    fake_say(0, "one");
    free(client_read_until(fd, "one", 2000));
    test_begin_drain();
    char *rest = client_read_until(fd, "never", 3000);
    assert_non_null(strstr(rest, "data: {\"error\""));
    assert_null(strstr(rest, "\r\n0\r\n"));
    free(rest);
    struct reply r = client_reply(plain);
    assert_int_equal(r.status, 503);
    reply_free(&r);
    close(fd);
    close(plain);
    assert_int_equal(test_join(), 0);
    assert_true(fake_cancelled(0) && fake_cancelled(1));
    srv_config_done(&config);
}

static void test_a_lost_backend_stops_the_server_with_status_1(void **state)
{
    (void)state;
    start(30);
    int fd = client_connect(), plain = client_connect();
    client_post(fd, "/v1/completions", "", "{\"prompt\":\"a\",\"stream\":true}");
    assert_true(fake_wait_submitted(1, 2000));
    client_post(plain, "/v1/completions", "", "{\"prompt\":\"a\"}");
    assert_true(fake_wait_submitted(2, 2000));
    fake_say(0, "one");
    free(client_read_until(fd, "one", 2000));
    fake.failure = "GPU 0 fell off the bus";
    fake_finish(0, ENG_FINISH_ERROR, fake.failure);
    char *rest = client_read_until(fd, "never", 3000);
    assert_non_null(strstr(rest, "data: {\"error\":{\"message\":\"The model failed: GPU 0 fell off the bus.\""));
    free(rest);
    // What has not ended yet still gets its answer; meanwhile nothing new is taken and the probes say why.
    cJSON *j = get_json("/ready", 503);
    assert_string_equal(text_at(j, "reason"), "GPU 0 fell off the bus");
    cJSON_Delete(j);
    struct reply r = http_post("/v1/completions", "{\"prompt\":\"a\"}");
    assert_int_equal(r.status, 503);
    reply_free(&r);
    fake_finish(1, ENG_FINISH_ERROR, fake.failure);
    r = client_reply(plain);
    assert_int_equal(r.status, 500);
    assert_non_null(strstr(r.body, "GPU 0 fell off the bus"));
    reply_free(&r);
    close(fd);
    close(plain);
    assert_int_equal(test_join(), 1);
    srv_config_done(&config);
}

// No event tells of it when there is no request that could end.
static void test_a_backend_lost_without_requests_stops_the_server_too(void **state)
{
    (void)state;
    start(30);
    fake.failure = "GPU 0 fell off the bus";
    assert_int_equal(test_join(), 1);
    srv_config_done(&config);
}

static void test_a_model_that_cannot_be_loaded_is_exit_status_1(void **state)
{
    (void)state;
    test_config(&config);
    fake.load_fails = true;
    fake.load_ms = 200;
    test_start(&config);
    assert_int_equal(test_join(), 1);
    srv_config_done(&config);
}

static void test_a_mode_the_model_lacks_is_exit_status_2(void **state)
{
    (void)state;
    test_config(&config);
    config.mode = "self_speculation";
    fake.no_adapter = true;
    fake.load_ms = 200;
    test_start(&config);
    assert_int_equal(test_join(), 2);
    srv_config_done(&config);
}

static void test_unusable_addresses(void **state)
{
    (void)state;
    char err[400];
    struct srv_server *a = NULL, *b = NULL;
    test_config(&config);
    assert_int_equal(srv_loop_open(&config, &a, err, sizeof err), 0);
    int port = srv_loop_port(a);
    assert_true(port > 0);
    config.port = port;
    assert_int_equal(srv_loop_open(&config, &b, err, sizeof err), -1);
    assert_non_null(strstr(err, "port"));
    srv_loop_close(a);
    assert_int_equal(srv_config_set(&config, "host", "no such host", SRV_FROM_FLAG, "t", err, sizeof err), 0);
    assert_int_equal(srv_loop_open(&config, &b, err, sizeof err), -2);
    assert_non_null(strstr(err, "host: 'no such host'"));
    srv_config_done(&config);
}

// The engine's side: a connection that was never asked anything must not hold the stop up.
static void test_open_connections_do_not_delay_the_stop(void **state)
{
    (void)state;
    start(30);
    int silent = client_connect(), half = client_connect();
    client_sendz(half, "POST /v1/completions HTTP/1.1\r\nHost: t\r\nContent-Length: 50\r\n\r\n{\"pro");
    usleep(20000);
    assert_int_equal(test_stop(), 0);
    close(silent);
    close(half);
    srv_config_done(&config);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_an_idle_server_stops_at_once),
        cmocka_unit_test(test_drain_lets_running_requests_end),
        cmocka_unit_test(test_drain_timeout_cancels_with_an_error_event),
        cmocka_unit_test(test_a_lost_backend_stops_the_server_with_status_1),
        cmocka_unit_test(test_a_backend_lost_without_requests_stops_the_server_too),
        cmocka_unit_test(test_a_model_that_cannot_be_loaded_is_exit_status_1),
        cmocka_unit_test(test_a_mode_the_model_lacks_is_exit_status_2),
        cmocka_unit_test(test_unusable_addresses),
        cmocka_unit_test(test_open_connections_do_not_delay_the_stop),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
