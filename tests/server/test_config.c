// Settings: precedence, ranges, the YAML file, and sentences that name key, value and what is allowed.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "config.h"
#include "engine.h"

static char path[] = "/tmp/trimode-config-XXXXXX";
static char err[640];

static int write_file(const char *text)
{
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs(text, f);
    return fclose(f);
}

static int read_with(struct srv_config *c, enum srv_command command, char *const *env, const char *const *flags)
{
    char *argv[16];
    int argc = 0;
    while (flags && flags[argc]) {
        argv[argc] = (char *)(uintptr_t)flags[argc];
        argc++;
    }
    err[0] = 0;
    return srv_config_read(c, command, argc, argv, env, err, sizeof err);
}

// One flag and its value must be refused with a sentence that holds `says`.
static void refuse(const char *flag, const char *value, const char *says)
{
    struct srv_config c;
    const char *const flags[] = {flag, value, NULL};
    int status = read_with(&c, SRV_SERVE, NULL, flags);
    srv_config_done(&c);
    if (status != -1)
        fail_msg("%s %s was accepted", flag, value);
    if (!strstr(err, says))
        fail_msg("%s %s: \"%s\" does not say \"%s\"", flag, value, err, says);
    assert_null(strchr(err, '\n'));
}

static void test_flags_beat_environment_beats_file_beats_default(void **state)
{
    (void)state;
    write_file("port: 1001\nhost: 10.0.0.1\nthreads: 2\nmax_body: 1MiB # comment\n");
    char *env[] = {"TRIMODE_PORT=1002", "TRIMODE_HOST=10.0.0.2", "HOME=/", NULL};
    const char *const flags[] = {"--port", "1003", "--config", path, "--auto-modes=ar,diffusion", NULL};
    struct srv_config c;
    assert_int_equal(read_with(&c, SRV_SERVE, env, flags), 0);
    assert_int_equal(c.port, 1003);
    assert_string_equal(c.host, "10.0.0.2");
    assert_int_equal(c.threads, 2);
    assert_int_equal(c.max_body, 1 << 20);
    assert_string_equal(c.model, "nano");
    assert_int_equal(c.auto_modes, 1 << ENG_MODE_AR | 1 << ENG_MODE_DIFFUSION);
    assert_int_equal(c.origins[srv_config_find("port")], SRV_FROM_FLAG);
    assert_int_equal(c.origins[srv_config_find("host")], SRV_FROM_ENVIRONMENT);
    assert_int_equal(c.origins[srv_config_find("threads")], SRV_FROM_FILE);
    assert_int_equal(c.origins[srv_config_find("model")], SRV_FROM_DEFAULT);
    srv_config_done(&c);
}

static void test_the_file_may_come_from_the_environment(void **state)
{
    (void)state;
    write_file("port: 77\n");
    char variable[64];
    snprintf(variable, sizeof variable, "TRIMODE_CONFIG=%s", path);
    char *env[] = {variable, NULL};
    struct srv_config c;
    assert_int_equal(read_with(&c, SRV_SERVE, env, NULL), 0);
    assert_int_equal(c.port, 77);
    srv_config_done(&c);
}

static void test_the_shipped_file_is_valid_and_holds_the_defaults(void **state)
{
    (void)state;
    const char *const flags[] = {"--config", TRIMODE_SOURCE_DIR "/config/trimode.yaml", NULL};
    struct srv_config c, d;
    if (read_with(&c, SRV_SERVE, NULL, flags))
        fail_msg("%s", err);
    assert_int_equal(srv_config_default(&d), 0);
    assert_int_equal(c.page_size, d.page_size);
    assert_true(c.prefix_cache && d.prefix_cache);
    assert_true(c.prompt_budget == d.prompt_budget && d.prompt_budget == 1.6);
    assert_int_equal(c.auto_modes, d.auto_modes);
    assert_true(c.threshold == d.threshold && c.max_body == d.max_body && c.block_length == d.block_length);
    srv_config_done(&c);
    srv_config_done(&d);
}

static void test_a_prompt_budget_is_none_or_at_least_one(void **state)
{
    (void)state;
    static const struct {
        const char *flag;
        double value; // -1: refused
    } cases[] = {{"0", 0}, {"1", 1}, {"2.5", 2.5}, {"100", 100}, {"0.5", -1}, {"-1", -1}, {"101", -1}, {"nan", -1}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *const flags[] = {"--prompt-budget", cases[i].flag, NULL};
        struct srv_config c;
        int rc = read_with(&c, SRV_SERVE, NULL, flags);
        assert_int_equal(rc, cases[i].value < 0 ? -1 : 0);
        if (rc)
            assert_non_null(strstr(err, "prompt"));
        else
            assert_true(c.prompt_budget == cases[i].value &&
                        srv_config_engine(&c, "x").prompt_budget == c.prompt_budget);
        srv_config_done(&c);
    }
}

static void test_the_prefix_cache_can_be_turned_off_everywhere(void **state)
{
    (void)state;
    char *env[] = {"TRIMODE_PREFIX_CACHE=false", NULL};
    const char *const flags[] = {"--prefix-cache=false", NULL}, *const file[] = {"--config", path, NULL};
    struct srv_config c;
    write_file("prefix_cache: false\n");
    for (int i = 0; i < 4; i++) {
        assert_int_equal(read_with(&c, SRV_SERVE, i == 1 ? env : NULL, i == 2 ? flags : i == 3 ? file : NULL), 0);
        assert_int_equal(c.prefix_cache, i == 0);
        assert_int_equal(srv_config_engine(&c, "dir").prefix_cache, i == 0);
        srv_config_done(&c);
    }
    refuse("--prefix-cache=maybe", "", "true or false");
}

static void test_ranges(void **state)
{
    (void)state;
    refuse("--port", "65536", "port cannot be '65536'; allowed: an integer from 0 to 65535");
    refuse("--port", "-1", "from 0 to 65535");
    refuse("--port", "80x", "80x");
    refuse("--port", "1.5", "1.5");
    refuse("--port", "nan", "nan");
    refuse("--port", "", "allowed");
    refuse("--threshold", "nan", "threshold");
    refuse("--threshold", "inf", "threshold");
    refuse("--threshold", "0", "threshold");
    refuse("--threshold", "1.01", "from 0 to 1");
    refuse("--backend", "gpu", "auto|cpu|cuda");
    refuse("--backend", "", "auto|cpu|cuda");
    refuse("--backend", "auto|cpu", "auto|cpu|cuda");
    refuse("--weights", "q8", "auto|f32|bf16|fp8|q4");
    refuse("--kv-type", "q4", "auto|f32|bf16|fp8|q8");
    refuse("--tensor-parallel", "0", "an integer from 1 to 8");
    refuse("--tensor-parallel", "3", "tensor_parallel: '3' cannot divide a model evenly; allowed: 1, 2, 4 or 8");
    refuse("--device", "-1", "an integer from 0 to 63");
    refuse("--mode", "fast", "self_speculation");
    refuse("--auto-modes", "ar,fast", "comma list");
    refuse("--auto-modes", "auto", "comma list");
    refuse("--auto-modes", "", "comma list");
    refuse("--block-length", "12", "4, 8, 16, 32 or 64");
    refuse("--max-body", "12XB", "KiB, MiB or GiB");
    refuse("--max-body", "5", "from 1024");
    refuse("--kv-memory", "1e300", "kv_memory");
    refuse("--cpu-mask", "0x100000000", "0xffffffff");
    refuse("--cpu-mask", "-1", "cpu_mask");
    refuse("--max-context", "1", "at least 2");
    refuse("--max-step-rows", "63", "from 64");
    refuse("--page-size", "257", "256");
    refuse("--tls-cert", "x", "no such flag");
    refuse("--max_context", "5", "no such flag");
    refuse("-port", "5", "no such flag");
    refuse("--raw", "1", "no such flag");
    refuse("--host", "", "host");
    refuse("--config", "/nonexistent/x.yaml", "cannot be read");
}

static void test_a_flag_without_value(void **state)
{
    (void)state;
    const char *const flags[] = {"--port", NULL};
    struct srv_config c;
    assert_int_equal(read_with(&c, SRV_SERVE, NULL, flags), -1);
    assert_non_null(strstr(err, "value is missing"));
    srv_config_done(&c);
}

static void test_unusable_combinations(void **state)
{
    (void)state;
    const char *const flags[] = {"--mode", "self_speculation", "--adapter", "none", NULL};
    struct srv_config c;
    assert_int_equal(read_with(&c, SRV_SERVE, NULL, flags), -1);
    assert_non_null(strstr(err, "needs a draft adapter"));
    srv_config_done(&c);
}

static void test_environment(void **state)
{
    (void)state;
    char *kubernetes[] = {"TRIMODE_PORT=tcp://10.0.0.1:8000", "TRIMODE_SERVICE_HOST=10.0.0.1",
                          "TRIMODE_PORT_8000_TCP=x", NULL};
    char *unknown[] = {"TRIMODE_PROT=1", NULL};
    struct srv_config c;
    assert_int_equal(read_with(&c, SRV_SERVE, kubernetes, NULL), 0);
    assert_int_equal(c.port, 8000);
    srv_config_done(&c);
    assert_int_equal(read_with(&c, SRV_SERVE, unknown, NULL), -1);
    assert_non_null(strstr(err, "TRIMODE_PROT"));
    srv_config_done(&c);
}

static void test_a_servers_file_serves_generate_too(void **state)
{
    (void)state;
    write_file("port: 9\nthreshold: 0.5\n");
    const char *const flags[] = {"--config", path, "a text", "--max-tokens=5", "--stats", "--", "--raw", NULL};
    struct srv_config c;
    assert_int_equal(read_with(&c, SRV_GENERATE, NULL, flags), 0);
    assert_int_equal(c.n_arguments, 2);
    assert_string_equal(c.arguments[0], "a text");
    assert_string_equal(c.arguments[1], "--raw");
    assert_true(c.stats && !c.raw && c.max_tokens == 5 && c.threshold == 0.5);
    srv_config_done(&c);
}

int main(void)
{
    int fd = mkstemp(path);
    if (fd < 0)
        return 1;
    close(fd);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_flags_beat_environment_beats_file_beats_default),
        cmocka_unit_test(test_the_file_may_come_from_the_environment),
        cmocka_unit_test(test_the_shipped_file_is_valid_and_holds_the_defaults),
        cmocka_unit_test(test_a_prompt_budget_is_none_or_at_least_one),
        cmocka_unit_test(test_the_prefix_cache_can_be_turned_off_everywhere),
        cmocka_unit_test(test_ranges),
        cmocka_unit_test(test_a_flag_without_value),
        cmocka_unit_test(test_unusable_combinations),
        cmocka_unit_test(test_environment),
        cmocka_unit_test(test_a_servers_file_serves_generate_too),
    };
    int status = cmocka_run_group_tests(tests, NULL, NULL);
    unlink(path);
    return status;
}
