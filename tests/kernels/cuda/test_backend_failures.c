// What goes wrong: a device that fails at any call, recordings that fail, memory that is not there, a caller that does
// not keep the order.
#include "backend.h"
#include "cmocka_util.h"
#include "fake_driver.h"
#include "tiny_model.h"

static struct tiny_weights weights;
static int64_t live_before; // of allocations, when the test began

static int note_live(void **state)
{
    (void)state;
    live_before = fake_driver_live_allocations();
    return 0;
}

static struct krn_backend *open_over(struct krn_cuda_driver *driver, const struct fake_driver_options *fake,
                                     const struct krn_cuda_options *options)
{
    struct krn_backend *backend = NULL;
    const struct krn_cuda_options defaults = {0};
    assert_int_equal(fake_driver_open(fake, driver), 0);
    assert_int_equal(krn_cuda_backend_open(driver, options ? options : &defaults, &backend, NULL, 0), 0);
    return backend;
}

static void close_backend(struct krn_backend *backend)
{
    backend->close(backend->ctx);
    assert_int_equal(fake_driver_live_allocations(), live_before);
}

static void plan_steps(struct tiny_plan *p, int32_t rows, int32_t pos)
{
    tiny_plan_start(p, 4, 0);
    for (int32_t s = 0; s < rows; s++)
        tiny_plan_add(p, s, pos, 1, KRN_MASK_CAUSAL, TINY_WANTS_LAST);
}

// ---- the device -----------------------------------------------------------------------------------------------------

// Everything from import to the third pass. 0 or the first failure.
static int whole_life(struct krn_backend *backend, struct tiny_plan plans[3])
{
    struct tiny_model model;
    int rc = tiny_open(&model, backend, &weights, NULL);
    for (int i = 0; rc >= 0 && i < 3; i++) {
        plan_steps(&plans[i], 2, i);
        rc = tiny_pass(&model, &plans[i].pass);
    }
    return rc < 0 ? rc : 0;
}

static void test_a_device_that_fails_at_any_call_is_reported_and_closed(void **state)
{
    (void)state;
    static struct tiny_plan plans[3];
    int64_t failures = 0;
    for (int call = 0; call < FAKE_N_CALLS; call++)
        for (int64_t nth = 1, step = 1;; nth += step, step += nth > 6 ? step : 0) {
            struct krn_cuda_driver driver;
            struct krn_backend *b = open_over(&driver, &(struct fake_driver_options){.memory = 256 << 20}, NULL);
            fake_driver_fail(&driver, (enum fake_call)call, nth, KRN_EDEVICE);
            int rc = whole_life(b, plans);
            if (rc == 0) {
                close_backend(b);
                break;
            }
            failures++;
            // An allocation says no more than that there is none; the calls after it say why.
            assert_true(rc == KRN_EDEVICE || (rc == KRN_ENOMEM && (call == FAKE_ALLOC || call == FAKE_FILL)));
            assert_non_null(strstr(b->error(b->ctx), "failed on demand"));
            assert_int_equal(b->begin(b->ctx, &plans[0].pass), KRN_EDEVICE);
            assert_int_equal(b->submit(b->ctx), KRN_EDEVICE);
            assert_int_equal(b->wait(b->ctx), KRN_EDEVICE);
            assert_int_equal(b->embed(b->ctx, NULL, NULL, NULL, 1), KRN_EDEVICE);
            assert_int_equal(b->upload(b->ctx, NULL, NULL, 0), KRN_EDEVICE);
            assert_null(b->alloc(b->ctx, 1, "kv"));
            close_backend(b);
        }
    assert_true(failures > 60);
}

// Not the device's end, only this recording's: the pass is launched op by op, and so is everything after it.
static void test_a_recording_that_fails_costs_the_graph_and_not_the_pass(void **state)
{
    (void)state;
    static struct tiny_plan right[3], plans[3];
    const struct krn_cuda_options eager = {.no_graphs = true};
    struct krn_cuda_driver driver;
    struct krn_backend *b = open_over(&driver, NULL, &eager);
    assert_int_equal(whole_life(b, right), 0);
    close_backend(b);
    const struct {
        enum fake_call call;
        int64_t nth;
    } cases[] = {{FAKE_CAPTURE_BEGIN, 1},
                 {FAKE_CAPTURE_END, 1},
                 {FAKE_CAPTURE_BEGIN, 5},
                 {FAKE_CAPTURE_END, 5},
                 {FAKE_LAUNCH, 3}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct tiny_model model;
        b = open_over(&driver, &(struct fake_driver_options){.deferred = true}, NULL);
        struct krn_cuda_backend *inner = b->ctx;
        bool in_prepare = cases[i].nth == 1; // the trial of prepare; it makes four
        if (in_prepare)
            fake_driver_fail(&driver, cases[i].call, cases[i].nth, KRN_ENOMEM);
        assert_int_equal(tiny_open(&model, b, &weights, NULL), 0);
        assert_int_equal(inner->graphs.disabled, in_prepare);
        if (!in_prepare)
            fake_driver_fail(&driver, cases[i].call, cases[i].call == FAKE_LAUNCH ? cases[i].nth : 1, KRN_ENOMEM);
        for (int pass = 0; pass < 3; pass++) {
            plan_steps(&plans[pass], 2, pass);
            assert_int_equal(tiny_pass(&model, &plans[pass].pass), 0);
            assert_memory_equal(plans[pass].choices, right[pass].choices, 2 * sizeof *plans[pass].choices);
        }
        assert_true(inner->graphs.disabled);
        assert_non_null(strstr(inner->graphs.reason, "failed on demand"));
        assert_non_null(strstr(b->description, inner->graphs.reason));
        close_backend(b);
    }
}

static void test_an_abandoned_pass_leaves_no_trace(void **state)
{
    (void)state;
    struct krn_cuda_driver driver;
    struct tiny_model model;
    static struct tiny_plan p, q;
    struct krn_backend *b = open_over(&driver, NULL, NULL);
    assert_int_equal(tiny_open(&model, b, &weights, NULL), 0);
    plan_steps(&p, 2, 0);
    plan_steps(&q, 2, 0);
    assert_int_equal(tiny_pass(&model, &p.pass), 0);
    plan_steps(&q, 3, 0);
    assert_int_equal(b->begin(b->ctx, &q.pass), 0);
    assert_int_equal(b->embed(b->ctx, model.x, &model.w.embed, q.tokens, 3), 0);
    b->abandon(b->ctx);
    b->abandon(b->ctx);
    assert_int_equal(b->submit(b->ctx), KRN_EINVAL);
    plan_steps(&q, 2, 0);
    assert_int_equal(tiny_pass(&model, &q.pass), KRN_REPLAY);
    assert_memory_equal(p.choices, q.choices, 2 * sizeof *p.choices);
    // Nobody may be linked to the choices of a pass that was given up.
    assert_int_equal(b->begin(b->ctx, &q.pass), KRN_REPLAY);
    b->abandon(b->ctx);
    q.links[0] = 0;
    assert_int_equal(b->begin(b->ctx, &q.pass), KRN_EINVAL);
    assert_non_null(strstr(b->error(b->ctx), "linked"));
    close_backend(b);
}

// As the one that was given up: the choices of the pass before it may be overwritten.
static void test_nobody_is_linked_across_a_submit_that_failed(void **state)
{
    (void)state;
    struct krn_cuda_driver driver;
    struct tiny_model model;
    static struct tiny_plan p, q;
    struct krn_backend *b = open_over(&driver, NULL, NULL);
    assert_int_equal(tiny_open(&model, b, &weights, NULL), 0);
    plan_steps(&p, 2, 0);
    plan_steps(&q, 2, 0);
    assert_int_equal(tiny_pass(&model, &p.pass), 0);
    assert_int_equal(b->begin(b->ctx, &q.pass), KRN_REPLAY);
    fake_driver_fail(&driver, FAKE_COPY_OUT, 1, KRN_ENOMEM);
    assert_int_equal(b->submit(b->ctx), KRN_ENOMEM);
    q.links[0] = 1;
    assert_int_equal(b->begin(b->ctx, &q.pass), KRN_EINVAL);
    assert_non_null(strstr(b->error(b->ctx), "linked"));
    q.links[0] = -1;
    assert_int_equal(tiny_pass(&model, &q.pass), KRN_REPLAY); // the device itself is well
    assert_memory_equal(p.choices, q.choices, 2 * sizeof *p.choices);
    close_backend(b);
}

// ---- memory ---------------------------------------------------------------------------------------------------------

static int64_t bytes_of(const struct krn_memory *memory, const char *name)
{
    for (int32_t i = 0; i < memory->n_categories; i++)
        if (strcmp(memory->categories[i].name, name) == 0)
            return memory->categories[i].bytes;
    return 0;
}

static int64_t padded(const struct krn_tensor *t)
{
    return (int64_t)t->rows * KRN_PAD(t->cols) * 2;
}

static void test_the_memory_table_accounts_for_every_byte(void **state)
{
    (void)state;
    struct krn_cuda_driver driver;
    struct tiny_model model;
    struct krn_memory memory;
    struct krn_backend *b = open_over(&driver, NULL, NULL);
    assert_int_equal(tiny_open(&model, b, &weights, NULL), 0);
    b->memory(b->ctx, &memory);
    int64_t sum = 0, expected = padded(&weights.embed) + padded(&weights.norm) + padded(&weights.head);
    for (int32_t i = 0; i < memory.n_categories; i++)
        sum += memory.categories[i].bytes;
    for (int l = 0; l < TINY_LAYERS; l++) {
        for (int i = 0; i < TINY_PER_LAYER; i++)
            expected += padded(&weights.layers[l][i]);
        expected += padded(&weights.a[l]) + padded(&weights.b[l]);
    }
    assert_int_equal(sum, fake_driver_count(&driver).bytes);
    assert_int_equal(memory.total - memory.free, sum);
    assert_int_equal(bytes_of(&memory, "weights"), expected);
    assert_int_equal(bytes_of(&memory, "loading"), 0);
    assert_int_equal(bytes_of(&memory, "kv"), TINY_PAGES * b->kv_page_bytes(b->ctx, &model.kv));
    assert_true(memory.reserve > 0);
    close_backend(b);
}

static void test_a_kv_store_that_does_not_fit_is_refused_and_leaves_the_rest(void **state)
{
    (void)state;
    struct krn_cuda_driver driver;
    struct krn_backend *b = open_over(&driver, &(struct fake_driver_options){.memory = 1 << 20}, NULL);
    struct krn_kv kv = {
        .type = KRN_FP8, .n_layers = 1, .n_pages = 10000, .page_size = 16, .n_kv_heads = 2, .head_dim = 64};
    assert_int_equal(b->kv_page_bytes(b->ctx, &kv), 2 * 16 * 2 * (64 + 4));
    assert_int_equal(b->kv_open(b->ctx, &kv), KRN_ENOMEM);
    assert_null(kv.k);
    assert_non_null(strstr(b->error(b->ctx), "out of device memory"));
    assert_int_equal(fake_driver_count(&driver).bytes, 0);
    kv.n_pages = 100;
    assert_int_equal(b->kv_open(b->ctx, &kv), 0);
    assert_non_null(kv.v_scales);
    b->kv_close(b->ctx, &kv);
    assert_int_equal(fake_driver_count(&driver).bytes, 0);
    kv.head_dim = 130;
    assert_int_equal(b->kv_open(b->ctx, &kv), KRN_ENOTSUP);
    assert_non_null(strstr(b->error(b->ctx), "130"));
    kv.head_dim = 64, kv.type = KRN_F32;
    assert_int_equal(b->kv_open(b->ctx, &kv), KRN_ENOTSUP);
    kv.type = KRN_N_TYPES, kv.n_pages = 1;
    assert_int_equal(b->kv_open(b->ctx, &kv), 0);
    assert_int_equal(kv.type, KRN_BF16);
    close_backend(b);
}

// ---- the order ------------------------------------------------------------------------------------------------------

static void test_calls_out_of_order_are_refused_with_a_sentence(void **state)
{
    (void)state;
    struct krn_cuda_driver driver;
    struct tiny_model model;
    static struct tiny_plan p, q;
    struct krn_backend *b = open_over(&driver, &(struct fake_driver_options){.deferred = true}, NULL);
    plan_steps(&p, 2, 0);
    assert_int_equal(b->begin(b->ctx, &p.pass), KRN_EINVAL);
    assert_non_null(strstr(b->error(b->ctx), "prepare"));
    assert_int_equal(tiny_open(&model, b, &weights, NULL), 0);
    assert_int_equal(b->embed(b->ctx, model.x, &model.w.embed, p.tokens, 2), KRN_EINVAL);
    assert_int_equal(b->begin(b->ctx, &p.pass), 0);
    assert_int_equal(b->begin(b->ctx, &p.pass), KRN_EINVAL);
    assert_null(b->alloc(b->ctx, 1, "kv"));
    assert_int_equal(b->wait(b->ctx), KRN_EINVAL);
    plan_steps(&q, 2, 0);
    // The arrays must be the pass's own, not some that hold the same.
    assert_int_equal(b->embed(b->ctx, model.x, &model.w.embed, q.tokens, 2), KRN_EINVAL);
    assert_non_null(strstr(b->error(b->ctx), "embed"));
    assert_int_equal(b->gather(b->ctx, model.wanted_x, model.x, p.wanted_rows + 1, 2, TINY_HIDDEN), KRN_EINVAL);
    assert_int_equal(b->select(b->ctx, model.logits, TINY_VOCAB, -1, q.wanted, 2, p.choices), KRN_EINVAL);
    // Nothing was multiplied yet.
    assert_int_equal(b->add(b->ctx, model.x, model.add, 2, TINY_HIDDEN), KRN_EINVAL);
    assert_int_equal(b->attention(b->ctx, model.att, model.q, TINY_HEADS, &model.kv, 0, p.segments, 2), KRN_EINVAL);
    assert_int_equal(tiny_ops(&model, &p.pass), 0);
    assert_int_equal(b->submit(b->ctx), 0);
    assert_int_equal(tiny_start(&model, &q.pass), KRN_REPLAY);
    assert_int_equal(b->begin(b->ctx, &q.pass), KRN_EINVAL);
    assert_non_null(strstr(b->error(b->ctx), "ahead"));
    assert_int_equal(b->wait(b->ctx), 0);
    assert_int_equal(b->wait(b->ctx), 0);
    assert_int_equal(b->wait(b->ctx), 0);
    assert_memory_equal(p.choices, q.choices, 2 * sizeof *p.choices);
    close_backend(b);
}

static void test_a_pass_without_rows_is_a_pass(void **state)
{
    (void)state;
    struct krn_cuda_driver driver;
    struct tiny_model model;
    const struct krn_pass none = {0};
    struct krn_backend *b = open_over(&driver, NULL, NULL);
    assert_int_equal(tiny_open(&model, b, &weights, NULL), 0);
    int64_t kernels = fake_driver_count(&driver).kernels;
    assert_int_equal(tiny_pass(&model, &none), 0);
    assert_int_equal(fake_driver_count(&driver).kernels, kernels);
    close_backend(b);
}

static void test_limits_and_devices_that_do_not_fit_are_refused(void **state)
{
    (void)state;
    struct krn_cuda_driver driver;
    struct krn_backend *b = open_over(&driver, NULL, NULL);
    const float inv_freq[64] = {1};
    const struct krn_rope rope = {.inv_freq = inv_freq, .head_dim = 130, .attention_factor = 1};
    struct krn_limits limits = {.max_rows = 4,
                                .max_segments = 4,
                                .max_chunk = 4,
                                .max_pages = 4,
                                .n_layers = 1,
                                .n_heads = 3,
                                .n_kv_heads = 2,
                                .head_dim = 130,
                                .n_vocab = 10,
                                .hidden = 8,
                                .ff = 8,
                                .rope = &rope};
    assert_int_equal(b->prepare(b->ctx, &limits), KRN_EINVAL);
    limits.n_heads = 4;
    assert_int_equal(b->prepare(b->ctx, &limits), KRN_ENOTSUP);
    assert_non_null(strstr(b->error(b->ctx), "130"));
    close_backend(b);

    struct krn_backend *none = NULL;
    char err[200] = "";
    assert_int_equal(fake_driver_open(NULL, &driver), 0);
    driver.device.major = 7;
    assert_int_equal(krn_cuda_backend_open(&driver, &(struct krn_cuda_options){0}, &none, err, sizeof err),
                     KRN_ENOTSUP);
    assert_non_null(strstr(err, "8.0"));
    assert_int_equal(fake_driver_open(NULL, &driver), 0);
    assert_int_equal(
        krn_cuda_backend_open(&driver, &(struct krn_cuda_options){.tensor_parallel = 2}, &none, err, sizeof err),
        KRN_ENOTSUP);
    assert_null(none);
}

static int set_up_weights(void **state)
{
    (void)state;
    tiny_weights_make(&weights);
    return 0;
}

static int free_weights(void **state)
{
    (void)state;
    tiny_weights_free(&weights);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_a_device_that_fails_at_any_call_is_reported_and_closed, note_live),
        cmocka_unit_test_setup(test_a_recording_that_fails_costs_the_graph_and_not_the_pass, note_live),
        cmocka_unit_test_setup(test_an_abandoned_pass_leaves_no_trace, note_live),
        cmocka_unit_test_setup(test_nobody_is_linked_across_a_submit_that_failed, note_live),
        cmocka_unit_test_setup(test_the_memory_table_accounts_for_every_byte, note_live),
        cmocka_unit_test_setup(test_a_kv_store_that_does_not_fit_is_refused_and_leaves_the_rest, note_live),
        cmocka_unit_test_setup(test_calls_out_of_order_are_refused_with_a_sentence, note_live),
        cmocka_unit_test_setup(test_a_pass_without_rows_is_a_pass, note_live),
        cmocka_unit_test_setup(test_limits_and_devices_that_do_not_fit_are_refused, note_live),
    };
    return cmocka_run_group_tests(tests, set_up_weights, free_weights);
}
