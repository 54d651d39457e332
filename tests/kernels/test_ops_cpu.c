// kernels/cpu/ops_cpu.c: what an op refuses, and accept.
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

// ---- accept ---------------------------------------------------------------------------------------------------------

static void test_accept_counts_what_was_drafted_right(void **state)
{
    struct krn_backend *b = *state;
    enum { DRAFTED = 4 };
    static const struct {
        int32_t tokens[DRAFTED], choices[DRAFTED], n, seed;
    } cases[] = {
        {{9, 1, 2, 3}, {1, 2, 3, 4}, 4, 4},                                        // all right, and one more
        {{9, 1, 2, 3}, {5, 2, 3, 4}, 1, 5},                                        // the first is wrong
        {{9, 1, 2, 3}, {1, 7, 3, 4}, 2, 7},                                        // the second is
        {{9, 1, 2, 3}, {1, 2, 3, -1}, 0, -1},                                      // a needed choice is missing
        {{9, 1, 2, 3}, {-1, 2, 3, 4}, 0, -1}, {{9, 1, 2, 3}, {1, 7, -1, 4}, 2, 7}, // one that is not needed is missing
    };
    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++) {
        int32_t tokens[2 + DRAFTED] = {50, 51};
        struct krn_choice choices[1 + DRAFTED] = {{.token = 60}};
        memcpy(tokens + 2, cases[c].tokens, sizeof cases[c].tokens);
        for (int i = 0; i < DRAFTED; i++)
            choices[1 + i].token = cases[c].choices[i];
        struct krn_accept accepts[2] = {{.row = 2, .rows = DRAFTED, .choice = 1}, {.row = 0, .rows = 1, .choice = 0}};
        struct krn_accepted accepted[2];
        struct krn_pass pass = {.n_rows = 2 + DRAFTED,
                                .tokens = tokens,
                                .n_wanted = 1 + DRAFTED,
                                .choices = choices,
                                .accepts = accepts,
                                .n_accepts = 2,
                                .accepted = accepted};
        assert_int_equal(b->begin(b->ctx, &pass), 0);
        assert_int_equal(b->accept(b->ctx, accepts, 2, accepted), 0);
        assert_int_equal(accepted[0].n, cases[c].n);
        assert_int_equal(accepted[0].seed, cases[c].seed);
        assert_int_equal(accepted[1].n, 1);
        assert_int_equal(accepted[1].seed, 60);
        accepts[0].rows = DRAFTED + 1;
        assert_int_equal(b->accept(b->ctx, accepts, 1, accepted), KRN_EINVAL);
        b->abandon(b->ctx);
        assert_int_equal(b->accept(b->ctx, accepts, 1, accepted), KRN_EINVAL); // outside a pass
    }
}

// ---- arguments ------------------------------------------------------------------------------------------------------

static void test_every_op_accepts_zero_rows(void **state)
{
    struct krn_backend *b = *state;
    float data[8] = {0}, freq[1] = {1};
    struct krn_tensor w = {.data = data, .type = KRN_F32, .rows = 2, .cols = 4};
    struct krn_tensor norm = {.data = data, .type = KRN_F32, .rows = 1, .cols = 4};
    struct krn_adapter adapter = {.a = {data, KRN_F32, 1, 4, NULL}, .b = {data, KRN_F32, 2, 1, NULL}, .scale = 1};
    struct krn_rope rope = {.inv_freq = freq, .head_dim = 2, .attention_factor = 1};
    struct krn_kv kv = {
        .k = data, .v = data, .n_layers = 1, .n_pages = 1, .page_size = 1, .n_kv_heads = 1, .head_dim = 2};
    uint8_t flags[1] = {0};
    struct krn_product products[2] = {{NULL, &w}, {NULL, &w}};
    void *const scratch[2] = {NULL, NULL};
    assert_int_equal(b->embed(b->ctx, NULL, &w, NULL, 0), 0);
    assert_int_equal(b->rms_norm(b->ctx, NULL, NULL, NULL, &norm, 1e-5f, 0, 4), 0);
    assert_int_equal(b->linear(b->ctx, NULL, NULL, &w, 0, NULL, NULL, NULL), 0);
    assert_int_equal(b->linear(b->ctx, NULL, NULL, &w, 0, &adapter, flags, data), 0);
    assert_int_equal(b->project(b->ctx, products, 2, NULL, 0), 0);
    assert_int_equal(b->gated(b->ctx, NULL, NULL, &w, &w, 0, scratch), 0);
    assert_int_equal(b->head(b->ctx, NULL, NULL, &w, 0), 0);
    assert_int_equal(b->rope_write(b->ctx, NULL, NULL, NULL, 1, &rope, &kv, 0, NULL, 0), 0);
    assert_int_equal(b->attention(b->ctx, NULL, NULL, 1, &kv, 0, NULL, 0), 0);
    assert_int_equal(b->add(b->ctx, NULL, NULL, 0, 4), 0);
    assert_int_equal(b->gather(b->ctx, NULL, NULL, NULL, 0, 4), 0);
    assert_int_equal(b->select(b->ctx, NULL, 4, -1, NULL, 0, NULL), 0);
    assert_int_equal(b->accept(b->ctx, NULL, 0, NULL), 0);
}

static void test_arguments_out_of_range_are_refused(void **state)
{
    struct krn_backend *b = *state;
    float data[64] = {0}, freq[2] = {1, 1};
    struct krn_tensor w = {.data = data, .type = KRN_F32, .rows = 2, .cols = 4}, none = {0};
    int32_t outside[1] = {2}, negative[1] = {-1};
    assert_int_equal(b->embed(b->ctx, data, &w, outside, 1), KRN_EINVAL);
    assert_int_equal(b->embed(b->ctx, data, &w, negative, 1), KRN_EINVAL);
    assert_int_equal(b->embed(b->ctx, data, &none, NULL, 0), KRN_EINVAL);
    assert_int_equal(b->rms_norm(b->ctx, data, data, NULL, &w, 1e-5f, 1, 4), KRN_EINVAL); // 8 weights, width 4
    assert_int_equal(b->add(b->ctx, data, data, -1, 4), KRN_EINVAL);
    assert_int_equal(b->gather(b->ctx, data, data, negative, 1, 4), KRN_EINVAL);

    int32_t pages[2] = {0, 1};
    struct krn_rope rope = {.inv_freq = freq, .head_dim = 4, .attention_factor = 1};
    struct krn_kv kv = {
        .k = data, .v = data, .n_layers = 1, .n_pages = 2, .page_size = 1, .n_kv_heads = 2, .head_dim = 4};
    struct krn_segment good = {.row = 0, .rows = 2, .first_pos = 0, .pages = pages}, segment = good;
#define ROPE(layer) b->rope_write(b->ctx, data, data, data, 2, &rope, &kv, layer, &segment, 1)
    assert_int_equal(ROPE(0), 0);
    segment.rows = 0;
    assert_int_equal(ROPE(0), KRN_EINVAL);
    segment = good;
    segment.first_pos = -1;
    assert_int_equal(ROPE(0), KRN_EINVAL);
    segment = good;
    segment.mask = (enum krn_mask)9;
    assert_int_equal(ROPE(0), KRN_EINVAL);
    segment = good;
    rope.head_dim = 2; // not the store's
    assert_int_equal(ROPE(0), KRN_EINVAL);
    rope.head_dim = kv.head_dim = 3; // odd
    assert_int_equal(ROPE(0), KRN_EINVAL);
    rope.head_dim = kv.head_dim = 4;
    assert_int_equal(ROPE(1), KRN_EINVAL); // layer 1 of 1
    pages[1] = 5;                          // of 2
    assert_int_equal(ROPE(0), KRN_EINVAL);
    assert_int_equal(b->attention(b->ctx, data, data, 2, &kv, 0, &segment, 1), KRN_EINVAL);
    pages[1] = 1;
    static const enum krn_type refused[] = {KRN_FP8, KRN_Q4, KRN_Q8, KRN_N_TYPES}; // q8: without its scales
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        kv.type = refused[i];
        assert_int_equal(ROPE(0), KRN_EINVAL);
        assert_int_equal(b->attention(b->ctx, data, data, 2, &kv, 0, &segment, 1), KRN_EINVAL);
    }
    kv.k_scales = kv.v_scales = data;
    kv.type = KRN_Q8;
    assert_int_equal(ROPE(0), 0);
    kv.type = KRN_F32;
    assert_int_equal(b->attention(b->ctx, data, data, 3, &kv, 0, &segment, 1), KRN_EINVAL); // 3 heads over 2
    segment.pages = NULL;
    assert_int_equal(b->attention(b->ctx, data, data, 2, &kv, 0, &segment, 1), KRN_EINVAL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_accept_counts_what_was_drafted_right, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_every_op_accepts_zero_rows, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_arguments_out_of_range_are_refused, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
