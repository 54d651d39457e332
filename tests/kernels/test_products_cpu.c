// kernels/cpu/products_cpu.c: that running products together, and cutting them among threads, changes no bit, and what
// they refuse.
#include "cmocka_util.h"
#include "kern_util.h"

enum { ROWS = 9, WIDTH = 130, OUTPUTS = 523, RANK = 3 };

// Work for many threads: more units than a chunk has, tails everywhere.
static void run_products(struct krn_backend *b, const struct krn_tensor *w, const struct krn_adapter *adapter,
                         const float *x, const uint8_t *flags, float *ret_y, float *ret_gated)
{
    float *scratch = floats((size_t)ROWS * RANK), *parts[2] = {floats(ROWS * OUTPUTS), floats(ROWS * OUTPUTS)};
    void *const of_gated[2] = {parts[0], parts[1]};
    assert_int_equal(b->linear(b->ctx, ret_y, x, w, ROWS, adapter, flags, scratch), 0);
    assert_int_equal(b->gated(b->ctx, ret_gated, x, w, w, ROWS, of_gated), 0);
    free(scratch);
    free(parts[0]);
    free(parts[1]);
}

static void test_the_number_of_threads_changes_no_bit(void **state)
{
    (void)state;
    struct random random = {5};
    struct krn_tensor w = tensor_random(&random, KRN_BF16, OUTPUTS, WIDTH);
    struct krn_adapter adapter = {.a = tensor_random(&random, KRN_F32, RANK, WIDTH),
                                  .b = tensor_random(&random, KRN_F32, OUTPUTS, RANK),
                                  .scale = 0.5f};
    const uint8_t flags[ROWS] = {0, 1, 1, 0, 0, 1, 0, 0, 1};
    size_t n = (size_t)ROWS * OUTPUTS;
    float *x = floats(ROWS * WIDTH), *y[2] = {floats(n), floats(n)}, *gated[2] = {floats(n), floats(n)};
    fill_random(&random, x, ROWS * WIDTH);
    for (int i = 0; i < 2; i++) {
        struct krn_backend *b = open_cpu(i ? 7 : 1, ~0u);
        run_products(b, &w, &adapter, x, flags, y[i], gated[i]);
        b->close(b->ctx);
    }
    assert_memory_equal(y[0], y[1], n * sizeof(float));
    assert_memory_equal(gated[0], gated[1], n * sizeof(float));
    // A row without the flag is what it is without an adapter; one with it is not.
    struct krn_backend *b = open_cpu(3, ~0u);
    run_products(b, &w, NULL, x, NULL, y[1], gated[1]);
    b->close(b->ctx);
    for (int r = 0; r < ROWS; r++) {
        bool same = memcmp(y[0] + r * OUTPUTS, y[1] + r * OUTPUTS, OUTPUTS * sizeof(float)) == 0;
        assert_int_equal(same, !flags[r]);
    }
    for (int i = 0; i < 2; i++) {
        free(y[i]);
        free(gated[i]);
    }
    free(x);
    tensor_free(&w);
    tensor_free(&adapter.a);
    tensor_free(&adapter.b);
}

// Matrices whose units end inside a chunk, one smaller than a unit, and fewer than three of them.
static void test_products_run_together_have_the_bits_of_each_alone(void **state)
{
    (void)state;
    static const int32_t outputs[3] = {523, 5, 64};
    struct random random = {6};
    struct krn_tensor w[3];
    float *x = floats(ROWS * WIDTH), *y[3], *alone = floats(ROWS * OUTPUTS);
    fill_random(&random, x, ROWS * WIDTH);
    for (int i = 0; i < 3; i++) {
        w[i] = tensor_random(&random, i == 1 ? KRN_F32 : KRN_BF16, outputs[i], WIDTH);
        y[i] = floats((size_t)ROWS * (size_t)outputs[i] + 1);
    }
    const struct krn_product products[3] = {{y[0], &w[0]}, {y[1], &w[1]}, {y[2], &w[2]}};
    for (int threads = 1; threads <= 7; threads += 3)
        for (int32_t rows = 1; rows <= ROWS; rows += ROWS - 1)
            for (int n = 0; n <= 3; n++) {
                struct krn_backend *b = open_cpu(threads, ~0u);
                for (int i = 0; i < 3; i++)
                    memset(y[i], 0xff, ((size_t)ROWS * (size_t)outputs[i] + 1) * sizeof *y[i]);
                assert_int_equal(b->project(b->ctx, products, n, x, rows), 0);
                for (int i = 0; i < 3; i++) {
                    size_t size = (size_t)rows * (size_t)outputs[i];
                    assert_int_equal(b->linear(b->ctx, alone, x, &w[i], rows, NULL, NULL, NULL), 0);
                    assert_int_equal(same_bits(alone, y[i], size), i < n);
                    uint32_t after;
                    memcpy(&after, y[i] + size, sizeof after);
                    assert_true(after == UINT32_MAX); // nothing beyond its end
                }
                b->close(b->ctx);
            }
    for (int i = 0; i < 3; i++) {
        tensor_free(&w[i]);
        free(y[i]);
    }
    free(alone);
    free(x);
}

static void test_arguments_out_of_range_are_refused(void **state)
{
    (void)state;
    struct krn_backend *b = open_cpu(2, ~0u);
    float data[64] = {0};
    struct krn_tensor w = {.data = data, .type = KRN_F32, .rows = 2, .cols = 4}, none = {0}, bad_type = w;
    bad_type.type = (enum krn_type)7;
    assert_int_equal(b->linear(b->ctx, data, data, &w, -1, NULL, NULL, NULL), KRN_EINVAL);
    assert_int_equal(b->linear(b->ctx, data, data, &bad_type, 1, NULL, NULL, NULL), KRN_EINVAL);
    struct krn_adapter adapter = {.a = {data, KRN_F32, 1, 3, NULL}, .b = {data, KRN_F32, 2, 1, NULL}, .scale = 1};
    uint8_t flags[1] = {1};
    assert_int_equal(b->linear(b->ctx, data, data, &w, 1, &adapter, flags, data), KRN_EINVAL); // in does not fit
    adapter.a.cols = 4;
    assert_int_equal(b->linear(b->ctx, data, data, &w, 1, &adapter, flags, NULL), KRN_EINVAL);
    assert_int_equal(b->linear(b->ctx, data, data, &w, 1, &adapter, NULL, data), KRN_EINVAL);
    struct krn_tensor other = {.data = data, .type = KRN_F32, .rows = 3, .cols = 4};
    struct krn_product products[4] = {{data, &w}, {data, &w}, {data, &w}, {data, &w}};
    void *const scratch[2] = {data, data};
    assert_int_equal(b->project(b->ctx, products, 4, data, 1), KRN_EINVAL);
    assert_int_equal(b->project(b->ctx, products, 1, data, -1), KRN_EINVAL);
    products[1].w = &none;
    assert_int_equal(b->project(b->ctx, products, 2, data, 1), KRN_EINVAL);
    assert_int_equal(b->gated(b->ctx, data, data, &w, &w, -1, scratch), KRN_EINVAL);
    assert_int_equal(b->gated(b->ctx, data, data, &w, &other, 1, scratch), KRN_EINVAL);
    assert_int_equal(b->head(b->ctx, data, data, &none, 1), KRN_EINVAL);
    b->close(b->ctx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_number_of_threads_changes_no_bit),
        cmocka_unit_test(test_products_run_together_have_the_bits_of_each_alone),
        cmocka_unit_test(test_arguments_out_of_range_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
