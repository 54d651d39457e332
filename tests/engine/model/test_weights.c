// engine/model/weights.c, over a backend that only owns memory.
#include "folder.h"

#include "base/err.h"
#include "model/weights.h"

static char dir[PATH_SIZE], err[512];

// ---- a backend of plain memory --------------------------------------------------------------------------------------

struct memory {
    struct krn_backend backend;
    int n_buffers, n_imported, n_allocs_left; // allocations allowed before they fail; -1: all
    size_t allocated;
};

static void *mem_alloc(void *ctx, size_t bytes, const char *purpose)
{
    struct memory *m = ctx;
    assert_string_equal(purpose, "weights");
    if (m->n_allocs_left == 0)
        return NULL;
    m->n_allocs_left -= m->n_allocs_left > 0;
    m->n_buffers++;
    m->allocated += bytes;
    return calloc(1, bytes);
}

static void mem_release(void *ctx, void *p)
{
    struct memory *m = ctx;
    m->n_buffers--;
    free(p);
}

static const void *mem_import(void *ctx, const void *host, size_t bytes)
{
    struct memory *m = ctx;
    (void)bytes;
    m->n_imported++;
    return host;
}

static int mem_upload(void *ctx, void *dst, const void *host, size_t bytes)
{
    (void)ctx;
    memcpy(dst, host, bytes);
    return 0;
}

static int mem_wait(void *ctx)
{
    (void)ctx;
    return 0;
}

static struct memory mem;

static int make_dir(void **state)
{
    (void)state;
    folder_make(dir);
    err[0] = '\0';
    mem = (struct memory){.n_allocs_left = -1};
    mem.backend = (struct krn_backend){.name = "memory",
                                       .ctx = &mem,
                                       .alloc = mem_alloc,
                                       .release = mem_release,
                                       .import_weights = mem_import,
                                       .upload = mem_upload,
                                       .wait = mem_wait};
    folder_write_text(dir, "config.json", made_config);
    return 0;
}

static int remove_dir(void **state)
{
    (void)state;
    assert_int_equal(mem.n_buffers, 0);
    folder_remove(dir);
    return 0;
}

static int load(const char *weights, const char *adapter, struct eng_weights **w)
{
    return eng_weights_load(dir, weights, adapter, &mem.backend, NULL, NULL, w, err, sizeof err);
}

static void write_model(const char *dtype)
{
    struct made_model m;
    made_model(&m, dtype, "encoder", "diffusion_head");
    made_write(&m, dir, "model.safetensors");
}

static void write_adapter(const char *sub, const char *dtype)
{
    struct made_model m;
    char path[2 * PATH_SIZE];
    snprintf(path, sizeof path, "%s/%s", dir, sub);
    assert_int_equal(mkdir(path, 0700), 0);
    made_adapter(&m, dtype, "encoder", "");
    made_write(&m, path, "adapter_model.safetensors");
    folder_write_text(path, "adapter_config.json", made_adapter_config);
}

static void refuse(int code, const char *word1, const char *word2)
{
    struct eng_weights *w = NULL;
    int rc = load("auto", "auto", &w);
    if (rc != code || !strstr(err, word1) || !strstr(err, word2) || w)
        fail_msg("%d \"%s\", expected %d with \"%s\" and \"%s\"", rc, err, code, word1, word2);
}

// ---- tests ----------------------------------------------------------------------------------------------------------

static double last_fraction;

static void on_progress(void *user, const char *what, double fraction)
{
    assert_ptr_equal(user, &mem);
    assert_non_null(what);
    assert_true(fraction > last_fraction && fraction <= 1);
    last_fraction = fraction;
}

static void test_auto_maps_and_copies_nothing(void **state)
{
    (void)state;
    struct eng_weights *w;
    write_model("BF16");
    last_fraction = 0;
    assert_int_equal(eng_weights_load(dir, "auto", "auto", &mem.backend, on_progress, &mem, &w, err, sizeof err), 0);
    assert_true(last_fraction == 1);
    assert_int_equal(mem.allocated, 0);
    assert_int_equal(mem.n_imported, 21);
    assert_int_equal(w->parameters, MADE_PARAMETERS);
    assert_int_equal(w->resident_bytes, 2 * MADE_PARAMETERS);
    assert_int_equal(w->file_bytes, 2 * MADE_PARAMETERS);
    assert_int_equal(w->type, KRN_BF16);
    assert_false(w->has_adapter);
    assert_null(w->layers[0].adapter_o.a.data);
    assert_int_equal(w->layers[1].o.rows, 8);
    assert_int_equal(w->layers[1].o.cols, 16);
    assert_int_equal(w->layers[1].down.cols, 12);
    assert_int_equal(w->norm.rows, 1);
    assert_int_equal(w->norm.cols, 8);
    assert_ptr_not_equal(w->head.data, w->embed.data);
    eng_weights_free(w, &mem.backend);
    eng_weights_free(NULL, &mem.backend);
}

static void test_every_role_gets_its_own_tensor(void **state)
{
    (void)state;
    struct eng_weights *w;
    write_model("F32");
    assert_int_equal(load("auto", "none", &w), 0);
    const void *seen[21];
    int n = 0;
    seen[n++] = w->embed.data;
    seen[n++] = w->norm.data;
    seen[n++] = w->head.data;
    for (int i = 0; i < 2; i++) {
        const struct eng_layer *l = &w->layers[i];
        const struct krn_tensor *const t[] = {&l->input_norm, &l->post_norm, &l->q,  &l->k,   &l->v,
                                              &l->o,          &l->gate,      &l->up, &l->down};
        for (int j = 0; j < 9; j++)
            seen[n++] = t[j]->data;
    }
    assert_int_equal(n, 21);
    for (int i = 0; i < n; i++)
        for (int j = 0; j < i; j++)
            assert_ptr_not_equal(seen[i], seen[j]);
    assert_int_equal(w->type, KRN_F32);
    assert_int_equal(w->resident_bytes, 4 * MADE_PARAMETERS);
    eng_weights_free(w, &mem.backend);
}

static void test_names_of_ports_are_accepted(void **state)
{
    (void)state;
    struct made_model m;
    struct eng_weights *w;
    static const char *const names[][2] = {{"model", "lm_head"}, {"encoder", "lm_head"}, {"model", "diffusion_head"}};
    for (int i = 0; i < 3; i++) {
        made_model(&m, "BF16", names[i][0], names[i][1]);
        made_write(&m, dir, "model.safetensors");
        assert_int_equal(load("auto", "auto", &w), 0);
        eng_weights_free(w, &mem.backend);
    }
    made_model(&m, "BF16", "model.encoder", "lm_head");
    made_write(&m, dir, "model.safetensors");
    refuse(ENG_EFORMAT, "no tensor", "encoder.embed_tokens.weight");
}

static void test_bf16_to_f32_is_exact(void **state)
{
    (void)state;
    struct eng_weights *w;
    write_model("BF16");
    assert_int_equal(load("f32", "none", &w), 0);
    assert_int_equal(w->type, KRN_F32);
    assert_int_equal(w->layers[0].q.type, KRN_F32);
    assert_int_equal(w->layers[0].input_norm.type, KRN_BF16);
    for (size_t i = 0; i < 16 * 8; i++)
        assert_true(((const float *)w->layers[0].q.data)[i] == made_value(i));
    int64_t norms = 5 * 8;
    assert_int_equal(w->resident_bytes, 4 * (MADE_PARAMETERS - norms) + 2 * norms);
    assert_int_equal(w->file_bytes, 2 * MADE_PARAMETERS);
    assert_int_equal(mem.allocated, 4 * (MADE_PARAMETERS - norms));
    assert_int_equal(mem.n_imported, 5);
    eng_weights_free(w, &mem.backend);
}

static void test_f32_to_bf16_rounds_to_nearest_even(void **state)
{
    (void)state;
    static const struct {
        uint32_t f32;
        uint16_t bf16;
    } cases[] = {
        {0x3f800000, 0x3f80}, {0x3f807fff, 0x3f80}, {0x3f808000, 0x3f80}, {0x3f808001, 0x3f81}, {0x3f818000, 0x3f82},
        {0xbf818000, 0xbf82}, {0x7f7fffff, 0x7f80}, {0x7f800000, 0x7f80}, {0xff800000, 0xff80}, {0x7f800001, 0x7fc0},
        {0x7fffffff, 0x7fff}, {0x00000001, 0x0000}, {0x80000000, 0x8000}, {0x00008001, 0x0001},
    };
    struct eng_weights *w;
    char path[2 * PATH_SIZE];
    write_model("F32");
    // the embedding is the first tensor of the file
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    FILE *f = fopen(path, "r+b");
    unsigned char len[8];
    assert_int_equal(fread(len, 1, 8, f), 8);
    fseek(f, 8 + (long)(len[0] | (unsigned)len[1] << 8 | (unsigned)len[2] << 16), SEEK_SET);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        assert_int_equal(fwrite(&cases[i].f32, 4, 1, f), 1);
    fclose(f);
    assert_int_equal(load("bf16", "none", &w), 0);
    assert_int_equal(w->type, KRN_BF16);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        assert_int_equal(((const uint16_t *)w->embed.data)[i], cases[i].bf16);
    eng_weights_free(w, &mem.backend);
}

static void test_same_type_is_not_copied(void **state)
{
    (void)state;
    struct eng_weights *w;
    write_model("BF16");
    assert_int_equal(load("bf16", "none", &w), 0);
    assert_int_equal(mem.allocated, 0);
    eng_weights_free(w, &mem.backend);
    assert_int_equal(load("q4", "none", &w), ENG_EINVAL);
    assert_non_null(strstr(err, "q4"));
}

static void test_conversion_larger_than_one_chunk(void **state)
{
    (void)state;
    struct made_model m;
    struct eng_weights *w;
    enum { VOCAB = 300000 }; // 2.4 M values: several uploads
    char *text = json_with(made_config, "vocab_size", "300000");
    folder_write_text(dir, "config.json", text);
    cJSON_free(text);
    made_model(&m, "BF16", "encoder", "diffusion_head");
    made_find(&m, "encoder.embed_tokens.weight")->dims[0] = VOCAB;
    made_find(&m, "diffusion_head.weight")->dims[0] = VOCAB;
    made_write(&m, dir, "model.safetensors");
    assert_int_equal(load("f32", "none", &w), 0);
    const float *v = w->head.data;
    size_t wrong = 0;
    for (size_t i = 0; i < (size_t)VOCAB * 8; i++)
        wrong += v[i] != made_value(i);
    assert_int_equal(wrong, 0);
    eng_weights_free(w, &mem.backend);
}

static void test_tied_head_is_the_embedding(void **state)
{
    (void)state;
    struct made_model m;
    struct eng_weights *w;
    char *text = json_with(made_config, "tie_word_embeddings", "true");
    folder_write_text(dir, "config.json", text);
    cJSON_free(text);
    made_model(&m, "BF16", "encoder", "diffusion_head");
    made_write(&m, dir, "model.safetensors");
    refuse(ENG_EFORMAT, "diffusion_head.weight", "no part");
    m.n--;
    made_write(&m, dir, "model.safetensors");
    assert_int_equal(load("auto", "auto", &w), 0);
    assert_ptr_equal(w->head.data, w->embed.data);
    assert_int_equal(w->parameters, MADE_PARAMETERS - 24 * 8);
    assert_int_equal(w->resident_bytes, 2 * (MADE_PARAMETERS - 24 * 8));
    eng_weights_free(w, &mem.backend);
}

static void test_each_missing_tensor_is_named(void **state)
{
    (void)state;
    struct made_model all, m;
    made_model(&all, "BF16", "encoder", "diffusion_head");
    for (int i = 0; i < all.n; i++) {
        m = all;
        memmove(&m.tensors[i], &m.tensors[i + 1], (size_t)(m.n - i - 1) * sizeof m.tensors[0]);
        m.n--;
        made_write(&m, dir, "model.safetensors");
        refuse(ENG_EFORMAT, all.tensors[i].name, "no tensor");
    }
}

static void test_each_wrong_shape_is_named(void **state)
{
    (void)state;
    struct made_model all, m;
    made_model(&all, "BF16", "encoder", "diffusion_head");
    for (int i = 0; i < all.n; i++) {
        m = all;
        m.tensors[i].dims[0]++;
        made_write(&m, dir, "model.safetensors");
        refuse(ENG_EFORMAT, all.tensors[i].name, "config.json");
    }
    m = all;
    m.tensors[0].n_dims = 1; // as many values, one dimension
    m.tensors[0].dims[0] = 24 * 8;
    made_write(&m, dir, "model.safetensors");
    refuse(ENG_EFORMAT, "encoder.embed_tokens.weight", "[24, 8]");
    m = all;
    m.tensors[1].n_dims = 2;
    m.tensors[1].dims[0] = 1;
    m.tensors[1].dims[1] = 8;
    made_write(&m, dir, "model.safetensors");
    refuse(ENG_EFORMAT, "encoder.layers.0.input_layernorm.weight", "[8]");
}

static void test_leftovers_and_mixed_names_are_refused(void **state)
{
    (void)state;
    struct made_model m;
    made_model(&m, "BF16", "encoder", "diffusion_head");
    made_add(&m, "BF16", 0, 8, "encoder.layers.2.input_layernorm.weight");
    made_write(&m, dir, "model.safetensors");
    refuse(ENG_EFORMAT, "encoder.layers.2.input_layernorm.weight", "no part");
    m.n--;
    made_add(&m, "BF16", 24, 8, "lm_head.weight");
    made_write(&m, dir, "model.safetensors");
    refuse(ENG_EFORMAT, "lm_head.weight", "no part");
    m.n--;
    made_add(&m, "BF16", 0, 16, "encoder.layers.0.self_attn.q_proj.bias");
    made_write(&m, dir, "model.safetensors");
    refuse(ENG_EFORMAT, "encoder.layers.0.self_attn.q_proj.bias", "no part");
    m.n--;
    snprintf(made_find(&m, "encoder.norm.weight")->name, 128, "model.norm.weight");
    made_write(&m, dir, "model.safetensors");
    refuse(ENG_EFORMAT, "encoder.norm.weight", "no tensor");
}

static void test_shards_load(void **state)
{
    (void)state;
    struct made_model m;
    struct eng_weights *w;
    made_model(&m, "BF16", "encoder", "diffusion_head");
    made_write_range(&m, 0, 7, dir, "model-1.safetensors");
    made_write_range(&m, 7, m.n, dir, "model-2.safetensors");
    cJSON *index = cJSON_CreateObject(), *map = cJSON_AddObjectToObject(index, "weight_map");
    for (int i = 0; i < m.n; i++)
        cJSON_AddStringToObject(map, m.tensors[i].name, i < 7 ? "model-1.safetensors" : "model-2.safetensors");
    folder_write_json(dir, "model.safetensors.index.json", index);
    cJSON_Delete(index);
    assert_int_equal(load("auto", "auto", &w), 0);
    assert_int_equal(w->file_bytes, 2 * MADE_PARAMETERS);
    eng_weights_free(w, &mem.backend);
}

static void test_adapter_auto_none_and_folder(void **state)
{
    (void)state;
    struct eng_weights *w;
    char path[2 * PATH_SIZE];
    int64_t lora = 4 * 2 * (3 * 16 + 8 * 3);
    write_model("BF16");
    write_adapter("linear_spec_lora", "F32");
    assert_int_equal(load("auto", "auto", &w), 0);
    assert_true(w->has_adapter && !w->block_adapter);
    assert_int_equal(w->adapter_rank, 3);
    assert_true(w->layers[1].adapter_o.scale == 4.0f && w->layers[1].adapter_o.b.rows == 8);
    assert_int_equal(w->resident_bytes, 2 * MADE_PARAMETERS + lora);
    assert_int_equal(w->file_bytes, 2 * MADE_PARAMETERS + lora);
    assert_int_equal(w->parameters, MADE_PARAMETERS);
    eng_weights_free(w, &mem.backend);

    assert_int_equal(load("auto", "none", &w), 0);
    assert_false(w->has_adapter);
    assert_int_equal(w->resident_bytes, 2 * MADE_PARAMETERS);
    eng_weights_free(w, &mem.backend);

    write_adapter("other", "BF16");
    snprintf(path, sizeof path, "%s/other", dir);
    assert_int_equal(load("f32", path, &w), 0);
    assert_int_equal(w->layers[0].adapter_o.a.type, KRN_BF16); // keeps its file's type
    eng_weights_free(w, &mem.backend);

    snprintf(path, sizeof path, "%s/missing", dir);
    assert_int_equal(load("auto", path, &w), ENG_EIO);
    assert_non_null(strstr(err, "adapter_config.json"));

    snprintf(path, sizeof path, "%s/linear_spec_lora", dir); // a broken adapter is an error, not an absent one
    folder_write_text(path, "adapter_config.json", "{");
    assert_int_equal(load("auto", "auto", &w), ENG_EFORMAT);
}

static void test_every_failing_allocation_is_reported(void **state)
{
    (void)state;
    struct eng_weights *w;
    write_model("BF16");
    for (int i = 0; i < 16; i++) {
        mem.n_allocs_left = i;
        assert_int_equal(load("f32", "none", &w), ENG_ENOMEM);
        assert_non_null(strstr(err, "memory"));
        assert_int_equal(mem.n_buffers, 0);
    }
    mem.n_allocs_left = 16;
    assert_int_equal(load("f32", "none", &w), 0);
    eng_weights_free(w, &mem.backend);
}

static void test_bad_config_or_file_stops_the_load(void **state)
{
    (void)state;
    refuse(ENG_EIO, "neither", "model.safetensors");
    write_model("F16");
    refuse(ENG_ENOTSUP, "F16", "encoder.");
    folder_write_text(dir, "config.json", "{\"model_type\":\"llama\"}");
    refuse(ENG_ENOTSUP, "llama", "model_type");
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, make_dir, remove_dir)
    const struct CMUnitTest tests[] = {
        TEST(test_auto_maps_and_copies_nothing),          TEST(test_every_role_gets_its_own_tensor),
        TEST(test_names_of_ports_are_accepted),           TEST(test_bf16_to_f32_is_exact),
        TEST(test_f32_to_bf16_rounds_to_nearest_even),    TEST(test_same_type_is_not_copied),
        TEST(test_conversion_larger_than_one_chunk),      TEST(test_tied_head_is_the_embedding),
        TEST(test_each_missing_tensor_is_named),          TEST(test_each_wrong_shape_is_named),
        TEST(test_leftovers_and_mixed_names_are_refused), TEST(test_shards_load),
        TEST(test_adapter_auto_none_and_folder),          TEST(test_every_failing_allocation_is_reported),
        TEST(test_bad_config_or_file_stops_the_load),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
