// engine/model/safetensors.c
#include "folder.h"

#include <unistd.h>

#include "base/err.h"
#include "model/safetensors.h"

static char dir[PATH_SIZE], err[512];

static int make_dir(void **state)
{
    (void)state;
    folder_make(dir);
    err[0] = '\0';
    return 0;
}

static int remove_dir(void **state)
{
    (void)state;
    folder_remove(dir);
    return 0;
}

static int open_model(struct eng_safetensors **s)
{
    return eng_safetensors_open(dir, "model.safetensors", "model.safetensors.index.json", s, err, sizeof err);
}

// What stands in the folder is refused with code and a sentence that contains both words; the result stays untouched.
static void refuse(int code, const char *word1, const char *word2)
{
    struct eng_safetensors *s = (struct eng_safetensors *)&err;
    int rc = open_model(&s);
    if (rc != code || !strstr(err, word1) || !strstr(err, word2) || s != (struct eng_safetensors *)&err)
        fail_msg("%d \"%s\", expected %d with \"%s\" and \"%s\"", rc, err, code, word1, word2);
}

static void refuse_header(const char *header, size_t n_data, int code, const char *word1, const char *word2)
{
    char data[64] = {0};
    folder_write_safetensors(dir, "model.safetensors", header, data, n_data);
    refuse(code, word1, word2);
}

static void test_reads_tensors_in_place(void **state)
{
    (void)state;
    static const uint16_t data[6] = {0x3f80, 0x4000, 0, 0, 0x0000, 0x4040};
    struct eng_safetensors *s;
    folder_write_safetensors(dir, "model.safetensors",
                             "{\"b\":{\"dtype\":\"F32\",\"shape\":[1,2],\"data_offsets\":[4,12]},"
                             "\"__metadata__\":{\"format\":\"pt\"},"
                             "\"a\":{\"dtype\":\"BF16\",\"shape\":[2],\"data_offsets\":[0,4]}}",
                             data, sizeof data);
    assert_int_equal(open_model(&s), 0);
    const struct eng_safetensor *a = eng_safetensors_find(s, "a"), *b = eng_safetensors_find(s, "b");
    assert_non_null(a);
    assert_non_null(b);
    assert_null(eng_safetensors_find(s, "c"));
    assert_null(eng_safetensors_find(s, "__metadata__"));
    assert_true(a->type == KRN_BF16 && a->n_dims == 1 && a->dims[0] == 2 && a->bytes == 4);
    assert_true(b->type == KRN_F32 && b->n_dims == 2 && b->dims[0] == 1 && b->dims[1] == 2 && b->bytes == 8);
    assert_int_equal(((const uint16_t *)a->data)[1], 0x4000);
    assert_true(((const float *)b->data)[1] == 3.0f);
    assert_int_equal(eng_safetensors_bytes(s), 12);
    assert_string_equal(eng_safetensors_unused(s)->name, "a");
    assert_ptr_equal(eng_safetensors_take(s, "a"), a);
    assert_string_equal(eng_safetensors_unused(s)->name, "b");
    eng_safetensors_take(s, "b");
    assert_null(eng_safetensors_unused(s));
    eng_safetensors_close(s);
    eng_safetensors_close(NULL);
}

static void test_empty_dimensions_and_scalars_are_legal(void **state)
{
    (void)state;
    struct eng_safetensors *s;
    float one = 1;
    folder_write_safetensors(dir, "model.safetensors",
                             "{\"none\":{\"dtype\":\"F32\",\"shape\":[0,4],\"data_offsets\":[0,0]},"
                             "\"one\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4]}}",
                             &one, sizeof one);
    assert_int_equal(open_model(&s), 0);
    assert_int_equal(eng_safetensors_find(s, "one")->bytes, 4);
    assert_int_equal(eng_safetensors_find(s, "none")->bytes, 0);
    eng_safetensors_close(s);
}

static void test_file_shorter_than_it_says(void **state)
{
    (void)state;
    refuse(ENG_EIO, "neither", "index.json");
    folder_write(dir, "model.safetensors", "", 0);
    refuse(ENG_EFORMAT, "model.safetensors", "too few");
    folder_write(dir, "model.safetensors", "\x02\0\0\0\0\0\0", 7);
    refuse(ENG_EFORMAT, "model.safetensors", "too few");
    folder_write(dir, "model.safetensors", "\x10\0\0\0\0\0\0\0{}", 10);
    refuse(ENG_EFORMAT, "header length is 16", "10 bytes");
    folder_write(dir, "model.safetensors", "\xff\xff\xff\xff\xff\xff\xff\xff{}", 10);
    refuse(ENG_EFORMAT, "18446744073709551615", "limit");
    folder_write(dir, "model.safetensors", "\x01\xe1\xf5\x05\0\0\0\0{}", 10); // 100 000 001
    refuse(ENG_EFORMAT, "100000001", "limit");
    refuse_header("{\"a\":{\"dtype\":\"F32\",\"shape\":[4],\"data_offsets\":[0,16]}}", 12, ENG_EFORMAT, "tensor a",
                  "truncated");
}

static void test_every_prefix_of_a_file_is_refused(void **state)
{
    (void)state;
    struct made_model m = {0};
    char path[2 * PATH_SIZE], bytes[1024];
    made_add(&m, "F32", 2, 3, "first");
    made_add(&m, "BF16", 0, 4, "second");
    made_write(&m, dir, "model.safetensors");
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    FILE *f = fopen(path, "rb");
    size_t n = fread(bytes, 1, sizeof bytes, f);
    fclose(f);
    assert_true(n > 100 && n < sizeof bytes);
    for (size_t i = 0; i < n; i++) {
        struct eng_safetensors *s;
        folder_write(dir, "model.safetensors", bytes, i);
        assert_int_equal(open_model(&s), ENG_EFORMAT);
    }
}

static void test_bad_header_json(void **state)
{
    (void)state;
    refuse_header("{\"a\":", 0, ENG_EFORMAT, "model.safetensors", "JSON");
    refuse_header("[]", 0, ENG_EFORMAT, "model.safetensors", "object");
    refuse_header("{} x", 0, ENG_EFORMAT, "model.safetensors", "after");
    refuse_header("{}", 0, ENG_EFORMAT, "model.safetensors", "no tensors");
    refuse_header("{\"a\":7}", 0, ENG_EFORMAT, "entry for a", "object");
    refuse_header("{\"a\":{\"shape\":[1],\"data_offsets\":[0,4]}}", 4, ENG_EFORMAT, "tensor a", "dtype");
    refuse_header("{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,4]}}", 4, ENG_EFORMAT, "tensor a", "shape");
    refuse_header("{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4, ENG_EFORMAT, "tensor a", "data_offsets");
}

static void test_unsupported_dtype_is_named(void **state)
{
    (void)state;
    refuse_header("{\"a\":{\"dtype\":\"F16\",\"shape\":[2],\"data_offsets\":[0,4]}}", 4, ENG_ENOTSUP, "tensor a",
                  "F16");
    refuse_header("{\"a\":{\"dtype\":\"I64\",\"shape\":[1],\"data_offsets\":[0,8]}}", 8, ENG_ENOTSUP, "tensor a",
                  "I64");
    refuse_header("{\"a\":{\"dtype\":\"F8_E4M3\",\"shape\":[4],\"data_offsets\":[0,4]}}", 4, ENG_ENOTSUP, "tensor a",
                  "F8_E4M3");
}

static void test_shape_and_offsets_must_agree(void **state)
{
    (void)state;
    static const char *const offsets[] = {"[0]",       "[0,4,8]",   "[4,0]",    "[-4,0]",   "[0,4.5]",
                                          "[0,\"4\"]", "[0,1e300]", "[null,4]", "{\"0\":0}"};
    char header[256];
    for (size_t i = 0; i < sizeof offsets / sizeof *offsets; i++) {
        snprintf(header, sizeof header, "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":%s}}", offsets[i]);
        refuse_header(header, 4, ENG_EFORMAT, "tensor a", "data_offsets");
    }
    static const char *const shapes[] = {"[-1]", "[1.5]", "[\"1\"]", "[4294967296,4294967296]", "[1e300]"};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        snprintf(header, sizeof header, "{\"a\":{\"dtype\":\"F32\",\"shape\":%s,\"data_offsets\":[0,4]}}", shapes[i]);
        refuse_header(header, 4, ENG_EFORMAT, "tensor a", "shape");
    }
    refuse_header("{\"a\":{\"dtype\":\"F32\",\"shape\":[1,1,1,1,1],\"data_offsets\":[0,4]}}", 4, ENG_ENOTSUP,
                  "tensor a", "dimensions");
    refuse_header("{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,4]}}", 4, ENG_EFORMAT, "tensor a",
                  "needs 8");
}

static void test_overlaps_holes_and_misalignment(void **state)
{
    (void)state;
    refuse_header("{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]},"
                  "\"b\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[4,12]}}",
                  12, ENG_EFORMAT, "a and b", "overlap");
    refuse_header("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},"
                  "\"b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}",
                  4, ENG_EFORMAT, "overlap", "b");
    refuse_header("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},"
                  "\"b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[8,12]}}",
                  12, ENG_EFORMAT, "4 bytes before tensor b", "no tensor");
    refuse_header("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 8, ENG_EFORMAT, "last 4 bytes",
                  "no tensor");
    refuse_header("{\"a\":{\"dtype\":\"BF16\",\"shape\":[1],\"data_offsets\":[0,2]},"
                  "\"b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[2,6]}}",
                  6, ENG_EFORMAT, "tensor b", "aligned");
}

static void test_a_name_occurs_once(void **state)
{
    (void)state;
    refuse_header("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},"
                  "\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}",
                  8, ENG_EFORMAT, "tensor a", "twice");
}

// ---- shards ---------------------------------------------------------------------------------------------------------

static void write_index(const char *map)
{
    char text[2048];
    snprintf(text, sizeof text, "{\"metadata\":{\"total_size\":1},\"weight_map\":%s}", map);
    folder_write_text(dir, "model.safetensors.index.json", text);
}

static void write_two_shards(void)
{
    struct made_model m = {0};
    made_add(&m, "F32", 2, 3, "a");
    made_add(&m, "F32", 0, 4, "b");
    made_add(&m, "BF16", 0, 4, "c");
    made_write_range(&m, 0, 2, dir, "one.safetensors");
    made_write_range(&m, 2, 3, dir, "two.safetensors");
}

static void test_shards_are_one_set(void **state)
{
    (void)state;
    struct eng_safetensors *s;
    write_two_shards();
    write_index("{\"a\":\"one.safetensors\",\"c\":\"two.safetensors\",\"b\":\"one.safetensors\"}");
    assert_int_equal(open_model(&s), 0);
    assert_string_equal(eng_safetensors_find(s, "c")->file, "two.safetensors");
    assert_string_equal(eng_safetensors_find(s, "a")->file, "one.safetensors");
    assert_int_equal(eng_safetensors_bytes(s), 24 + 16 + 8);
    eng_safetensors_close(s);
}

static void test_index_and_shards_must_agree(void **state)
{
    (void)state;
    write_two_shards();
    write_index("{\"a\":\"one.safetensors\",\"c\":\"two.safetensors\"}");
    refuse(ENG_EFORMAT, "tensor b", "does not name");
    write_index("{\"a\":\"one.safetensors\",\"b\":\"one.safetensors\",\"c\":\"two.safetensors\","
                "\"d\":\"two.safetensors\"}");
    refuse(ENG_EFORMAT, "tensor d", "two.safetensors");
    write_index("{\"a\":\"one.safetensors\",\"b\":\"two.safetensors\",\"c\":\"two.safetensors\"}");
    refuse(ENG_EFORMAT, "tensor b", "two.safetensors");
    write_index("{\"a\":\"one.safetensors\",\"a\":\"one.safetensors\",\"b\":\"one.safetensors\","
                "\"c\":\"two.safetensors\"}");
    refuse(ENG_EFORMAT, "model.safetensors.index.json", "tensor");
    write_index("{\"a\":\"one.safetensors\",\"b\":\"one.safetensors\",\"c\":\"gone.safetensors\"}");
    refuse(ENG_EIO, "gone.safetensors", "open");
    write_index("[]");
    refuse(ENG_EFORMAT, "model.safetensors.index.json", "weight_map");
}

static void test_tensor_in_two_shards(void **state)
{
    (void)state;
    struct made_model m = {0};
    made_add(&m, "F32", 0, 4, "a");
    made_write(&m, dir, "one.safetensors");
    made_add(&m, "F32", 0, 4, "b");
    made_write(&m, dir, "two.safetensors");
    write_index("{\"a\":\"one.safetensors\",\"b\":\"two.safetensors\"}");
    refuse(ENG_EFORMAT, "tensor a", "twice");
}

static void test_shard_names_stay_in_the_folder(void **state)
{
    (void)state;
    static const char *const names[] = {"\"../one.safetensors\"",
                                        "\"sub/one.safetensors\"",
                                        "\"/one.safetensors\"",
                                        "\"..\\\\one.safetensors\"",
                                        "\".safetensors\"",
                                        "\".one.safetensors\"",
                                        "\"one.bin\"",
                                        "\"\"",
                                        "7",
                                        "null"};
    char map[256];
    write_two_shards();
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        snprintf(map, sizeof map, "{\"a\":%s}", names[i]);
        write_index(map);
        refuse(ENG_EFORMAT, "tensor a", "expected the name");
    }
}

static void test_a_folder_or_fifo_is_not_a_model(void **state)
{
    (void)state;
    char path[2 * PATH_SIZE];
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    assert_int_equal(mkdir(path, 0700), 0);
    refuse(ENG_EIO, "regular", "model.safetensors");
    assert_int_equal(rmdir(path), 0);
    assert_int_equal(mkfifo(path, 0600), 0);
    refuse(ENG_EIO, "regular", "model.safetensors");
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, make_dir, remove_dir)
    const struct CMUnitTest tests[] = {
        TEST(test_reads_tensors_in_place),
        TEST(test_empty_dimensions_and_scalars_are_legal),
        TEST(test_file_shorter_than_it_says),
        TEST(test_every_prefix_of_a_file_is_refused),
        TEST(test_bad_header_json),
        TEST(test_unsupported_dtype_is_named),
        TEST(test_shape_and_offsets_must_agree),
        TEST(test_overlaps_holes_and_misalignment),
        TEST(test_a_name_occurs_once),
        TEST(test_shards_are_one_set),
        TEST(test_index_and_shards_must_agree),
        TEST(test_tensor_in_two_shards),
        TEST(test_shard_names_stay_in_the_folder),
        TEST(test_a_folder_or_fifo_is_not_a_model),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
