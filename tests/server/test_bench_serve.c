// bench serve as a command: levels against a server of this process on the scripted engine.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cjson/cJSON.h>

#include "cli.h"
#include "client.h"

static char out_path[] = "/tmp/trimode-load-out-XXXXXX", err_path[] = "/tmp/trimode-load-err-XXXXXX";
static char out[16384], err[16384], url[64];
static struct srv_config server_config;

static void slurp(const char *path, char *text, size_t size)
{
    FILE *f = fopen(path, "r");
    size_t n = fread(text, 1, size - 1, f);
    text[n] = 0;
    fclose(f);
}

// Runs `trimode bench serve` with the flags; what it printed is in out and err.
static int run(const char *const *flags)
{
    struct srv_config c;
    char why[640] = "", *argv[24];
    int argc = 0, saved[2];
    for (; flags[argc]; argc++)
        argv[argc] = (char *)(uintptr_t)flags[argc];
    if (srv_config_read(&c, SRV_BENCH_SERVE, argc, argv, NULL, why, sizeof why))
        fail_msg("%s", why);
    fflush(NULL);
    int files[2] = {open(out_path, O_WRONLY | O_TRUNC), open(err_path, O_WRONLY | O_TRUNC)};
    for (int i = 0; i < 2; i++) {
        saved[i] = dup(i + 1);
        dup2(files[i], i + 1);
        close(files[i]);
    }
    int status = srv_cli_bench_serve(&c);
    fflush(NULL);
    for (int i = 0; i < 2; i++) {
        dup2(saved[i], i + 1);
        close(saved[i]);
    }
    srv_config_done(&c);
    slurp(out_path, out, sizeof out);
    slurp(err_path, err, sizeof err);
    return status;
}

#define RUN(...) run((const char *const[]){"serve", "--url", url, "--prompt-tokens", "20", __VA_ARGS__, NULL})

static int setup(void **state)
{
    (void)state;
    test_config(&server_config);
    struct srv_server *s = test_start(&server_config);
    snprintf(url, sizeof url, "http://127.0.0.1:%d", s->port);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    int status = test_stop();
    srv_config_done(&server_config);
    return status;
}

// The n-th line of out as an object.
static cJSON *level(int n)
{
    char *line = out;
    while (n--)
        line = strchr(line, '\n') + 1;
    cJSON *j = cJSON_ParseWithOpts(line, NULL, 0);
    assert_non_null(j);
    return j;
}

static void test_levels_of_clients(void **state)
{
    (void)state;
    assert_int_equal(RUN("--clients", "1,3,40", "--output-tokens", "5", "--mode", "ar", "--json"), 0);
    assert_string_equal(err, "");
    static const int clients[] = {1, 3, 40}, requests[] = {16, 24, 320};
    for (int i = 0; i < 3; i++) {
        cJSON *j = level(i);
        assert_int_equal(number_at(j, "clients"), clients[i]);
        assert_int_equal(number_at(j, "requests"), requests[i]);
        assert_int_equal(number_at(j, "errors"), 0);
        assert_int_equal(number_at(j, "output_tokens"), 5 * requests[i]);
        assert_int_equal(number_at(j, "prompt_tokens"), 20 * requests[i]);
        assert_string_equal(text_at(j, "mode"), "ar");
        assert_true(number_at(j, "mode_share.ar") == 1);
        assert_true(number_at(j, "tok_s") > 0 && number_at(j, "ttft_ms.p50") > 0);
        assert_true(number_at(j, "ttft_ms.p99") <= number_at(j, "e2e_ms.p99"));
        cJSON_Delete(j);
    }
    assert_true(fake_wait_submitted(360, 0));
    assert_int_equal(fake_params(0).mode, ENG_MODE_AR);
    // No two requests of a run had the same prompt.
    for (int i = 1; i < 40; i++)
        assert_string_not_equal(fake_prompt(i), fake_prompt(0));
}

static void test_an_open_loop_does_not_wait_for_answers(void **state)
{
    (void)state;
    assert_int_equal(RUN("--rate", "1000", "--requests", "60", "--output-tokens", "5", "--json"), 0);
    cJSON *j = level(0);
    assert_true(cJSON_IsNull(at(j, "clients")) && number_at(j, "rate") == 1000);
    assert_int_equal(number_at(j, "requests"), 60);
    // 60 gaps of 1 ms on average; the seed is fixed, the machine may be slow.
    assert_true(number_at(j, "seconds") > 0.02);
    cJSON_Delete(j);
    // Silent requests do not keep the next ones back.
    fake.hold = true;
    assert_int_equal(RUN("--rate", "2000", "--requests", "20", "--request-timeout", "0.4", "--json"), 1);
    j = level(0);
    assert_int_equal(number_at(j, "errors"), 20);
    assert_true(number_at(j, "seconds") < 20 * 0.4);
    cJSON_Delete(j);
    assert_non_null(strstr(err, "trimode: 20 x no answer within 0.4 s"));
}

static void test_a_table_for_people(void **state)
{
    (void)state;
    assert_int_equal(RUN("--clients", "2", "--requests", "4", "--output-tokens", "5"), 0);
    assert_non_null(strstr(out, " clients requests errors      tok/s |"));
    assert_non_null(strstr(out, "\n       2        4      0 "));
    assert_int_equal(RUN("--clients", "2", "--requests", "4", "--output-tokens", "60"), 1);
    assert_non_null(strstr(out, "\n       2        4      4 "));
    assert_non_null(strstr(err, "trimode: 4 x ")); // the scripted engine says twelve bytes and no more
}

static void test_refusals_are_errors_and_the_run_goes_on(void **state)
{
    (void)state;
    assert_int_equal(RUN("--clients", "1,2", "--requests", "3", "--vocab", "100000", "--json"), 1);
    for (int i = 0; i < 2; i++) {
        cJSON *j = level(i);
        assert_int_equal(number_at(j, "errors"), 3);
        assert_int_equal(number_at(j, "output_tokens"), 0);
        cJSON_Delete(j);
    }
    assert_non_null(strstr(err, "status 400: Invalid value for 'prompt["));
}

static void test_wrong_use(void **state)
{
    (void)state;
    static const char *const bad[] = {"0", "1,", "x", "1;2", "-1", "16385", "1 2"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(RUN("--clients", bad[i]), 2);
        if (!strstr(err, "clients cannot be") || !strstr(err, "allowed:"))
            fail_msg("%s: %s", bad[i], err);
    }
    assert_int_equal(RUN("--dataset", "/nowhere.jsonl"), 2);
    assert_non_null(strstr(err, "/nowhere.jsonl"));
    assert_int_equal(RUN("--api-key-file", "/nowhere.txt"), 2);
    assert_non_null(strstr(err, "/nowhere.txt"));
    assert_int_equal(run((const char *const[]){"serve", "--url", "https://localhost", NULL}), 2);
    assert_non_null(strstr(err, "allowed: http://"));
    assert_int_equal(run((const char *const[]){"serve", "more", NULL}), 2);
    assert_int_equal(run((const char *const[]){NULL}), 2);
    assert_int_equal(RUN("--served-model-name", "other"), 1);
    assert_non_null(strstr(err, "does not have the model 'other'"));
    assert_string_equal(out, "");
}

static void test_a_server_that_is_not_there(void **state)
{
    (void)state;
    assert_int_equal(run((const char *const[]){"serve", "--url", "http://127.0.0.1:1", NULL}), 1);
    assert_non_null(strstr(err, "GET /v1/models at 127.0.0.1:1: cannot connect"));
}

int main(void)
{
    close(mkstemp(out_path));
    close(mkstemp(err_path));
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(test_levels_of_clients),  T(test_an_open_loop_does_not_wait_for_answers),
        T(test_a_table_for_people), T(test_refusals_are_errors_and_the_run_goes_on),
        T(test_wrong_use),          T(test_a_server_that_is_not_there),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    unlink(out_path);
    unlink(err_path);
    return failed;
}
