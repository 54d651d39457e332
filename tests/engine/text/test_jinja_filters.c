// engine/text/jinja_filters.c: filters on single values. What Python's jinja2 gives is the measure.
#include "fixture.h"

static void test_text(void **state)
{
    (void)state;
    jinja_check("{{ '  a b ' | trim }}|{{ 'xxaxx' | trim('x') }}|{{ 'abcba' | trim('ab') }}|{{ 5 | trim }}", "{}",
                "a b|a|c|5");
    jinja_check("{{ 'aBc' | upper }}{{ 'aBc' | lower }}{{ 'aBC d' | capitalize }}", "{}", "ABCabcAbc d");
    jinja_check("{{ \"foo bar-baz (qux) it's\" | title }}", "{}", "Foo Bar-Baz (Qux) It's");
    jinja_check("{{ '<a href=\"x\">&\\'' | e }} {{ 5 | escape }} {{ 'a' | safe }}", "{}",
                "&lt;a href=&#34;x&#34;&gt;&amp;&#39; 5 a");
    jinja_check("{{ 'aaa' | replace('a', 'b', 2) }} {{ 'abc' | replace('', '-') }} {{ 'abc' | replace('x', 'y') }} {{ "
                "121 | replace(1, 3) }}",
                "{}", "bba -a-b-c- abc 323");
    jinja_check("{{ 'a\\nb\\n\\nc' | indent }}|{{ 'a\\nb' | indent(2, true) }}|{{ 'a\\n\\nb' | indent(2, blank=true) "
                "}}|{{ 'a\\nb' | indent('> ') }}|{{ '' | indent(first=true) }}|",
                "{}", "a\n    b\n\n    c|  a\n  b|a\n  \n  b|a\n> b|    |");
    jinja_check("{{ 'a\\nb\\n' | indent(2) }}|", "{}", "a\n  b\n|");
    jinja_check("{{ none | string ~ 1.0 | string ~ [1] | string }}", "{}", "None1.0[1]");
    jinja_check("{{ 'abc' | length }} {{ [1] | count }} {{ {} | length }}", "{}", "3 1 0");
}

static void test_numbers(void **state)
{
    (void)state;
    jinja_check("{{ '42' | int }} {{ ' -7 ' | int }} {{ '3.9' | int }} {{ -3.9 | int }} {{ 'x' | int }} {{ 'x' | "
                "int(5) }} {{ none | int }} {{ true | int }} {{ '' | int }}",
                "{}", "42 -7 3 -3 0 5 0 1 0");
    jinja_check("{{ 'ff' | int(base=16) }} {{ '0x1F' | int(0, 16) }} {{ '101' | int(0, 2) }} {{ 'zz' | int(7, 16) }} "
                "{{ '+5' | int }}",
                "{}", "255 31 5 7 5");
    jinja_check("{{ 'inf' | int }} {{ 'nan' | int(3) }} {{ '1e3' | int }} {{ [] | int(4) }}", "{}", "0 3 1000 4");
    jinja_check("{{ '1.5' | float }} {{ 'x' | float }} {{ 'x' | float(2) }} {{ 3 | float }} {{ 'inf' | float }} {{ "
                "'-inf' | float }} {{ ' 2 ' | float }} {{ none | float }} {{ '1e400' | float }}",
                "{}", "1.5 0.0 2 3.0 inf -inf 2.0 0.0 inf");
    jinja_check("{{ -5 | abs }} {{ (-5) | abs }} {{ (-2.5) | abs }} {{ true | abs }}", "{}", "5 5 2.5 1");
    jinja_check("{{ 2.5 | round }} {{ 3.5 | round }} {{ 2.675 | round(2) }} {{ -1.5 | round }} {{ 5 | round }} {{ "
                "42.55 | round(1, 'floor') }} {{ 42.51 | round(1, 'ceil') }} {{ 1.005 | round(2) }}",
                "{}", "2.0 4.0 2.67 -2.0 5 42.5 42.6 1.0");
    jinja_check("{{ 1234 | round(-2) }} {{ 1250.5 | round(-2) }} {{ 1350 | round(-2) }} {{ 1250 | round(-2) }} {{ "
                "-1250 | round(-2) }} {{ 5 | round(-1) }} {{ 15 | round(-1) }} {{ 7 | round(0, 'ceil') }} {{ 1234 | "
                "round(-2, 'floor') }} {{ 7 | round(-20) }}",
                "{}", "1200 1300.0 1400 1200 -1200 0 20 7.0 1200.0 0");
}

static void test_default_and_attr(void **state)
{
    (void)state;
    static const char vars[] = "{\"d\":{\"a\":1,\"items\":5},\"e\":\"\"}";
    jinja_check("{{ missing | default('x') }} {{ e | default('x') }}|{{ e | default('x', true) }} {{ missing | d }}|{{ "
                "none | default('x') }} {{ none | d('x', boolean=true) }}",
                vars, "x |x |None x");
    jinja_check("{{ d.zz | default(d.a) }} {{ missing | default(none) }}", vars, "1 None");
    jinja_check("{{ 'x' | attr('upper') is callable }} {{ d | attr('zz') is defined }}", vars, "True False");
}

static void test_tojson_options(void **state)
{
    (void)state;
    static const char vars[] = "{\"d\":{\"b\":[1,{\"c\":null}],\"a\":\"\\u00e9\\\"<\"}}";
    jinja_check("{{ d | tojson }}", vars, "{\"b\": [1, {\"c\": null}], \"a\": \"é\\\"<\"}");
    jinja_check("{{ d | tojson(indent=2) }}", vars,
                "{\n  \"b\": [\n    1,\n    {\n      \"c\": null\n    }\n  ],\n  \"a\": \"é\\\"<\"\n}");
    jinja_check("{{ d | tojson(indent=0) }}", vars, "{\n\"b\": [\n1,\n{\n\"c\": null\n}\n],\n\"a\": \"é\\\"<\"\n}");
    jinja_check("{{ d | tojson(sort_keys=true) }}", vars, "{\"a\": \"é\\\"<\", \"b\": [1, {\"c\": null}]}");
    jinja_check("{{ d | tojson(ensure_ascii=true) }}", vars, "{\"b\": [1, {\"c\": null}], \"a\": \"\\u00e9\\\"<\"}");
    jinja_check("{{ d | tojson(separators=(',', ':')) }}", vars, "{\"b\":[1,{\"c\":null}],\"a\":\"é\\\"<\"}");
    jinja_check("{{ d | tojson(indent=1, separators=(' ,', '= ')) }}", vars,
                "{\n \"b\"= [\n  1 ,\n  {\n   \"c\"= null\n  }\n ] ,\n \"a\"= \"é\\\"<\"\n}");
    jinja_check("{{ [] | tojson(indent=2) }}{{ {} | tojson(indent=2) }}", vars, "[]{}");
    jinja_check("{{ '\\U0001f600\\x7f' | tojson(ensure_ascii=true) }}", vars, "\"\\ud83d\\ude00\\u007f\"");
}

static void test_errors_name_the_filter(void **state)
{
    (void)state;
    static const char vars[] = "{\"l\":[1]}";
    jinja_check_error("{{ 'a' | upper(1) }}", vars, ENG_EINVAL,
                      "upper takes at most 0 arguments (line 1 of the template)");
    jinja_check_error("{{ 'a' | abs }}", vars, ENG_EINVAL, "abs needs a number, not str (line 1 of the template)");
    jinja_check_error("{{ 'a' | round }}", vars, ENG_EINVAL, "round needs a number, not str (line 1 of the template)");
    jinja_check_error("{{ 1.5 | round(0, 'up') }}", vars, ENG_EINVAL,
                      "round: the method must be common, ceil or floor (line 1 of the template)");
    jinja_check_error("{{ 5 | length }}", vars, ENG_EINVAL,
                      "object of type 'int' has no length (line 1 of the template)");
    jinja_check_error("{{ none | length }}", vars, ENG_EINVAL,
                      "object of type 'NoneType' has no length (line 1 of the template)");
    jinja_check_error("{{ 'a' | trim(x=1) }}", vars, ENG_EINVAL,
                      "trim does not take the argument 'x' (line 1 of the template)");
    jinja_check_error("{{ 'a' | indent(none, 1, 2, 3) }}", vars, ENG_EINVAL,
                      "indent takes at most 3 arguments (line 1 of the template)");
    jinja_check_error("{{ 'a' | indent([]) }}", vars, ENG_EINVAL,
                      "indent needs an integer, not list (line 1 of the template)");
    jinja_check_error("{{ 1 | attr(1) }}", vars, ENG_EINVAL, "attr needs a string, not int (line 1 of the template)");
    jinja_check_error("{{ range | tojson }}", vars, ENG_EINVAL,
                      "tojson: object of type function is not JSON serializable (line 1 of the template)");
    jinja_check_error("{{ missing | tojson }}", vars, ENG_EINVAL,
                      "tojson: object of type Undefined is not JSON serializable (line 1 of the template)");
    jinja_check_error("{{ l | tojson(indent=99) }}", vars, ENG_ELIMIT,
                      "tojson: an indent above 64 (line 1 of the template)");
    jinja_check_error("{{ l | tojson(separators=(1, 2)) }}", vars, ENG_EINVAL,
                      "tojson needs a string, not int (line 1 of the template)");
    jinja_check_error("{{ 'ab' | replace('a', 'b', 'c') }}", vars, ENG_EINVAL,
                      "replace needs an integer, not str (line 1 of the template)");
    jinja_check_error("{{ 'a' | int(1, 2, 3) }}", vars, ENG_EINVAL,
                      "int takes at most 2 arguments (line 1 of the template)");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_text),
        cmocka_unit_test(test_numbers),
        cmocka_unit_test(test_default_and_attr),
        cmocka_unit_test(test_tojson_options),
        cmocka_unit_test(test_errors_name_the_filter),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
