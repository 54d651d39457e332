// tensor_parallel_ops.c: a composite of CPU backends against one CPU backend, op by op.
#include "tensor_parallel_rig.h"

#include <math.h>

// ---- products -------------------------------------------------------------------------------------------------------

static void check_outputs(struct rig *rig)
{
    for (int t = 0; t < 2; t++) {
        enum krn_type type = t ? KRN_BF16 : KRN_F32;
        struct weight q = weight_open(rig, type, WIDTH, WIDTH, KRN_SPLIT_OUTPUTS);
        struct weight k = weight_open(rig, type, KV_HEADS * HEAD_DIM, WIDTH, KRN_SPLIT_OUTPUTS);
        struct rows x = rows_open(rig, WIDTH, false), yq = rows_open(rig, WIDTH, true);
        struct rows yk = rows_open(rig, KV_HEADS * HEAD_DIM, true);
        const struct krn_product one[] = {{yq.one, &q.one}, {yk.one, &k.one}};
        const struct krn_product many[] = {{yq.many, &q.many}, {yk.many, &k.many}};
        BOTH(rig, b->project(b->ctx, one, 2, x.one, ROWS), b->project(b->ctx, many, 2, x.many, ROWS));
        assert_same(rig, &yq, WIDTH, true);
        assert_same(rig, &yk, KV_HEADS * HEAD_DIM, true);
        assert_int_equal(rig->comm->reductions, 0);
        rows_close(rig, &yk);
        rows_close(rig, &yq);
        rows_close(rig, &x);
        weight_close(rig, &k);
        weight_close(rig, &q);
    }
}

static void test_a_product_split_by_outputs_is_the_columns_of_the_whole(void **state)
{
    (void)state;
    for_both_sizes(check_outputs);
}

// |got - want| <= a few roundings of the magnitudes that were added up.
static void assert_sums(const struct rig *rig, const struct rows *y, const struct rows *x, const struct weight *w,
                        int32_t rows)
{
    for (int32_t d = 0; d < rig->n; d++)
        for (int32_t r = 0; r < rows; r++)
            for (int32_t o = 0; o < w->host.rows; o++) {
                double magnitude = 0;
                for (int32_t i = 0; i < w->host.cols; i++)
                    magnitude += fabs((double)x->one[r * w->host.cols + i] * tensor_at(&w->host, o, i));
                assert_near(part_of(y, d)[r * w->host.rows + o], y->one[r * w->host.rows + o],
                            1e-6 * magnitude + 1e-30);
            }
}

static void check_inputs(struct rig *rig)
{
    for (int t = 0; t < 2; t++) {
        struct weight w = weight_open(rig, t ? KRN_BF16 : KRN_F32, 11, WIDTH, KRN_SPLIT_INPUTS);
        struct rows x = rows_open(rig, WIDTH, true), y = rows_open(rig, 11, false);
        int before = rig->comm->reductions;
        BOTH(rig, b->linear(b->ctx, y.one, x.one, &w.one, ROWS, NULL, NULL, NULL),
             b->linear(b->ctx, y.many, x.many, &w.many, ROWS, NULL, NULL, NULL));
        assert_sums(rig, &y, &x, &w, ROWS);
        assert_int_equal(rig->comm->reductions, before + 1);
        for (int32_t d = 1; d < rig->n; d++)
            assert_memory_equal(part_of(&y, d), part_of(&y, 0), sizeof(float[ROWS][11]));
        rows_close(rig, &y);
        rows_close(rig, &x);
        weight_close(rig, &w);
    }
}

static void test_a_product_split_by_inputs_is_the_sum_of_its_parts(void **state)
{
    (void)state;
    for_both_sizes(check_inputs);
}

static void check_row_alone(struct rig *rig)
{
    struct weight w = weight_open(rig, KRN_BF16, 11, WIDTH, KRN_SPLIT_INPUTS);
    struct rows x = rows_open(rig, WIDTH, true), y = rows_open(rig, 11, false);
    struct krn_backend *b = rig->many;
    float all[ROWS][11];
    assert_int_equal(b->linear(b->ctx, y.many, x.many, &w.many, ROWS, NULL, NULL, NULL), 0);
    memcpy(all, part_of(&y, 0), sizeof all);
    assert_int_equal(b->linear(b->ctx, y.many, x.many, &w.many, 1, NULL, NULL, NULL), 0);
    assert_memory_equal(part_of(&y, 0), all[0], sizeof all[0]);
    rows_close(rig, &y);
    rows_close(rig, &x);
    weight_close(rig, &w);
}

static void test_a_row_alone_has_the_bits_it_has_among_others(void **state)
{
    (void)state;
    for_both_sizes(check_row_alone);
}

static void check_adapter(struct rig *rig)
{
    static const uint8_t flags[ROWS] = {0, 1, 1, 0, 0, 1, 0};
    struct weight w = weight_open(rig, KRN_BF16, 11, WIDTH, KRN_SPLIT_INPUTS);
    struct weight a = weight_open(rig, KRN_F32, RANK, WIDTH, KRN_SPLIT_INPUTS);
    struct weight b_ = weight_open(rig, KRN_F32, 11, RANK, KRN_SPLIT_NONE);
    struct rows x = rows_open(rig, WIDTH, true), y = rows_open(rig, 11, false), scratch = rows_open(rig, RANK, false);
    struct krn_adapter one = {a.one, b_.one, 0.75f}, many = {a.many, b_.many, 0.75f};
    int before = rig->comm->reductions;
    BOTH(rig, b->linear(b->ctx, y.one, x.one, &w.one, ROWS, &one, flags, scratch.one),
         b->linear(b->ctx, y.many, x.many, &w.many, ROWS, &many, flags, scratch.many));
    assert_int_equal(rig->comm->reductions, before + 1); // the adapter needs none of its own
    for (int32_t d = 0; d < rig->n; d++)
        for (int32_t i = 0; i < ROWS * 11; i++)
            assert_near(part_of(&y, d)[i], y.one[i], 1e-6 * (WIDTH + 0.75 * RANK * WIDTH)); // every factor is below 1
    // Rows without it do not see it, and rows with it do.
    struct rows plain = rows_open(rig, 11, false);
    assert_int_equal(rig->many->linear(rig->many->ctx, plain.many, x.many, &w.many, ROWS, NULL, NULL, NULL), 0);
    for (int32_t r = 0; r < ROWS; r++)
        assert_int_equal(memcmp(part_of(&plain, 0) + r * 11, part_of(&y, 0) + r * 11, sizeof(float[11])) != 0,
                         flags[r]);
    // An adapter that is divided in another way than its weight would give another sum.
    many.a = b_.many;
    assert_int_equal(rig->many->linear(rig->many->ctx, y.many, x.many, &w.many, ROWS, &many, flags, scratch.many),
                     KRN_EINVAL);
    rows_close(rig, &plain);
    rows_close(rig, &scratch);
    rows_close(rig, &y);
    rows_close(rig, &x);
    weight_close(rig, &b_);
    weight_close(rig, &a);
    weight_close(rig, &w);
}

static void test_the_adapter_is_added_once_on_its_rows(void **state)
{
    (void)state;
    for_both_sizes(check_adapter);
}

static void check_gated(struct rig *rig)
{
    struct weight gate = weight_open(rig, KRN_BF16, FF, WIDTH, KRN_SPLIT_OUTPUTS);
    struct weight up = weight_open(rig, KRN_BF16, FF, WIDTH, KRN_SPLIT_OUTPUTS);
    struct rows x = rows_open(rig, WIDTH, false), y = rows_open(rig, FF, true);
    struct rows s0 = rows_open(rig, FF, false), s1 = rows_open(rig, FF, false);
    void *const one[2] = {s0.one, s1.one}, *const many[2] = {s0.many, s1.many};
    BOTH(rig, b->gated(b->ctx, y.one, x.one, &gate.one, &up.one, ROWS, one),
         b->gated(b->ctx, y.many, x.many, &gate.many, &up.many, ROWS, many));
    assert_same(rig, &y, FF, true);
    rows_close(rig, &s1);
    rows_close(rig, &s0);
    rows_close(rig, &y);
    rows_close(rig, &x);
    weight_close(rig, &up);
    weight_close(rig, &gate);
}

static void test_gated_is_the_columns_of_the_whole(void **state)
{
    (void)state;
    for_both_sizes(check_gated);
}

static void check_head(struct rig *rig)
{
    for (int whole = 0; whole < 2; whole++) {
        struct weight w = weight_open(rig, KRN_BF16, VOCAB, WIDTH, whole ? KRN_SPLIT_NONE : KRN_SPLIT_OUTPUTS);
        if (!whole)
            assert_int_equal(rig->many->prepare(rig->many->ctx, &limits), 0);
        struct rows x = rows_open(rig, WIDTH, false), y = rows_open(rig, VOCAB, false);
        int before = rig->comm->gathers;
        BOTH(rig, b->head(b->ctx, y.one, x.one, &w.one, ROWS), b->head(b->ctx, y.many, x.many, &w.many, ROWS));
        assert_same(rig, &y, VOCAB, false);
        assert_int_equal(rig->comm->gathers, before + !whole);
        rows_close(rig, &y);
        rows_close(rig, &x);
        weight_close(rig, &w);
    }
}

static void test_every_device_gets_all_logits(void **state)
{
    (void)state;
    for_both_sizes(check_head);
}

static int32_t bucket_of_all(void *ctx, int32_t rows)
{
    (void)ctx, (void)rows;
    return ROWS;
}

static void check_bucket(struct rig *rig)
{
    struct krn_backend *b = rig->many;
    struct weight head = weight_open(rig, KRN_F32, VOCAB, WIDTH, KRN_SPLIT_OUTPUTS);
    struct weight w = weight_open(rig, KRN_F32, 11, WIDTH, KRN_SPLIT_INPUTS);
    struct rows x = rows_open(rig, WIDTH, false), y = rows_open(rig, 11, false), logits = rows_open(rig, VOCAB, false);
    assert_int_equal(b->prepare(b->ctx, &limits), 0);
    for (int32_t d = 0; d < rig->n; d++)
        rig->children[d]->bucket = bucket_of_all;
    assert_int_equal(b->linear(b->ctx, y.many, x.many, &w.many, 2, NULL, NULL, NULL), 0);
    assert_int_equal(rig->comm->floats, ROWS * 11);
    assert_int_equal(b->head(b->ctx, logits.many, x.many, &head.many, 2), 0);
    assert_int_equal(rig->comm->floats, ROWS * (VOCAB / rig->n));
    rows_close(rig, &logits);
    rows_close(rig, &y);
    rows_close(rig, &x);
    weight_close(rig, &w);
    weight_close(rig, &head);
}

static void test_an_exchange_covers_the_whole_bucket(void **state)
{
    (void)state;
    for_both_sizes(check_bucket);
}

// ---- the other ops --------------------------------------------------------------------------------------------------

static void check_attention(struct rig *rig)
{
    enum { PAGE = 4, N_PAGES = 5 };
    static const int32_t pages[] = {3, 0, 4};
    const struct krn_segment segment = {.rows = ROWS, .first_pos = 0, .mask = KRN_MASK_BLOCK, .pages = pages};
    struct krn_kv shape = {.type = KRN_N_TYPES,
                           .n_layers = 2,
                           .n_pages = N_PAGES,
                           .page_size = PAGE,
                           .n_kv_heads = KV_HEADS,
                           .head_dim = HEAD_DIM};
    struct krn_kv one = shape, many = shape;
    float inv_freq[HEAD_DIM / 2] = {1, 0.3f, 0.1f};
    struct krn_rope rope = {.inv_freq = inv_freq, .head_dim = HEAD_DIM, .attention_factor = 1.25f};
    BOTH(rig, b->kv_open(b->ctx, &one), b->kv_open(b->ctx, &many));
    assert_int_equal(many.type, one.type);
    assert_int_equal(rig->many->kv_page_bytes(rig->many->ctx, &shape), rig->one->kv_page_bytes(rig->one->ctx, &shape));
    struct rows q = rows_open(rig, WIDTH, true), k = rows_open(rig, KV_HEADS * HEAD_DIM, true);
    struct rows v = rows_open(rig, KV_HEADS * HEAD_DIM, true), y = rows_open(rig, WIDTH, true);
    BOTH(rig, b->rope_write(b->ctx, q.one, k.one, v.one, HEADS, &rope, &one, 1, &segment, 1),
         b->rope_write(b->ctx, q.many, k.many, v.many, HEADS, &rope, &many, 1, &segment, 1));
    BOTH(rig, b->attention(b->ctx, y.one, q.one, HEADS, &one, 1, &segment, 1),
         b->attention(b->ctx, y.many, q.many, HEADS, &many, 1, &segment, 1));
    assert_same(rig, &y, WIDTH, true);
    BOTH(rig, (b->kv_close(b->ctx, &one), 0), (b->kv_close(b->ctx, &many), 0));
    rows_close(rig, &y);
    rows_close(rig, &v);
    rows_close(rig, &k);
    rows_close(rig, &q);
}

static void test_heads_and_their_kv_are_divided_in_order(void **state)
{
    (void)state;
    for_both_sizes(check_attention);
}

static void check_rows_ops(struct rig *rig)
{
    static const int32_t picked[] = {6, 0, 3};
    struct weight table = weight_open(rig, KRN_BF16, VOCAB, WIDTH, KRN_SPLIT_NONE);
    struct weight norm = weight_open(rig, KRN_F32, 1, WIDTH, KRN_SPLIT_NONE);
    struct rows x = rows_open(rig, WIDTH, false), y = rows_open(rig, WIDTH, false), z = rows_open(rig, WIDTH, false);
    BOTH(rig, b->embed(b->ctx, x.one, &table.one, rig->tokens, ROWS),
         b->embed(b->ctx, x.many, &table.many, rig->tokens, ROWS));
    BOTH(rig, b->add(b->ctx, x.one, z.one, ROWS, WIDTH), b->add(b->ctx, x.many, z.many, ROWS, WIDTH));
    BOTH(rig, b->rms_norm(b->ctx, y.one, x.one, z.one, &norm.one, 1e-5f, ROWS, WIDTH),
         b->rms_norm(b->ctx, y.many, x.many, z.many, &norm.many, 1e-5f, ROWS, WIDTH));
    assert_same(rig, &x, WIDTH, false);
    assert_same(rig, &y, WIDTH, false);
    BOTH(rig, b->gather(b->ctx, z.one, x.one, picked, 3, WIDTH), b->gather(b->ctx, z.many, x.many, picked, 3, WIDTH));
    assert_same(rig, &z, WIDTH, false);
    rows_close(rig, &z);
    rows_close(rig, &y);
    rows_close(rig, &x);
    weight_close(rig, &norm);
    weight_close(rig, &table);
}

static void test_what_is_not_divided_is_the_same_everywhere(void **state)
{
    (void)state;
    for_both_sizes(check_rows_ops);
}

static void check_no_rows(struct rig *rig)
{
    struct krn_backend *b = rig->many;
    struct weight out = weight_open(rig, KRN_F32, VOCAB, WIDTH, KRN_SPLIT_OUTPUTS);
    struct weight in = weight_open(rig, KRN_F32, VOCAB, WIDTH, KRN_SPLIT_INPUTS);
    struct weight whole = weight_open(rig, KRN_F32, 1, WIDTH, KRN_SPLIT_NONE);
    const struct krn_product product = {NULL, &out.many};
    assert_int_equal(b->prepare(b->ctx, &limits), 0);
    assert_int_equal(b->embed(b->ctx, NULL, &whole.many, NULL, 0), 0);
    assert_int_equal(b->rms_norm(b->ctx, NULL, NULL, NULL, &whole.many, 1e-5f, 0, WIDTH), 0);
    assert_int_equal(b->linear(b->ctx, NULL, NULL, &in.many, 0, NULL, NULL, NULL), 0);
    assert_int_equal(b->project(b->ctx, &product, 1, NULL, 0), 0);
    assert_int_equal(b->head(b->ctx, NULL, NULL, &out.many, 0), 0);
    assert_int_equal(b->add(b->ctx, NULL, NULL, 0, WIDTH), 0);
    assert_int_equal(b->gather(b->ctx, NULL, NULL, NULL, 0, WIDTH), 0);
    assert_int_equal(rig->comm->reductions + rig->comm->gathers, 0);
    weight_close(rig, &whole);
    weight_close(rig, &in);
    weight_close(rig, &out);
}

static void test_no_rows_are_no_exchange(void **state)
{
    (void)state;
    for_both_sizes(check_no_rows);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_product_split_by_outputs_is_the_columns_of_the_whole),
        cmocka_unit_test(test_a_product_split_by_inputs_is_the_sum_of_its_parts),
        cmocka_unit_test(test_a_row_alone_has_the_bits_it_has_among_others),
        cmocka_unit_test(test_the_adapter_is_added_once_on_its_rows),
        cmocka_unit_test(test_gated_is_the_columns_of_the_whole),
        cmocka_unit_test(test_every_device_gets_all_logits),
        cmocka_unit_test(test_an_exchange_covers_the_whole_bucket),
        cmocka_unit_test(test_heads_and_their_kv_are_divided_in_order),
        cmocka_unit_test(test_what_is_not_divided_is_the_same_everywhere),
        cmocka_unit_test(test_no_rows_are_no_exchange),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
