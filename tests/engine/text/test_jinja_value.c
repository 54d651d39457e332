// engine/text/jinja_value.c: truth, equality, order, membership, dicts, numbers from JSON. What Python's jinja2 gives
// is the measure.
#include "fixture.h"

static void test_truth(void **state)
{
    (void)state;
    jinja_check("{% for v in [0, 1, 0.0, 0.5, '', 'a', ' ', [], [0], (), (0,), {}, {'a': 1}, none, true, false, "
                "missing, range, namespace()] %}{{ 1 if v else 0 }}{% endfor %}",
                "{}", "0101011010101010011");
}

static void test_equality(void **state)
{
    (void)state;
    jinja_check("{{ 1 == true }} {{ 0 == false }} {{ 1 == 1.0 }} {{ '' == none }} {{ [] == () }} {{ [1, [2]] == [1.0, "
                "[2]] }} {{ {'a': 1, 'b': 2} == {'b': 2, 'a': 1} }} {{ {'a': 1} == {'a': 2} }} {{ {'a': 1} == {'b': 1} "
                "}} {{ 'a' == 'a' }}",
                "{}", "True True True False False True True False False True");
    jinja_check("{{ none == none }} {{ missing == missing }} {{ missing == none }} {{ range == range }} {{ [1] == [1, "
                "2] }} {{ ('nan' | float) == ('nan' | float) }} {{ 9007199254740993 == 9007199254740992 }}",
                "{}", "True True False True False False False");
}

static void test_order(void **state)
{
    (void)state;
    jinja_check("{{ 1 < true }} {{ 1 < 1.5 }} {{ 'a' < 'aa' }} {{ 'Z' < 'a' }} {{ '\\uffff' < '\\U00010000' }} {{ [1, "
                "'a'] < [2, 'b'] }} {{ [] < [0] }} {{ (1, 2) < (1, 3) }} {{ [[1], 2] < [[1], 3] }} {{ -1 < 0 }}",
                "{}", "False True True True True True True True True True");
    jinja_check("{{ ['\\u00e9', 'z', 'a'] | sort }} {{ [2, 1.5, true] | sort }}", "{}",
                "['a', 'z', 'é'] [True, 1.5, 2]");
}

static void test_membership(void **state)
{
    (void)state;
    jinja_check("{{ 1 in [1.0] }} {{ true in [1] }} {{ 'a' in {'a': 1} }} {{ 1 in {} }} {{ '' in 'a' }} {{ 'ab' in 'a' "
                "}} {{ none in [none] }} {{ [1] in [[1]] }} {{ 1 in (1,) }} {{ 1 in missing }}",
                "{}", "True True True False True False True True True False");
}

static void test_dict_keys(void **state)
{
    (void)state;
    jinja_check("{{ {1: 'a', 1.0: 'b', true: 'c'} }} {{ {'a': 1, 'a': 2} }} {{ {(1, 2): 'x'}[(1, 2)] }} {{ {none: "
                "1}[none] }} {{ {1: 'i', '1': 's'}['1'] }} {{ {0: 'z'}[false] }}",
                "{}", "{1: 'c'} {'a': 2} x 1 s z");
    jinja_check("{{ dict(b=1, a=2) | list }} {{ dict({'a': 1, 'b': 2}, a=3) }}", "{}", "['b', 'a'] {'a': 3, 'b': 2}");
}

static void test_numbers_of_json(void **state)
{
    (void)state;
    static const char vars[] =
        "{\"i\":7,\"f\":7.5,\"w\":7.0,\"big\":9007199254740992,\"n\":-3,\"l\":[1,null,true,{\"k\":[]}]}";
    jinja_check("{{ i }} {{ f }} {{ big }} {{ n }} {{ l }} {{ i // 2 }} {{ l[3].k | length }}", vars,
                "7 7.5 9007199254740992 -3 [1, None, True, {'k': []}] 3 0");
}

static void test_lengths(void **state)
{
    (void)state;
    static const char vars[] = "{\"u\":\"h\\u00e9\\ud83d\\ude00\"}";
    jinja_check("{{ u | length }} {{ [1, 2] | length }} {{ (1,) | length }} {{ {'a': 1} | length }} {{ missing | "
                "length }} {{ '' | length }}",
                vars, "3 2 1 1 0 0");
}

static void test_errors_name_the_type(void **state)
{
    (void)state;
    jinja_check_error("{{ {[1]: 2} }}", "{}", ENG_EINVAL, "a list cannot be a key (line 1 of the template)");
    jinja_check_error("{{ {'a': 1}.get({}) }}", "{}", ENG_EINVAL, "a dict cannot be a key (line 1 of the template)");
    jinja_check_error("{{ [] < {} }}", "{}", ENG_EINVAL, "cannot compare list with dict (line 1 of the template)");
    jinja_check_error("{{ none < none }}", "{}", ENG_EINVAL,
                      "cannot compare NoneType with NoneType (line 1 of the template)");
    jinja_check_error("{{ {} < {} }}", "{}", ENG_EINVAL, "cannot compare dict with dict (line 1 of the template)");
    jinja_check_error("{{ 'a' < 1 }}", "{}", ENG_EINVAL, "cannot compare str with int (line 1 of the template)");
    jinja_check_error("{{ [1] < (1,) }}", "{}", ENG_EINVAL, "cannot compare list with tuple (line 1 of the template)");
    jinja_check_error("{{ [1, 'a'] < [1, 2] }}", "{}", ENG_EINVAL,
                      "cannot compare str with int (line 1 of the template)");
    jinja_check_error("{{ missing < 1 }}", "{}", ENG_EINVAL, "'missing' is undefined (line 1 of the template)");
    jinja_check_error("{{ 5 in 5 }}", "{}", ENG_EINVAL, "'int' object is not iterable (line 1 of the template)");
    jinja_check_error("{{ 1 in 'a' }}", "{}", ENG_EINVAL,
                      "'in <string>' requires a string, not int (line 1 of the template)");
    jinja_check_error("{% for x in 1.5 %}{% endfor %}", "{}", ENG_EINVAL,
                      "'float' object is not iterable (line 1 of the template)");
    jinja_check_error("{% for x in range %}{% endfor %}", "{}", ENG_EINVAL,
                      "'function' object is not iterable (line 1 of the template)");
    jinja_check_error("{{ true | length }}", "{}", ENG_EINVAL,
                      "object of type 'bool' has no length (line 1 of the template)");
    jinja_check_error("{{ 1.5 | length }}", "{}", ENG_EINVAL,
                      "object of type 'float' has no length (line 1 of the template)");
    jinja_check_error("{{ range | length }}", "{}", ENG_EINVAL,
                      "object of type 'function' has no length (line 1 of the template)");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_truth),     cmocka_unit_test(test_equality),
        cmocka_unit_test(test_order),     cmocka_unit_test(test_membership),
        cmocka_unit_test(test_dict_keys), cmocka_unit_test(test_numbers_of_json),
        cmocka_unit_test(test_lengths),   cmocka_unit_test(test_errors_name_the_type),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
