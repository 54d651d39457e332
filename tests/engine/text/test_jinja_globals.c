// engine/text/jinja_globals.c: range, dict, namespace, raise_exception, strftime_now. What Python's jinja2 gives is the
// measure.
#include "fixture.h"

static void test_range(void **state)
{
    (void)state;
    jinja_check("{{ range(3) | list }} {{ range(1, 4) | list }} {{ range(5, 0, -2) | list }} {{ range(0) | list }} {{ "
                "range(3, 1) | list }} {{ range(-2, 1) | list }}",
                "{}", "[0, 1, 2] [1, 2, 3] [5, 3, 1] [] [] [-2, -1, 0]");
    jinja_check(
        "{{ range(5) | length }} {{ range(5)[1] }} {{ range(5)[-1] }} {{ 3 in range(5) }} {{ range(true) | list }}",
        "{}", "5 1 4 True [0]");
    jinja_check("{{ range(100000) | length }}", "{}", "100000");
}

static void test_dict_and_namespace(void **state)
{
    (void)state;
    static const char vars[] = "{\"d\":{\"a\":1}}";
    jinja_check(
        "{{ dict(a=1, b='x') }} {{ dict() }} {{ dict(d, b=2) }} {{ dict([('x', 1), ['y', 2]]) }} {{ dict(d, a=5).a }}",
        vars, "{'a': 1, 'b': 'x'} {} {'a': 1, 'b': 2} {'x': 1, 'y': 2} 5");
    jinja_check("{% set ns = namespace(a=1) %}{% set ns.b = ns.a + 1 %}{{ ns.a }}{{ ns.b }}{{ ns.c is defined }}", vars,
                "12False");
    jinja_check("{% set ns = namespace(d, b=3) %}{{ ns.a }}{{ ns.b }}", vars, "13");
    jinja_check("{% set ns = namespace() %}{% set ns.x = [1] %}{{ ns.x }} {{ ns is mapping }}", vars, "[1] False");
    jinja_check("{% set range = 5 %}{{ range }}", vars, "5");
}

static void test_errors(void **state)
{
    (void)state;
    jinja_check_error("{{ range() }}", "{}", ENG_EINVAL, "range takes one to three integers (line 1 of the template)");
    jinja_check_error("{{ range(1, 2, 3, 4) }}", "{}", ENG_EINVAL,
                      "range takes one to three integers (line 1 of the template)");
    jinja_check_error("{{ range('a') }}", "{}", ENG_EINVAL, "range needs integers, not str (line 1 of the template)");
    jinja_check_error("{{ range(1.5) }}", "{}", ENG_EINVAL, "range needs integers, not float (line 1 of the template)");
    jinja_check_error("{{ range(1, 2, 0) }}", "{}", ENG_EINVAL,
                      "range: the step must not be zero (line 1 of the template)");
    jinja_check_error("{{ range(100001) }}", "{}", ENG_ELIMIT, "range is longer than 100000 (line 1 of the template)");
    jinja_check_error("{{ dict([1]) }}", "{}", ENG_EINVAL, "'int' object is not iterable (line 1 of the template)");
    jinja_check_error("{{ dict(['abc']) }}", "{}", ENG_EINVAL, "a dict is made of pairs (line 1 of the template)");
    jinja_check_error("{{ dict(5) }}", "{}", ENG_EINVAL, "'int' object is not iterable (line 1 of the template)");
    jinja_check_error("{{ strftime_now() }}", "{}", ENG_EINVAL,
                      "strftime_now takes one format (line 1 of the template)");
    jinja_check_error("{{ strftime_now(1) }}", "{}", ENG_EINVAL,
                      "strftime_now needs a string, not int (line 1 of the template)");
    jinja_check_error("{{ raise_exception() }}", "{}", ENG_EINVAL,
                      "raise_exception takes one message (line 1 of the template)");
    jinja_check_error("\n{{ raise_exception('No place: ' ~ 1) }}", "{}", ENG_EINVAL, "No place: 1");
    jinja_check_error("{{ raise_exception(5) }}", "{}", ENG_EINVAL, "5");
    jinja_check_error("{{ range(a=1) }}", "{}", ENG_EINVAL,
                      "range takes one to three integers (line 1 of the template)");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_range),
        cmocka_unit_test(test_dict_and_namespace),
        cmocka_unit_test(test_errors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
