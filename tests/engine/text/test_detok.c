#include "fixture.h"
#include "text/detok.h"

static int32_t byte_id(const struct eng_tokenizer *t, unsigned char byte)
{
    for (int32_t id = 0; id < eng_tokenizer_n_vocab(t); id++) {
        size_t len;
        const char *p = eng_tokenizer_piece(t, id, &len);
        if (p && len == 1 && (unsigned char)*p == byte)
            return id;
    }
    fail_msg("no token for the byte %02x", byte);
    return -1;
}

static void test_holds_back_half_characters(void **state)
{
    (void)state;
    struct eng_tokenizer *t = load_tokenizer();
    struct eng_detok d;
    struct eng_buf out = {0};
    eng_detok_init(&d, t, true);
    static const unsigned char smile[] = {0xF0, 0x9F, 0x98, 0x80};
    for (int i = 0; i < 4; i++) {
        assert_int_equal(out.len, 0);
        assert_int_equal(eng_detok_push(&d, byte_id(t, smile[i]), &out), 0);
    }
    assert_string_equal(out.data, "\xF0\x9F\x98\x80");
    eng_buf_free(&out);
    eng_tokenizer_free(t);
}

static void test_finish_replaces_what_is_cut(void **state)
{
    (void)state;
    struct eng_tokenizer *t = load_tokenizer();
    struct eng_detok d;
    struct eng_buf out = {0};
    eng_detok_init(&d, t, true);
    assert_int_equal(eng_detok_push(&d, byte_id(t, 'a'), &out), 0);
    assert_int_equal(eng_detok_push(&d, byte_id(t, 0xE4), &out), 0);
    assert_int_equal(eng_detok_push(&d, byte_id(t, 0xBD), &out), 0);
    assert_string_equal(out.data, "a");
    assert_int_equal(eng_detok_finish(&d, &out), 0);
    assert_string_equal(out.data, "a\uFFFD");
    assert_int_equal(eng_detok_finish(&d, &out), 0);
    assert_string_equal(out.data, "a\uFFFD");
    eng_buf_free(&out);
    eng_tokenizer_free(t);
}

static void test_special_tokens_are_skipped_or_shown(void **state)
{
    (void)state;
    struct eng_tokenizer *t = load_tokenizer();
    int32_t end = eng_tokenizer_find_special(t, "<|im_end|>");
    // A skipped token does not come between the halves of a character, a shown one does.
    int32_t ids[] = {byte_id(t, 0xC3), end, byte_id(t, 0xA9), end};
    struct eng_buf out = {0};
    assert_int_equal(eng_detok_all(t, ids, 4, true, &out), 0);
    assert_string_equal(out.data, "\xC3\xA9");
    eng_buf_reset(&out);
    assert_int_equal(eng_detok_all(t, ids, 4, false, &out), 0);
    assert_string_equal(out.data, "\uFFFD<|im_end|>\uFFFD<|im_end|>");
    eng_buf_free(&out);
    eng_tokenizer_free(t);
}

static void test_refuses_unknown_ids(void **state)
{
    (void)state;
    struct eng_tokenizer *t = load_tokenizer();
    struct eng_detok d;
    struct eng_buf out = {0};
    eng_detok_init(&d, t, true);
    assert_int_equal(eng_detok_push(&d, -1, &out), ENG_EINVAL);
    assert_int_equal(eng_detok_push(&d, INT32_MIN, &out), ENG_EINVAL);
    assert_int_equal(eng_detok_push(&d, eng_tokenizer_n_vocab(t), &out), ENG_EINVAL);
    assert_int_equal(eng_detok_push(&d, INT32_MAX, &out), ENG_EINVAL);
    assert_int_equal(out.len, 0);
    eng_buf_free(&out);
    eng_tokenizer_free(t);
}

// Any ids, so mostly ill-formed bytes: what streams out is the bytes decoded at once, and every prefix is valid UTF-8.
static void test_stream_equals_whole(void **state)
{
    (void)state;
    struct eng_tokenizer *t = load_tokenizer();
    uint64_t seed = 7;
    for (int round = 0; round < 2000; round++) {
        struct eng_detok d;
        struct eng_buf bytes = {0}, whole = {0}, stream = {0};
        eng_detok_init(&d, t, false);
        for (uint32_t n = next_random(&seed) % 30; n > 0; n--) {
            int32_t id;
            const char *piece;
            size_t len;
            do {
                id = next_random(&seed) % 3 ? byte_id(t, (unsigned char)(0x7E + next_random(&seed) % 130))
                                            : (int32_t)(next_random(&seed) % (uint32_t)eng_tokenizer_n_vocab(t));
                piece = eng_tokenizer_piece(t, id, &len);
            } while (!piece);
            assert_int_equal(eng_buf_append(&bytes, piece, len), 0);
            assert_int_equal(eng_detok_push(&d, id, &stream), 0);
            assert_true(eng_utf8_valid(stream.data, stream.len));
        }
        assert_int_equal(eng_detok_finish(&d, &stream), 0);
        assert_int_equal(eng_utf8_append_lossy(&whole, bytes.data, bytes.len), 0);
        assert_int_equal(whole.len, stream.len);
        if (whole.len)
            assert_memory_equal(whole.data, stream.data, whole.len);
        eng_buf_free(&bytes);
        eng_buf_free(&whole);
        eng_buf_free(&stream);
    }
    eng_tokenizer_free(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_holds_back_half_characters),
        cmocka_unit_test(test_finish_replaces_what_is_cut),
        cmocka_unit_test(test_special_tokens_are_skipped_or_shown),
        cmocka_unit_test(test_refuses_unknown_ids),
        cmocka_unit_test(test_stream_equals_whole),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
