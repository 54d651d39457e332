// engine/text/jinja_expr.c: precedence, postfix chains, arguments, conditional expressions. What Python's jinja2 gives
// is the measure.
#include "fixture.h"

static void test_precedence(void **state)
{
    (void)state;
    static const char vars[] = "{\"n\":3}";
    jinja_check("{{ 1 + 2 * 3 ** 2 }}", vars, "19");
    jinja_check("{{ -2 ** 2 }} {{ (-2) ** 2 }} {{ 2 ** -1 }}", vars, "4 4 0.5");
    jinja_check("{{ 2 ** 3 ** 2 }}", vars, "64");
    jinja_check("{{ 10 - 3 - 2 }} {{ 16 // 4 // 2 }} {{ 7 % 4 * 2 }}", vars, "5 2 6");
    jinja_check("{{ 'a' ~ 1 + 2 ~ 'b' }}", vars, "a12b");
    jinja_check("{{ not 1 == 2 }} {{ not true or true }}", vars, "True True");
    jinja_check("{{ true or false and false }}", vars, "True");
    jinja_check("{{ 1 < 2 == true }} {{ 3 > 2 > 1 }} {{ 1 < 3 < 2 }}", vars, "False True False");
    jinja_check("{{ 1 in [1] == true }}", vars, "False");
    jinja_check("{{ -n | abs }} {{ (-n) | abs }}", vars, "3 3");
    jinja_check("{{ 1 + -1 }} {{ + n }} {{ - - n }}", vars, "0 3 3");
    jinja_check("{{ n is odd and n is not even }}", vars, "True");
    jinja_check("{{ 2 * 'ab' | upper }}", vars, "ABAB");
    jinja_check("{{ 'a' ~ 'b' | upper }}", vars, "aB");
}

static void test_conditionals(void **state)
{
    (void)state;
    jinja_check("{{ 'a' if false else 'b' if false else 'c' }}", "{}", "c");
    jinja_check("[{{ 'a' if false }}]", "{}", "[]");
    jinja_check("{{ (1 if true else 2) + 3 }}", "{}", "4");
    jinja_check("{{ [1 if true else 2, 3] }}", "{}", "[1, 3]");
    jinja_check("{{ 1 if not false }}", "{}", "1");
    jinja_check("{{ ('a' if false) is defined }}", "{}", "False");
}

static void test_postfix(void **state)
{
    (void)state;
    static const char vars[] = "{\"d\":{\"a\":{\"b\":[10,20]},\"x y\":1},\"l\":[1,2,3,4]}";
    jinja_check("{{ d.a.b[1] }} {{ d['a']['b'].0 }} {{ d['x y'] }}", vars, "20 10 1");
    jinja_check("{{ l[1:3] }} {{ l[:-1] }} {{ l[::2] }} {{ l[3:0:-2] }} {{ l[:] }}", vars,
                "[2, 3] [1, 2, 3] [1, 3] [4, 2] [1, 2, 3, 4]");
    jinja_check("{{ 'abc'[0] }} {{ 'abc'[1:] }}", vars, "a bc");
    jinja_check("{{ 'a-b'.split('-')[1].upper() }}", vars, "B");
    jinja_check("{{ [1, 2][0] }} {{ {'k': 2}.k }} {{ (1, 2)[-1] }}", vars, "1 2 2");
    jinja_check("{{ l | length + 1 }} {{ l | first is odd }}", vars, "5 True");
    jinja_check("{{ d.a['b'] | join(',') | length }}", vars, "5");
}

static void test_arguments_and_literals(void **state)
{
    (void)state;
    static const char vars[] = "{\"s\":\"a,b,c\"}";
    jinja_check("{{ s.split(',', maxsplit=1) }}", vars, "['a', 'b,c']");
    jinja_check("{{ s.split(sep=',', maxsplit=1,) }}", vars, "['a', 'b,c']");
    jinja_check("{{ [1, 2,] }} {{ {'a': 1,} }} {{ [] }} {{ {} }} {{ () }} {{ (1) }}", vars,
                "[1, 2] {'a': 1} [] {} () 1");
    jinja_check("{{ {1: 2, 'a': {'b': []}, none: true} }}", vars, "{1: 2, 'a': {'b': []}, None: True}");
    jinja_check("{{ true }} {{ True }} {{ none }} {{ None }} {{ false }} {{ False }}", vars,
                "True True None None False False");
    jinja_check("{{ 7 is divisibleby 7 }} {{ 7 is divisibleby(2) }} {{ 3 is in [3] }} {{ 'a' is in 'abc' }}", vars,
                "True False True True");
    jinja_check("{{ 1 is not none }} {{ missing is not defined }}", vars, "True True");
    jinja_check("{{ (1, 2) ~ '' }} {{ 1 not in [2] }} {{ not 1 in [1] }}", vars, "(1, 2) True False");
    jinja_check("{{ range(3) | map('string') | join }}", vars, "012");
}

static void test_errors_name_what_is_wrong(void **state)
{
    (void)state;
    jinja_check_error("{{ 1 + }}", "{}", ENG_EFORMAT, "expected an expression, found '}}' (line 1 of the template)");
    jinja_check_error("{{ (1 }}", "{}", ENG_EFORMAT, "unexpected '}' (line 1 of the template)");
    jinja_check_error("{{ [1 }}", "{}", ENG_EFORMAT, "unexpected '}' (line 1 of the template)");
    jinja_check_error("{{ {1} }}", "{}", ENG_EFORMAT, "expected ':', found '}' (line 1 of the template)");
    jinja_check_error("{{ {'a': } }}", "{}", ENG_EFORMAT, "expected an expression, found '}' (line 1 of the template)");
    jinja_check_error("{{ a. }}", "{}", ENG_EFORMAT, "expected a name, found '}}' (line 1 of the template)");
    jinja_check_error("{{ a.'x' }}", "{}", ENG_EFORMAT, "expected a name, found 'x' (line 1 of the template)");
    jinja_check_error("{{ a[] }}", "{}", ENG_EFORMAT, "expected an index in [] (line 1 of the template)");
    jinja_check_error("{{ a[1:2:3:4] }}", "{}", ENG_EFORMAT, "expected ']', found '4' (line 1 of the template)");
    jinja_check_error("{{ f(a=1, 2) }}", "{}", ENG_EFORMAT,
                      "a positional argument follows a named one (line 1 of the template)");
    jinja_check_error("{{ f(**x) }}", "{}", ENG_EFORMAT, "arguments with * are not supported (line 1 of the template)");
    jinja_check_error("{{ x | }}", "{}", ENG_EFORMAT,
                      "expected the name of a filter, found '}}' (line 1 of the template)");
    jinja_check_error("{{ x | 1 }}", "{}", ENG_EFORMAT,
                      "expected the name of a filter, found '1' (line 1 of the template)");
    jinja_check_error("{{ x is }}", "{}", ENG_EFORMAT,
                      "expected the name of a test, found '}}' (line 1 of the template)");
    jinja_check_error("{{ x is not }}", "{}", ENG_EFORMAT,
                      "expected the name of a test, found '}}' (line 1 of the template)");
    jinja_check_error("{{ 'a' if }}", "{}", ENG_EFORMAT, "expected an expression, found '}}' (line 1 of the template)");
    jinja_check_error("{{ not }}", "{}", ENG_EFORMAT, "expected an expression, found '}}' (line 1 of the template)");
    jinja_check_error("{{ a == }}", "{}", ENG_EFORMAT, "expected an expression, found '}}' (line 1 of the template)");
    jinja_check_error("{{ 1 = 2 }}", "{}", ENG_EFORMAT, "expected }}, found '=' (line 1 of the template)");
    jinja_check_error("{{ * 2 }}", "{}", ENG_EFORMAT, "expected an expression, found '*' (line 1 of the template)");
    jinja_check_error("{% set true = 1 %}", "{}", ENG_EFORMAT, "cannot assign to a constant (line 1 of the template)");
    jinja_check_error("{% set a + b = 1 %}", "{}", ENG_EFORMAT, "expected %}, found '+' (line 1 of the template)");
    jinja_check_error("{{ a b }}", "{}", ENG_EFORMAT, "expected }}, found 'b' (line 1 of the template)");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_precedence),
        cmocka_unit_test(test_conditionals),
        cmocka_unit_test(test_postfix),
        cmocka_unit_test(test_arguments_and_literals),
        cmocka_unit_test(test_errors_name_what_is_wrong),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
