#include "fixture.h"
#include "text/pretokenizer.h"

#define GPT2 "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":true}"
#define PLAIN "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":false}"
#define SPLIT(regex) \
    "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"" regex "\"},\"behavior\":\"Isolated\",\"invert\":false}"
#define SEQUENCE(list) "{\"type\":\"Sequence\",\"pretokenizers\":[" list "]}"

static int load(const char *text, struct eng_pretokenizer **ret, char *err, size_t err_size)
{
    cJSON *json = cJSON_Parse(text);
    assert_non_null(json);
    int rc = eng_pretokenizer_load(json, ret, err, err_size);
    cJSON_Delete(json);
    return rc;
}

static int add_piece(void *ctx, const char *piece, size_t len)
{
    assert_true(len > 0);
    struct eng_buf *b = ctx;
    int rc = b->len ? eng_buf_append(b, "|", 1) : 0;
    return rc ? rc : eng_buf_append(b, piece, len);
}

// The pieces of text with | between them.
static void check(const char *json, const char *text, const char *want)
{
    struct eng_pretokenizer *p = NULL;
    struct eng_buf b = {0};
    char err[256] = "";
    assert_int_equal(load(json, &p, err, sizeof err), 0);
    assert_int_equal(eng_pretokenizer_split(p, text, strlen(text), add_piece, &b), 0);
    assert_string_equal(b.data ? b.data : "", want);
    eng_buf_free(&b);
    eng_pretokenizer_free(p);
}

static void test_gpt2_pattern(void **state)
{
    (void)state;
    check(GPT2, "Hello, it's 12 dogs!  \n ok ", "Hello|,| it|'s| 12| dogs|!|  \n| ok| ");
    check(GPT2, "", "");
}

static void test_gaps_are_pieces(void **state)
{
    (void)state;
    check(SEQUENCE(SPLIT("[0-9]") "," PLAIN), "ab12c", "ab|1|2|c");
    check(PLAIN, "whole text 1", "whole text 1");
}

static void test_stages_split_pieces_of_the_one_before(void **state)
{
    (void)state;
    // The second stage's look-ahead does not see across the first one's cut.
    check(SEQUENCE(SPLIT("-") "," SPLIT("a(?!-)") "," PLAIN), "ba-ab", "b|a|-|a|b");
}

static void test_an_empty_match_is_a_cut(void **state)
{
    (void)state;
    check(SEQUENCE(SPLIT("(?=[A-Z])") "," PLAIN), "aBcDE", "a|Bc|D|E");
    check(SEQUENCE(SPLIT("x*") "," PLAIN), "\xC3\xA9\xC3\xA9", "\xC3\xA9|\xC3\xA9");
}

static void test_white_space_is_the_25_code_points(void **state)
{
    (void)state;
    // PCRE2's own \s also has U+180E.
    check(SEQUENCE(SPLIT("\\\\s") "," PLAIN),
          "a\u180Eb\u3000c\xC2\x85"
          "d",
          "a\u180Eb|\u3000|c|\xC2\x85|d");
    check(SEQUENCE(SPLIT("[\\\\s]+") "," PLAIN), "a \u2003b", "a| \u2003|b");
    check(SEQUENCE(SPLIT("[^\\\\s]+") "," PLAIN), "a\u180E b", "a\u180E| |b");
    check(SEQUENCE(SPLIT("\\\\S+") "," PLAIN), "a\u180E b", "a\u180E| |b");
    check(SEQUENCE(SPLIT("[\\\\S1]+") "," PLAIN), "a\u180E b", "a\u180E| |b");
}

static void test_literal_split(void **state)
{
    (void)state;
    check(SEQUENCE("{\"type\":\"Split\",\"pattern\":{\"String\":\"a.\"},\"behavior\":\"Isolated\"}," PLAIN), "xa.ab",
          "x|a.|ab");
}

static void test_refuses_by_name(void **state)
{
    (void)state;
    static const struct {
        const char *json, *says;
        int rc;
    } cases[] = {
        {"{\"type\":\"Whitespace\"}", "Whitespace", ENG_ENOTSUP},
        {"null", "type", ENG_EFORMAT},
        {"{}", "type", ENG_EFORMAT},
        {SEQUENCE(SPLIT("a")), "ByteLevel", ENG_ENOTSUP},
        {SEQUENCE(PLAIN "," SPLIT("a")), "Split after", ENG_ENOTSUP},
        {SEQUENCE("{\"type\":\"Digits\"}," PLAIN), "Digits", ENG_ENOTSUP},
        {"{\"type\":\"Sequence\"}", "list", ENG_EFORMAT},
        {"{\"type\":\"ByteLevel\",\"add_prefix_space\":true}", "prefix space", ENG_ENOTSUP},
        {SEQUENCE("{\"type\":\"Split\",\"pattern\":{\"Regex\":\"a\"},\"behavior\":\"Removed\"}," PLAIN), "Removed",
         ENG_ENOTSUP},
        {SEQUENCE("{\"type\":\"Split\",\"behavior\":\"Isolated\"}," PLAIN), "pattern", ENG_EFORMAT},
        {SEQUENCE(SPLIT("(") "," PLAIN), "compile", ENG_EFORMAT},
        {SEQUENCE(SPLIT("\\\\w+") "," PLAIN), "\\w", ENG_ENOTSUP},
        {SEQUENCE(SPLIT("[a[b]]") "," PLAIN), "nests", ENG_ENOTSUP},
        {SEQUENCE(SPLIT("a\\\\") "," PLAIN), "backslash", ENG_EFORMAT},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct eng_pretokenizer *p = NULL;
        char err[256] = "";
        assert_int_equal(load(cases[i].json, &p, err, sizeof err), cases[i].rc);
        assert_null(p);
        if (!strstr(err, cases[i].says))
            fail_msg("%s does not say %s", err, cases[i].says);
    }
}

static void test_a_search_without_end_is_a_limit(void **state)
{
    (void)state;
    struct eng_pretokenizer *p = NULL;
    struct eng_buf b = {0};
    char err[256] = "", text[64];
    memset(text, 'a', sizeof text);
    assert_int_equal(load(SEQUENCE(SPLIT("(?:a|aa)+[^a]") "," PLAIN), &p, err, sizeof err), 0);
    assert_int_equal(eng_pretokenizer_split(p, text, sizeof text, add_piece, &b), ENG_ELIMIT);
    eng_buf_free(&b);
    eng_pretokenizer_free(p);
}

static int count(void *ctx, const char *piece, size_t len)
{
    (void)piece;
    *(size_t *)ctx += len;
    return 0;
}

static void test_a_megabyte_of_one_kind(void **state)
{
    (void)state;
    // Needs more than the 32 KiB of stack that the compiled pattern starts with.
    struct eng_pretokenizer *p = NULL;
    char err[256] = "", *text = malloc(1 << 20);
    static const char kinds[] = "aA 1\n!";
    assert_int_equal(
        load(SEQUENCE(SPLIT("(?:\\\\p{Lu}|\\\\p{M})*\\\\p{Ll}+|\\\\p{Lu}+|\\\\p{N}|\\\\s+(?!\\\\S)|\\\\s+") "," PLAIN),
             &p, err, sizeof err),
        0);
    for (const char *kind = kinds; *kind; kind++) {
        size_t total = 0;
        memset(text, *kind, 1 << 20);
        int rc = eng_pretokenizer_split(p, text, 1 << 20, count, &total);
        assert_true(rc == ENG_ELIMIT || (rc == 0 && total == 1 << 20));
    }
    free(text);
    eng_pretokenizer_free(p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gpt2_pattern),
        cmocka_unit_test(test_gaps_are_pieces),
        cmocka_unit_test(test_stages_split_pieces_of_the_one_before),
        cmocka_unit_test(test_an_empty_match_is_a_cut),
        cmocka_unit_test(test_white_space_is_the_25_code_points),
        cmocka_unit_test(test_literal_split),
        cmocka_unit_test(test_refuses_by_name),
        cmocka_unit_test(test_a_search_without_end_is_a_limit),
        cmocka_unit_test(test_a_megabyte_of_one_kind),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
