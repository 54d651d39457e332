// kernels/cpu/add_ref.c, and the op over it.
#include "cmocka_util.h"
#include "kern_util.h"
#include "ops.h"

#include <math.h>

static void test_only_the_range_changes(void **state)
{
    (void)state;
    float x[6] = {1, 2, 3, 4, 5, 6}, y[6] = {10, 20, 30, 40, 50, 60};
    krn_add_ref(x, y, 2, 4);
    float expected[6] = {1, 2, 33, 44, 5, 6};
    assert_memory_equal(x, expected, sizeof x);
    krn_add_ref(x, y, 3, 3);
    assert_memory_equal(x, expected, sizeof x);
}

static void test_sums_are_those_of_f32(void **state)
{
    (void)state;
    float x[5] = {16777216, 1e38f, INFINITY, INFINITY, -0.0f}, y[5] = {1, 3e38f, 1, -INFINITY, -0.0f};
    krn_add_ref(x, y, 0, 5);
    assert_true(x[0] == 16777216 && x[1] == INFINITY && x[2] == INFINITY);
    assert_true(isnan(x[3]));
    assert_true(x[4] == 0 && signbit(x[4]));
}

static void test_a_vector_may_be_added_to_itself(void **state)
{
    (void)state;
    float x[3] = {1, -2, 0.5f}, expected[3] = {2, -4, 1};
    krn_add_ref(x, x, 0, 3);
    assert_memory_equal(x, expected, sizeof x);
}

static void test_add_is_elementwise(void **state)
{
    (void)state;
    struct krn_backend *b = open_cpu(3, ~0u);
    enum { ROWS = 200, WIDTH = 701 }; // enough for several threads
    float *x = floats(ROWS * WIDTH), *y = floats(ROWS * WIDTH);
    for (int i = 0; i < ROWS * WIDTH; i++) {
        x[i] = (float)i;
        y[i] = 0.5f;
    }
    assert_int_equal(b->add(b->ctx, x, y, ROWS, WIDTH), 0);
    for (int i = 0; i < ROWS * WIDTH; i++)
        assert_true(x[i] == (float)i + 0.5f);
    free(x);
    free(y);
    b->close(b->ctx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_only_the_range_changes),
        cmocka_unit_test(test_sums_are_those_of_f32),
        cmocka_unit_test(test_a_vector_may_be_added_to_itself),
        cmocka_unit_test(test_add_is_elementwise),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
