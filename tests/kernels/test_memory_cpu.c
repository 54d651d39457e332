// kernels/cpu/memory_cpu.c: buffers, weights, the KV store and the table of what they take.
#include "cmocka_util.h"
#include "kern_util.h"

#include <stdio.h>

static int set_up(void **state)
{
    *state = open_cpu(2, ~0u);
    return 0;
}

static int tear_down(void **state)
{
    struct krn_backend *backend = *state;
    backend->close(backend->ctx);
    return 0;
}

static int64_t category(struct krn_backend *b, const char *name)
{
    struct krn_memory memory;
    b->memory(b->ctx, &memory);
    assert_true(memory.total == 0 && memory.free == 0 && memory.reserve == 0);
    for (int32_t i = 0; i < memory.n_categories; i++)
        if (strcmp(memory.categories[i].name, name) == 0)
            return memory.categories[i].bytes;
    return -1;
}

static void test_buffers_are_zeroed_and_aligned(void **state)
{
    struct krn_backend *backend = *state;
    static const size_t sizes[] = {0, 1, 63, 64, 65, 1000, 300000};
    char *buffers[7];
    for (int i = 0; i < 7; i++) {
        buffers[i] = backend->alloc(backend->ctx, sizes[i], "test");
        assert_non_null(buffers[i]);
        assert_int_equal((uintptr_t)buffers[i] % 64, 0);
        for (size_t b = 0; b < sizes[i]; b++)
            assert_int_equal(buffers[i][b], 0);
        memset(buffers[i], 0xff, sizes[i]);
    }
    static const int order[] = {3, 0, 6, 1, 5}; // 2 and 4 are left to close
    for (int i = 0; i < 5; i++)
        backend->release(backend->ctx, buffers[order[i]]);
    backend->release(backend->ctx, NULL);
}

static void test_impossible_sizes_give_null(void **state)
{
    struct krn_backend *backend = *state;
    assert_null(backend->alloc(backend->ctx, SIZE_MAX, "test"));
    assert_null(backend->alloc(backend->ctx, SIZE_MAX / 2, "test"));
}

static void test_upload_and_download_copy(void **state)
{
    struct krn_backend *backend = *state;
    float *buffer = backend->alloc(backend->ctx, 3 * sizeof(float), "test");
    float from[3] = {1, 2, 3}, to[3] = {0};
    assert_int_equal(backend->upload(backend->ctx, buffer, from, sizeof from), 0);
    assert_int_equal(backend->download(backend->ctx, to, buffer, sizeof to), 0);
    assert_int_equal(backend->wait(backend->ctx), 0);
    assert_memory_equal(from, to, sizeof to);
    assert_int_equal(backend->upload(backend->ctx, NULL, NULL, 0), 0);
    assert_int_equal(backend->download(backend->ctx, NULL, NULL, 0), 0);
}

static void test_rows_are_zeroed_floats(void **state)
{
    struct krn_backend *b = *state;
    for (enum krn_rows_kind kind = KRN_ROWS_STATE; kind <= KRN_ROWS_OUTPUT; kind++) {
        float *x = b->alloc_rows(b->ctx, kind, 3, 5, "activations");
        for (int i = 0; i < 15; i++)
            assert_true(x[i] == 0);
        x[14] = 1;
        assert_int_equal(category(b, "activations"), 60);
        b->release(b->ctx, x);
    }
    assert_int_equal(category(b, "activations"), 0);
    assert_null(b->alloc_rows(b->ctx, KRN_ROWS_STATE, -1, 5, "activations"));
    assert_null(b->alloc_rows(b->ctx, KRN_ROWS_STATE, INT32_MAX, INT32_MAX, "activations"));
}

static void test_purposes_beyond_the_table_share_the_last_category(void **state)
{
    struct krn_backend *b = *state;
    char names[KRN_MEMORY_CATEGORIES + 3][8];
    void *buffers[KRN_MEMORY_CATEGORIES + 3];
    for (int i = 0; i < KRN_MEMORY_CATEGORIES + 3; i++) {
        snprintf(names[i], sizeof names[i], "p%d", i);
        buffers[i] = b->alloc(b->ctx, 10, names[i]);
    }
    assert_int_equal(category(b, "p0"), 10);
    assert_int_equal(category(b, "p10"), 10);
    assert_int_equal(category(b, "p11"), -1);
    assert_int_equal(category(b, "other"), 40);
    for (int i = 0; i < KRN_MEMORY_CATEGORIES + 3; i++)
        b->release(b->ctx, buffers[i]);
    assert_int_equal(category(b, "other"), 0);
}

// ---- weights --------------------------------------------------------------------------------------------------------

static void test_weights_of_the_wanted_type_are_read_where_they_are(void **state)
{
    struct krn_backend *b = *state;
    uint16_t data[15] = {0};
    struct krn_tensor host = {.data = data, .type = KRN_BF16, .rows = 3, .cols = 5}, device;
    assert_int_equal(b->weights_type(b->ctx, KRN_BF16), KRN_BF16);
    assert_int_equal(b->weights_type(b->ctx, KRN_F32), KRN_F32);
    assert_int_equal(b->import_weights(b->ctx, &host, KRN_BF16, KRN_SPLIT_OUTPUTS, &device), 0);
    assert_ptr_equal(device.data, data);
    assert_true(device.type == KRN_BF16 && device.rows == 3 && device.cols == 5 && !device.scales);
    assert_int_equal(category(b, "weights"), 30); // resident, whoever mapped them
    b->drop_weights(b->ctx, &device);
    assert_null(device.data);
    assert_int_equal(category(b, "weights"), 0);
    b->drop_weights(b->ctx, &device); // nothing any more
}

static void test_bf16_to_f32_is_exact(void **state)
{
    struct krn_backend *b = *state;
    struct random random = {.state = 2};
    struct krn_tensor host = tensor_random(&random, KRN_BF16, 30, 7), device;
    assert_int_equal(b->import_weights(b->ctx, &host, KRN_F32, KRN_SPLIT_NONE, &device), 0);
    assert_int_equal(device.type, KRN_F32);
    for (int r = 0; r < 30; r++)
        for (int c = 0; c < 7; c++)
            assert_true(tensor_at(&device, r, c) == tensor_at(&host, r, c));
    assert_int_equal(category(b, "weights"), 30 * 7 * 4);
    b->drop_weights(b->ctx, &device);
    assert_int_equal(category(b, "weights"), 0);
    tensor_free(&host);
}

static void test_f32_to_bf16_rounds_to_nearest_even(void **state)
{
    struct krn_backend *b = *state;
    static const struct {
        uint32_t f32;
        uint16_t bf16;
    } cases[] = {
        {0x3f800000, 0x3f80}, {0x3f807fff, 0x3f80}, {0x3f808000, 0x3f80}, {0x3f808001, 0x3f81}, {0x3f818000, 0x3f82},
        {0xbf818000, 0xbf82}, {0x7f7fffff, 0x7f80}, {0x7f800000, 0x7f80}, {0xff800000, 0xff80}, {0x7f800001, 0x7fc0},
        {0x7fffffff, 0x7fff}, {0x00000001, 0x0000}, {0x80000000, 0x8000}, {0x00008001, 0x0001},
    };
    enum { N = sizeof cases / sizeof cases[0] };
    uint32_t values[N];
    for (int i = 0; i < N; i++)
        values[i] = cases[i].f32;
    struct krn_tensor host = {.data = values, .type = KRN_F32, .rows = 1, .cols = N}, device;
    assert_int_equal(b->import_weights(b->ctx, &host, KRN_BF16, KRN_SPLIT_NONE, &device), 0);
    for (int i = 0; i < N; i++)
        assert_int_equal(((const uint16_t *)device.data)[i], cases[i].bf16);
    b->drop_weights(b->ctx, &device);
}

static void test_what_cannot_be_imported_is_refused(void **state)
{
    struct krn_backend *b = *state;
    float data[4] = {0};
    struct krn_tensor host = {.data = data, .type = KRN_F32, .rows = 2, .cols = 2}, device = {.rows = 77}, bad = host;
    assert_int_equal(b->import_weights(b->ctx, &host, KRN_FP8, KRN_SPLIT_NONE, &device), KRN_ENOTSUP);
    assert_int_equal(b->import_weights(b->ctx, &host, KRN_Q4, KRN_SPLIT_NONE, &device), KRN_ENOTSUP);
    assert_int_equal(b->import_weights(b->ctx, &host, KRN_Q8, KRN_SPLIT_NONE, &device), KRN_ENOTSUP);
    bad.data = NULL;
    assert_int_equal(b->import_weights(b->ctx, &bad, KRN_F32, KRN_SPLIT_NONE, &device), KRN_EINVAL);
    bad = host;
    bad.rows = 0;
    assert_int_equal(b->import_weights(b->ctx, &bad, KRN_F32, KRN_SPLIT_NONE, &device), KRN_EINVAL);
    assert_int_equal(device.rows, 77);
}

// ---- KV -------------------------------------------------------------------------------------------------------------

static void test_the_kv_store_is_counted_and_f32_unless_asked_otherwise(void **state)
{
    struct krn_backend *b = *state;
    struct krn_kv kv = {
        .type = KRN_N_TYPES, .n_layers = 2, .n_pages = 3, .page_size = 4, .n_kv_heads = 2, .head_dim = 8};
    int64_t page = 2 * 2 * 2 * 8 * 4 * 4;
    assert_int_equal(b->kv_page_bytes(b->ctx, &kv), page);
    assert_int_equal(b->kv_open(b->ctx, &kv), 0);
    assert_true(kv.type == KRN_F32 && kv.k && kv.v && !kv.k_scales && !kv.v_scales);
    assert_int_equal(category(b, "kv"), 3 * page);
    ((float *)kv.k)[3 * page / 8 - 1] = 1;
    b->kv_close(b->ctx, &kv);
    assert_null(kv.k);
    assert_int_equal(category(b, "kv"), 0);
    kv.type = KRN_F32;
    kv.n_pages = 0;
    assert_int_equal(b->kv_open(b->ctx, &kv), KRN_EINVAL);
    kv.n_pages = INT32_MAX;
    kv.page_size = kv.n_layers = kv.head_dim = 1 << 12;
    assert_int_equal(b->kv_open(b->ctx, &kv), KRN_ENOMEM);
}

// The vector's elements and, for q8, its scale; every byte of the store can be written.
static void test_kv_stores_of_smaller_types(void **state)
{
    struct krn_backend *b = *state;
    static const struct {
        enum krn_type type;
        int64_t vector_bytes;
    } cases[] = {{KRN_F32, 8 * 4}, {KRN_BF16, 8 * 2}, {KRN_Q8, 8 + 4}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct krn_kv kv = {
            .type = cases[i].type, .n_layers = 2, .n_pages = 3, .page_size = 4, .n_kv_heads = 2, .head_dim = 8};
        size_t vectors = 2 * 3 * 4 * 2;
        assert_int_equal(b->kv_page_bytes(b->ctx, &kv), 2 * 2 * 2 * 4 * cases[i].vector_bytes);
        assert_int_equal(b->kv_open(b->ctx, &kv), 0);
        assert_int_equal(kv.type, cases[i].type);
        assert_int_equal(category(b, "kv"), 2 * (int64_t)vectors * cases[i].vector_bytes);
        memset(kv.k, 1, vectors * 8 * krn_type_size(kv.type));
        memset(kv.v, 1, vectors * 8 * krn_type_size(kv.type));
        assert_int_equal(kv.k_scales != NULL, kv.type == KRN_Q8);
        assert_int_equal(kv.v_scales != NULL, kv.type == KRN_Q8);
        if (kv.type == KRN_Q8)
            kv.k_scales[vectors - 1] = kv.v_scales[vectors - 1] = 1;
        b->kv_close(b->ctx, &kv);
        assert_true(!kv.k && !kv.v && !kv.k_scales && !kv.v_scales);
        assert_int_equal(category(b, "kv"), 0);
    }
    static const enum krn_type others[] = {KRN_FP8, KRN_Q4};
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        struct krn_kv kv = {
            .type = others[i], .n_layers = 2, .n_pages = 3, .page_size = 4, .n_kv_heads = 2, .head_dim = 8};
        assert_int_equal(b->kv_page_bytes(b->ctx, &kv), KRN_ENOTSUP);
        assert_int_equal(b->kv_open(b->ctx, &kv), KRN_ENOTSUP);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_buffers_are_zeroed_and_aligned, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_impossible_sizes_give_null, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_upload_and_download_copy, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_rows_are_zeroed_floats, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_purposes_beyond_the_table_share_the_last_category, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_weights_of_the_wanted_type_are_read_where_they_are, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_bf16_to_f32_is_exact, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_f32_to_bf16_rounds_to_nearest_even, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_what_cannot_be_imported_is_refused, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_the_kv_store_is_counted_and_f32_unless_asked_otherwise, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_kv_stores_of_smaller_types, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
