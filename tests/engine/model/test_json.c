// engine/model/json.c: files, and getters whose errors name file, key and value.
#include "folder.h"

#include <math.h>

#include "base/err.h"
#include "model/json.h"

static char err[256];
static const struct eng_json_ctx at = {.file = "c.json", .err = err, .err_size = sizeof err};

static void check_parse(const char *text, size_t len, const char *says)
{
    cJSON *json = NULL;
    err[0] = '\0';
    int rc = eng_json_parse(text, len, &at, &json);
    if (rc != (*says ? ENG_EFORMAT : 0) || strcmp(err, says) || !json != (rc != 0))
        fail_msg("%s: %d, %s", text, rc, err);
    cJSON_Delete(json);
}

static void test_one_object_and_nothing_else(void **state)
{
    (void)state;
    check_parse("{}", 2, "");
    check_parse(" {\"a\":1}\r\n\t ", 12, "");
    check_parse("{}xyz", 2, ""); // the length counts, not what follows
    check_parse("{} x", 4, "c.json has text after its JSON value (byte 3)");
    check_parse("{}\0", 3, "c.json has text after its JSON value (byte 2)");
    check_parse("[1]", 3, "c.json does not hold a JSON object");
    check_parse("{\"a\":1", 6, "c.json is not valid JSON (near byte 5)");
    check_parse("{\"a\":nan}", 9, "c.json is not valid JSON (near byte 5)");
    static char deep[20000];
    memset(deep, '[', sizeof deep);
    cJSON *json = NULL;
    assert_int_equal(eng_json_parse(deep, sizeof deep, &at, &json), ENG_EFORMAT);
    assert_null(json);
}

static void test_loads_regular_files_only(void **state)
{
    (void)state;
    char dir[PATH_SIZE], path[2 * PATH_SIZE];
    cJSON *json = NULL;
    folder_make(dir);
    snprintf(path, sizeof path, "%s/c.json", dir);
    assert_int_equal(eng_json_load(dir, false, &at, &json), ENG_EIO);
    assert_non_null(strstr(err, "c.json: No such file or directory"));
    json = (cJSON *)err;
    assert_int_equal(eng_json_load(dir, true, &at, &json), 0);
    assert_null(json);
    assert_int_equal(mkfifo(path, 0600), 0); // nobody writes: it must not wait
    assert_int_equal(eng_json_load(dir, true, &at, &json), ENG_EIO);
    assert_non_null(strstr(err, "is not a regular file"));
    assert_int_equal(remove(path), 0);
    folder_write_text(dir, "c.json", "{\"k\": 5}");
    assert_int_equal(eng_json_load(dir, false, &at, &json), 0);
    assert_non_null(eng_json_get(json, "k"));
    assert_null(eng_json_get(json, "K"));
    cJSON_Delete(json);
    folder_remove(dir);
}

static void check_error(int rc, const char *says)
{
    assert_int_equal(rc, ENG_EFORMAT);
    assert_string_equal(err, says);
}

static void test_getters(void **state)
{
    (void)state;
    cJSON *o = cJSON_Parse("{\"i\":7,\"h\":1.5,\"big\":1e999,\"s\":\"x\",\"n\":null,\"b\":true,\"l\":[1]}");
    int32_t i = 42;
    double d = 42;
    bool b = false;
    const char *s = "kept";
    assert_int_equal(eng_json_int(o, "i", true, 7, 7, &at, &i), 0);
    assert_int_equal(i, 7);
    assert_int_equal(eng_json_int(o, "n", false, 0, 9, &at, &i), 0);
    assert_int_equal(eng_json_int(o, "absent", false, 0, 9, &at, &i), 0);
    assert_int_equal(i, 7);
    check_error(eng_json_int(o, "n", true, 0, 9, &at, &i), "c.json has no \"n\"");
    check_error(eng_json_int(o, "i", true, 8, 9, &at, &i), "c.json: \"i\" is 7, expected an integer from 8 to 9");
    check_error(eng_json_int(o, "h", true, 0, 9, &at, &i), "c.json: \"h\" is 1.5, expected an integer from 0 to 9");
    check_error(eng_json_int(o, "s", true, 0, 9, &at, &i), "c.json: \"s\" is \"x\", expected an integer from 0 to 9");
    assert_int_equal(eng_json_int(o, "big", true, 0, 9, &at, &i), ENG_EFORMAT);
    assert_int_equal(eng_json_double(o, "h", true, false, 1.5, 2, &at, &d), 0);
    assert_true(d == 1.5);
    check_error(eng_json_double(o, "h", true, true, 1.5, 2, &at, &d),
                "c.json: \"h\" is 1.5, expected a number above 1.5 and at most 2");
    assert_int_equal(eng_json_double(o, "big", true, false, 0, 1e300, &at, &d), ENG_EFORMAT);
    assert_int_equal(eng_json_bool(o, "b", &at, &b), 0);
    assert_true(b);
    check_error(eng_json_bool(o, "i", &at, &b), "c.json: \"i\" is 7, expected true or false");
    assert_int_equal(eng_json_string(o, "n", false, &at, &s), 0);
    assert_string_equal(s, "kept");
    assert_int_equal(eng_json_string(o, "s", true, &at, &s), 0);
    assert_string_equal(s, "x");
    check_error(eng_json_string(o, "l", true, &at, &s), "c.json: \"l\" is [1], expected a string");
    cJSON_Delete(o);
}

static void test_long_values_are_cut(void **state)
{
    (void)state;
    char buf[6];
    cJSON *v = cJSON_Parse("[1,2,3,4]");
    assert_string_equal(eng_json_show(v, buf, sizeof buf), "[1,2,");
    cJSON_Delete(v);
    assert_int_equal(eng_json_fail(NULL, 0, ENG_EIO, "%d", 1), ENG_EIO);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_one_object_and_nothing_else),
        cmocka_unit_test(test_loads_regular_files_only),
        cmocka_unit_test(test_getters),
        cmocka_unit_test(test_long_values_are_cut),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
