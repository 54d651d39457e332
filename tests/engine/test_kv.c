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
        cmocka_unit_test(test_rollback_keeps_committed_pages),
        cmocka_unit_test(test_check_finds_a_page_owned_twice_or_lost),
        cmocka_unit_test(test_random_use_loses_nothing),
        cmocka_unit_test(test_init_refuses_nonsense),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
