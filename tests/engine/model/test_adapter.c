// engine/model/adapter.c
#include "folder.h"

#include "base/err.h"
#include "model/adapter.h"

static char dir[PATH_SIZE], err[512];
static const struct eng_config config = {.hidden = 8, .n_layers = 2, .n_heads = 4, .n_kv_heads = 2, .head_dim = 4};

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

static void refuse(int code, const char *word1, const char *word2)
{
    struct eng_adapter a = {0};
    int rc = eng_adapter_load(dir, &config, &a, err, sizeof err);
    if (rc != code || !strstr(err, word1) || !strstr(err, word2) || a.file || a.layers)
        fail_msg("%d \"%s\", expected %d with \"%s\" and \"%s\"", rc, err, code, word1, word2);
}

static void refuse_config(const char *key, const char *value, int code, const char *word1, const char *word2)
{
    char *text = json_with(made_adapter_config, key, value);
    folder_write_text(dir, "adapter_config.json", text);
    cJSON_free(text);
    refuse(code, word1, word2);
}

static void check_loads(const char *dtype, const char *stem, const char *tail)
{
    struct made_model m;
    struct eng_adapter a;
    made_adapter(&m, dtype, stem, tail);
    made_write(&m, dir, "adapter_model.safetensors");
    folder_write_text(dir, "adapter_config.json", made_adapter_config);
    assert_int_equal(eng_adapter_load(dir, &config, &a, err, sizeof err), 0);
    assert_int_equal(a.rank, 3);
    assert_false(a.block_rows);
    for (int i = 0; i < 2; i++) {
        assert_true(a.layers[i].scale == 4.0f);
        assert_int_equal(a.layers[i].a.rows, 3);
        assert_int_equal(a.layers[i].a.cols, 16);
        assert_int_equal(a.layers[i].b.rows, 8);
        assert_int_equal(a.layers[i].b.cols, 3);
        assert_int_equal(a.layers[i].a.type, strcmp(dtype, "F32") == 0 ? KRN_F32 : KRN_BF16);
    }
    assert_ptr_not_equal(a.layers[0].a.data, a.layers[1].a.data);
    eng_adapter_done(&a);
    eng_adapter_done(&a);
}

static void test_loads_every_naming_and_type(void **state)
{
    (void)state;
    check_loads("F32", "encoder", "");
    check_loads("F32", "model", "");
    check_loads("BF16", "encoder", ".default");
    check_loads("BF16", "model", ".default");
}

static void test_rows_extension(void **state)
{
    (void)state;
    struct made_model m;
    struct eng_adapter a;
    made_adapter(&m, "F32", "encoder", "");
    made_write(&m, dir, "adapter_model.safetensors");
    static const struct {
        const char *value;
        bool block;
    } rows[] = {{"\"draft\"", false}, {"\"block\"", true}, {NULL, false}};
    for (size_t i = 0; i < 3; i++) {
        char *text = json_with(made_adapter_config, "trimode_rows", rows[i].value);
        folder_write_text(dir, "adapter_config.json", text);
        cJSON_free(text);
        assert_int_equal(eng_adapter_load(dir, &config, &a, err, sizeof err), 0);
        assert_int_equal(a.block_rows, rows[i].block);
        eng_adapter_done(&a);
    }
    refuse_config("trimode_rows", "\"all\"", ENG_EFORMAT, "trimode_rows", "all");
}

static void test_config_that_changes_the_arithmetic_is_refused(void **state)
{
    (void)state;
    struct made_model m;
    made_adapter(&m, "F32", "encoder", "");
    made_write(&m, dir, "adapter_model.safetensors");
    refuse_config("r", NULL, ENG_EFORMAT, "\"r\"", "no");
    refuse_config("r", "0", ENG_EFORMAT, "\"r\"", "is 0");
    refuse_config("r", "3.5", ENG_EFORMAT, "\"r\"", "3.5");
    refuse_config("r", "5000", ENG_EFORMAT, "\"r\"", "5000");
    refuse_config("lora_alpha", NULL, ENG_EFORMAT, "lora_alpha", "no");
    refuse_config("lora_alpha", "0", ENG_EFORMAT, "lora_alpha", "is 0");
    refuse_config("target_modules", "[\"o_proj\",\"q_proj\"]", ENG_ENOTSUP, "target_modules", "q_proj");
    refuse_config("target_modules", "[\"down_proj\"]", ENG_ENOTSUP, "target_modules", "down_proj");
    refuse_config("target_modules", "[]", ENG_ENOTSUP, "target_modules", "[]");
    refuse_config("target_modules", NULL, ENG_EFORMAT, "target_modules", "no");
    refuse_config("rank_pattern", "{\"layers.0\":8}", ENG_ENOTSUP, "rank_pattern", "layers.0");
    refuse_config("alpha_pattern", "{\"layers.0\":8}", ENG_ENOTSUP, "alpha_pattern", "layers.0");
    refuse_config("use_rslora", "true", ENG_ENOTSUP, "use_rslora", "true");
    refuse_config("use_dora", "true", ENG_ENOTSUP, "use_dora", "true");
    refuse_config("bias", "\"all\"", ENG_ENOTSUP, "bias", "all");
    refuse_config("peft_type", "\"LOHA\"", ENG_ENOTSUP, "peft_type", "LOHA");
    refuse_config("fan_in_fan_out", "true", ENG_ENOTSUP, "fan_in_fan_out", "true");
    refuse_config("layers_to_transform", "[0]", ENG_ENOTSUP, "layers_to_transform", "[0]");
    refuse_config("modules_to_save", "[\"head\"]", ENG_ENOTSUP, "modules_to_save", "head");
}

static void test_tensors_must_be_exactly_those(void **state)
{
    (void)state;
    struct made_model m;
    folder_write_text(dir, "adapter_config.json", made_adapter_config);
    refuse(ENG_EIO, "adapter_model.safetensors", "open");
    folder_write_text(dir, "adapter_model.safetensors", "PK not this format");
    refuse(ENG_EFORMAT, "adapter_model.safetensors", "header length");
    made_adapter(&m, "F32", "encoder", "");
    m.n--;
    made_write(&m, dir, "adapter_model.safetensors");
    refuse(ENG_EFORMAT, "layers.1.self_attn.o_proj.lora_B.weight", "no tensor");
    m.n++;
    made_add(&m, "F32", 3, 16, "base_model.model.encoder.layers.2.self_attn.o_proj.lora_A.weight");
    made_write(&m, dir, "adapter_model.safetensors");
    refuse(ENG_EFORMAT, "layers.2.self_attn.o_proj.lora_A.weight", "no part");
    m.n--;
    m.tensors[1].dims[1] = 4;
    made_write(&m, dir, "adapter_model.safetensors");
    refuse(ENG_EFORMAT, "layers.0.self_attn.o_proj.lora_B.weight", "[8, 3]");
    made_adapter(&m, "F16", "encoder", "");
    made_write(&m, dir, "adapter_model.safetensors");
    refuse(ENG_ENOTSUP, "F16", "lora_A");
}

static void test_missing_config(void **state)
{
    (void)state;
    refuse(ENG_EIO, "adapter_config.json", "open");
    folder_write_text(dir, "adapter_config.json", "{");
    refuse(ENG_EFORMAT, "adapter_config.json", "JSON");
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, make_dir, remove_dir)
    const struct CMUnitTest tests[] = {
        TEST(test_loads_every_naming_and_type),
        TEST(test_rows_extension),
        TEST(test_config_that_changes_the_arithmetic_is_refused),
        TEST(test_tensors_must_be_exactly_those),
        TEST(test_missing_config),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
