// engine/model/weights.c, over a backend that only owns memory.
#include "folder.h"

#include "base/err.h"
#include "model/weights.h"

static char dir[PATH_SIZE], err[512];

// ---- a backend of plain memory --------------------------------------------------------------------------------------

enum { MAX_IMPORTS = 64 };

struct memory {
    struct krn_backend backend;
    int n_live, n_copied, n_imports_left; // tensors held, those in another type; imports before they fail (-1: all)
    int refused;                          // enum krn_type that it does not take; -1: none
    bool failing;                         // the device is lost
    int64_t held;                         // bytes of all tensors
    struct krn_memory table;              // what it says of the device
    struct import {
        enum krn_split split;
        int32_t rows, cols;
    } imports[MAX_IMPORTS]; // the first ones
    int n_imports;
};

// Same type: the host's own memory. Another: memory of the right size with nothing meaningful in it.
static int mem_import(void *ctx, const struct krn_tensor *host, enum krn_type type, enum krn_split split,
                      struct krn_tensor *ret)
{
    struct memory *m = ctx;
    if (m->failing)
        return KRN_EDEVICE;
    if ((int)type == m->refused)
        return KRN_ENOTSUP;
    if (m->n_imports_left == 0)
        return KRN_ENOMEM;
    m->n_imports_left -= m->n_imports_left > 0;
    assert_null(host->scales);
    if (m->n_imports < MAX_IMPORTS)
        m->imports[m->n_imports] = (struct import){split, host->rows, host->cols};
    m->n_imports++;
    *ret = *host;
    ret->type = type;
    if (type != host->type) {
        ret->data = malloc((size_t)krn_matrix_bytes(type, host->rows, host->cols));
        ret->scales = ret->data; // marks it as ours
        m->n_copied++;
    }
    m->held += krn_matrix_bytes(type, host->rows, host->cols);
    m->n_live++;
    return 0;
}

static void mem_drop(void *ctx, struct krn_tensor *t)
{
    struct memory *m = ctx;
    assert_non_null(t->data);
    if (t->scales)
        free((void *)t->data);
    m->held -= krn_matrix_bytes(t->type, t->rows, t->cols);
    m->n_live--;
    *t = (struct krn_tensor){0};
}

static enum krn_type same_type(void *ctx, enum krn_type file_type)
{
    (void)ctx;
    return file_type;
}

static enum krn_type always_bf16(void *ctx, enum krn_type file_type)
{
    (void)ctx, (void)file_type;
    return KRN_BF16;
}

static void mem_memory(void *ctx, struct krn_memory *ret)
{
    const struct memory *m = ctx;
    *ret = m->table;
}

static const char *mem_error(void *ctx)
{
    (void)ctx;
    return "the device fell off the bus";
}

static struct memory mem;

static int make_dir(void **state)
{
    (void)state;
    folder_make(dir);
    err[0] = '\0';
    mem = (struct memory){.n_imports_left = -1, .refused = -1};
    mem.backend = (struct krn_backend){.name = "fake",
                                       .ctx = &mem,
                                       .import_weights = mem_import,
                                       .drop_weights = mem_drop,
                                       .weights_type = same_type,
                                       .memory = mem_memory,
                                       .error = mem_error};
    folder_write_text(dir, "config.json", made_config);
    return 0;
}

static int remove_dir(void **state)
{
    (void)state;
    assert_int_equal(mem.n_live, 0);
    assert_int_equal(mem.held, 0);
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
    assert_int_equal(mem.n_copied, 0);
    assert_int_equal(mem.n_imports, 21);
    assert_int_equal(w->resident_bytes, mem.held);
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

// Loads and checks the type of the layers' matrices, the head, the embedding and the norms.
static struct eng_weights *load_as(const char *weights, enum krn_type linear, enum krn_type head, enum krn_type embed,
                                   enum krn_type norm)
{
    struct eng_weights *w = NULL;
    mem.n_imports = 0;
    if (load(weights, "none", &w) != 0)
        fail_msg("%s: %s", weights, err);
    for (int i = 0; i < 2; i++) {
        const struct eng_layer *l = &w->layers[i];
        const struct krn_tensor *const t[] = {&l->q, &l->k, &l->v, &l->o, &l->gate, &l->up, &l->down};
        for (int j = 0; j < 7; j++)
            assert_int_equal(t[j]->type, linear);
        assert_int_equal(l->input_norm.type, norm);
        assert_int_equal(l->post_norm.type, norm);
    }
    assert_int_equal(w->head.type, head);
    assert_int_equal(w->embed.type, embed);
    assert_int_equal(w->norm.type, norm);
    assert_int_equal(w->type, linear);
    assert_int_equal(w->resident_bytes, mem.held);
    return w;
}

static void test_each_role_gets_the_type_asked_for(void **state)
{
    (void)state;
    int64_t norms = 5 * 8;
    write_model("BF16");
    struct eng_weights *w = load_as("f32", KRN_F32, KRN_F32, KRN_F32, KRN_BF16);
    assert_int_equal(w->resident_bytes, 4 * (MADE_PARAMETERS - norms) + 2 * norms);
    assert_int_equal(w->file_bytes, 2 * MADE_PARAMETERS);
    eng_weights_free(w, &mem.backend);
    eng_weights_free(load_as("fp8", KRN_FP8, KRN_FP8, KRN_BF16, KRN_BF16), &mem.backend);
    eng_weights_free(load_as("q4", KRN_Q4, KRN_Q4, KRN_BF16, KRN_BF16), &mem.backend);
    eng_weights_free(load_as("bf16", KRN_BF16, KRN_BF16, KRN_BF16, KRN_BF16), &mem.backend);
    write_model("F32");
    eng_weights_free(load_as("q4", KRN_Q4, KRN_Q4, KRN_BF16, KRN_F32), &mem.backend);
    eng_weights_free(load_as("auto", KRN_F32, KRN_F32, KRN_F32, KRN_F32), &mem.backend);
    mem.backend.weights_type = always_bf16; // a backend with a taste of its own
    eng_weights_free(load_as("auto", KRN_BF16, KRN_BF16, KRN_BF16, KRN_F32), &mem.backend);
}

static void test_each_role_says_how_it_may_be_divided(void **state)
{
    (void)state;
    struct eng_weights *w;
    write_model("BF16");
    write_adapter("linear_spec_lora", "BF16");
    assert_int_equal(load("auto", "auto", &w), 0);
    int n[3] = {0};
    for (int i = 0; i < mem.n_imports; i++) {
        enum krn_split split = mem.imports[i].split;
        n[split]++;
        // o is [8][16], its adapter's A [3][16] and down [8][12]; only they read what is divided
        int32_t rows = mem.imports[i].rows, cols = mem.imports[i].cols;
        assert_int_equal(split == KRN_SPLIT_INPUTS, (rows == 8 || rows == 3) && (cols == 16 || cols == 12));
    }
    assert_int_equal(n[KRN_SPLIT_INPUTS], 2 * 3);
    assert_int_equal(n[KRN_SPLIT_OUTPUTS], 2 * 5 + 1); // and the head
    assert_int_equal(n[KRN_SPLIT_NONE], 5 + 1 + 2);    // norms, embedding, the adapter's B
    eng_weights_free(w, &mem.backend);
}

static void test_same_type_is_not_copied(void **state)
{
    (void)state;
    struct eng_weights *w;
    write_model("BF16");
    assert_int_equal(load("bf16", "none", &w), 0);
    assert_int_equal(mem.n_copied, 0);
    eng_weights_free(w, &mem.backend);
}

static void test_refusals_say_why_in_one_sentence(void **state)
{
    (void)state;
    struct eng_weights *w = NULL;
    write_model("BF16");
    assert_int_equal(load("int8", "none", &w), ENG_EINVAL);
    assert_string_equal(err, "weights is \"int8\", expected auto, f32, bf16, fp8 or q4");
    mem.refused = KRN_Q4;
    assert_int_equal(load("q4", "none", &w), ENG_ENOTSUP);
    assert_string_equal(err, "the fake backend does not take bf16 weights as q4 (tensor "
                             "encoder.layers.0.self_attn.q_proj.weight): the device fell off the bus");
    mem.failing = true;
    assert_int_equal(load("q4", "none", &w), KRN_EDEVICE);
    assert_string_equal(err, "tensor encoder.embed_tokens.weight: the fake backend failed to take it: the device fell "
                             "off the bus");
    assert_null(w);
}

static void test_weights_that_do_not_fit_are_refused_before_the_first_is_taken(void **state)
{
    (void)state;
    struct eng_weights *w = NULL;
    write_model("BF16");
    mem.table = (struct krn_memory){.total = 1 << 20, .free = 2 * MADE_PARAMETERS + 99, .reserve = 100};
    assert_int_equal(load("auto", "none", &w), ENG_ENOMEM);
    assert_non_null(strstr(err, "the weights need 0.00 GiB, but 0.00 of the fake backend's 0.00 GiB are free"));
    assert_int_equal(mem.n_imports, 0);
    assert_null(w);
    mem.table.free++;
    assert_int_equal(load("auto", "none", &w), 0);
    assert_int_equal(w->parameters, MADE_PARAMETERS);
    eng_weights_free(w, &mem.backend);
    assert_int_equal(load("f32", "none", &w), ENG_ENOMEM); // twice as much
    char *text = json_with(made_config, "tie_word_embeddings", "true");
    folder_write_text(dir, "config.json", text);
    cJSON_free(text);
    refuse(ENG_EFORMAT, "diffusion_head.weight", "no part"); // counting does not hide what is left over
}

// A folder's weights in the CPU backend's memory: its table must agree with the files.
static void test_the_memory_table_is_the_checkpoint(void **state)
{
    (void)state;
    static const char *const kinds[] = {"BF16", "F32"};
    for (int i = 0; i < 2; i++) {
        struct krn_backend *cpu;
        struct krn_memory memory;
        struct eng_weights *w;
        write_model(kinds[i]);
        assert_int_equal(krn_open_cpu(1, 0, &cpu, err, sizeof err), 0);
        assert_int_equal(eng_weights_load(dir, "auto", "none", cpu, NULL, NULL, &w, err, sizeof err), 0);
        cpu->memory(cpu->ctx, &memory);
        assert_int_equal(memory.n_categories, 1);
        assert_string_equal(memory.categories[0].name, "weights");
        assert_int_equal(memory.categories[0].bytes, w->file_bytes);
        assert_int_equal(memory.categories[0].bytes, w->resident_bytes);
        eng_weights_free(w, cpu);
        cpu->memory(cpu->ctx, &memory);
        assert_int_equal(memory.categories[0].bytes, 0);
        cpu->close(cpu->ctx);
    }
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
    assert_int_equal(w->resident_bytes, mem.held);
    eng_weights_free(w, &mem.backend);
    // the head is wanted smaller than the embedding, so there are two
    assert_int_equal(load("q4", "none", &w), 0);
    assert_int_equal(w->embed.type, KRN_BF16);
    assert_int_equal(w->head.type, KRN_Q4);
    assert_int_equal(w->parameters, MADE_PARAMETERS - 24 * 8);
    assert_int_equal(w->resident_bytes, mem.held);
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

static void test_every_failing_import_is_reported(void **state)
{
    (void)state;
    struct eng_weights *w;
    write_model("BF16");
    write_adapter("linear_spec_lora", "BF16");
    for (int i = 0; i < 25; i++) {
        mem.n_imports_left = i;
        mem.n_imports = 0;
        assert_int_equal(load("f32", "auto", &w), ENG_ENOMEM);
        assert_non_null(strstr(err, "memory"));
        assert_int_equal(mem.n_live, 0);
    }
    mem.n_imports_left = 25;
    mem.n_imports = 0;
    assert_int_equal(load("f32", "auto", &w), 0);
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
        TEST(test_auto_maps_and_copies_nothing),
        TEST(test_every_role_gets_its_own_tensor),
        TEST(test_names_of_ports_are_accepted),
        TEST(test_each_role_gets_the_type_asked_for),
        TEST(test_each_role_says_how_it_may_be_divided),
        TEST(test_same_type_is_not_copied),
        TEST(test_refusals_say_why_in_one_sentence),
        TEST(test_the_memory_table_is_the_checkpoint),
        TEST(test_weights_that_do_not_fit_are_refused_before_the_first_is_taken),
        TEST(test_tied_head_is_the_embedding),
        TEST(test_each_missing_tensor_is_named),
        TEST(test_each_wrong_shape_is_named),
        TEST(test_leftovers_and_mixed_names_are_refused),
        TEST(test_shards_load),
        TEST(test_adapter_auto_none_and_folder),
        TEST(test_every_failing_import_is_reported),
        TEST(test_bad_config_or_file_stops_the_load),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
