#include "cmocka_util.h"
#include "kern_util.h"
#include "scalar.h"

#include <math.h>

static void test_exp_is_within_two_ulp(void **state)
{
    (void)state;
    for (int i = -87000; i <= 88000; i++) {
        float x = (float)i / 1000;
        double expected = exp((double)x);
        assert_near(krn_expf(x), expected, 2.4e-7 * expected);
    }
}

static void test_exp_at_the_edges(void **state)
{
    (void)state;
    assert_true(krn_expf(0) == 1);
    assert_true(krn_expf(-100) == 0);
    assert_true(krn_expf(-INFINITY) == 0);
    assert_true(krn_expf(1000) > 1e38f && isfinite(krn_expf(1000)));
    assert_true(isnan(krn_expf(NAN)));
}

static void test_silu_of_known_values(void **state)
{
    (void)state;
    struct krn_backend *b = open_cpu(1, 0);
    float gate[6] = {0, 1, -1, 200, -200, 5}, up[6] = {3, 2, 2, 1, 1, 0}, y[6];
    assert_int_equal(b->swiglu(b->ctx, y, gate, up, 2, 3), 0);
    assert_true(y[0] == 0);
    assert_near(y[1], 2 / (1 + exp(-1)), 1e-6);
    assert_near(y[2], -2 / (1 + exp(1)), 1e-6);
    assert_true(y[3] == 200);
    assert_near(y[4], 0, 1e-30);
    assert_true(y[5] == 0);
    b->close(b->ctx);
}

static void test_in_place_and_on_threads_it_is_the_same(void **state)
{
    (void)state;
    enum { ROWS = 100, WIDTH = 701 };
    struct krn_backend *one = open_cpu(1, ~0u), *three = open_cpu(3, ~0u);
    struct random random = {.state = 6};
    float *gate = floats(ROWS * WIDTH), *up = floats(ROWS * WIDTH), *y = floats(ROWS * WIDTH), alone[WIDTH];
    fill_random(&random, gate, ROWS * WIDTH);
    fill_random(&random, up, ROWS * WIDTH);
    assert_int_equal(three->swiglu(three->ctx, y, gate, up, ROWS, WIDTH), 0);
    for (int r = 0; r < ROWS; r++) {
        assert_int_equal(one->swiglu(one->ctx, alone, gate + r * WIDTH, up + r * WIDTH, 1, WIDTH), 0);
        assert_true(same_bits(alone, y + r * WIDTH, WIDTH));
    }
    assert_int_equal(three->swiglu(three->ctx, gate, gate, up, ROWS, WIDTH), 0);
    assert_true(same_bits(gate, y, ROWS * WIDTH));
    free(gate);
    free(up);
    free(y);
    one->close(one->ctx);
    three->close(three->ctx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_exp_is_within_two_ulp),
        cmocka_unit_test(test_exp_at_the_edges),
        cmocka_unit_test(test_silu_of_known_values),
        cmocka_unit_test(test_in_place_and_on_threads_it_is_the_same),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
