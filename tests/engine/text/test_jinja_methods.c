// engine/text/jinja_methods.c: methods of strings, lists, dicts and loop. What Python's jinja2 gives is the measure.
#include "fixture.h"

static void test_strings(void **state)
{
    (void)state;
    jinja_check("{{ ' a '.strip() }}|{{ ' a '.lstrip() }}|{{ ' a '.rstrip() }}|{{ 'xax'.strip('x') }}|{{ "
                "'xya'.lstrip('yx') }}|{{ ' a '.strip(none) }}|{{ '\\u00a0a\\u3000'.strip() }}|",
                "{}", "a|a | a|a|a|a|a|");
    jinja_check(
        "{{ 'a b'.title() }} {{ \"it's a1b\".title() }} {{ 'aBC'.capitalize() }} {{ 'aB'.upper() }}{{ 'aB'.lower() }}",
        "{}", "A B It'S A1B Abc ABab");
    jinja_check("{{ 'aaa'.replace('a', 'b', 1) }} {{ 'abc'.replace('', '-') }} {{ 'abc'.replace('', '-', 2) }} {{ "
                "'aaa'.replace('aa', 'b') }}",
                "{}", "baa -a-b-c- -a-bc ba");
    jinja_check("{{ '-'.join(['a', 'b']) }} {{ ','.join([]) }}| {{ '.'.join('xyz') }} {{ ','.join({'k': 1}) }}", "{}",
                "a-b | x.y.z k");
    jinja_check("{{ 'abab'.find('b') }}{{ 'abab'.rfind('b') }}{{ 'ab'.find('z') }}{{ 'ab'.rfind('z') }}{{ "
                "'h\\u00e9\\u00e9y'.find('y') }}{{ ''.find('') }}{{ 'ab'.rfind('') }}",
                "{}", "13-1-1302");
    jinja_check("{{ 'aaaa'.count('aa') }}{{ 'abc'.count('') }}{{ ''.count('') }}{{ 'abc'.count('z') }}", "{}", "2410");
    jinja_check("{{ '123'.isdigit() }} {{ ''.isdigit() }} {{ '1a'.isdigit() }} {{ ' \\n'.isspace() }} {{ ''.isspace() "
                "}} {{ ' a'.isspace() }}",
                "{}", "True False False True False False");
    jinja_check("{{ 'abc'.startswith('ab') }} {{ 'abc'.startswith(('x', 'a')) }} {{ 'abc'.endswith('') }} {{ "
                "'a'.endswith('aa') }} {{ 'a'.startswith(()) }}",
                "{}", "True True True False False");
    jinja_check("{{ 'abc'.removeprefix('ab') }} {{ 'abc'.removesuffix('bc') }} {{ 'abc'.removeprefix('x') }} {{ "
                "'aa'.removesuffix('a') }}",
                "{}", "c a abc a");
}

static void test_splits(void **state)
{
    (void)state;
    jinja_check("{{ 'a,b,,c'.split(',') }} {{ ''.split(',') }} {{ ''.split() }} {{ ' a  b '.split() }} {{ "
                "'a,b,c'.split(',', 1) }} {{ 'a,b'.split(',', 0) }}",
                "{}", "['a', 'b', '', 'c'] [''] [] ['a', 'b'] ['a', 'b,c'] ['a,b']");
    jinja_check("{{ ' a b  c '.split(none, 1) }} {{ ' a b '.split(maxsplit=0) }} {{ 'a--b'.split('--') }} {{ "
                "'a\\u3000b'.split() }}",
                "{}", "['a', 'b  c '] ['a b '] ['a', 'b'] ['a', 'b']");
    jinja_check("{{ 'a,b,c'.rsplit(',', 1) }} {{ 'a,b,c'.rsplit(',') }} {{ 'aaa'.rsplit('aa') }} {{ 'x'.rsplit(',', 1) "
                "}} {{ 'a,b'.rsplit(',', 0) }}",
                "{}", "['a,b', 'c'] ['a', 'b', 'c'] ['a', ''] ['x'] ['a,b']");
    jinja_check("{{ 'a\\nb\\r\\nc\\rd'.splitlines() }} {{ 'a\\n'.splitlines() }} {{ ''.splitlines() }} {{ "
                "'a\\n\\nb\\r\\n'.splitlines(true) }} {{ '\\n'.splitlines() }}",
                "{}", "['a', 'b', 'c', 'd'] ['a'] [] ['a\\n', '\\n', 'b\\r\\n'] ['']");
    jinja_check(
        "{{ 'a\\vb\\fc'.splitlines() }} {{ 'a\\u2028b\\u0085c'.splitlines() }} {{ 'a\\x1cb\\x1dc\\x1ed'.splitlines() "
        "}} {{ 'a\\u2029\\n'.splitlines(true) | length }} {{ 'h\\u00e9\\u2030'.splitlines() }}",
        "{}", "['a', 'b', 'c'] ['a', 'b', 'c'] ['a', 'b', 'c', 'd'] 2 ['hé‰']");
    jinja_check("{{ ' a b  c '.rsplit() }} {{ ' a b  c '.rsplit(none, 1) }} {{ 'a  b'.rsplit(maxsplit=0) }}", "{}",
                "['a', 'b', 'c'] [' a b', 'c'] ['a  b']");
}

static void test_lists_and_dicts(void **state)
{
    (void)state;
    static const char vars[] = "{\"d\":{\"a\":1,\"b\":null},\"l\":[1,\"a\",1.0]}";
    jinja_check("{{ l.index('a') }}{{ l.count(1) }}{{ l.count('z') }} {{ (1, 2).index(2) }}{{ (1, 1).count(1) }}", vars,
                "120 12");
    jinja_check("{{ d.get('a') }} {{ d.get('z') }} {{ d.get('z', 5) }} {{ d.get('b', 5) }} {{ {1: 'x'}.get(1) }}", vars,
                "1 None 5 None x");
    jinja_check(
        "{{ d.keys() | list }} {{ d.values() | list }} {{ d.items() | list }} {{ d.copy() }} {{ d.copy() == d }}", vars,
        "['a', 'b'] [1, None] [('a', 1), ('b', None)] {'a': 1, 'b': None} True");
}

static void test_loop_methods(void **state)
{
    (void)state;
    jinja_check("{% for x in range(5) %}{{ loop.cycle('a', 'b') }}{% endfor %}", "{}", "ababa");
    jinja_check("{% for x in [1, 1, 2, 2, 1] %}{{ loop.changed(x) }} {% endfor %}", "{}",
                "True False True False True ");
    jinja_check("{% for x in [1, 2] %}{{ loop.changed(x, 'k') }}{{ loop.changed() }} {% endfor %}", "{}",
                "TrueTrue TrueTrue ");
}

static void test_errors_name_the_method(void **state)
{
    (void)state;
    static const char vars[] = "{\"l\":[1],\"d\":{}}";
    jinja_check_error("{{ l.append(1) }}", vars, ENG_EINVAL,
                      "this method of list is not allowed in templates (line 1 of the template)");
    jinja_check_error("{{ l.pop() }}", vars, ENG_EINVAL,
                      "this method of list is not allowed in templates (line 1 of the template)");
    jinja_check_error("{{ d.update({}) }}", vars, ENG_EINVAL,
                      "this method of dict is not allowed in templates (line 1 of the template)");
    jinja_check_error("{{ d.pop('a') }}", vars, ENG_EINVAL,
                      "this method of dict is not allowed in templates (line 1 of the template)");
    jinja_check_error("{{ 'a'.split('') }}", vars, ENG_EINVAL, "split: empty separator (line 1 of the template)");
    jinja_check_error("{{ 'a'.rsplit('') }}", vars, ENG_EINVAL, "rsplit: empty separator (line 1 of the template)");
    jinja_check_error("{{ 'a'.join([1]) }}", vars, ENG_EINVAL, "join needs a string, not int (line 1 of the template)");
    jinja_check_error("{{ 'a'.join(5) }}", vars, ENG_EINVAL, "'int' object is not iterable (line 1 of the template)");
    jinja_check_error("{{ 'a'.strip(1) }}", vars, ENG_EINVAL, "strip needs a string, not int (line 1 of the template)");
    jinja_check_error("{{ 'a'.replace('a') }}", vars, ENG_EINVAL,
                      "replace: 'new' is undefined (line 1 of the template)");
    jinja_check_error("{{ 'a'.startswith(1) }}", vars, ENG_EINVAL,
                      "startswith needs a string, not int (line 1 of the template)");
    jinja_check_error("{{ 'a'.startswith(['a']) }}", vars, ENG_EINVAL,
                      "startswith needs a string, not list (line 1 of the template)");
    jinja_check_error("{{ l.index(9) }}", vars, ENG_EINVAL,
                      "index: the value is not in the list (line 1 of the template)");
    jinja_check_error("{{ 'a'.split(1) }}", vars, ENG_EINVAL, "split needs a string, not int (line 1 of the template)");
    jinja_check_error("{{ 'a'.split('a', 'b') }}", vars, ENG_EINVAL,
                      "split needs an integer, not str (line 1 of the template)");
    jinja_check_error("{{ 'a'.upper(1) }}", vars, ENG_EINVAL,
                      "upper takes at most 0 arguments (line 1 of the template)");
    jinja_check_error("{{ d.get([]) }}", vars, ENG_EINVAL, "a list cannot be a key (line 1 of the template)");
    jinja_check_error("{{ 'a'.foo() }}", vars, ENG_EINVAL, "'foo' is undefined (line 1 of the template)");
    jinja_check_error("{% for x in l %}{{ loop.cycle() }}{% endfor %}", vars, ENG_EINVAL,
                      "loop.cycle needs values (line 1 of the template)");
    jinja_check_error("{{ d.get() }}", vars, ENG_EINVAL, "get needs a key (line 1 of the template)");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_strings),
        cmocka_unit_test(test_splits),
        cmocka_unit_test(test_lists_and_dicts),
        cmocka_unit_test(test_loop_methods),
        cmocka_unit_test(test_errors_name_the_method),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
