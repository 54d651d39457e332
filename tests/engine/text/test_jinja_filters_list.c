// engine/text/jinja_filters_list.c: filters on lists and dicts. What Python's jinja2 gives is the measure.
#include "fixture.h"

static void test_elements(void **state)
{
    (void)state;
    static const char vars[] = "{\"d\":{\"b\":1,\"a\":2}}";
    jinja_check("{{ [1, 2] | first }}{{ [1, 2] | last }}{{ 'xyz' | first }}{{ 'xyz' | last }}|{{ [] | first }}|{{ '' | "
                "last }}|{{ d | first }}",
                vars, "12xz|||b");
    jinja_check("{{ 'abc' | list }} {{ d | list }} {{ (1, 2) | list }} {{ missing | list }}", vars,
                "['a', 'b', 'c'] ['b', 'a'] [1, 2] []");
    jinja_check("{{ 'abc' | reverse }} {{ [1, 2, 3] | reverse | list }} {{ (1, 2) | reverse | list }}", vars,
                "cba [3, 2, 1] [2, 1]");
    jinja_check("{{ [1, 'a', none, 2.0] | join('-') }} {{ [] | join(',') }}|{{ 'abc' | join('.') }} {{ [1, 2] | join "
                "}} {{ [1, 2] | join(0) }} {{ d | join(',') }}",
                vars, "1-a-None-2.0 |a.b.c 12 102 b,a");
    jinja_check("{{ [{'n': 1}, {'n': {'m': 2}}] | join(',', attribute='n') }} {{ [[1, 2], [3, 4]] | join(',', 1) }}",
                vars, "1,{'m': 2} 2,4");
    jinja_check(
        "{{ d | items | list }} {{ missing | items | list }} {{ d | dictsort }} {{ d | dictsort(by='value') }} {{ d | "
        "dictsort(reverse=true) }} {{ {'B': 1, 'a': 2} | dictsort }} {{ {'B': 1, 'a': 2} | dictsort(true) }}",
        vars,
        "[('b', 1), ('a', 2)] [] [('a', 2), ('b', 1)] [('b', 1), ('a', 2)] [('b', 1), ('a', 2)] [('a', 2), ('B', 1)] "
        "[('B', 1), ('a', 2)]");
}

static void test_map_select_reject(void **state)
{
    (void)state;
    static const char vars[] =
        "{\"p\":[{\"n\":\"x\",\"k\":{\"v\":1}},{\"n\":\"y\",\"k\":{\"v\":0}},{\"n\":\"z\",\"k\":{}}]}";
    jinja_check("{{ p | map(attribute='n') | list }} {{ p | map(attribute='k.v', default=7) | list }} {{ [[1, 2], [3]] "
                "| map(attribute=0) | list }}",
                vars, "['x', 'y', 'z'] [1, 0, 7] [1, 3]");
    jinja_check("{{ ['a', 'b'] | map('upper') | list }} {{ ['aa', 'ba'] | map('replace', 'a', '-') | list }} {{ [1.26, "
                "2.5] | map('round', 1) | list }} {{ [[1], [2]] | map('map', 'string') | map('list') | list }}",
                vars, "['A', 'B'] ['--', 'b-'] [1.3, 2.5] [['1'], ['2']]");
    jinja_check("{{ [0, 1, '', 'a', none] | select | list }} {{ [0, 1, '', 'a'] | reject | list }} {{ [1, 2, 3] | "
                "select('odd') | list }} {{ [1, 2, 3] | reject('odd') | list }} {{ [1, 5] | select('>', 2) | list }}",
                vars, "[1, 'a'] [0, ''] [1, 3] [2] [5]");
    jinja_check("{{ p | selectattr('k.v') | map(attribute='n') | list }} {{ p | selectattr('n', 'equalto', 'y') | "
                "map(attribute='n') | list }} {{ p | rejectattr('k.v', 'defined') | map(attribute='n') | list }} {{ p "
                "| rejectattr('n', 'in', ['x']) | list | length }}",
                vars, "['x'] ['y'] ['z'] 2");
}

static void test_order(void **state)
{
    (void)state;
    static const char vars[] = "{\"p\":[{\"n\":2,\"t\":\"b\"},{\"n\":1,\"t\":\"B\"},{\"n\":2,\"t\":\"a\"}]}";
    jinja_check(
        "{{ [3, 1, 2] | sort }} {{ ['b', 'A', 'a', 'B'] | sort }} {{ ['b', 'A', 'a', 'B'] | sort(case_sensitive=true) "
        "}} {{ [3, 1, 2] | sort(reverse=true) }} {{ 'hello' | sort }} {{ [] | sort }}",
        vars, "[1, 2, 3] ['A', 'a', 'b', 'B'] ['A', 'B', 'a', 'b'] [3, 2, 1] ['e', 'h', 'l', 'l', 'o'] []");
    jinja_check("{{ p | sort(attribute='n') | map(attribute='t') | join }} {{ p | sort(reverse=true, attribute='n') | "
                "map(attribute='t') | join }} {{ p | sort(attribute='t') | map(attribute='n') | join }}",
                vars, "Bba baB 221");
    jinja_check("{{ ['a', 'A', 'b', 'a'] | unique | list }} {{ ['a', 'A'] | unique(true) | list }} {{ p | "
                "unique(attribute='n') | map(attribute='t') | list }} {{ [1, 1.0, true, '1'] | unique | list }}",
                vars, "['a', 'b'] ['a', 'A'] ['b', 'B'] [1, '1']");
    jinja_check(
        "{{ [3, 1, 2] | min }}{{ [3, 1, 2] | max }}|{{ [] | min }}|{{ ['b', 'A'] | max }}{{ ['b', 'A'] | min }}{{ "
        "['a', 'A'] | max }} {{ (p | max(attribute='n')).t }}{{ (p | min(attribute='n')).t }} {{ [1, 2.5] | max }}",
        vars, "13||bAa bB 2.5");
    jinja_check("{{ [1, 2, 3] | sum }} {{ [] | sum }} {{ [0.5, 1] | sum }} {{ p | sum(attribute='n') }} {{ [1] | "
                "sum(start=10) }} {{ [[1], [2]] | sum(start=[]) }}",
                vars, "6 0 1.5 5 11 [1, 2]");
}

static void test_errors(void **state)
{
    (void)state;
    static const char vars[] = "{\"l\":[1,\"a\"]}";
    jinja_check_error("{{ l | sort }}", vars, ENG_EINVAL, "cannot compare int with str (line 1 of the template)");
    jinja_check_error("{{ 5 | first }}", vars, ENG_EINVAL, "'int' object is not iterable (line 1 of the template)");
    jinja_check_error("{{ none | list }}", vars, ENG_EINVAL,
                      "'NoneType' object is not iterable (line 1 of the template)");
    jinja_check_error("{{ 5 | join }}", vars, ENG_EINVAL, "'int' object is not iterable (line 1 of the template)");
    jinja_check_error("{{ [1] | items }}", vars, ENG_EINVAL,
                      "items needs a mapping, not list (line 1 of the template)");
    jinja_check_error("{{ l | map }}", vars, ENG_EINVAL, "map needs a filter or an attribute (line 1 of the template)");
    jinja_check_error("{{ l | map(foo=1) | list }}", vars, ENG_EINVAL,
                      "map does not take the argument 'foo' (line 1 of the template)");
    jinja_check_error("{{ l | map(1) | list }}", vars, ENG_EINVAL,
                      "map needs a string, not int (line 1 of the template)");
    jinja_check_error("{{ l | selectattr }}", vars, ENG_EINVAL,
                      "selectattr needs an attribute (line 1 of the template)");
    jinja_check_error("{{ l | sum }}", vars, ENG_EINVAL,
                      "unsupported operand types for +: int and str (line 1 of the template)");
    jinja_check_error("{{ l | max }}", vars, ENG_EINVAL, "cannot compare str with int (line 1 of the template)");
    jinja_check_error("{{ l | first(1) }}", vars, ENG_EINVAL,
                      "first takes at most 0 arguments (line 1 of the template)");
    jinja_check_error("{{ l | sort(1, 2, 3, 4) }}", vars, ENG_EINVAL,
                      "sort takes at most 3 arguments (line 1 of the template)");
    jinja_check_error("{{ [{'a': 1}] | sort(attribute='b.c') }}", vars, ENG_EINVAL,
                      "'b' is undefined (line 1 of the template)");
    jinja_check_error("{{ 5 | dictsort }}", vars, ENG_EINVAL,
                      "items needs a mapping, not int (line 1 of the template)");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_elements),
        cmocka_unit_test(test_map_select_reject),
        cmocka_unit_test(test_order),
        cmocka_unit_test(test_errors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
