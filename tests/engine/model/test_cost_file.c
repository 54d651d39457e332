// engine/model/cost_file.c
#include "folder.h"

#include <math.h>
#include <stdbool.h>
#include <unistd.h>

#include "base/err.h"
#include "cost.h"
#include "model/cost_file.h"

static char dir[PATH_SIZE], path[PATH_SIZE + 16], err[640];
static const struct eng_cost_id here = {"1.2.3", "0123456789abcdef, bf16 weights", "a CPU, 2 cores; cpu: 2 threads"};
static struct eng_cost cost;

static int make_dir(void **state)
{
    (void)state;
    folder_make(dir);
    snprintf(path, sizeof path, "%s/cost.json", dir);
    cost = (struct eng_cost){.n_knots = 2,
                             .knots = {1, 24},
                             .slopes = {1.25e-6, 3.0000000000000004e-5},
                             .base = 1e-4,
                             .segment = 2e-6,
                             .choice = 3e-6,
                             .context = 4e-8,
                             .pair = 5e-9,
                             .adapter_row = 6e-7,
                             .far = {1e-9, 2e-9, 3e-9},
                             .n_samples = 87,
                             .median_error = 0.05,
                             .worst_error = 0.4,
                             .id = here};
    err[0] = '\0';
    return 0;
}

static int remove_dir(void **state)
{
    (void)state;
    folder_remove(dir);
    return 0;
}

static void save(void)
{
    if (eng_cost_file_save(path, &cost, err, sizeof err))
        fail_msg("%s", err);
}

static void refused(const struct eng_cost_id *id, int code, const char *word1, const char *word2)
{
    struct eng_cost c = {.n_knots = 9};
    int rc = eng_cost_file_load(path, id, &c, err, sizeof err);
    if (rc != code || !strstr(err, word1) || !strstr(err, word2))
        fail_msg("%d \"%s\", expected \"%s\" and \"%s\"", rc, rc ? err : "", word1, word2);
    assert_int_equal(c.n_knots, 9); // untouched
}

static bool close_to(double a, double b)
{
    return fabs(a - b) <= 1e-14 * fabs(b);
}

static void test_a_saved_model_is_read_back(void **state)
{
    (void)state;
    struct eng_cost c;
    save();
    memset(&c, 0, sizeof c);
    if (eng_cost_file_load(path, &here, &c, err, sizeof err))
        fail_msg("%s", err);
    // cJSON writes 15 digits where they are as good as 17.
    const double *read = &c.slopes[0], *written = &cost.slopes[0];
    for (size_t i = 0; i < ENG_COST_KNOTS; i++)
        assert_true(close_to(read[i], written[i]));
    for (size_t i = 0; i < ENG_COST_BENDS; i++)
        assert_true(close_to(c.far[i], cost.far[i]));
    assert_true(close_to(c.base, cost.base) && close_to(c.segment, cost.segment) && close_to(c.choice, cost.choice));
    assert_true(close_to(c.context, cost.context) && close_to(c.pair, cost.pair));
    assert_true(close_to(c.adapter_row, cost.adapter_row) && close_to(c.median_error, cost.median_error));
    assert_true(close_to(c.worst_error, cost.worst_error) && c.n_samples == cost.n_samples);
    assert_int_equal(c.n_knots, cost.n_knots);
    assert_memory_equal(c.knots, cost.knots, sizeof c.knots);
    assert_memory_equal(&c.id, &here, sizeof here);
    cost.base = 7e-4;
    save(); // over the old one
    assert_int_equal(eng_cost_file_load(path, &here, &c, err, sizeof err), 0);
    assert_true(c.base > 6e-4);
}

static void test_another_version_model_or_machine_is_refused_by_name(void **state)
{
    (void)state;
    struct eng_cost_id id = here;
    save();
    strcpy(id.version, "1.2.4");
    refused(&id, ENG_EINVAL, "another version of trimode: \"1.2.3\", this is \"1.2.4\"", path);
    id = here;
    strcpy(id.model, "fedcba");
    refused(&id, ENG_EINVAL, "another model: \"0123456789abcdef, bf16 weights\", this is \"fedcba\"", "calibrate");
    id = here;
    strcpy(id.machine, "a CPU, 4 cores");
    refused(&id, ENG_EINVAL, "another machine: \"a CPU, 2 cores; cpu: 2 threads\"", "4 cores");
}

// The saved file with one key changed (value NULL: removed).
static void change(const char *key, const char *value)
{
    char *text = NULL;
    size_t n = 0;
    save();
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    assert_true(getdelim(&text, &n, EOF, f) > 0);
    fclose(f);
    char *changed = json_with(text, key, value);
    folder_write_text(dir, "cost.json", changed);
    cJSON_free(changed);
    free(text);
}

static void test_what_cannot_be_a_model_is_refused_by_key(void **state)
{
    (void)state;
    static const char *const cases[][3] = {
        {"base", "-1e-6", "\"base\""},
        {"pair", "\"fast\"", "\"pair\""},
        {"context", "1e9", "\"context\""},
        {"choice", NULL, "\"choice\""},
        {"context_beyond_8192", NULL, "\"context_beyond_8192\""},
        {"samples", "0", "\"samples\""},
        {"format", "\"trimode cost model 2\"", "no cost model"},
        {"format", NULL, "\"format\""},
        {"machine", NULL, "\"machine\""},
        {"rows", "[]", "\"rows\""},
        {"rows", "7", "\"rows\""},
        {"rows", "[{\"from\":1,\"seconds_a_row\":0},{\"from\":1,\"seconds_a_row\":0}]", "\"from\""},
        {"rows", "[{\"from\":1,\"seconds_a_row\":-1}]", "\"seconds_a_row\""},
        {"rows", "[1]", "\"from\""},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        change(cases[i][0], cases[i][1]);
        refused(&here, ENG_EFORMAT, cases[i][2], path);
    }
    cost.base = cost.segment = 0;
    save();
    refused(&here, ENG_EFORMAT, "no time", path);
    folder_write_text(dir, "cost.json", "{\"format\":");
    refused(&here, ENG_EFORMAT, "JSON", "cost.json");
    folder_write_text(dir, "cost.json", "[]");
    refused(&here, ENG_EFORMAT, "object", "cost.json");
}

static void test_files_that_cannot_be_read_or_written_are_named(void **state)
{
    (void)state;
    refused(&here, ENG_EIO, "cost.json", "No such file");
    snprintf(path, sizeof path, "%s/no/c.json", dir);
    assert_int_equal(eng_cost_file_save(path, &cost, err, sizeof err), ENG_EIO);
    assert_non_null(strstr(err, path));
    assert_int_equal(eng_cost_file_save(dir, &cost, err, sizeof err), ENG_EIO); // a folder stands there
    char beside[PATH_SIZE + 16];
    snprintf(beside, sizeof beside, "%s.new", dir);
    assert_int_equal(access(beside, F_OK), -1); // nothing is left behind
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, make_dir, remove_dir)
    const struct CMUnitTest tests[] = {
        T(test_a_saved_model_is_read_back),
        T(test_another_version_model_or_machine_is_refused_by_name),
        T(test_what_cannot_be_a_model_is_refused_by_key),
        T(test_files_that_cannot_be_read_or_written_are_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
