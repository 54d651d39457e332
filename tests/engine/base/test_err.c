// engine/base/err.c
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "base/err.h"
#include "kernels.h"

static void test_every_code_has_its_phrase(void **state)
{
    (void)state;
#define X(name, code, text) assert_string_equal(eng_strerror(name), text);
    ENG_ERRORS(X)
    KRN_ERRORS(X)
#undef X
    assert_non_null(eng_strerror(12345));
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_every_code_has_its_phrase)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
