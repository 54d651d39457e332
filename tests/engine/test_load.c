// engine/load.c: opening a folder, the KV memory, the text functions.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/err.h"
#include "core.h"

static struct eng_options options(void)
{
    struct eng_options o = eng_options_default();
    o.model_dir = TRIMODE_SOURCE_DIR "/tests/vectors/models/wide_q";
    o.threads = 1;
    o.max_sequences = 4;
    o.max_step_rows = 64;
    return o;
}

static void refuse(struct eng_options o, int code, const char *says)
{
    struct eng_engine *e = NULL;
    char err[300] = "";
    int rc = eng_open(&o, &e, err, sizeof err);
    if (rc != code || !strstr(err, says))
        fail_msg("%d, %s instead of %s", rc, err, says);
    assert_null(e);
    assert_int_equal(eng_open(&o, &e, NULL, 0), code);
}

#define REFUSE(code, says, ...)           \
    do {                                  \
        struct eng_options o = options(); \
        __VA_ARGS__;                      \
        refuse(o, code, says);            \
    } while (0)

static void test_bad_options_are_named(void **state)
{
    (void)state;
    setenv("TRIMODE_CUDA_MODULE", "/nowhere/trimode-cuda.so", 1);
    REFUSE(KRN_ENOTSUP, "/nowhere/trimode-cuda.so", o.backend = "cuda");
    REFUSE(ENG_EINVAL, "model_dir, backend, weights, kv_type and adapter must be given", o.model_dir = NULL);
    REFUSE(ENG_EIO, "config.json", o.model_dir = TRIMODE_SOURCE_DIR "/tests");
    REFUSE(ENG_EINVAL, "backend is \"gpu\", expected auto, cpu or cuda", o.backend = "gpu");
    REFUSE(ENG_EINVAL, "tensor_parallel must be 1, 2, 4 or 8, not 3", o.tensor_parallel = 3);
    REFUSE(ENG_ENOTSUP, "tensor_parallel 2 needs the cuda backend, which cannot be had: ", o.tensor_parallel = 2);
    REFUSE(ENG_ENOTSUP, "the cpu backend does not take bf16 weights as q4", o.weights = "q4");
    REFUSE(ENG_EINVAL, "weights is \"q8\", expected auto, f32, bf16, fp8 or q4", o.weights = "q8");
    REFUSE(ENG_EINVAL, "kv_type is \"int8\", expected auto, f32, bf16, fp8 or q8", o.kv_type = "int8");
    REFUSE(ENG_ENOTSUP, "the cpu backend has no keys and values of type fp8 for this model (it has f32, bf16, q8)",
           o.kv_type = "fp8");
    REFUSE(ENG_EINVAL, "threads must be at least 0, not -1", o.threads = -1);
    REFUSE(ENG_EINVAL, "max_step_rows must be between 64 and 1048576, not 63", o.max_step_rows = 63);
    REFUSE(ENG_EINVAL, "page_size must be between 1 and 256, not 0", o.page_size = 0);
    REFUSE(ENG_EINVAL, "max_sequences must be between 1 and 1024, not 0", o.max_sequences = 0);
    REFUSE(ENG_EINVAL, "max_context must be between 2 and the model's 128, not 129", o.max_context = 129);
    REFUSE(ENG_EINVAL, "max_context must be at least 2, not 1", o.max_context = 1);
    REFUSE(ENG_EINVAL, "kv_memory must be at least 0", o.kv_memory = -1);
    REFUSE(ENG_EINVAL, "kv_memory of 10 bytes holds no context: a page of 16 tokens needs", o.kv_memory = 10);
    REFUSE(ENG_EINVAL, "max_context 100 does not fit the KV memory", o.kv_memory = 20000, o.max_context = 100);
}

static void test_memory_bounds_pages_and_context(void **state)
{
    (void)state;
    struct eng_engine *e;
    struct eng_options o = options();
    assert_int_equal(eng_open(&o, &e, NULL, 0), 0);
    assert_int_equal(eng_info(e)->max_context, 128);
    assert_int_equal(eng_info(e)->n_pages, 4 * 8); // what 4 sequences can use, no more
    assert_string_equal(eng_info(e)->backend, "cpu");
    assert_true(eng_info(e)->has_chat_template && eng_info(e)->n_layers == 2 && eng_info(e)->hidden == 24);
    eng_close(e);
    o.kv_memory = 20000;
    assert_int_equal(eng_open(&o, &e, NULL, 0), 0);
    assert_true(eng_info(e)->n_pages < 8);
    assert_int_equal(eng_info(e)->max_context, eng_info(e)->n_pages * 16);
    eng_close(e);
}

static int64_t bytes_of(const struct eng_memory *m, const char *category)
{
    for (int32_t i = 0; i < m->n_categories; i++)
        if (!strcmp(m->categories[i].name, category))
            return m->categories[i].bytes;
    return -1;
}

static void test_the_memory_table_says_where_memory_went(void **state)
{
    (void)state;
    struct eng_engine *e;
    struct eng_options o = options();
    assert_int_equal(eng_open(&o, &e, NULL, 0), 0);
    const struct eng_info *info = eng_info(e);
    int64_t weights = bytes_of(&info->memory, "weights"), difference = weights - info->file_bytes;
    assert_true(difference * 100 <= info->file_bytes && -difference * 100 <= info->file_bytes);
    assert_int_equal(weights, info->weights_bytes);
    assert_true(bytes_of(&info->memory, "activations") > 0 && bytes_of(&info->memory, "logits") > 0);
    assert_string_equal(info->kv_type, "f32");
    assert_int_equal(bytes_of(&info->memory, "kv") % info->n_pages, 0);
    assert_int_equal(info->memory.total, 0);
    eng_close(e);
}

static void test_smaller_keys_and_values_are_more_pages(void **state)
{
    (void)state;
    static const struct {
        const char *option, *type;
        int32_t vector_bytes; // of 16 elements
    } cases[] = {{"auto", "f32", 64}, {"f32", "f32", 64}, {"bf16", "bf16", 32}, {"q8", "q8", 20}};
    struct eng_options o = options();
    o.kv_memory = 20000;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct eng_engine *e;
        o.kv_type = cases[i].option;
        assert_int_equal(eng_open(&o, &e, NULL, 0), 0);
        const struct eng_info *info = eng_info(e);
        int32_t token = 2 * 2 * 2 * cases[i].vector_bytes; // k and v, 2 layers, 2 kv heads
        assert_string_equal(info->kv_type, cases[i].type);
        assert_int_equal(info->kv_token_bytes, token);
        assert_int_equal(info->n_pages, 20000 / (16 * token));
        assert_int_equal(bytes_of(&info->memory, "kv"), (int64_t)info->n_pages * 16 * token);
        eng_close(e);
    }
}

// This test runs where there is no GPU, or no module: then "auto" is the CPU and says why; "cpu" was asked for.
static void test_auto_says_why_it_is_the_cpu(void **state)
{
    (void)state;
    struct eng_engine *e;
    struct eng_options o = options();
    setenv("TRIMODE_CUDA_MODULE", "/nowhere/trimode-cuda.so", 1);
    o.backend = "auto";
    assert_int_equal(eng_open(&o, &e, NULL, 0), 0);
    assert_string_equal(eng_info(e)->backend, "cpu");
    assert_non_null(strstr(eng_info(e)->backend_reason, "/nowhere/trimode-cuda.so"));
    eng_close(e);
    o.backend = "cpu";
    assert_int_equal(eng_open(&o, &e, NULL, 0), 0);
    assert_string_equal(eng_info(e)->backend_reason, "");
    eng_close(e);
    unsetenv("TRIMODE_CUDA_MODULE");
}

static void test_text_functions(void **state)
{
    (void)state;
    struct eng_engine *e;
    struct eng_options o = options();
    int32_t *ids;
    size_t n, len;
    char *text;
    assert_int_equal(eng_open(&o, &e, NULL, 0), 0);
    assert_int_equal(eng_encode(e, "hi", 2, false, &ids, &n), 0);
    assert_int_equal(n, 2);
    assert_int_equal(ids[1], 128 + 'i');
    assert_int_equal(eng_decode(e, ids, n, true, &text, &len), 0);
    assert_string_equal(text, "hi");
    free(text);
    free(ids);
    assert_int_equal(eng_decode(e, NULL, 0, true, &text, &len), 0);
    assert_string_equal(text, ""); // a text even of nothing
    free(text);
    assert_int_equal(eng_decode(e, &(int32_t){-1}, 1, true, &text, &len), ENG_EINVAL);
    assert_memory_equal(eng_token_bytes(e, 128 + 'x', &len), "x", 1);
    assert_null(eng_token_bytes(e, 1 << 20, &len));
    assert_int_equal(eng_encode(e, "\xFF", 1, false, &ids, &n), ENG_EINVAL);
    eng_close(e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bad_options_are_named),
        cmocka_unit_test(test_memory_bounds_pages_and_context),
        cmocka_unit_test(test_the_memory_table_says_where_memory_went),
        cmocka_unit_test(test_smaller_keys_and_values_are_more_pages),
        cmocka_unit_test(test_auto_says_why_it_is_the_cpu),
        cmocka_unit_test(test_text_functions),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
