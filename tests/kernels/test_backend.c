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
    assert_int_equal(krn_type_size(KRN_FP8), 1);
    assert_int_equal(krn_type_size(KRN_Q4), 0);
    assert_int_equal(krn_type_size(KRN_Q8), 1);
}

static void test_type_names(void **state)
{
    (void)state;
    assert_string_equal(krn_type_name(KRN_F32), "f32");
    assert_string_equal(krn_type_name(KRN_BF16), "bf16");
    assert_string_equal(krn_type_name(KRN_FP8), "fp8");
    assert_string_equal(krn_type_name(KRN_Q4), "q4");
    assert_string_equal(krn_type_name(KRN_Q8), "q8");
    assert_string_equal(krn_type_name(KRN_N_TYPES), "?");
}

static void test_a_matrix_counts_its_scales(void **state)
{
    (void)state;
    assert_int_equal(krn_matrix_bytes(KRN_F32, 3, 5), 60);
    assert_int_equal(krn_matrix_bytes(KRN_BF16, 3, 5), 30);
    assert_int_equal(krn_matrix_bytes(KRN_FP8, 3, 5), 3 * (5 + 4));
    assert_int_equal(krn_matrix_bytes(KRN_Q8, 3, 5), 3 * (5 + 4));
    assert_int_equal(krn_matrix_bytes(KRN_Q4, 3, 64), 3 * (32 + 2 * 2));
    assert_int_equal(krn_matrix_bytes(KRN_Q4, 3, 65), 3 * (33 + 3 * 2));
    assert_int_equal(krn_matrix_bytes(KRN_BF16, 200000, 50000), 20000000000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_code_has_a_phrase),
        cmocka_unit_test(test_type_sizes),
        cmocka_unit_test(test_type_names),
        cmocka_unit_test(test_a_matrix_counts_its_scales),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
