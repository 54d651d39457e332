// Temporary folders and small checkpoints for the tests of engine/model. Everything is static: each test program has
// its own.
#pragma once

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ftw.h>
#include <sys/stat.h>
#include <cmocka.h>
#include <cjson/cJSON.h>

#define UNUSED __attribute__((unused))

enum { PATH_SIZE = 256 };

UNUSED static void folder_make(char *path)
{
    const char *tmp = getenv("TMPDIR");
    snprintf(path, PATH_SIZE, "%s/trimode_test_XXXXXX", tmp ? tmp : P_tmpdir);
    assert_non_null(mkdtemp(path));
}

UNUSED static int folder_unlink(const char *path, const struct stat *st, int flag, struct FTW *ftw)
{
    (void)st;
    (void)flag;
    (void)ftw;
    return remove(path);
}

UNUSED static void folder_remove(const char *path)
{
    assert_int_equal(nftw(path, folder_unlink, 16, FTW_DEPTH | FTW_PHYS), 0);
}

UNUSED static void folder_write(const char *dir, const char *name, const void *bytes, size_t n)
{
    char path[4 * PATH_SIZE]; // a folder inside a folder, and a name
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(bytes, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
}

UNUSED static void folder_write_text(const char *dir, const char *name, const char *text)
{
    folder_write(dir, name, text, strlen(text));
}

UNUSED static void folder_write_json(const char *dir, const char *name, const cJSON *json)
{
    char *text = cJSON_PrintUnformatted(json);
    folder_write_text(dir, name, text);
    cJSON_free(text);
}

// A safetensors file with this header (padded to 8 bytes with spaces) and these data bytes.
UNUSED static void folder_write_safetensors(const char *dir, const char *name, const char *header, const void *data,
                                            size_t n)
{
    uint64_t len = (strlen(header) + 7) / 8 * 8;
    char *bytes = malloc(8 + len + n);
    assert_non_null(bytes);
    for (int i = 0; i < 8; i++)
        bytes[i] = (char)(len >> (8 * i));
    memset(bytes + 8, ' ', len);
    memcpy(bytes + 8, header, strlen(header));
    if (n)
        memcpy(bytes + 8 + len, data, n);
    folder_write(dir, name, bytes, 8 + len + n);
    free(bytes);
}

// ---- a checkpoint tensor by tensor ----------------------------------------------------------------------------------

struct made_tensor {
    char name[128];
    const char *dtype;
    int dims[2], n_dims; // dims[0] alone for a vector
};

struct made_model {
    struct made_tensor tensors[128];
    int n;
};

UNUSED static void made_add(struct made_model *m, const char *dtype, int rows, int cols, const char *format, ...)
    __attribute__((format(printf, 5, 6)));
// rows 0: a vector [cols]
UNUSED static void made_add(struct made_model *m, const char *dtype, int rows, int cols, const char *format, ...)
{
    struct made_tensor *t = &m->tensors[m->n++];
    va_list args;
    va_start(args, format);
    vsnprintf(t->name, sizeof t->name, format, args);
    va_end(args);
    t->dtype = dtype;
    t->n_dims = rows ? 2 : 1;
    t->dims[0] = rows ? rows : cols;
    t->dims[1] = rows ? cols : 0;
}

UNUSED static struct made_tensor *made_find(struct made_model *m, const char *name)
{
    for (int i = 0; i < m->n; i++)
        if (strcmp(m->tensors[i].name, name) == 0)
            return &m->tensors[i];
    fail_msg("no tensor %s", name);
    return NULL;
}

UNUSED static size_t made_count(const struct made_tensor *t)
{
    return (size_t)t->dims[0] * (t->n_dims == 2 ? (size_t)t->dims[1] : 1);
}

// The i-th value of a bf16 tensor, exact in bf16.
UNUSED static float made_value(size_t i)
{
    return (float)((int)(i % 61) - 30) / 32.0f;
}

// Writes tensors [from, to) as one file. F32 values get a tail that bf16 cannot hold.
UNUSED static void made_write_range(const struct made_model *m, int from, int to, const char *dir, const char *file)
{
    size_t size = 0, offset = 0;
    for (int i = from; i < to; i++)
        size += made_count(&m->tensors[i]) * 4;
    char *data = calloc(size ? size : 1, 1);
    cJSON *header = cJSON_CreateObject();
    for (int i = from; i < to; i++) {
        const struct made_tensor *t = &m->tensors[i];
        size_t n = made_count(t), width = strcmp(t->dtype, "F32") == 0 ? 4 : 2;
        const double offsets[2] = {(double)offset, (double)(offset + n * width)};
        cJSON *entry = cJSON_AddObjectToObject(header, t->name);
        cJSON_AddStringToObject(entry, "dtype", t->dtype);
        cJSON_AddItemToObject(entry, "shape", cJSON_CreateIntArray(t->dims, t->n_dims));
        cJSON_AddItemToObject(entry, "data_offsets", cJSON_CreateDoubleArray(offsets, 2));
        for (size_t j = 0; j < n; j++) {
            float value = made_value(j);
            uint32_t bits;
            memcpy(&bits, &value, 4);
            if (width == 4) {
                bits |= value != 0 ? (uint32_t)j % 0x10000u : 0;
                memcpy(data + offset + 4 * j, &bits, 4);
            } else {
                uint16_t half = (uint16_t)(bits >> 16);
                memcpy(data + offset + 2 * j, &half, 2);
            }
        }
        offset += n * width;
    }
    char *text = cJSON_PrintUnformatted(header);
    folder_write_safetensors(dir, file, text, data, offset);
    cJSON_free(text);
    cJSON_Delete(header);
    free(data);
}

UNUSED static void made_write(const struct made_model *m, const char *dir, const char *file)
{
    made_write_range(m, 0, m->n, dir, file);
}

// hidden 8, 2 layers, ff 12, 4 heads over 2 kv heads of 4 (q is 16 wide), 24 ids.
UNUSED static const char made_config[] =
    "{\"model_type\":\"nemotron_labs_diffusion\",\"hidden_size\":8,\"num_hidden_layers\":2,\"intermediate_size\":12,"
    "\"num_attention_heads\":4,\"num_key_value_heads\":2,\"head_dim\":4,\"vocab_size\":24,"
    "\"max_position_embeddings\":512,\"rms_norm_eps\":1e-05,\"hidden_act\":\"silu\",\"tie_word_embeddings\":false,"
    "\"bos_token_id\":1,\"eos_token_id\":11,\"mask_token_id\":5,\"block_size\":8,\"sliding_window\":null,"
    "\"rope_parameters\":{\"rope_type\":\"yarn\",\"type\":\"yarn\",\"rope_theta\":1000000.0,\"factor\":16.0,"
    "\"original_max_position_embeddings\":32,\"beta_fast\":32.0,\"beta_slow\":1.0,\"mscale\":1.0,"
    "\"mscale_all_dim\":1.0,\"llama_4_scaling_beta\":0.1}}";

// stem "encoder" or "model"; head "diffusion_head" or "lm_head".
UNUSED static void made_model(struct made_model *m, const char *dtype, const char *stem, const char *head)
{
    m->n = 0;
    made_add(m, dtype, 24, 8, "%s.embed_tokens.weight", stem);
    for (int i = 0; i < 2; i++) {
        made_add(m, dtype, 0, 8, "%s.layers.%d.input_layernorm.weight", stem, i);
        made_add(m, dtype, 0, 8, "%s.layers.%d.post_attention_layernorm.weight", stem, i);
        made_add(m, dtype, 16, 8, "%s.layers.%d.self_attn.q_proj.weight", stem, i);
        made_add(m, dtype, 8, 8, "%s.layers.%d.self_attn.k_proj.weight", stem, i);
        made_add(m, dtype, 8, 8, "%s.layers.%d.self_attn.v_proj.weight", stem, i);
        made_add(m, dtype, 8, 16, "%s.layers.%d.self_attn.o_proj.weight", stem, i);
        made_add(m, dtype, 12, 8, "%s.layers.%d.mlp.gate_proj.weight", stem, i);
        made_add(m, dtype, 12, 8, "%s.layers.%d.mlp.up_proj.weight", stem, i);
        made_add(m, dtype, 8, 12, "%s.layers.%d.mlp.down_proj.weight", stem, i);
    }
    made_add(m, dtype, 0, 8, "%s.norm.weight", stem);
    made_add(m, dtype, 24, 8, "%s.weight", head);
}

enum { MADE_PARAMETERS = 24 * 8 * 2 + 8 + 2 * (2 * 8 + 16 * 8 + 2 * 8 * 8 + 8 * 16 + 3 * 12 * 8) };

UNUSED static const char made_adapter_config[] =
    "{\"peft_type\":\"LORA\",\"r\":3,\"lora_alpha\":12,\"target_modules\":[\"o_proj\"],\"bias\":\"none\","
    "\"lora_dropout\":0.0,\"rank_pattern\":{},\"alpha_pattern\":{},\"use_rslora\":false,\"modules_to_save\":null}";

UNUSED static void made_adapter(struct made_model *m, const char *dtype, const char *stem, const char *tail)
{
    m->n = 0;
    for (int i = 0; i < 2; i++) {
        made_add(m, dtype, 3, 16, "base_model.model.%s.layers.%d.self_attn.o_proj.lora_A%s.weight", stem, i, tail);
        made_add(m, dtype, 8, 3, "base_model.model.%s.layers.%d.self_attn.o_proj.lora_B%s.weight", stem, i, tail);
    }
}

// made_config with one change: key is "name" or "object.name"; value is JSON text, NULL removes.
UNUSED static char *json_with(const char *base, const char *key, const char *value)
{
    cJSON *json = cJSON_Parse(base), *object = json;
    const char *dot = strchr(key, '.');
    assert_non_null(json);
    if (dot) {
        char outer[64];
        snprintf(outer, sizeof outer, "%.*s", (int)(dot - key), key);
        object = cJSON_GetObjectItemCaseSensitive(json, outer);
        assert_non_null(object);
        key = dot + 1;
    }
    cJSON_DeleteItemFromObjectCaseSensitive(object, key);
    if (value)
        cJSON_AddItemToObject(object, key, cJSON_Parse(value));
    char *text = cJSON_PrintUnformatted(json);
    cJSON_Delete(json);
    return text;
}
