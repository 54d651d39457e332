#include "cmocka_util.h"
#include "kern_util.h"

#include <math.h>

// Every version runs every test.
static struct version versions[VERSIONS_MAX];
static int n_versions;

static void test_a_known_product(void **state)
{
    (void)state;
    float x[6] = {1, 2, 3, 4, 5, 6}, w[6] = {1, 0, -1, 2, 2, 2}, y[4];
    struct krn_tensor weight = {.data = w, .type = KRN_F32, .rows = 2, .cols = 3};
    for (int v = 0; v < n_versions; v++) {
        struct krn_backend *b = open_cpu(1, versions[v].mask);
        assert_int_equal(b->linear(b->ctx, y, x, &weight, 2, NULL, NULL, NULL), 0);
        float expected[4] = {-2, 12, -2, 30};
        assert_memory_equal(y, expected, sizeof y);
        b->close(b->ctx);
    }
}

static void test_bf16_weights_are_exact_floats(void **state)
{
    (void)state;
    uint16_t w[3] = {0x3f80, 0xc000, 0x3e80}; // 1, -2, 0.25
    float x[3] = {3, 5, 8}, y[1];
    struct krn_tensor weight = {.data = w, .type = KRN_BF16, .rows = 1, .cols = 3};
    for (int v = 0; v < n_versions; v++) {
        struct krn_backend *b = open_cpu(1, versions[v].mask);
        assert_int_equal(b->linear(b->ctx, y, x, &weight, 1, NULL, NULL, NULL), 0);
        assert_true(y[0] == -5);
        b->close(b->ctx);
    }
}

static void test_the_adapter_touches_only_flagged_rows(void **state)
{
    (void)state;
    enum { ROWS = 9, IN = 20, OUT = 11, RANK = 3 };
    struct random random = {.state = 8};
    struct krn_tensor w = tensor_random(&random, KRN_BF16, OUT, IN);
    struct krn_adapter adapter = {
        .a = tensor_random(&random, KRN_F32, RANK, IN), .b = tensor_random(&random, KRN_F32, OUT, RANK), .scale = 4};
    uint8_t flags[ROWS] = {0, 1, 1, 0, 0, 1, 1, 1, 0};
    float x[ROWS * IN], plain[ROWS * OUT], y[ROWS * OUT], scratch[ROWS * RANK];
    fill_random(&random, x, ROWS * IN);
    for (int v = 0; v < n_versions; v++) {
        struct krn_backend *b = open_cpu(1, versions[v].mask);
        assert_int_equal(b->linear(b->ctx, plain, x, &w, ROWS, NULL, NULL, NULL), 0);
        assert_int_equal(b->linear(b->ctx, y, x, &w, ROWS, &adapter, flags, scratch), 0);
        for (int r = 0; r < ROWS; r++)
            for (int o = 0; o < OUT; o++) {
                double extra = 0;
                for (int k = 0; k < RANK; k++) {
                    double inner = 0;
                    for (int i = 0; i < IN; i++)
                        inner += (double)x[r * IN + i] * (double)tensor_at(&adapter.a, k, i);
                    extra += inner * (double)tensor_at(&adapter.b, o, k);
                }
                if (flags[r])
                    assert_near(y[r * OUT + o], (double)plain[r * OUT + o] + 4 * extra, 1e-4);
                else
                    assert_true(y[r * OUT + o] == plain[r * OUT + o]);
            }
        b->close(b->ctx);
    }
    tensor_free(&w);
    tensor_free(&adapter.a);
    tensor_free(&adapter.b);
}

static void test_no_flagged_row_leaves_the_scratch_alone(void **state)
{
    (void)state;
    float data[4] = {1, 2, 3, 4}, y[2], scratch[1] = {7};
    uint8_t flags[1] = {0};
    struct krn_tensor w = {.data = data, .type = KRN_F32, .rows = 2, .cols = 2};
    struct krn_adapter adapter = {.a = {.data = data, .type = KRN_F32, .rows = 1, .cols = 2},
                                  .b = {.data = data, .type = KRN_F32, .rows = 2, .cols = 1},
                                  .scale = 1};
    struct krn_backend *b = open_cpu(1, ~0u);
    assert_int_equal(b->linear(b->ctx, y, data, &w, 1, &adapter, flags, scratch), 0);
    assert_true(scratch[0] == 7 && y[0] == 5 && y[1] == 11);
    b->close(b->ctx);
}

// The three ways of the vector versions to walk a matrix for one row give what the tile for many rows gives.
static void test_one_row_is_the_same_at_every_width(void **state)
{
    (void)state;
    static const int32_t widths[] = {1, 15, 1536, 1537, 2049, 3584, 3585, 4099};
    enum { ROWS = 7, OUT = 21 };
    for (int v = 0; v < n_versions; v++) {
        struct krn_backend *b = open_cpu(2, versions[v].mask);
        for (int i = 0; i < 8; i++)
            for (int t = 0; t < 2; t++) {
                size_t width = (size_t)widths[i];
                struct random random = {.state = 9};
                struct krn_tensor w = tensor_random(&random, t ? KRN_BF16 : KRN_F32, OUT, widths[i]);
                float *x = floats(ROWS * width), y[ROWS * OUT], alone[OUT];
                fill_random(&random, x, ROWS * width);
                assert_int_equal(b->linear(b->ctx, y, x, &w, ROWS, NULL, NULL, NULL), 0);
                for (int r = 0; r < ROWS; r++) {
                    assert_int_equal(b->linear(b->ctx, alone, x + (size_t)r * width, &w, 1, NULL, NULL, NULL), 0);
                    assert_true(same_bits(alone, y + r * OUT, OUT));
                }
                free(x);
                tensor_free(&w);
            }
        b->close(b->ctx);
    }
}

static void test_not_a_number_stays_in_its_row(void **state)
{
    (void)state;
    enum { ROWS = 8, IN = 40, OUT = 5 };
    struct random random = {.state = 10};
    struct krn_tensor w = tensor_random(&random, KRN_BF16, OUT, IN);
    float x[ROWS * IN], y[ROWS * OUT];
    fill_random(&random, x, ROWS * IN);
    x[3 * IN + 17] = NAN;
    for (int v = 0; v < n_versions; v++) {
        struct krn_backend *b = open_cpu(1, versions[v].mask);
        assert_int_equal(b->linear(b->ctx, y, x, &w, ROWS, NULL, NULL, NULL), 0);
        for (int r = 0; r < ROWS; r++)
            for (int o = 0; o < OUT; o++)
                assert_int_equal(isnan(y[r * OUT + o]) != 0, r == 3);
        b->close(b->ctx);
    }
    tensor_free(&w);
}

int main(void)
{
    n_versions = versions_here(versions);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_known_product),
        cmocka_unit_test(test_bf16_weights_are_exact_floats),
        cmocka_unit_test(test_the_adapter_touches_only_flagged_rows),
        cmocka_unit_test(test_no_flagged_row_leaves_the_scratch_alone),
        cmocka_unit_test(test_one_row_is_the_same_at_every_width),
        cmocka_unit_test(test_not_a_number_stays_in_its_row),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
