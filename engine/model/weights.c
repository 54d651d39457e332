// Checkpoint folder -> the one resident copy of the weights.
//
// Owns which tensor plays which role (both naming schemes of MODEL.md 1), the checks that the checkpoint holds those
// tensors and nothing else, and the optional conversion. "auto" copies nothing: the backend reads the mapped file. A
// conversion writes the large matrices in another type into the backend's memory; norms and the adapter keep their
// file's type, they are small and cost no time. Runs on the thread that opens the engine. Leaves out quantised types.
#include "model/weights.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/err.h"
#include "model/adapter.h"
#include "model/json.h"
#include "model/safetensors.h"

enum { CONVERT_BYTES = 4 << 20 }; // of converted values per upload

struct owner {
    struct eng_safetensors *file;
    struct eng_adapter adapter;
    void **buffers; // of the backend
    size_t n_buffers, cap_buffers;
};

// What the loading functions share; lives for one eng_weights_load.
struct loader {
    struct eng_weights *w;
    struct owner *own;
    struct krn_backend *backend;
    int convert;        // enum krn_type wanted for the large matrices, or -1
    const char *prefix; // "encoder." or "model."
    int64_t type_bytes[2];
    int32_t n_done, n_total;
    void (*progress)(void *user, const char *what, double fraction);
    void *user;
    char *err;
    size_t err_size;
};

#define FAIL(l, code, ...) eng_json_fail((l)->err, (l)->err_size, code, __VA_ARGS__)

// ---- conversion -----------------------------------------------------------------------------------------------------

static uint16_t bf16_round(uint32_t bits)
{
    if ((bits & 0x7fffffffu) > 0x7f800000u) // NaN stays NaN
        return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16); // to nearest, ties to even
}

static void convert(void *to, enum krn_type to_type, const void *from, size_t n)
{
    if (to_type == KRN_F32)
        for (size_t i = 0; i < n; i++)
            ((uint32_t *)to)[i] = (uint32_t)((const uint16_t *)from)[i] << 16;
    else
        for (size_t i = 0; i < n; i++)
            ((uint16_t *)to)[i] = bf16_round(((const uint32_t *)from)[i]);
}

// The whole pages inside [data, data + bytes) need not stay in this process: their content was copied.
static void forget(const void *data, int64_t bytes)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t from = ((uintptr_t)data + page - 1) & ~(page - 1),
              to = ((uintptr_t)data + (uintptr_t)bytes) & ~(page - 1);
    if (from < to)
        (void)madvise((void *)from, to - from, MADV_DONTNEED);
}

static int convert_tensor(struct loader *l, const struct eng_safetensor *t, enum krn_type type, struct krn_tensor *ret)
{
    struct krn_backend *b = l->backend;
    struct owner *own = l->own;
    size_t n = (size_t)ret->rows * (size_t)ret->cols, step = CONVERT_BYTES / krn_type_size(type);
    void *chunk = NULL;
    if (own->n_buffers == own->cap_buffers) {
        size_t cap = own->cap_buffers ? 2 * own->cap_buffers : 64;
        void **grown = realloc(own->buffers, cap * sizeof *grown);
        if (!grown)
            goto nomem;
        own->buffers = grown;
        own->cap_buffers = cap;
    }
    chunk = malloc(CONVERT_BYTES);
    char *dst = chunk ? b->alloc(b->ctx, n * krn_type_size(type), "weights") : NULL;
    if (!dst)
        goto nomem;
    own->buffers[own->n_buffers++] = dst;
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < n; i += step) {
        size_t m = n - i < step ? n - i : step;
        convert(chunk, type, (const char *)t->data + i * krn_type_size(t->type), m);
        rc = b->upload(b->ctx, dst + i * krn_type_size(type), chunk, m * krn_type_size(type));
        if (rc == 0)
            rc = b->wait(b->ctx); // the chunk is used again
    }
    free(chunk);
    if (rc != 0)
        return FAIL(l, rc, "%s: tensor %s: the backend failed to take it", t->file, t->name);
    forget(t->data, t->bytes);
    ret->data = dst;
    ret->type = type;
    return 0;
nomem:
    free(chunk);
    return FAIL(l, ENG_ENOMEM, "no memory to convert tensor %s (%zu bytes)", t->name, n * krn_type_size(type));
}

// ---- tensors --------------------------------------------------------------------------------------------------------

static int import(struct loader *l, const char *name, int64_t bytes, struct krn_tensor *t)
{
    t->data = l->backend->import_weights(l->backend->ctx, t->data, (size_t)bytes);
    if (!t->data)
        return FAIL(l, ENG_ENOMEM, "no memory for tensor %s (%lld bytes)", name, (long long)bytes);
    return 0;
}

// A norm is [cols]: rows 0.
static int take(struct loader *l, const char *name, int32_t rows, int32_t cols, struct krn_tensor *ret)
{
    bool norm = rows == 0;
    const struct eng_safetensor *t = eng_safetensors_take(l->own->file, name);
    if (!t)
        return FAIL(l, ENG_EFORMAT, "the checkpoint has no tensor %s", name);
    if (norm && (t->n_dims != 1 || t->dims[0] != cols))
        return FAIL(l, ENG_EFORMAT, "%s: tensor %s is not [%d] as config.json says", t->file, name, cols);
    if (!norm && (t->n_dims != 2 || t->dims[0] != rows || t->dims[1] != cols))
        return FAIL(l, ENG_EFORMAT, "%s: tensor %s is not [%d, %d] as config.json says", t->file, name, rows, cols);

    *ret = (struct krn_tensor){.data = t->data, .type = t->type, .rows = norm ? 1 : rows, .cols = cols};
    int rc = !norm && l->convert >= 0 && l->convert != (int)t->type
                 ? convert_tensor(l, t, (enum krn_type)l->convert, ret)
                 : import(l, name, t->bytes, ret);
    if (rc != 0)
        return rc;
    int64_t n = (int64_t)ret->rows * ret->cols, bytes = n * (int64_t)krn_type_size(ret->type);
    l->w->parameters += n;
    l->w->resident_bytes += bytes;
    if (!norm)
        l->type_bytes[ret->type] += bytes;
    l->n_done++;
    if (l->progress)
        l->progress(l->user, "weights", (double)l->n_done / l->n_total);
    return 0;
}

static int take_layer(struct loader *l, int32_t i)
{
    const struct eng_config *c = &l->w->config;
    struct eng_layer *layer = &l->w->layers[i];
    int32_t q = c->n_heads * c->head_dim, kv = c->n_kv_heads * c->head_dim;
    const struct {
        const char *name;
        int32_t rows, cols;
        struct krn_tensor *ret;
    } parts[] = {
        {"input_layernorm", 0, c->hidden, &layer->input_norm},
        {"self_attn.q_proj", q, c->hidden, &layer->q},
        {"self_attn.k_proj", kv, c->hidden, &layer->k},
        {"self_attn.v_proj", kv, c->hidden, &layer->v},
        {"self_attn.o_proj", c->hidden, q, &layer->o},
        {"post_attention_layernorm", 0, c->hidden, &layer->post_norm},
        {"mlp.gate_proj", c->ff, c->hidden, &layer->gate},
        {"mlp.up_proj", c->ff, c->hidden, &layer->up},
        {"mlp.down_proj", c->hidden, c->ff, &layer->down},
    };
    for (size_t p = 0; p < sizeof parts / sizeof *parts; p++) {
        char name[96];
        snprintf(name, sizeof name, "%slayers.%d.%s.weight", l->prefix, i, parts[p].name);
        int rc = take(l, name, parts[p].rows, parts[p].cols, parts[p].ret);
        if (rc != 0)
            return rc;
    }
    return 0;
}

static int take_all(struct loader *l)
{
    struct eng_weights *w = l->w;
    const struct eng_config *c = &w->config;
    struct eng_safetensors *file = l->own->file;
    char name[64];
    int rc;
    bool model_prefix = !eng_safetensors_find(file, "encoder.embed_tokens.weight") &&
                        eng_safetensors_find(file, "model.embed_tokens.weight");
    l->prefix = model_prefix ? "model." : "encoder.";
    l->n_total = 9 * c->n_layers + (c->tied_head ? 2 : 3);

    snprintf(name, sizeof name, "%sembed_tokens.weight", l->prefix);
    if ((rc = take(l, name, c->n_vocab, c->hidden, &w->embed)) != 0)
        return rc;
    for (int32_t i = 0; i < c->n_layers; i++)
        if ((rc = take_layer(l, i)) != 0)
            return rc;
    snprintf(name, sizeof name, "%snorm.weight", l->prefix);
    if ((rc = take(l, name, 0, c->hidden, &w->norm)) != 0)
        return rc;
    const char *head =
        !eng_safetensors_find(file, "diffusion_head.weight") && eng_safetensors_find(file, "lm_head.weight")
            ? "lm_head.weight"
            : "diffusion_head.weight";
    w->head = w->embed;
    if (!c->tied_head && (rc = take(l, head, c->n_vocab, c->hidden, &w->head)) != 0)
        return rc;
    const struct eng_safetensor *extra = eng_safetensors_unused(file);
    if (extra)
        return FAIL(l, ENG_EFORMAT, "%s: tensor %s belongs to no part of the model", extra->file, extra->name);
    w->type = l->type_bytes[KRN_F32] > l->type_bytes[KRN_BF16] ? KRN_F32 : KRN_BF16;
    w->file_bytes = eng_safetensors_bytes(file);
    return 0;
}

// ---- adapter --------------------------------------------------------------------------------------------------------

static int take_adapter(struct loader *l, const char *dir)
{
    struct eng_weights *w = l->w;
    struct eng_adapter *a = &l->own->adapter;
    int rc = eng_adapter_load(dir, &w->config, a, l->err, l->err_size);
    if (rc != 0)
        return rc;
    for (int32_t i = 0; i < w->config.n_layers; i++) {
        struct krn_adapter *to = &w->layers[i].adapter_o;
        *to = a->layers[i];
        int64_t a_bytes = (int64_t)to->a.rows * to->a.cols * (int64_t)krn_type_size(to->a.type);
        int64_t b_bytes = (int64_t)to->b.rows * to->b.cols * (int64_t)krn_type_size(to->b.type);
        if ((rc = import(l, "of the adapter", a_bytes, &to->a)) != 0 ||
            (rc = import(l, "of the adapter", b_bytes, &to->b)) != 0)
            return rc;
        w->resident_bytes += a_bytes + b_bytes;
    }
    w->file_bytes += eng_safetensors_bytes(a->file);
    w->has_adapter = true;
    w->block_adapter = a->block_rows;
    w->adapter_rank = a->rank;
    return 0;
}

// "auto": the folder beside the weights when it holds an adapter. *ret is freed with free, NULL for no adapter.
static int adapter_dir(struct loader *l, const char *dir, const char *adapter, char **ret)
{
    char *path = NULL, *probe = NULL;
    int n;
    *ret = NULL;
    if (strcmp(adapter, "none") == 0)
        return 0;
    if (strcmp(adapter, "auto") == 0)
        n = asprintf(&path, "%s/linear_spec_lora", dir);
    else
        n = (path = strdup(adapter)) ? 0 : -1;
    if (n >= 0 && strcmp(adapter, "auto") == 0) {
        n = asprintf(&probe, "%s/adapter_config.json", path);
        if (n >= 0 && access(probe, F_OK) != 0) {
            free(path);
            path = NULL;
        }
    }
    if (n < 0) {
        free(path);
        return FAIL(l, ENG_ENOMEM, "no memory for the adapter's path");
    }
    free(probe);
    *ret = path;
    return 0;
}

// ---- the whole ------------------------------------------------------------------------------------------------------

int eng_weights_load(const char *dir, const char *weights, const char *adapter, struct krn_backend *backend,
                     void (*progress)(void *user, const char *what, double fraction), void *user,
                     struct eng_weights **ret, char *err, size_t err_size)
{
    struct loader l = {
        .backend = backend, .convert = -1, .progress = progress, .user = user, .err = err, .err_size = err_size};
    char *lora = NULL;
    int rc;
    if (strcmp(weights, "f32") == 0)
        l.convert = KRN_F32;
    else if (strcmp(weights, "bf16") == 0)
        l.convert = KRN_BF16;
    else if (strcmp(weights, "auto") != 0)
        return FAIL(&l, ENG_EINVAL, "weights is \"%s\", expected \"auto\", \"f32\" or \"bf16\"", weights);

    struct eng_weights *w = calloc(1, sizeof *w);
    struct owner *own = calloc(1, sizeof *own);
    if (!w || !own) {
        free(w);
        free(own);
        return FAIL(&l, ENG_ENOMEM, "no memory for the weights");
    }
    w->owner = own;
    l.w = w;
    l.own = own;
    if ((rc = eng_config_load(dir, &w->config, err, err_size)) != 0)
        goto failed;
    w->layers = calloc((size_t)w->config.n_layers, sizeof *w->layers);
    if (!w->layers) {
        rc = FAIL(&l, ENG_ENOMEM, "no memory for the weights");
        goto failed;
    }
    if ((rc = eng_safetensors_open(dir, "model.safetensors", "model.safetensors.index.json", &own->file, err,
                                   err_size)) != 0 ||
        (rc = take_all(&l)) != 0 || (rc = adapter_dir(&l, dir, adapter, &lora)) != 0 ||
        (lora && (rc = take_adapter(&l, lora)) != 0))
        goto failed;
    free(lora);
    *ret = w;
    return 0;
failed:
    free(lora);
    eng_weights_free(w, backend);
    return rc;
}

void eng_weights_free(struct eng_weights *w, struct krn_backend *backend)
{
    if (!w)
        return;
    struct owner *own = w->owner;
    for (size_t i = 0; i < own->n_buffers; i++)
        backend->release(backend->ctx, own->buffers[i]);
    free(own->buffers);
    eng_adapter_done(&own->adapter);
    eng_safetensors_close(own->file);
    free(own);
    free(w->layers);
    free(w);
}
