// kernels/cpu/gather_ref.c, and the op over it.
#include "cmocka_util.h"
#include "kern_util.h"
#include "ops.h"

static void test_only_the_rows_of_the_range_are_written(void **state)
{
    (void)state;
    float x[6] = {1, 2, 3, 4, 5, 6}, y[6] = {0}, expected[6] = {0, 0, 1, 2, 0, 0};
    int32_t rows[3] = {2, 0, 1};
    krn_gather_ref(y, x, rows, 2, 1, 2);
    assert_memory_equal(y, expected, sizeof y);
    krn_gather_ref(y, x, rows, 2, 3, 3);
    assert_memory_equal(y, expected, sizeof y);
}

static void test_bits_are_kept(void **state)
{
    (void)state;
    uint32_t bits[3] = {0x7fc00123, 0x80000000, 0x00000001}; // a NaN with a payload, -0, a subnormal
    float x[3], y[3];
    int32_t rows[3] = {2, 1, 0};
    memcpy(x, bits, sizeof x);
    krn_gather_ref(y, x, rows, 1, 0, 3);
    for (int i = 0; i < 3; i++)
        assert_memory_equal(&y[i], &bits[2 - i], sizeof y[i]);
}

static void test_gather_copies_rows_in_the_order_asked(void **state)
{
    (void)state;
    struct krn_backend *b = open_cpu(3, ~0u);
    float x[6] = {1, 2, 3, 4, 5, 6}, y[6];
    int32_t rows[3] = {2, 0, 2};
    assert_int_equal(b->gather(b->ctx, y, x, rows, 3, 2), 0);
    float expected[6] = {5, 6, 1, 2, 5, 6};
    assert_memory_equal(y, expected, sizeof y);
    b->close(b->ctx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_only_the_rows_of_the_range_are_written),
        cmocka_unit_test(test_bits_are_kept),
        cmocka_unit_test(test_gather_copies_rows_in_the_order_asked),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
