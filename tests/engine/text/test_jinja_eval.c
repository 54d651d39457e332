// engine/text/jinja_eval.c: names, attributes, items, calls, operators. What Python's jinja2 gives is the measure.
#include "fixture.h"

static void test_arithmetic(void **state)
{
    (void)state;
    jinja_check("{{ 7 / 2 }} {{ 4 / 2 }} {{ 7 // 2 }} {{ -7 // 2 }} {{ 7 // -2 }} {{ 7.5 // 2 }}", "{}",
                "3.5 2.0 3 -4 -4 3.0");
    jinja_check("{{ 7 % 3 }} {{ -7 % 3 }} {{ 7 % -3 }} {{ -7.5 % 2 }} {{ 7.5 % -2 }} {{ 6 % -3 }}", "{}",
                "1 2 -2 0.5 -0.5 0");
    jinja_check("{{ 2 ** 62 }} {{ 2 ** 0.5 }} {{ 4 ** -1 }} {{ 0 ** 0 }} {{ (-2) ** 3 }}", "{}",
                "4611686018427387904 1.4142135623730951 0.25 1 -8");
    jinja_check("{{ true + true }} {{ 1 + 1.5 }} {{ 3 * true }} {{ -true }}", "{}", "2 2.5 3 -1");
    jinja_check("{{ 'ab' * 0 }}|{{ 'ab' * -1 }}|{{ [1] * 2 }}|{{ 2 * (1,) }}", "{}", "||[1, 1]|(1, 1)");
    jinja_check("{{ [1] + [2] }} {{ (1,) + (2,) }} {{ 'a' + 'b' }}", "{}", "[1, 2] (1, 2) ab");
    jinja_check("{{ 0.1 + 0.2 }} {{ 1e308 * 10 }} {{ -1e308 * 10 }}", "{}", "0.30000000000000004 inf -inf");
}

static void test_comparisons(void **state)
{
    (void)state;
    jinja_check("{{ 1 == 1.0 }} {{ '1' == 1 }} {{ none == false }} {{ [1] == (1,) }}", "{}", "True False False False");
    jinja_check("{{ 'a' < 'b' }} {{ [1, 2] < [1, 3] }} {{ 2 >= 2.0 }} {{ (1,) < (1, 0) }}", "{}",
                "True True True True");
    jinja_check("{{ 1 in {1: 2} }} {{ 'b' in 'abc' }} {{ 2 not in [1] }}", "{}", "True True True");
    jinja_check(
        "{{ ('nan' | float) <= 1 }} {{ ('nan' | float) >= 1 }} {{ ('nan' | float) != 1 }} {{ 1 > ('nan' | float) }}",
        "{}", "False False True False");
}

static void test_and_and_or_give_an_operand(void **state)
{
    (void)state;
    static const char vars[] = "{\"l\":[],\"d\":{\"a\":1}}";
    jinja_check("{{ 0 or 'x' }} {{ 1 and 'y' }} {{ l or none }} {{ '' and missing.x }}|{{ not l }}", vars,
                "x y None |True");
    jinja_check("{{ 1 or missing.x }}", vars, "1");
}

static void test_look_ups(void **state)
{
    (void)state;
    static const char vars[] = "{\"l\":[1,2],\"d\":{\"a\":1,\"items\":2,\"0\":\"z\"},\"s\":\"h\\u00e9y\"}";
    jinja_check("{{ l[5] }}|{{ l[-3] }}|{{ l[-1] }}|{{ l.foo }}|{{ d.zz }}|{{ d['zz'] is defined }}", vars,
                "||2|||False");
    jinja_check("{{ d['items'] }} {{ d.items() | list | length }}", vars, "2 3");
    jinja_check("{{ s[1] }}{{ s[-1] }}{{ s[9] }}|", vars, "éy|");
    jinja_check("{{ 'ab'['upper']() }} {{ d['0'] }} {{ d[0] is defined }}", vars, "AB z False");
    jinja_check("{{ l[true] }} {{ d[none] is defined }}", vars, "2 False");
    jinja_check("{{ missing }}|{{ missing is defined }}|{{ missing | length }}|{{ missing ~ 'x' }}", vars,
                "|False|0|x");
    jinja_check("{{ l['x'] is defined }}", vars, "False");
}

static void test_loop_attributes(void **state)
{
    (void)state;
    jinja_check("{% for x in 'ab' %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ "
                "loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.depth }}{{ loop.depth0 }};{% endfor %}",
                "{}", "1021TrueFalse210;2110FalseTrue210;");
    jinja_check(
        "{% for x in [1, 2] %}[{{ loop.previtem }},{{ loop.nextitem }}]{{ loop.previtem is defined }}{% endfor %}",
        "{}", "[,2]False[1,]True");
}

static void test_errors_name_operand_and_line(void **state)
{
    (void)state;
    static const char vars[] = "{\"l\":[1],\"d\":{}}";
    jinja_check_error("{{ 1 + 'a' }}", vars, ENG_EINVAL,
                      "unsupported operand types for +: int and str (line 1 of the template)");
    jinja_check_error("{{ 'a' + 1 }}", vars, ENG_EINVAL,
                      "unsupported operand types for +: str and int (line 1 of the template)");
    jinja_check_error("{{ none + 1 }}", vars, ENG_EINVAL,
                      "unsupported operand types for +: NoneType and int (line 1 of the template)");
    jinja_check_error("{{ [1] + (1,) }}", vars, ENG_EINVAL,
                      "unsupported operand types for +: list and tuple (line 1 of the template)");
    jinja_check_error("{{ missing + 1 }}", vars, ENG_EINVAL, "'missing' is undefined (line 1 of the template)");
    jinja_check_error("{{ missing.x }}", vars, ENG_EINVAL, "'missing' is undefined (line 1 of the template)");
    jinja_check_error("{{ missing['x'] }}", vars, ENG_EINVAL, "'missing' is undefined (line 1 of the template)");
    jinja_check_error("{{ d.a.b }}", vars, ENG_EINVAL, "'a' is undefined (line 1 of the template)");
    jinja_check_error("{{ missing() }}", vars, ENG_EINVAL, "'missing' is undefined (line 1 of the template)");
    jinja_check_error("{{ 1() }}", vars, ENG_EINVAL, "'int' object is not callable (line 1 of the template)");
    jinja_check_error("{{ l.x() }}", vars, ENG_EINVAL, "'x' is undefined (line 1 of the template)");
    jinja_check_error("{{ 1 / 0 }}", vars, ENG_EINVAL, "division by zero (line 1 of the template)");
    jinja_check_error("{{ 1 // 0 }}", vars, ENG_EINVAL, "division by zero (line 1 of the template)");
    jinja_check_error("{{ 1 % 0 }}", vars, ENG_EINVAL, "division by zero (line 1 of the template)");
    jinja_check_error("{{ 1.0 / 0 }}", vars, ENG_EINVAL, "division by zero (line 1 of the template)");
    jinja_check_error("{{ 1.0 % 0 }}", vars, ENG_EINVAL, "division by zero (line 1 of the template)");
    jinja_check_error("{{ -'a' }}", vars, ENG_EINVAL,
                      "unsupported operand types for -: int and str (line 1 of the template)");
    jinja_check_error("{{ 1 < 'a' }}", vars, ENG_EINVAL, "cannot compare int with str (line 1 of the template)");
    jinja_check_error("{{ none < 1 }}", vars, ENG_EINVAL, "cannot compare NoneType with int (line 1 of the template)");
    jinja_check_error("{{ 1 in 5 }}", vars, ENG_EINVAL, "'int' object is not iterable (line 1 of the template)");
    jinja_check_error("{{ 1 in 'abc' }}", vars, ENG_EINVAL,
                      "'in <string>' requires a string, not int (line 1 of the template)");
    jinja_check_error("{{ l['a':] }}", vars, ENG_EINVAL,
                      "slice indices must be integers, not str (line 1 of the template)");
    jinja_check_error("{{ l[::0] }}", vars, ENG_EINVAL, "slice step cannot be zero (line 1 of the template)");
    jinja_check_error("{{ 5[1:] }}", vars, ENG_EINVAL, "a int cannot be sliced (line 1 of the template)");
    jinja_check_error("{{ missing[1:] }}", vars, ENG_EINVAL, "'missing' is undefined (line 1 of the template)");
    jinja_check_error("{{ 0 ** -1 }}", vars, ENG_EINVAL,
                      "zero cannot be raised to a negative power (line 1 of the template)");
    jinja_check_error("{{ 2 ** 63 }}", vars, ENG_ELIMIT, "an integer is too large (line 1 of the template)");
    jinja_check_error("{{ 999999999999999999 * 10 }}", vars, ENG_ELIMIT,
                      "an integer is too large (line 1 of the template)");
    jinja_check_error("{{ -999999999999999999 * 10 }}", vars, ENG_ELIMIT,
                      "an integer is too large (line 1 of the template)");
    jinja_check_error("{{ 999999999999999999 * 9 + 999999999999999999 }}", vars, ENG_ELIMIT,
                      "an integer is too large (line 1 of the template)");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_arithmetic),
        cmocka_unit_test(test_comparisons),
        cmocka_unit_test(test_and_and_or_give_an_operand),
        cmocka_unit_test(test_look_ups),
        cmocka_unit_test(test_loop_attributes),
        cmocka_unit_test(test_errors_name_operand_and_line),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
