// engine/base/buf.c
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/buf.h"
#include "base/err.h"

static void test_keeps_bytes_and_a_nul(void **state)
{
    (void)state;
    struct eng_buf b = {0};
    assert_int_equal(eng_buf_append(&b, "a\0b", 3), 0);
    assert_int_equal(eng_buf_appendz(&b, "cd"), 0);
    assert_int_equal(b.len, 5);
    assert_memory_equal(b.data, "a\0bcd", 6);
    eng_buf_reset(&b);
    assert_int_equal(b.len, 0);
    assert_string_equal(b.data, "");
    eng_buf_free(&b);
    assert_null(b.data);
}

static void test_grows_over_many_appends(void **state)
{
    (void)state;
    struct eng_buf b = {0};
    for (int i = 0; i < 20000; i++)
        assert_int_equal(eng_buf_printf(&b, "%d,", i), 0);
    assert_int_equal(strncmp(b.data, "0,1,2,3,", 8), 0);
    assert_string_equal(b.data + b.len - 6, "19999,");
    eng_buf_free(&b);
}

static void test_take_gives_the_memory_away(void **state)
{
    (void)state;
    struct eng_buf b = {0};
    assert_null(eng_buf_take(&b));
    assert_int_equal(eng_buf_appendz(&b, "x"), 0);
    char *s = eng_buf_take(&b);
    assert_string_equal(s, "x");
    assert_null(b.data);
    assert_int_equal(b.cap, 0);
    free(s);
}

static void test_absurd_sizes_fail_and_change_nothing(void **state)
{
    (void)state;
    struct eng_buf b = {0};
    assert_int_equal(eng_buf_appendz(&b, "x"), 0);
    assert_int_equal(eng_buf_reserve(&b, SIZE_MAX), ENG_ENOMEM);
    assert_int_equal(eng_buf_reserve(&b, SIZE_MAX / 2), ENG_ENOMEM);
    assert_string_equal(b.data, "x");
    eng_buf_free(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_keeps_bytes_and_a_nul),
        cmocka_unit_test(test_grows_over_many_appends),
        cmocka_unit_test(test_take_gives_the_memory_away),
        cmocka_unit_test(test_absurd_sizes_fail_and_change_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
