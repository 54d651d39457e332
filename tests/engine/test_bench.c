// engine/bench.c: made-up passes on the fake model, which checks that each prefix a pass reads is final, and on nano.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "base/err.h"
#include "bench.h"
#include "fake_model.h"

enum { SEQUENCES = 6, CONTEXT = 40 };

static struct fake_model fake;

static struct eng_parts parts_of(struct fake_model *f)
{
    return (struct eng_parts){.model = fake_model_open(f),
                              .info = {.n_pages = f->n_pages,
                                       .page_size = f->page_size,
                                       .max_context = CONTEXT,
                                       .step_bytes = 1000,
                                       .adapter_bytes = 100,
                                       .embed_row_bytes = 10,
                                       .kv_token_bytes = 1}};
}

static struct eng_bench *open_bench(struct fake_model *f)
{
    struct eng_options o = eng_options_default();
    struct eng_bench *b = NULL;
    char err[300] = "";
    o.max_sequences = SEQUENCES;
    o.max_step_rows = 64;
    struct eng_parts parts = parts_of(f);
    if (eng_bench_make(&o, &parts, &b, err, sizeof err))
        fail_msg("%s", err);
    return b;
}

static void run(struct eng_bench *b, enum eng_pass_kind kind, int32_t segments, int32_t rows, int32_t context,
                struct eng_bench_time *t)
{
    struct eng_bench_shape s = {.kind = kind, .segments = segments, .rows = rows, .context = context};
    assert_int_equal(eng_bench_pass(b, &s, 4, t), 0);
    assert_true(t->min_ms >= 0 && t->min_ms <= t->median_ms && t->median_ms <= t->max_ms);
    assert_true(t->host_ms <= t->max_ms && t->queued_ms >= 0);
    assert_int_equal(fake.n_flying, 0); // nothing is left under way
    if (fake.fault[0])
        fail_msg("%s", fake.fault);
}

// Every kind at contexts that grow, shrink and grow again: what an earlier pass overwrote is filled anew.
static void passes(bool async)
{
    static const int32_t contexts[] = {0, 7, 32, 7, 31, 16};
    fake = fake_model_default();
    fake.async = async;
    struct eng_bench *b = open_bench(&fake);
    struct eng_bench_time t;
    for (size_t i = 0; i < sizeof contexts / sizeof *contexts; i++) {
        int32_t c = contexts[i];
        run(b, ENG_PASS_AR, SEQUENCES, 1, c, &t);
        assert_int_equal(t.wanted, SEQUENCES);
        assert_int_equal(t.weight_bytes, 1000 + SEQUENCES * 10);
        assert_int_equal(t.kv_bytes, SEQUENCES * (c + 1));
        run(b, ENG_PASS_DRAFT, 2, 8, c, &t);
        assert_int_equal(t.wanted, 14);
        assert_true(t.adapter && t.weight_bytes == 1000 + 100 + 16 * 10 && t.kv_bytes == 2 * (c + 8));
        run(b, ENG_PASS_VERIFY, 2, 8, c, &t);
        assert_true(!t.adapter && t.wanted == 16 && t.weight_bytes == 1000 + 16 * 10);
        run(b, ENG_PASS_DENOISE, 1, 4, c, &t);
        assert_true(!t.adapter && t.wanted == 3);
        run(b, ENG_PASS_SEAL, 1, 4, c, &t);
        assert_int_equal(t.wanted, 1);
        run(b, ENG_PASS_PREFILL, 1, 8, c, &t);
        assert_int_equal(t.wanted, 1);
    }
    for (int k = 0; k < ENG_N_PASS_KINDS; k++)
        assert_true(fake.passes[k] > 0);
    assert_int_equal(fake.ahead > 0, async);
    eng_bench_close(b);
}

static void test_every_kind_of_pass_reads_final_keys_only(void **state)
{
    (void)state;
    passes(false);
}

static void test_a_queue_of_passes_too(void **state)
{
    (void)state;
    passes(true);
}

static void test_an_adapter_for_all_blocks_is_counted(void **state)
{
    (void)state;
    struct eng_bench_time t;
    fake = fake_model_default();
    fake.block_adapter = true;
    struct eng_bench *b = open_bench(&fake);
    run(b, ENG_PASS_DENOISE, 1, 4, 3, &t);
    assert_true(t.adapter && t.weight_bytes == 1000 + 100 + 4 * 10);
    eng_bench_close(b);
}

static void test_shapes_that_do_not_fit_are_refused(void **state)
{
    (void)state;
    static const struct eng_bench_shape bad[] = {
        {ENG_PASS_AR, 0, 1, 0},           {ENG_PASS_AR, SEQUENCES + 1, 1, 0}, {ENG_PASS_AR, 1, 0, 0},
        {ENG_PASS_AR, 1, 1, -1},          {ENG_PASS_AR, 1, 1, CONTEXT},       {ENG_PASS_VERIFY, 6, 32, 0},
        {ENG_PASS_VERIFY, 1, 8, 33},      {(enum eng_pass_kind)6, 1, 1, 0},   {(enum eng_pass_kind) - 1, 1, 1, 0},
        {ENG_PASS_DRAFT, 1, INT32_MAX, 0}};
    struct eng_bench_shape good = {ENG_PASS_AR, 1, 1, CONTEXT - 1};
    struct eng_bench_time t;
    fake = fake_model_default();
    struct eng_bench *b = open_bench(&fake);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_int_equal(eng_bench_pass(b, &bad[i], 1, &t), ENG_EINVAL);
    assert_int_equal(eng_bench_pass(b, &good, 0, &t), ENG_EINVAL);
    assert_int_equal(eng_bench_pass(b, &good, 1001, &t), ENG_EINVAL);
    assert_int_equal(fake.steps, 0);
    assert_int_equal(eng_bench_pass(b, &good, 1000, &t), 0);
    eng_bench_close(b);
    fake = fake_model_default();
    fake.mask_id = -1;
    b = open_bench(&fake);
    good = (struct eng_bench_shape){ENG_PASS_DRAFT, 1, 4, 0};
    assert_int_equal(eng_bench_pass(b, &good, 1, &t), ENG_ENOTSUP);
    eng_bench_close(b);
    eng_bench_close(NULL);
}

static void test_too_few_pages_are_said_with_numbers(void **state)
{
    (void)state;
    char err[300] = "";
    struct eng_bench *b = NULL;
    struct eng_options o = eng_options_default();
    fake = fake_model_default();
    fake.n_pages = 59;
    o.max_sequences = SEQUENCES;
    struct eng_parts parts = parts_of(&fake);
    assert_int_equal(eng_bench_make(&o, &parts, &b, err, sizeof err), ENG_ELIMIT);
    assert_non_null(strstr(err, "6 sequences of 40 tokens need 60 KV pages and there is memory for 59"));
    assert_null(b);
    parts.model.close(parts.model.ctx);
}

static void test_a_lost_backend_is_reported_at_every_step(void **state)
{
    (void)state;
    struct eng_bench_shape s = {ENG_PASS_AR, 2, 1, 9};
    struct eng_bench_time t;
    int failed = 0;
    for (int step = 1; step < 14; step++) {
        fake = fake_model_default();
        fake.fail_at_step = step;
        fake.async = true;
        struct eng_bench *b = open_bench(&fake);
        int rc = eng_bench_pass(b, &s, 3, &t);
        assert_true(rc == 0 || rc == KRN_EDEVICE);
        failed += rc != 0;
        if (rc)
            assert_string_equal(eng_bench_error(b, rc), "the fake device fell off the bus");
        eng_bench_close(b);
    }
    assert_int_equal(failed, 10); // the filling pass, three to warm up, three alone, three in the queue
}

// One of these tokens is the first of the made-up prompt.
static void test_nonsense_is_not_timed(void **state)
{
    (void)state;
    struct eng_bench_shape s = {ENG_PASS_AR, 1, 1, 9};
    struct eng_bench_time t;
    int refused = 0;
    for (int32_t token = 0; token < 97; token++) {
        fake = fake_model_default();
        fake.poison = token;
        struct eng_bench *b = open_bench(&fake);
        int rc = eng_bench_pass(b, &s, 1, &t);
        assert_true(rc == 0 || rc == ENG_EDEVICE);
        refused += rc != 0;
        eng_bench_close(b);
    }
    assert_int_equal(refused, 1);
}

static void test_a_checkpoint_is_measured_and_counted(void **state)
{
    (void)state;
    struct eng_options o = eng_options_default();
    struct eng_bench *b = NULL;
    char err[300] = "";
    o.model_dir = TRIMODE_SOURCE_DIR "/config/models/nano";
    o.backend = "cpu";
    o.threads = 2;
    o.max_sequences = 2;
    o.max_context = 64;
    if (eng_bench_open(&o, &b, err, sizeof err))
        fail_msg("%s", err);
    const struct eng_info *info = eng_bench_info(b);
    int64_t embed = (int64_t)1024 * 192 * 2, adapter = (int64_t)6 * 32 * (256 + 192) * 4;
    assert_int_equal(info->adapter_bytes, adapter);
    assert_int_equal(info->embed_row_bytes, 192 * 2);
    assert_int_equal(info->step_bytes, info->weights_bytes - adapter - embed);
    assert_int_equal(info->kv_token_bytes, 2 * 6 * 2 * 64 * 4);
    struct eng_bench_shape s = {ENG_PASS_DRAFT, 2, 32, 20};
    struct eng_bench_time t;
    assert_int_equal(eng_bench_pass(b, &s, 2, &t), 0);
    assert_true(t.adapter && t.wanted == 62 && t.min_ms > 0);
    assert_int_equal(t.kv_bytes, 2 * 52 * (int64_t)info->kv_token_bytes);
    eng_bench_close(b);

    o.model_dir = TRIMODE_SOURCE_DIR "/tests";
    b = NULL;
    assert_true(eng_bench_open(&o, &b, err, sizeof err) != 0 && *err);
    assert_null(b);
    o.model_dir = TRIMODE_SOURCE_DIR "/config/models/nano";
    o.max_context = 0;
    o.kv_memory = 1 << 20;
    assert_int_equal(eng_bench_open(&o, &b, err, sizeof err), ENG_ELIMIT);
    assert_null(b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_kind_of_pass_reads_final_keys_only),
        cmocka_unit_test(test_a_queue_of_passes_too),
        cmocka_unit_test(test_an_adapter_for_all_blocks_is_counted),
        cmocka_unit_test(test_shapes_that_do_not_fit_are_refused),
        cmocka_unit_test(test_too_few_pages_are_said_with_numbers),
        cmocka_unit_test(test_a_lost_backend_is_reported_at_every_step),
        cmocka_unit_test(test_nonsense_is_not_timed),
        cmocka_unit_test(test_a_checkpoint_is_measured_and_counted),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
