#include "cmocka_util.h"
#include "kern_util.h"
#include "ops.h"

#include <math.h>

// Every version runs every test on every type of keys and values.
static struct variant {
    uint32_t mask;
    enum krn_type type;
} variants[VERSIONS_MAX * KV_TYPES];
static int n_variants;

// One sequence in a store, all positions written at layer 0.
struct sequence {
    struct store store;
    int32_t positions;
    float *k, *v;  // as they are written
    float *values; // v as the store holds it
};

// Stores k and v, and reads v back as it was rounded.
static void sequence_write(struct sequence *s)
{
    struct krn_kv *kv = &s->store.kv;
    struct krn_segment all = {.rows = s->positions, .pages = s->store.pages};
    krn_kv_write_ref(kv, 0, s->k, s->v, &all);
    size_t dim = (size_t)kv->head_dim;
    for (int32_t p = 0; p < s->positions; p++)
        for (int32_t h = 0; h < kv->n_kv_heads; h++)
            for (size_t d = 0; d < dim; d++) {
                size_t from = krn_kv_vector(kv, 0, s->store.pages, h, p) * dim + d;
                size_t to = ((size_t)p * (size_t)kv->n_kv_heads + (size_t)h) * dim + d;
                s->values[to] = store_value(kv, kv->v, kv->v_scales, from);
            }
}

static struct sequence sequence_open(enum krn_type type, uint64_t seed, int32_t positions, int32_t page_size,
                                     int32_t n_kv_heads, int32_t head_dim)
{
    struct random random = {.state = seed};
    size_t n = (size_t)positions * (size_t)n_kv_heads * (size_t)head_dim;
    struct sequence s = {.store = store_open(&random, type, 1, positions, page_size, n_kv_heads, head_dim),
                         .positions = positions};
    s.k = floats(n);
    s.v = floats(n);
    s.values = floats(n);
    fill_random(&random, s.k, n);
    fill_random(&random, s.v, n);
    sequence_write(&s);
    return s;
}

static void sequence_close(struct sequence *s)
{
    free(s->k);
    free(s->v);
    free(s->values);
    store_close(&s->store);
}

static void test_a_first_position_gives_its_own_value(void **state)
{
    (void)state;
    for (int v = 0; v < n_variants; v++) {
        struct krn_backend *b = open_cpu(1, variants[v].mask);
        struct sequence s = sequence_open(variants[v].type, 1, 1, 4, 1, 20);
        float q[20], y[20];
        memcpy(q, s.k, sizeof q);
        struct krn_segment segment = {.rows = 1, .pages = s.store.pages};
        assert_int_equal(b->attention(b->ctx, y, q, 1, &s.store.kv, 0, &segment, 1), 0);
        assert_true(same_bits(y, s.values, 20));
        sequence_close(&s);
        b->close(b->ctx);
    }
}

static void test_equal_scores_give_the_mean(void **state)
{
    (void)state;
    enum { POSITIONS = 45, DIM = 12 };
    for (int v = 0; v < n_variants; v++) {
        struct krn_backend *b = open_cpu(1, variants[v].mask);
        struct sequence s = sequence_open(variants[v].type, 2, POSITIONS, 7, 1, DIM);
        float q[DIM] = {0}, y[DIM];
        struct krn_segment segment = {.rows = 1, .first_pos = POSITIONS - 1, .pages = s.store.pages};
        assert_int_equal(b->attention(b->ctx, y, q, 1, &s.store.kv, 0, &segment, 1), 0);
        for (int d = 0; d < DIM; d++) {
            double mean = 0;
            for (int p = 0; p < POSITIONS; p++)
                mean += (double)s.values[p * DIM + d] / POSITIONS;
            assert_near(y[d], mean, 1e-6);
        }
        sequence_close(&s);
        b->close(b->ctx);
    }
}

static void test_a_dominant_score_wins_without_overflow(void **state)
{
    (void)state;
    enum { POSITIONS = 70, DIM = 16 };
    for (int v = 0; v < n_variants; v++) {
        struct krn_backend *b = open_cpu(1, variants[v].mask);
        struct sequence s = sequence_open(variants[v].type, 3, POSITIONS, 16, 1, DIM);
        float q[DIM] = {100}, y[DIM];
        for (int p = 0; p < POSITIONS; p++)
            s.k[p * DIM] = p == 40 ? 1000 : (float)p; // scores up to 25000, rising before and after
        sequence_write(&s);
        struct krn_segment segment = {.rows = 1, .first_pos = POSITIONS - 1, .pages = s.store.pages};
        assert_int_equal(b->attention(b->ctx, y, q, 1, &s.store.kv, 0, &segment, 1), 0);
        assert_true(same_bits(y, s.values + 40 * DIM, DIM));
        sequence_close(&s);
        b->close(b->ctx);
    }
}

static void test_query_heads_read_the_kv_head_of_their_group(void **state)
{
    (void)state;
    enum { HEADS = 6, KV_HEADS = 2, DIM = 8 };
    for (int v = 0; v < n_variants; v++) {
        struct krn_backend *b = open_cpu(2, variants[v].mask);
        struct sequence s = sequence_open(variants[v].type, 4, 1, 4, KV_HEADS, DIM);
        float q[HEADS * DIM] = {0}, y[HEADS * DIM];
        struct krn_segment segment = {.rows = 1, .pages = s.store.pages};
        assert_int_equal(b->attention(b->ctx, y, q, HEADS, &s.store.kv, 0, &segment, 1), 0);
        for (int h = 0; h < HEADS; h++)
            assert_true(same_bits(y + h * DIM, s.values + (h / 3) * DIM, DIM));
        sequence_close(&s);
        b->close(b->ctx);
    }
}

static void test_block_rows_see_the_whole_segment_and_causal_rows_do_not(void **state)
{
    (void)state;
    enum { DIM = 16, ROWS = 5 };
    for (int v = 0; v < n_variants; v++) {
        struct krn_backend *b = open_cpu(1, variants[v].mask);
        struct sequence s = sequence_open(variants[v].type, 5, 10 + ROWS, 4, 1, DIM);
        float q[ROWS * DIM] = {0}, causal[ROWS * DIM], block[ROWS * DIM]; // equal scores: y is a mean
        struct krn_segment segment = {.rows = ROWS, .first_pos = 10, .pages = s.store.pages};
        assert_int_equal(b->attention(b->ctx, causal, q, 1, &s.store.kv, 0, &segment, 1), 0);
        segment.mask = KRN_MASK_BLOCK;
        assert_int_equal(b->attention(b->ctx, block, q, 1, &s.store.kv, 0, &segment, 1), 0);
        for (int r = 0; r < ROWS; r++) {
            double mean = 0;
            for (int p = 0; p <= 10 + r; p++)
                mean += (double)s.values[p * DIM] / (11 + r);
            assert_near(causal[r * DIM], mean, 1e-6);
            assert_true(same_bits(block + r * DIM, causal + (ROWS - 1) * DIM, DIM));
        }
        sequence_close(&s);
        b->close(b->ctx);
    }
}

// More query heads on one kv head than a unit of work takes.
static void test_large_groups_are_split(void **state)
{
    (void)state;
    enum { HEADS = 71, DIM = 16, POSITIONS = 40 };
    struct random random = {.state = 11};
    for (int v = 0; v < n_variants; v++) {
        struct krn_backend *b = open_cpu(2, variants[v].mask);
        struct sequence s = sequence_open(variants[v].type, 6, POSITIONS, 16, 1, DIM);
        float *q = floats(POSITIONS * HEADS * DIM), *y = floats(POSITIONS * HEADS * DIM), alone[DIM];
        fill_random(&random, q, POSITIONS * HEADS * DIM);
        struct krn_segment segment = {.rows = POSITIONS, .pages = s.store.pages};
        assert_int_equal(b->attention(b->ctx, y, q, HEADS, &s.store.kv, 0, &segment, 1), 0);
        for (int p = 0; p < POSITIONS; p++)
            for (int h = 0; h < HEADS; h++) {
                struct krn_segment one = {.rows = 1, .first_pos = p, .pages = s.store.pages};
                assert_int_equal(b->attention(b->ctx, alone, q + (p * HEADS + h) * DIM, 1, &s.store.kv, 0, &one, 1), 0);
                assert_true(same_bits(alone, y + (p * HEADS + h) * DIM, DIM));
            }
        free(q);
        free(y);
        sequence_close(&s);
        b->close(b->ctx);
    }
}

// Two sequences in one call give what each gives alone, wherever their rows stand.
static void test_neighbours_do_not_matter(void **state)
{
    (void)state;
    enum { DIM = 24, HEADS = 4, ROWS = 9 };
    for (int v = 0; v < n_variants; v++) {
        struct krn_backend *b = open_cpu(2, variants[v].mask);
        struct sequence s = sequence_open(variants[v].type, 7, 100, 16, 2, DIM);
        float q[2 * ROWS * HEADS * DIM], y[2 * ROWS * HEADS * DIM], alone[ROWS * HEADS * DIM];
        struct random random = {.state = 12};
        fill_random(&random, q, 2 * ROWS * HEADS * DIM);
        struct krn_segment both[2] = {
            {.row = ROWS, .rows = ROWS, .first_pos = 91, .pages = s.store.pages},
            {.row = 0, .rows = ROWS, .first_pos = 3, .mask = KRN_MASK_BLOCK, .pages = s.store.pages},
        };
        assert_int_equal(b->attention(b->ctx, y, q, HEADS, &s.store.kv, 0, both, 2), 0);
        for (int i = 0; i < 2; i++) {
            int32_t row = both[i].row;
            both[i].row = 0;
            assert_int_equal(b->attention(b->ctx, alone, q + row * HEADS * DIM, HEADS, &s.store.kv, 0, &both[i], 1), 0);
            assert_true(same_bits(alone, y + row * HEADS * DIM, ROWS * HEADS * DIM));
        }
        sequence_close(&s);
        b->close(b->ctx);
    }
}

// A later position with infinite or undefined keys must not reach rows before it, not even as 0 * NaN.
static void test_rows_do_not_read_past_their_limit(void **state)
{
    (void)state;
    enum { DIM = 20, POSITIONS = 50 };
    for (int v = 0; v < n_variants; v++) {
        struct krn_backend *b = open_cpu(1, variants[v].mask);
        struct sequence s = sequence_open(variants[v].type, 8, POSITIONS, 16, 1, DIM);
        struct krn_segment all = {.rows = POSITIONS, .pages = s.store.pages};
        float q[POSITIONS * DIM], y[POSITIONS * DIM], clean[POSITIONS * DIM];
        struct random random = {.state = 13};
        fill_random(&random, q, POSITIONS * DIM);
        assert_int_equal(b->attention(b->ctx, clean, q, 1, &s.store.kv, 0, &all, 1), 0);
        for (int d = 0; d < DIM; d++) {
            s.k[45 * DIM + d] = NAN;
            s.v[45 * DIM + d] = INFINITY;
        }
        sequence_write(&s);
        assert_int_equal(b->attention(b->ctx, y, q, 1, &s.store.kv, 0, &all, 1), 0);
        assert_true(same_bits(y, clean, 45 * DIM));
        for (int i = 45 * DIM; i < POSITIONS * DIM; i++)
            assert_true(isnan(y[i]));
        sequence_close(&s);
        b->close(b->ctx);
    }
}

int main(void)
{
    struct version versions[VERSIONS_MAX];
    int n_versions = versions_here(versions);
    for (int v = 0; v < n_versions; v++)
        for (int t = 0; t < KV_TYPES; t++)
            variants[n_variants++] = (struct variant){versions[v].mask, kv_types[t]};
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_first_position_gives_its_own_value),
        cmocka_unit_test(test_equal_scores_give_the_mean),
        cmocka_unit_test(test_a_dominant_score_wins_without_overflow),
        cmocka_unit_test(test_query_heads_read_the_kv_head_of_their_group),
        cmocka_unit_test(test_block_rows_see_the_whole_segment_and_causal_rows_do_not),
        cmocka_unit_test(test_large_groups_are_split),
        cmocka_unit_test(test_neighbours_do_not_matter),
        cmocka_unit_test(test_rows_do_not_read_past_their_limit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
