// engine/kv.c
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/err.h"
#include "client.h"
#include "kv.h"

static void test_reserve_is_all_or_nothing(void **state)
{
    (void)state;
    struct eng_kv kv;
    assert_int_equal(eng_kv_init(&kv, 10, 4, 3, 40), 0);
    assert_int_equal(eng_kv_reserve(&kv, 0, 0), 0);
    assert_int_equal(eng_kv_used(&kv), 0);
    assert_int_equal(eng_kv_reserve(&kv, 0, 1), 0);
    assert_int_equal(eng_kv_used(&kv), 1);
    assert_int_equal(eng_kv_reserve(&kv, 0, 4), 0);
    assert_int_equal(eng_kv_used(&kv), 1);
    assert_int_equal(eng_kv_reserve(&kv, 0, 5), 0);
    assert_int_equal(eng_kv_used(&kv), 2);
    assert_int_equal(eng_kv_reserve(&kv, 1, 33), ENG_ELIMIT);
    assert_int_equal(eng_kv_used(&kv), 2);
    assert_int_equal(eng_kv_reserve(&kv, 1, 32), 0);
    assert_int_equal(eng_kv_used(&kv), 10);
    assert_int_equal(eng_kv_reserve(&kv, 2, 1), ENG_ELIMIT);
    assert_true(eng_kv_check(&kv));
    eng_kv_release(&kv, 1);
    assert_int_equal(eng_kv_used(&kv), 2);
    eng_kv_release(&kv, 0);
    eng_kv_release(&kv, 2);
    assert_int_equal(eng_kv_used(&kv), 0);
    assert_true(eng_kv_check(&kv));
    eng_kv_done(&kv);
}

static void test_missing_pages_are_those_of_positions_beyond(void **state)
{
    (void)state;
    struct eng_kv kv;
    assert_int_equal(eng_kv_init(&kv, 10, 4, 2, 40), 0);
    assert_int_equal(eng_kv_missing(&kv, 1, 0), 0);
    assert_int_equal(eng_kv_missing(&kv, 1, 9), 3);
    assert_int_equal(eng_kv_reserve(&kv, 1, 9), 0);
    assert_int_equal(eng_kv_missing(&kv, 1, 1), 0);
    assert_int_equal(eng_kv_missing(&kv, 1, 12), 0);
    assert_int_equal(eng_kv_missing(&kv, 1, 13), 1);
    assert_int_equal(eng_kv_missing(&kv, 0, 13), 4);
    eng_kv_done(&kv);
}

static void test_rollback_keeps_committed_pages(void **state)
{
    (void)state;
    struct eng_kv kv;
    assert_int_equal(eng_kv_init(&kv, 10, 4, 1, 40), 0);
    assert_int_equal(eng_kv_reserve(&kv, 0, 40), 0);
    const int32_t *table = eng_kv_table(&kv, 0);
    int32_t first = table[0], second = table[1];
    eng_kv_commit(&kv, 0, 5);
    eng_kv_rollback(&kv, 0);
    assert_int_equal(eng_kv_used(&kv), 2);
    assert_int_equal(eng_kv_reserve(&kv, 0, 20), 0);
    assert_ptr_equal(eng_kv_table(&kv, 0), table);
    assert_int_equal(table[0], first);
    assert_int_equal(table[1], second);
    assert_true(eng_kv_check(&kv));
    eng_kv_done(&kv);
}

static void test_check_finds_a_page_owned_twice_or_lost(void **state)
{
    (void)state;
    struct eng_kv kv;
    assert_int_equal(eng_kv_init(&kv, 6, 2, 2, 12), 0);
    assert_int_equal(eng_kv_reserve(&kv, 0, 4), 0);
    assert_int_equal(eng_kv_reserve(&kv, 1, 4), 0);
    assert_true(eng_kv_check(&kv));
    int32_t mine = kv.slots[0].pages[1];
    kv.slots[0].pages[1] = kv.slots[1].pages[0];
    assert_false(eng_kv_check(&kv));
    kv.slots[0].pages[1] = mine;
    kv.n_free--;
    assert_false(eng_kv_check(&kv));
    kv.n_free++;
    assert_true(eng_kv_check(&kv));
    eng_kv_done(&kv);
}

static void test_random_use_loses_nothing(void **state)
{
    (void)state;
    uint64_t random = 4;
    for (int32_t page_size = 1; page_size <= 64; page_size *= 2) {
        struct eng_kv kv;
        assert_int_equal(eng_kv_init(&kv, 50, page_size, 7, 50 * page_size), 0);
        for (int i = 0; i < 4000; i++) {
            int32_t slot = (int32_t)(test_random(&random) % 7);
            struct eng_kv_slot *s = &kv.slots[slot];
            switch (test_random(&random) % 5) {
            case 0:
                eng_kv_release(&kv, slot);
                break;
            case 1:
                eng_kv_rollback(&kv, slot);
                break;
            case 2:
                eng_kv_commit(&kv, slot,
                              s->committed + (int32_t)(test_random(&random) %
                                                       (uint32_t)(s->n_pages * page_size - s->committed + 1)));
                break;
            default:
                (void)eng_kv_reserve(&kv, slot, (int32_t)(test_random(&random) % (uint32_t)(20 * page_size)));
            }
            assert_true(eng_kv_check(&kv));
        }
        for (int32_t s = 0; s < 7; s++)
            eng_kv_release(&kv, s);
        assert_int_equal(kv.n_free, 50);
        eng_kv_done(&kv);
    }
}

// ---- sharing --------------------------------------------------------------------------------------------------------

// 10 pages of 4 positions.
static void open_shared(struct eng_kv *kv)
{
    assert_int_equal(eng_kv_init(kv, 10, 4, 3, 40), 0);
    assert_int_equal(eng_kv_enable_sharing(kv), 0);
}

static const int32_t *counting(int32_t first)
{
    static int32_t tokens[2][40];
    int32_t *t = tokens[first % 2];
    for (int32_t i = 0; i < 40; i++)
        t[i] = first * 100 + i;
    return t;
}

// Makes the slot hold n tokens, as far as possible from the cache. The positions found there.
static int32_t hold(struct eng_kv *kv, int32_t slot, const int32_t *tokens, int32_t n)
{
    int32_t found = eng_kv_attach(kv, slot, tokens, n, NULL);
    assert_int_equal(eng_kv_reserve(kv, slot, n), 0);
    eng_kv_commit(kv, slot, n);
    eng_kv_share(kv, slot, tokens, n);
    assert_true(eng_kv_check(kv));
    return found;
}

static void test_whole_committed_pages_are_shared_and_nothing_else(void **state)
{
    (void)state;
    struct eng_kv kv;
    const int32_t *t = counting(0);
    open_shared(&kv);
    assert_int_equal(eng_kv_attach(&kv, 0, t, 15, NULL), 0);
    assert_int_equal(eng_kv_reserve(&kv, 0, 15), 0);
    eng_kv_commit(&kv, 0, 6); // of 15 reserved
    eng_kv_share(&kv, 0, t, 15);
    assert_int_equal(eng_kv_match_used(&kv, t, 15, NULL), 1);
    assert_int_equal(eng_kv_match_used(&kv, t, 3, NULL), 0); // not a whole page
    assert_int_equal(eng_kv_match_used(&kv, t, 15, "salt"), 0);
    eng_kv_commit(&kv, 0, 15);
    eng_kv_share(&kv, 0, t, 11); // an end at token 11
    assert_int_equal(eng_kv_attach(&kv, 1, t, 40, NULL), 8);
    assert_memory_equal(eng_kv_table(&kv, 1), eng_kv_table(&kv, 0), 2 * sizeof(int32_t));
    assert_int_equal(eng_kv_used(&kv), 4);
    assert_true(eng_kv_check(&kv));
    eng_kv_release(&kv, 0);
    assert_int_equal(eng_kv_used(&kv), 2);
    assert_int_equal(kv.n_cached, 0);
    eng_kv_release(&kv, 1);
    assert_int_equal(kv.n_cached, 2);
    assert_int_equal(kv.n_free, 8);
    assert_true(eng_kv_check(&kv));
    eng_kv_done(&kv);
}

static void test_the_longest_unused_page_is_evicted_first_and_the_end_of_a_chain_before_its_beginning(void **state)
{
    (void)state;
    struct eng_kv kv;
    open_shared(&kv);
    const int32_t *a = counting(0), *b = counting(1);
    assert_int_equal(hold(&kv, 0, a, 16), 0);
    assert_int_equal(hold(&kv, 1, b, 16), 0);
    eng_kv_release(&kv, 0);
    eng_kv_release(&kv, 1);
    assert_int_equal(kv.n_cached, 8);
    assert_int_equal(hold(&kv, 0, a, 16), 16); // a is now younger than b
    eng_kv_release(&kv, 0);
    assert_int_equal(eng_kv_reserve(&kv, 2, 16), 0); // two free ones, and two of b's
    assert_true(eng_kv_check(&kv));
    assert_int_equal(eng_kv_attach(&kv, 0, a, 16, NULL), 16);
    assert_int_equal(eng_kv_attach(&kv, 1, b, 16, NULL), 8);
    assert_int_equal(eng_kv_available(&kv), 0);
    assert_int_equal(eng_kv_reserve(&kv, 1, 12), ENG_ELIMIT); // what is used is not evicted
    assert_true(eng_kv_check(&kv));
    eng_kv_done(&kv);
}

static void test_a_page_that_two_computed_is_kept_once(void **state)
{
    (void)state;
    struct eng_kv kv;
    open_shared(&kv);
    const int32_t *a = counting(0);
    for (int32_t slot = 0; slot < 2; slot++) {
        assert_int_equal(eng_kv_attach(&kv, slot, a, 12, NULL), 0);
        assert_int_equal(eng_kv_reserve(&kv, slot, 12), 0);
        eng_kv_commit(&kv, slot, 10);
    }
    eng_kv_share(&kv, 0, a, 10);
    assert_int_equal(eng_kv_used(&kv), 6);
    eng_kv_share(&kv, 1, a, 10);
    assert_int_equal(eng_kv_used(&kv), 4);
    assert_memory_equal(eng_kv_table(&kv, 0), eng_kv_table(&kv, 1), 2 * sizeof(int32_t));
    assert_int_not_equal(eng_kv_table(&kv, 0)[2], eng_kv_table(&kv, 1)[2]);
    assert_true(eng_kv_check(&kv));
    eng_kv_done(&kv);
}

static void test_check_finds_a_wrong_number_of_users(void **state)
{
    (void)state;
    struct eng_kv kv;
    open_shared(&kv);
    assert_int_equal(hold(&kv, 0, counting(0), 8), 0);
    int32_t page = kv.slots[0].pages[1];
    kv.pages[page].n_users++;
    assert_false(eng_kv_check(&kv));
    kv.pages[page].n_users -= 2;
    assert_false(eng_kv_check(&kv));
    kv.pages[page].n_users++;
    kv.prefix.entries[page].cached = false;
    assert_false(eng_kv_check(&kv));
    kv.prefix.entries[page].cached = true;
    eng_kv_release(&kv, 0);
    assert_true(eng_kv_check(&kv));
    int32_t oldest = kv.oldest; // turned round, the list would evict a page before the one that continues it
    kv.oldest = kv.youngest;
    kv.youngest = oldest;
    kv.pages[kv.oldest] = (struct eng_kv_page){.older = -1, .younger = oldest};
    kv.pages[oldest] = (struct eng_kv_page){.older = kv.oldest, .younger = -1};
    assert_false(eng_kv_check(&kv));
    eng_kv_done(&kv);
}

// Slots that hold random continuations of few beginnings, whose tokens are known: what is attached is what was shared.
static void test_random_sharing_loses_nothing(void **state)
{
    (void)state;
    enum { SLOTS = 7, PAGES = 50 };
    uint64_t random = 9, hits = 0;
    for (int32_t page_size = 1; page_size <= 16; page_size *= 2) {
        struct eng_kv kv;
        static int32_t tokens[SLOTS][PAGES * 16], of_page[PAGES][16];
        int32_t longest = PAGES * page_size;
        assert_int_equal(eng_kv_init(&kv, PAGES, page_size, SLOTS, longest), 0);
        assert_int_equal(eng_kv_enable_sharing(&kv), 0);
        kv.prefix.key_mask = page_size == 4 ? 1 : ~UINT64_C(0);
        for (int i = 0; i < 6000; i++) {
            int32_t slot = (int32_t)(test_random(&random) % SLOTS);
            struct eng_kv_slot *s = &kv.slots[slot];
            int32_t *t = tokens[slot];
            if (test_random(&random) % 6 == 0) {
                eng_kv_release(&kv, slot);
            } else if (s->n_pages == 0) {
                for (int32_t k = 0, differs = 0; k < longest; k++) {
                    differs |= test_random(&random) % (uint32_t)(8 * page_size) == 0;
                    t[k] = differs ? (int32_t)(test_random(&random) % 2) : 7;
                }
                int32_t n = eng_kv_attach(&kv, slot, t, longest, NULL);
                for (int32_t k = 0; k < n; k++)
                    assert_int_equal(of_page[s->pages[k / page_size]][k % page_size], t[k]);
                hits += (uint64_t)n;
                (void)eng_kv_reserve(&kv, slot, n + 1); // it may stay empty, and is then attached anew
            } else if (test_random(&random) % 3 == 0) {
                eng_kv_rollback(&kv, slot);
            } else {
                int32_t more = (int32_t)(test_random(&random) % (uint32_t)(4 * page_size));
                int32_t n = s->committed + more < longest ? s->committed + more : longest;
                if (!eng_kv_reserve(&kv, slot, n)) {
                    for (int32_t k = s->committed; k < n; k++)
                        of_page[s->pages[k / page_size]][k % page_size] = t[k];
                    eng_kv_commit(&kv, slot, n);
                    eng_kv_share(&kv, slot, t, n);
                }
            }
            assert_true(eng_kv_check(&kv));
        }
        for (int32_t s = 0; s < SLOTS; s++)
            eng_kv_release(&kv, s);
        assert_int_equal(eng_kv_available(&kv), PAGES);
        eng_kv_done(&kv);
    }
    assert_true(hits > 1000);
}

static void test_init_refuses_nonsense(void **state)
{
    (void)state;
    struct eng_kv kv;
    assert_int_equal(eng_kv_init(&kv, 0, 4, 1, 4), ENG_EINVAL);
    assert_int_equal(eng_kv_init(&kv, 1, 0, 1, 4), ENG_EINVAL);
    assert_int_equal(eng_kv_init(&kv, 1, 4, 0, 4), ENG_EINVAL);
    eng_kv_done(&kv);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reserve_is_all_or_nothing),
        cmocka_unit_test(test_missing_pages_are_those_of_positions_beyond),
        cmocka_unit_test(test_rollback_keeps_committed_pages),
        cmocka_unit_test(test_check_finds_a_page_owned_twice_or_lost),
        cmocka_unit_test(test_random_use_loses_nothing),
        cmocka_unit_test(test_whole_committed_pages_are_shared_and_nothing_else),
        cmocka_unit_test(test_the_longest_unused_page_is_evicted_first_and_the_end_of_a_chain_before_its_beginning),
        cmocka_unit_test(test_a_page_that_two_computed_is_kept_once),
        cmocka_unit_test(test_check_finds_a_wrong_number_of_users),
        cmocka_unit_test(test_random_sharing_loses_nothing),
        cmocka_unit_test(test_init_refuses_nonsense),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
