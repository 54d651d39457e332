// The template interpreter by itself: input marking, limits, error texts. What it renders is checked against Python in
// test_jinja_vectors.c.
#include "fixture.h"
#include "text/jinja.h"

static int render(const char *source, const char *vars_json, const char *trusted_json, struct eng_jinja_out *out,
                  char *err, size_t err_size)
{
    struct eng_jinja *j = NULL;
    int rc = eng_jinja_compile(source, strlen(source), &j, err, err_size);
    if (rc)
        return rc;
    cJSON *vars = cJSON_Parse(vars_json), *trusted = trusted_json ? cJSON_Parse(trusted_json) : NULL;
    assert_non_null(vars);
    rc = eng_jinja_render(j, vars, trusted, out, err, err_size);
    cJSON_Delete(vars);
    cJSON_Delete(trusted);
    eng_jinja_free(j);
    return rc;
}

// ---- marking --------------------------------------------------------------------------------------------------------

// want: the output with what came from input in guillemets, written as [ and ].
static void check_marks(const char *source, const char *want)
{
    struct eng_jinja_out out = {0};
    struct eng_buf got = {0};
    char err[256] = "";
    int rc = render(
        source, "{\"u\":\"Ab c\",\"k\":{\"x\":\"v<\"},\"l\":[\"p\",\"q\"],\"n\":5,\"w\":\"  in  \",\"e\":\"\\\"\\n\"}",
        "{\"bos\":\"<s>\"}", &out, err, sizeof err);
    if (rc)
        fail_msg("%s: %s", source, err);
    for (size_t i = 0; i < out.n_spans; i++) {
        const struct eng_text_span *s = &out.spans[i];
        assert_int_equal(
            eng_buf_printf(&got, s->from_input ? "[%.*s]" : "%.*s", (int)(s->end - s->begin), out.text + s->begin), 0);
    }
    assert_string_equal(got.data ? got.data : "", want);
    eng_buf_free(&got);
    eng_jinja_out_free(&out);
}

static void test_marks_follow_the_text(void **state)
{
    (void)state;
    check_marks("a{{ u }}b", "a[Ab c]b");
    check_marks("{{ 'x' + u + 'y' }}{{ u ~ '-' ~ n }}", "x[Ab c]y[Ab c]-5");
    check_marks("{{ u | upper }}{{ u.split(' ')[1] }}{{ u[0] }}{{ u[::-1] }}", "[AB CcAc bA]");
    check_marks("{{ ('<' + w + '>') | replace('in', 'out') }}", "<[  ]out[  ]>");
    check_marks("{{ '<a>'.replace('a', u) }}", "<[Ab c]>");
    check_marks("{{ w | trim }}|{{ ('.' + w).strip('. ') }}", "[in]|[in]");
    check_marks("{% set t %}({{ u }}){% endset %}{{ t[0:3] }}{{ t | length }}", "([Ab]6");
    check_marks("{% macro m(x) %}<{{ x }}>{% endmacro %}{{ m(u) }}{{ m('t') | upper }}", "<[Ab c]><T>");
    check_marks("{{ l | join(', ') }}", "[p], [q]");
    check_marks("{% for k, v in k.items() %}{{ k }}={{ v }}{% endfor %}", "[x]=[v<]");
    check_marks("{{ k | tojson }}", "[{\"x\": \"v<\"}]");
    check_marks("{{ {'t': u} | tojson }}", "[{\"]t[\": \"Ab c\"}]");
    check_marks("{{ e | tojson }}{{ '\"' | tojson }}", "[\"\\\"\\n\"\"]\\\"[\"]");
    check_marks("{{ bos }}{{ u }}{{ bos ~ bos }}", "<s>[Ab c]<s><s>");
    check_marks("{{ k.x | e }}{{ u | title | string }}", "[v&lt;Ab C]");
    check_marks("{{ [u, 'a'] }}", "['[Ab c]', 'a']");
    check_marks("{{ 'é' * 2 }}{{ u * 2 }}", "éé[Ab cAb c]");
    check_marks("{{ n + 1 }}{{ u == 'Ab c' }}", "6True");
    check_marks("{% filter upper %}x{{ u }}{% endfilter %}", "X[AB C]");
    check_marks("", "");
}

static void test_trusted_goes_before_input(void **state)
{
    (void)state;
    struct eng_jinja_out out = {0};
    char err[256] = "";
    assert_int_equal(render("{{ bos }}", "{\"bos\":\"forged\"}", "{\"bos\":\"<s>\"}", &out, err, sizeof err), 0);
    assert_string_equal(out.text, "<s>");
    assert_false(out.spans[0].from_input);
    eng_jinja_out_free(&out);
}

// ---- errors ---------------------------------------------------------------------------------------------------------

static void check_error(const char *source, int rc, const char *says)
{
    struct eng_jinja_out out = {0};
    char err[256] = "";
    int got = render(source, "{\"s\":\"text\",\"l\":[1]}", NULL, &out, err, sizeof err);
    if (got != rc || !strstr(err, says))
        fail_msg("%s: got %d, %s", source, got, err);
    assert_null(out.text);
}

static void test_errors_say_name_and_line(void **state)
{
    (void)state;
    check_error("a\n\n{{ x | frobnicate }}", ENG_EFORMAT, "no filter 'frobnicate' (line 3");
    check_error("{{ x is shiny }}", ENG_EFORMAT, "no test 'shiny' (line 1");
    check_error("\n{% import 'x' as y %}", ENG_EFORMAT, "no tag 'import' here (line 2");
    check_error("\n\n{{ lipsum() }}", ENG_EINVAL, "'lipsum' is undefined (line 3");
    check_error("{{ s.swapcase() }}", ENG_EINVAL, "'swapcase' is undefined");
    check_error("{{ l | map('nope') | list }}", ENG_EINVAL, "no filter 'nope'");
    check_error("{{ l | select('nope') | list }}", ENG_EINVAL, "no test 'nope'");
    check_error("{{ l.append(2) }}", ENG_EINVAL, "not allowed");
    check_error("{% for x in l %}\n{% if x %}\n{% endfor %}", ENG_EFORMAT, "no tag 'endfor'");
    check_error("\n{% for x in l %}", ENG_EFORMAT, "no endfor (line 2");
    check_error("{% for x in l recursive %}{% endfor %}", ENG_EFORMAT, "recursive");
    check_error("{{ raise_exception('Roles must alternate!') }}", ENG_EINVAL, "Roles must alternate!");
    check_error("{{ s.replace(1, 2) }}", ENG_EINVAL, "needs a string, not int");
    check_error("{{ s | trim(1, 2, 3) }}", ENG_EINVAL, "at most 1");
    check_error("{{ s | default(foo=1) }}", ENG_EINVAL, "'foo'");
    check_error("{{ f(*l) }}", ENG_EFORMAT, "not supported");
    check_error("{{ l.ééééééééééééééééééééééééééééééééé }}", ENG_EFORMAT, "");
    check_error("a\xFF", ENG_EFORMAT, "UTF-8");
}

static void test_error_texts_stay_utf8(void **state)
{
    (void)state;
    struct eng_jinja_out out = {0};
    char err[20];
    assert_true(render("{{ raise_exception('\u4F60\u597D\u4F60\u597D\u4F60\u597D\u4F60\u597D') }}", "{}", NULL, &out,
                       err, sizeof err) < 0);
    assert_true(eng_utf8_valid(err, strlen(err)));
    assert_true(render("{{ missing.x }}", "{}", NULL, &out, NULL, 0) < 0);
}

// ---- limits ---------------------------------------------------------------------------------------------------------

static void test_runaway_templates_end(void **state)
{
    (void)state;
    check_error("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", ENG_ELIMIT, "nests deeper");
    check_error("{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}", ENG_ELIMIT, "");
    check_error("{% for a in range(1000000) %}{% endfor %}", ENG_ELIMIT, "range");
    check_error("{{ 'x' * 1000000000000 }}", ENG_ELIMIT, "");
    check_error("{{ [1] * 1000000000000 }}", ENG_ELIMIT, "");
    check_error(
        "{% set ns = namespace(s='0123456789') %}{% for i in range(100) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
        ENG_ELIMIT, "");
    check_error("{% set s = 'x' * 1000000 %}{% for i in range(20) %}{{ s }}{% endfor %}", ENG_ELIMIT, "output");
    check_error("{% set ns = namespace(l=[]) %}{% for i in range(5000) %}{% set ns.l = [ns.l] %}{% endfor %}{{ ns.l }}",
                ENG_ELIMIT, "deeper");
    check_error("{% set ns = namespace(l=[]) %}{% set ns.me = ns %}{{ ns }}", ENG_ELIMIT, "deeper");
    check_error("{% set ns = namespace(a=[], b=[]) %}{% for i in range(5000) %}{% set ns.a = [ns.a] %}{% set ns.b = "
                "[ns.b] %}{% endfor %}{{ ns.a == ns.b }}",
                ENG_ELIMIT, "deeper");
    check_error("{{ 9223372036854775807 }}", ENG_EFORMAT, "too large");
    check_error("{{ 10 ** 100 }}", ENG_ELIMIT, "too large");
    check_error("{{ 999999999999999999 * 999999999999999999 }}", ENG_ELIMIT, "too large");
}

static void test_deep_sources_end(void **state)
{
    (void)state;
    static const char *const openers[] = {"(", "[", "{0:", "-", "not ", "x if "};
    for (size_t i = 0; i < sizeof openers / sizeof *openers; i++) {
        struct eng_buf b = {0};
        char err[256] = "";
        struct eng_jinja *j = NULL;
        assert_int_equal(eng_buf_appendz(&b, "{{ "), 0);
        for (int k = 0; k < 100000; k++)
            assert_int_equal(eng_buf_appendz(&b, openers[i]), 0);
        assert_true(eng_jinja_compile(b.data, b.len, &j, err, sizeof err) < 0);
        eng_buf_free(&b);
    }
    struct eng_buf b = {0};
    char err[256] = "";
    struct eng_jinja *j = NULL;
    for (int k = 0; k < 50000; k++)
        assert_int_equal(eng_buf_appendz(&b, "{% if x %}"), 0);
    assert_true(eng_jinja_compile(b.data, b.len, &j, err, sizeof err) < 0);
    eng_buf_reset(&b);
    assert_int_equal(eng_buf_reserve(&b, ENG_JINJA_MAX_SOURCE + 1), 0);
    memset(b.data, 'x', ENG_JINJA_MAX_SOURCE + 1);
    assert_int_equal(eng_jinja_compile(b.data, ENG_JINJA_MAX_SOURCE + 1, &j, err, sizeof err), ENG_ELIMIT);
    eng_buf_free(&b);
}

static void test_damaged_templates_never_crash(void **state)
{
    (void)state;
    cJSON *json = load_json(DATA "jinja_cases.json");
    const cJSON *c, *vars = cJSON_GetObjectItem(json, "vars");
    uint64_t seed = 21;
    cJSON_ArrayForEach(c, cJSON_GetObjectItem(json, "cases"))
    {
        const char *source = cJSON_GetStringValue(cJSON_GetObjectItem(c, "template"));
        size_t len = strlen(source);
        for (int round = 0; round < 12 && len; round++) {
            char *copy = strdup(source), err[256] = "";
            static const char bytes[] = "{}%#()[]|.,:'\"-+*/~=<>!0a \n\\_";
            for (uint32_t n = 1 + next_random(&seed) % 3; n > 0; n--)
                copy[next_random(&seed) % len] = bytes[next_random(&seed) % (sizeof bytes - 1)];
            struct eng_jinja *j = NULL;
            struct eng_jinja_out out = {0};
            int rc = eng_jinja_compile(copy, len, &j, err, sizeof err);
            if (!rc)
                rc = eng_jinja_render(j, vars, NULL, &out, err, sizeof err);
            assert_true(rc == 0 || err[0] || strstr(copy, "raise"));
            eng_jinja_out_free(&out);
            eng_jinja_free(j);
            free(copy);
        }
    }
    cJSON_Delete(json);
}

static void test_strftime_now_formats_today(void **state)
{
    (void)state;
    struct eng_jinja_out out = {0};
    char err[256] = "";
    assert_int_equal(render("{{ strftime_now('%Y-%m-%d') }}", "{}", NULL, &out, err, sizeof err), 0);
    assert_int_equal(out.len, 10);
    assert_memory_equal(out.text, "20", 2);
    assert_false(out.spans[0].from_input);
    eng_jinja_out_free(&out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_marks_follow_the_text),         cmocka_unit_test(test_trusted_goes_before_input),
        cmocka_unit_test(test_errors_say_name_and_line),      cmocka_unit_test(test_error_texts_stay_utf8),
        cmocka_unit_test(test_runaway_templates_end),         cmocka_unit_test(test_deep_sources_end),
        cmocka_unit_test(test_damaged_templates_never_crash), cmocka_unit_test(test_strftime_now_formats_today),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
