#include "fixture.h"
#include "text/stop.h"

static struct eng_stop *new_stop(const char *const *strings, size_t n)
{
    struct eng_stop *s = NULL;
    assert_int_equal(eng_stop_new(strings, n, &s), 0);
    return s;
}

static void test_holds_back_a_beginning(void **state)
{
    (void)state;
    const char *stops[] = {"STOP"};
    struct eng_stop *s = new_stop(stops, 1);
    struct eng_buf out = {0};
    int match;
    assert_int_equal(eng_stop_push(s, "abcST", 5, &out, &match), 0);
    assert_int_equal(match, -1);
    assert_string_equal(out.data, "abc");
    assert_int_equal(eng_stop_held(s), 2);
    assert_int_equal(eng_stop_push(s, "AR ST", 5, &out, &match), 0);
    assert_string_equal(out.data, "abcSTAR ");
    assert_int_equal(eng_stop_push(s, "OPxyz", 5, &out, &match), 0);
    assert_int_equal(match, 0);
    assert_string_equal(out.data, "abcSTAR ");
    // Later text is swallowed.
    assert_int_equal(eng_stop_push(s, "more", 4, &out, &match), 0);
    assert_int_equal(match, 0);
    assert_int_equal(eng_stop_finish(s, &out), 0);
    assert_string_equal(out.data, "abcSTAR ");
    eng_buf_free(&out);
    eng_stop_free(s);
}

static void test_finish_flushes(void **state)
{
    (void)state;
    const char *stops[] = {"\n\n", "\nUser:"};
    struct eng_stop *s = new_stop(stops, 2);
    struct eng_buf out = {0};
    int match;
    assert_int_equal(eng_stop_push(s, "a\nUse", 5, &out, &match), 0);
    assert_string_equal(out.data, "a");
    assert_int_equal(eng_stop_finish(s, &out), 0);
    assert_string_equal(out.data, "a\nUse");
    eng_buf_free(&out);
    eng_stop_free(s);
}

static void test_no_stops_pass_all(void **state)
{
    (void)state;
    struct eng_stop *s = new_stop(NULL, 0);
    struct eng_buf out = {0};
    int match;
    assert_int_equal(eng_stop_push(s, "abc", 3, &out, &match), 0);
    assert_int_equal(match, -1);
    assert_string_equal(out.data, "abc");
    eng_buf_free(&out);
    eng_stop_free(s);
}

static void test_of_two_that_end_together_the_longest(void **state)
{
    (void)state;
    const char *stops[] = {"bc", "abc", "c"};
    struct eng_stop *s = new_stop(stops, 3);
    struct eng_buf out = {0};
    int match;
    assert_int_equal(eng_stop_push(s, "xabcd", 5, &out, &match), 0);
    assert_int_equal(match, 1);
    assert_string_equal(out.data, "x");
    eng_buf_free(&out);
    eng_stop_free(s);
}

static void test_refuses_empty_and_invalid(void **state)
{
    (void)state;
    const char *empty[] = {"a", ""}, *invalid[] = {"\xC3"};
    struct eng_stop *s = NULL;
    assert_int_equal(eng_stop_new(empty, 2, &s), ENG_EINVAL);
    assert_int_equal(eng_stop_new(invalid, 1, &s), ENG_EINVAL);
    assert_null(s);
    eng_stop_free(NULL);
}

// Where the whole text must be cut: the first end of a stop string, of several there the longest. SIZE_MAX: nowhere.
static size_t expected_cut(const char *text, size_t len, const char *const *stops, size_t n, int *ret_match)
{
    for (size_t end = 1; end <= len; end++) {
        size_t longest = 0;
        for (size_t i = 0; i < n; i++) {
            size_t l = strlen(stops[i]);
            if (l <= end && l > longest && !memcmp(text + end - l, stops[i], l)) {
                longest = l;
                *ret_match = (int)i;
            }
        }
        if (longest)
            return end - longest;
    }
    *ret_match = -1;
    return SIZE_MAX;
}

static void test_any_split_gives_the_same(void **state)
{
    (void)state;
    uint64_t seed = 3;
    for (int round = 0; round < 20000; round++) {
        char text[24], strings[3][6];
        const char *stops[3];
        size_t len = next_random(&seed) % sizeof text, n = next_random(&seed) % 4;
        for (size_t i = 0; i < len; i++)
            text[i] = "ab"[next_random(&seed) % 2];
        for (size_t i = 0; i < n; i++) {
            size_t l = 1 + next_random(&seed) % 5;
            for (size_t k = 0; k < l; k++)
                strings[i][k] = "ab"[next_random(&seed) % 2];
            strings[i][l] = '\0';
            stops[i] = strings[i];
        }
        int want, match = -1;
        size_t cut = expected_cut(text, len, stops, n, &want);
        struct eng_stop *s = new_stop(stops, n);
        struct eng_buf out = {0};
        for (size_t at = 0; at < len;) {
            size_t part = 1 + next_random(&seed) % 4;
            part = part < len - at ? part : len - at;
            assert_int_equal(eng_stop_push(s, text + at, part, &out, &match), 0);
            at += part;
            if (match < 0) {
                assert_int_equal(out.len + eng_stop_held(s), at);
                // Nothing is held back that cannot begin a stop string.
                bool begins = eng_stop_held(s) == 0;
                for (size_t i = 0; i < n; i++)
                    begins |= !strncmp(stops[i], text + out.len, eng_stop_held(s));
                assert_true(begins);
            }
        }
        assert_int_equal(eng_stop_finish(s, &out), 0);
        assert_int_equal(match, want);
        assert_int_equal(out.len, cut == SIZE_MAX ? len : cut);
        if (out.len)
            assert_memory_equal(out.data, text, out.len);
        eng_buf_free(&out);
        eng_stop_free(s);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_holds_back_a_beginning),    cmocka_unit_test(test_finish_flushes),
        cmocka_unit_test(test_no_stops_pass_all),         cmocka_unit_test(test_of_two_that_end_together_the_longest),
        cmocka_unit_test(test_refuses_empty_and_invalid), cmocka_unit_test(test_any_split_gives_the_same),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
