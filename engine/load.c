// Opening a checkpoint folder: backend, weights, tokenizer, chat template, passes and KV store; then the public text
// functions over them. Runs on the caller's thread; after eng_open everything here is constant.
#include "core.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "calibrate.h"
#include "kv_plan.h"
#include "model/weights.h"
#include "text/chat.h"
#include "text/detok.h"
#include "text/fail.h"
#include "text/tokenizer.h"
#include "warm.h"

// What the engine's parts are made of.
struct loaded {
    struct krn_backend *backend;
    struct eng_weights *weights;
    struct eng_tokenizer *tokenizer;
    struct eng_chat *chat;
    char reason[300]; // why the backend is not the one that "auto" prefers
};

static void release(void *owner)
{
    struct loaded *l = owner;
    if (!l)
        return;
    eng_chat_free(l->chat);
    eng_tokenizer_free(l->tokenizer);
    eng_weights_free(l->weights, l->backend);
    if (l->backend)
        l->backend->close(l->backend->ctx);
    free(l);
}

static int open_cuda(const struct eng_options *o, struct loaded *l, char *err, size_t err_size)
{
    const struct krn_cuda_options options = {
        .module = o->cuda_module && *o->cuda_module ? o->cuda_module : NULL,
        .device = o->device,
        .tensor_parallel = o->tensor_parallel,
        .deterministic = o->deterministic,
    };
    return krn_open_cuda(&options, &l->backend, err, err_size);
}

static int open_backend(const struct eng_options *o, struct loaded *l, char *err, size_t err_size)
{
    bool automatic = !strcmp(o->backend, "auto");
    if (!automatic && strcmp(o->backend, "cpu") && strcmp(o->backend, "cuda"))
        return fail(ENG_EINVAL, err, err_size, "backend is \"%s\", expected auto, cpu or cuda", o->backend);
    if (o->threads < 0)
        return fail(ENG_EINVAL, err, err_size, "threads must be at least 0, not %d", o->threads);
    int32_t gpus = o->tensor_parallel;
    if (gpus != 1 && gpus != 2 && gpus != 4 && gpus != 8)
        return fail(ENG_EINVAL, err, err_size, "tensor_parallel must be 1, 2, 4 or 8, not %d", gpus);
    if (!strcmp(o->backend, "cuda"))
        return open_cuda(o, l, err, err_size);
    if (automatic && open_cuda(o, l, l->reason, sizeof l->reason) == 0) {
        l->reason[0] = '\0';
        return 0;
    }
    if (gpus > 1)
        return fail(ENG_ENOTSUP, err, err_size, "tensor_parallel %d needs the cuda backend%s%s", gpus,
                    automatic ? ", which cannot be had: " : "", l->reason);
    return krn_open_cpu(o->threads, o->cpu_mask, &l->backend, err, err_size);
}

static int load_text(const struct eng_options *o, struct loaded *l, char *err, size_t err_size)
{
    char *path;
    if (asprintf(&path, "%s/tokenizer.json", o->model_dir) < 0)
        return fail(ENG_ENOMEM, err, err_size, "out of memory");
    int rc = eng_tokenizer_load(path, &l->tokenizer, err, err_size);
    free(path);
    if (rc)
        return rc;
    if (eng_tokenizer_n_vocab(l->tokenizer) > l->weights->config.n_vocab)
        return fail(ENG_EFORMAT, err, err_size, "tokenizer.json has %d tokens but the model only %d",
                    eng_tokenizer_n_vocab(l->tokenizer), l->weights->config.n_vocab);
    return eng_chat_load(o->model_dir, l->tokenizer, &l->chat, err, err_size);
}

// ---- open -----------------------------------------------------------------------------------------------------------

static void fill_memory(const struct krn_backend *b, struct eng_memory *ret)
{
    struct krn_memory m;
    b->memory(b->ctx, &m);
    ret->total = m.total;
    ret->free = m.free;
    for (int32_t i = 0; i < m.n_categories && i < ENG_MEMORY_CATEGORIES; i++) {
        ret->categories[i].name = m.categories[i].name;
        ret->categories[i].bytes = m.categories[i].bytes;
        ret->n_categories++;
    }
}

static int64_t bytes_of(const struct krn_tensor *t)
{
    return krn_matrix_bytes(t->type, t->rows, t->cols);
}

// What a pass reads, for whoever compares its time with the memory's.
static void count_step(const struct loaded *l, struct eng_parts *parts)
{
    const struct eng_weights *w = l->weights;
    struct eng_info *info = &parts->info;
    for (int32_t i = 0; w->has_adapter && i < w->config.n_layers; i++)
        info->adapter_bytes += bytes_of(&w->layers[i].adapter_o.a) + bytes_of(&w->layers[i].adapter_o.b);
    bool tied = w->embed.data == w->head.data;
    info->step_bytes = w->resident_bytes - info->adapter_bytes - (tied ? 0 : bytes_of(&w->embed));
    info->embed_row_bytes = (int32_t)krn_matrix_bytes(w->embed.type, 1, w->embed.cols);
    info->kv_token_bytes =
        (int32_t)(eng_forward_page_bytes(l->backend, w, info->page_size, eng_forward_kv_type(&parts->model)) /
                  info->page_size);
}

static void fill_parts(const struct loaded *l, struct eng_parts *parts)
{
    const struct eng_weights *w = l->weights;
    struct eng_info *info = &parts->info;
    parts->tokenizer = l->tokenizer;
    parts->chat = l->chat;
    parts->eos_ids = w->config.eos_ids;
    parts->n_eos = w->config.n_eos;
    info->backend = l->backend->name;
    info->backend_description = l->backend->description;
    info->backend_reason = l->reason;
    info->weights_type = krn_type_name(w->type);
    info->kv_type = krn_type_name(eng_forward_kv_type(&parts->model));
    info->weights_bytes = w->resident_bytes;
    info->file_bytes = w->file_bytes;
    info->parameters = w->parameters;
    info->n_layers = w->config.n_layers;
    info->hidden = w->config.hidden;
    info->has_chat_template = eng_chat_has_template(l->chat);
    fill_memory(l->backend, &info->memory);
    count_step(l, parts);
}

static int warm(const struct eng_options *o, const struct eng_model *model, int32_t n_pages, char *err, size_t err_size)
{
    const struct eng_warm_limits limits = {o->max_step_rows, o->max_sequences, n_pages, o->page_size};
    int rc = eng_model_warm(model, &limits, o->progress, o->user);
    return rc ? fail(rc, err, err_size, "the first passes failed: %s", model->error(model->ctx, rc)) : 0;
}

// The passes' memory first: the KV store takes what is left.
static int open_forward(const struct eng_options *o, struct loaded *l, struct eng_parts *parts, char *err,
                        size_t err_size)
{
    struct eng_kv_plan plan;
    int32_t n_pages = 0, context = 0;
    int rc = eng_kv_plan_begin(o, l->backend, l->weights, &plan, err, err_size);
    if (rc)
        return rc;
    const struct eng_forward_sizes sizes = {
        .max_rows = o->max_step_rows,
        .max_segments = o->max_sequences,
        .page_size = o->page_size,
        .max_pages = plan.most_pages ? plan.most_pages : 1, // none is refused below
        .kv_type = plan.type,
    };
    rc = eng_forward_open(l->backend, l->weights, &sizes, &parts->model, err, err_size);
    if (rc)
        return rc;
    rc = eng_kv_plan_end(o, l->backend, &plan, &n_pages, &context, err, err_size);
    if (!rc)
        rc = eng_forward_open_kv(&parts->model, n_pages, err, err_size);
    if (!rc && parts->model.async && !o->cold)
        rc = warm(o, &parts->model, n_pages, err, err_size);
    if (rc) {
        parts->model.close(parts->model.ctx);
        return rc;
    }
    parts->info.n_pages = n_pages;
    parts->info.page_size = o->page_size;
    parts->info.max_context = context;
    return 0;
}

int eng_load(const struct eng_options *options, struct eng_parts *ret, char *err, size_t err_size)
{
    const struct eng_options *o = options;
    err_size = err ? err_size : 0;
    if (!o->model_dir || !o->backend || !o->weights || !o->adapter || !o->kv_type)
        return fail(ENG_EINVAL, err, err_size, "model_dir, backend, weights, kv_type and adapter must be given");
    if (o->max_step_rows < ENG_MAX_BLOCK || o->max_step_rows > 1 << 20)
        return fail(ENG_EINVAL, err, err_size, "max_step_rows must be between %d and 1048576, not %d", ENG_MAX_BLOCK,
                    o->max_step_rows);
    struct loaded *l = calloc(1, sizeof *l);
    if (!l)
        return fail(ENG_ENOMEM, err, err_size, "out of memory");
    struct eng_parts parts = {.release = release, .owner = l};
    int rc = open_backend(o, l, err, err_size);
    if (!rc)
        rc = eng_weights_load(o->model_dir, o->weights, o->adapter, l->backend, o->progress, o->user, &l->weights, err,
                              err_size);
    if (!rc)
        rc = load_text(o, l, err, err_size);
    if (!rc)
        rc = open_forward(o, l, &parts, err, err_size);
    if (rc) {
        release(l);
        return rc;
    }
    fill_parts(l, &parts);
    *ret = parts;
    return 0;
}

int eng_open(const struct eng_options *options, struct eng_engine **ret_engine, char *err, size_t err_size)
{
    struct eng_parts parts;
    err_size = err ? err_size : 0;
    int rc = eng_load(options, &parts, err, err_size);
    if (rc)
        return rc;
    rc = eng_cost_open(options, &parts, err, err_size);
    if (!rc)
        rc = eng_open_model(options, &parts, ret_engine, err, err_size);
    if (rc) {
        parts.model.close(parts.model.ctx);
        release(parts.owner);
    }
    return rc;
}

// ---- text -----------------------------------------------------------------------------------------------------------

int eng_encode(const struct eng_engine *e, const char *text, size_t len, bool parse_special, int32_t **ret_ids,
               size_t *ret_n)
{
    return eng_tokenizer_encode(e->parts.tokenizer, text, len, parse_special ? ENG_TOKENIZER_PARSE_SPECIAL : 0, ret_ids,
                                ret_n);
}

int eng_decode(const struct eng_engine *e, const int32_t *ids, size_t n, bool skip_special, char **ret_text,
               size_t *ret_len)
{
    struct eng_buf text = {0};
    int rc = eng_detok_all(e->parts.tokenizer, ids, n, skip_special, &text);
    if (!rc)
        rc = eng_buf_append(&text, "", 0); // so that there is a text even of nothing
    if (rc) {
        eng_buf_free(&text);
        return rc;
    }
    *ret_len = text.len;
    *ret_text = eng_buf_take(&text);
    return 0;
}

const char *eng_token_bytes(const struct eng_engine *e, int32_t id, size_t *ret_len)
{
    return eng_tokenizer_piece(e->parts.tokenizer, id, ret_len);
}

int eng_chat(const struct eng_engine *e, const struct cJSON *messages, const struct cJSON *tools,
             bool add_generation_prompt, bool continue_final_message, const struct cJSON *kwargs, int32_t **ret_ids,
             size_t *ret_n, char *err, size_t err_size)
{
    return eng_chat_render(e->parts.chat, messages, tools, add_generation_prompt, continue_final_message, kwargs,
                           ret_ids, ret_n, err, err_size);
}
