// engine/text/file.c: small files, and what cJSON would let pass.
#include "fixture.h"

#include <sys/stat.h>

static void check_read(const char *path, size_t max, int code, const char *says)
{
    char err[256] = "", *data = NULL;
    size_t len;
    assert_int_equal(eng_text_read_file(path, max, &data, &len, err, sizeof err), code);
    assert_non_null(strstr(err, says));
    assert_null(data);
    assert_int_equal(eng_text_read_file(path, max, &data, &len, NULL, 0), code);
}

static void test_reads_up_to_the_bound(void **state)
{
    (void)state;
    char folder[64], path[128], err[256], *data;
    size_t len;
    make_folder(folder);
    write_file(folder, "tokenizer.json", "a\0b\n", 4);
    snprintf(path, sizeof path, "%s/tokenizer.json", folder);
    assert_int_equal(eng_text_read_file(path, 4, &data, &len, err, sizeof err), 0);
    assert_int_equal(len, 4);
    assert_memory_equal(data, "a\0b\n", 5); // and a NUL
    free(data);
    check_read(path, 3, ENG_ELIMIT, "is larger than 3 bytes");
    write_file(folder, "tokenizer.json", "", 0);
    assert_int_equal(eng_text_read_file(path, 0, &data, &len, err, sizeof err), 0);
    assert_int_equal(len, 0);
    assert_string_equal(data, "");
    free(data);
    remove_folder(folder);
}

static void test_only_regular_files(void **state)
{
    (void)state;
    char folder[64], path[128];
    make_folder(folder);
    check_read(folder, 100, ENG_EIO, "is not a regular file");
    snprintf(path, sizeof path, "%s/tokenizer.json", folder);
    check_read(path, 100, ENG_EIO, "No such file or directory");
    assert_int_equal(mkfifo(path, 0600), 0); // nobody writes: it must not wait
    check_read(path, 100, ENG_EIO, "is not a regular file");
    remove_folder(folder);
}

static void check_json(const char *text, size_t len, const char *says)
{
    char err[256] = "";
    cJSON *json = NULL;
    int rc = eng_text_parse_json(text, len, "x.json", &json, err, sizeof err);
    if (strcmp(err, says) || rc != (*says ? ENG_EFORMAT : 0))
        fail_msg("%s: %d, %s", text, rc, err);
    cJSON_Delete(json);
}

static void test_json_is_one_whole_value(void **state)
{
    (void)state;
    check_json(" {\"a\": [1, \"\\u00e9\"]}\n ", 23, "");
    check_json("7", 1, "");
    check_json("", 0, "x.json is not valid JSON near byte 0");
    check_json("{\"a\":", 5, "x.json is not valid JSON near byte 5");
    check_json("{} x", 4, "x.json is not valid JSON near byte 3");
    check_json("[1,]", 4, "x.json is not valid JSON near byte 3");
}

static void test_json_strings_are_whole_utf8(void **state)
{
    (void)state;
    check_json("\"\xC3\x28\"", 4, "x.json is not valid UTF-8 text");
    check_json("\"\xED\xA0\x80\"", 5, "x.json is not valid UTF-8 text"); // half of a surrogate pair
    check_json("\"a\0b\"", 5, "x.json is not valid UTF-8 text");
    check_json("\"a\\u0000\"", 9, "x.json has a string with a NUL character");
    check_json("\"\\\\\\u0000\"", 10, "x.json has a string with a NUL character");
    check_json("\"\\\\u0000\"", 9, ""); // a backslash, then letters
}

static void test_deep_json_is_refused(void **state)
{
    (void)state;
    static char text[200001];
    char err[256] = "";
    cJSON *json = NULL;
    memset(text, '[', 100000);
    memset(text + 100000, ']', 100000);
    assert_int_equal(eng_text_parse_json(text, 200000, "x.json", &json, err, sizeof err), ENG_EFORMAT);
    assert_null(json);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reads_up_to_the_bound),   cmocka_unit_test(test_only_regular_files),
        cmocka_unit_test(test_json_is_one_whole_value), cmocka_unit_test(test_json_strings_are_whole_utf8),
        cmocka_unit_test(test_deep_json_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
