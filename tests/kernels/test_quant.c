#include "cmocka_util.h"
#include "kern_util.h"
#include "quant.h"

#include <math.h>

static double e4m3_by_definition(int code)
{
    int exponent = code >> 3 & 15, mantissa = code & 7;
    double magnitude = exponent ? ldexp(8 + mantissa, exponent - 10) : ldexp(mantissa, -9);
    return code & 0x80 ? -magnitude : magnitude;
}

static bool e4m3_is_nan(int code)
{
    return (code & 0x7f) == 0x7f;
}

static void test_every_e4m3_has_its_value_and_comes_back(void **state)
{
    (void)state;
    for (int code = 0; code < 256; code++) {
        float value = krn_e4m3_value((uint8_t)code);
        if (e4m3_is_nan(code)) {
            assert_true(isnan(value));
            assert_int_equal(krn_e4m3_round(value) & 0x7f, 0x7f);
            continue;
        }
        assert_true((double)value == e4m3_by_definition(code));
        assert_int_equal(signbit(value) != 0, code >> 7);
        assert_int_equal(krn_e4m3_round(value), code);
    }
}

static void test_e4m3_rounds_to_nearest_and_ties_to_even(void **state)
{
    (void)state;
    for (int code = 0; code < 0x7e; code++) {
        float low = krn_e4m3_value((uint8_t)code), high = krn_e4m3_value((uint8_t)(code + 1)), half = (low + high) / 2;
        int even = code & 1 ? code + 1 : code;
        for (int sign = 0; sign < 2; sign++) {
            float s = sign ? -1.0f : 1.0f;
            assert_int_equal(krn_e4m3_round(s * half), even | sign << 7);
            assert_int_equal(krn_e4m3_round(s * nextafterf(half, 0)), code | sign << 7);
            assert_int_equal(krn_e4m3_round(s * nextafterf(half, 1000)), (code + 1) | sign << 7);
        }
    }
}

static void test_e4m3_saturates(void **state)
{
    (void)state;
    static const float large[] = {448, 449, 464, 480, 1e30f, INFINITY};
    for (size_t i = 0; i < sizeof large / sizeof *large; i++) {
        assert_int_equal(krn_e4m3_round(large[i]), 0x7e);
        assert_int_equal(krn_e4m3_round(-large[i]), 0xfe);
    }
    assert_int_equal(krn_e4m3_round(1e-30f), 0);
    assert_int_equal(krn_e4m3_round(-1e-30f), 0x80);
    assert_int_equal(krn_e4m3_round(1e-42f), 0);
}

static void test_fp8_weight_is_within_half_a_step(void **state)
{
    (void)state;
    struct random random = {1};
    for (int i = 0; i < 20000; i++) {
        float largest = ldexpf(1 + fabsf(random_float(&random)), random_below(&random, 200) - 100);
        float x = random_float(&random) * largest, scale = krn_fp8_scale(largest);
        uint8_t row[4] = {0};
        row[krn_fp8_place(2)] = krn_fp8_code(x, scale);
        // Half a unit of 3 bits of mantissa, or half the smallest step; the scale itself is rounded too.
        double bound = fmax(fabs((double)x) / 16, (double)scale / 1024) * (1 + 1e-6);
        assert_near(krn_fp8_at(row, scale, 2), x, bound);
    }
}

static void test_fp8_scale_is_never_zero_or_subnormal(void **state)
{
    (void)state;
    static const float largest[] = {0, 1e-45f, 1e-40f, 1e-38f, 1, 3e38f};
    for (size_t i = 0; i < sizeof largest / sizeof *largest; i++) {
        float scale = krn_fp8_scale(largest[i]);
        assert_true(isnormal(scale));
        uint8_t code = krn_fp8_code(-largest[i], scale);
        assert_true(fabs((double)krn_e4m3_value(code) * (double)scale + (double)largest[i]) <=
                    (double)largest[i] / 16 + 1.2e-41);
    }
}

static void test_fp8_place_swaps_the_middle_of_every_four(void **state)
{
    (void)state;
    static const int32_t places[8] = {0, 2, 1, 3, 4, 6, 5, 7};
    for (int32_t col = 0; col < 8; col++) {
        assert_int_equal(krn_fp8_place(col), places[col]);
        assert_int_equal(krn_fp8_place(krn_fp8_place(64 + col)), 64 + col);
    }
}

static void test_bf16_rounds_to_nearest_and_ties_to_even(void **state)
{
    (void)state;
    for (uint32_t half = 0; half < 0x7f80; half++) {
        float value = krn_bf16_value((uint16_t)half);
        assert_int_equal(krn_bf16_round(value), half);
        assert_int_equal(krn_bf16_round(-value), half | 0x8000);
        uint32_t middle = half << 16 | 0x8000;
        assert_int_equal(krn_bf16_round(krn_bits_float(middle)), half + (half & 1));
        assert_int_equal(krn_bf16_round(krn_bits_float(middle - 1)), half);
        assert_int_equal(krn_bf16_round(krn_bits_float(middle + 1)), half + 1);
    }
    assert_int_equal(krn_bf16_round(INFINITY), 0x7f80);
    // A NaN whose mantissa is all in the lower half must not become infinity.
    assert_true(isnan(krn_bf16_value(krn_bf16_round(krn_bits_float(0x7f800001)))));
}

// ---- q4 -------------------------------------------------------------------------------------------------------------

static void test_q8_codes(void **state)
{
    (void)state;
    float scale = krn_q8_scale(254);
    assert_true(scale == 2);
    static const struct {
        float x;
        int code;
    } cases[] = {{254, 127}, {-254, -127}, {0, 0}, {2, 1}, {-2, -1}, {1, 0}, {-1, 0}, {3, 2}, {-3, -2}, {253.1f, 127}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) // ties go to the even integer
        assert_int_equal(krn_q8_code(cases[i].x, scale), cases[i].code);
    // The largest magnitude gets the largest code, whatever its size; what is smaller than any scale gets 0.
    static const float sizes[] = {3.4e38f, 1.1f, 3e-30f, 1e-35f};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        assert_int_equal(krn_q8_code(sizes[i], krn_q8_scale(sizes[i])), 127);
        assert_int_equal(krn_q8_code(-sizes[i], krn_q8_scale(sizes[i])), -127);
    }
    assert_true(krn_q8_scale(0) > 0);
    assert_int_equal(krn_q8_code(0, krn_q8_scale(0)), 0);
    assert_int_equal(krn_q8_code(1e-42f, krn_q8_scale(1e-42f)), 0);
}

struct group {
    uint16_t scale;
    uint32_t words[4];
};

static struct group pack(const float x[KRN_Q4_GROUP])
{
    struct group group;
    krn_q4_pack(x, &group.scale, group.words);
    return group;
}

static void test_q4_keeps_every_integer_in_its_column(void **state)
{
    (void)state;
    for (int shift = 0; shift < 16; shift++) {
        float x[KRN_Q4_GROUP];
        for (int i = 0; i < KRN_Q4_GROUP; i++)
            x[i] = 0.125f * (float)((i * 5 + shift) % 16 - 8);
        struct group group = pack(x);
        for (int i = 0; i < KRN_Q4_GROUP; i++)
            assert_true(krn_q4_at(group.words, &group.scale, i) == x[i]);
    }
}

// The lowest nibbles of the words are columns 0, 8, 16, 24; the order within a word is what the kernel unpacks.
static void test_q4_order_of_nibbles(void **state)
{
    (void)state;
    static const int shifts[8] = {0, 16, 4, 20, 8, 24, 12, 28};
    for (int i = 0; i < KRN_Q4_GROUP; i++) {
        float x[KRN_Q4_GROUP] = {0};
        x[i] = 1; // of largest magnitude: -8
        struct group group = pack(x);
        for (int word = 0; word < 4; word++)
            assert_int_equal(group.words[word], word == i / 8 ? 8u << shifts[i % 8] : 0);
    }
}

static double squared_error(const float x[KRN_Q4_GROUP], float scale)
{
    double sum = 0;
    for (int i = 0; i < KRN_Q4_GROUP; i++) {
        double off = (double)x[i] - (double)krn_q4_integer(x[i], scale) * (double)scale;
        sum += off * off;
    }
    return sum;
}

static void test_q4_error_is_bounded_and_not_above_the_plain_scale(void **state)
{
    (void)state;
    struct random random = {2};
    double chosen = 0, plain = 0;
    for (int round = 0; round < 4000; round++) {
        float x[KRN_Q4_GROUP], largest = 0;
        for (int i = 0; i < KRN_Q4_GROUP; i++) {
            // Bell-shaped, as weights are.
            x[i] = random_float(&random) + random_float(&random) + random_float(&random) + random_float(&random);
            largest = fabsf(x[i]) > fabsf(largest) ? x[i] : largest;
        }
        struct group group = pack(x);
        float scale = krn_bf16_value(group.scale), common = krn_bf16_value(krn_q4_round_scale(largest / -8));
        double error = squared_error(x, scale), common_error = squared_error(x, common);
        assert_true(error <= common_error * (1 + 1e-5));
        chosen += error;
        plain += common_error;
        for (int i = 0; i < KRN_Q4_GROUP; i++) {
            // Half a step, or two where -9 steps were mapped to -8; and the rounding to bf16.
            double beyond = fabs((double)x[i]) / fabs((double)scale) > 7.5 ? 2 : 0.5;
            assert_near(krn_q4_at(group.words, &group.scale, i), x[i],
                        fabs((double)scale) * beyond * 1.01 + fabs((double)x[i]) / 256);
        }
    }
    assert_true(chosen < 0.95 * plain);
}

static void test_q4_of_extremes(void **state)
{
    (void)state;
    float x[KRN_Q4_GROUP] = {0};
    struct group group = pack(x);
    assert_int_equal(krn_bf16_value(group.scale) == 0 || group.words[0] == 0, 1);
    for (int i = 0; i < KRN_Q4_GROUP; i++)
        assert_true(krn_q4_at(group.words, &group.scale, i) == 0);

    // Squares of the largest overflow and those of the smallest vanish: the plain scale.
    static const float sizes[] = {3e38f, 1e30f, 1e-30f, 1e-37f};
    for (size_t k = 0; k < sizeof sizes / sizeof *sizes; k++) {
        for (int i = 0; i < KRN_Q4_GROUP; i++)
            x[i] = sizes[k] * ((float)(i - 16) / 16);
        group = pack(x);
        for (int i = 0; i < KRN_Q4_GROUP; i++)
            assert_near(krn_q4_at(group.words, &group.scale, i), x[i], (double)sizes[k] * 0.13);
    }
    // What is not finite gives some weight.
    x[3] = NAN;
    x[4] = INFINITY;
    (void)pack(x);
}

// What the kernel relies on: 24 times a scale is a bf16.
static void test_q4_scale_has_six_bits(void **state)
{
    (void)state;
    struct random random = {3};
    for (int i = 0; i < 20000; i++) {
        float x = ldexpf(random_float(&random), random_below(&random, 270) - 150);
        uint16_t half = krn_q4_round_scale(x);
        float scale = krn_bf16_value(half);
        assert_int_equal(krn_bf16_value(krn_bf16_round(24 * scale)) == 24 * scale, 1);
        assert_near(scale, x, fabs((double)x) / 64 + 0x1p-132);
    }
    assert_int_equal(krn_q4_round_scale(1.015625f), 0x3f80); // half way: to even
    assert_int_equal(krn_q4_round_scale(1.046875f), 0x3f88);
}

static void test_strides(void **state)
{
    (void)state;
    assert_int_equal(krn_weight_stride(KRN_F32, 33), 33);
    assert_int_equal(krn_weight_stride(KRN_BF16, 32), 32);
    assert_int_equal(krn_weight_stride(KRN_BF16, 33), 64);
    assert_int_equal(krn_weight_stride(KRN_FP8, 65), 128);
    assert_int_equal(krn_weight_stride(KRN_Q4, 1), 128);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_e4m3_has_its_value_and_comes_back),
        cmocka_unit_test(test_e4m3_rounds_to_nearest_and_ties_to_even),
        cmocka_unit_test(test_e4m3_saturates),
        cmocka_unit_test(test_fp8_weight_is_within_half_a_step),
        cmocka_unit_test(test_fp8_scale_is_never_zero_or_subnormal),
        cmocka_unit_test(test_fp8_place_swaps_the_middle_of_every_four),
        cmocka_unit_test(test_bf16_rounds_to_nearest_and_ties_to_even),
        cmocka_unit_test(test_q8_codes),
        cmocka_unit_test(test_q4_keeps_every_integer_in_its_column),
        cmocka_unit_test(test_q4_order_of_nibbles),
        cmocka_unit_test(test_q4_error_is_bounded_and_not_above_the_plain_scale),
        cmocka_unit_test(test_q4_of_extremes),
        cmocka_unit_test(test_q4_scale_has_six_bits),
        cmocka_unit_test(test_strides),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
