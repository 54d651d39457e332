// tensor_parallel_memory.c: what is there once and what everywhere, what does not divide, and memory that is not there.
#include "tensor_parallel_rig.h"

// ---- what does not divide -------------------------------------------------------------------------------------------

static void check_indivisible(struct rig *rig)
{
    struct krn_backend *b = rig->many;
    struct krn_tensor odd = tensor_random(&rig->random, KRN_F32, 9, 9), ret = {0};
    assert_int_equal(b->import_weights(b->ctx, &odd, KRN_F32, KRN_SPLIT_OUTPUTS, &ret), KRN_ENOTSUP);
    assert_non_null(strstr(b->error(b->ctx), "a matrix of 9 outputs cannot be divided among"));
    assert_int_equal(b->import_weights(b->ctx, &odd, KRN_F32, KRN_SPLIT_INPUTS, &ret), KRN_ENOTSUP);
    assert_non_null(strstr(b->error(b->ctx), "a matrix of 9 inputs cannot be divided among"));
    assert_null(ret.data);
    struct krn_kv kv = {
        .type = KRN_N_TYPES, .n_layers = 1, .n_pages = 1, .page_size = 1, .n_kv_heads = 3, .head_dim = 2};
    assert_int_equal(b->kv_open(b->ctx, &kv), KRN_ENOTSUP);
    assert_non_null(strstr(b->error(b->ctx), "3 kv heads cannot be divided among"));
    assert_true(b->kv_page_bytes(b->ctx, &kv) > 0);
    struct krn_limits bad[] = {limits, limits, limits};
    bad[0].n_heads = 3;
    bad[1].n_kv_heads = 1;
    bad[2].ff = 45;
    for (int i = 0; i < 3; i++) {
        assert_int_equal(b->prepare(b->ctx, &bad[i]), KRN_ENOTSUP);
        assert_non_null(strstr(b->error(b->ctx), "cannot be divided among"));
    }
    tensor_free(&odd);
}

static void test_shapes_that_do_not_divide_are_refused_in_a_sentence(void **state)
{
    (void)state;
    for_both_sizes(check_indivisible);
}

// ---- memory ---------------------------------------------------------------------------------------------------------

static int no_kv(void *ctx, struct krn_kv *kv)
{
    (void)ctx, (void)kv;
    return KRN_ENOMEM;
}

static void *no_rows(void *ctx, enum krn_rows_kind kind, int32_t rows, int32_t width, const char *purpose)
{
    (void)ctx, (void)kind, (void)rows, (void)width, (void)purpose;
    return NULL;
}

static void *no_alloc(void *ctx, size_t bytes, const char *purpose)
{
    (void)ctx, (void)bytes, (void)purpose;
    return NULL;
}

static int no_weights(void *ctx, const struct krn_tensor *host, enum krn_type type, enum krn_split split,
                      struct krn_tensor *ret)
{
    (void)ctx, (void)host, (void)type, (void)split, (void)ret;
    return KRN_ENOMEM;
}

static int64_t bytes_in_use(const struct krn_backend *b)
{
    struct krn_memory memory;
    int64_t sum = 0;
    b->memory(b->ctx, &memory);
    for (int32_t i = 0; i < memory.n_categories; i++)
        sum += memory.categories[i].bytes;
    return sum;
}

static int not_in_this_type(void *ctx, const struct krn_tensor *host, enum krn_type type, enum krn_split split,
                            struct krn_tensor *ret)
{
    (void)ctx, (void)host, (void)type, (void)split, (void)ret;
    return KRN_ENOTSUP;
}

static const char *says_why(void *ctx)
{
    (void)ctx;
    return "no such kernel for 9 columns";
}

static void check_refusal(struct rig *rig)
{
    struct krn_backend *b = rig->many, *last = rig->children[rig->n - 1];
    struct krn_tensor host = tensor_random(&rig->random, KRN_F32, VOCAB, WIDTH), ret = {0};
    last->import_weights = not_in_this_type;
    last->error = says_why;
    assert_int_equal(b->import_weights(b->ctx, &host, KRN_F32, KRN_SPLIT_NONE, &ret), KRN_ENOTSUP);
    assert_non_null(strstr(b->error(b->ctx), "no such kernel for 9 columns"));
    tensor_free(&host);
}

static void test_what_one_device_refuses_is_said_in_its_words(void **state)
{
    (void)state;
    for_both_sizes(check_refusal);
}

// The last child has no memory: what the others gave is given back (the sanitizer sees the rest).
static void check_no_memory(struct rig *rig)
{
    struct krn_backend *b = rig->many, *last = rig->children[rig->n - 1];
    struct krn_tensor host = tensor_random(&rig->random, KRN_F32, VOCAB, WIDTH), ret = {0};
    struct krn_kv kv = {
        .type = KRN_N_TYPES, .n_layers = 1, .n_pages = 1, .page_size = 1, .n_kv_heads = 4, .head_dim = 2};
    const struct krn_kv before = kv;
    const struct krn_backend good = *last;
    last->alloc = no_alloc;
    last->alloc_rows = no_rows;
    last->import_weights = no_weights;
    last->kv_open = no_kv;
    assert_null(b->alloc(b->ctx, 100, "test"));
    assert_null(b->alloc_rows(b->ctx, KRN_ROWS_STATE, 3, 5, "test"));
    assert_int_equal(b->import_weights(b->ctx, &host, KRN_F32, KRN_SPLIT_INPUTS, &ret), KRN_ENOMEM);
    assert_int_equal(b->import_weights(b->ctx, &host, KRN_F32, KRN_SPLIT_OUTPUTS, &ret), KRN_ENOMEM);
    assert_int_equal(b->kv_open(b->ctx, &kv), KRN_ENOMEM);
    assert_memory_equal(&kv, &before, sizeof kv);
    assert_null(ret.data);
    assert_int_equal(bytes_in_use(b), 0);
    last->import_weights = good.import_weights;
    assert_int_equal(b->import_weights(b->ctx, &host, KRN_F32, KRN_SPLIT_OUTPUTS, &ret), 0);
    assert_int_equal(b->prepare(b->ctx, &limits), KRN_ENOMEM); // no room for the logits; close frees the others'
    tensor_free(&host);
}

static void test_memory_that_cannot_be_had_leaves_nothing_behind(void **state)
{
    (void)state;
    for_both_sizes(check_no_memory);
}

static void check_one_copy(struct rig *rig)
{
    struct krn_backend *b = rig->many;
    struct weight out = weight_open(rig, KRN_BF16, VOCAB, WIDTH, KRN_SPLIT_OUTPUTS);
    struct weight in = weight_open(rig, KRN_BF16, VOCAB, WIDTH, KRN_SPLIT_INPUTS);
    const struct krn_tp_weight *parts = out.many.data;
    assert_int_equal(bytes_in_use(b), 2 * krn_matrix_bytes(KRN_BF16, VOCAB, WIDTH));
    for (int32_t d = 0; d < rig->n; d++) // nothing is copied where rows lie together
        assert_ptr_equal(parts->parts[d].data,
                         (const char *)out.host.data + d * krn_matrix_bytes(KRN_BF16, VOCAB / rig->n, WIDTH));
    weight_close(rig, &in);
    weight_close(rig, &out);
    assert_int_equal(bytes_in_use(b), 0);
    // A change of type leaves no copy on the host either.
    struct krn_tensor host = tensor_random(&rig->random, KRN_F32, VOCAB, WIDTH), ret;
    assert_int_equal(b->import_weights(b->ctx, &host, KRN_BF16, KRN_SPLIT_INPUTS, &ret), 0);
    for (int32_t d = 0; d < rig->n; d++)
        assert_null(((const struct krn_tp_weight *)ret.data)->handle.copies[d]);
    assert_int_equal(bytes_in_use(b), krn_matrix_bytes(KRN_BF16, VOCAB, WIDTH));
    b->drop_weights(b->ctx, &ret);
    tensor_free(&host);
}

static void test_divided_weights_are_there_once(void **state)
{
    (void)state;
    for_both_sizes(check_one_copy);
}

static void memory_of_3(void *ctx, struct krn_memory *ret)
{
    (void)ctx;
    *ret = (struct krn_memory){.total = 100, .free = 30, .reserve = 4, .n_categories = 1};
    ret->categories[0] = (struct krn_memory_category){"weights", 5};
}

static void memory_of_7(void *ctx, struct krn_memory *ret)
{
    (void)ctx;
    *ret = (struct krn_memory){.total = 100, .free = 70, .reserve = 2, .n_categories = 2};
    ret->categories[0] = (struct krn_memory_category){"kv", 1};
    ret->categories[1] = (struct krn_memory_category){"weights", 6};
}

static void test_free_memory_is_what_the_fullest_device_has(void **state)
{
    (void)state;
    struct rig rig;
    struct krn_memory memory;
    rig_open(&rig, 2);
    rig.children[0]->memory = memory_of_3;
    rig.children[1]->memory = memory_of_7;
    rig.many->memory(rig.many->ctx, &memory);
    assert_int_equal(memory.total, 200);
    assert_int_equal(memory.free, 60);
    assert_int_equal(memory.reserve, 8);
    assert_int_equal(memory.n_categories, 2);
    assert_string_equal(memory.categories[0].name, "weights");
    assert_int_equal(memory.categories[0].bytes, 11);
    assert_int_equal(memory.categories[1].bytes, 1);
    rig_close(&rig);
}

static void check_copies(struct rig *rig)
{
    float from[] = {1, 2, 3}, to[3] = {0};
    void *buffer = rig->many->alloc(rig->many->ctx, sizeof from, "test");
    assert_int_equal(rig->many->upload(rig->many->ctx, buffer, from, sizeof from), 0);
    for (int32_t d = 0; d < rig->n; d++)
        assert_memory_equal(((struct krn_tp_buffer *)buffer)->parts[d], from, sizeof from);
    assert_int_equal(rig->many->download(rig->many->ctx, to, buffer, sizeof to), 0);
    assert_memory_equal(to, from, sizeof to);
    rig->many->release(rig->many->ctx, buffer);
    rig->many->release(rig->many->ctx, NULL);
}

static void test_uploads_reach_every_device(void **state)
{
    (void)state;
    for_both_sizes(check_copies);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_shapes_that_do_not_divide_are_refused_in_a_sentence),
        cmocka_unit_test(test_what_one_device_refuses_is_said_in_its_words),
        cmocka_unit_test(test_memory_that_cannot_be_had_leaves_nothing_behind),
        cmocka_unit_test(test_divided_weights_are_there_once),
        cmocka_unit_test(test_free_memory_is_what_the_fullest_device_has),
        cmocka_unit_test(test_uploads_reach_every_device),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
