// adapter_config.json and adapter_model.safetensors of PEFT -> one low-rank addition to o_proj per layer.
//
// Owns what the draft adapter may look like. Rank, alpha and targets come from its config; whatever would change the
// arithmetic (another target, rank or alpha patterns, rslora, dora, biases) is refused by name instead of being
// ignored. Runs on the thread that opens the engine. The tensors stay in their file's type, mapped: weights.c makes
// them readable by the backend.
#include "model/adapter.h"

#include <cjson/cJSON.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "model/json.h"

enum { MAX_RANK = 4096 };

#define FAIL(at, code, ...) eng_json_fail((at)->err, (at)->err_size, code, __VA_ARGS__)

// Absent, null, false, an empty list, an empty object or a string equal to `neutral`: the key changes nothing.
static int check_neutral(const cJSON *json, const char *key, const char *neutral, const struct eng_json_ctx *at)
{
    char shown[80];
    const cJSON *v = eng_json_get(json, key);
    if (!v || cJSON_IsFalse(v) || ((cJSON_IsArray(v) || cJSON_IsObject(v)) && !v->child) ||
        (neutral && cJSON_IsString(v) && strcmp(v->valuestring, neutral) == 0))
        return 0;
    return FAIL(at, ENG_ENOTSUP, "%s: \"%s\" is %s, which is not supported", at->file, key,
                eng_json_show(v, shown, sizeof shown));
}

static int check_targets(const cJSON *json, const struct eng_json_ctx *at)
{
    char shown[160];
    const cJSON *v = eng_json_get(json, "target_modules");
    const cJSON *only = cJSON_IsArray(v) && cJSON_GetArraySize(v) == 1 ? v->child : v;
    if (!v)
        return FAIL(at, ENG_EFORMAT, "%s has no \"target_modules\"", at->file);
    if (!cJSON_IsString(only) || strcmp(only->valuestring, "o_proj") != 0)
        return FAIL(at, ENG_ENOTSUP, "%s: \"target_modules\" is %s, only [\"o_proj\"] is supported", at->file,
                    eng_json_show(v, shown, sizeof shown));
    return 0;
}

static int read_config(const char *dir, struct eng_adapter *a, float *ret_scale, char *err, size_t err_size)
{
    static const struct {
        const char *key, *neutral;
    } neutral[] = {
        {"peft_type", "LORA"},         {"rank_pattern", NULL},    {"alpha_pattern", NULL},
        {"use_rslora", NULL},          {"use_dora", NULL},        {"bias", "none"},
        {"lora_bias", NULL},           {"fan_in_fan_out", NULL},  {"modules_to_save", NULL},
        {"layers_to_transform", NULL}, {"exclude_modules", NULL}, {"layer_replication", NULL},
        {"use_qalora", NULL},          {"megatron_config", NULL},
    };
    struct eng_json_ctx at = {"adapter_config.json", err, err_size};
    cJSON *json = NULL;
    const char *rows = "draft";
    double alpha = 0;
    int rc = eng_json_load(dir, false, &at, &json);
    for (size_t i = 0; rc == 0 && i < sizeof neutral / sizeof *neutral; i++)
        rc = check_neutral(json, neutral[i].key, neutral[i].neutral, &at);
    if (rc != 0 || (rc = check_targets(json, &at)) != 0 ||
        (rc = eng_json_int(json, "r", true, 1, MAX_RANK, &at, &a->rank)) != 0 ||
        (rc = eng_json_double(json, "lora_alpha", true, true, 0, 1e6, &at, &alpha)) != 0 ||
        (rc = eng_json_string(json, "trimode_rows", false, &at, &rows)) != 0)
        goto done;
    a->block_rows = strcmp(rows, "block") == 0;
    if (!a->block_rows && strcmp(rows, "draft") != 0)
        rc =
            FAIL(&at, ENG_EFORMAT, "%s: \"trimode_rows\" is \"%.60s\", expected \"draft\" or \"block\"", at.file, rows);
    *ret_scale = (float)(alpha / a->rank);
done:
    cJSON_Delete(json);
    return rc;
}

// which: "lora_A" or "lora_B". PEFT saves "...lora_A.weight"; a raw state dict says "...lora_A.default.weight".
static int take_matrix(struct eng_adapter *a, int32_t layer, const char *which, int32_t rows, int32_t cols,
                       struct krn_tensor *ret, const struct eng_json_ctx *at)
{
    static const char *const stems[] = {"encoder", "model"}, *const tails[] = {"", ".default"};
    const struct eng_safetensor *t = NULL;
    char name[128];
    for (int i = 0; i < 4 && !t; i++) {
        snprintf(name, sizeof name, "base_model.model.%s.layers.%d.self_attn.o_proj.%s%s.weight", stems[i / 2], layer,
                 which, tails[i % 2]);
        t = eng_safetensors_take(a->file, name);
    }
    if (!t)
        return FAIL(at, ENG_EFORMAT, "%s has no tensor base_model.model.encoder.layers.%d.self_attn.o_proj.%s.weight",
                    at->file, layer, which);
    if (t->n_dims != 2 || t->dims[0] != rows || t->dims[1] != cols)
        return FAIL(at, ENG_EFORMAT, "%s: tensor %s is not [%d, %d] as \"r\" and the model say", at->file, name, rows,
                    cols);
    *ret = (struct krn_tensor){.data = t->data, .type = t->type, .rows = rows, .cols = cols};
    return 0;
}

void eng_adapter_done(struct eng_adapter *a)
{
    eng_safetensors_close(a->file);
    free(a->layers);
    *a = (struct eng_adapter){0};
}

int eng_adapter_load(const char *dir, const struct eng_config *config, struct eng_adapter *ret, char *err,
                     size_t err_size)
{
    struct eng_adapter a = {0};
    struct eng_json_ctx at = {"adapter_model.safetensors", err, err_size};
    float scale = 0;
    int rc = read_config(dir, &a, &scale, err, err_size);
    if (rc != 0 || (rc = eng_safetensors_open(dir, at.file, NULL, &a.file, err, err_size)) != 0)
        goto failed;
    a.layers = calloc((size_t)config->n_layers, sizeof *a.layers);
    if (!a.layers) {
        rc = FAIL(&at, ENG_ENOMEM, "no memory for the adapter");
        goto failed;
    }
    for (int32_t i = 0; i < config->n_layers; i++) {
        a.layers[i].scale = scale;
        if ((rc = take_matrix(&a, i, "lora_A", a.rank, config->n_heads * config->head_dim, &a.layers[i].a, &at)) != 0 ||
            (rc = take_matrix(&a, i, "lora_B", config->hidden, a.rank, &a.layers[i].b, &at)) != 0)
            goto failed;
    }
    const struct eng_safetensor *extra = eng_safetensors_unused(a.file);
    if (extra) {
        rc = FAIL(&at, ENG_EFORMAT, "%s: tensor %s belongs to no part of the adapter", at.file, extra->name);
        goto failed;
    }
    *ret = a;
    return 0;
failed:
    eng_adapter_done(&a);
    return rc;
}
