// server/config_table.c: the table of settings, and what is printed from it.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "config_file.h"
#include "config_table.h"
#include "engine.h"

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

static void set(const char *key, const char *value)
{
    if (srv_config_set(&c, key, value, SRV_FROM_FLAG, "test", err, sizeof err))
        fail_msg("%s", err);
}

// Freed by the caller.
static char *print(enum srv_command command)
{
    char *text = NULL;
    size_t n = 0;
    FILE *f = open_memstream(&text, &n);
    srv_config_print(&c, command, f);
    fclose(f);
    return text;
}

static void test_every_option_has_a_field_of_its_own_and_a_text(void **state)
{
    (void)state;
    assert_in_range(srv_n_options, 1, SRV_MAX_OPTIONS);
    for (int i = 0; i < srv_n_options; i++) {
        const struct srv_option *o = &srv_options[i];
        char allowed[160];
        srv_option_allowed(o, allowed, sizeof allowed);
        assert_true(*o->help && *allowed && strlen(allowed) < sizeof allowed - 1);
        assert_int_equal(strspn(o->key, "abcdefghijklmnopqrstuvwxyz_"), strlen(o->key));
        assert_true(o->commands && !(o->commands & ~63u));
        assert_true(o->min <= o->max);
        assert_int_equal(o->type == SRV_WORD, o->words != NULL);
        assert_int_equal(srv_config_find(o->key), i);
        assert_ptr_equal(srv_option_field(&c, o), (char *)&c + o->offset);
        for (int k = 0; k < i; k++)
            assert_true(srv_options[k].offset != o->offset);
    }
    assert_int_equal(srv_config_find(""), -1);
    assert_int_equal(srv_config_find("max-queue"), -1);
}

// A word that the table allows but the parser does not know would be refused with a list that names it.
static void test_every_allowed_word_can_be_set(void **state)
{
    (void)state;
    for (int i = 0; i < srv_n_options; i++) {
        char words[100], *rest = words;
        if (srv_options[i].type != SRV_WORD)
            continue;
        snprintf(words, sizeof words, "%s", srv_options[i].words);
        for (char *word; (word = strsep(&rest, "|"));) {
            set(srv_options[i].key, word);
            assert_string_equal(*(const char **)srv_option_field(&c, &srv_options[i]), word);
        }
    }
}

static void test_allowed_says_the_range(void **state)
{
    (void)state;
    static const struct {
        const char *key, *text;
    } cases[] = {
        {"port", "an integer from 0 to 65535"},
        {"threads", "auto, or an integer from 0 to 1024"},
        {"max_body", "bytes, or a number with KiB, MiB or GiB, from 1024 to 1073741824 bytes"},
        {"backend", "auto|cpu|cuda"},
        {"model", "a text that is not empty"},
        {"cors_origin", "a text"},
        {"request_timeout", "seconds from 0 to 86400"},
        {"top_p", "a number from 0 to 1"},
        {"cpu_mask", "all, or a number from 0 to 0xffffffff"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char allowed[160], small[5];
        srv_option_allowed(&srv_options[srv_config_find(cases[i].key)], allowed, sizeof allowed);
        assert_string_equal(allowed, cases[i].text);
        srv_option_allowed(&srv_options[srv_config_find(cases[i].key)], small, sizeof small);
        assert_int_equal(strlen(small), 4);
    }
}

static void test_printed_lines_say_value_and_origin(void **state)
{
    (void)state;
    set("port", "0");
    set("max_body", "3MiB");
    set("kv_memory", "1000");
    set("cpu_mask", "16");
    set("auto_modes", "diffusion,ar");
    set("request_timeout", "12345.678");
    assert_int_equal(srv_config_set(&c, "host", "::1", SRV_FROM_ENVIRONMENT, "test", err, sizeof err), 0);
    char *text = print(SRV_SERVE);
    static const char *const lines[] = {
        "port: 0  # flag\n",          "max_body: 3MiB  # flag\n",           "kv_memory: 1000  # flag\n",
        "cpu_mask: 0x10  # flag\n",   "auto_modes: ar,diffusion  # flag\n", "request_timeout: 12345.678  # flag\n",
        "threads: auto  # default\n", "host: \"::1\"  # environment\n",     "cors_origin: \"\"  # default\n",
        "threshold: 0.9  # default\n"};
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++)
        if (!strstr(text, lines[i]))
            fail_msg("%s is not in %s", lines[i], text);
    assert_null(strstr(text, "system:"));
    free(text);
}

// Symptom: a system message with a quote, a backslash or 9000 characters printed a file that could not be read back.
static void test_printed_settings_are_a_valid_file(void **state)
{
    (void)state;
    char path[] = "/tmp/trimode-print-XXXXXX", *longest = calloc(1, 9001);
    close(mkstemp(path));
    memset(longest, '"', 9000);
    const char *const values[] = {
        "a: b", "say \"hi\"", "C:\\new\\x", "two\nlines", "\ttab\t",     " space ",  "# no comment", "-",    "- x",
        "~",    "007",        "---",        "...",        "caf\xc3\xa9", "\x01\x7f", "'q'",          "[a",   "&a",
        "@x",   "%x",         "a\\",        "",           "key:",        "null",     "? x",          "x #y", longest};
    for (size_t i = 0; i < sizeof values / sizeof *values; i++) {
        set("system", values[i]);
        set("temperature", "0.123456789");
        set("seed", "9007199254740992");
        FILE *f = fopen(path, "w");
        srv_config_print(&c, SRV_CHAT, f);
        fclose(f);
        struct srv_config again;
        assert_int_equal(srv_config_default(&again), 0);
        if (srv_config_file(&again, path, err, sizeof err))
            fail_msg("%s: %s", values[i], err);
        assert_string_equal(again.system, values[i]);
        assert_true(again.temperature == c.temperature && again.seed == c.seed && again.cpu_mask == c.cpu_mask);
        assert_true(again.kv_memory == c.kv_memory && again.auto_modes == c.auto_modes && again.top_p == c.top_p);
        srv_config_done(&again);
    }
    free(longest);
    unlink(path);
}

static void test_help_lists_the_commands_own_flags_with_defaults(void **state)
{
    (void)state;
    static const enum srv_command commands[] = {SRV_SERVE, SRV_GENERATE, SRV_CHAT};
    for (int k = 0; k < 3; k++) {
        char *text = NULL, flag[80];
        size_t n = 0;
        FILE *f = open_memstream(&text, &n);
        srv_config_help(commands[k], f);
        fclose(f);
        for (int i = 0; i < srv_n_options; i++) {
            snprintf(flag, sizeof flag, "\n  --%s ", srv_options[i].key);
            for (char *p = flag; *p; p++)
                *p = *p == '_' ? '-' : *p;
            assert_int_equal(strstr(text, flag + (i == 0)) != NULL, (srv_options[i].commands & commands[k]) != 0);
        }
        assert_non_null(strstr(text, "auto|ar|diffusion|self_speculation; default auto\n"));
        assert_non_null(strstr(text, "4, 8, 16, 32 or 64; default 32\n"));
        assert_non_null(strstr(text, "; default all\n"));
        assert_non_null(strstr(text, "--config "));
        assert_int_equal(strstr(text, "--print-config") != NULL, commands[k] == SRV_SERVE);
        free(text);
    }
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(test_every_option_has_a_field_of_its_own_and_a_text),
        T(test_every_allowed_word_can_be_set),
        T(test_allowed_says_the_range),
        T(test_printed_lines_say_value_and_origin),
        T(test_printed_settings_are_a_valid_file),
        T(test_help_lists_the_commands_own_flags_with_defaults),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
