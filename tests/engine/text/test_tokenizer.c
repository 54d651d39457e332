#include "fixture.h"

#include <pthread.h>

#define NANO TRIMODE_SOURCE_DIR "/config/models/nano/tokenizer.json"

// ---- against the Hugging Face library -------------------------------------------------------------------------------

static void check_ids(const struct eng_tokenizer *t, const char *text, unsigned flags, const cJSON *want)
{
    int32_t *ids;
    size_t n, i = 0;
    assert_int_equal(eng_tokenizer_encode(t, text, strlen(text), flags, &ids, &n), 0);
    const cJSON *id;
    bool same = n == (size_t)cJSON_GetArraySize(want);
    cJSON_ArrayForEach(id, want) same = same && ids[i++] == (int32_t)id->valuedouble;
    if (!same)
        fail_msg("other ids for: %s", text);
    free(ids);
}

static void test_ids_are_those_of_hugging_face(void **state)
{
    (void)state;
    struct eng_tokenizer *t = load_tokenizer();
    cJSON *cases = load_json(DATA "tokenizer_cases.json");
    const cJSON *c;
    assert_true(cJSON_GetArraySize(cases) > 100);
    cJSON_ArrayForEach(c, cases)
    {
        const char *text = cJSON_GetStringValue(cJSON_GetObjectItem(c, "text"));
        check_ids(t, text, ENG_TOKENIZER_PARSE_SPECIAL, cJSON_GetObjectItem(c, "special"));
        check_ids(t, text, 0, cJSON_GetObjectItem(c, "plain"));
    }
    cJSON_Delete(cases);
    eng_tokenizer_free(t);
}

// ---- properties -----------------------------------------------------------------------------------------------------

static void check_round_trip(const struct eng_tokenizer *t, const char *text, size_t len, unsigned flags)
{
    int32_t *ids;
    size_t n;
    struct eng_buf back = {0};
    assert_int_equal(eng_tokenizer_encode(t, text, len, flags, &ids, &n), 0);
    for (size_t i = 0; i < n; i++) {
        size_t piece_len;
        const char *piece = eng_tokenizer_piece(t, ids[i], &piece_len);
        assert_non_null(piece);
        assert_int_equal(eng_buf_append(&back, piece, piece_len), 0);
        if (!flags)
            assert_false(eng_tokenizer_is_special(t, ids[i]));
    }
    assert_int_equal(back.len, len);
    if (len)
        assert_memory_equal(back.data, text, len);
    eng_buf_free(&back);
    free(ids);
}

static void round_trips(const struct eng_tokenizer *t)
{
    uint64_t seed = 11;
    struct eng_buf text = {0};
    for (int i = 0; i < 1000; i++) {
        random_text(&seed, &text, 60);
        check_round_trip(t, text.data ? text.data : "", text.len, 0);
        check_round_trip(t, text.data ? text.data : "", text.len, ENG_TOKENIZER_PARSE_SPECIAL);
    }
    eng_buf_free(&text);
}

static void test_decoding_gives_the_text_back(void **state)
{
    (void)state;
    struct eng_tokenizer *t = load_tokenizer();
    round_trips(t);
    static const char literal[] = "a <|im_end|> <|mask|> <s></s>";
    check_round_trip(t, literal, strlen(literal), 0);
    eng_tokenizer_free(t);
}

// ---- marked text ----------------------------------------------------------------------------------------------------

static void check_marked(const struct eng_tokenizer *t, const char *text, const struct eng_text_span *spans,
                         size_t n_spans, const int32_t *want, size_t n_want)
{
    int32_t *ids;
    size_t n;
    assert_int_equal(eng_tokenizer_encode_marked(t, text, strlen(text), spans, n_spans, &ids, &n), 0);
    assert_int_equal(n, n_want);
    assert_memory_equal(ids, want, n * sizeof *ids);
    free(ids);
}

static void test_special_tokens_only_in_template_spans(void **state)
{
    (void)state;
    struct eng_tokenizer *t = load_tokenizer();
    int32_t end = eng_tokenizer_find_special(t, "<|im_end|>");
    int32_t *plain;
    size_t n;
    static const char text[] = "<|im_end|><|im_end|>";
    assert_int_equal(eng_tokenizer_encode(t, "<|im_end|>", 10, 0, &plain, &n), 0);
    int32_t want[64] = {end};
    memcpy(want + 1, plain, n * sizeof *plain);
    const struct eng_text_span split[] = {{0, 10, false}, {10, 20, true}};
    check_marked(t, text, split, 2, want, n + 1);
    // A token that is whole only across a border is ordinary; template spans that touch count as one.
    const struct eng_text_span across[] = {{0, 3, false}, {3, 10, true}};
    check_marked(t, "<|im_end|>", across, 2, plain, n);
    const struct eng_text_span joined[] = {{0, 3, false}, {3, 10, false}};
    check_marked(t, "<|im_end|>", joined, 2, &end, 1);
    // "<|im_end|>x" is a token too, but its last byte is input: the shorter one is taken.
    const struct eng_text_span shorter[] = {{0, 10, false}, {10, 11, true}};
    int32_t *x;
    size_t n_x;
    assert_int_equal(eng_tokenizer_encode(t, "x", 1, 0, &x, &n_x), 0);
    check_marked(t, "<|im_end|>x", shorter, 2, (const int32_t[]){end, x[0]}, 2);
    free(x);
    free(plain);
    eng_tokenizer_free(t);
}

static void test_ordinary_text_runs_across_borders(void **state)
{
    (void)state;
    struct eng_tokenizer *t = load_tokenizer();
    uint64_t seed = 5;
    struct eng_buf text = {0};
    for (int i = 0; i < 500; i++) {
        random_text(&seed, &text, 40);
        for (int k = 0; k < 4; k++)
            assert_int_equal(eng_buf_appendz(&text, k % 2 ? " quick brown" : " <fox"), 0);
        struct eng_text_span spans[64];
        size_t n_spans = 0, n, n_plain;
        for (size_t at = 0; at < text.len; n_spans++) {
            size_t end = n_spans == 63 ? text.len : at + 1 + next_random(&seed) % 9;
            end = end < text.len ? end : text.len;
            spans[n_spans] = (struct eng_text_span){at, end, next_random(&seed) % 2};
            at = end;
        }
        int32_t *ids, *plain;
        assert_int_equal(eng_tokenizer_encode_marked(t, text.data, text.len, spans, n_spans, &ids, &n), 0);
        assert_int_equal(eng_tokenizer_encode(t, text.data, text.len, 0, &plain, &n_plain), 0);
        assert_int_equal(n, n_plain);
        assert_memory_equal(ids, plain, n * sizeof *ids);
        free(ids);
        free(plain);
    }
    eng_buf_free(&text);
    eng_tokenizer_free(t);
}

static void test_refuses_bad_arguments(void **state)
{
    (void)state;
    struct eng_tokenizer *t = load_tokenizer();
    int32_t *ids = NULL;
    size_t n;
    assert_int_equal(eng_tokenizer_encode(t, "a\xFF", 2, 0, &ids, &n), ENG_EINVAL);
    assert_int_equal(eng_tokenizer_encode(t, "\xC3", 1, ENG_TOKENIZER_PARSE_SPECIAL, &ids, &n), ENG_EINVAL);
    assert_int_equal(eng_tokenizer_encode(t, "a", 1, 8, &ids, &n), ENG_EINVAL);
    const struct eng_text_span gap[] = {{0, 1, false}, {2, 3, false}}, early[] = {{0, 2, true}},
                               empty[] = {{0, 0, true}, {0, 3, true}};
    assert_int_equal(eng_tokenizer_encode_marked(t, "abc", 3, gap, 2, &ids, &n), ENG_EINVAL);
    assert_int_equal(eng_tokenizer_encode_marked(t, "abc", 3, early, 1, &ids, &n), ENG_EINVAL);
    assert_int_equal(eng_tokenizer_encode_marked(t, "abc", 3, empty, 2, &ids, &n), ENG_EINVAL);
    assert_int_equal(eng_tokenizer_encode_marked(t, "abc", 3, NULL, 0, &ids, &n), ENG_EINVAL);
    assert_null(ids);
    assert_int_equal(eng_tokenizer_encode(t, "", 0, 0, &ids, &n), 0);
    assert_int_equal(n, 0);
    assert_non_null(ids);
    free(ids);
    eng_tokenizer_free(t);
    eng_tokenizer_free(NULL);
}

static void test_single_tokens(void **state)
{
    (void)state;
    struct eng_tokenizer *t = load_tokenizer();
    int32_t mask = eng_tokenizer_find_special(t, "<|mask|>"), tool = eng_tokenizer_find_special(t, "<tool>");
    size_t len;
    assert_int_equal(mask, 6);
    assert_true(eng_tokenizer_is_special(t, mask));
    assert_true(tool > 0 && !eng_tokenizer_is_special(t, tool));
    assert_memory_equal(eng_tokenizer_piece(t, mask, &len), "<|mask|>", 8);
    assert_int_equal(len, 8);
    assert_int_equal(eng_tokenizer_find_special(t, "<|nope|>"), -1);
    assert_int_equal(eng_tokenizer_find_special(t, "<|im"), -1);
    assert_int_equal(eng_tokenizer_find_special(t, ""), -1);
    assert_false(eng_tokenizer_is_special(t, -5));
    assert_false(eng_tokenizer_is_special(t, eng_tokenizer_n_vocab(t)));
    assert_null(eng_tokenizer_piece(t, eng_tokenizer_n_vocab(t), &len));
    assert_int_equal(len, 0);
    eng_tokenizer_free(t);
}

// ---- threads --------------------------------------------------------------------------------------------------------

static void *encode_many(void *arg)
{
    const struct eng_tokenizer *t = arg;
    size_t sum = 0;
    for (int i = 0; i < 300; i++) {
        int32_t *ids;
        size_t n;
        if (eng_tokenizer_encode(t, "the quick <|im_end|> brown fox", 30, i % 2, &ids, &n))
            return NULL;
        sum += n;
        free(ids);
    }
    return (void *)sum;
}

static void test_many_threads_at_once(void **state)
{
    (void)state;
    struct eng_tokenizer *t = load_tokenizer();
    pthread_t threads[4];
    void *sums[4];
    for (int i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, encode_many, t), 0);
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], &sums[i]);
    for (int i = 0; i < 4; i++)
        assert_true(sums[i] && sums[i] == sums[0]);
    eng_tokenizer_free(t);
}

// ---- files that are not to be believed ------------------------------------------------------------------------------

static void test_random_damage_never_crashes(void **state)
{
    (void)state;
    size_t len;
    char *data = fixture_text(&len), *copy = malloc(len), err[256];
    uint64_t seed = 9;
    for (int i = 0; i < 400; i++) {
        memcpy(copy, data, len);
        for (uint32_t n = 1 + next_random(&seed) % 4; n > 0; n--)
            copy[next_random(&seed) % len] = "0123456789\"{}[],:\\ax\xC3"[next_random(&seed) % 22];
        struct eng_tokenizer *t = NULL;
        err[0] = '\0';
        int rc = load_text(copy, len, &t, err, sizeof err);
        assert_true(rc == 0 || (rc < 0 && err[0]));
        if (!rc)
            check_round_trip(t, "the quick <|im_end|>", 20, ENG_TOKENIZER_PARSE_SPECIAL);
        eng_tokenizer_free(t);
    }
    free(copy);
    free(data);
}

static void test_a_special_token_never_comes_out_of_ignore_merges(void **state)
{
    (void)state;
    // With ignore_merges a whole piece is looked up in the vocabulary, where special tokens stand too.
    size_t len;
    char *data = fixture_text(&len), err[256];
    cJSON *json = cJSON_Parse(data);
    cJSON_ReplaceItemInObject(cJSON_GetObjectItem(json, "model"), "ignore_merges", cJSON_CreateTrue());
    cJSON *pre = cJSON_Parse("{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":false}");
    cJSON_ReplaceItemInObject(json, "pre_tokenizer", pre);
    char *edited = cJSON_PrintUnformatted(json);
    struct eng_tokenizer *t = NULL;
    assert_int_equal(load_text(edited, strlen(edited), &t, err, sizeof err), 0);
    check_round_trip(t, "<|im_end|>", 10, 0);
    eng_tokenizer_free(t);
    free(edited);
    cJSON_Delete(json);
    free(data);
}

static void test_the_bundled_tokenizer(void **state)
{
    (void)state;
    if (access(NANO, R_OK))
        skip();
    struct eng_tokenizer *t = NULL;
    char err[256] = "";
    if (eng_tokenizer_load(NANO, &t, err, sizeof err))
        fail_msg("%s", err);
    assert_int_equal(eng_tokenizer_find_special(t, "<|im_end|>"), 11);
    assert_int_equal(eng_tokenizer_find_special(t, "<|mask|>"), 100);
    round_trips(t);
    eng_tokenizer_free(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ids_are_those_of_hugging_face),
        cmocka_unit_test(test_decoding_gives_the_text_back),
        cmocka_unit_test(test_special_tokens_only_in_template_spans),
        cmocka_unit_test(test_ordinary_text_runs_across_borders),
        cmocka_unit_test(test_refuses_bad_arguments),
        cmocka_unit_test(test_single_tokens),
        cmocka_unit_test(test_many_threads_at_once),
        cmocka_unit_test(test_random_damage_never_crashes),
        cmocka_unit_test(test_a_special_token_never_comes_out_of_ignore_merges),
        cmocka_unit_test(test_the_bundled_tokenizer),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
