#include "cmocka_util.h"
#include "kern_util.h"
#include "ops.h"
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
    float gate[6] = {0, 1, -1, 200, -200, 5}, up[6] = {3, 2, 2, 1, 1, 0}, y[6];
    struct krn_swiglu_task task = {.y = y, .gate = gate, .up = up, .rows = 1, .width = 6};
    krn_swiglu_ref(&task, 0, 6);
    assert_true(y[0] == 0);
    assert_near(y[1], 2 / (1 + exp(-1)), 1e-6);
    assert_near(y[2], -2 / (1 + exp(1)), 1e-6);
    assert_true(y[3] == 200);
    assert_near(y[4], 0, 1e-30);
    assert_true(y[5] == 0);
    task.y = gate; // in place
    krn_swiglu_ref(&task, 0, 6);
    assert_true(same_bits(gate, y, 6));
}

static void test_gated_is_silu_of_one_product_times_the_other(void **state)
{
    (void)state;
    enum { ROWS = 40, IN = 33, WIDTH = 701 };
    struct krn_backend *one = open_cpu(1, ~0u), *three = open_cpu(3, ~0u);
    struct random random = {.state = 6};
    struct krn_tensor gate = tensor_random(&random, KRN_F32, WIDTH, IN),
                      up = tensor_random(&random, KRN_BF16, WIDTH, IN);
    float *x = floats(ROWS * IN), *y = floats(ROWS * WIDTH), *a = floats(ROWS * WIDTH), *b = floats(ROWS * WIDTH);
    float alone[WIDTH];
    void *const scratch[2] = {a, b};
    fill_random(&random, x, ROWS * IN);
    assert_int_equal(three->gated(three->ctx, y, x, &gate, &up, ROWS, scratch), 0);
    for (int r = 0; r < ROWS; r++) {
        assert_int_equal(one->gated(one->ctx, alone, x + r * IN, &gate, &up, 1, scratch), 0);
        assert_true(same_bits(alone, y + r * WIDTH, WIDTH));
        assert_int_equal(one->linear(one->ctx, a, x + r * IN, &gate, 1, NULL, NULL, NULL), 0);
        assert_int_equal(one->linear(one->ctx, b, x + r * IN, &up, 1, NULL, NULL, NULL), 0);
        struct krn_swiglu_task task = {.y = alone, .gate = a, .up = b, .rows = 1, .width = WIDTH};
        krn_swiglu_ref(&task, 0, WIDTH);
        assert_true(same_bits(alone, y + r * WIDTH, WIDTH));
    }
    free(x);
    free(y);
    free(a);
    free(b);
    tensor_free(&gate);
    tensor_free(&up);
    one->close(one->ctx);
    three->close(three->ctx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_exp_is_within_two_ulp),
        cmocka_unit_test(test_exp_at_the_edges),
        cmocka_unit_test(test_silu_of_known_values),
        cmocka_unit_test(test_gated_is_silu_of_one_product_times_the_other),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
