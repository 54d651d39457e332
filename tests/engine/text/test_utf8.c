#include "fixture.h"

static void test_valid_and_invalid(void **state)
{
    (void)state;
    static const char *const good[] = {
        "", "abc", "\xC3\xA9", "\xE4\xBD\xA0", "\xF0\x9F\x98\x80", "\xF4\x8F\xBF\xBF", "\xED\x9F\xBF"};
    static const char *const bad[] = {"\x80",
                                      "\xC3",
                                      "\xC0\xAF",
                                      "\xC1\xBF",
                                      "\xE0\x9F\xBF",
                                      "\xED\xA0\x80",
                                      "\xF0\x8F\xBF\xBF",
                                      "\xF4\x90\x80\x80",
                                      "\xF5\x80\x80\x80",
                                      "\xFF",
                                      "a\xE4\xBD",
                                      "\xE4\xBDx"};
    for (size_t i = 0; i < sizeof good / sizeof *good; i++)
        assert_true(eng_utf8_valid(good[i], strlen(good[i])));
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_false(eng_utf8_valid(bad[i], strlen(bad[i])));
    assert_true(eng_utf8_valid(NULL, 0));
}

static void test_every_code_point_round_trips(void **state)
{
    (void)state;
    for (uint32_t cp = 0; cp <= 0x10FFFF; cp++) {
        if (cp >= 0xD800 && cp <= 0xDFFF)
            continue;
        char text[4];
        uint32_t back;
        enum eng_utf8_status status;
        size_t n = eng_utf8_encode(cp, text);
        assert_int_equal(eng_utf8_next(text, n, &back, &status), n);
        assert_true(status == ENG_UTF8_OK && back == cp);
        if (n > 1) {
            assert_int_equal(eng_utf8_next(text, n - 1, &back, &status), n - 1);
            assert_int_equal(status, ENG_UTF8_INCOMPLETE);
        }
    }
}

static void test_replaces_maximal_subparts(void **state)
{
    (void)state;
    // Unicode 15, table 3-8, and what Python's decode(errors="replace") gives.
    static const struct {
        const char *in;
        const char *out;
    } cases[] = {
        {"\xC0\xAF\xE0\x80\xBF\xF0\x81\x82\x41", "\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\x41"},
        {"\xED\xA0\x80\xED\xBF\xBF\xED\xAF\x41", "\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\x41"},
        {"\xF4\x91\x92\x93\xFF\x41\x80\xBF\x42", "\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\x41\uFFFD\uFFFD\x42"},
        {"\xE1\x80\xE2\xF0\x91\x92\xF1\xBF\x41", "\uFFFD\uFFFD\uFFFD\uFFFD\x41"},
        {"ok\xF0\x9F\x98", "ok\uFFFD"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct eng_buf out = {0};
        assert_int_equal(eng_utf8_append_lossy(&out, cases[i].in, strlen(cases[i].in)), 0);
        assert_string_equal(out.data, cases[i].out);
        eng_buf_free(&out);
    }
}

static void test_counts_and_spaces(void **state)
{
    (void)state;
    assert_int_equal(eng_utf8_count("a\xC3\xA9\xE4\xBD\xA0\xF0\x9F\x98\x80", 10), 4);
    int n = 0;
    for (uint32_t cp = 0; cp <= 0x10FFFF; cp++)
        n += eng_utf8_is_space(cp);
    assert_int_equal(n, 25);
    assert_false(eng_utf8_is_space(0x180E));
    char text[4];
    assert_int_equal(eng_utf8_encode(0xD800, text), 3);
    assert_memory_equal(text, "\uFFFD", 3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_valid_and_invalid),
        cmocka_unit_test(test_every_code_point_round_trips),
        cmocka_unit_test(test_replaces_maximal_subparts),
        cmocka_unit_test(test_counts_and_spaces),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
