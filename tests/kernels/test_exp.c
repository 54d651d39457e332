// The bits in test_bits come from exact fractions in Python, rounded to f32 step by step. Every backend must reproduce
// them.
#include "cmocka_util.h"
#include "exp.h"

#include <float.h>
#include <math.h>

static uint32_t bits_of(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static void test_bits(void **state)
{
    (void)state;
    static const float x[8] = {-0.5f, -1, -3.1415927f, -20.25f, -87, 0.3f, 2.7182817f, 88};
    static const uint32_t expected[8] = {0x3f1b4598, 0x3ebc5ab2, 0x3d310113, 0x30dc9ef1,
                                         0x00b33687, 0x3facc82c, 0x417277da, 0x7ef882b7};
    for (int i = 0; i < 8; i++)
        assert_int_equal(bits_of(krn_expf(x[i])), expected[i]);
}

static void test_close_to_exp(void **state)
{
    (void)state;
    for (float x = -87.3f; x < 88.3f; x += 0.00317f) {
        double expected = exp((double)x);
        assert_near(krn_expf(x), expected, 2.4e-7 * expected);
    }
}

static void test_ends_are_exact(void **state)
{
    (void)state;
    assert_true(krn_expf(0) == 1 && krn_expf(-0.0f) == 1);
    assert_true(krn_expf(-87.33655f) == 0 && krn_expf(-FLT_MAX) == 0 && krn_expf(-INFINITY) == 0);
    assert_true(krn_expf(-87.33653f) >= FLT_MIN);
    assert_true(krn_expf(1000) == krn_expf(88.37626f) && isfinite(krn_expf(INFINITY)));
    assert_true(isnan(krn_expf(NAN)));
}

// The device's min-p looks for one edge: what passes must not depend on a step back. Tried here where a step back
// would be likeliest, on both sides of every change of the exponent, and on a coarse grid.
static void test_never_decreases_below_zero(void **state)
{
    (void)state;
    for (int n = 1; n <= 125; n++) {
        float x = -((float)n - 0.5f) * 0.69314718f, last = 0;
        for (int i = 0; i < 2000; i++)
            x = nextafterf(x, -100);
        for (int i = 0; i < 4000; i++, x = nextafterf(x, 0)) {
            assert_true(krn_expf(x) >= last);
            last = krn_expf(x);
        }
    }
    float last = 1;
    for (uint32_t bits = 0; bits < bits_of(88); bits += 991) {
        float x;
        memcpy(&x, &bits, sizeof x);
        assert_true(krn_expf(-x) <= last);
        last = krn_expf(-x);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bits),
        cmocka_unit_test(test_close_to_exp),
        cmocka_unit_test(test_ends_are_exact),
        cmocka_unit_test(test_never_decreases_below_zero),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
