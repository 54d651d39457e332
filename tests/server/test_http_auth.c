// server/http_auth.c: key files and the comparison of keys.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "http.h"

static char path[] = "/tmp/trimode-auth-XXXXXX";
static struct srv_keys keys;
static char err[300];

static int load(const char *bytes, size_t n)
{
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    assert_int_equal(fwrite(bytes, 1, n, f), n);
    fclose(f);
    srv_http_keys_free(&keys);
    err[0] = 0;
    return srv_http_keys_load(&keys, "api_key_file", path, err, sizeof err);
}

static void test_one_key_a_line(void **state)
{
    (void)state;
    const char *text = "# comment\n\n \t\nfirst\r\n  second \t\n  # indented comment\nwith space\nlast";
    assert_int_equal(load(text, strlen(text)), 0);
    assert_int_equal(keys.n, 4);
    static const char *const wanted[] = {"first", "second", "with space", "last"};
    for (int i = 0; i < 4; i++)
        assert_string_equal(keys.keys[i], wanted[i]);
    srv_http_keys_free(&keys);
    assert_int_equal(keys.n, 0);
    srv_http_keys_free(&keys);
}

static void test_bad_key_files_stop_the_start(void **state)
{
    (void)state;
    srv_http_keys_free(&keys);
    assert_int_equal(srv_http_keys_load(&keys, "api_key_file", "", err, sizeof err), 0); // off
    assert_int_equal(keys.n, 0);
    assert_int_equal(srv_http_keys_load(&keys, "api_key_file", "/nonexistent", err, sizeof err), -1);
    assert_non_null(strstr(err, "api_key_file: '/nonexistent' cannot be read"));
    assert_int_equal(srv_http_keys_load(&keys, "api_key_file", "/tmp", err, sizeof err), -1);
    assert_non_null(strstr(err, "holds no key"));
    assert_int_equal(load("", 0), -1);
    assert_int_equal(load("# nothing\n \n", 12), -1);
    assert_non_null(strstr(err, "holds no key"));
}

// Symptom: a line that began with a zero byte (a file saved as UTF-16) became an empty key, and `Bearer ` was let in.
static void test_a_zero_byte_in_a_key_file_is_refused(void **state)
{
    (void)state;
    static const char utf16[] = "\xff\xfes\0e\0c\0\n\0r\0e\0t\0\n";
    assert_int_equal(load(utf16, sizeof utf16), -1);
    assert_non_null(strstr(err, "zero byte"));
    assert_int_equal(srv_http_keys_find(&keys, "Bearer "), -1);
    assert_int_equal(load("good\n\0\n", 7), -1);
    assert_int_equal(load("cut\0short\n", 10), -1);
}

static void test_only_whole_keys_match(void **state)
{
    (void)state;
    static const struct {
        const char *header;
        int key;
    } cases[] = {
        {"Bearer ab", 0},       {"bEARER ab", 0},    {"Bearer    ab", 0},
        {"Bearer \xc3\xa9", 1}, {"Bearer abab", -1}, // the shorter key repeated
        {"Bearer a", -1},       {"Bearer abc", -1},  {"Bearer AB", -1},
        {"Bearer ab ", -1},     {"Bearer ", -1},     {"Bearer", -1},
        {"Bearer\tab", -1},     {" Bearer ab", -1},  {"Bearerab", -1},
        {"Basic ab", -1},       {"ab", -1},          {"", -1},
        {"Bearer # c", -1},     {"Bearer \xc3", -1}, {"Bearer ab,Bearer ab", -1},
    };
    assert_int_equal(load("# c\nab\n\xc3\xa9\nzz\n", 13), 0);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        if (srv_http_keys_find(&keys, cases[i].header) != cases[i].key)
            fail_msg("%s: key %d", cases[i].header, srv_http_keys_find(&keys, cases[i].header));
    assert_int_equal(srv_http_keys_find(&keys, "Bearer zz"), 2);
    assert_int_equal(srv_http_keys_find(&keys, NULL), -1);
    struct srv_keys none = {0};
    assert_int_equal(srv_http_keys_find(&none, "Bearer "), -1);
}

// The least of several times, in nanoseconds.
static double time_of(const char *header)
{
    double least = 1e18;
    for (int i = 0; i < 7; i++) {
        struct timespec a, b;
        clock_gettime(CLOCK_MONOTONIC, &a);
        assert_int_equal(srv_http_keys_find(&keys, header), -1);
        clock_gettime(CLOCK_MONOTONIC, &b);
        double ns = (double)(b.tv_sec - a.tv_sec) * 1e9 + (double)(b.tv_nsec - a.tv_nsec);
        least = ns < least ? ns : least;
    }
    return least;
}

// A comparison that stopped at the first difference would be some 100000 times faster on the first header.
static void test_time_does_not_tell_where_a_key_differs(void **state)
{
    (void)state;
    enum { N = 300000 };
    char *text = malloc(N + 8);
    memcpy(text, "Bearer ", 7);
    memset(text + 7, 'k', N);
    text[N + 7] = 0;
    assert_int_equal(load(text + 7, N), 0);
    text[7] = 'x';
    double first = time_of(text);
    text[7] = 'k';
    text[N + 6] = 'x';
    double last = time_of(text);
    if (first < last / 5 || last < first / 5)
        fail_msg("%.0f ns when the first byte differs, %.0f ns when the last does", first, last);
    free(text);
}

int main(void)
{
    int fd = mkstemp(path);
    if (fd < 0)
        return 1;
    close(fd);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_one_key_a_line),
        cmocka_unit_test(test_bad_key_files_stop_the_start),
        cmocka_unit_test(test_a_zero_byte_in_a_key_file_is_refused),
        cmocka_unit_test(test_only_whole_keys_match),
        cmocka_unit_test(test_time_does_not_tell_where_a_key_differs),
    };
    int status = cmocka_run_group_tests(tests, NULL, NULL);
    srv_http_keys_free(&keys);
    unlink(path);
    return status;
}
