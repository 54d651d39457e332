// generate and chat on the scripted engine, with the terminal's streams replaced by files.
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

#include "cli.h"
#include "fake_engine.h"

static char in_path[] = "/tmp/trimode-in-XXXXXX", out_path[] = "/tmp/trimode-out-XXXXXX",
            err_path[] = "/tmp/trimode-err-XXXXXX";
static char out[4096], err[4096];

static void slurp(const char *path, char *text, size_t size)
{
    FILE *f = fopen(path, "r");
    size_t n = fread(text, 1, size - 1, f);
    text[n] = 0;
    fclose(f);
}

// Runs a command with its flags; what it printed is in out and err.
static int run(enum srv_command command, const char *const *flags, const char *input)
{
    struct srv_config c;
    char why[400] = "", *argv[16];
    int argc = 0;
    for (; flags[argc]; argc++)
        argv[argc] = (char *)(uintptr_t)flags[argc];
    if (srv_config_read(&c, command, argc, argv, NULL, why, sizeof why))
        fail_msg("%s", why);
    FILE *f = fopen(in_path, "w");
    fputs(input, f);
    fclose(f);
    fflush(NULL);
    int saved[3],
        files[3] = {open(in_path, O_RDONLY), open(out_path, O_WRONLY | O_TRUNC), open(err_path, O_WRONLY | O_TRUNC)};
    for (int i = 0; i < 3; i++) {
        saved[i] = dup(i);
        dup2(files[i], i);
        close(files[i]);
    }
    clearerr(stdin);
    int status = command == SRV_CHAT ? srv_cli_chat(&c) : srv_cli_generate(&c);
    fflush(NULL);
    for (int i = 0; i < 3; i++) {
        dup2(saved[i], i);
        close(saved[i]);
    }
    srv_config_done(&c);
    slurp(out_path, out, sizeof out);
    slurp(err_path, err, sizeof err);
    return status;
}

static int setup(void **state)
{
    (void)state;
    fake_reset();
    return 0;
}

static void test_generate_prints_the_text_only(void **state)
{
    (void)state;
    const char *const flags[] = {"--model",       ".", "hi there",     "--seed", "7",
                                 "--temperature", "0", "--max-tokens", "100",    NULL};
    assert_int_equal(run(SRV_GENERATE, flags, ""), 0);
    assert_string_equal(out, "Hello, world\n");
    assert_string_equal(err, "");
    assert_true(fake_params(0).seed == 7 && fake_params(0).temperature == 0 && fake_params(0).max_tokens == 100);
    assert_string_equal(fake_prompt(0), "user:hi there\nassistant:");
}

static void test_raw_and_stats(void **state)
{
    (void)state;
    const char *const flags[] = {"--raw", "--stats", "--mode", "ar", "--model", ".", "Once", NULL};
    assert_int_equal(run(SRV_GENERATE, flags, ""), 0);
    assert_string_equal(fake_prompt(0), "Once");
    assert_int_equal(fake_params(0).mode, ENG_MODE_AR);
    assert_string_equal(out, "Hello, world\n");
    assert_non_null(strstr(err, "12 tokens in 7 forward passes"));
    assert_non_null(strstr(err, ": there is no GPU\n")); // why auto did not take another backend
}

static void test_wrong_use(void **state)
{
    (void)state;
    const char *const none[] = {"--model", ".", NULL}, *const two[] = {"--model", ".", "a", "b", NULL};
    const char *const missing[] = {"--model", "no-such-model", "a", NULL};
    assert_int_equal(run(SRV_GENERATE, none, ""), 2);
    assert_int_equal(run(SRV_GENERATE, two, ""), 2);
    assert_int_equal(run(SRV_GENERATE, missing, ""), 2);
    assert_non_null(strstr(err, "no-such-model"));
    fake.load_fails = true;
    const char *const flags[] = {"--model", ".", "a", NULL};
    assert_int_equal(run(SRV_GENERATE, flags, ""), 1);
    assert_non_null(strstr(err, "the folder is empty"));
}

static void test_too_long_a_text_is_said(void **state)
{
    (void)state;
    char text[700];
    memset(text, 'x', 699);
    text[699] = 0;
    const char *const flags[] = {"--raw", "--model", ".", text, NULL};
    assert_int_equal(run(SRV_GENERATE, flags, ""), 1);
    assert_non_null(strstr(err, "the prompt has 699 tokens"));
}

static void test_chat_keeps_the_history(void **state)
{
    (void)state;
    const char *const flags[] = {"--model", ".", "--system", "be brief", NULL};
    assert_int_equal(run(SRV_CHAT, flags, "first\nsecond\n"), 0);
    assert_string_equal(out, "Hello, world\nHello, world\n");
    assert_string_equal(fake_prompt(0), "system:be brief\nuser:first\nassistant:");
    assert_string_equal(fake_prompt(1), "system:be brief\nuser:first\nassistant:Hello, world\nuser:second\nassistant:");
}

int main(void)
{
    char *paths[] = {in_path, out_path, err_path};
    for (int i = 0; i < 3; i++) {
        int fd = mkstemp(paths[i]);
        if (fd < 0)
            return 1;
        close(fd);
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_generate_prints_the_text_only, setup),
        cmocka_unit_test_setup(test_raw_and_stats, setup),
        cmocka_unit_test_setup(test_wrong_use, setup),
        cmocka_unit_test_setup(test_too_long_a_text_is_said, setup),
        cmocka_unit_test_setup(test_chat_keeps_the_history, setup),
    };
    int status = cmocka_run_group_tests(tests, NULL, NULL);
    for (int i = 0; i < 3; i++)
        unlink(paths[i]);
    return status;
}
