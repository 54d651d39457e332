// server/config_file.c: what a YAML file may hold, and sentences with file and line.
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
#include "config_file.h"
#include "engine.h"

static char path[] = "/tmp/trimode-yaml-XXXXXX";
static struct srv_config c;
static char err[640];

static int setup(void **state)
{
    (void)state;
    return srv_config_default(&c);
}

static int teardown(void **state)
{
    (void)state;
    srv_config_done(&c);
    return 0;
}

static int read_text(const char *text, size_t n)
{
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    assert_int_equal(fwrite(text, 1, n, f), n);
    fclose(f);
    err[0] = 0;
    return srv_config_file(&c, path, err, sizeof err);
}

static void accept(const char *text)
{
    if (read_text(text, strlen(text)))
        fail_msg("%s: %s", text, err);
}

static void test_files_without_a_setting_change_nothing(void **state)
{
    (void)state;
    static const char *const texts[] = {"",     "# comment\n",         "---\n", "{}\n", "---\n...\n",
                                        "\n\n", "\xef\xbb\xbf# mark\n"};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
        accept(texts[i]);
    for (int i = 0; i < SRV_MAX_OPTIONS; i++)
        assert_int_equal(c.origins[i], SRV_FROM_DEFAULT);
}

static void test_every_way_to_write_a_value(void **state)
{
    (void)state;
    accept("port: 1001 # comment\nhost: \"h\\u0065re\"\nmode: 'ar'\nsystem: |\n  two\n  lines\nthreads: auto\n"
           "served_model_name: plain words\nauto_modes: [ar, 'diffusion']\nstats: true\nkv_memory: 1GiB\n");
    assert_int_equal(c.port, 1001);
    assert_string_equal(c.host, "here");
    assert_string_equal(c.mode, "ar");
    assert_string_equal(c.system, "two\nlines\n");
    assert_string_equal(c.served_model_name, "plain words");
    assert_int_equal(c.auto_modes, 1 << ENG_MODE_AR | 1 << ENG_MODE_DIFFUSION);
    assert_true(c.stats && c.threads == 0 && c.kv_memory == 1 << 30);
    assert_int_equal(c.origins[srv_config_find("port")], SRV_FROM_FILE);
    assert_int_equal(c.origins[srv_config_find("max_queue")], SRV_FROM_DEFAULT);
    accept("auto_modes:\n- self_speculation\n- ar\n");
    assert_int_equal(c.auto_modes, 1 << ENG_MODE_AR | 1 << ENG_MODE_SELF_SPECULATION);
    accept("{port: 5, \"host\": x}\n");
    assert_int_equal(c.port, 5);
}

static void test_bad_files(void **state)
{
    (void)state;
    static const struct {
        const char *text, *says;
    } cases[] = {
        {"port: 1\nport: 2\n", ":2: the key 'port' is there twice"},
        {"prot: 1\n", ":1: there is no setting 'prot'"},
        {"Port: 1\n", "there is no setting 'Port'"},
        {"max-queue: 1\n", "there is no setting 'max-queue'"},
        {"config: other.yaml\n", "there is no setting 'config'"},
        {"\n# two lines\nport:\n", ":3: port cannot be ''"},
        {"a:\n  b: 1\n", ":1: the value of 'a' must be a plain value or a list"},
        {"port: {a: 1}\n", "plain value or a list"},
        {"host: &x y\n", ":1: anchors, aliases and tags"},
        {"host: *x\n", ":1: "}, // an unknown anchor is libyaml's to refuse
        {"host: !!str y\n", "anchors, aliases and tags"},
        {"&a port: 1\n", "anchors, aliases and tags"},
        {"!!map {port: 1}\n", "anchors, aliases and tags"},
        {"auto_modes: &l [ar]\n", "anchors, aliases and tags"},
        {"auto_modes: [ar, &x diffusion]\n", "anchors, aliases and tags"},
        {"- port\n", ":1: the file must hold `key: value` lines"},
        {"port\n", "`key: value` lines"},
        {"? [a]\n: 1\n", "`key: value` lines"},
        {"? {port: 1}\n: {threads: 4}\n", "`key: value` lines"},
        {"port: 1\n---\nport: 2\n", "second document"},
        {"auto_modes: [ar, [diffusion]]\n", "plain values only"},
        {"auto_modes: [ar, {a: b}]\n", "plain values only"},
        {"auto_modes: []\n", "auto_modes cannot be ''"},
        {"port: [1, 2]\n", "port cannot be '1,2'"},
        {"port: [\n", "not valid YAML"},
        {"\tport: 1\n", "not valid YAML"},
        {"host: \xff\n", "not valid YAML"},
        {"threads: 1\nport: 99999\n", ":2: port cannot be '99999'; allowed: an integer from 0 to 65535"},
        {"host: \"a\\0b\"\n", "zero byte"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        if (!read_text(cases[i].text, strlen(cases[i].text)))
            fail_msg("accepted: %s", cases[i].text);
        if (!strstr(err, cases[i].says) || strncmp(err, path, strlen(path)))
            fail_msg("\"%s\" does not say \"%s\"", err, cases[i].says);
        assert_null(strchr(err, '\n'));
    }
}

static void test_unreadable_files(void **state)
{
    (void)state;
    assert_int_equal(srv_config_file(&c, "/nonexistent/x.yaml", err, sizeof err), -1);
    assert_non_null(strstr(err, "config: '/nonexistent/x.yaml' cannot be read"));
    assert_int_equal(srv_config_file(&c, "/tmp", err, sizeof err), -1);
    assert_non_null(strstr(err, "/tmp:"));
    assert_int_equal(read_text("port: 1\0\n", 9), -1);
    // Every beginning of a file is read or refused, without harm.
    const char *text = "port: 1\nhost: \"\\u00e9\"\nauto_modes: [ar, 'diffusion']\nsystem: |\n  x\n";
    for (size_t n = 0; n <= strlen(text); n++)
        assert_true(read_text(text, n) == 0 || err[0]);
}

// Deeper than any stack: refused at the first level.
static void test_nesting_ends_at_once(void **state)
{
    (void)state;
    enum { N = 200000 };
    char *text = malloc(N + 12);
    memcpy(text, "auto_modes: ", 12);
    memset(text + 12, '[', N);
    assert_int_equal(read_text(text, N + 12), -1);
    assert_non_null(strstr(err, "plain values only"));
    free(text);
}

int main(void)
{
    int fd = mkstemp(path);
    if (fd < 0)
        return 1;
    close(fd);
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(test_files_without_a_setting_change_nothing),
        T(test_every_way_to_write_a_value),
        T(test_bad_files),
        T(test_unreadable_files),
        T(test_nesting_ends_at_once),
    };
    int status = cmocka_run_group_tests(tests, NULL, NULL);
    unlink(path);
    return status;
}
