#include "cmocka_util.h"
#include "kern_util.h"
#include "ops.h"

#include <math.h>

// Layout [layer][page][kv_head][slot][head_dim].
static float at(const struct krn_kv *kv, const float *data, int layer, int page, int head, int slot, int d)
{
    return data[(((layer * kv->n_pages + page) * kv->n_kv_heads + head) * kv->page_size + slot) * kv->head_dim + d];
}

static void test_rows_land_in_the_slots_of_their_positions(void **state)
{
    (void)state;
    float store_k[2 * 3 * 2 * 2 * 3] = {0}, store_v[2 * 3 * 2 * 2 * 3] = {0};
    struct krn_kv kv = {
        .k = store_k, .v = store_v, .n_layers = 2, .n_pages = 3, .page_size = 2, .n_kv_heads = 2, .head_dim = 3};
    float k[4 * 2 * 3], v[4 * 2 * 3];
    for (int i = 0; i < 24; i++) {
        k[i] = (float)(i + 1);
        v[i] = (float)-(i + 1);
    }
    // Rows 0 and 1 of one sequence at positions 1 and 2, rows 2 and 3 of another at 0 and 1.
    int32_t first[2] = {2, 0}, second[1] = {1};
    struct krn_segment segments[2] = {{.row = 0, .rows = 2, .first_pos = 1, .pages = first},
                                      {.row = 2, .rows = 2, .first_pos = 0, .mask = KRN_MASK_BLOCK, .pages = second}};
    for (int s = 0; s < 2; s++)
        krn_kv_write_ref(&kv, 1, k, v, &segments[s]);
    static const struct {
        int row, page, slot;
    } places[4] = {{0, 2, 1}, {1, 0, 0}, {2, 1, 0}, {3, 1, 1}};
    for (int i = 0; i < 4; i++)
        for (int h = 0; h < 2; h++)
            for (int d = 0; d < 3; d++) {
                assert_true(at(&kv, store_k, 1, places[i].page, h, places[i].slot, d) ==
                            k[places[i].row * 6 + h * 3 + d]);
                assert_true(at(&kv, store_v, 1, places[i].page, h, places[i].slot, d) ==
                            v[places[i].row * 6 + h * 3 + d]);
            }
    // Nothing else was touched: 4 of 12 slots a layer were written.
    int written = 0;
    for (int i = 0; i < 72; i++)
        written += store_k[i] != 0;
    assert_int_equal(written, 24);
    for (int i = 0; i < 36; i++)
        assert_true(store_k[i] == 0);
}

// A store of one page whose slots hold one vector of DIM elements each.
enum { SLOTS = 6, DIM = 5 };
static const int32_t page_zero[1] = {0};

struct page {
    struct krn_kv kv;
    float k[SLOTS * DIM], v[SLOTS * DIM], k_scales[SLOTS], v_scales[SLOTS];
};

static void page_open(struct page *p, enum krn_type type)
{
    memset(p, 0x55, sizeof *p);
    p->kv = (struct krn_kv){.k = p->k,
                            .v = p->v,
                            .k_scales = type == KRN_Q8 ? p->k_scales : NULL,
                            .v_scales = type == KRN_Q8 ? p->v_scales : NULL,
                            .type = type,
                            .n_layers = 1,
                            .n_pages = 1,
                            .page_size = SLOTS,
                            .n_kv_heads = 1,
                            .head_dim = DIM};
}

static void test_bf16_rounds_to_nearest_even(void **state)
{
    (void)state;
    static const float k[DIM] = {1.0f, 1.00390625f, 1.01171875f, -3.0e38f, 0.0f}; // the second and third are ties
    static const float expected[DIM] = {1.0f, 1.0f, 1.015625f, -0x1.c4p127f, 0.0f};
    static const float v[DIM] = {-1.0f, NAN, INFINITY, 1e-45f, 0.1f};
    struct page p;
    struct krn_segment one = {.rows = 1, .first_pos = 2, .pages = page_zero};
    page_open(&p, KRN_BF16);
    krn_kv_write_ref(&p.kv, 0, k, v, &one);
    for (size_t d = 0; d < DIM; d++)
        assert_true(store_value(&p.kv, p.k, NULL, 2 * DIM + d) == expected[d]);
    assert_true(store_value(&p.kv, p.v, NULL, 2 * DIM) == -1.0f);
    assert_true(isnan(store_value(&p.kv, p.v, NULL, 2 * DIM + 1)));
    assert_true(isinf(store_value(&p.kv, p.v, NULL, 2 * DIM + 2)));
    assert_true(store_value(&p.kv, p.v, NULL, 2 * DIM + 3) == 0.0f);
    assert_true(store_value(&p.kv, p.v, NULL, 2 * DIM + 4) == 0.10009765625f);
}

static void test_q8_scales_each_vector_by_its_largest_magnitude(void **state)
{
    (void)state;
    static const float k[DIM] = {12.7f, -25.4f, 0.1f, 0.29f, 0.0f}, v[DIM] = {0};
    static const int8_t expected[DIM] = {64, -127, 0, 1, 0}; // 63.5 and 0.5 are ties, 1.45
    struct page p;
    struct krn_segment one = {.rows = 1, .first_pos = 3, .pages = page_zero};
    page_open(&p, KRN_Q8);
    krn_kv_write_ref(&p.kv, 0, k, v, &one);
    assert_true(p.k_scales[3] == 25.4f / 127);
    assert_memory_equal((const int8_t *)p.kv.k + 3 * DIM, expected, DIM);
    // Zeros are zeros, and their scale is a number.
    for (size_t d = 0; d < DIM; d++)
        assert_true(store_value(&p.kv, p.v, p.v_scales, 3 * DIM + d) == 0.0f);
    assert_true(p.v_scales[3] > 0);
}

static void test_q8_is_within_half_a_step(void **state)
{
    (void)state;
    struct random random = {.state = 3};
    static const float sizes[] = {1e-44f, 1e-30f, 1e-3f, 1, 1e4f, 1e38f};
    struct krn_segment one = {.rows = 1, .pages = page_zero};
    for (int i = 0; i < 600; i++) {
        struct page p;
        float k[DIM], v[DIM], largest = 0;
        fill_random(&random, k, DIM);
        fill_random(&random, v, DIM);
        for (int d = 0; d < DIM; d++) {
            k[d] *= sizes[i % 6];
            largest = fabsf(k[d]) > largest ? fabsf(k[d]) : largest;
        }
        page_open(&p, KRN_Q8);
        krn_kv_write_ref(&p.kv, 0, k, v, &one);
        double step = largest / 127.0 > 1.2e-38 ? largest / 127.0 : 1.2e-38;
        for (size_t d = 0; d < DIM; d++)
            assert_near(store_value(&p.kv, p.k, p.k_scales, d), k[d], 0.50001 * step);
    }
}

// What attention reads of such a vector must not be a number.
static void test_q8_marks_a_vector_that_is_not_finite(void **state)
{
    (void)state;
    static const float bad[] = {NAN, -NAN, INFINITY, -INFINITY};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct page p;
        float k[DIM] = {1, 2, 3, 4, 5}, v[DIM] = {1, 2, 3, 4, 5};
        struct krn_segment one = {.rows = 1, .pages = page_zero};
        v[i] = bad[i];
        page_open(&p, KRN_Q8);
        krn_kv_write_ref(&p.kv, 0, k, v, &one);
        assert_true(isnan(p.v_scales[0]));
        assert_true(p.k_scales[0] == 5.0f / 127);
    }
}

// One segment, row by row, and the rows in another order: the same bytes everywhere in the page.
static void test_what_is_stored_does_not_depend_on_the_pass(void **state)
{
    (void)state;
    struct random random = {.state = 9};
    float k[SLOTS * DIM], v[SLOTS * DIM];
    fill_random(&random, k, SLOTS * DIM);
    fill_random(&random, v, SLOTS * DIM);
    for (int t = 0; t < KV_TYPES; t++) {
        struct page whole, pieces;
        struct krn_segment all = {.rows = SLOTS, .pages = page_zero};
        page_open(&whole, kv_types[t]);
        page_open(&pieces, kv_types[t]);
        krn_kv_write_ref(&whole.kv, 0, k, v, &all);
        for (int32_t r = SLOTS - 1; r >= 0; r--) {
            struct krn_segment one = {.row = r, .rows = 1, .first_pos = r, .pages = page_zero};
            krn_kv_write_ref(&pieces.kv, 0, k, v, &one);
        }
        assert_memory_equal(whole.k, pieces.k, sizeof whole.k);
        assert_memory_equal(whole.v, pieces.v, sizeof whole.v);
        assert_memory_equal(whole.k_scales, pieces.k_scales, sizeof whole.k_scales);
        assert_memory_equal(whole.v_scales, pieces.v_scales, sizeof whole.v_scales);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rows_land_in_the_slots_of_their_positions),
        cmocka_unit_test(test_bf16_rounds_to_nearest_even),
        cmocka_unit_test(test_q8_scales_each_vector_by_its_largest_magnitude),
        cmocka_unit_test(test_q8_is_within_half_a_step),
        cmocka_unit_test(test_q8_marks_a_vector_that_is_not_finite),
        cmocka_unit_test(test_what_is_stored_does_not_depend_on_the_pass),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
