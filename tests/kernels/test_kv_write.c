#include "cmocka_util.h"
#include "kern_util.h"
#include "ops.h"

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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rows_land_in_the_slots_of_their_positions),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
