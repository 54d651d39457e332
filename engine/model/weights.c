// Checkpoint folder -> the one resident copy of the weights.
//
// Owns which tensor plays which role (both naming schemes of MODEL.md 1), the checks that the checkpoint holds those
// tensors and nothing else, and in which type the backend is to have each. Norms keep their file's type and the
// adapter has what the backend makes of it: they are small and cost no time. Converting, packing and dividing are the
// backend's; a backend that reads host memory and has a tensor's type copies nothing. Runs on the thread that opens the
// engine.
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

struct owner {
    struct eng_safetensors *file;
    struct eng_adapter adapter;
};

// What the loading functions share; lives for one eng_weights_load.
struct loader {
    struct eng_weights *w;
    struct owner *own;
    struct krn_backend *backend;
    int type;           // enum krn_type wanted for the large matrices; -1: the backend's choice
    const char *prefix; // "encoder." or "model."
    int64_t type_bytes[KRN_N_TYPES];
    int64_t done_bytes; // of the file
    bool counting;      // nothing is taken yet: only planned_bytes grows
    int64_t planned_bytes;
    void (*progress)(void *user, const char *what, double fraction);
    void *user;
    char *err;
    size_t err_size;
};

#define FAIL(l, code, ...) eng_json_fail((l)->err, (l)->err_size, code, __VA_ARGS__)

// ---- types ----------------------------------------------------------------------------------------------------------

// What a tensor is to the model; decides its type and how devices may divide it.
enum role {
    ROLE_EMBED,
    ROLE_OUTPUTS,   // a linear divided by its outputs
    ROLE_INPUTS,    // a linear divided by its inputs
    ROLE_HEAD,      // by its outputs too, where it is not the embedding
    ROLE_ADAPTER_A, // by its inputs, as the weight it adds to
    ROLE_ADAPTER_B,
    ROLE_NORM,
};

static enum krn_split split_of(enum role role)
{
    static const enum krn_split splits[] = {
        [ROLE_EMBED] = KRN_SPLIT_NONE,   [ROLE_OUTPUTS] = KRN_SPLIT_OUTPUTS,  [ROLE_INPUTS] = KRN_SPLIT_INPUTS,
        [ROLE_HEAD] = KRN_SPLIT_OUTPUTS, [ROLE_ADAPTER_A] = KRN_SPLIT_INPUTS, [ROLE_ADAPTER_B] = KRN_SPLIT_NONE,
        [ROLE_NORM] = KRN_SPLIT_NONE,
    };
    return splits[role];
}

static enum krn_type wanted_type(const struct loader *l, enum role role, enum krn_type file_type)
{
    if (role == ROLE_NORM)
        return file_type;
    if (l->type < 0 || role >= ROLE_ADAPTER_A)
        return l->backend->weights_type(l->backend->ctx, file_type);
    bool quantised = l->type == KRN_FP8 || l->type == KRN_Q4;
    return quantised && role == ROLE_EMBED ? KRN_BF16 : (enum krn_type)l->type; // embed only copies rows
}

// ---- tensors --------------------------------------------------------------------------------------------------------

// The whole pages inside [data, data + bytes) need not stay in this process: their content was copied.
static void forget(const void *data, int64_t bytes)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t from = ((uintptr_t)data + page - 1) & ~(page - 1),
              to = ((uintptr_t)data + (uintptr_t)bytes) & ~(page - 1);
    if (from < to)
        (void)madvise((void *)from, to - from, MADV_DONTNEED);
}

static int import(struct loader *l, const char *name, enum role role, const struct krn_tensor *host,
                  struct krn_tensor *ret)
{
    struct krn_backend *b = l->backend;
    enum krn_type type = wanted_type(l, role, host->type);
    int64_t bytes = krn_matrix_bytes(type, host->rows, host->cols);
    if (l->counting) {
        l->planned_bytes += bytes;
        return 0;
    }
    int rc = b->import_weights(b->ctx, host, type, split_of(role), ret);
    if (rc == KRN_ENOTSUP)
        return FAIL(l, ENG_ENOTSUP, "the %s backend does not take %s weights as %s (tensor %s): %s", b->name,
                    krn_type_name(host->type), krn_type_name(type), name, b->error(b->ctx));
    if (rc == KRN_ENOMEM)
        return FAIL(l, ENG_ENOMEM, "no memory for tensor %s (%lld bytes)", name, (long long)bytes);
    if (rc != 0)
        return FAIL(l, rc, "tensor %s: the %s backend failed to take it: %s", name, b->name,
                    rc == KRN_EDEVICE ? b->error(b->ctx) : eng_strerror(rc));
    if (ret->data != host->data)
        forget(host->data, krn_matrix_bytes(host->type, host->rows, host->cols));
    l->w->resident_bytes += bytes;
    if (role < ROLE_ADAPTER_A)
        l->type_bytes[type] += bytes;
    return 0;
}

// Finds a tensor of the file and checks its shape. A norm is [cols]: rows 0.
static int find(struct loader *l, const char *name, int32_t rows, int32_t cols, struct krn_tensor *ret)
{
    bool norm = rows == 0;
    const struct eng_safetensor *t =
        l->counting ? eng_safetensors_find(l->own->file, name) : eng_safetensors_take(l->own->file, name);
    if (!t)
        return FAIL(l, ENG_EFORMAT, "the checkpoint has no tensor %s", name);
    if (norm && (t->n_dims != 1 || t->dims[0] != cols))
        return FAIL(l, ENG_EFORMAT, "%s: tensor %s is not [%d] as config.json says", t->file, name, cols);
    if (!norm && (t->n_dims != 2 || t->dims[0] != rows || t->dims[1] != cols))
        return FAIL(l, ENG_EFORMAT, "%s: tensor %s is not [%d, %d] as config.json says", t->file, name, rows, cols);
    *ret = (struct krn_tensor){.data = t->data, .type = t->type, .rows = norm ? 1 : rows, .cols = cols};
    return 0;
}

static int take(struct loader *l, const char *name, enum role role, int32_t rows, int32_t cols, struct krn_tensor *ret)
{
    struct krn_tensor host;
    int rc = find(l, name, rows, cols, &host);
    if (rc == 0)
        rc = import(l, name, role, &host, ret);
    if (rc != 0 || l->counting)
        return rc;
    l->w->parameters += (int64_t)host.rows * host.cols;
    l->done_bytes += krn_matrix_bytes(host.type, host.rows, host.cols);
    if (l->progress)
        l->progress(l->user, "weights", (double)l->done_bytes / (double)eng_safetensors_bytes(l->own->file));
    return 0;
}

static int take_layer(struct loader *l, int32_t i)
{
    const struct eng_config *c = &l->w->config;
    struct eng_layer *layer = &l->w->layers[i];
    int32_t q = c->n_heads * c->head_dim, kv = c->n_kv_heads * c->head_dim;
    const struct {
        const char *name;
        enum role role;
        int32_t rows, cols;
        struct krn_tensor *ret;
    } parts[] = {
        {"input_layernorm", ROLE_NORM, 0, c->hidden, &layer->input_norm},
        {"self_attn.q_proj", ROLE_OUTPUTS, q, c->hidden, &layer->q},
        {"self_attn.k_proj", ROLE_OUTPUTS, kv, c->hidden, &layer->k},
        {"self_attn.v_proj", ROLE_OUTPUTS, kv, c->hidden, &layer->v},
        {"self_attn.o_proj", ROLE_INPUTS, c->hidden, q, &layer->o},
        {"post_attention_layernorm", ROLE_NORM, 0, c->hidden, &layer->post_norm},
        {"mlp.gate_proj", ROLE_OUTPUTS, c->ff, c->hidden, &layer->gate},
        {"mlp.up_proj", ROLE_OUTPUTS, c->ff, c->hidden, &layer->up},
        {"mlp.down_proj", ROLE_INPUTS, c->hidden, c->ff, &layer->down},
    };
    for (size_t p = 0; p < sizeof parts / sizeof *parts; p++) {
        char name[96];
        snprintf(name, sizeof name, "%slayers.%d.%s.weight", l->prefix, i, parts[p].name);
        int rc = take(l, name, parts[p].role, parts[p].rows, parts[p].cols, parts[p].ret);
        if (rc != 0)
            return rc;
    }
    return 0;
}

// The embedding itself, unless the head's type is another: then the backend has both.
static int take_tied_head(struct loader *l, const char *name)
{
    struct eng_weights *w = l->w;
    const struct eng_safetensor *t = eng_safetensors_find(l->own->file, name);
    const struct krn_tensor host = {
        .data = t->data, .type = t->type, .rows = w->config.n_vocab, .cols = w->config.hidden};
    if (wanted_type(l, ROLE_HEAD, host.type) != wanted_type(l, ROLE_EMBED, host.type))
        return import(l, name, ROLE_HEAD, &host, &w->head);
    w->head = w->embed;
    return 0;
}

static int take_model(struct loader *l)
{
    struct eng_weights *w = l->w;
    const struct eng_config *c = &w->config;
    struct eng_safetensors *file = l->own->file;
    char name[64];
    int rc;
    bool model_prefix = !eng_safetensors_find(file, "encoder.embed_tokens.weight") &&
                        eng_safetensors_find(file, "model.embed_tokens.weight");
    l->prefix = model_prefix ? "model." : "encoder.";

    snprintf(name, sizeof name, "%sembed_tokens.weight", l->prefix);
    if ((rc = take(l, name, ROLE_EMBED, c->n_vocab, c->hidden, &w->embed)) != 0)
        return rc;
    if (c->tied_head && (rc = take_tied_head(l, name)) != 0)
        return rc;
    for (int32_t i = 0; i < c->n_layers; i++)
        if ((rc = take_layer(l, i)) != 0)
            return rc;
    snprintf(name, sizeof name, "%snorm.weight", l->prefix);
    if ((rc = take(l, name, ROLE_NORM, 0, c->hidden, &w->norm)) != 0)
        return rc;
    const char *head =
        !eng_safetensors_find(file, "diffusion_head.weight") && eng_safetensors_find(file, "lm_head.weight")
            ? "lm_head.weight"
            : "diffusion_head.weight";
    if (!c->tied_head && (rc = take(l, head, ROLE_HEAD, c->n_vocab, c->hidden, &w->head)) != 0)
        return rc;
    return 0;
}

static double gib(int64_t bytes)
{
    return (double)bytes / (double)(1 << 30);
}

// A device that cannot hold the weights says so before the first is copied.
static int check_room(struct loader *l)
{
    struct krn_memory m;
    l->backend->memory(l->backend->ctx, &m);
    if (!m.total)
        return 0;
    l->counting = true;
    int rc = take_model(l);
    l->counting = false;
    if (rc == 0 && l->planned_bytes > m.free - m.reserve)
        rc = FAIL(l, ENG_ENOMEM,
                  "the weights need %.2f GiB, but %.2f of the %s backend's %.2f GiB are free and %.2f "
                  "are kept back",
                  gib(l->planned_bytes), gib(m.free), l->backend->name, gib(m.total), gib(m.reserve));
    return rc;
}

static int take_all(struct loader *l)
{
    struct eng_weights *w = l->w;
    struct eng_safetensors *file = l->own->file;
    int rc = check_room(l);
    if (rc == 0)
        rc = take_model(l);
    if (rc != 0)
        return rc;
    const struct eng_safetensor *extra = eng_safetensors_unused(file);
    if (extra)
        return FAIL(l, ENG_EFORMAT, "%s: tensor %s belongs to no part of the model", extra->file, extra->name);
    for (enum krn_type type = 0; type < KRN_N_TYPES; type++)
        if (l->type_bytes[type] > l->type_bytes[w->type])
            w->type = type;
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
        const struct krn_adapter *from = &a->layers[i];
        struct krn_adapter *to = &w->layers[i].adapter_o;
        to->scale = from->scale;
        if ((rc = import(l, "of the adapter", ROLE_ADAPTER_A, &from->a, &to->a)) != 0 ||
            (rc = import(l, "of the adapter", ROLE_ADAPTER_B, &from->b, &to->b)) != 0)
            return rc;
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
    struct loader l = {.backend = backend,
                       .type = KRN_Q4, // the last type of weights
                       .progress = progress,
                       .user = user,
                       .err = err,
                       .err_size = err_size};
    char *lora = NULL;
    int rc;
    while (l.type >= 0 && strcmp(weights, krn_type_name((enum krn_type)l.type)) != 0)
        l.type--;
    if (l.type < 0 && strcmp(weights, "auto") != 0)
        return FAIL(&l, ENG_EINVAL, "weights is \"%s\", expected auto, f32, bf16, fp8 or q4", weights);

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

static void drop(struct krn_backend *b, struct krn_tensor *t)
{
    if (t->data)
        b->drop_weights(b->ctx, t);
}

static void drop_layer(struct krn_backend *b, struct eng_layer *l)
{
    struct krn_tensor *const parts[] = {&l->input_norm, &l->post_norm, &l->q,    &l->k,           &l->v,          &l->o,
                                        &l->gate,       &l->up,        &l->down, &l->adapter_o.a, &l->adapter_o.b};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        drop(b, parts[i]);
}

void eng_weights_free(struct eng_weights *w, struct krn_backend *backend)
{
    if (!w)
        return;
    struct owner *own = w->owner;
    if (w->head.data == w->embed.data)
        w->head.data = NULL;
    drop(backend, &w->head);
    drop(backend, &w->embed);
    drop(backend, &w->norm);
    for (int32_t i = 0; w->layers && i < w->config.n_layers; i++)
        drop_layer(backend, &w->layers[i]);
    eng_adapter_done(&own->adapter);
    eng_safetensors_close(own->file);
    free(own);
    free(w->layers);
    free(w);
}
