// engine/prefix.c
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "base/err.h"
#include "prefix.h"

enum { PAGE = 4 };

// Three pages of tokens; b differs from a in the first token of all, c in the last.
static const int32_t a[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12};
static const int32_t b[] = {0, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12};
static const int32_t c[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13};

static struct eng_prefix open_prefix(uint64_t key_mask)
{
    struct eng_prefix p;
    assert_int_equal(eng_prefix_init(&p, 16, PAGE), 0);
    p.key_mask = key_mask;
    return p;
}

// How many pages of tokens are found, which must be `first` and on.
static int32_t found(const struct eng_prefix *p, const char *salt, const int32_t *tokens, int32_t first)
{
    struct eng_prefix_chain chain;
    eng_prefix_begin(p, salt, &chain);
    for (int32_t i = 0; i < 3; i++) {
        int32_t page = eng_prefix_follow(p, &chain, tokens + (ptrdiff_t)i * PAGE);
        if (page < 0)
            break;
        assert_int_equal(page, first + i);
        assert_int_equal(chain.last, page);
    }
    return chain.n_pages;
}

// Caches the three pages of tokens as first, first + 1, first + 2.
static void add(struct eng_prefix *p, const char *salt, const int32_t *tokens, int32_t first)
{
    struct eng_prefix_chain chain;
    eng_prefix_begin(p, salt, &chain);
    for (int32_t i = 0; i < 3; i++)
        eng_prefix_extend(p, &chain, tokens + (ptrdiff_t)i * PAGE, first + i);
}

static void test_a_chain_is_found_as_far_as_it_is_the_same(void **state)
{
    (void)state;
    struct eng_prefix p = open_prefix(~UINT64_C(0));
    assert_int_equal(found(&p, NULL, a, 0), 0);
    add(&p, NULL, a, 5);
    assert_int_equal(found(&p, NULL, a, 5), 3);
    assert_int_equal(found(&p, NULL, b, 5), 0); // equal tokens after another beginning are another chain
    assert_int_equal(found(&p, NULL, c, 5), 2);
    assert_true(eng_prefix_has(&p, 7));
    eng_prefix_remove(&p, 7);
    assert_false(eng_prefix_has(&p, 7));
    assert_int_equal(found(&p, NULL, a, 5), 2);
    eng_prefix_done(&p);
}

static void test_salts_share_nothing(void **state)
{
    (void)state;
    static const char *const salts[] = {NULL, "", "a", "ab", "b"};
    // Also where every key is the same, since salts are compared besides.
    for (int forced = 0; forced < 2; forced++) {
        struct eng_prefix p = open_prefix(forced ? 0 : ~UINT64_C(0));
        for (int i = 0; i < 5; i++) {
            assert_int_equal(found(&p, salts[i], a, 0), 0);
            add(&p, salts[i], a, 3 * i);
            assert_int_equal(found(&p, salts[i], a, 3 * i), 3);
        }
        eng_prefix_done(&p);
    }
}

static void test_a_collision_is_a_miss(void **state)
{
    (void)state;
    struct eng_prefix p = open_prefix(0); // every key is the same
    add(&p, NULL, a, 0);
    assert_int_equal(found(&p, NULL, b, 0), 0);
    assert_int_equal(found(&p, NULL, c, 0), 2);
    add(&p, NULL, b, 3);
    assert_int_equal(found(&p, NULL, a, 0), 3);
    assert_int_equal(found(&p, NULL, b, 3), 3);
    // b's second page has the tokens of a's second page, so only the parent tells them apart.
    for (int32_t page = 2; page >= 0; page--)
        eng_prefix_remove(&p, page);
    assert_int_equal(found(&p, NULL, a, 0), 0);
    assert_int_equal(found(&p, NULL, b, 3), 3);
    eng_prefix_done(&p);
}

static void test_keys_differ_between_processes(void **state)
{
    (void)state;
    struct eng_prefix p = open_prefix(~UINT64_C(0)), q = open_prefix(~UINT64_C(0));
    struct eng_prefix_chain one, other;
    eng_prefix_begin(&p, "salt", &one);
    eng_prefix_begin(&q, "salt", &other);
    assert_memory_not_equal(p.secret, q.secret, sizeof p.secret);
    assert_memory_not_equal(&one.key, &other.key, sizeof one.key);
    eng_prefix_done(&p);
    eng_prefix_done(&q);
}

static void test_init_refuses_nonsense(void **state)
{
    (void)state;
    struct eng_prefix p;
    assert_int_equal(eng_prefix_init(&p, 0, 4), ENG_EINVAL);
    eng_prefix_done(&p);
    assert_int_equal(eng_prefix_init(&p, 4, 0), ENG_EINVAL);
    eng_prefix_done(&p);
    assert_false(eng_prefix_has(&p, 3)); // nothing is cached where there is no cache
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_chain_is_found_as_far_as_it_is_the_same),
        cmocka_unit_test(test_salts_share_nothing),
        cmocka_unit_test(test_a_collision_is_a_miss),
        cmocka_unit_test(test_keys_differ_between_processes),
        cmocka_unit_test(test_init_refuses_nonsense),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
