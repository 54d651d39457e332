// Bodies: what cJSON would take and we refuse, and getters whose errors name the path.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "json.h"
#include "json_scan.h"

static int parse_n(const char *text, size_t n, struct srv_error *e)
{
    cJSON *j = NULL;
    char *copy = malloc(n + 1); // exact size, so that a sanitizer sees a read past the end
    memcpy(copy, text, n);
    copy[n] = 0;
    int status = srv_json_parse(copy, n, &j, e);
    assert_int_equal(status == 0, j != NULL);
    cJSON_Delete(j);
    free(copy);
    return status;
}

static void test_refuses_what_is_not_json(void **state)
{
    (void)state;
    static const char *const bad[] = {
        "",
        " ",
        "{",
        "{}}",
        "{} trailing",
        "[]",
        "5",
        "null",
        "{\"a\"}",
        "{\"a\":}",
        "{\"a\":1,}",
        "{a:1}",
        "{\"a\":01}",
        "{\"a\":+1}",
        "{\"a\":1.}",
        "{\"a\":.5}",
        "{\"a\":1e}",
        "{\"a\":NaN}",
        "{\"a\":nan}",
        "{\"a\":tru}",
        "{\"a\":'x'}",
        "{\"a\":\"\\x\"}",
        "{\"a\":\"\n\"}",
        "{\"a\":\"\\u12\"}",
        "{\"a\":\"\\u0000\"}",
        "{\"a\":\"\\ud800\"}",
        "{\"a\":\"\\udc00\"}",
        "{\"a\":\"\xff\xfe\"}",
        "{\"a\":\"\xc0\x80\"}",
        "{\"a\":\"\xed\xa0\x80\"}",
        "{\"a\":\"\xf5\x80\x80\x80\"}",
        "\xef\xbb\xbf{}",
        "{\"a\":1e400}",
        "{\"a\":[-1e999]}",
        "{\"a\":1,\"a\":2}",
        "{\"x\":{\"b\":1,\"c\":2,\"b\":3}}",
        "{\"a\":1,\"\\u0061\":2}",
        "{\"a\":\"unfinished",
        "{\"a\":\"\\",
        "{\"a\":\"\\u",
        "[1,2",
        "{\"a\":-}",
        "{\"a\":111111111111111111111111111111111111111111111111111111111111111111111}",
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct srv_error e = {0};
        if (!parse_n(bad[i], strlen(bad[i]), &e))
            fail_msg("accepted: %s", bad[i]);
        assert_int_equal(e.status, 400);
        assert_string_equal(e.type, "invalid_request_error");
    }
    struct srv_error e;
    assert_int_equal(parse_n("{\"a\":\"x\0y\"}", 11, &e), -1);
}

static void test_accepts_json(void **state)
{
    (void)state;
    static const char *const good[] = {
        "{}",
        " {\"a\" : [1, -2.5e-3, true, false, null, \"\\ud83d\\ude00 \\n\", {}] } \r\n\t",
        "{\"a\":\"\xe2\x82\xac\",\"b\":0,\"c\":-0.0,\"d\":1E+2}",
    };
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        struct srv_error e = {0};
        if (parse_n(good[i], strlen(good[i]), &e))
            fail_msg("%s: %s", good[i], e.message);
    }
}

static void test_depth_and_size_are_bounded(void **state)
{
    (void)state;
    char text[400];
    for (int depth = 60; depth <= 70; depth++) {
        char *p = text + sprintf(text, "{\"a\":");
        for (int i = 1; i < depth; i++)
            *p++ = '[';
        for (int i = 1; i < depth; i++)
            *p++ = ']';
        strcpy(p, "}");
        struct srv_error e;
        assert_int_equal(parse_n(text, strlen(text), &e), depth <= SRV_JSON_DEPTH ? 0 : -1);
    }
    size_t n = 2 * (SRV_JSON_VALUES + 10) + 10;
    char *many = malloc(n);
    size_t len = (size_t)sprintf(many, "{\"a\":[0");
    while (len < n - 3) {
        many[len++] = ',';
        many[len++] = '0';
    }
    memcpy(many + len, "]}", 2);
    struct srv_error e;
    assert_int_equal(parse_n(many, len + 2, &e), -1);
    assert_non_null(strstr(e.message, "values"));
    free(many);
}

static void test_every_cut_of_a_body_is_refused(void **state)
{
    (void)state;
    const char *text = "{\"a\":[1,2.5e3,\"x\\u00e9\\ud83d\\ude00\xe2\x82\xac\",{\"b\":null}],\"c\":true}";
    for (size_t n = 0; n < strlen(text); n++) {
        struct srv_error e;
        assert_int_equal(parse_n(text, n, &e), -1);
    }
}

static void test_getters(void **state)
{
    (void)state;
    cJSON *j = cJSON_Parse("{\"i\":5,\"f\":1.5,\"s\":\"x\",\"b\":true,\"n\":null,\"big\":9007199254740993}");
    struct srv_error e = {0};
    int64_t i = 0;
    double d = 0;
    bool b = false;
    const char *s = NULL;
    assert_int_equal(srv_json_int(j, "", "i", 0, 9, &i, &e), 1);
    assert_int_equal(i, 5);
    assert_int_equal(srv_json_int(j, "", "none", 0, 9, &i, &e), 0);
    assert_int_equal(srv_json_int(j, "", "n", 0, 9, &i, &e), 0);
    assert_int_equal(srv_json_int(j, "", "i", 6, 9, &i, &e), -1);
    assert_int_equal(srv_json_int(j, "a[3]", "f", 0, 9, &i, &e), -1);
    assert_string_equal(e.param, "a[3].f");
    assert_string_equal(e.code, "invalid_type");
    assert_int_equal(srv_json_number(j, "", "f", 0, 2, false, &d, &e), 1);
    assert_int_equal(srv_json_number(j, "", "f", 1.5, 2, true, &d, &e), -1);
    assert_int_equal(srv_json_number(j, "", "s", 0, 2, false, &d, &e), -1);
    assert_non_null(strstr(e.message, "got a string"));
    assert_int_equal(srv_json_bool(j, "", "b", &b, &e), 1);
    assert_int_equal(srv_json_bool(j, "", "i", &b, &e), -1);
    assert_int_equal(srv_json_string(j, "", "s", &s, &e), 1);
    assert_int_equal(srv_json_string(j, "", "i", &s, &e), -1);
    cJSON_Delete(j);
}

static void test_nan_is_out_of_every_range(void **state)
{
    (void)state;
    cJSON *j = cJSON_CreateObject();
    cJSON_AddItemToObject(j, "x", cJSON_CreateNumber(__builtin_nan("")));
    struct srv_error e;
    double d;
    int64_t i;
    assert_int_equal(srv_json_number(j, "", "x", -1e300, 1e300, false, &d, &e), -1);
    assert_int_equal(srv_json_int(j, "", "x", INT64_MIN, INT64_MAX, &i, &e), -1);
    cJSON_Delete(j);
}

static void test_large_integers_are_read_exactly(void **state)
{
    (void)state;
    const char *text = "{\"a\":{\"seed\":1},\"s\":\"\\\"seed\\\":2\", \"seed\" : 9007199254740993 , \"z\":[]}";
    struct srv_error e;
    int64_t v = 0;
    assert_int_equal(srv_json_int64_raw(text, strlen(text), "seed", &v, &e), 1);
    assert_true(v == 9007199254740993);
    assert_int_equal(srv_json_int64_raw(text, strlen(text), "other", &v, &e), 0);
    assert_int_equal(srv_json_int64_raw("{\"seed\":null}", 13, "seed", &v, &e), 0);
    assert_int_equal(srv_json_int64_raw("{\"seed\":-9223372036854775808}", 29, "seed", &v, &e), 1);
    assert_true(v == INT64_MIN);
    assert_int_equal(srv_json_int64_raw("{\"seed\":9223372036854775808}", 28, "seed", &v, &e), -1);
    assert_int_equal(srv_json_int64_raw("{\"seed\":\"5\"}", 12, "seed", &v, &e), -1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_refuses_what_is_not_json),
        cmocka_unit_test(test_accepts_json),
        cmocka_unit_test(test_depth_and_size_are_bounded),
        cmocka_unit_test(test_every_cut_of_a_body_is_refused),
        cmocka_unit_test(test_getters),
        cmocka_unit_test(test_nan_is_out_of_every_range),
        cmocka_unit_test(test_large_integers_are_read_exactly),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
