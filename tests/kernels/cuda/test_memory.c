// Device memory over a device that is not there: accounts, records of matrices, the way of weights, failures.
#include "cmocka_util.h"
#include "fake_driver.h"
#include "kern_util.h"
#include "memory.h"
#include "quant.h"

static struct krn_cuda_driver driver;
static struct krn_cuda_memory m;

static void start(const struct fake_driver_options *options)
{
    assert_int_equal(fake_driver_open(options, &driver), 0);
    krn_cuda_memory_init(&m, &driver);
}

static void stop(void)
{
    krn_cuda_memory_done(&m);
    struct fake_driver_counts counts = fake_driver_count(&driver);
    assert_int_equal(counts.allocations, 0);
    assert_int_equal(counts.host_allocations, 0);
    assert_int_equal(counts.events, 0);
    driver.close(driver.ctx);
}

static int64_t bytes_of(const char *name)
{
    for (int32_t i = 0; i < m.n_categories; i++)
        if (strcmp(m.categories[i].name, name) == 0)
            return m.categories[i].bytes;
    return -1;
}

static void test_every_byte_is_counted_under_its_purpose(void **state)
{
    (void)state;
    start(NULL);
    void *a, *b, *c;
    assert_int_equal(krn_cuda_memory_alloc(&m, 100, "kv", true, &a), 0);
    assert_int_equal(krn_cuda_memory_alloc(&m, 7, "logits", true, &b), 0);
    assert_int_equal(krn_cuda_memory_alloc(&m, 11, "kv", true, &c), 0);
    assert_int_equal(bytes_of("kv"), 111);
    assert_int_equal(bytes_of("logits"), 7);
    for (int i = 0; i < 100; i++)
        assert_int_equal(((char *)a)[i], 0);
    krn_cuda_memory_release(&m, a);
    krn_cuda_memory_release(&m, NULL);
    assert_int_equal(bytes_of("kv"), 11);
    assert_int_equal(fake_driver_count(&driver).bytes, 18);
    stop();
}

static void test_purposes_beyond_the_table_are_counted_as_other(void **state)
{
    (void)state;
    static const char *const names[] = {"a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n"};
    start(NULL);
    int64_t total = 0;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        void *ptr;
        assert_int_equal(krn_cuda_memory_alloc(&m, i + 1, names[i], false, &ptr), 0);
        total += (int64_t)i + 1;
    }
    assert_int_equal(m.n_categories, KRN_MEMORY_CATEGORIES);
    assert_int_equal(bytes_of("other"), 12 + 13 + 14);
    for (int32_t i = 0; i < m.n_categories; i++)
        total -= m.categories[i].bytes;
    assert_int_equal(total, 0);
    stop();
}

static void test_matrices_hold_whole_tiles_and_are_found_by_address_and_kind(void **state)
{
    (void)state;
    start(NULL);
    void *x, *y, *z;
    assert_int_equal(krn_cuda_memory_alloc_rows(&m, KRN_ROWS_STATE, 3, 10, "activations", &x), 0);
    assert_int_equal(bytes_of("activations"), KRN_ROW_TILE * 10 * 4);
    assert_int_equal(krn_cuda_memory_alloc_rows(&m, KRN_ROWS_INPUT, KRN_ROW_TILE + 1, 33, "inputs", &y), 0);
    assert_int_equal(bytes_of("inputs"), 2 * KRN_ROW_TILE * 64 * 2);
    assert_int_equal(krn_cuda_memory_alloc_rows(&m, KRN_ROWS_OUTPUT, 1, 70, "outputs", &z), 0);
    struct krn_cuda_rows *found = krn_cuda_memory_rows(&m, z, KRN_ROWS_OUTPUT);
    assert_non_null(found);
    assert_int_equal(found->rows, KRN_ROW_TILE);
    assert_int_equal(found->sums.n, 0);
    // Room for the parts of any product of this width, and the adapter's.
    for (int32_t cols = 1; cols < 20000; cols += 777)
        assert_true(found->elements >= (int64_t)KRN_ROW_TILE * 70 * (krn_cuda_linear_sums(70, cols) + 1));
    assert_null(krn_cuda_memory_rows(&m, z, KRN_ROWS_INPUT));
    assert_null(krn_cuda_memory_rows(&m, (char *)z + 4, KRN_ROWS_OUTPUT));
    krn_cuda_memory_release(&m, z);
    assert_null(krn_cuda_memory_rows(&m, z, KRN_ROWS_OUTPUT));
    assert_non_null(krn_cuda_memory_rows(&m, y, KRN_ROWS_INPUT));
    assert_int_equal(krn_cuda_memory_alloc_rows(&m, KRN_ROWS_OUTPUT, INT32_MAX - 64, 1 << 24, "x", &z), KRN_ENOMEM);
    assert_int_equal(krn_cuda_memory_alloc_rows(&m, KRN_ROWS_STATE, 1, 0, "x", &z), KRN_EINVAL);
    stop();
}

static void test_memory_that_is_not_there_is_refused_and_nothing_is_counted(void **state)
{
    (void)state;
    start(&(struct fake_driver_options){.memory = 1 << 20});
    void *ptr = NULL;
    assert_int_equal(krn_cuda_memory_alloc(&m, (1 << 20) + 1, "kv", true, &ptr), KRN_ENOMEM);
    assert_int_equal(krn_cuda_memory_alloc(&m, SIZE_MAX, "kv", true, &ptr), KRN_ENOMEM);
    assert_null(ptr);
    fake_driver_fail(&driver, FAKE_FILL, 1, KRN_EDEVICE);
    assert_int_equal(krn_cuda_memory_alloc(&m, 8, "kv", true, &ptr), KRN_EDEVICE);
    assert_null(ptr);
    assert_int_equal(fake_driver_count(&driver).allocations, 0);
    stop();
}

// ---- weights --------------------------------------------------------------------------------------------------------

// Imports, waits, and compares every element (rounded to bf16) and every padding element (zero).
static void import_and_compare(const struct krn_tensor *host)
{
    struct krn_tensor w;
    assert_int_equal(krn_cuda_memory_import(&m, host, KRN_BF16, &w), 0);
    assert_int_equal(krn_cuda_memory_settle(&m), 0);
    const uint16_t *data = w.data;
    int32_t stride = krn_weight_stride(KRN_BF16, host->cols);
    assert_int_equal(stride, KRN_PAD(host->cols));
    for (int32_t r = 0; r < host->rows; r++)
        for (int32_t c = 0; c < stride; c++) {
            float want = c < host->cols ? tensor_at(host, r, c) : 0;
            assert_near(bf16_to_float(data[(int64_t)r * stride + c]), want, 0.00390625 * (want < 0 ? -want : want));
        }
    assert_int_equal(bytes_of("weights"), (int64_t)host->rows * stride * 2);
    krn_cuda_memory_release(&m, (void *)(uintptr_t)w.data);
    assert_int_equal(bytes_of("weights"), 0);
}

static void import_all_shapes(bool deferred)
{
    struct random random = {.state = 5};
    const int32_t shapes[][2] = {{1, 1}, {1, 37}, {5, 32}, {50, 64}, {33, 40}, {7, 129}};
    start(&(struct fake_driver_options){.deferred = deferred});
    m.piece_bytes = 600; // several pieces each, of one to a few rows
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (int type = KRN_F32; type <= KRN_BF16; type++) {
            struct krn_tensor host = tensor_random(&random, (enum krn_type)type, shapes[i][0], shapes[i][1]);
            import_and_compare(&host);
            tensor_free(&host);
        }
    assert_int_equal(krn_cuda_memory_end_loading(&m), 0);
    assert_int_equal(fake_driver_count(&driver).host_allocations, 0);
    stop();
}

static void test_weights_arrive_in_pieces_whole_and_padded(void **state)
{
    (void)state;
    import_all_shapes(false);
}

// Work on the load stream runs as late as it may: a pinned buffer that is filled again too early sends the wrong rows.
static void test_a_pinned_buffer_is_not_filled_before_its_copy_was_done(void **state)
{
    (void)state;
    import_all_shapes(true);
}

static void test_a_vector_stays_f32_and_a_matrix_does_not(void **state)
{
    (void)state;
    start(NULL);
    float values[6] = {1, 2, 3, 4, 5, 1e-30f};
    struct krn_tensor host = {.data = values, .type = KRN_F32, .rows = 1, .cols = 6}, w;
    assert_int_equal(krn_cuda_memory_import(&m, &host, KRN_F32, &w), 0);
    assert_int_equal(krn_cuda_memory_settle(&m), 0);
    assert_memory_equal(w.data, values, sizeof values);
    host.rows = 2, host.cols = 3;
    assert_int_equal(krn_cuda_memory_import(&m, &host, KRN_F32, &w), KRN_ENOTSUP);
    assert_int_equal(krn_cuda_memory_import(&m, &host, KRN_Q8, &w), KRN_ENOTSUP);
    host.type = KRN_FP8;
    assert_int_equal(krn_cuda_memory_import(&m, &host, KRN_FP8, &w), KRN_ENOTSUP);
    stop();
}

static void test_quantised_weights_cost_what_their_format_says(void **state)
{
    (void)state;
    struct random random = {.state = 6};
    start(NULL);
    struct krn_tensor host = tensor_random(&random, KRN_BF16, 12, 256), w;
    assert_int_equal(krn_cuda_memory_import(&m, &host, KRN_FP8, &w), 0);
    assert_int_equal(bytes_of("weights"), krn_matrix_bytes(KRN_FP8, 12, 256));
    assert_non_null(w.scales);
    krn_cuda_memory_release(&m, (void *)(uintptr_t)w.data);
    assert_int_equal(krn_cuda_memory_import(&m, &host, KRN_Q4, &w), 0);
    assert_int_equal(bytes_of("weights"), krn_matrix_bytes(KRN_Q4, 12, 256));
    tensor_free(&host);
    assert_int_equal(krn_cuda_memory_settle(&m), 0);
    stop();
}

static void test_an_import_that_fails_anywhere_leaves_nothing(void **state)
{
    (void)state;
    struct random random = {.state = 7};
    struct krn_tensor host = tensor_random(&random, KRN_F32, 40, 40);
    const enum fake_call calls[] = {FAKE_ALLOC,      FAKE_HOST_ALLOC,   FAKE_EVENT_NEW, FAKE_COPY_IN,
                                    FAKE_EVENT_WAIT, FAKE_EVENT_RECORD, FAKE_LAUNCH};
    int failures = 0;
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++)
        for (int64_t nth = 1, failed = 1; failed; nth++) {
            start(NULL);
            m.piece_bytes = 2000;
            struct krn_tensor w = {0};
            fake_driver_fail(&driver, calls[i], nth, KRN_EDEVICE);
            failed = krn_cuda_memory_import(&m, &host, KRN_BF16, &w) == KRN_EDEVICE;
            failures += (int)failed;
            assert_int_equal(bytes_of("weights") > 0, !failed);
            assert_int_equal(w.data != NULL, !failed);
            stop();
        }
    assert_true(failures > 15);
    tensor_free(&host);
}

static void test_upload_and_download_take_any_size(void **state)
{
    (void)state;
    start(&(struct fake_driver_options){.deferred = true});
    m.piece_bytes = 100;
    char from[1234], to[1234];
    void *device;
    for (size_t i = 0; i < sizeof from; i++)
        from[i] = (char)(i * 7);
    assert_int_equal(krn_cuda_memory_alloc(&m, sizeof from, "kv", true, &device), 0);
    assert_int_equal(krn_cuda_memory_upload(&m, device, from, sizeof from), 0);
    assert_int_equal(krn_cuda_memory_download(&m, to, device, sizeof to), 0);
    assert_memory_equal(from, to, sizeof from);
    assert_int_equal(krn_cuda_memory_download(&m, to, device, 0), 0);
    stop();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_byte_is_counted_under_its_purpose),
        cmocka_unit_test(test_purposes_beyond_the_table_are_counted_as_other),
        cmocka_unit_test(test_matrices_hold_whole_tiles_and_are_found_by_address_and_kind),
        cmocka_unit_test(test_memory_that_is_not_there_is_refused_and_nothing_is_counted),
        cmocka_unit_test(test_weights_arrive_in_pieces_whole_and_padded),
        cmocka_unit_test(test_a_pinned_buffer_is_not_filled_before_its_copy_was_done),
        cmocka_unit_test(test_a_vector_stays_f32_and_a_matrix_does_not),
        cmocka_unit_test(test_quantised_weights_cost_what_their_format_says),
        cmocka_unit_test(test_an_import_that_fails_anywhere_leaves_nothing),
        cmocka_unit_test(test_upload_and_download_take_any_size),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
