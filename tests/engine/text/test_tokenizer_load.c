// engine/text/tokenizer_load.c: tokenizer.json cut off, edited, absent.
#include "fixture.h"

static void test_every_truncation_is_an_error(void **state)
{
    (void)state;
    size_t len;
    char *data = fixture_text(&len), err[256];
    while (len && data[len - 1] != '}')
        len--;
    struct eng_tokenizer *t = NULL;
    for (size_t n = 0; n < len; n += n < 64 || n > len - 700 ? 1 : 97) {
        err[0] = '\0';
        assert_int_equal(load_text(data, n, &t, err, sizeof err), ENG_EFORMAT);
        assert_true(err[0]);
        assert_null(t);
    }
    free(data);
}

// Puts `to` in place of the first `from` in the fixture and loads that.
static void check_edit(const char *from, const char *to, int rc, const char *says)
{
    size_t len;
    char *data = fixture_text(&len), err[256] = "";
    char *at = strstr(data, from);
    if (!at)
        fail_msg("the fixture has no %s", from);
    struct eng_buf edited = {0};
    struct eng_tokenizer *t = NULL;
    assert_int_equal(eng_buf_append(&edited, data, (size_t)(at - data)), 0);
    assert_int_equal(eng_buf_appendz(&edited, to), 0);
    assert_int_equal(eng_buf_appendz(&edited, at + strlen(from)), 0);
    int got = load_text(edited.data, edited.len, &t, err, sizeof err);
    if (got != rc || !strstr(err, says))
        fail_msg("%s -> %s: got %d, %s", from, to, got, err);
    eng_tokenizer_free(t);
    eng_buf_free(&edited);
    free(data);
}

static void test_refuses_by_name(void **state)
{
    (void)state;
    check_edit("\"normalizer\":null", "\"normalizer\":{\"type\":\"NFC\"}", ENG_ENOTSUP, "normalizer NFC");
    check_edit("\"decoder\":{\"type\":\"ByteLevel\"", "\"decoder\":{\"type\":\"Metaspace\"", ENG_ENOTSUP,
               "decoder Metaspace");
    check_edit("\"post_processor\":null", "\"post_processor\":{\"type\":\"BertProcessing\"}", ENG_ENOTSUP,
               "BertProcessing");
    check_edit("\"post_processor\":null", "\"post_processor\":{\"type\":\"TemplateProcessing\"}", 0, "");
    check_edit("\"post_processor\":null",
               "\"post_processor\":{\"type\":\"Sequence\",\"processors\":[{\"type\":\"ByteLevel\"},{\"type\":"
               "\"TemplateProcessing\"}]}",
               0, "");
    check_edit("\"type\":\"BPE\"", "\"type\":\"Unigram\"", ENG_ENOTSUP, "Unigram");
    check_edit("\"dropout\":null", "\"dropout\":0.1", ENG_ENOTSUP, "dropout");
    check_edit("\"end_of_word_suffix\":null", "\"end_of_word_suffix\":\"</w>\"", ENG_ENOTSUP, "end_of_word_suffix");
    check_edit("\"single_word\":false", "\"single_word\":true", ENG_ENOTSUP, "single_word");
    check_edit("\"type\":\"Split\"", "\"type\":\"Whitespace\"", ENG_ENOTSUP, "Whitespace");
}

static void test_refuses_malformed_tables(void **state)
{
    (void)state;
    check_edit("\"<s>\":1,", "\"<s>\":0,", ENG_EFORMAT, "twice");
    check_edit("\"<s>\":1,", "\"<s>\":-1,", ENG_EFORMAT, "out of range");
    check_edit("\"<s>\":1,", "\"<s>\":1.5,", ENG_EFORMAT, "out of range");
    check_edit("\"<s>\":1,", "\"<s>\":1e300,", ENG_EFORMAT, "out of range");
    check_edit("\"<s>\":1,", "\"<s>\":\"1\",", ENG_EFORMAT, "out of range");
    check_edit("\"<s>\":1,", "\"<s>\":4194304,", ENG_EFORMAT, "out of range");
    check_edit("\"<s>\":1,", "\"<unk>\":1,", ENG_EFORMAT, "twice");
    check_edit("\"id\":1,\"content\":\"<s>\"", "\"id\":2,\"content\":\"<s>\"", ENG_EFORMAT, "another token");
    check_edit("\"id\":1,\"content\":\"<s>\"", "\"id\":0,\"content\":\"<unk>\"", ENG_EFORMAT, "the id 0");
    check_edit("\"id\":1,\"content\":\"<s>\"", "\"id\":4000,\"content\":\"<unk>\"", ENG_EFORMAT, "same added token");
    check_edit("\"id\":1,\"content\":\"<s>\"", "\"id\":1,\"content\":\"\"", ENG_EFORMAT, "no content");
    check_edit("\"id\":1,\"content\":\"<s>\"", "\"id\":-1,\"content\":\"<s>\"", ENG_EFORMAT, "out of range");
    check_edit("\"merges\":[", "\"merges\":[\"zz yy\",", ENG_EFORMAT, "merge 0");
    check_edit("\"merges\":[", "\"merges\":[\"a\",", ENG_EFORMAT, "not a pair");
    check_edit("\"merges\":[", "\"merges\":[\"a b c\",", ENG_EFORMAT, "not a pair");
    check_edit("\"merges\":[", "\"merges\":[[\"a\"],", ENG_EFORMAT, "not a pair");
    check_edit("\"merges\":[", "\"merges\":[[\"a\",1],", ENG_EFORMAT, "not a pair");
    check_edit("\"merges\":[", "\"merges\":[7,", ENG_EFORMAT, "not a pair");
    check_edit("\"merges\":[", "\"merges\":{\"x\":[", ENG_EFORMAT, "JSON");
    check_edit("\"vocab\":{", "\"vocab\":{\"\\u0000\":5,", ENG_EFORMAT, "NUL");
    check_edit("\"unk_token\":null", "\"unk_token\":\"nope\"", ENG_EFORMAT, "unk_token");
    check_edit("\"!\":", "\"!!!!!!!!!\":", ENG_ENOTSUP, "byte 21");
}

static void test_a_huge_merge_text_is_refused(void **state)
{
    (void)state;
    // Longer than all tokens together, which is what the loader's scratch memory is sized by.
    struct eng_buf merges = {0};
    assert_int_equal(eng_buf_appendz(&merges, "\"merges\":[[\""), 0);
    for (int i = 0; i < 100000; i++)
        assert_int_equal(eng_buf_append(&merges, "a", 1), 0);
    assert_int_equal(eng_buf_appendz(&merges, "\",\"b\"],"), 0);
    check_edit("\"merges\":[", merges.data, ENG_EFORMAT, "merge 0");
    eng_buf_free(&merges);
}

static void test_unused_ids_are_unknown(void **state)
{
    (void)state;
    size_t len;
    char *data = fixture_text(&len), err[256];
    cJSON *json = cJSON_Parse(data);
    cJSON *added = cJSON_GetObjectItem(json, "added_tokens"), *token = cJSON_Duplicate(added->child, 1);
    cJSON_ReplaceItemInObject(token, "id", cJSON_CreateNumber(5000));
    cJSON_ReplaceItemInObject(token, "content", cJSON_CreateString("<far>"));
    cJSON_AddItemToArray(added, token);
    char *edited = cJSON_PrintUnformatted(json);
    struct eng_tokenizer *t = NULL;
    assert_int_equal(load_text(edited, strlen(edited), &t, err, sizeof err), 0);
    assert_int_equal(eng_tokenizer_n_vocab(t), 5001);
    assert_null(eng_tokenizer_piece(t, 4999, &len));
    assert_non_null(eng_tokenizer_piece(t, 5000, &len));
    eng_tokenizer_free(t);
    free(edited);
    cJSON_Delete(json);
    free(data);
}

static void test_missing_files_are_named(void **state)
{
    (void)state;
    struct eng_tokenizer *t = NULL;
    char err[256] = "";
    assert_int_equal(eng_tokenizer_load(DATA "none.json", &t, err, sizeof err), ENG_EIO);
    assert_non_null(strstr(err, "none.json"));
    assert_int_equal(eng_tokenizer_load(DATA, &t, err, sizeof err), ENG_EIO);
    assert_int_equal(eng_tokenizer_load(DATA "none.json", &t, NULL, 0), ENG_EIO);
    assert_null(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_truncation_is_an_error), cmocka_unit_test(test_refuses_by_name),
        cmocka_unit_test(test_refuses_malformed_tables),     cmocka_unit_test(test_a_huge_merge_text_is_refused),
        cmocka_unit_test(test_unused_ids_are_unknown),       cmocka_unit_test(test_missing_files_are_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
