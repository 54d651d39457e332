// engine/text/jinja_lexer.c: white space, comments, raw, strings, numbers, and errors with their lines. What Python's
// jinja2 gives is the measure.
#include "fixture.h"

static void test_comments_and_their_lines_go(void **state)
{
    (void)state;
    jinja_check("a{# x #}b", "{}", "ab");
    jinja_check("a{# {{ x }} {% if %} #}b", "{}", "ab");
    jinja_check("  {# c #}\nb", "{}", "b");
    jinja_check("a {#- c -#}  b", "{}", "ab");
    jinja_check("a\n  {#+ c +#}\nb", "{}", "a\n  \nb");
    jinja_check("{##}x", "{}", "x");
    jinja_check("a{#-#} b", "{}", "a b");
    jinja_check("{#- #}", "{}", "");
    jinja_check("a {#+#} b", "{}", "a  b");
}

static void test_blocks_trim_their_line(void **state)
{
    (void)state;
    jinja_check("  {% if true %}\nx\n  {% endif %}\ny", "{}", "x\ny");
    jinja_check("a  {% if true %}\nx{% endif %}", "{}", "a  x");
    jinja_check("\t{% if true +%}\nx{% endif %}", "{}", "\nx");
    jinja_check("  {%+ if true %}x{% endif %}", "{}", "  x");
    jinja_check("a\n\n  {%- if true -%}  \n x {%- endif %} y", "{}", "ax y");
    jinja_check("{% if true %}\n\nx{% endif %}", "{}", "\nx");
    jinja_check("{{ 1 }}\n{{- 2 -}}\n{{ 3 }}", "{}", "123");
    jinja_check("  {{ 1 }}\n  x", "{}", "  1\n  x");
    jinja_check("{% if true %} \nx{% endif %}", "{}", " \nx");
}

static void test_newlines_become_one_kind(void **state)
{
    (void)state;
    jinja_check("a\r\nb\rc\n", "{}", "a\nb\nc");
    jinja_check("a\n\n", "{}", "a\n");
    jinja_check("\n", "{}", "");
    jinja_check("\r\n", "{}", "");
    jinja_check("a\r", "{}", "a");
    jinja_check("a\n\r\n", "{}", "a\n");
    jinja_check("{% if true %}\r\nx{% endif %}", "{}", "x");
}

static void test_raw_stands_as_it_is(void **state)
{
    (void)state;
    jinja_check("{% raw %}{{ x }}{% endraw %}", "{}", "{{ x }}");
    jinja_check("{%raw%}{# c #}{%endraw%}", "{}", "{# c #}");
    jinja_check("a  {%- raw -%}  {% x %}  {%- endraw -%}  b", "{}", "a{% x %}b");
    jinja_check("{% raw %}\n x\n{% endraw %}\ny", "{}", "\n x\ny");
    jinja_check("{% raw %}{% raw %}{% endraw %}", "{}", "{% raw %}");
    jinja_check("  {% raw %}a{% endraw %}", "{}", "a");
}

static void test_strings_and_escapes(void **state)
{
    (void)state;
    jinja_check("{{ 'a\\tb\\\\c\\'d\\\"' }}", "{}", "a\tb\\c'd\"");
    jinja_check("{{ \"\\x41\\u00e9\\U0001F600\" }}", "{}", "Aé😀");
    jinja_check("{{ 'a\\\nb' }}", "{}", "ab");
    jinja_check("{{ '%}' }}{{ \"}}\" }}{{ '{#' }}", "{}", "%}}}{#");
    jinja_check("{{ 'a' 'b' \"c\" }}", "{}", "abc");
    jinja_check("{{ 'two\nlines' }}", "{}", "two\nlines");
    jinja_check("{{ '\\d\\.' }}", "{}", "\\d\\.");
    jinja_check("{{ '' }}", "{}", "");
}

static void test_numbers(void **state)
{
    (void)state;
    jinja_check("{{ 1_000 }} {{ 1_0.5 }} {{ 1e3 }} {{ 2E-2 }} {{ 0.5 }} {{ 1.5e+2 }}", "{}",
                "1000 10.5 1000.0 0.02 0.5 150.0");
    jinja_check("{{ [[1, 2]].0.1 }}", "{}", "2");
    jinja_check("{{ 00 }}", "{}", "0");
    jinja_check("{{ 999999999999999999 }}", "{}", "999999999999999999");
    jinja_check("{{ 1if true }}", "{}", "1");
}

static void test_braces_inside_a_tag(void **state)
{
    (void)state;
    jinja_check("{{ {'a': {'b': 1}}.a.b }}", "{}", "1");
    jinja_check("{{ {'a': 1}}}", "{}", "{'a': 1}");
    jinja_check("{{{'a': 1}['a']}}", "{}", "1");
    jinja_check("{ {{ 1 }} } {x}", "{}", "{ 1 } {x}");
    jinja_check("{", "{}", "{");
    jinja_check("a{", "{}", "a{");
    jinja_check("{{ 5 %3 }}", "{}", "2");
    jinja_check("{{ '-' }}{{ -1 }}{{- -1 -}}", "{}", "--1-1");
}

static void test_errors_name_the_line(void **state)
{
    (void)state;
    jinja_check_error("a\n{# no end", "{}", ENG_EFORMAT, "a comment has no end (line 2 of the template)");
    jinja_check_error("{# c #}\n\n{#{#", "{}", ENG_EFORMAT, "a comment has no end (line 3 of the template)");
    jinja_check_error("x\n{{ 'no end", "{}", ENG_EFORMAT, "a string has no end (line 2 of the template)");
    jinja_check_error("{{ 'a\n\n' ~ \"b", "{}", ENG_EFORMAT, "a string has no end (line 3 of the template)");
    jinja_check_error("{{ 1", "{}", ENG_EFORMAT, "a tag has no }} (line 1 of the template)");
    jinja_check_error("\n{% if x", "{}", ENG_EFORMAT, "a tag has no %} (line 2 of the template)");
    jinja_check_error("{% raw %}\n{{", "{}", ENG_EFORMAT, "a raw block has no endraw (line 1 of the template)");
    jinja_check_error("{{ (1] }}", "{}", ENG_EFORMAT, "unexpected ']' (line 1 of the template)");
    jinja_check_error("{{ 1) }}", "{}", ENG_EFORMAT, "unexpected ')' (line 1 of the template)");
    jinja_check_error("\n\n{{ a ! b }}", "{}", ENG_EFORMAT, "unexpected character '!' (line 3 of the template)");
    jinja_check_error("{{ a & b }}", "{}", ENG_EFORMAT, "unexpected character '&' (line 1 of the template)");
    jinja_check_error("{{ 'x\\x4' }}", "{}", ENG_EFORMAT, "a string has a malformed \\x (line 1 of the template)");
    jinja_check_error("{{ '\\uZZZZ' }}", "{}", ENG_EFORMAT, "a string has a malformed \\u (line 1 of the template)");
    jinja_check_error("{{ '\\U00110000' }}", "{}", ENG_EFORMAT,
                      "a string has a malformed \\U (line 1 of the template)");
    jinja_check_error("{{ 9999999999999999999 }}", "{}", ENG_EFORMAT,
                      "the number 9999999999999999999 is too large (line 1 of the template)");
    jinja_check_error("{{ a\n.\n? }}", "{}", ENG_EFORMAT, "unexpected character '?' (line 3 of the template)");
    jinja_check_error("{{ 'x\\", "{}", ENG_EFORMAT, "a string has no end (line 1 of the template)");
    jinja_check_error("{{ @ }}", "{}", ENG_EFORMAT, "unexpected character '@' (line 1 of the template)");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_comments_and_their_lines_go), cmocka_unit_test(test_blocks_trim_their_line),
        cmocka_unit_test(test_newlines_become_one_kind),    cmocka_unit_test(test_raw_stands_as_it_is),
        cmocka_unit_test(test_strings_and_escapes),         cmocka_unit_test(test_numbers),
        cmocka_unit_test(test_braces_inside_a_tag),         cmocka_unit_test(test_errors_name_the_line),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
