// engine/calibrate.c: which passes are measured, on the fake model; files, refusals and the live correction, on nano.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/err.h"
#include "calibrate.h"
#include "client.h"

static struct eng_calibration made;
static char err[640];

static struct fake_model fake_of(int32_t n_pages)
{
    struct fake_model f = fake_model_default();
    f.n_pages = n_pages;
    f.page_size = 16;
    return f;
}

static int calibrate(struct fake_model *f, struct eng_options *o, int32_t max_context, double seconds)
{
    struct eng_parts parts = {.model = fake_model_open(f),
                              .info = {.n_pages = f->n_pages, .page_size = f->page_size, .max_context = max_context}};
    err[0] = '\0';
    int rc = eng_calibrate_parts(o, &parts, seconds, &made, err, sizeof err);
    parts.model.close(parts.model.ctx); // still the caller's
    if (f->fault[0])
        fail_msg("%s", f->fault);
    return rc;
}

static double last_fraction;
static int n_reports;

static void on_progress(void *user, const char *what, double fraction)
{
    (void)user;
    assert_string_equal(what, "calibrate");
    assert_true(fraction >= 0 && fraction <= 1);
    last_fraction = fraction;
    n_reports++;
}

static void test_every_kind_that_the_router_weighs_is_measured(void **state)
{
    (void)state;
    struct fake_model f = fake_of(4096);
    struct eng_options o = eng_options_default();
    o.progress = on_progress;
    assert_int_equal(calibrate(&f, &o, 1000, 2), 0);
    bool kinds[ENG_N_PASS_KINDS] = {false}, segments[65] = {false};
    int32_t longest = 0, most = 0;
    for (int32_t i = 0; i < made.n_passes; i++) {
        const struct eng_calibrated *p = &made.passes[i];
        assert_int_equal(p->sample.pass.rows, p->shape.rows * p->shape.segments);
        assert_int_equal(p->sample.pass.adapter_rows, p->adapter ? p->sample.pass.rows : 0);
        assert_int_equal(p->adapter, p->shape.kind == ENG_PASS_DRAFT);
        kinds[p->shape.kind] = segments[p->shape.segments] = true;
        longest = p->shape.context > longest ? p->shape.context : longest;
        most = p->sample.pass.rows > most ? p->sample.pass.rows : most;
    }
    assert_true(kinds[ENG_PASS_AR] && kinds[ENG_PASS_VERIFY] && kinds[ENG_PASS_DRAFT] && kinds[ENG_PASS_PREFILL]);
    assert_true(segments[1] && segments[64] && longest == 896 && most == 512);
    assert_true(made.n_checks == ENG_MAX_CHECKS && made.check_error > 0);
    assert_true(made.cost.n_knots > 4 && made.cost.n_samples == made.n_passes);
    assert_true(n_reports > made.n_passes && last_fraction >= 1);
}

static void test_small_engines_and_ar_models_are_measured_as_far_as_they_go(void **state)
{
    (void)state;
    struct fake_model f = fake_of(16);
    struct eng_options o = eng_options_default();
    f.mask_id = -1;
    f.has_adapter = false;
    o.max_sequences = 2;
    o.max_step_rows = 64;
    assert_int_equal(calibrate(&f, &o, 100, 0.2), 0);
    for (int32_t i = 0; i < made.n_passes; i++) {
        const struct eng_bench_shape *s = &made.passes[i].shape;
        assert_true(s->segments <= 2 && s->rows <= 64 && s->context + s->rows <= 100 && s->kind != ENG_PASS_DRAFT);
    }
    assert_true(made.n_passes >= 3);
    f = fake_of(3);
    assert_int_equal(calibrate(&f, &o, 48, 0.2), 0); // two sequences of 16
    f = fake_of(1);
    f.page_size = 2; // no block, no prompt fits
    assert_int_equal(calibrate(&f, &o, 2, 0.1), ENG_EINVAL);
}

// Passes of 30 ms: 0.5 s are enough for a few, and the end is near it.
static void test_a_slow_model_is_measured_in_its_time(void **state)
{
    (void)state;
    struct fake_model f = fake_of(4096);
    struct eng_options o = eng_options_default();
    f.step_us = 30000;
    int64_t start = eng_now_ns();
    assert_int_equal(calibrate(&f, &o, 1000, 0.6), 0);
    double took = (double)(eng_now_ns() - start) * 1e-9;
    assert_in_range(made.n_passes, 3, 20);
    if (took > 1.4)
        fail_msg("took %.2f s", took);
    struct eng_cost_pass p = {0};
    eng_cost_pass_add(&p, 1, 32, 1, false);
    double one = eng_cost_predict(&made.cost, &p);
    assert_true(one > 0.025 && one < 0.06);
}

static void test_a_lost_backend_is_an_error_with_its_reason(void **state)
{
    (void)state;
    struct eng_options o = eng_options_default();
    for (int step = 1; step < 60; step += 9) {
        struct fake_model f = fake_of(4096);
        f.fail_at_step = step;
        assert_int_equal(calibrate(&f, &o, 1000, 0.3), KRN_EDEVICE);
        assert_string_equal(err, "the calibration failed: the fake device fell off the bus");
    }
}

// ---- the live correction --------------------------------------------------------------------------------------------

static void generate(struct client *c)
{
    struct answer a;
    struct eng_params p = eng_params_default();
    p.max_tokens = 100;
    p.mode = ENG_MODE_AR;
    p.ignore_eos = true;
    client_submit(c, &a, &p, (int32_t[]){7, 8, 9}, 3);
    client_wait(c);
    answer_free(&a);
}

static void test_running_shows_how_far_the_model_is_off(void **state)
{
    (void)state;
    struct client c;
    struct fake_model f = fake_model_default();
    struct eng_options o = client_options();
    struct eng_stats st;
    f.step_us = 1000;
    client_open(&c, &f, o, 0, NULL);
    eng_stats(c.engine, &st);
    assert_true(!st.has_cost && st.step_error_ratio == 1);
    generate(&c);
    eng_stats(c.engine, &st);
    assert_true(!st.has_cost && st.step_error_ratio == 1); // nothing to be off
    // Idle between two requests: nobody reads or writes it but us.
    c.engine->parts.info.cost = (struct eng_cost){.n_knots = 1, .knots = {1}, .base = 0.1e-3};
    generate(&c);
    eng_stats(c.engine, &st);
    assert_true(st.has_cost);
    if (!(st.step_error_ratio > 0.01 && st.step_error_ratio < 0.12)) // a tenth, or less on a busy machine
        fail_msg("%g", st.step_error_ratio);
    client_close(&c);
}

// ---- nano -----------------------------------------------------------------------------------------------------------

static struct eng_options nano(void)
{
    struct eng_options o = client_options();
    o.model_dir = TRIMODE_SOURCE_DIR "/config/models/nano";
    o.backend = "cpu";
    o.threads = 2;
    return o;
}

static void test_a_model_is_measured_while_opening_if_that_is_asked(void **state)
{
    (void)state;
    struct client c = {0};
    struct eng_options o = nano();
    assert_int_equal(client_open_dir(&c, o, err, sizeof err), 0);
    assert_string_equal(eng_info(c.engine)->cost_origin, "none");
    assert_int_equal(eng_info(c.engine)->cost.n_knots, 0);
    client_close(&c);
    o.calibrate = true;
    int64_t start = eng_now_ns();
    assert_int_equal(client_open_dir(&c, o, err, sizeof err), 0);
    print_message("# opened in %.2f s with a calibration\n", (double)(eng_now_ns() - start) * 1e-9);
    const struct eng_info *info = eng_info(c.engine);
    assert_string_equal(info->cost_origin, "measured at start");
    assert_true(info->cost.n_knots > 0 && info->cost.id.machine[0]);
    generate(&c);
    struct eng_stats st;
    eng_stats(c.engine, &st);
    assert_true(st.has_cost && st.step_error_ratio > 0 && st.step_error_ratio != 1);
    client_close(&c);
}

static void test_a_file_is_loaded_for_what_it_was_measured_with_and_refused_otherwise(void **state)
{
    (void)state;
    char path[] = "/tmp/trimode-cost-XXXXXX";
    struct client c = {0};
    struct eng_options o = nano();
    close(mkstemp(path));
    if (eng_calibrate(&o, 1, &made, err, sizeof err))
        fail_msg("%s", err);
    assert_int_equal(eng_cost_save(path, &made.cost, err, sizeof err), 0);
    o.cost_model = path;
    o.calibrate = true; // the file comes first
    if (client_open_dir(&c, o, err, sizeof err))
        fail_msg("%s", err);
    assert_string_equal(eng_info(c.engine)->cost_origin, "file");
    const struct eng_cost *loaded = &eng_info(c.engine)->cost;
    struct eng_cost_pass p = {0};
    eng_cost_pass_add(&p, 48, 700, 20, true);
    double there = eng_cost_predict(&made.cost, &p);
    assert_true(fabs(eng_cost_predict(loaded, &p) - there) < 1e-9 * there);
    assert_string_equal(loaded->id.machine, made.cost.id.machine);
    client_close(&c);
    o.weights = "f32";
    assert_int_equal(client_open_dir(&c, o, err, sizeof err), ENG_EINVAL);
    assert_non_null(strstr(err, "another model"));
    o.weights = "auto";
    o.kv_type = "q8";
    assert_int_equal(client_open_dir(&c, o, err, sizeof err), ENG_EINVAL);
    assert_true(strstr(err, "another model") && strstr(err, "f32 keys and values\", this is") &&
                strstr(err, "q8 keys and values"));
    o = nano();
    o.cost_model = path;
    o.threads = 1;
    assert_int_equal(client_open_dir(&c, o, err, sizeof err), ENG_EINVAL);
    assert_non_null(strstr(err, "another machine"));
    o.threads = 2;
    snprintf(made.cost.id.version, sizeof made.cost.id.version, "0.0.0");
    assert_int_equal(eng_cost_save(path, &made.cost, err, sizeof err), 0);
    assert_int_equal(client_open_dir(&c, o, err, sizeof err), ENG_EINVAL);
    assert_non_null(strstr(err, "another version of trimode: \"0.0.0\""));
    unlink(path);
    assert_int_equal(client_open_dir(&c, o, err, sizeof err), ENG_EIO);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_kind_that_the_router_weighs_is_measured),
        cmocka_unit_test(test_small_engines_and_ar_models_are_measured_as_far_as_they_go),
        cmocka_unit_test(test_a_slow_model_is_measured_in_its_time),
        cmocka_unit_test(test_a_lost_backend_is_an_error_with_its_reason),
        cmocka_unit_test(test_running_shows_how_far_the_model_is_off),
        cmocka_unit_test(test_a_model_is_measured_while_opening_if_that_is_asked),
        cmocka_unit_test(test_a_file_is_loaded_for_what_it_was_measured_with_and_refused_otherwise),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
