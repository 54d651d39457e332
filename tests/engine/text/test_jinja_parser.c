// engine/text/jinja_parser.c: the statements and their nesting. What Python's jinja2 gives is the measure.
#include "fixture.h"

static void test_statements(void **state)
{
    (void)state;
    static const char vars[] = "{\"l\":[1,2,3]}";
    jinja_check("{% if false %}a{% elif l %}b{% else %}c{% endif %}", vars, "b");
    jinja_check("{% if 0 %}a{% elif 0 %}b{% elif 0 %}c{% endif %}|", vars, "|");
    jinja_check("{% for a, b in [(1, 2), [3, 4]] %}{{ a }}{{ b }}{% endfor %}", vars, "1234");
    jinja_check("{% for (a, (b, c)) in [(1, (2, 3))] %}{{ a }}{{ b }}{{ c }}{% endfor %}", vars, "123");
    jinja_check("{% for x in 1, 2, 3 %}{{ x }}{% endfor %}", vars, "123");
    jinja_check("{% set a, b = 1, 2 %}{{ b }}{{ a }}", vars, "21");
    jinja_check("{% set t = 1, %}{{ t }}", vars, "(1,)");
    jinja_check("{% set x %}a{{ 1 }}b{% endset %}{{ x }}", vars, "a1b");
    jinja_check("{% set x | upper | replace('B', '-') %}abc{% endset %}{{ x }}", vars, "A-C");
    jinja_check("{% with a = 1, b = 2 %}{{ a + b }}{% endwith %}", vars, "3");
    jinja_check("{% with %}x{% endwith %}", vars, "x");
    jinja_check("{% filter upper | trim %} a{{ 1 }} {% endfilter %}", vars, "A1");
    jinja_check("{{ 1, 2 }}{{ (3,) }}{{ () }}", vars, "(1, 2)(3,)()");
}

static void test_macros_and_calls(void **state)
{
    (void)state;
    jinja_check("{% macro m(a, b=2, c=a) %}{{ a }}{{ b }}{{ c }}{% endmacro %}{{ m(1) }}|{{ m(1, c=5) }}", "{}",
                "121|125");
    jinja_check("{% macro m() %}x{% endmacro %}{{ m() }}", "{}", "x");
    jinja_check("{% macro m() %}[{{ caller() }}]{% endmacro %}{% call m() %}in{% endcall %}", "{}", "[in]");
    jinja_check("{% macro m() %}{{ caller(1, 2) }}{% endmacro %}{% call(a, b) m() %}{{ a }}-{{ b }}{% endcall %}", "{}",
                "1-2");
}

static void test_empty_pieces(void **state)
{
    (void)state;
    jinja_check("", "{}", "");
    jinja_check("{% if true %}{% endif %}", "{}", "");
    jinja_check("{% for x in [] %}{% endfor %}", "{}", "");
    jinja_check("{% macro m() %}{% endmacro %}{{ m() }}", "{}", "");
}

static void test_errors_say_what_was_expected(void **state)
{
    (void)state;
    jinja_check_error("{% if %}x{% endif %}", "{}", ENG_EFORMAT,
                      "expected an expression, found '%}' (line 1 of the template)");
    jinja_check_error("{% if true %}x", "{}", ENG_EFORMAT, "a block has no endif (line 1 of the template)");
    jinja_check_error("{% if true %}\n{% else %}\n{% elif 1 %}{% endif %}", "{}", ENG_EFORMAT,
                      "there is no tag 'elif' here (line 3 of the template)");
    jinja_check_error("{% for in l %}{% endfor %}", "{}", ENG_EFORMAT,
                      "expected 'in' after the variable of a for (line 1 of the template)");
    jinja_check_error("{% for x of l %}{% endfor %}", "{}", ENG_EFORMAT,
                      "expected 'in' after the variable of a for (line 1 of the template)");
    jinja_check_error("{% for x in l %}{% endif %}", "{}", ENG_EFORMAT,
                      "there is no tag 'endif' here (line 1 of the template)");
    jinja_check_error("{% endfor %}", "{}", ENG_EFORMAT, "there is no tag 'endfor' here (line 1 of the template)");
    jinja_check_error("\n{% else %}", "{}", ENG_EFORMAT, "there is no tag 'else' here (line 2 of the template)");
    jinja_check_error("{% frob %}", "{}", ENG_EFORMAT, "there is no tag 'frob' here (line 1 of the template)");
    jinja_check_error("{% %}", "{}", ENG_EFORMAT, "expected a name, found '%}' (line 1 of the template)");
    jinja_check_error("{% set %}", "{}", ENG_EFORMAT, "expected a name, found '%}' (line 1 of the template)");
    jinja_check_error("{% set x = %}", "{}", ENG_EFORMAT,
                      "expected an expression, found '%}' (line 1 of the template)");
    jinja_check_error("{% set x, y %}{% endset %}", "{}", ENG_EFORMAT,
                      "a block cannot be set to several names (line 1 of the template)");
    jinja_check_error("{% set 1 = 2 %}", "{}", ENG_EFORMAT, "expected a name, found '1' (line 1 of the template)");
    jinja_check_error("{% set x.y %}", "{}", ENG_EFORMAT, "a block has no endset (line 1 of the template)");
    jinja_check_error("{% macro %}{% endmacro %}", "{}", ENG_EFORMAT,
                      "expected a name, found '%}' (line 1 of the template)");
    jinja_check_error("{% macro m(a=1, b) %}{% endmacro %}", "{}", ENG_EFORMAT,
                      "a parameter without a default follows one with a default (line 1 of the template)");
    jinja_check_error("{% macro m(a %}", "{}", ENG_EFORMAT, "unexpected '}' (line 1 of the template)");
    jinja_check_error("{% call 1 %}{% endcall %}", "{}", ENG_EFORMAT,
                      "a call block needs a call (line 1 of the template)");
    jinja_check_error("{% break %}", "{}", ENG_EFORMAT, "break outside a loop (line 1 of the template)");
    jinja_check_error("\n{% continue %}", "{}", ENG_EFORMAT, "continue outside a loop (line 2 of the template)");
    jinja_check_error("{% if 1 %}{% break %}{% endif %}", "{}", ENG_EFORMAT,
                      "break outside a loop (line 1 of the template)");
    jinja_check_error("{% if true %}x{% endif y %}", "{}", ENG_EFORMAT,
                      "expected %}, found 'y' (line 1 of the template)");
    jinja_check_error("{% filter nope %}{% endfilter %}", "{}", ENG_EFORMAT,
                      "there is no filter 'nope' (line 1 of the template)");
    jinja_check_error("{% include 'x' %}", "{}", ENG_EFORMAT,
                      "there is no tag 'include' here (line 1 of the template)");
    jinja_check_error("{% extends 'x' %}", "{}", ENG_EFORMAT,
                      "there is no tag 'extends' here (line 1 of the template)");
    jinja_check_error("{% block b %}x{% endblock %}", "{}", ENG_EFORMAT,
                      "there is no tag 'block' here (line 1 of the template)");
    jinja_check_error("{% with a %}{% endwith %}", "{}", ENG_EFORMAT,
                      "expected '=', found '%}' (line 1 of the template)");
    jinja_check_error("{{ 1 2 }}", "{}", ENG_EFORMAT, "expected }}, found '2' (line 1 of the template)");
    jinja_check_error("{{ }}", "{}", ENG_EFORMAT, "expected an expression, found '}}' (line 1 of the template)");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_statements),
        cmocka_unit_test(test_macros_and_calls),
        cmocka_unit_test(test_empty_pieces),
        cmocka_unit_test(test_errors_say_what_was_expected),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
