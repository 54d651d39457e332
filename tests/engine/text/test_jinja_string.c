// engine/text/jinja_string.c: characters, slices, case, replacements and stripping of UTF-8 text. What Python's jinja2
// gives is the measure.
#include "fixture.h"

static void test_slices_count_characters(void **state)
{
    (void)state;
    static const char vars[] = "{\"u\":\"h\\u00e9\\u4f60\\ud83d\\ude00\"}";
    jinja_check("{{ u[1] }}{{ u[3] }}{{ u[-2] }}|{{ u[1:3] }}|{{ u[::-1] }}|{{ u[::2] }}|{{ u[:-1] }}|{{ u[2:1] }}|{{ "
                "u[10:] }}|{{ u[-99:1] }}",
                vars, "é😀你|é你|😀你éh|h你|hé你|||h");
    jinja_check("{{ u[3:0:-1] }}|{{ u[:1:-1] }}|{{ u[::99] }}|{{ u[::-99] }}|{{ u | length }}", vars, "😀你é|😀你|h|😀|4");
    jinja_check(
        "{{ [1, 2, 3][::-1] }} {{ (1, 2, 3)[1:] }} {{ (1, 2, 3)[::-2] }} {{ [1, 2, 3][-2:] }} {{ [1, 2, 3][5:] }} {{ "
        "''[1:] }}|{{ 'abc'[999999999999:] }}|{{ 'abc'[-999999999999:2] }}|{{ 'abc'[::999999999999999999] }}",
        vars, "[3, 2, 1] (2, 3) (3, 1) [2, 3] [] ||ab|a");
}

static void test_stripping(void **state)
{
    (void)state;
    static const char vars[] = "{\"u\":\"\\u00a0\\u3000x\\u2003 \"}";
    jinja_check("{{ u | trim }}|{{ '\\u00e9a\\u00e9' | trim('\\u00e9') }}|{{ '\\x1ca\\x1f' | trim }}|{{ '\\u200ba' | "
                "trim | length }}|{{ '   ' | trim }}|{{ 'aXb' | trim('ab') }}|{{ 'abc' | trim('') }}|",
                vars, "x|a|a|2||X|abc|");
}

static void test_replacing(void **state)
{
    (void)state;
    static const char vars[] = "{\"u\":\"\\u00e9\\u4f60\"}";
    jinja_check("{{ u | replace('', '.') }} {{ u | replace('\\u4f60', 'x') }} {{ 'aaa' | replace('a', 'aa') }} {{ "
                "'abc' | replace('b', '') }} {{ '' | replace('', 'x') }} {{ '' | replace('a', 'x') }}| {{ 'aXa' | "
                "replace('a', 'b', 0) }} {{ 'ab' | replace('', '-', 1) }} {{ 'ab' | replace('abc', 'x') }}",
                vars, ".é.你. éx aaaaaa ac x | aXa -ab ab");
}

static void test_letter_case(void **state)
{
    (void)state;
    jinja_check("{{ 'hello wORLD-foo (bar) [baz] {q} <z' | title }}|{{ 'hello wORLD-foo 1st o\\'x' | title }}", "{}",
                "Hello World-Foo (Bar) [Baz] {Q} <Z|Hello World-Foo 1st O'x");
    jinja_check(
        "{{ \"they're 3rd x_y\".title() }} {{ 'ABC def'.capitalize() }} {{ '1a'.capitalize() }} {{ ''.title() }}", "{}",
        "They'Re 3Rd X_Y Abc def 1a ");
}

static void test_searching(void **state)
{
    (void)state;
    static const char vars[] = "{\"u\":\"\\u00e9a\\u00e9a\"}";
    jinja_check("{{ u.find('a') }}{{ u.rfind('a') }}{{ u.rfind('\\u00e9') }}{{ 'a' in u }}{{ '\\u00e9a' in u }}{{ '' "
                "in '' }}{{ 'abc'.rfind('abcd') }}{{ u.find('') }}{{ u.rfind('') }}",
                vars, "132TrueTrueTrue-104");
}

static void test_errors(void **state)
{
    (void)state;
    jinja_check_error("{{ 'abc'[::0] }}", "{}", ENG_EINVAL, "slice step cannot be zero (line 1 of the template)");
    jinja_check_error("{{ none[1:] }}", "{}", ENG_EINVAL, "a NoneType cannot be sliced (line 1 of the template)");
    jinja_check_error("{{ 5[:] }}", "{}", ENG_EINVAL, "a int cannot be sliced (line 1 of the template)");
    jinja_check_error("{{ {'a': 1}[1:] }}", "{}", ENG_EINVAL, "a dict cannot be sliced (line 1 of the template)");
    jinja_check_error("{{ true[::2] }}", "{}", ENG_EINVAL, "a bool cannot be sliced (line 1 of the template)");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_slices_count_characters),
        cmocka_unit_test(test_stripping),
        cmocka_unit_test(test_replacing),
        cmocka_unit_test(test_letter_case),
        cmocka_unit_test(test_searching),
        cmocka_unit_test(test_errors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
