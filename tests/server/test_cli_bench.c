// bench forward on a scripted bench: what is asked for becomes passes, and what came back becomes lines.
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
#include "engine.h"

static char out_path[] = "/tmp/trimode-bench-out-XXXXXX", err_path[] = "/tmp/trimode-bench-err-XXXXXX";
static char out[16384], err[4096];

// ---- the scripted bench ---------------------------------------------------------------------------------------------

struct eng_bench {
    struct eng_info info;
};
static struct eng_bench the_bench;
static struct eng_options opened;
static char opened_dir[64];
static struct eng_bench_shape passes[64];
static int n_passes, n_open, fail_at, open_fails;

int eng_bench_open(const struct eng_options *options, struct eng_bench **ret, char *text, size_t size)
{
    opened = *options;
    snprintf(opened_dir, sizeof opened_dir, "%s", options->model_dir);
    if (open_fails) {
        snprintf(text, size, "the folder is empty");
        return -1;
    }
    options->progress(options->user, "weights", 0.5);
    options->progress(options->user, "weights", 1.0);
    the_bench.info =
        (struct eng_info){.backend = "fake",
                          .backend_description = "a \"fast\" one",
                          .backend_reason = "there is no GPU",
                          .weights_type = "bf16",
                          .kv_type = "fp8",
                          .memory = {.n_categories = 2, .categories = {{"weights", 3000000000}, {"kv", 12}}},
                          .weights_bytes = 3000000000,
                          .file_bytes = 3000000001,
                          .step_bytes = 7,
                          .adapter_bytes = 8,
                          .kv_token_bytes = 9,
                          .n_vocab = 10};
    *ret = &the_bench;
    n_open++;
    return 0;
}

void eng_bench_close(struct eng_bench *b)
{
    n_open -= b != NULL;
}

const struct eng_info *eng_bench_info(const struct eng_bench *b)
{
    return &b->info;
}

int eng_bench_pass(struct eng_bench *b, const struct eng_bench_shape *shape, int runs, struct eng_bench_time *ret)
{
    (void)b;
    assert_int_equal(runs, 3);
    passes[n_passes++] = *shape;
    if (n_passes == fail_at)
        return -4;
    *ret = (struct eng_bench_time){.min_ms = 1,
                                   .median_ms = 2,
                                   .max_ms = 3,
                                   .queued_ms = 1.5,
                                   .host_ms = 0.25,
                                   .wanted = 5,
                                   .adapter = shape->kind == ENG_PASS_DRAFT,
                                   .weight_bytes = 2000000000,
                                   .kv_bytes = 1000000000};
    return 0;
}

const char *eng_bench_error(const struct eng_bench *b, int code)
{
    (void)b, (void)code;
    return "the device is lost";
}

// ---- tests ----------------------------------------------------------------------------------------------------------

static void slurp(const char *path, char *text, size_t size)
{
    FILE *f = fopen(path, "r");
    size_t n = fread(text, 1, size - 1, f);
    text[n] = 0;
    fclose(f);
}

// Runs `trimode bench` with the flags; what it printed is in out and err.
static int run(const char *const *flags)
{
    struct srv_config c;
    char why[400] = "", *argv[24];
    int argc = 0, saved[2];
    for (; flags[argc]; argc++)
        argv[argc] = (char *)(uintptr_t)flags[argc];
    if (srv_config_read(&c, SRV_BENCH, argc, argv, NULL, why, sizeof why))
        fail_msg("%s", why);
    fflush(NULL);
    int files[2] = {open(out_path, O_WRONLY | O_TRUNC), open(err_path, O_WRONLY | O_TRUNC)};
    for (int i = 0; i < 2; i++) {
        saved[i] = dup(i + 1);
        dup2(files[i], i + 1);
        close(files[i]);
    }
    n_passes = 0;
    int status = srv_cli_bench(&c);
    fflush(NULL);
    for (int i = 0; i < 2; i++) {
        dup2(saved[i], i + 1);
        close(saved[i]);
    }
    srv_config_done(&c);
    slurp(out_path, out, sizeof out);
    slurp(err_path, err, sizeof err);
    assert_int_equal(n_open, 0);
    return status;
}

#define RUN(...) run((const char *const[]){"forward", "--model", ".", "--runs", "3", __VA_ARGS__, NULL})

static int setup(void **state)
{
    (void)state;
    fail_at = open_fails = 0;
    return 0;
}

static void check_pass(int i, enum eng_pass_kind kind, int32_t segments, int32_t rows, int32_t context)
{
    assert_true(i < n_passes);
    if (passes[i].kind != kind || passes[i].segments != segments || passes[i].rows != rows ||
        passes[i].context != context)
        fail_msg("pass %d: %s, %d sequences of %d rows at %d", i, eng_pass_kind_name(passes[i].kind),
                 passes[i].segments, passes[i].rows, passes[i].context);
}

// AR rows are sequences, blocks are cut to block_length, and contexts rise.
static void test_rows_become_sequences_by_kind(void **state)
{
    (void)state;
    assert_int_equal(
        RUN("--rows", "8,64", "--context", "300,0", "--kind", "ar,draft,prefill", "--max-step-rows", "100"), 0);
    assert_int_equal(n_passes, 12);
    check_pass(0, ENG_PASS_AR, 8, 1, 0);
    check_pass(1, ENG_PASS_AR, 64, 1, 0);
    check_pass(2, ENG_PASS_DRAFT, 1, 8, 0);
    check_pass(3, ENG_PASS_DRAFT, 2, 32, 0);
    check_pass(4, ENG_PASS_PREFILL, 1, 8, 0);
    check_pass(5, ENG_PASS_PREFILL, 1, 64, 0);
    check_pass(11, ENG_PASS_PREFILL, 1, 64, 300);
    assert_int_equal(opened.max_sequences, 64);
    assert_int_equal(opened.max_context, 364);
    assert_int_equal(opened.max_step_rows, 100);
    assert_true(opened_dir[0] == '/');
    assert_int_equal(RUN("--rows", "48", "--kind", "verify", "--block-length", "16", "--max-step-rows", "64"), 0);
    check_pass(0, ENG_PASS_VERIFY, 3, 16, 128);
    assert_int_equal(opened.max_step_rows, 64);
    assert_int_equal(RUN("--rows", "4096", "--kind", "prefill", "--max-step-rows", "64"), 0);
    assert_int_equal(opened.max_step_rows, 4096);
}

static void test_lines_for_people(void **state)
{
    (void)state;
    assert_int_equal(RUN("--rows", "32", "--kind", "ar", "--limit-gbps", "4000"), 0);
    assert_non_null(strstr(out, "bf16 weights, fp8 keys and values, 3.000 GB resident"));
    assert_non_null(strstr(out, "\nbackend fake: there is no GPU\nkind"));
    assert_non_null(strstr(out, "   share\n"));
    // 3 GB in 1.5 ms are 2000 GB/s, half of the limit.
    assert_non_null(strstr(out, "3000.00  2000.00   50.0 %\n"));
    assert_non_null(strstr(out, "    250.0 "));
    assert_int_equal(RUN("--rows", "32"), 0);
    assert_null(strstr(out, "share"));
    assert_null(strchr(out, '%'));
}

static void test_json_is_an_object_a_line(void **state)
{
    (void)state;
    assert_int_equal(RUN("--rows", "32", "--kind", "draft,verify", "--json"), 0);
    int n = 0;
    for (char *rest = out, *line; (line = strsep(&rest, "\n")) && *line; n++) {
        cJSON *object = cJSON_Parse(line);
        assert_non_null(object);
        if (n == 0) {
            const cJSON *open = cJSON_GetObjectItem(object, "open");
            assert_string_equal(cJSON_GetObjectItem(open, "description")->valuestring, "a \"fast\" one");
            assert_true(cJSON_GetObjectItem(open, "weights_bytes")->valuedouble == 3e9);
            assert_int_equal(cJSON_GetObjectItem(cJSON_GetObjectItem(open, "memory"), "kv")->valueint, 12);
            assert_true(cJSON_GetObjectItem(open, "open_seconds")->valuedouble >= 0);
        } else {
            const cJSON *pass = cJSON_GetObjectItem(object, "pass");
            assert_string_equal(cJSON_GetObjectItem(pass, "kind")->valuestring, n == 1 ? "draft" : "verify");
            assert_int_equal(cJSON_IsTrue(cJSON_GetObjectItem(pass, "adapter")), n == 1);
            assert_true(cJSON_GetObjectItem(pass, "queued_ms")->valuedouble == 1.5);
            assert_true(cJSON_GetObjectItem(pass, "host_us")->valuedouble == 250);
        }
        cJSON_Delete(object);
    }
    assert_int_equal(n, 3);
}

static void test_wrong_use_is_refused_before_loading(void **state)
{
    (void)state;
    static const char *const bad[][2] = {{"--rows", "0"},        {"--rows", "1,"},     {"--rows", "1;2"},
                                         {"--rows", "65537"},    {"--context", "-1"},  {"--context", "x"},
                                         {"--kind", "ar,"},      {"--kind", "arr"},    {"--kind", "a"},
                                         {"--kind", "ar,,seal"}, {"--context", "1 2"}, {"--rows", "1025"}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(RUN(bad[i][0], bad[i][1]), 2);
        if (!strstr(err, bad[i][0] + 2) || !strstr(err, "allowed:"))
            fail_msg("%s %s: %s", bad[i][0], bad[i][1], err);
        assert_int_equal(n_passes, 0);
    }
    assert_int_equal(RUN("--rows", "33", "--kind", "seal"), 2);
    assert_non_null(strstr(err, "multiple of it"));
    assert_int_equal(run((const char *const[]){"--model", ".", NULL}), 2);
    assert_int_equal(run((const char *const[]){"kernels", "--model", ".", NULL}), 2);
    assert_int_equal(RUN("--model", "no-such-model"), 2);
    assert_non_null(strstr(err, "no-such-model"));
}

static void test_failures_are_said(void **state)
{
    (void)state;
    open_fails = 1;
    assert_int_equal(RUN("--rows", "1"), 1);
    assert_non_null(strstr(err, "cannot load the model '.': the folder is empty"));
    open_fails = 0;
    fail_at = 2;
    assert_int_equal(RUN("--rows", "1,2,3"), 1);
    assert_int_equal(n_passes, 2);
    assert_non_null(strstr(err, "the ar pass of 2 rows at context 128 failed: the device is lost"));
    assert_non_null(strstr(out, "\nar            1 ")); // what came before stands
}

int main(void)
{
    close(mkstemp(out_path));
    close(mkstemp(err_path));
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_rows_become_sequences_by_kind, setup),
        cmocka_unit_test_setup(test_lines_for_people, setup),
        cmocka_unit_test_setup(test_json_is_an_object_a_line, setup),
        cmocka_unit_test_setup(test_wrong_use_is_refused_before_loading, setup),
        cmocka_unit_test_setup(test_failures_are_said, setup),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    unlink(out_path);
    unlink(err_path);
    return failed;
}
