#include "cmocka_util.h"
#include "kern_util.h"

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

static void test_open_refuses_a_bad_thread_count_in_one_sentence(void **state)
{
    (void)state;
    struct krn_backend *backend = NULL;
    char err[100] = "";
    assert_int_equal(krn_open_cpu(-1, ~0u, &backend, err, sizeof err), KRN_EINVAL);
    assert_null(backend);
    assert_string_equal(err, "the number of threads must be 0 to 256, not -1");
    assert_int_equal(krn_open_cpu(257, ~0u, &backend, NULL, 0), KRN_EINVAL);
}

static void test_the_mask_chooses_the_version(void **state)
{
    (void)state;
    struct krn_backend *backend = open_cpu(1, 0);
    assert_string_equal(backend->name, "cpu");
    assert_string_equal(backend->description, "linear ref, attention ref, 1 thread");
    backend->close(backend->ctx);
    if (krn_cpu_features() & KRN_CPU_AVX2) {
        backend = open_cpu(2, KRN_CPU_AVX2);
        assert_string_equal(backend->description, "linear avx2, attention avx2, 2 threads");
        backend->close(backend->ctx);
    }
}

static void test_zero_threads_means_the_physical_cores(void **state)
{
    (void)state;
    struct krn_backend *backend = open_cpu(0, ~0u);
    assert_non_null(strstr(backend->description, "thread"));
    backend->close(backend->ctx);
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

static void test_weights_are_read_where_they_are(void **state)
{
    struct krn_backend *backend = *state;
    char data[16] = {0};
    assert_ptr_equal(backend->import_weights(backend->ctx, data, sizeof data), data);
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

static void test_every_op_accepts_zero_rows(void **state)
{
    struct krn_backend *b = *state;
    float data[8] = {0}, freq[1] = {1};
    struct krn_tensor w = {.data = data, .type = KRN_F32, .rows = 2, .cols = 4};
    struct krn_tensor norm = {.data = data, .type = KRN_F32, .rows = 1, .cols = 4};
    struct krn_adapter adapter = {.a = {data, KRN_F32, 1, 4}, .b = {data, KRN_F32, 2, 1}, .scale = 1};
    struct krn_rope rope = {.inv_freq = freq, .head_dim = 2, .attention_factor = 1};
    struct krn_kv kv = {
        .k = data, .v = data, .n_layers = 1, .n_pages = 1, .page_size = 1, .n_kv_heads = 1, .head_dim = 2};
    uint8_t flags[1] = {0};
    assert_int_equal(b->embed(b->ctx, NULL, &w, NULL, 0), 0);
    assert_int_equal(b->rms_norm(b->ctx, NULL, NULL, NULL, &norm, 1e-5f, 0, 4), 0);
    assert_int_equal(b->linear(b->ctx, NULL, NULL, &w, 0, NULL, NULL, NULL), 0);
    assert_int_equal(b->linear(b->ctx, NULL, NULL, &w, 0, &adapter, flags, data), 0);
    assert_int_equal(b->rope(b->ctx, NULL, NULL, 1, 1, &rope, NULL, 0), 0);
    assert_int_equal(b->kv_write(b->ctx, &kv, 0, NULL, NULL, NULL, 0), 0);
    assert_int_equal(b->attention(b->ctx, NULL, NULL, 1, &kv, 0, NULL, 0), 0);
    assert_int_equal(b->swiglu(b->ctx, NULL, NULL, NULL, 0, 4), 0);
    assert_int_equal(b->add(b->ctx, NULL, NULL, 0, 4), 0);
    assert_int_equal(b->gather(b->ctx, NULL, NULL, NULL, 0, 4), 0);
    assert_int_equal(b->select(b->ctx, NULL, 4, -1, NULL, 0, NULL), 0);
}

static void test_arguments_out_of_range_are_refused(void **state)
{
    struct krn_backend *b = *state;
    float data[64] = {0}, freq[2] = {1, 1};
    struct krn_tensor w = {.data = data, .type = KRN_F32, .rows = 2, .cols = 4}, none = {0}, bad_type = w;
    bad_type.type = (enum krn_type)7;
    int32_t outside[1] = {2}, negative[1] = {-1};
    assert_int_equal(b->embed(b->ctx, data, &w, outside, 1), KRN_EINVAL);
    assert_int_equal(b->embed(b->ctx, data, &w, negative, 1), KRN_EINVAL);
    assert_int_equal(b->embed(b->ctx, data, &none, NULL, 0), KRN_EINVAL);
    assert_int_equal(b->rms_norm(b->ctx, data, data, NULL, &w, 1e-5f, 1, 4), KRN_EINVAL); // 8 weights, width 4
    assert_int_equal(b->linear(b->ctx, data, data, &w, -1, NULL, NULL, NULL), KRN_EINVAL);
    assert_int_equal(b->linear(b->ctx, data, data, &bad_type, 1, NULL, NULL, NULL), KRN_EINVAL);
    struct krn_adapter adapter = {.a = {data, KRN_F32, 1, 3}, .b = {data, KRN_F32, 2, 1}, .scale = 1};
    uint8_t flags[1] = {1};
    assert_int_equal(b->linear(b->ctx, data, data, &w, 1, &adapter, flags, data), KRN_EINVAL); // in does not fit
    adapter.a.cols = 4;
    assert_int_equal(b->linear(b->ctx, data, data, &w, 1, &adapter, flags, NULL), KRN_EINVAL);
    assert_int_equal(b->linear(b->ctx, data, data, &w, 1, &adapter, NULL, data), KRN_EINVAL);
    assert_int_equal(b->swiglu(b->ctx, data, data, data, -1, 4), KRN_EINVAL);
    assert_int_equal(b->add(b->ctx, data, data, -1, 4), KRN_EINVAL);
    assert_int_equal(b->gather(b->ctx, data, data, negative, 1, 4), KRN_EINVAL);

    struct krn_rope rope = {.inv_freq = freq, .head_dim = 3, .attention_factor = 1};
    assert_int_equal(b->rope(b->ctx, data, data, 1, 1, &rope, NULL, 0), KRN_EINVAL); // odd
    rope.head_dim = 4;
    int32_t pages[2] = {0, 5};
    struct krn_segment segment = {.row = 0, .rows = 0, .first_pos = 0, .pages = pages};
    assert_int_equal(b->rope(b->ctx, data, data, 1, 1, &rope, &segment, 1), KRN_EINVAL); // no rows
    segment.rows = 2;
    segment.first_pos = -1;
    assert_int_equal(b->rope(b->ctx, data, data, 1, 1, &rope, &segment, 1), KRN_EINVAL);
    segment.first_pos = 0;
    segment.mask = (enum krn_mask)9;
    assert_int_equal(b->rope(b->ctx, data, data, 1, 1, &rope, &segment, 1), KRN_EINVAL);
    segment.mask = KRN_MASK_CAUSAL;

    struct krn_kv kv = {
        .k = data, .v = data, .n_layers = 1, .n_pages = 2, .page_size = 1, .n_kv_heads = 2, .head_dim = 4};
    assert_int_equal(b->kv_write(b->ctx, &kv, 0, data, data, &segment, 1), KRN_EINVAL); // page 5 of 2
    assert_int_equal(b->attention(b->ctx, data, data, 2, &kv, 0, &segment, 1), KRN_EINVAL);
    pages[1] = 1;
    assert_int_equal(b->kv_write(b->ctx, &kv, 1, data, data, &segment, 1), KRN_EINVAL);     // layer 1 of 1
    assert_int_equal(b->attention(b->ctx, data, data, 3, &kv, 0, &segment, 1), KRN_EINVAL); // 3 heads over 2
    segment.pages = NULL;
    assert_int_equal(b->attention(b->ctx, data, data, 2, &kv, 0, &segment, 1), KRN_EINVAL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_open_refuses_a_bad_thread_count_in_one_sentence),
        cmocka_unit_test(test_the_mask_chooses_the_version),
        cmocka_unit_test(test_zero_threads_means_the_physical_cores),
        cmocka_unit_test_setup_teardown(test_buffers_are_zeroed_and_aligned, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_impossible_sizes_give_null, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_weights_are_read_where_they_are, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_upload_and_download_copy, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_every_op_accepts_zero_rows, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_arguments_out_of_range_are_refused, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
