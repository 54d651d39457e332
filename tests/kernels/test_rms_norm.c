#include "cmocka_util.h"
#include "kern_util.h"

#include <math.h>

static void test_a_known_row(void **state)
{
    (void)state;
    struct krn_backend *b = open_cpu(1, 0);
    float x[2] = {3, 4}, y[2], w[2] = {1, 2};
    struct krn_tensor weight = {.data = w, .type = KRN_F32, .rows = 1, .cols = 2};
    assert_int_equal(b->rms_norm(b->ctx, y, x, NULL, &weight, 0, 1, 2), 0);
    assert_near(y[0], 3 / sqrt(12.5), 1e-6);
    assert_near(y[1], 8 / sqrt(12.5), 1e-6);
    assert_true(x[0] == 3 && x[1] == 4);
    b->close(b->ctx);
}

static void test_matches_double_for_odd_widths_and_both_types(void **state)
{
    (void)state;
    static const int32_t widths[] = {1, 7, 8, 9, 31, 256, 703};
    struct krn_backend *b = open_cpu(2, ~0u);
    struct random random = {.state = 2};
    for (int i = 0; i < 7; i++)
        for (int t = 0; t < 2; t++) {
            int32_t width = widths[i];
            struct krn_tensor weight = tensor_random(&random, t ? KRN_BF16 : KRN_F32, 1, width);
            float *x = floats(2 * (size_t)width), *y = floats(2 * (size_t)width);
            fill_random(&random, x, 2 * (size_t)width);
            assert_int_equal(b->rms_norm(b->ctx, y, x, NULL, &weight, 1e-5f, 2, width), 0);
            for (int r = 0; r < 2; r++) {
                double sum = 0;
                for (int32_t c = 0; c < width; c++)
                    sum += (double)x[r * width + c] * (double)x[r * width + c];
                for (int32_t c = 0; c < width; c++) {
                    double expected =
                        (double)x[r * width + c] / sqrt(sum / width + 1e-5) * (double)tensor_at(&weight, 0, c);
                    assert_near(y[r * width + c], expected, 1e-7 + 4e-7 * fabs(expected));
                }
            }
            free(x);
            free(y);
            tensor_free(&weight);
        }
    b->close(b->ctx);
}

static void test_the_addition_stays_in_x(void **state)
{
    (void)state;
    struct krn_backend *b = open_cpu(1, 0);
    float x[2] = {1, 1}, add[2] = {2, 3}, y[2], w[2] = {1, 1};
    struct krn_tensor weight = {.data = w, .type = KRN_F32, .rows = 2, .cols = 1};
    assert_int_equal(b->rms_norm(b->ctx, y, x, add, &weight, 0, 1, 2), 0);
    assert_true(x[0] == 3 && x[1] == 4);
    assert_near(y[0], 3 / sqrt(12.5), 1e-6);
    b->close(b->ctx);
}

static void test_a_row_does_not_depend_on_the_others_or_on_threads(void **state)
{
    (void)state;
    enum { ROWS = 300, WIDTH = 700 };
    struct krn_backend *one = open_cpu(1, ~0u), *three = open_cpu(3, ~0u);
    struct random random = {.state = 4};
    struct krn_tensor weight = tensor_random(&random, KRN_BF16, 1, WIDTH);
    float *x = floats(ROWS * WIDTH), *y = floats(ROWS * WIDTH), alone[WIDTH];
    fill_random(&random, x, ROWS * WIDTH);
    assert_int_equal(three->rms_norm(three->ctx, y, x, NULL, &weight, 1e-5f, ROWS, WIDTH), 0);
    for (int r = 0; r < ROWS; r++) {
        assert_int_equal(one->rms_norm(one->ctx, alone, x + r * WIDTH, NULL, &weight, 1e-5f, 1, WIDTH), 0);
        assert_true(same_bits(alone, y + r * WIDTH, WIDTH));
    }
    free(x);
    free(y);
    tensor_free(&weight);
    one->close(one->ctx);
    three->close(three->ctx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_known_row),
        cmocka_unit_test(test_matches_double_for_odd_widths_and_both_types),
        cmocka_unit_test(test_the_addition_stays_in_x),
        cmocka_unit_test(test_a_row_does_not_depend_on_the_others_or_on_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
