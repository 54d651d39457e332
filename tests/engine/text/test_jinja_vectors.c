// The template interpreter against Python's jinja2: data/jinja_cases.json, written by make_jinja_cases.py.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <cjson/cJSON.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "text/file.h"
#include "text/jinja.h"

static cJSON *load(void)
{
    char *data, err[256];
    size_t len;
    cJSON *json;
    assert_int_equal(eng_text_read_file(TRIMODE_SOURCE_DIR "/tests/engine/text/data/jinja_cases.json", 16 << 20, &data,
                                        &len, err, sizeof err),
                     0);
    assert_int_equal(eng_text_parse_json(data, len, "jinja_cases.json", &json, err, sizeof err), 0);
    free(data);
    return json;
}

// The common variables with the case's own in front of them.
static cJSON *variables(const cJSON *common, const cJSON *own)
{
    cJSON *vars = own ? cJSON_Duplicate(own, 1) : cJSON_CreateObject();
    const cJSON *item;
    cJSON_ArrayForEach(item, common) if (!cJSON_GetObjectItemCaseSensitive(vars, item->string))
        cJSON_AddItemToObject(vars, item->string, cJSON_Duplicate(item, 1));
    return vars;
}

static int check_case(const cJSON *common, const cJSON *c)
{
    const char *source = cJSON_GetStringValue(cJSON_GetObjectItem(c, "template"));
    const char *want = cJSON_GetStringValue(cJSON_GetObjectItem(c, "output"));
    const char *error = cJSON_GetStringValue(cJSON_GetObjectItem(c, "error"));
    char err[512] = "";
    struct eng_jinja *j = NULL;
    struct eng_jinja_out out = {0};
    cJSON *vars = variables(common, cJSON_GetObjectItem(c, "vars"));
    int bad = 0, rc = eng_jinja_compile(source, strlen(source), &j, err, sizeof err);
    if (!rc)
        rc = eng_jinja_render(j, vars, NULL, &out, err, sizeof err);
    if (want)
        bad = rc || strcmp(out.text, want);
    else
        bad = !rc || !err[0] || (error[0] && strcmp(err, error));
    if (bad)
        print_message("# %s\n# template: %s\n# want: %s\n# got %d: %s\n", cJSON_GetObjectItem(c, "name")->valuestring,
                      source, want ? want : error, rc, rc ? err : out.text);
    for (size_t i = 0; i < out.n_spans; i++) { // the spans tile the text
        bad |= out.spans[i].begin != (i ? out.spans[i - 1].end : 0) || out.spans[i].end <= out.spans[i].begin;
        bad |= i && out.spans[i].from_input == out.spans[i - 1].from_input;
    }
    if (!rc)
        bad |= out.len != (out.n_spans ? out.spans[out.n_spans - 1].end : 0);
    cJSON_Delete(vars);
    eng_jinja_out_free(&out);
    eng_jinja_free(j);
    return bad;
}

static void test_renders_as_python_jinja2(void **state)
{
    (void)state;
    cJSON *json = load();
    const cJSON *c;
    int bad = 0, n = 0;
    cJSON_ArrayForEach(c, cJSON_GetObjectItem(json, "cases"))
    {
        bad += check_case(cJSON_GetObjectItem(json, "vars"), c);
        n++;
    }
    cJSON_Delete(json);
    assert_true(n > 100);
    assert_int_equal(bad, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_renders_as_python_jinja2)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
