// The constants come from an independent implementation in Python (integers, and f32 steps rounded one by one); the
// first Philox vector is the known answer published with Random123. Every backend must reproduce them bit for bit.
#include "cmocka_util.h"
#include "noise.h"

#include <math.h>

static void test_philox_gives_the_published_words(void **state)
{
    (void)state;
    uint32_t out[4];
    krn_philox(0, 0, 0, out);
    static const uint32_t expected[4] = {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8};
    assert_memory_equal(out, expected, sizeof out);
}

static void test_seed_and_position_use_all_their_bits(void **state)
{
    (void)state;
    uint32_t out[4];
    krn_philox(0x0123456789abcdefu, 0x100000005u, 25, out);
    static const uint32_t expected[4] = {0x7716f18e, 0x983ec736, 0x86211bc0, 0xff6a1723};
    assert_memory_equal(out, expected, sizeof out);
}

static uint32_t bits_of(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static void test_gumbel_bits(void **state)
{
    (void)state;
    static const uint32_t words[6] = {0, 1, 0x80000000, 0x12345678, 0xffffffff, 0xdeadbeef};
    static const uint32_t expected[6] = {0x41b6fda9, 0x41ae33b3, 0x3ebba795, 0x4026d6b8, 0xc033f049, 0xbf36631e};
    for (int i = 0; i < 6; i++)
        assert_int_equal(bits_of(krn_gumbel(words[i])), expected[i]);
}

static void test_gumbel_is_close_to_its_formula_and_bounded(void **state)
{
    (void)state;
    uint32_t words[4];
    for (uint32_t quad = 0; quad < 50000; quad++) {
        krn_philox(42, 7, quad, words);
        for (int i = 0; i < 4; i++) {
            double v = fmin((words[i] + 0.5) / 4294967296.0, 1 - 1.0 / 16777216), g = krn_gumbel(words[i]);
            double expected = -log(-log1p(-v));
            // Near v = 1 the rounding of v to f32 dominates.
            assert_near(g, expected, 1e-6 + 6e-7 * fabs(expected) + 6e-8 / (1 - v) / -log1p(-v));
            assert_true(g > -2.82 && g < 22.88);
        }
    }
}

static void test_gumbel_has_the_right_mean_and_variance(void **state)
{
    (void)state;
    enum { N = 400000 };
    double sum = 0, squares = 0;
    uint32_t words[4];
    for (uint32_t quad = 0; quad < N / 4; quad++) {
        krn_philox(1, 2, quad, words);
        for (int i = 0; i < 4; i++) {
            double g = krn_gumbel(words[i]);
            sum += g;
            squares += g * g;
        }
    }
    double mean = sum / N, variance = squares / N - mean * mean;
    assert_near(mean, 0.5772157, 0.01);     // five standard errors
    assert_near(variance, 1.6449341, 0.03); // pi^2 / 6
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_philox_gives_the_published_words),
        cmocka_unit_test(test_seed_and_position_use_all_their_bits),
        cmocka_unit_test(test_gumbel_bits),
        cmocka_unit_test(test_gumbel_is_close_to_its_formula_and_bounded),
        cmocka_unit_test(test_gumbel_has_the_right_mean_and_variance),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
