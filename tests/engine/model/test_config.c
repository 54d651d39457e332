// engine/model/config.c
#include "folder.h"

#include <math.h>

#include "base/err.h"
#include "model/config.h"

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

static int load_with(const char *key, const char *value, struct eng_config *c)
{
    char *text = json_with(made_config, key, value);
    folder_write_text(dir, "config.json", text);
    cJSON_free(text);
    return eng_config_load(dir, c, err, sizeof err);
}

// The change is refused with code and a sentence that contains both words.
static void refuse(const char *key, const char *value, int code, const char *word1, const char *word2)
{
    struct eng_config c;
    int rc = load_with(key, value, &c);
    if (rc != code || !strstr(err, word1) || !strstr(err, word2))
        fail_msg("%s = %s: %d \"%s\"", key, value ? value : "absent", rc, rc ? err : "");
}

static void test_reads_every_value(void **state)
{
    (void)state;
    struct eng_config c;
    folder_write_text(dir, "config.json", made_config);
    assert_int_equal(eng_config_load(dir, &c, err, sizeof err), 0);
    assert_int_equal(c.hidden, 8);
    assert_int_equal(c.n_layers, 2);
    assert_int_equal(c.ff, 12);
    assert_int_equal(c.n_heads, 4);
    assert_int_equal(c.n_kv_heads, 2);
    assert_int_equal(c.head_dim, 4);
    assert_int_equal(c.n_vocab, 24);
    assert_int_equal(c.max_positions, 512);
    assert_true(c.rms_eps == 1e-5f);
    assert_false(c.tied_head);
    assert_int_equal(c.bos_id, 1);
    assert_int_equal(c.n_eos, 1);
    assert_int_equal(c.eos_ids[0], 11);
    assert_int_equal(c.mask_id, 5);
    assert_int_equal(c.block_size, 8);
    assert_true(c.yarn && c.yarn_truncate);
    assert_true(c.rope_theta == 1e6 && c.yarn_factor == 16 && c.yarn_beta_fast == 32 && c.yarn_beta_slow == 1);
    assert_true(c.yarn_mscale == 1 && c.yarn_mscale_all_dim == 1 && c.yarn_attention_factor == 0);
    assert_int_equal(c.original_max_positions, 32);
    assert_true(c.query_beta == 0.1);
}

static void test_optional_keys_have_their_defaults(void **state)
{
    (void)state;
    struct eng_config c;
    assert_int_equal(load_with("mask_token_id", NULL, &c), 0);
    assert_int_equal(c.mask_id, -1);
    assert_int_equal(load_with("bos_token_id", "null", &c), 0);
    assert_int_equal(c.bos_id, -1);
    assert_int_equal(load_with("block_size", NULL, &c), 0);
    assert_int_equal(c.block_size, 32);
    assert_int_equal(load_with("eos_token_id", NULL, &c), 0);
    assert_int_equal(c.n_eos, 0);
    assert_int_equal(load_with("head_dim", NULL, &c), 0);
    assert_int_equal(c.head_dim, 2);
    assert_int_equal(load_with("rope_parameters.llama_4_scaling_beta", NULL, &c), 0);
    assert_true(c.query_beta == 0);
    assert_int_equal(load_with("rope_parameters.truncate", "false", &c), 0);
    assert_false(c.yarn_truncate);
    assert_int_equal(load_with("tie_word_embeddings", "true", &c), 0);
    assert_true(c.tied_head);
}

static void test_end_ids_of_both_files_are_joined(void **state)
{
    (void)state;
    struct eng_config c;
    folder_write_text(dir, "generation_config.json", "{\"eos_token_id\": [2, 11, 3]}");
    assert_int_equal(load_with("eos_token_id", "[11, 2]", &c), 0);
    assert_int_equal(c.n_eos, 3);
    assert_int_equal(c.eos_ids[0], 11);
    assert_int_equal(c.eos_ids[1], 2);
    assert_int_equal(c.eos_ids[2], 3);
    folder_write_text(dir, "generation_config.json", "{\"eos_token_id\": 24}");
    refuse("eos_token_id", "11", ENG_EFORMAT, "generation_config.json", "24");
    folder_write_text(dir, "generation_config.json", "[1]");
    refuse("eos_token_id", "11", ENG_EFORMAT, "generation_config.json", "object");
}

static void test_errors_name_key_and_value(void **state)
{
    (void)state;
    static const char *const positive[] = {
        "hidden_size",         "num_hidden_layers", "intermediate_size",      "num_attention_heads",
        "num_key_value_heads", "vocab_size",        "max_position_embeddings"};
    for (size_t i = 0; i < sizeof positive / sizeof *positive; i++) {
        refuse(positive[i], NULL, ENG_EFORMAT, positive[i], "no");
        refuse(positive[i], "0", ENG_EFORMAT, positive[i], "is 0");
        refuse(positive[i], "-8", ENG_EFORMAT, positive[i], "is -8");
        refuse(positive[i], "2.5", ENG_EFORMAT, positive[i], "is 2.5");
        refuse(positive[i], "1e300", ENG_EFORMAT, positive[i], "1e+300");
        refuse(positive[i], "\"8\"", ENG_EFORMAT, positive[i], "\"8\"");
    }
    refuse("head_dim", "0", ENG_EFORMAT, "head_dim", "is 0");
    refuse("head_dim", "3", ENG_EFORMAT, "head_dim", "is 3");
    refuse("num_key_value_heads", "3", ENG_EFORMAT, "num_key_value_heads", "(3)");
    refuse("rms_norm_eps", "0", ENG_EFORMAT, "rms_norm_eps", "is 0");
    refuse("rms_norm_eps", NULL, ENG_EFORMAT, "rms_norm_eps", "no");
    refuse("tie_word_embeddings", "1", ENG_EFORMAT, "tie_word_embeddings", "is 1");
    refuse("bos_token_id", "24", ENG_EFORMAT, "bos_token_id", "is 24");
    refuse("mask_token_id", "-1", ENG_EFORMAT, "mask_token_id", "is -1");
    refuse("eos_token_id", "[1, \"x\"]", ENG_EFORMAT, "eos_token_id", "\"x\"");
    refuse("eos_token_id", "[0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16]", ENG_EFORMAT, "eos_token_id", "16");
    refuse("block_size", "12", ENG_EFORMAT, "block_size", "is 12");
    refuse("block_size", "128", ENG_EFORMAT, "block_size", "is 128");
}

static void test_refuses_what_it_would_compute_wrongly(void **state)
{
    (void)state;
    refuse("model_type", "\"llama\"", ENG_ENOTSUP, "model_type", "llama");
    refuse("model_type", "\"nemotron_labs_diffusion_vlm\"", ENG_ENOTSUP, "model_type", "nemotron_labs_diffusion_vlm");
    refuse("model_type", NULL, ENG_EFORMAT, "model_type", "no");
    refuse("hidden_act", "\"gelu\"", ENG_ENOTSUP, "hidden_act", "gelu");
    refuse("attention_bias", "true", ENG_ENOTSUP, "attention_bias", "true");
    refuse("mlp_bias", "true", ENG_ENOTSUP, "mlp_bias", "true");
    refuse("sliding_window", "4096", ENG_ENOTSUP, "sliding_window", "4096");
    refuse("quantization_config", "{\"bits\":4}", ENG_ENOTSUP, "quantization_config", "bits");
    refuse("partial_rotary_factor", "0.5", ENG_ENOTSUP, "partial_rotary_factor", "0.5");
    refuse("rope_parameters.partial_rotary_factor", "0.5", ENG_ENOTSUP, "partial_rotary_factor", "0.5");
    refuse("rope_parameters.rope_type", "\"llama3\"", ENG_ENOTSUP, "rope_type", "llama3");
    refuse("rope_parameters.factor", "0", ENG_EFORMAT, "factor", "is 0");
    refuse("rope_parameters.factor", NULL, ENG_EFORMAT, "factor", "no");
    refuse("rope_parameters.beta_fast", "0.5", ENG_EFORMAT, "beta_fast", "0.5");
    refuse("rope_parameters.rope_theta", NULL, ENG_EFORMAT, "rope_theta", "no");
    refuse("rope_parameters.rope_theta", "1", ENG_EFORMAT, "rope_theta", "is 1");
    refuse("rope_parameters.original_max_position_embeddings", NULL, ENG_EFORMAT, "llama_4_scaling_beta",
           "original_max_position_embeddings");
    refuse("rope_parameters.truncate", "1", ENG_EFORMAT, "truncate", "is 1");
    refuse("rope_parameters", "[]", ENG_EFORMAT, "rope_parameters", "[]");
}

static void test_bad_json_and_missing_files_are_errors(void **state)
{
    (void)state;
    struct eng_config c;
    assert_int_equal(eng_config_load(dir, &c, err, sizeof err), ENG_EIO);
    assert_non_null(strstr(err, "config.json"));
    folder_write_text(dir, "config.json", "{\"hidden_size\": 8");
    assert_int_equal(eng_config_load(dir, &c, err, sizeof err), ENG_EFORMAT);
    folder_write_text(dir, "config.json", "{} {}");
    assert_int_equal(eng_config_load(dir, &c, err, sizeof err), ENG_EFORMAT);
    folder_write_text(dir, "config.json", "[]");
    assert_int_equal(eng_config_load(dir, &c, err, sizeof err), ENG_EFORMAT);
    folder_write_text(dir, "config.json", "");
    assert_int_equal(eng_config_load(dir, &c, err, sizeof err), ENG_EFORMAT);
    assert_int_equal(eng_config_load(dir, &c, NULL, 0), ENG_EFORMAT);
}

static void test_failure_leaves_the_result_untouched(void **state)
{
    (void)state;
    struct eng_config c, before;
    memset(&c, 0x5a, sizeof c);
    before = c;
    assert_int_equal(load_with("rope_parameters.factor", "0", &c), ENG_EFORMAT);
    assert_memory_equal(&c, &before, sizeof c);
}

static void test_older_rope_form_reads_the_same(void **state)
{
    (void)state;
    struct eng_config now, older;
    float a[2], b[2], factor_a, factor_b;
    folder_write_text(dir, "config.json", made_config);
    assert_int_equal(eng_config_load(dir, &now, err, sizeof err), 0);
    cJSON *json = cJSON_Parse(made_config);
    cJSON *rope = cJSON_DetachItemFromObjectCaseSensitive(json, "rope_parameters");
    cJSON_AddItemToObject(json, "rope_theta", cJSON_DetachItemFromObjectCaseSensitive(rope, "rope_theta"));
    cJSON_DeleteItemFromObjectCaseSensitive(rope, "rope_type");
    cJSON_AddItemToObject(json, "rope_scaling", rope);
    folder_write_json(dir, "config.json", json);
    cJSON_Delete(json);
    assert_int_equal(eng_config_load(dir, &older, err, sizeof err), 0);
    eng_config_rope(&now, a, &factor_a);
    eng_config_rope(&older, b, &factor_b);
    assert_memory_equal(a, b, sizeof a);
    assert_true(factor_a == factor_b && older.query_beta == now.query_beta);
    assert_int_equal(older.original_max_positions, 32);
}

static void test_plain_rope_is_a_power_of_theta(void **state)
{
    (void)state;
    struct eng_config c;
    float inv[2], factor;
    assert_int_equal(load_with("rope_parameters", "{\"rope_type\":\"default\",\"rope_theta\":10000}", &c), 0);
    assert_false(c.yarn);
    eng_config_rope(&c, inv, &factor);
    assert_true(factor == 1 && inv[0] == 1 && fabsf(inv[1] - 0.01f) < 1e-8f);
    assert_int_equal(load_with("rope_parameters", NULL, &c), ENG_EFORMAT);
    assert_non_null(strstr(err, "rope_theta"));
}

// Expected values: Hugging Face's formula evaluated in double (arXiv 2309.00071).
static void test_yarn_frequencies_of_the_published_models(void **state)
{
    (void)state;
    static const struct {
        double theta;
        int i;
        double inv_freq;
    } want[] = {
        {1e+06, 0, 1},
        {1e+06, 1, 0.805842187761},
        {1e+06, 14, 0.0486967525166},
        {1e+06, 20, 0.0133352143216},
        {1e+06, 22, 0.00770453552401},
        {1e+06, 30, 0.000690702338894},
        {1e+06, 36, 4.96113533445e-05},
        {1e+06, 40, 1.11142463127e-05},
        {1e+06, 63, 7.7558610047e-08},
        {1e+09, 0, 1},
        {1e+09, 1, 0.723394162737},
        {1e+09, 14, 0.00990654091734},
        {1e+09, 20, 0.000697779207121},
        {1e+09, 22, 0.000239234399492},
        {1e+09, 30, 3.77685243899e-06},
        {1e+09, 36, 5.412277021e-07},
        {1e+09, 40, 1.48210856604e-07},
        {1e+09, 63, 8.63982642099e-11},
    };
    float inv[64], factor;
    struct eng_config c = {.head_dim = 128,
                           .yarn = true,
                           .yarn_truncate = true,
                           .yarn_factor = 16,
                           .yarn_beta_fast = 32,
                           .yarn_beta_slow = 1,
                           .yarn_mscale = 1,
                           .yarn_mscale_all_dim = 1,
                           .original_max_positions = 16384};
    for (size_t i = 0; i < sizeof want / sizeof *want; i++) {
        c.rope_theta = want[i].theta;
        eng_config_rope(&c, inv, &factor);
        assert_true(fabs(inv[want[i].i] - want[i].inv_freq) <= 1e-6 * want[i].inv_freq);
        assert_true(factor == 1);
    }
}

static void test_yarn_attention_factor(void **state)
{
    (void)state;
    float inv[64], factor;
    struct eng_config c = {.head_dim = 128,
                           .rope_theta = 1e6,
                           .yarn = true,
                           .yarn_factor = 16,
                           .yarn_beta_fast = 32,
                           .yarn_beta_slow = 1,
                           .original_max_positions = 16384};
    eng_config_rope(&c, inv, &factor); // no mscale: 0.1 ln 16 + 1
    assert_true(fabsf(factor - 1.2772589f) < 1e-6f);
    c.yarn_mscale = 1;
    c.yarn_mscale_all_dim = 0.5;
    eng_config_rope(&c, inv, &factor);
    assert_true(fabsf(factor - 1.2772589f / 1.1386294f) < 1e-6f);
    c.yarn_attention_factor = 1.5;
    eng_config_rope(&c, inv, &factor);
    assert_true(factor == 1.5f);
    c.yarn_attention_factor = c.yarn_mscale = 0;
    c.yarn_factor = 0.25; // the base models shrink
    eng_config_rope(&c, inv, &factor);
    assert_true(factor == 1);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, make_dir, remove_dir)
    const struct CMUnitTest tests[] = {
        TEST(test_reads_every_value),
        TEST(test_optional_keys_have_their_defaults),
        TEST(test_end_ids_of_both_files_are_joined),
        TEST(test_errors_name_key_and_value),
        TEST(test_refuses_what_it_would_compute_wrongly),
        TEST(test_bad_json_and_missing_files_are_errors),
        TEST(test_failure_leaves_the_result_untouched),
        TEST(test_older_rope_form_reads_the_same),
        TEST(test_plain_rope_is_a_power_of_theta),
        TEST(test_yarn_frequencies_of_the_published_models),
        TEST(test_yarn_attention_factor),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
