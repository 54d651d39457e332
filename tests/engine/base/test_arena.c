// engine/base/arena.c
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "base/arena.h"

static void test_pieces_are_aligned_and_apart(void **state)
{
    (void)state;
    enum { N = 3000 };
    static unsigned char *piece[N];
    struct eng_arena *a = eng_arena_new();
    assert_non_null(a);
    for (int i = 0; i < N; i++) {
        size_t size = (size_t)(i * 7) % 300 + 1;
        piece[i] = eng_arena_alloc(a, size);
        assert_non_null(piece[i]);
        assert_int_equal((uintptr_t)piece[i] % 16, 0);
        memset(piece[i], i & 255, size);
    }
    for (int i = 0; i < N; i++)
        for (size_t k = 0; k < (size_t)(i * 7) % 300 + 1; k++)
            assert_int_equal(piece[i][k], i & 255);
    eng_arena_free(a);
}

static void test_a_piece_larger_than_any_chunk_fits(void **state)
{
    (void)state;
    struct eng_arena *a = eng_arena_new();
    char *p = eng_arena_alloc(a, 5 << 20);
    assert_non_null(p);
    memset(p, 1, 5 << 20);
    assert_true(eng_arena_used(a) >= 5 << 20);
    assert_null(eng_arena_alloc(a, SIZE_MAX));
    eng_arena_free(a);
    eng_arena_free(NULL);
}

static void test_dup_adds_a_nul(void **state)
{
    (void)state;
    struct eng_arena *a = eng_arena_new();
    assert_string_equal(eng_arena_dup(a, "hello", 4), "hell");
    assert_string_equal(eng_arena_dup(a, "", 0), "");
    eng_arena_free(a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pieces_are_aligned_and_apart),
        cmocka_unit_test(test_a_piece_larger_than_any_chunk_fits),
        cmocka_unit_test(test_dup_adds_a_nul),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
