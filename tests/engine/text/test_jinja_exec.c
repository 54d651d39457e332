// engine/text/jinja_exec.c: scopes, loops, set, macros, with, call and filter blocks. What Python's jinja2 gives is the
// measure.
#include "fixture.h"

static void test_scopes(void **state)
{
    (void)state;
    static const char vars[] = "{\"x\":0}";
    jinja_check("{% for i in [1, 2] %}{% set x = i %}{{ x }}{% endfor %}{{ x }}", vars, "120");
    jinja_check("{% if true %}{% set x = 5 %}{% endif %}{{ x }}", vars, "5");
    jinja_check("{% set ns = namespace(n=0) %}{% for i in [1, 2, 3] %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}",
                vars, "6");
    jinja_check("{% with x = 1 %}{% set y = 2 %}{{ x }}{% endwith %}{{ x }}{{ y }}|", vars, "10|");
    jinja_check("{% macro m() %}{% set x = 9 %}{{ x }}{% endmacro %}{{ m() }}{{ x }}", vars, "90");
    jinja_check("{% set a = 1 %}{% macro m() %}{{ a }}{% endmacro %}{% set a = 2 %}{{ m() }}", vars, "2");
    jinja_check("{% for x in [1] %}{% endfor %}{{ x }}", vars, "0");
    jinja_check("{% set x %}in{% endset %}{{ x }}", vars, "in");
    jinja_check("{% filter upper %}{% set q = 'b' %}a{{ q }}{% endfilter %}{{ q }}|", vars, "AB|");
}

static void test_loops(void **state)
{
    (void)state;
    jinja_check("{% for x in [] %}a{% else %}empty{% endfor %}", "{}", "empty");
    jinja_check("{% for x in missing %}a{% else %}e{% endfor %}", "{}", "e");
    jinja_check(
        "{% for x in [1, 2, 3, 4] if x is even %}{{ loop.index }}:{{ x }}{{ ',' if not loop.last }}{% endfor %}", "{}",
        "1:2,2:4");
    jinja_check("{% for x in [1] if false %}a{% else %}none{% endfor %}", "{}", "none");
    jinja_check("{% for x in range(9) %}{% if x == 1 %}{% continue %}{% endif %}{% if x > 3 %}{% break %}{% endif %}{{ "
                "x }}{% endfor %}",
                "{}", "023");
    jinja_check("{% for a in 'ab' %}{% for b in 'cd' %}{% if b == 'd' %}{% break %}{% endif %}{{ a }}{{ b }}{% endfor "
                "%}|{% endfor %}",
                "{}", "ac|bc|");
    jinja_check("{% for k, v in {'a': 1}.items() %}{{ k }}{{ v }}{% endfor %}", "{}", "a1");
    jinja_check("{% for x in [1, 2] %}{% for y in [loop.index] %}{{ y }}{{ loop.length }}{% endfor %}{{ loop.length "
                "}}{% endfor %}",
                "{}", "112212");
    jinja_check("{% for c in 'hé' %}<{{ c }}>{% endfor %}", "{}", "<h><é>");
}

static void test_macros(void **state)
{
    (void)state;
    jinja_check(
        "{% macro m(a, b='z') %}{{ a }}{{ b }}{% endmacro %}{{ m() }}|{{ m(1) }}|{{ m(b=2, a=1) }}|{{ m(1, 2) }}", "{}",
        "z|1z|12|12");
    jinja_check("{% macro f(n) %}{{ n }}{% if n %}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(3) }}", "{}", "3210");
    jinja_check("{% macro m(a) %}{{ a is defined }}{% endmacro %}{{ m() }}", "{}", "False");
    jinja_check("{% macro m() %}<{{ caller() }}>{% endmacro %}{% set x = 1 %}{% call m() %}{{ x }}{% endcall %}", "{}",
                "<1>");
    jinja_check("{% macro m() %}a{% endmacro %}{{ m() | upper }}{{ m() ~ 'b' }}{{ m() | length }}", "{}", "Aab1");
    jinja_check("{% macro m(x) %}{{ x }}{% endmacro %}{{ [1, 2] | map('string') | join(m('-')) }}", "{}", "1-2");
    jinja_check("{% macro m(a, b=a) %}{{ b }}{% endmacro %}{{ m(7) }}", "{}", "7");
}

static void test_with_and_unpacking(void **state)
{
    (void)state;
    jinja_check("{% with a = 1 %}{% with a = 2, b = a %}{{ a }}{{ b }}{% endwith %}{{ a }}{% endwith %}", "{}", "211");
    jinja_check("{% set a, b = 'xy' %}{{ a }}{{ b }}", "{}", "xy");
    jinja_check("{% set (a, (b, c)) = (1, (2, 3)) %}{{ a }}{{ b }}{{ c }}", "{}", "123");
    jinja_check("{% set a, b = {'k': 1, 'l': 2} %}{{ a }}{{ b }}", "{}", "kl");
    jinja_check("{% generation %}x{% endgeneration %}", "{}", "x");
}

static void test_errors(void **state)
{
    (void)state;
    jinja_check_error("{% set a, b = [1, 2, 3] %}", "{}", ENG_EINVAL,
                      "cannot unpack 3 values into 2 names (line 1 of the template)");
    jinja_check_error("{% set a, b = 1 %}", "{}", ENG_EINVAL, "'int' object is not iterable (line 1 of the template)");
    jinja_check_error("{% for a, b in [1] %}{% endfor %}", "{}", ENG_EINVAL,
                      "'int' object is not iterable (line 1 of the template)");
    jinja_check_error("{% for a, b in [[1]] %}{% endfor %}", "{}", ENG_EINVAL,
                      "cannot unpack 1 values into 2 names (line 1 of the template)");
    jinja_check_error("{% for x in 5 %}{% endfor %}", "{}", ENG_EINVAL,
                      "'int' object is not iterable (line 1 of the template)");
    jinja_check_error("{% for x in none %}{% endfor %}", "{}", ENG_EINVAL,
                      "'NoneType' object is not iterable (line 1 of the template)");
    jinja_check_error("{% set d = {} %}{% set d.x = 1 %}", "{}", ENG_EINVAL,
                      "cannot set the attribute 'x' of anything but a namespace (line 1 of the template)");
    jinja_check_error("{% set missing.x = 1 %}", "{}", ENG_EINVAL,
                      "cannot set the attribute 'x' of anything but a namespace (line 1 of the template)");
    jinja_check_error("{% macro m(a) %}{% endmacro %}{{ m(1, 2) }}", "{}", ENG_EINVAL,
                      "macro 'm' takes not more than 1 arguments (line 1 of the template)");
    jinja_check_error("{% macro m(a) %}{% endmacro %}{{ m(z=1) }}", "{}", ENG_EINVAL,
                      "macro 'm' cannot take the argument 'z' (line 1 of the template)");
    jinja_check_error("{% macro m() %}{{ caller() }}{% endmacro %}\n{{ m() }}", "{}", ENG_EINVAL,
                      "'caller' is undefined (line 1 of the template)");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_scopes), cmocka_unit_test(test_loops),
        cmocka_unit_test(test_macros), cmocka_unit_test(test_with_and_unpacking),
        cmocka_unit_test(test_errors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
