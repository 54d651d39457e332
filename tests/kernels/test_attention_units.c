// kernels/cpu/attention_units.c: every row and head of a task in exactly one unit.
#include "cmocka_util.h"
#include "kern_util.h"
#include "ops.h"

enum { MAX_ROWS = 200, MAX_HEADS = 96 };

static void check_cover(int32_t n_heads, int32_t n_kv_heads, const int32_t *rows, int32_t n_segments)
{
    static unsigned char seen[4][MAX_ROWS][MAX_HEADS];
    struct krn_segment segments[4] = {0};
    struct krn_kv kv = {.n_kv_heads = n_kv_heads};
    for (int32_t s = 0; s < n_segments; s++)
        segments[s].rows = rows[s];
    struct krn_attention_task task = {.n_heads = n_heads, .kv = &kv, .segments = segments, .n_segments = n_segments};
    struct krn_attention_shape shape = krn_attention_shape(&task);
    int32_t group = n_heads / n_kv_heads, last_kv_head = 0;
    memset(seen, 0, sizeof seen);
    for (int64_t i = 0; i < shape.units; i++) {
        struct krn_attention_unit u = krn_attention_unit(&task, &shape, i);
        assert_true(u.rows >= 1 && u.heads >= 1 && u.rows * u.heads <= KRN_ATTENTION_QUERIES);
        assert_true(u.rows <= shape.rows && u.heads <= shape.heads);
        assert_true(u.kv_head >= last_kv_head); // ordered by kv head
        assert_true(u.head / group == u.kv_head && (u.head + u.heads - 1) / group == u.kv_head);
        last_kv_head = u.kv_head;
        for (int32_t r = u.row; r < u.row + u.rows; r++)
            for (int32_t h = u.head; h < u.head + u.heads; h++)
                seen[u.segment - segments][r][h]++;
    }
    for (int32_t s = 0; s < n_segments; s++)
        for (int32_t r = 0; r < MAX_ROWS; r++)
            for (int32_t h = 0; h < MAX_HEADS; h++)
                assert_int_equal(seen[s][r][h], r < rows[s] && h < n_heads);
}

static void test_units_cover_everything_once(void **state)
{
    (void)state;
    static const int32_t heads[][2] = {{1, 1}, {8, 8}, {8, 2}, {32, 8}, {24, 2}, {32, 1}, {33, 1}, {71, 1}, {96, 2}};
    static const int32_t rows[][4] = {{1, 1, 1, 1}, {200, 1, 33, 8}, {7, 64, 5, 32}, {31, 0, 65, 2}};
    for (size_t h = 0; h < sizeof heads / sizeof *heads; h++)
        for (size_t r = 0; r < sizeof rows / sizeof *rows; r++)
            for (int32_t n = 1; n <= 4; n++)
                check_cover(heads[h][0], heads[h][1], rows[r], n);
}

static void test_shapes(void **state)
{
    (void)state;
    struct krn_segment segments[2] = {{.rows = 9}, {.rows = 1}};
    struct krn_kv kv = {.n_kv_heads = 8};
    struct krn_attention_task task = {.n_heads = 32, .kv = &kv, .segments = segments, .n_segments = 2};
    struct krn_attention_shape shape = krn_attention_shape(&task);
    assert_int_equal(shape.heads, 4); // a group of 4, so 8 rows at once
    assert_int_equal(shape.rows, 8);
    assert_int_equal(shape.head_groups, 1);
    assert_int_equal(shape.per_kv_head, 3);
    assert_int_equal(shape.units, 24);
    struct krn_attention_unit u = krn_attention_unit(&task, &shape, 4); // the 9th row, of the second kv head
    assert_ptr_equal(u.segment, &segments[0]);
    assert_int_equal(u.kv_head, 1);
    assert_int_equal(u.head, 4);
    assert_int_equal(u.row, 8);
    assert_int_equal(u.rows, 1);
}

static void test_no_rows_are_no_units(void **state)
{
    (void)state;
    struct krn_segment segment = {.rows = 0};
    struct krn_kv kv = {.n_kv_heads = 2};
    struct krn_attention_task task = {.n_heads = 4, .kv = &kv, .segments = &segment, .n_segments = 1};
    assert_int_equal(krn_attention_shape(&task).units, 0);
    task.n_segments = 0;
    assert_int_equal(krn_attention_shape(&task).units, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_units_cover_everything_once),
        cmocka_unit_test(test_shapes),
        cmocka_unit_test(test_no_rows_are_no_units),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
