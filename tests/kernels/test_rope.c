#include "cmocka_util.h"
#include "kern_util.h"

#include <math.h>

enum { DIM = 8, HALF = DIM / 2 };

static const float inv_freq[HALF] = {1, 0.1f, 0.01f, 0.001f};

static struct krn_rope plain_rope(void)
{
    return (struct krn_rope){.inv_freq = inv_freq, .head_dim = DIM, .attention_factor = 1};
}

// A store of one long page, so that every position has a slot.
enum { SLOTS = 100100 };
static float keys[SLOTS * DIM], values[SLOTS * DIM];
static const int32_t page;

static void rotate(struct krn_backend *b, const struct krn_rope *rope, float *q, float *k, int32_t row, int32_t rows,
                   int32_t pos)
{
    struct krn_kv kv = {
        .k = keys, .v = values, .n_layers = 1, .n_pages = 1, .page_size = SLOTS, .n_kv_heads = 1, .head_dim = DIM};
    struct krn_segment segment = {.row = row, .rows = rows, .first_pos = pos, .pages = &page};
    assert_int_equal(b->rope_write(b->ctx, q, k, k, 2, rope, &kv, 0, &segment, 1), 0);
}

static void test_halves_are_rotated_by_the_angle(void **state)
{
    (void)state;
    struct krn_backend *b = open_cpu(1, 0);
    struct krn_rope rope = plain_rope();
    float q[2 * DIM], k[DIM], q0[2 * DIM], k0[DIM];
    struct random random = {.state = 1};
    fill_random(&random, q, 2 * DIM);
    fill_random(&random, k, DIM);
    memcpy(q0, q, sizeof q);
    memcpy(k0, k, sizeof k);
    rotate(b, &rope, q, k, 0, 1, 100003);
    for (int i = 0; i < HALF; i++) {
        double angle = 100003.0 * (double)inv_freq[i], c = cos(angle), s = sin(angle);
        for (int h = 0; h < 2; h++) {
            assert_near(q[h * DIM + i], (double)q0[h * DIM + i] * c - (double)q0[h * DIM + i + HALF] * s, 3e-7);
            assert_near(q[h * DIM + i + HALF], (double)q0[h * DIM + i + HALF] * c + (double)q0[h * DIM + i] * s, 3e-7);
        }
        assert_near(k[i], (double)k0[i] * c - (double)k0[i + HALF] * s, 3e-7);
    }
    b->close(b->ctx);
}

static void test_position_zero_changes_nothing(void **state)
{
    (void)state;
    struct krn_backend *b = open_cpu(1, 0);
    struct krn_rope rope = plain_rope();
    float q[2 * DIM] = {1, 2, 3, 4, 5, 6, 7, 8}, k[DIM] = {8, 7, 6}, q0[2 * DIM], k0[DIM];
    memcpy(q0, q, sizeof q);
    memcpy(k0, k, sizeof k);
    rotate(b, &rope, q, k, 0, 1, 0);
    assert_true(same_bits(q, q0, 2 * DIM) && same_bits(k, k0, DIM));
    b->close(b->ctx);
}

static void test_scales_apply_to_q_and_k_as_documented(void **state)
{
    (void)state;
    struct krn_backend *b = open_cpu(1, 0);
    struct krn_rope rope = plain_rope();
    float q[2 * DIM] = {1, 2, 3, 4, 5, 6, 7, 8}, k[DIM] = {1, 2, 3, 4, 5, 6, 7, 8}, q0[2 * DIM], k0[DIM];
    memcpy(q0, q, sizeof q);
    memcpy(k0, k, sizeof k);
    rotate(b, &rope, q0, k0, 0, 1, 70);
    rope.attention_factor = 2;
    rope.query_beta = 0.1f;
    rope.query_original_max = 16;
    rotate(b, &rope, q, k, 0, 1, 70); // floor(70 / 16) = 4
    for (int i = 0; i < DIM; i++) {
        assert_near(q[i], 2 * (1 + 0.1 * log(5)) * (double)q0[i], 1e-5);
        assert_near(k[i], 2 * (double)k0[i], 1e-5);
    }
    b->close(b->ctx);
}

static void test_below_the_original_length_q_is_not_scaled(void **state)
{
    (void)state;
    struct krn_backend *b = open_cpu(1, 0);
    struct krn_rope rope = plain_rope();
    float q[2 * DIM] = {1, 2, 3, 4}, k[DIM] = {0}, q0[2 * DIM] = {1, 2, 3, 4};
    rotate(b, &rope, q0, k, 0, 1, 15);
    rope.query_beta = 0.1f;
    rope.query_original_max = 16;
    rotate(b, &rope, q, k, 0, 1, 15);
    assert_true(same_bits(q, q0, 2 * DIM));
    b->close(b->ctx);
}

static void test_a_row_is_the_same_in_any_segment_and_after_any_other(void **state)
{
    (void)state;
    enum { ROWS = 1500 }; // positions collide in the cache of 512
    struct krn_backend *b = open_cpu(3, 0);
    struct krn_rope rope = plain_rope();
    float *q = floats(ROWS * 2 * DIM), *k = floats(ROWS * DIM), *q1 = floats(ROWS * 2 * DIM), *k1 = floats(ROWS * DIM);
    struct random random = {.state = 3};
    fill_random(&random, q, ROWS * 2 * DIM);
    fill_random(&random, k, ROWS * DIM);
    memcpy(q1, q, ROWS * 2 * DIM * sizeof *q);
    memcpy(k1, k, ROWS * DIM * sizeof *k);
    rotate(b, &rope, q, k, 0, ROWS, 77);
    for (int32_t r = 0; r < ROWS; r++)
        rotate(b, &rope, q1, k1, (r * 7) % ROWS, 1, 77 + (r * 7) % ROWS); // 7 and 1500 share no factor
    assert_true(same_bits(q, q1, ROWS * 2 * DIM) && same_bits(k, k1, ROWS * DIM));
    free(q);
    free(k);
    free(q1);
    free(k1);
    b->close(b->ctx);
}

static void test_positions_that_share_a_slot_of_the_cache_differ(void **state)
{
    (void)state;
    struct krn_backend *b = open_cpu(1, 0);
    struct krn_rope rope = plain_rope();
    static const int32_t positions[] = {5, 517, 5, 1029};
    for (int i = 0; i < 4; i++) {
        float q[2 * DIM] = {1}, k[DIM] = {0};
        rotate(b, &rope, q, k, 0, 1, positions[i]);
        assert_near(q[0], cos(positions[i]), 1e-6);
    }
    b->close(b->ctx);
}

static void test_another_rope_does_not_see_old_angles(void **state)
{
    (void)state;
    struct krn_backend *b = open_cpu(1, 0);
    float freq[HALF] = {1, 1, 1, 1}, q[2 * DIM] = {0}, k[DIM] = {0};
    struct krn_rope rope = plain_rope();
    rope.inv_freq = freq;
    rotate(b, &rope, q, k, 0, 1, 5);
    freq[0] = 2; // same address, other values
    q[0] = 1;
    rotate(b, &rope, q, k, 0, 1, 5);
    assert_near(q[0], cos(10), 1e-6);
    b->close(b->ctx);
}

static void test_heads_wider_than_the_cache_work(void **state)
{
    (void)state;
    enum { WIDE = 512 };
    struct krn_backend *b = open_cpu(1, 0);
    float freq[WIDE / 2], q[WIDE], k[WIDE] = {0};
    for (int i = 0; i < WIDE / 2; i++)
        freq[i] = 1.0f / (float)(i + 1);
    for (int i = 0; i < WIDE; i++)
        q[i] = i < WIDE / 2;
    struct krn_rope rope = {.inv_freq = freq, .head_dim = WIDE, .attention_factor = 1};
    struct krn_kv kv = {
        .k = keys, .v = values, .n_layers = 1, .n_pages = 1, .page_size = 10, .n_kv_heads = 1, .head_dim = WIDE};
    struct krn_segment segment = {.row = 0, .rows = 1, .first_pos = 9, .pages = &page};
    assert_int_equal(b->rope_write(b->ctx, q, k, k, 1, &rope, &kv, 0, &segment, 1), 0);
    for (int i = 0; i < WIDE / 2; i++) {
        assert_near(q[i], cos(9.0 * (double)freq[i]), 1e-6);
        assert_near(q[i + WIDE / 2], sin(9.0 * (double)freq[i]), 1e-6);
    }
    b->close(b->ctx);
}

static void test_the_rotated_key_and_the_plain_value_are_stored(void **state)
{
    (void)state;
    struct krn_backend *b = open_cpu(2, 0);
    struct krn_rope rope = plain_rope();
    enum { ROWS = 5, KV_HEADS = 2, PAGE = 2 };
    float store_k[4 * KV_HEADS * PAGE * DIM], store_v[4 * KV_HEADS * PAGE * DIM];
    float q[ROWS * 4 * DIM], k[ROWS * KV_HEADS * DIM], v[ROWS * KV_HEADS * DIM], v0[ROWS * KV_HEADS * DIM];
    struct random random = {.state = 8};
    fill_random(&random, q, ROWS * 4 * DIM);
    fill_random(&random, k, ROWS * KV_HEADS * DIM);
    fill_random(&random, v, ROWS * KV_HEADS * DIM);
    memcpy(v0, v, sizeof v);
    struct krn_kv kv = {.k = store_k,
                        .v = store_v,
                        .n_layers = 1,
                        .n_pages = 4,
                        .page_size = PAGE,
                        .n_kv_heads = KV_HEADS,
                        .head_dim = DIM};
    const int32_t pages[4] = {3, 0, 2, 1};
    struct krn_segment segments[2] = {{.row = 0, .rows = 3, .first_pos = 1, .pages = pages},
                                      {.row = 3, .rows = 2, .first_pos = 4, .pages = pages}};
    assert_int_equal(b->rope_write(b->ctx, q, k, v, 4, &rope, &kv, 0, segments, 2), 0);
    for (int r = 0; r < ROWS; r++)
        for (int h = 0; h < KV_HEADS; h++) {
            int pos = r + 1, slot = (pages[pos / PAGE] * KV_HEADS + h) * PAGE + pos % PAGE;
            assert_true(same_bits(store_k + slot * DIM, k + (r * KV_HEADS + h) * DIM, DIM));
            assert_true(same_bits(store_v + slot * DIM, v0 + (r * KV_HEADS + h) * DIM, DIM));
        }
    b->close(b->ctx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_halves_are_rotated_by_the_angle),
        cmocka_unit_test(test_position_zero_changes_nothing),
        cmocka_unit_test(test_scales_apply_to_q_and_k_as_documented),
        cmocka_unit_test(test_below_the_original_length_q_is_not_scaled),
        cmocka_unit_test(test_a_row_is_the_same_in_any_segment_and_after_any_other),
        cmocka_unit_test(test_positions_that_share_a_slot_of_the_cache_differ),
        cmocka_unit_test(test_another_rope_does_not_see_old_angles),
        cmocka_unit_test(test_heads_wider_than_the_cache_work),
        cmocka_unit_test(test_the_rotated_key_and_the_plain_value_are_stored),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
