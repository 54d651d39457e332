// calibrate on a scripted engine: what is asked for, what is printed of what came back, and failures.
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
#include "engine.h"

static char out_path[] = "/tmp/trimode-cal-out-XXXXXX", err_path[] = "/tmp/trimode-cal-err-XXXXXX";
static char out[16384], err[4096];

// ---- the scripted engine --------------------------------------------------------------------------------------------

static int n_calibrated, calibrate_fails, save_fails;
static double asked_seconds;
static char saved_to[64];
static bool drafts;

int eng_calibrate(const struct eng_options *options, double seconds, struct eng_calibration *ret, char *text,
                  size_t size)
{
    assert_true(options->model_dir[0] == '/' && !options->progress); // stderr is no terminal
    n_calibrated++;
    asked_seconds = seconds;
    if (calibrate_fails) {
        snprintf(text, size, "the folder is empty");
        return -1;
    }
    *ret = (struct eng_calibration){
        .n_passes = 1,
        .n_checks = 1,
        .check_error = 0.07,
        .seconds = 12.25,
        .cost = {.n_knots = 2,
                 .knots = {1, 9},
                 .slopes = {5e-6, 6e-6},
                 .base = 1e-3,
                 .far = {0, 7e-9, 0},
                 .median_error = 0.04,
                 .worst_error = 0.31,
                 .n_samples = 77,
                 .id = {"1", "the model", "the machine"}},
        .passes = {{.shape = {drafts ? ENG_PASS_DRAFT : ENG_PASS_VERIFY, 2, 8, 50},
                    .sample = {{.rows = 16, .segments = 2}, 0.002},
                    .adapter = drafts}},
        .checks = {{.shape = {ENG_PASS_AR, 3, 1, 60}, .sample = {{.rows = 3, .segments = 3}, 0.001}}},
    };
    return 0;
}

int eng_cost_save(const char *path, const struct eng_cost *cost, char *text, size_t size)
{
    assert_int_equal(cost->n_knots, 2);
    snprintf(saved_to, sizeof saved_to, "%s", path);
    if (save_fails)
        snprintf(text, size, "cannot write it: no space");
    return save_fails ? -1 : 0;
}

double eng_cost_predict(const struct eng_cost *cost, const struct eng_cost_pass *pass)
{
    return cost->base + 1e-4 * pass->rows;
}

// Longer blocks end earlier, high acceptance never does.
int32_t eng_cost_crossover(const struct eng_cost *cost, int32_t context, int32_t block, double acceptance, int32_t most)
{
    assert_true(cost->n_knots == 2 && context == 256);
    return acceptance > 0.92 ? most + 1 : 68 - block;
}

// ---- running it -----------------------------------------------------------------------------------------------------

static void slurp(const char *path, char *text, size_t size)
{
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    text[fread(text, 1, size - 1, f)] = '\0';
    fclose(f);
}

static int run(int argc, const char *const *argv)
{
    struct srv_config c;
    char *environment[] = {NULL};
    assert_int_equal(srv_config_read(&c, SRV_CALIBRATE, argc, (char **)(uintptr_t)argv, environment, err, sizeof err),
                     0);
    int saved[2] = {dup(1), dup(2)};
    int files[2] = {open(out_path, O_WRONLY | O_TRUNC), open(err_path, O_WRONLY | O_TRUNC)};
    fflush(NULL);
    for (int i = 0; i < 2; i++) {
        dup2(files[i], i + 1);
        close(files[i]);
    }
    int status = srv_cli_calibrate(&c);
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

#define RUN(...)                                                                            \
    run((int)(sizeof((const char *const[]){"--model", ".", __VA_ARGS__}) / sizeof(char *)), \
        (const char *const[]){"--model", ".", __VA_ARGS__})

static int setup(void **state)
{
    (void)state;
    n_calibrated = calibrate_fails = save_fails = 0;
    saved_to[0] = '\0';
    drafts = true;
    return 0;
}

static void test_the_table_the_model_and_the_crossovers_are_printed(void **state)
{
    (void)state;
    assert_int_equal(RUN("--output", "x.json", "--seconds", "7"), 0);
    assert_true(asked_seconds > 6.9 && asked_seconds < 7.1);
    assert_string_equal(saved_to, "x.json");
    assert_non_null(strstr(out, "the machine\nthe model\n"));
    assert_non_null(strstr(out, "draft        16      2       50       on      2.000      2.600    +30.0 %\n"));
    assert_non_null(strstr(out, "ar            3      3       60               1.000      1.300    +30.0 %\n"));
    assert_non_null(strstr(out, "    6.000 us a row beyond 9\n"));
    assert_non_null(strstr(out, "    7.000 us for 1000 positions read beyond 8192\n"));
    assert_non_null(strstr(out, "median 4.0 %, worst 31.0 %, over 77 passes"));
    assert_non_null(strstr(out, "1 fresh passes: median 7.0 %"));
    assert_non_null(strstr(out, "\n4             64      64      64      64   > 128\n"));
    assert_non_null(strstr(out, "\n64             4       4       4       4   > 128\n"));
    assert_non_null(strstr(out, "Measured for 12.2 s"));
    assert_non_null(strstr(out, "--cost-model x.json"));
    assert_string_equal(err, "");
    drafts = false;
    assert_int_equal(RUN("--output", "x.json"), 0);
    assert_non_null(strstr(out, "nothing to choose"));
    assert_null(strstr(out, "acceptance"));
}

static void test_failures_and_wrong_use_are_said(void **state)
{
    (void)state;
    assert_int_equal(RUN("now"), 2);
    assert_non_null(strstr(err, "'now' is not a flag"));
    assert_int_equal(run(2, (const char *const[]){"--model", "/no/such"}), 2);
    assert_non_null(strstr(err, "neither a folder"));
    assert_int_equal(n_calibrated, 0);
    calibrate_fails = 1;
    assert_int_equal(RUN("--seconds", "5"), 1);
    assert_string_equal(err, "trimode: cannot calibrate '.': the folder is empty\n");
    assert_string_equal(saved_to, "");
    calibrate_fails = 0;
    save_fails = 1;
    assert_int_equal(RUN("--seconds", "5"), 1);
    assert_string_equal(saved_to, "cost.json");
    assert_string_equal(err, "trimode: cannot write it: no space\n");
    assert_string_equal(out, "");
}

int main(void)
{
    close(mkstemp(out_path));
    close(mkstemp(err_path));
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_the_table_the_model_and_the_crossovers_are_printed, setup),
        cmocka_unit_test_setup(test_failures_and_wrong_use_are_said, setup),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    unlink(out_path);
    unlink(err_path);
    return failed;
}
