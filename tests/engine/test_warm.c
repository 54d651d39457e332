// engine/warm.c, on the fake model, which checks every segment.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "fake_model.h"
#include "warm.h"

static double last;

static void on_progress(void *user, const char *what, double fraction)
{
    (void)user;
    assert_string_equal(what, "warm-up");
    assert_true(fraction > last && fraction <= 1);
    last = fraction;
}

static void warm(struct fake_model *f, int32_t max_rows, int32_t max_segments, int code)
{
    struct eng_model m = fake_model_open(f);
    struct eng_warm_limits limits = {max_rows, max_segments, f->n_pages, f->page_size};
    last = 0;
    assert_int_equal(eng_model_warm(&m, &limits, on_progress, NULL), code);
    m.close(m.ctx);
    assert_string_equal(f->fault, "");
}

static void test_every_kind_in_every_small_size(void **state)
{
    (void)state;
    struct fake_model f = fake_model_default();
    warm(&f, 2048, 64, 0);
    // 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, in segments of at most 32
    enum { SIZES = 16, SEGMENTS = 10 + 2 + 2 + 3 + 4 + 6 + 8, ROWS = 1 + 2 + 3 + 4 + 6 + 8 + 12 + 16 + 24 + 32 };
    enum { MORE = 48 + 64 + 96 + 128 + 192 + 256 };
    static const enum eng_pass_kind kinds[] = {ENG_PASS_PREFILL, ENG_PASS_VERIFY, ENG_PASS_DRAFT, ENG_PASS_DENOISE};
    assert_int_equal(f.steps, 4 * SIZES);
    for (int i = 0; i < 4; i++) {
        assert_int_equal(f.passes[kinds[i]], SEGMENTS);
        assert_int_equal(f.rows[kinds[i]], ROWS + MORE);
    }
    assert_int_equal(f.max_segments, 8);
    assert_true(last == 1);
}

static void test_limits_bound_the_sizes(void **state)
{
    (void)state;
    struct fake_model f = fake_model_default();
    warm(&f, 64, 64, 0);
    assert_int_equal(f.rows[ENG_PASS_PREFILL], 1 + 2 + 3 + 4 + 6 + 8 + 12 + 16 + 24 + 32 + 48 + 64);
    f = fake_model_default();
    warm(&f, 64, 1, 0);
    assert_int_equal(f.max_segments, 1);
    f = fake_model_default();
    f.n_pages = 17; // two segments of 32 rows and a page of 4 to spare
    warm(&f, 2048, 64, 0);
    assert_int_equal(f.max_segments, 2);
    f = fake_model_default();
    f.n_pages = 7;
    warm(&f, 2048, 64, 0);
    assert_int_equal(f.steps, 0);
}

static void test_a_model_without_a_mask_runs_causal_passes_only(void **state)
{
    (void)state;
    struct fake_model f = fake_model_default();
    f.mask_id = -1;
    warm(&f, 64, 64, 0);
    assert_true(f.passes[ENG_PASS_PREFILL] > 0);
    assert_int_equal(f.passes[ENG_PASS_VERIFY] + f.passes[ENG_PASS_DRAFT] + f.passes[ENG_PASS_DENOISE], 0);
}

static void test_a_failure_ends_it(void **state)
{
    (void)state;
    struct fake_model f = fake_model_default();
    f.fail_at_step = 5;
    warm(&f, 64, 64, KRN_EDEVICE);
    assert_int_equal(f.steps, 5);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_kind_in_every_small_size),
        cmocka_unit_test(test_limits_bound_the_sizes),
        cmocka_unit_test(test_a_model_without_a_mask_runs_causal_passes_only),
        cmocka_unit_test(test_a_failure_ends_it),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
