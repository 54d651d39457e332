// engine/cost.c: the fit on made-up measurements whose truth is known, the comparison of modes, the live correction.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "cost.h"

// Bound by memory up to 8 rows, then by arithmetic with a cheaper second part.
static const struct eng_cost truth = {.n_knots = 3,
                                      .knots = {1, 8, 64},
                                      .slopes = {1e-6, 30e-6, 20e-6},
                                      .base = 100e-6,
                                      .segment = 4e-6,
                                      .choice = 6e-6,
                                      .context = 0.2e-6,
                                      .pair = 0.02e-6,
                                      .adapter_row = 3e-6,
                                      .far = {0, 0.5e-6, 0}};

static uint64_t state = 1;

// Uniform in 0 .. 1.
static double uniform(void)
{
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (double)(state >> 40) / (double)(1 << 24);
}

static struct eng_cost_pass pass_of(int32_t segments, int32_t rows, int32_t context, int32_t choices, bool adapter)
{
    struct eng_cost_pass p = {0};
    for (int32_t i = 0; i < segments; i++)
        eng_cost_pass_add(&p, rows, context, choices, adapter);
    return p;
}

// What a calibration measures, and more; noise is relative, and one in `stalls` takes three times as long.
static int32_t make_samples(struct eng_cost_sample *s, double noise, int stalls)
{
    static const int32_t segments[] = {1, 2, 4, 8, 16, 64}, rows[] = {1, 4, 8, 16, 32, 64}, contexts[] = {16, 200, 900};
    int32_t n = 0;
    for (size_t i = 0; i < 6; i++)
        for (size_t j = 0; j < 6; j++)
            for (size_t k = 0; k < 3; k++) {
                if (segments[i] * rows[j] > 512)
                    continue;
                bool adapter = (i + j + k) % 3 == 0;
                int32_t choices = (i + k) % 2 ? rows[j] : 1;
                s[n].pass = pass_of(segments[i], rows[j], contexts[k], choices, adapter);
                s[n].seconds = eng_cost_predict(&truth, &s[n].pass) * (1 + noise * (2 * uniform() - 1));
                if (stalls && n % stalls == 0)
                    s[n].seconds *= 3;
                n++;
            }
    return n;
}

static void near(double value, double expected, double relative)
{
    if (!(fabs(value - expected) <= relative * fabs(expected)))
        fail_msg("%.9g is not within %.0f %% of %.9g", value, 100 * relative, expected);
}

static void test_prediction_adds_what_is_in_the_pass(void **unused)
{
    (void)unused;
    struct eng_cost_pass p = {0};
    eng_cost_pass_add(&p, 32, 100, 31, true);
    eng_cost_pass_add(&p, 1, 50, 1, false);
    assert_int_equal(p.rows, 33);
    assert_int_equal(p.segments, 2);
    assert_int_equal(p.choices, 32);
    assert_int_equal(p.adapter_rows, 32);
    assert_int_equal(p.context, 132 + 51);
    assert_int_equal(p.pairs, 32 * 132 + 51);
    near(eng_cost_predict(&truth, &p),
         100e-6 + 7e-6 + 25 * 30e-6 + 2 * 4e-6 + 32 * 6e-6 + 183 * 0.2e-6 + 4275 * 0.02e-6 + 32 * 3e-6, 1e-9);
    struct eng_cost_pass far = pass_of(20, 1, 999, 1, false); // 20000 positions, 20 rows
    near(eng_cost_predict(&truth, &far),
         100e-6 + 7e-6 + 12 * 30e-6 + 20 * 10e-6 + 20000 * 0.22e-6 + (20000 - 8192) * 0.5e-6, 1e-9);
}

static void test_the_fit_recovers_coefficients_from_exact_samples(void **unused)
{
    (void)unused;
    struct eng_cost_sample s[128];
    struct eng_cost c = {0};
    int32_t n = make_samples(s, 0, 0);
    assert_int_equal(eng_cost_fit(s, n, &c), 0);
    assert_int_equal(c.n_samples, n);
    near(c.choice, truth.choice, 0.05);
    near(c.context, truth.context, 0.05);
    near(c.pair, truth.pair, 0.05);
    near(c.adapter_row, truth.adapter_row, 0.05);
    near(c.far[1], truth.far[1], 0.05);
    assert_true(c.far[0] < 0.02 * truth.far[1]);
    assert_true(c.median_error < 0.003 && c.worst_error < 0.03);
}

static void test_the_fit_recovers_coefficients_from_noise_and_stalls(void **unused)
{
    (void)unused;
    struct eng_cost_sample s[128];
    for (int round = 0; round < 20; round++) {
        struct eng_cost c = {0};
        int32_t n = make_samples(s, 0.05, 9);
        assert_int_equal(eng_cost_fit(s, n, &c), 0);
        near(c.choice, truth.choice, 0.4);
        near(c.pair, truth.pair, 0.3);
        near(c.far[1], truth.far[1], 0.3);
        // Sizes that were not measured, against the truth.
        for (int i = 0; i < 50; i++) {
            struct eng_cost_pass p = pass_of(1 + (int)(uniform() * 15), 1 + (int)(uniform() * 30),
                                             (int)(uniform() * 900), 1, uniform() < 0.5);
            near(eng_cost_predict(&c, &p), eng_cost_predict(&truth, &p), 0.12);
        }
        assert_true(c.median_error < 0.06 && c.worst_error > 0.5);
    }
}

static void test_no_coefficient_is_negative_and_more_rows_never_take_less(void **unused)
{
    (void)unused;
    struct eng_cost_sample s[40];
    for (int round = 0; round < 20; round++) {
        struct eng_cost c = {0};
        for (int i = 0; i < 40; i++) { // times that fall with size
            s[i].pass = pass_of(1 + i % 5, 1 + i, 3 * i, 1, i % 2);
            s[i].seconds = (0.5 + uniform()) / (1 + i);
        }
        assert_int_equal(eng_cost_fit(s, 40, &c), 0);
        assert_true(c.base >= 0 && c.segment >= 0 && c.choice >= 0 && c.context >= 0 && c.pair >= 0);
        double before = 0;
        for (int32_t rows = 1; rows < 3000; rows += 7) {
            struct eng_cost_pass p = pass_of(1, rows, 10, 1, false);
            double t = eng_cost_predict(&c, &p);
            assert_true(t > 0 && t >= before);
            before = t;
        }
    }
}

static void test_useless_samples_are_refused(void **unused)
{
    (void)unused;
    struct eng_cost_sample s[4];
    struct eng_cost c = {.n_knots = 7};
    for (int i = 0; i < 4; i++)
        s[i] = (struct eng_cost_sample){.pass = pass_of(1, 1 << i, 9, 1, false), .seconds = 1 + i};
    assert_int_equal(eng_cost_fit(s, 2, &c), ENG_EINVAL);
    s[1].seconds = 0;
    assert_int_equal(eng_cost_fit(s, 4, &c), ENG_EINVAL);
    s[1].seconds = NAN;
    assert_int_equal(eng_cost_fit(s, 4, &c), ENG_EINVAL);
    s[1].seconds = 1;
    s[2].pass.rows = 0;
    assert_int_equal(eng_cost_fit(s, 4, &c), ENG_EINVAL);
    assert_int_equal(c.n_knots, 7);
    assert_int_equal(eng_cost_fit(s, 3, &c), ENG_EINVAL);
    s[2].pass.rows = 4;
    assert_int_equal(eng_cost_fit(s, 4, &c), 0);
}

static void test_the_crossover_moves_with_acceptance_and_cost(void **unused)
{
    (void)unused;
    // Free rows: a block always wins, once two tokens are expected of two passes.
    struct eng_cost memory = {.n_knots = 1, .knots = {1}, .base = 1e-3};
    assert_int_equal(eng_cost_crossover(&memory, 100, 32, 0.9, 64), 65);
    near(eng_cost_block_rate(&memory, 3, 100, 4, 0.5), 3 * (1 + 0.5 + 0.25 + 0.125) / 2e-3, 1e-9);
    assert_int_equal(eng_cost_crossover(&memory, 100, 32, 0.4, 64), 1);
    // Only rows cost: it never does.
    struct eng_cost arithmetic = {.n_knots = 1, .knots = {1}, .slopes = {1e-4}, .base = 1e-4};
    assert_int_equal(eng_cost_crossover(&arithmetic, 100, 32, 0.9, 64), 1);
    // In between: later with more acceptance.
    struct eng_cost both = {.n_knots = 1, .knots = {1}, .slopes = {1e-5}, .base = 1e-3};
    int32_t low = eng_cost_crossover(&both, 100, 8, 0.7, 512), high = eng_cost_crossover(&both, 100, 8, 0.95, 512);
    assert_true(low > 1 && high > low && high <= 512);
    assert_true(eng_cost_block_rate(&both, high - 1, 100, 8, 0.95) > eng_cost_ar_rate(&both, high - 1, 100));
    assert_true(eng_cost_block_rate(&both, high, 100, 8, 0.95) <= eng_cost_ar_rate(&both, high, 100));
}

static void test_the_correction_converges_from_both_sides(void **unused)
{
    (void)unused;
    struct eng_cost_pass p = pass_of(4, 1, 100, 1, false), other = pass_of(8, 32, 100, 32, true);
    for (int k = 0; k < 2; k++) {
        double factor = k ? 5 : 0.2, actual = factor * eng_cost_predict(&truth, &p);
        struct eng_cost_live live = {0};
        near(eng_cost_expect(&truth, &live, &p), eng_cost_predict(&truth, &p), 1e-9);
        near(eng_cost_error_ratio(&live), 1, 1e-9);
        for (int i = 0; i < 200; i++)
            eng_cost_observe(&live, &truth, &p, actual * (0.9 + 0.2 * uniform()));
        near(eng_cost_error_ratio(&live), 1 / factor, 0.1);
        near(eng_cost_expect(&truth, &live, &p), actual, 0.1);
        near(eng_cost_expect(&truth, &live, &other), factor * eng_cost_predict(&truth, &other),
             0.1);                    // not seen: as all
        for (int i = 0; i < 400; i++) // and back
            eng_cost_observe(&live, &truth, &p, eng_cost_predict(&truth, &p));
        near(eng_cost_error_ratio(&live), 1, 0.05);
    }
}

static void test_the_correction_tells_sizes_apart(void **unused)
{
    (void)unused;
    struct eng_cost_live live = {0};
    struct eng_cost_pass small = pass_of(1, 1, 100, 1, false), large = pass_of(4, 32, 100, 32, false);
    for (int i = 0; i < 300; i++) {
        eng_cost_observe(&live, &truth, &small, 2 * eng_cost_predict(&truth, &small));
        eng_cost_observe(&live, &truth, &large, eng_cost_predict(&truth, &large));
    }
    near(eng_cost_expect(&truth, &live, &small), 2 * eng_cost_predict(&truth, &small), 0.05);
    near(eng_cost_expect(&truth, &live, &large), eng_cost_predict(&truth, &large), 0.05);
}

// What passes of one size took while somebody else used the machine is not believed of them for ever.
static void test_the_correction_of_a_size_that_is_not_seen_ages(void **unused)
{
    (void)unused;
    struct eng_cost_live live = {0};
    struct eng_cost_pass small = pass_of(1, 1, 100, 1, false), large = pass_of(4, 32, 100, 32, false);
    for (int i = 0; i < 300; i++)
        eng_cost_observe(&live, &truth, &large, 3 * eng_cost_predict(&truth, &large));
    double second = 1 / eng_cost_predict(&truth, &small);
    for (int i = 0; i < second; i++)
        eng_cost_observe(&live, &truth, &small, eng_cost_predict(&truth, &small));
    near(eng_cost_expect(&truth, &live, &large), 3 * eng_cost_predict(&truth, &large), 0.3);
    for (int i = 0; i < 60 * second; i++)
        eng_cost_observe(&live, &truth, &small, eng_cost_predict(&truth, &small));
    near(eng_cost_expect(&truth, &live, &large), eng_cost_predict(&truth, &large), 0.3);
}

static void test_single_stalls_and_nonsense_hardly_move_it(void **unused)
{
    (void)unused;
    struct eng_cost_live live = {0};
    struct eng_cost_pass p = pass_of(4, 1, 100, 1, false), huge = pass_of(1, INT32_MAX / 2, 0, 1, false);
    double right = eng_cost_predict(&truth, &p);
    for (int i = 0; i < 1000; i++)
        eng_cost_observe(&live, &truth, &p, i % 50 == 49 ? 1000 * right : right);
    near(eng_cost_error_ratio(&live), 1, 0.03);
    struct eng_cost_live before = live;
    eng_cost_observe(&live, &truth, &p, 0);
    eng_cost_observe(&live, &truth, &p, -1);
    eng_cost_observe(&live, &truth, &p, NAN);
    assert_memory_equal(&live, &before, sizeof live);
    eng_cost_observe(&live, &truth, &huge, 1); // the last class takes all that is larger
    assert_int_equal(live.n_of_rows[ENG_COST_ROW_CLASSES - 1], 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_prediction_adds_what_is_in_the_pass),
        cmocka_unit_test(test_the_fit_recovers_coefficients_from_exact_samples),
        cmocka_unit_test(test_the_fit_recovers_coefficients_from_noise_and_stalls),
        cmocka_unit_test(test_no_coefficient_is_negative_and_more_rows_never_take_less),
        cmocka_unit_test(test_useless_samples_are_refused),
        cmocka_unit_test(test_the_crossover_moves_with_acceptance_and_cost),
        cmocka_unit_test(test_the_correction_converges_from_both_sides),
        cmocka_unit_test(test_the_correction_tells_sizes_apart),
        cmocka_unit_test(test_the_correction_of_a_size_that_is_not_seen_ages),
        cmocka_unit_test(test_single_stalls_and_nonsense_hardly_move_it),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
