// Opening a checkpoint folder: backend, weights, tokenizer, chat template, and how much KV memory there is; then the
// public text functions over them. Runs on the caller's thread; after eng_open everything here is constant.
#include "core.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/err.h"
#include "model/weights.h"
#include "text/chat.h"
#include "text/detok.h"
#include "text/fail.h"
#include "text/tokenizer.h"

// What the engine's parts are made of.
struct loaded {
    struct krn_backend *backend;
    struct eng_weights *weights;
    struct eng_tokenizer *tokenizer;
    struct eng_chat *chat;
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

static int open_backend(const struct eng_options *o, struct loaded *l, char *err, size_t err_size)
{
    if (strcmp(o->backend, "auto") && strcmp(o->backend, "cpu"))
        return fail(ENG_ENOTSUP, err, err_size, "backend \"%s\" is not in this build; it has auto and cpu", o->backend);
    if (o->threads < 0)
        return fail(ENG_EINVAL, err, err_size, "threads must be at least 0, not %d", o->threads);
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

// ---- memory ---------------------------------------------------------------------------------------------------------

static int64_t quarter_of_machine(void)
{
    return (int64_t)sysconf(_SC_PHYS_PAGES) * (int64_t)sysconf(_SC_PAGESIZE) / 4;
}

// How many pages there are, and the longest context they can hold.
static int size_kv(const struct eng_options *o, const struct eng_weights *w, struct eng_info *info, char *err,
                   size_t err_size)
{
    if (o->page_size < 1 || o->page_size > 256)
        return fail(ENG_EINVAL, err, err_size, "page_size must be between 1 and 256, not %d", o->page_size);
    if (o->max_sequences < 1 || o->max_sequences > 1024)
        return fail(ENG_EINVAL, err, err_size, "max_sequences must be between 1 and 1024, not %d", o->max_sequences);
    if (o->max_context < 0 || o->max_context > w->config.max_positions)
        return fail(ENG_EINVAL, err, err_size, "max_context must be between 2 and the model's %d, not %d",
                    w->config.max_positions, o->max_context);
    if (o->kv_memory < 0)
        return fail(ENG_EINVAL, err, err_size, "kv_memory must be at least 0");
    int32_t context = o->max_context ? o->max_context : w->config.max_positions;
    int64_t page_bytes = eng_forward_page_bytes(w, o->page_size);
    int64_t full = (int64_t)o->max_sequences * ((context + o->page_size - 1) / o->page_size);
    int64_t memory = o->kv_memory ? o->kv_memory : quarter_of_machine();
    int64_t n_pages = memory / page_bytes < full ? memory / page_bytes : full;
    if (n_pages > INT32_MAX / o->page_size)
        n_pages = INT32_MAX / o->page_size;
    if (n_pages * o->page_size < 2)
        return fail(ENG_EINVAL, err, err_size,
                    "kv_memory of %lld bytes holds no context: a page of %d tokens needs %lld", (long long)memory,
                    o->page_size, (long long)page_bytes);
    if (o->max_context && n_pages * o->page_size < o->max_context)
        return fail(ENG_EINVAL, err, err_size,
                    "max_context %d does not fit the KV memory of %lld bytes, which holds %lld tokens", o->max_context,
                    (long long)memory, (long long)(n_pages * o->page_size));
    info->n_pages = (int32_t)n_pages;
    info->page_size = o->page_size;
    info->max_context = n_pages * o->page_size < context ? (int32_t)(n_pages * o->page_size) : context;
    return 0;
}

// ---- open -----------------------------------------------------------------------------------------------------------

static void fill_parts(const struct loaded *l, struct eng_parts *parts)
{
    const struct eng_weights *w = l->weights;
    parts->tokenizer = l->tokenizer;
    parts->chat = l->chat;
    parts->eos_ids = w->config.eos_ids;
    parts->n_eos = w->config.n_eos;
    parts->info.backend = l->backend->name;
    parts->info.backend_description = l->backend->description;
    parts->info.weights_type = w->type == KRN_BF16 ? "bf16" : "f32";
    parts->info.weights_bytes = w->resident_bytes;
    parts->info.file_bytes = w->file_bytes;
    parts->info.parameters = w->parameters;
    parts->info.n_layers = w->config.n_layers;
    parts->info.hidden = w->config.hidden;
    parts->info.has_chat_template = eng_chat_has_template(l->chat);
}

int eng_open(const struct eng_options *options, struct eng_engine **ret_engine, char *err, size_t err_size)
{
    const struct eng_options *o = options;
    err_size = err ? err_size : 0;
    if (!o->model_dir || !o->backend || !o->weights || !o->adapter)
        return fail(ENG_EINVAL, err, err_size, "model_dir, backend, weights and adapter must be given");
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
        rc = size_kv(o, l->weights, &parts.info, err, err_size);
    if (!rc)
        rc = eng_forward_open(l->backend, l->weights, o->max_step_rows, parts.info.n_pages, o->page_size, &parts.model,
                              err, err_size);
    if (rc) {
        release(l);
        return rc;
    }
    fill_parts(l, &parts);
    rc = eng_open_model(o, &parts, ret_engine, err, err_size);
    if (rc) {
        parts.model.close(parts.model.ctx);
        release(l);
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
