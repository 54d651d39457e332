// engine/text/jinja_tests.c: tests: x is y. What Python's jinja2 gives is the measure.
#include "fixture.h"

static void test_kinds(void **state)
{
    (void)state;
    static const char vars[] = "{\"i\":1,\"f\":1.5,\"s\":\"x\",\"l\":[],\"d\":{},\"n\":null,\"b\":true}";
    jinja_check(
        "{% for v in [i, f, s, l, d, n, b, (1,), missing, range] %}{{ v is defined }} {{ v is none }} {{ v is string "
        "}} {{ v is mapping }} {{ v is sequence }} {{ v is iterable }} {{ v is number }} {{ v is integer }} {{ v is "
        "float }} {{ v is boolean }} {{ v is true }} {{ v is false }} {{ v is callable }}\n{% endfor %}",
        vars,
        "True False False False False False True True False False False False False\nTrue False False False False "
        "False True False True False False False False\nTrue False True False True True False False False False False "
        "False False\nTrue False False False True True False False False False False False False\nTrue False False "
        "True True True False False False False False False False\nTrue True False False False False False False False "
        "False False False False\nTrue False False False False False True False False True True False False\nTrue "
        "False False False True True False False False False False False False\nFalse False False False True True "
        "False False False False False False True\nTrue False False False False False False False False False False "
        "False True\n");
    jinja_check("{{ missing is undefined }} {{ i is undefined }} {{ false is false }} {{ 0 is false }} {{ 1 is true }} "
                "{{ 1.0 is integer }}",
                vars, "True False True False False False");
    jinja_check("{{ 'a'.upper is callable }} {% macro m() %}{% endmacro %}{{ m is callable }}", vars, "True True");
}

static void test_comparisons(void **state)
{
    (void)state;
    jinja_check("{{ 1 is eq 1.0 }} {{ 1 is equalto(2) }} {{ 1 is ne 2 }} {{ 1 is lt 2 }} {{ 1 is lessthan 1 }} {{ 1 is "
                "le 1 }} {{ 2 is gt 1 }} {{ 2 is greaterthan 2 }} {{ 2 is ge 2 }} {{ 'a' is lt 'b' }}",
                "{}", "True False True True False True True False True True");
    jinja_check("{{ [1, 2, 3] | select('>=', 2) | list }} {{ [1, 2] | select('==', 2) | list }} {{ [1, 2] | "
                "reject('!=', 2) | list }} {{ [1, 2] | select('<', 2) | list }} {{ [1, 2] | select('<=', 1) | list }} "
                "{{ [1, 2] | select('>', 1) | list }}",
                "{}", "[2, 3] [2] [2] [1] [1] [2]");
    jinja_check("{{ 1 is in [1, 2] }} {{ 'b' is in 'abc' }} {{ 'k' is in {'k': 1} }} {{ 9 is not in [1] }}", "{}",
                "True True True True");
    jinja_check("{{ none is sameas none }} {{ true is sameas true }} {{ 1 is sameas true }} {{ 1 is sameas 1.0 }} {{ "
                "'a' is sameas 1 }}",
                "{}", "True True False False False");
}

static void test_numbers(void **state)
{
    (void)state;
    jinja_check("{{ 4 is even }} {{ 3 is odd }} {{ -3 is odd }} {{ 0 is even }} {{ 4.0 is even }} {{ true is odd }} {{ "
                "9 is divisibleby 3 }} {{ 9 is divisibleby 2 }} {{ -9 is divisibleby 3 }}",
                "{}", "True True True True True True True False True");
}

static void test_letters(void **state)
{
    (void)state;
    jinja_check("{{ 'ABC1' is upper }} {{ 'aB' is upper }} {{ '1' is upper }} {{ '' is lower }} {{ 'a b' is lower }} "
                "{{ 5 is lower }} {{ none is upper }}",
                "{}", "True False False False True False False");
    jinja_check("{{ not 1 is odd }} {{ 1 is not odd }} {{ 1 is defined and 2 is even }} {{ (1 is odd) is true }}", "{}",
                "False False True True");
}

static void test_errors(void **state)
{
    (void)state;
    jinja_check_error("{{ 1 is divisibleby }}", "{}", ENG_EINVAL,
                      "the test 'divisibleby' needs one argument (line 1 of the template)");
    jinja_check_error("{{ 1 is divisibleby 0 }}", "{}", ENG_EINVAL, "division by zero (line 1 of the template)");
    jinja_check_error("{{ 1 is divisibleby(1, 2) }}", "{}", ENG_EINVAL,
                      "the test 'divisibleby' needs one argument (line 1 of the template)");
    jinja_check_error("{{ 'a' is even }}", "{}", ENG_EINVAL,
                      "unsupported operand types for %: str and int (line 1 of the template)");
    jinja_check_error("{{ 1 is lt 'a' }}", "{}", ENG_EINVAL, "cannot compare int with str (line 1 of the template)");
    jinja_check_error("{{ 1 is in 5 }}", "{}", ENG_EINVAL, "'int' object is not iterable (line 1 of the template)");
    jinja_check_error("{{ 1 is defined(2) }}", "{}", ENG_EINVAL,
                      "this test takes no argument (line 1 of the template)");
    jinja_check_error("{{ 1 is sameas }}", "{}", ENG_EINVAL,
                      "the test 'sameas' needs one argument (line 1 of the template)");
    jinja_check_error("{{ none is odd }}", "{}", ENG_EINVAL,
                      "unsupported operand types for %: NoneType and int (line 1 of the template)");
    jinja_check_error("{{ missing is even }}", "{}", ENG_EINVAL, "'missing' is undefined (line 1 of the template)");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_kinds),   cmocka_unit_test(test_comparisons), cmocka_unit_test(test_numbers),
        cmocka_unit_test(test_letters), cmocka_unit_test(test_errors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
