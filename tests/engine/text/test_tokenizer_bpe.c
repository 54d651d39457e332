// engine/text/tokenizer_bpe.c: merges by rank, the scan and the heap alike, unknown bytes.
#include "fixture.h"
#include "text/tokenizer_inner.h"

// A piece of more than 48 bytes goes through the heap, one of less through the scan: on words that merge alike in both,
// the long piece's tokens are those that the scan gives for the same bytes.
static void test_long_pieces_merge_as_short_ones(void **state)
{
    (void)state;
    struct eng_tokenizer *t = load_tokenizer();
    char text[4000];
    for (size_t len = 1; len < sizeof text; len = len * 2 + 1) {
        int32_t *ids;
        size_t n;
        memset(text, 'a', len);
        assert_int_equal(eng_tokenizer_encode(t, text, len, 0, &ids, &n), 0);
        // Runs of one letter: the longest tokens first, each no longer than the one before.
        for (size_t i = 1; i < n; i++) {
            size_t before, after;
            eng_tokenizer_piece(t, ids[i - 1], &before);
            eng_tokenizer_piece(t, ids[i], &after);
            assert_true(after <= before);
        }
        free(ids);
    }
    eng_tokenizer_free(t);
}

// The merges done the plain way: the pair of lowest rank, the leftmost on a tie, until none is left.
static size_t merge_plainly(const struct eng_tokenizer *t, const char *text, size_t n, int32_t *ids)
{
    for (size_t i = 0; i < n; i++)
        ids[i] = t->byte_ids[(unsigned char)text[i]];
    for (;;) {
        const struct merge *best = NULL;
        size_t at = 0;
        for (size_t i = 0; i + 1 < n; i++) {
            const struct merge *m = eng_tokenizer_find_merge(t, ids[i], ids[i + 1]);
            if (m->key != UINT64_MAX && (!best || m->rank < best->rank)) {
                best = m;
                at = i;
            }
        }
        if (!best)
            return n;
        ids[at] = best->id;
        memmove(ids + at + 1, ids + at + 2, (n - at - 2) * sizeof *ids);
        n--;
    }
}

static void test_both_ways_are_the_plain_way(void **state)
{
    (void)state;
    struct eng_tokenizer *t = load_tokenizer();
    uint64_t seed = 5;
    for (int round = 0; round < 400; round++) {
        char text[130];
        int32_t want[130];
        size_t len = 1 + next_random(&seed) % (round % 2 ? 130 : 52); // around the border of 48 and beyond
        for (size_t i = 0; i < len; i++)
            text[i] = "aathe the in<|\xC3\xA9"[next_random(&seed) % 16];
        size_t n = merge_plainly(t, text, len, want);
        struct ids ids = {0};
        assert_int_equal(eng_tokenizer_bpe(t, text, len, &ids), 0);
        assert_int_equal(ids.n, n);
        assert_memory_equal(ids.data, want, n * sizeof *want);
        free(ids.data);
    }
    eng_tokenizer_free(t);
}

static void test_ids_are_appended(void **state)
{
    (void)state;
    struct eng_tokenizer *t = load_tokenizer();
    struct ids ids = {0};
    for (int i = 0; i < 1000; i++)
        assert_int_equal(eng_tokenizer_push_id(&ids, i), 0);
    assert_int_equal(eng_tokenizer_bpe(t, "z", 1, &ids), 0);
    assert_int_equal(ids.n, 1001);
    assert_int_equal(ids.data[999], 999);
    assert_int_equal(ids.data[1000], t->byte_ids['z']);
    free(ids.data);
    eng_tokenizer_free(t);
}

static void test_unknown_bytes_fuse_when_told_to(void **state)
{
    (void)state;
    struct eng_tokenizer *t = load_tokenizer();
    for (int fuse = 0; fuse < 2; fuse++)
        for (int wide = 0; wide < 2; wide++) { // the scan, the heap
            char text[100];
            size_t len = wide ? 100 : 10;
            struct ids ids = {0};
            memset(text, '~', len);
            text[len - 1] = 'z';
            t->byte_ids['~'] = -1;
            t->unk_id = 0;
            t->fuse_unk = fuse;
            assert_int_equal(eng_tokenizer_bpe(t, text, len, &ids), 0);
            assert_int_equal(ids.n, fuse ? 2 : len);
            assert_int_equal(ids.data[0], 0);
            assert_int_equal(ids.data[ids.n - 1], t->byte_ids['z']);
            free(ids.data);
        }
    eng_tokenizer_free(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_long_pieces_merge_as_short_ones),
        cmocka_unit_test(test_both_ways_are_the_plain_way),
        cmocka_unit_test(test_ids_are_appended),
        cmocka_unit_test(test_unknown_bytes_fuse_when_told_to),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
