// kernels/cuda/attention_plan.c: every chunk of every tile in exactly one item, whatever the cut.
#include "attention_plan.h"
#include "cmocka_util.h"
#include "kernels.h"

#include <stdlib.h>
#include <string.h>

enum { SEGMENTS_MAX = 300, TILES_MAX = 80, CHUNKS_MAX = 64, HEADS_MAX = 8 };

struct plan {
    struct krn_attention_setup setup;
    struct krn_dev_segment segments[SEGMENTS_MAX];
    int32_t n_segments, rows;
    struct krn_dev_attention_item *items;
    int32_t n_items, n_most;
};

static void add_segment(struct plan *plan, int32_t rows, int32_t first_pos, enum krn_mask mask)
{
    plan->segments[plan->n_segments++] =
        (struct krn_dev_segment){.row = plan->rows, .rows = rows, .first_pos = first_pos, .mask = (int32_t)mask};
    plan->rows += rows;
}

static void make(struct plan *plan)
{
    plan->n_most = krn_attention_items_max(&plan->setup, plan->rows, plan->n_segments);
    plan->items = calloc((size_t)plan->n_most + 1, sizeof *plan->items);
    assert_non_null(plan->items);
    plan->n_items = krn_attention_plan(&plan->setup, plan->segments, plan->n_segments, plan->items);
}

static void drop(struct plan *plan)
{
    free(plan->items);
    plan->items = NULL;
}

static int32_t tiles_of(const struct plan *plan, int32_t segment)
{
    int32_t queries = plan->segments[segment].rows * plan->setup.group;
    return (queries + KRN_ATTENTION_QUERIES - 1) / KRN_ATTENTION_QUERIES;
}

// The last position that a tile sees.
static int32_t last_of(const struct plan *plan, int32_t segment, int32_t tile)
{
    const struct krn_dev_segment *s = &plan->segments[segment];
    int32_t row = ((tile + 1) * KRN_ATTENTION_QUERIES - 1) / plan->setup.group;
    return s->first_pos + (s->mask == KRN_MASK_CAUSAL && row < s->rows ? row : s->rows - 1);
}

// How often each (tile, chunk) of one segment and kv head is taken, and each tile folded.
static void check_cover(const struct plan *plan, int32_t segment, int32_t head)
{
    static unsigned char seen[TILES_MAX][CHUNKS_MAX], folded[TILES_MAX];
    const struct krn_dev_segment *s = &plan->segments[segment];
    memset(seen, 0, sizeof seen);
    memset(folded, 0, sizeof folded);
    for (int32_t i = 0; i < plan->n_items; i++) {
        const struct krn_dev_attention_item *item = &plan->items[i];
        if (item->segment != segment || item->kv_head != head)
            continue;
        assert_in_range(item->n_tiles, 1, KRN_ATTENTION_WARPS);
        assert_true(item->tile >= 0 && item->tile + item->n_tiles <= tiles_of(plan, segment));
        assert_true(item->chunk >= 0 && item->n_chunks >= 0 && item->chunk + item->n_chunks <= s->n_chunks);
        assert_true(!item->deep || item->n_tiles == 1);
        if (item->n_chunks == 0)
            folded[item->tile]++;
        for (int32_t t = 0; t < item->n_tiles; t++)
            for (int32_t c = 0; c < item->n_chunks; c++)
                seen[item->tile + t][item->chunk + c]++;
        // Folding takes all chunks.
        if (s->sums < 0)
            assert_int_equal(item->chunk, 0);
    }
    for (int32_t t = 0; t < tiles_of(plan, segment); t++) {
        assert_int_equal(folded[t], s->sums >= 0);
        for (int32_t c = 0; c < s->n_chunks; c++) {
            assert_true(seen[t][c] <= 1);
            if (c <= last_of(plan, segment, t) / KRN_ATTENTION_CHUNK)
                assert_int_equal(seen[t][c], 1);
        }
    }
}

static void check_plan(const struct plan *plan)
{
    int64_t slots = 0;
    int32_t folds = 0;
    assert_true(plan->n_items <= plan->n_most);
    for (int32_t s = 0; s < plan->n_segments; s++) {
        const struct krn_dev_segment *segment = &plan->segments[s];
        assert_int_equal(segment->n_chunks, (segment->first_pos + segment->rows - 1) / KRN_ATTENTION_CHUNK + 1);
        if (segment->sums >= 0) { // one after the other, so disjoint
            assert_int_equal(segment->sums, slots);
            slots += (int64_t)plan->setup.n_kv_heads * segment->rows * plan->setup.group * segment->n_chunks;
        }
        for (int32_t h = 0; h < plan->setup.n_kv_heads; h++)
            check_cover(plan, s, h);
    }
    assert_true(slots <= plan->setup.slots);
    for (int32_t i = 0; i < plan->n_items; i++) {
        if (plan->items[i].n_chunks == 0)
            folds++;
        else
            assert_int_equal(folds, 0); // items without chunks stand behind all others
        assert_in_range(plan->items[i].segment, 0, plan->n_segments - 1);
        assert_in_range(plan->items[i].kv_head, 0, plan->setup.n_kv_heads - 1);
    }
}

static void test_every_chunk_is_taken_once(void **state)
{
    (void)state;
    static const int32_t groups[] = {1, 2, 3, 4, 17, 32};
    static const int32_t heads[] = {1, 2, HEADS_MAX};
    static const int32_t slots[] = {0, 40, 5000, 1 << 20};
    for (size_t g = 0; g < sizeof groups / sizeof *groups; g++)
        for (size_t h = 0; h < sizeof heads / sizeof *heads; h++)
            for (size_t n = 0; n < sizeof slots / sizeof *slots; n++)
                for (int cut = KRN_ATTENTION_CUT_AUTO; cut <= KRN_ATTENTION_CUT_ALWAYS; cut++) {
                    static struct plan plan;
                    plan = (struct plan){.setup = {.n_kv_heads = heads[h],
                                                   .group = groups[g],
                                                   .slots = slots[n],
                                                   .multiprocessors = n % 2 ? 132 : 3,
                                                   .cut = (enum krn_attention_cut)cut}};
                    add_segment(&plan, 1, 0, KRN_MASK_CAUSAL);
                    add_segment(&plan, 1, 1151, KRN_MASK_CAUSAL);
                    add_segment(&plan, 33, 100, KRN_MASK_BLOCK);
                    add_segment(&plan, 40, 0, KRN_MASK_CAUSAL);
                    add_segment(&plan, 16, 47, KRN_MASK_CAUSAL); // ends with a chunk
                    add_segment(&plan, 17, 47, KRN_MASK_CAUSAL);
                    add_segment(&plan, 40, 49, KRN_MASK_CAUSAL); // groups of 4: the first item's last row alone
                    add_segment(&plan, 4, 63, KRN_MASK_CAUSAL);  // sees a second chunk; so of 32
                    add_segment(&plan, 1, 4000, KRN_MASK_BLOCK);
                    make(&plan);
                    check_plan(&plan);
                    drop(&plan);
                }
}

// Is the context of so many clients, with so many rows and positions each, cut?
static bool is_cut(int32_t clients, int32_t rows, int32_t positions, int32_t slots)
{
    static struct plan plan;
    plan = (struct plan){.setup = {.n_kv_heads = 8, .group = 4, .slots = slots, .multiprocessors = 132}};
    for (int32_t c = 0; c < clients; c++)
        add_segment(&plan, rows, positions - rows, KRN_MASK_BLOCK);
    make(&plan);
    check_plan(&plan);
    bool cut = plan.segments[0].sums >= 0;
    if (cut)
        assert_true(plan.n_items > 8 * clients);
    drop(&plan);
    return cut;
}

static void test_long_contexts_are_cut_where_blocks_would_idle(void **state)
{
    (void)state;
    assert_true(is_cut(1, 1, 1152, 1 << 20));
    assert_true(is_cut(1, 32, 1152, 1 << 20));
    assert_true(is_cut(8, 1, 1152, 1 << 20));
    assert_false(is_cut(64, 1, 1152, 1 << 20));
    assert_false(is_cut(256, 1, 1152, 1 << 20));
    assert_false(is_cut(1, 1, 64, 1 << 20));          // one chunk
    assert_false(is_cut(1, 1, 1152, 8 * 4 * 18 - 1)); // a slot is missing
    assert_true(is_cut(1, 1, 1152, 8 * 4 * 18));
}

// One long context among short ones must not be what all wait for.
static void test_only_the_long_one_is_cut(void **state)
{
    (void)state;
    static struct plan plan;
    plan = (struct plan){.setup = {.n_kv_heads = 8, .group = 4, .slots = 1 << 16, .multiprocessors = 132}};
    for (int32_t c = 0; c < 100; c++)
        add_segment(&plan, 1, 200 + c, KRN_MASK_CAUSAL);
    add_segment(&plan, 1, CHUNKS_MAX * KRN_ATTENTION_CHUNK - 1, KRN_MASK_CAUSAL);
    make(&plan);
    check_plan(&plan);
    for (int32_t c = 0; c < 100; c++)
        assert_int_equal(plan.segments[c].sums, -1);
    assert_int_equal(plan.segments[100].sums, 0);
    drop(&plan);
}

static void test_long_items_come_first(void **state)
{
    (void)state;
    static struct plan plan;
    plan = (struct plan){.setup = {.n_kv_heads = 2, .group = 4, .slots = 0, .multiprocessors = 4}};
    for (int32_t c = 0; c < 32; c++)
        add_segment(&plan, 1, c * 7 % 32 * KRN_ATTENTION_CHUNK, KRN_MASK_CAUSAL); // 1 to 32 chunks
    add_segment(&plan, 64, 0, KRN_MASK_CAUSAL);
    make(&plan);
    check_plan(&plan);
    for (int32_t i = 1; i < plan.n_items; i++)
        assert_true(plan.items[i].n_chunks <= plan.items[i - 1].n_chunks);
    drop(&plan);
}

static void test_one_tile_is_deep_and_several_are_wide(void **state)
{
    (void)state;
    static struct plan plan;
    plan = (struct plan){.setup = {.n_kv_heads = 1, .group = 4, .slots = 0, .multiprocessors = 4}};
    add_segment(&plan, 4, 0, KRN_MASK_BLOCK); // 16 queries
    add_segment(&plan, 5, 0, KRN_MASK_BLOCK); // 20
    make(&plan);
    check_plan(&plan);
    assert_int_equal(plan.n_items, 2);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(plan.items[i].n_tiles, 1 + plan.items[i].segment);
        assert_int_equal(plan.items[i].deep, plan.items[i].segment == 0);
    }
    drop(&plan);
}

static void test_no_segments_are_no_items(void **state)
{
    (void)state;
    struct krn_attention_setup setup = {.n_kv_heads = 8, .group = 4, .slots = 10, .multiprocessors = 4};
    struct krn_dev_attention_item item = {0};
    assert_int_equal(krn_attention_plan(&setup, NULL, 0, &item), 0);
    assert_true(krn_attention_items_max(&setup, 0, 0) >= 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_chunk_is_taken_once),
        cmocka_unit_test(test_long_contexts_are_cut_where_blocks_would_idle),
        cmocka_unit_test(test_only_the_long_one_is_cut),
        cmocka_unit_test(test_long_items_come_first),
        cmocka_unit_test(test_one_tile_is_deep_and_several_are_wide),
        cmocka_unit_test(test_no_segments_are_no_items),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
