// bench serve: what is asked. Request i is a function of the seed and i alone, so that a run can be repeated and no two
// requests of a run share a prompt (which the prefix cache would answer); a second run on the same server wants another
// seed. Random prompts ask for a fixed number of tokens and forbid an early end; a dataset's may end when they like.
#include "bench_work.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "json.h"

// SplitMix64 (Steele, Lea, Flood, 2014).
uint64_t srv_bench_random(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

double srv_bench_random_unit(uint64_t *state)
{
    return ((double)(srv_bench_random(state) >> 11) + 0.5) * 0x1p-53;
}

// ---- the dataset ----------------------------------------------------------------------------------------------------

static int add_item(struct srv_bench_work *w, cJSON *item)
{
    if (!(w->n_items & (w->n_items - 1))) { // a power of two, or none: full
        cJSON **items = realloc(w->items, (w->n_items ? 2 * w->n_items : 1) * sizeof(cJSON *));
        if (!items)
            return -1;
        w->items = items;
    }
    w->items[w->n_items++] = item;
    return 0;
}

static int read_line(struct srv_bench_work *w, const char *path, int number, const char *text, size_t n, char *err,
                     size_t err_size)
{
    cJSON *item = NULL;
    struct srv_error e;
    int64_t max_tokens;
    if (srv_json_parse(text, n, &item, &e)) {
        snprintf(err, err_size, "%s:%d: %.300s", path, number, e.message);
        return -1;
    }
    const cJSON *prompt = srv_json_get(item, "prompt"), *messages = srv_json_get(item, "messages");
    bool right = prompt ? !messages && (cJSON_IsString(prompt) || cJSON_IsArray(prompt)) : cJSON_IsArray(messages);
    if (right && srv_json_int(item, "", "max_tokens", 1, 1 << 24, &max_tokens, &e) >= 0 && !add_item(w, item))
        return 0;
    snprintf(err, err_size,
             "%s:%d: expected either a prompt (text or token ids) or messages, and max_tokens, if there, a number "
             "above 0",
             path, number);
    cJSON_Delete(item);
    return -1;
}

static int read_dataset(struct srv_bench_work *w, const char *path, char *err, size_t err_size)
{
    FILE *f = fopen(path, "r");
    if (!f) {
        snprintf(err, err_size, "dataset: '%s' cannot be read (%s)", path, strerror(errno));
        return -1;
    }
    char *line = NULL;
    size_t cap = 0;
    ssize_t n;
    int status = 0;
    for (int number = 1; !status && (n = getline(&line, &cap, f)) >= 0; number++) {
        while (n && (line[n - 1] == '\n' || line[n - 1] == '\r'))
            line[--n] = 0;
        if (n)
            status = read_line(w, path, number, line, (size_t)n, err, err_size);
    }
    free(line);
    fclose(f);
    if (!status && !w->n_items) {
        snprintf(err, err_size, "dataset: '%s' has no lines", path);
        status = -1;
    }
    return status;
}

int srv_bench_work_open(struct srv_bench_work *w, const struct srv_config *c, char *err, size_t err_size)
{
    *w = (struct srv_bench_work){.config = c, .n_vocab = c->vocab, .seed = (uint64_t)c->seed};
    if (*c->served_model_name && !(w->model = strdup(c->served_model_name))) {
        snprintf(err, err_size, "out of memory");
        return -1;
    }
    return *c->dataset ? read_dataset(w, c->dataset, err, err_size) : 0;
}

void srv_bench_work_done(struct srv_bench_work *w)
{
    for (size_t i = 0; i < w->n_items; i++)
        cJSON_Delete(w->items[i]);
    free(w->items);
    free(w->model);
    *w = (struct srv_bench_work){0};
}

// ---- the model ------------------------------------------------------------------------------------------------------

// The entry of that name; without a name the first.
static const cJSON *find_model(const cJSON *answer, const char *name)
{
    const cJSON *data = srv_json_get(answer, "data"), *entry;
    cJSON_ArrayForEach(entry, data)
    {
        const cJSON *id = srv_json_get(entry, "id");
        if (cJSON_IsString(id) && (!name || !strcmp(id->valuestring, name)))
            return entry;
    }
    return NULL;
}

int srv_bench_work_models(struct srv_bench_work *w, const char *answer, size_t n, char *err, size_t err_size)
{
    cJSON *tree = NULL;
    struct srv_error e;
    if (srv_json_parse(answer, n, &tree, &e)) {
        snprintf(err, err_size, "the answer to GET /v1/models is not understood: %.200s", e.message);
        return -1;
    }
    int status = -1;
    const cJSON *model = find_model(tree, w->model);
    int64_t n_vocab = 0;
    if (!model)
        snprintf(err, err_size, "the server does not have the model '%s'", w->model ? w->model : "(any)");
    else if (!w->model && !(w->model = strdup(srv_json_get(model, "id")->valuestring)))
        snprintf(err, err_size, "out of memory");
    else if (srv_json_int(model, "", "vocab_size", 1, INT32_MAX, &n_vocab, &e) < 0)
        snprintf(err, err_size, "the answer to GET /v1/models is not understood: %.200s", e.message);
    else if (!w->n_vocab && !w->n_items && !n_vocab)
        snprintf(err, err_size, "the server does not say how large its vocabulary is: --vocab is needed");
    else
        status = 0;
    if (!w->n_vocab)
        w->n_vocab = n_vocab;
    cJSON_Delete(tree);
    return status;
}

// ---- a request ------------------------------------------------------------------------------------------------------

static void put_ids(struct srv_buf *out, uint64_t *state, int64_t n, int64_t n_vocab)
{
    srv_buf_puts(out, "[");
    for (int64_t k = 0; k < n; k++)
        srv_buf_printf(out, "%s%d", k ? "," : "",
                       (int)((srv_bench_random(state) >> 32) * (uint64_t)n_vocab >> 32)); // both below 2^32
    srv_buf_puts(out, "]");
}

static void put_tree(struct srv_buf *out, const cJSON *tree)
{
    char *text = cJSON_PrintUnformatted(tree);
    if (text)
        srv_buf_puts(out, text);
    else
        out->failed = true;
    cJSON_free(text);
}

// A setting that was left alone is left to the server.
static bool chosen(const struct srv_config *c, const char *key)
{
    return c->origins[srv_config_find(key)] != SRV_FROM_DEFAULT;
}

const char *srv_bench_work_request(const struct srv_bench_work *w, uint64_t i, struct srv_buf *ret_body,
                                   struct srv_bench_expect *ret_expect)
{
    const struct srv_config *c = w->config;
    const cJSON *item = w->n_items ? w->items[i % w->n_items] : NULL,
                *prompt = item ? srv_json_get(item, "prompt") : NULL;
    uint64_t state = w->seed * 0x9e3779b97f4a7c15u ^ i;
    int64_t max_tokens = c->output_tokens;
    struct srv_error e;
    // Far apart: without this, the prompts of seed s + 1 would be those of seed s moved by one token.
    state = srv_bench_random(&state);
    *ret_expect = (struct srv_bench_expect){.chat = item && !prompt};
    srv_buf_puts(ret_body, "{\"model\":");
    srv_buf_jsonz(ret_body, w->model);
    if (!item) {
        srv_buf_puts(ret_body, ",\"prompt\":");
        put_ids(ret_body, &state, c->prompt_tokens, w->n_vocab);
        srv_buf_puts(ret_body, ",\"ignore_eos\":true");
        ret_expect->prompt_tokens = c->prompt_tokens;
        ret_expect->output_tokens = max_tokens;
    } else {
        srv_buf_puts(ret_body, prompt ? ",\"prompt\":" : ",\"messages\":");
        put_tree(ret_body, prompt ? prompt : srv_json_get(item, "messages"));
        srv_json_int(item, "", "max_tokens", 1, 1 << 24, &max_tokens, &e);
    }
    srv_buf_printf(ret_body,
                   ",\"max_tokens\":%lld,\"temperature\":%.15g,\"seed\":%llu,\"mode\":\"%s\",\"stream\":true,"
                   "\"stream_options\":{\"include_usage\":true},\"return_token_ids\":true",
                   (long long)max_tokens, c->temperature, (unsigned long long)(srv_bench_random(&state) >> 11),
                   c->mode);
    if (chosen(c, "block_length"))
        srv_buf_printf(ret_body, ",\"block_length\":%lld", (long long)c->block_length);
    if (chosen(c, "threshold"))
        srv_buf_printf(ret_body, ",\"threshold\":%.15g", c->threshold);
    srv_buf_puts(ret_body, "}");
    return ret_expect->chat ? "/v1/chat/completions" : "/v1/completions";
}
