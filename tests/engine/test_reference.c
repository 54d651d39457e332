// The engine's decoding loops on real checkpoints, against whole generations of the NumPy reference (tests/vectors).
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <cmocka.h>

#include <cjson/cJSON.h>

#include "client.h"

enum { MAX_CASES = 128, MAX_IDS = 512 };

static cJSON *read_json(const char *path)
{
    FILE *f = fopen(path, "rb");
    if (!f)
        fail_msg("cannot open %s", path);
    fseek(f, 0, SEEK_END);
    long n = ftell(f);
    rewind(f);
    char *text = malloc((size_t)n + 1);
    assert_int_equal(fread(text, 1, (size_t)n, f), n);
    text[n] = '\0';
    fclose(f);
    cJSON *json = cJSON_Parse(text);
    free(text);
    assert_non_null(json);
    return json;
}

static const cJSON *get(const cJSON *object, const char *key)
{
    return cJSON_GetObjectItemCaseSensitive(object, key);
}

static double number(const cJSON *object, const char *key, double absent)
{
    const cJSON *v = get(object, key);
    return cJSON_IsNumber(v) ? v->valuedouble : absent;
}

static int32_t ids(const cJSON *array, int32_t *ret)
{
    int32_t n = 0;
    const cJSON *v;
    cJSON_ArrayForEach(v, array)
    {
        assert_true(n < MAX_IDS);
        ret[n++] = v->valueint;
    }
    return n;
}

static struct eng_params params_of(const cJSON *c, const cJSON *sampling, struct eng_logit_bias *biases)
{
    struct eng_params p = eng_params_default();
    p.mode = (enum eng_mode)eng_mode_parse(get(c, "mode")->valuestring);
    p.max_tokens = get(c, "max_tokens")->valueint;
    p.block_length = (int32_t)number(c, "block_length", 0);
    p.steps = (int32_t)number(c, "steps", 0);
    const cJSON *policy = get(c, "policy");
    p.commit_policy = cJSON_IsString(policy) ? (enum eng_commit_policy)eng_commit_policy_parse(policy->valuestring)
                      : p.steps              ? ENG_COMMIT_SCHEDULE
                                             : ENG_COMMIT_CONFIDENCE;
    if (!p.steps && p.commit_policy == ENG_COMMIT_CONFIDENCE)
        p.threshold = (float)number(c, "threshold", 0);
    p.temperature = (float)number(sampling, "temperature", 0);
    p.top_k = (int32_t)number(sampling, "top_k", 0);
    p.top_p = (float)number(sampling, "top_p", 1);
    p.min_p = (float)number(sampling, "min_p", 0);
    p.repetition_penalty = (float)number(sampling, "repetition_penalty", 1);
    p.frequency_penalty = (float)number(sampling, "frequency_penalty", 0);
    p.presence_penalty = (float)number(sampling, "presence_penalty", 0);
    p.seed = (uint64_t)number(sampling, "seed", 0);
    const cJSON *bias;
    cJSON_ArrayForEach(bias, get(sampling, "bias")) biases[p.n_biases++] =
        (struct eng_logit_bias){cJSON_GetArrayItem(bias, 0)->valueint, (float)cJSON_GetArrayItem(bias, 1)->valuedouble};
    p.biases = biases;
    return p;
}

// The reference denoises the last block whole; the engine stops at max_tokens, so it may need fewer passes there.
static void check(const cJSON *c, const cJSON *file, const struct answer *a)
{
    const char *name = get(c, "name")->valuestring;
    const cJSON *expect = get(c, "expect");
    int32_t tokens[MAX_IDS], n = ids(get(expect, "tokens"), tokens);
    bool stop = !strcmp(get(expect, "finish")->valuestring, "stop");
    bool diffusion = !strcmp(get(c, "mode")->valuestring, "diffusion");
    (void)file;
    if (a->finish != (stop ? ENG_FINISH_STOP : ENG_FINISH_LENGTH))
        fail_msg("%s: finish %d %s", name, (int)a->finish, a->error);
    if (stop && a->stop_id != tokens[n - 1])
        fail_msg("%s: ended by %d", name, a->stop_id);
    if (a->n_tokens != n - stop)
        fail_msg("%s: %d tokens, not %d", name, a->n_tokens, n - stop);
    for (int32_t i = 0; i < a->n_tokens; i++)
        if (a->tokens[i] != tokens[i])
            fail_msg("%s: token %d is %d, not %d", name, i, a->tokens[i], tokens[i]);
    assert_int_equal(a->stats.completion_tokens, n);
    int passes = get(expect, "forward_passes")->valueint;
    if (diffusion && !stop ? a->stats.forward_passes > passes : a->stats.forward_passes != passes)
        fail_msg("%s: %d passes, not %d", name, a->stats.forward_passes, passes);
    if (get(expect, "blocks"))
        assert_int_equal(a->stats.blocks, get(expect, "blocks")->valueint);
    if (get(expect, "drafted")) {
        assert_int_equal(a->stats.drafted_tokens, get(expect, "drafted")->valueint);
        assert_int_equal(a->stats.accepted_tokens, get(expect, "accepted")->valueint);
    }
    if (diffusion && stop)
        assert_int_equal(a->stats.denoise_passes, get(expect, "denoise_passes")->valueint);
}

// The vectors belong to these very weights.
static void check_weights(const char *dir, const cJSON *file)
{
    char path[600];
    struct stat st;
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    if (stat(path, &st) || (double)st.st_size != number(get(file, "weights_file"), "bytes", 0))
        fail_msg("%s is not what the vectors were made from: regenerate the vectors", path);
}

static void run_all(const char *name)
{
    char path[512], dir[512], err[300] = "";
    snprintf(path, sizeof path, "%s/tests/vectors/%s.json", TRIMODE_SOURCE_DIR, name);
    cJSON *file = read_json(path);
    snprintf(dir, sizeof dir, "%s/tests/vectors/%s", TRIMODE_SOURCE_DIR, get(file, "model")->valuestring);
    check_weights(dir, file);
    struct eng_options o = eng_options_default();
    struct client c;
    o.model_dir = dir;
    o.threads = 2;
    o.kv_memory = 64 << 20;
    if (client_open_dir(&c, o, err, sizeof err))
        fail_msg("%s: %s", name, err);
    static struct answer answers[MAX_CASES];
    const cJSON *one;
    int n = 0;
    cJSON_ArrayForEach(one, get(file, "cases"))
    {
        int32_t prompt[MAX_IDS], n_prompt = ids(get(one, "prompt"), prompt);
        struct eng_logit_bias biases[64];
        struct eng_params p = params_of(one, get(get(file, "params"), get(one, "params")->valuestring), biases);
        assert_true(n < MAX_CASES);
        client_submit(&c, &answers[n++], &p, prompt, (size_t)n_prompt);
    }
    assert_true(n > 30);
    client_close(&c);
    n = 0;
    cJSON_ArrayForEach(one, get(file, "cases"))
    {
        check(one, file, &answers[n]);
        answer_free(&answers[n++]);
    }
    cJSON_Delete(file);
}

#define MODEL_TEST(name)                  \
    static void test_##name(void **state) \
    {                                     \
        (void)state;                      \
        run_all(#name);                   \
    }

MODEL_TEST(wide_q)
MODEL_TEST(three_heads)
MODEL_TEST(one_layer_f32)
MODEL_TEST(yarn)
MODEL_TEST(yarn_attention)
MODEL_TEST(rows_block)
MODEL_TEST(nano)

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_wide_q), cmocka_unit_test(test_three_heads),    cmocka_unit_test(test_one_layer_f32),
        cmocka_unit_test(test_yarn),   cmocka_unit_test(test_yarn_attention), cmocka_unit_test(test_rows_block),
        cmocka_unit_test(test_nano),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
