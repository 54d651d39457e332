// server/json_scan.c: the grammar check alone, on memory that ends with the text.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include <cjson/cJSON.h>

#include "json.h"
#include "json_scan.h"

static const char *why;
static size_t where;

static bool scan_n(const char *text, size_t n)
{
    char *copy = malloc(n ? n : 1); // no NUL follows, so that a sanitizer sees a read past the end
    memcpy(copy, text, n);
    why = NULL;
    bool ok = srv_json_scan(copy, n, &why, &where);
    free(copy);
    assert_int_equal(ok, why == NULL);
    return ok;
}

static void test_every_refusal_says_what_and_where(void **state)
{
    (void)state;
    static const struct {
        const char *text, *why;
        size_t at;
    } cases[] = {
        {"", "an unexpected end", 0},
        {" \t", "an unexpected end", 2},
        {"?", "an unexpected character", 0},
        {"[1,]", "an unexpected character", 3},
        {"[1 2]", "a missing comma or bracket", 3},
        {"[1", "an unexpected end", 2},
        {"[1}", "a missing comma or bracket", 2},
        {"1 1", "something after the value", 2},
        {"01", "something after the value", 1},
        {"-", "a malformed number", 1},
        {"1.e5", "a malformed number", 2},
        {"1e+", "a malformed number", 3},
        {"nul", "an unknown word", 0},
        {"TRUE", "an unexpected character", 0},
        {"{1:2}", "an object key that is not a string", 1},
        {"{\"a\":1,}", "an object key that is not a string", 7},
        {"{\"a\" 1}", "a key without a colon", 5},
        {"{\"a\"", "a key without a colon", 4},
        {"\"a", "an unfinished string", 2},
        {"\"\\", "an unfinished string", 1},
        {"\"\\u00e", "an unfinished string", 1},
        {"\"\\v\"", "an unknown escape in a string", 1},
        {"\"\\u00g0\"", "a \\u escape without four hexadecimal digits", 1},
        {"\"\\u0000\"", "\\u0000, which no text may contain", 1},
        {"\"\\udfff\"", "half of a surrogate pair", 1},
        {"\"\\ud83d\\u0041\"", "half of a surrogate pair", 1},
        {"\"\\ud83dxxxxxx\"", "half of a surrogate pair", 1},
        {"\"a\tb\"", "a raw control character in a string", 2},
        {"\"\xc3\"", "bytes that are not UTF-8", 1},
        {"\xef\xbb\xbf{}", "an unexpected character", 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        if (scan_n(cases[i].text, strlen(cases[i].text)))
            fail_msg("accepted: %s", cases[i].text);
        assert_string_equal(why, cases[i].why);
        assert_int_equal(where, cases[i].at);
    }
    assert_false(scan_n("1\0", 2)); // a NUL is no space
    assert_int_equal(where, 1);
}

static void test_accepts_every_kind_of_value(void **state)
{
    (void)state;
    static const char *const good[] = {
        "0",
        "-0",
        "-0.0e-0",
        "1E+22",
        "\"\"",
        "\"\\\"\\\\\\/\\b\\f\\n\\r\\t\\u00E9\\uD83D\\uDE00\"",
        "[]",
        "{}",
        "[ ]",
        "{ }",
        " [ [ ] , { \"\" : null } ] ",
        "true",
        "\"\x7f\xf4\x8f\xbf\xbf\"",
    };
    for (size_t i = 0; i < sizeof good / sizeof *good; i++)
        if (!scan_n(good[i], strlen(good[i])))
            fail_msg("%s: %s at %zu", good[i], why, where);
}

// Symptom: a number of exactly 60 characters was refused for having more than 60.
static void test_limits_are_what_the_messages_say(void **state)
{
    (void)state;
    char digits[61], deep[2 * SRV_JSON_DEPTH + 2];
    memset(digits, '7', sizeof digits);
    assert_true(scan_n(digits, 60));
    assert_false(scan_n(digits, 61));
    assert_string_equal(why, "a number with more than 60 characters");
    for (size_t depth = SRV_JSON_DEPTH; depth <= SRV_JSON_DEPTH + 1; depth++) {
        memset(deep, '[', depth);
        memset(deep + depth, ']', depth);
        assert_int_equal(scan_n(deep, 2 * depth), depth == SRV_JSON_DEPTH);
    }
    assert_string_equal(why, "nesting deeper than 64 levels");
    size_t n = 2 * (size_t)SRV_JSON_VALUES;
    char *many = malloc(n + 1); // a list of SRV_JSON_VALUES - 1 zeros is as many values with itself
    for (size_t i = 0; i < n; i++)
        many[i] = i % 2 ? '0' : ',';
    many[0] = '[';
    many[n - 2] = many[n - 1] = ' ';
    many[n - 2] = ']';
    assert_true(scan_n(many, n));
    many[n - 2] = ',';
    many[n - 1] = '0';
    many[n] = ']';
    assert_false(scan_n(many, n + 1));
    assert_string_equal(why, "more than 2000000 values");
    free(many);
}

// Whatever one wrong byte does, the scan ends, and cJSON takes all that it lets through.
static void test_every_one_byte_damage_is_survived(void **state)
{
    (void)state;
    const char *text = "{\"a\":[1,-2.5e3,\"x\\u00e9\\ud83d\\ude00\xe2\x82\xac\",{\"b\":null}],\"c\":true}";
    size_t n = strlen(text);
    char damaged[128];
    int accepted = 0;
    for (size_t i = 0; i < n; i++)
        for (int byte = 0; byte < 256; byte++) {
            memcpy(damaged, text, n + 1);
            damaged[i] = (char)byte;
            if (!scan_n(damaged, n))
                continue;
            cJSON *j = cJSON_ParseWithOpts(damaged, NULL, 1);
            if (!j || strlen(damaged) != n)
                fail_msg("cJSON refuses: %s", damaged);
            cJSON_Delete(j);
            accepted++;
        }
    assert_in_range(accepted, 500, 5000);
}

static void expect_key(const char *text, const char *key, const char *value)
{
    const char *raw = NULL;
    size_t len = 0;
    bool found = srv_json_scan_key(text, strlen(text), key, &raw, &len);
    assert_int_equal(found, value != NULL);
    if (value && (len != strlen(value) || memcmp(raw, value, len)))
        fail_msg("%s in %s: %.*s", key, text, (int)len, raw);
}

static void test_raw_values_are_found_at_the_top_only(void **state)
{
    (void)state;
    expect_key("{\"seed\":5}", "seed", "5");
    expect_key(" { \"x\" : {\"seed\":1} , \"seed\" : -7 \n, \"y\":0}", "seed", "-7");
    expect_key("{\"a\":[\"seed\",{\"seed\":2}],\"b\":\"\\\"seed\\\":3\"}", "seed", NULL);
    expect_key("{\"seed\":{\"a\":[1, 2]} }", "seed", "{\"a\":[1, 2]}");
    expect_key("{\"seeds\":1,\"see\":2,\"Seed\":3}", "seed", NULL);
    expect_key("{\"s\\u0065ed\":5}", "seed", NULL); // the caller asks cJSON then
    expect_key("{\"\":4}", "", "4");
    expect_key("{}", "seed", NULL);
    expect_key("[\"seed\",5]", "seed", NULL);
    expect_key("\"seed\"", "seed", NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_refusal_says_what_and_where),
        cmocka_unit_test(test_accepts_every_kind_of_value),
        cmocka_unit_test(test_limits_are_what_the_messages_say),
        cmocka_unit_test(test_every_one_byte_damage_is_survived),
        cmocka_unit_test(test_raw_values_are_found_at_the_top_only),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
