// engine/text/jinja_print.c: values as Python's str(), repr() and json.dumps() write them. What Python's jinja2 gives
// is the measure.
#include "fixture.h"

static void test_floats(void **state)
{
    (void)state;
    jinja_check("{{ 1.0 }} {{ 0.1 }} {{ 1e15 }} {{ 1e16 }} {{ 123456789012345680.0 }} {{ 1e22 }} {{ 1e-4 }} {{ 1e-5 }} "
                "{{ 1.5e-7 }} {{ -0.0 }} {{ 1e100 }}",
                "{}", "1.0 0.1 1000000000000000.0 1e+16 1.2345678901234568e+17 1e+22 0.0001 1e-05 1.5e-07 -0.0 1e+100");
    jinja_check("{{ 5e-324 }} {{ 1.7976931348623157e308 }} {{ 0.30000000000000004 }} {{ 2.5e-10 }} {{ 1234.5678 }} {{ "
                "1e308 * 10 }} {{ 'nan' | float }}",
                "{}", "5e-324 1.7976931348623157e+308 0.30000000000000004 2.5e-10 1234.5678 inf nan");
    jinja_check("{{ 100000.0 }} {{ 9007199254740993.0 }} {{ 4.35 }} {{ 1 / 3 }} {{ 2 / 3 }}", "{}",
                "100000.0 9007199254740992.0 4.35 0.3333333333333333 0.6666666666666666");
}

static void test_strings_inside_values(void **state)
{
    (void)state;
    jinja_check("{{ [\"a'b\", 'a\"b', 'a\\'b\"c'] }}", "{}", "[\"a'b\", 'a\"b', 'a\\'b\"c']");
    jinja_check("{{ ['\\n\\r\\t\\\\', '\\x01\\x1f\\x7f', '\\u00e9\\U0001f600'] }}", "{}",
                "['\\n\\r\\t\\\\', '\\x01\\x1f\\x7f', 'é😀']");
    jinja_check("{{ [''] }} {{ ['a\\x1bb'] }}", "{}", "[''] ['a\\x1bb']");
    jinja_check("{{ 'a\\'b' }} {{ '\\n' }}|", "{}", "a'b \n|");
}

static void test_nested_values(void **state)
{
    (void)state;
    jinja_check("{{ [1, [2.0, (3,), ()], {'a': none, 2: true, (1, 2): [false]}] }}", "{}",
                "[1, [2.0, (3,), ()], {'a': None, 2: True, (1, 2): [False]}]");
    jinja_check("{{ {'k': \"it's\"} }} {{ {} }} {{ [] }} {{ (1,) }} {{ [none, true] }}", "{}",
                "{'k': \"it's\"} {} [] (1,) [None, True]");
    jinja_check("{{ none }} {{ true }} {{ -5 }} {{ [missing] }}", "{}", "None True -5 [Undefined]");
    jinja_check("{% set ns = namespace(a='x') %}{{ ns }}", "{}", "<Namespace {'a': 'x'}>");
}

static void test_json(void **state)
{
    (void)state;
    static const char vars[] = "{\"d\":{\"s\":\"a\\\"\\\\\\n\\u0001\\u007f\\u00e9\",\"n\":null,\"f\":1.5,\"i\":10,"
                               "\"t\":true,\"l\":[],\"o\":{}}}";
    jinja_check(
        "{{ d | tojson }}", vars,
        "{\"s\": \"a\\\"\\\\\\n\\u0001\177é\", \"n\": null, \"f\": 1.5, \"i\": 10, \"t\": true, \"l\": [], \"o\": {}}");
    jinja_check("{{ d | tojson(ensure_ascii=true) }}", vars,
                "{\"s\": \"a\\\"\\\\\\n\\u0001\\u007f\\u00e9\", \"n\": null, \"f\": 1.5, \"i\": 10, \"t\": true, "
                "\"l\": [], \"o\": {}}");
    jinja_check("{{ '\\b\\f\\r\\t/' | tojson }} {{ '<&>\\'' | tojson }}", vars, "\"\\b\\f\\r\\t/\" \"<&>'\"");
    jinja_check("{{ {1: 2, none: 3, true: 4, 1.5: 5} | tojson }}", vars, "{\"1\": 4, \"null\": 3, \"1.5\": 5}");
    jinja_check(
        "{{ (1, (2,)) | tojson }} {{ 1e20 | tojson }} {{ ('nan' | float) | tojson }} {{ ('-inf' | float) | tojson }}",
        vars, "[1, [2]] 1e+20 NaN -Infinity");
    jinja_check("{{ {'b': {'z': 1, 'a': 2}, 'a': 0, 'B': 1, '\\u00e9': 2, 'ab': 3} | tojson(sort_keys=true) }}", vars,
                "{\"B\": 1, \"a\": 0, \"ab\": 3, \"b\": {\"a\": 2, \"z\": 1}, \"é\": 2}");
    jinja_check("{{ {10: 'a', 9: 'b', -1: 'c', 1.5: 'd'} | tojson(sort_keys=true) }}", vars,
                "{\"-1\": \"c\", \"1.5\": \"d\", \"9\": \"b\", \"10\": \"a\"}");
    jinja_check("{{ {'a': [1, {'b': [[]]}]} | tojson(indent=3) }}", vars,
                "{\n   \"a\": [\n      1,\n      {\n         \"b\": [\n            []\n         ]\n      }\n   ]\n}");
    jinja_check("{{ '\\0' | tojson }}", vars, "\"\\u0000\"");
}

static void test_what_is_not_json(void **state)
{
    (void)state;
    jinja_check_error("{{ range | tojson }}", "{}", ENG_EINVAL,
                      "tojson: object of type function is not JSON serializable (line 1 of the template)");
    jinja_check_error("{{ {'a': missing} | tojson }}", "{}", ENG_EINVAL,
                      "tojson: object of type Undefined is not JSON serializable (line 1 of the template)");
    jinja_check_error("{{ [namespace()] | tojson }}", "{}", ENG_EINVAL,
                      "tojson: object of type Namespace is not JSON serializable (line 1 of the template)");
    jinja_check_error("{{ {(1, 2): 3} | tojson }}", "{}", ENG_EINVAL,
                      "tojson: a tuple cannot be a key (line 1 of the template)");
    jinja_check_error("{% macro m() %}{% endmacro %}{{ m | tojson }}", "{}", ENG_EINVAL,
                      "tojson: object of type function is not JSON serializable (line 1 of the template)");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_floats),           cmocka_unit_test(test_strings_inside_values),
        cmocka_unit_test(test_nested_values),    cmocka_unit_test(test_json),
        cmocka_unit_test(test_what_is_not_json),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
