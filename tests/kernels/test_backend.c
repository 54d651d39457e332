#include "cmocka_util.h"
#include "kern_util.h"

static void test_every_code_has_a_phrase(void **state)
{
    (void)state;
    assert_string_equal(krn_strerror(0), "success");
    assert_string_equal(krn_strerror(KRN_ENOMEM), "out of device memory");
    assert_string_equal(krn_strerror(KRN_EINVAL), "argument out of range");
    assert_string_equal(krn_strerror(KRN_ENOTSUP), "not supported by this backend");
    assert_string_equal(krn_strerror(KRN_EDEVICE), "device failure");
    assert_string_equal(krn_strerror(-99), "unknown kernel error");
}

static void test_type_sizes(void **state)
{
    (void)state;
    assert_int_equal(krn_type_size(KRN_F32), 4);
    assert_int_equal(krn_type_size(KRN_BF16), 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_code_has_a_phrase),
        cmocka_unit_test(test_type_sizes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
