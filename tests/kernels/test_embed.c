// kernels/cpu/embed_ref.c, and the op over it.
#include "cmocka_util.h"
#include "kern_util.h"
#include "ops.h"

static void test_any_cut_of_the_rows_gives_the_same(void **state)
{
    (void)state;
    enum { ROWS = 7, WIDTH = 5 };
    struct random random = {.state = 3};
    struct krn_tensor table = tensor_random(&random, KRN_BF16, 6, WIDTH);
    int32_t tokens[ROWS] = {5, 0, 5, 1, 2, 2, 4};
    float whole[ROWS * WIDTH], cut[ROWS * WIDTH];
    krn_embed_ref(whole, &table, tokens, 0, ROWS);
    for (int at = 0; at <= ROWS; at++) {
        memset(cut, 0xff, sizeof cut);
        krn_embed_ref(cut, &table, tokens, at, ROWS);
        krn_embed_ref(cut, &table, tokens, 0, at);
        assert_true(same_bits(whole, cut, ROWS * WIDTH));
    }
    tensor_free(&table);
}

static void test_rows_outside_the_range_stay(void **state)
{
    (void)state;
    float data[4] = {1, 2, 3, 4}, x[6] = {9, 9, 9, 9, 9, 9}, expected[6] = {9, 9, 3, 4, 9, 9};
    struct krn_tensor table = {.data = data, .type = KRN_F32, .rows = 2, .cols = 2};
    int32_t tokens[3] = {0, 1, 0};
    krn_embed_ref(x, &table, tokens, 1, 2);
    assert_memory_equal(x, expected, sizeof x);
}

static void test_bf16_is_widened_exactly(void **state)
{
    (void)state;
    uint16_t data[4] = {0x3f80, 0xc000, 0x0001, 0x7f7f}; // 1, -2, the least subnormal, the largest
    float x[4];
    struct krn_tensor table = {.data = data, .type = KRN_BF16, .rows = 1, .cols = 4};
    int32_t token = 0;
    krn_embed_ref(x, &table, &token, 0, 1);
    for (int i = 0; i < 4; i++)
        assert_true(x[i] == bf16_to_float(data[i]));
    assert_true(x[0] == 1 && x[1] == -2 && x[2] > 0 && x[3] > 3e38f);
}

static void test_embed_copies_rows_of_both_types(void **state)
{
    (void)state;
    struct krn_backend *b = open_cpu(3, ~0u);
    static const enum krn_type types[] = {KRN_F32, KRN_BF16};
    for (int t = 0; t < 2; t++) {
        struct random random = {.state = 1};
        struct krn_tensor table = tensor_random(&random, types[t], 9, 5);
        int32_t tokens[4] = {8, 0, 3, 3};
        float x[20];
        assert_int_equal(b->embed(b->ctx, x, &table, tokens, 4), 0);
        for (int r = 0; r < 4; r++)
            for (int i = 0; i < 5; i++)
                assert_true(x[r * 5 + i] == tensor_at(&table, tokens[r], i));
        tensor_free(&table);
    }
    b->close(b->ctx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_any_cut_of_the_rows_gives_the_same),
        cmocka_unit_test(test_rows_outside_the_range_stay),
        cmocka_unit_test(test_bf16_is_widened_exactly),
        cmocka_unit_test(test_embed_copies_rows_of_both_types),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
