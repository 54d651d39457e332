// 2 PARSE: POST /v1/completions: prompts as text, ids or lists of either; n choices of each; the old columnar
// log-probabilities.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api.h"
#include "api_common.h"

enum { MAX_PROMPTS = 1024 };
enum { TOKENS, LOGPROBS, TOP, OFFSETS }; // columns of choice.logprobs

// ---- prompts --------------------------------------------------------------------------------------------------------

static int read_text(struct srv_gen *g, struct srv_prompt *p, const char *text, const char *param, struct srv_error *e)
{
    if (srv_api_encode(g->server, text, param, &p->ids, &p->n, e))
        return -1;
    if (g->echo) {
        p->text_len = strlen(text);
        p->text = strdup(text);
    }
    return g->echo && !p->text ? srv_error_status(e, 500, "server_error", NULL, "Out of memory.") : 0;
}

static int read_ids(struct srv_gen *g, struct srv_prompt *p, const cJSON *list, const char *param, struct srv_error *e)
{
    size_t n = (size_t)cJSON_GetArraySize(list);
    if (n >= (size_t)g->server->info->max_context)
        return srv_api_too_long(g->server, "prompt", n, e);
    p->ids = calloc(n + 1, sizeof *p->ids);
    if (!p->ids)
        return srv_error_status(e, 500, "server_error", NULL, "Out of memory.");
    const cJSON *item;
    cJSON_ArrayForEach(item, list)
    {
        int64_t id = -1;
        if (!srv_json_exact(item, &id) || id < 0 || id >= g->server->info->n_vocab)
            return srv_error_set(e, "invalid_value", param,
                                 "Invalid value for '%s[%zu]': expected a token id from 0 to %d.", param, p->n,
                                 (int)g->server->info->n_vocab - 1);
        p->ids[p->n++] = (int32_t)id;
    }
    if (g->echo && eng_decode(g->server->engine, p->ids, p->n, g->params.skip_special, &p->text, &p->text_len))
        return srv_error_status(e, 500, "server_error", NULL, "The prompt could not be decoded.");
    return 0;
}

static int read_one(struct srv_gen *g, struct srv_prompt *p, const cJSON *item, const char *param, struct srv_error *e)
{
    if (cJSON_IsString(item))
        return read_text(g, p, item->valuestring, param, e);
    if (cJSON_IsArray(item))
        return read_ids(g, p, item, param, e);
    return srv_error_set(e, "invalid_type", param,
                         "Invalid type for '%s': expected a string or an array of token ids, but got %s instead.",
                         param, srv_json_kind(item));
}

static int parse_prompts(struct srv_gen *g, struct srv_error *e)
{
    const cJSON *prompt = srv_json_get(g->body, "prompt");
    if (!prompt)
        return srv_error_set(e, "missing_required_parameter", "prompt", "Missing required parameter: 'prompt'.");
    bool list = cJSON_IsArray(prompt) && prompt->child && !cJSON_IsNumber(prompt->child);
    int n = list ? cJSON_GetArraySize(prompt) : 1;
    if (n > MAX_PROMPTS || (cJSON_IsArray(prompt) && !prompt->child))
        return srv_error_set(e, "invalid_value", "prompt", "Invalid value for 'prompt': expected 1 to %d prompts.",
                             MAX_PROMPTS);
    g->prompts = calloc((size_t)n, sizeof *g->prompts);
    if (!g->prompts)
        return srv_error_status(e, 500, "server_error", NULL, "Out of memory.");
    g->n_prompts = n;
    if (!list)
        return read_one(g, &g->prompts[0], prompt, "prompt", e);
    int i = 0;
    const cJSON *item;
    cJSON_ArrayForEach(item, prompt)
    {
        char param[32];
        snprintf(param, sizeof param, "prompt[%d]", i);
        if (read_one(g, &g->prompts[i++], item, param, e))
            return -1;
    }
    return 0;
}

static const struct srv_prompt *prompt_of(const struct srv_choice *c)
{
    const struct srv_gen *g = c->stream->data;
    return &g->prompts[c->index / g->n];
}

// ---- log-probabilities ----------------------------------------------------------------------------------------------

// A token as a JSON string; what is not UTF-8 alone is written as OpenAI does, "bytes:\xe2\x82".
static void token_text(struct srv_buf *out, const struct eng_engine *engine, int32_t id)
{
    size_t n = 0;
    const char *bytes = eng_token_bytes(engine, id, &n);
    if (!bytes || srv_utf8_valid(bytes, n)) {
        srv_buf_json(out, bytes ? bytes : "", bytes ? n : 0);
        return;
    }
    srv_buf_puts(out, "\"bytes:");
    for (size_t i = 0; i < n; i++)
        srv_buf_printf(out, "\\\\x%02x", (unsigned char)bytes[i]);
    srv_buf_append(out, "\"", 1);
}

static void gather_top(struct srv_buf *out, const struct srv_gen *g, const struct eng_token *t)
{
    bool chosen_there = false;
    int32_t n = 0;
    srv_buf_append(out, "{", 1);
    for (; n < t->n_top && n < g->params.n_top; n++) {
        if (n)
            srv_buf_append(out, ",", 1);
        token_text(out, g->server->engine, t->top_ids[n]);
        srv_buf_append(out, ":", 1);
        srv_api_logprob(out, t->top_logprobs[n]);
        chosen_there |= t->top_ids[n] == t->id;
    }
    if (!chosen_there) {
        if (n)
            srv_buf_append(out, ",", 1);
        token_text(out, g->server->engine, t->id);
        srv_buf_append(out, ":", 1);
        srv_api_logprob(out, t->logprob);
    }
    srv_buf_append(out, "}", 1);
}

// text_offset counts characters of the choice's whole text.
static void gather_logprobs(struct srv_choice *c, const struct eng_event *ev)
{
    const struct srv_gen *g = c->stream->data;
    if (g->params.n_top >= 0) {
        size_t from = 0;
        for (int32_t i = 0; i < ev->n_tokens; i++) {
            const struct eng_token *t = &ev->tokens[i];
            if (c->logprobs[TOKENS].len)
                for (int k = 0; k < 4; k++)
                    srv_buf_append(&c->logprobs[k], ",", 1);
            token_text(&c->logprobs[TOKENS], g->server->engine, t->id);
            srv_api_logprob(&c->logprobs[LOGPROBS], t->logprob);
            if (g->params.n_top > 0)
                gather_top(&c->logprobs[TOP], g, t);
            else
                srv_buf_puts(&c->logprobs[TOP], "null");
            srv_buf_printf(&c->logprobs[OFFSETS], "%zu", c->chars + srv_utf8_count(ev->text, from));
            from = t->text_end < ev->text_len ? t->text_end : ev->text_len;
        }
    }
    c->chars += srv_utf8_count(ev->text, ev->text_len);
}

static void append_logprobs(struct srv_buf *out, struct srv_choice *c)
{
    static const char *const names[] = {"{\"tokens\":[", "],\"token_logprobs\":[", "],\"top_logprobs\":[",
                                        "],\"text_offset\":["};
    const struct srv_gen *g = c->stream->data;
    srv_buf_puts(out, ",\"logprobs\":");
    if (g->params.n_top < 0) {
        srv_buf_puts(out, "null");
        return;
    }
    for (int k = 0; k < 4; k++) {
        srv_buf_puts(out, names[k]);
        srv_buf_append(out, c->logprobs[k].data, c->logprobs[k].len);
        out->failed |= c->logprobs[k].failed;
        srv_buf_reset(&c->logprobs[k]);
    }
    srv_buf_puts(out, "]}");
}

// ---- answers --------------------------------------------------------------------------------------------------------

// One entry of choices, from what the choice gathered. finish: NONE in the middle of a stream.
static void append_choice(struct srv_buf *out, struct srv_choice *c, enum eng_finish finish)
{
    const struct srv_gen *g = c->stream->data;
    srv_buf_printf(out, "{\"index\":%d,\"text\":", c->index);
    srv_buf_json(out, c->text.data ? c->text.data : "", c->text.len);
    append_logprobs(out, c);
    if (finish) {
        srv_buf_printf(out, ",\"finish_reason\":\"%s\",", srv_api_finish_name(finish));
        srv_api_stop_reason(out, c);
    } else {
        srv_buf_puts(out, ",\"finish_reason\":null");
    }
    if (g->return_ids) {
        srv_buf_puts(out, ",\"token_ids\":[");
        srv_buf_append(out, c->ids.data, c->ids.len);
        srv_buf_append(out, "]", 1);
        if (!c->stream->sse || !c->opened) {
            srv_buf_puts(out, ",\"prompt_token_ids\":");
            srv_api_ids(out, prompt_of(c)->ids, prompt_of(c)->n);
        }
    }
    srv_buf_append(out, "}", 1);
    out->failed |= c->text.failed || c->ids.failed;
}

static void on_event(struct srv_stream *s, struct srv_choice *c, const struct eng_event *ev)
{
    const struct srv_gen *g = s->data;
    if (g->echo && c->chars == 0 && c->text.len == 0 && !c->opened) {
        const struct srv_prompt *p = prompt_of(c);
        srv_buf_append(&c->text, p->text, p->text_len);
        c->chars = srv_utf8_count(p->text, p->text_len);
    }
    srv_api_gather_ids(c, ev);
    gather_logprobs(c, ev);
    srv_buf_append(&c->text, ev->text, ev->text_len);
    bool details = ev->n_tokens && (g->return_ids || g->params.n_top >= 0);
    if (!s->sse || !(c->text.len || details || ev->finish))
        return;
    srv_api_chunk(&s->outbox, s);
    append_choice(&s->outbox, c, ev->finish);
    srv_buf_append(&s->outbox, "]", 1);
    srv_api_chunk_end(&s->outbox, s, ev->finish ? c : NULL);
    c->opened = true;
    srv_buf_reset(&c->text);
    srv_buf_reset(&c->ids);
}

static void on_end(struct srv_stream *s)
{
    const struct srv_gen *g = s->data;
    struct srv_buf *out = &s->outbox;
    if (s->sse) {
        srv_api_stream_end(out, s);
        return;
    }
    srv_buf_printf(out, "{\"id\":\"%s\",\"object\":\"text_completion\",\"created\":%lld,\"model\":", g->id,
                   (long long)g->created);
    srv_buf_jsonz(out, s->server->model_name);
    srv_buf_puts(out, ",\"choices\":[");
    for (int i = 0; i < s->n_choices; i++) {
        if (i)
            srv_buf_append(out, ",", 1);
        append_choice(out, &s->choices[i], s->choices[i].finish);
    }
    srv_buf_puts(out, "],\"usage\":");
    srv_api_usage(out, s);
    srv_buf_puts(out, ",\"trimode\":");
    srv_api_trimode(out, s, NULL);
    srv_buf_append(out, "}", 1);
}

static const struct srv_stream_ops ops = {on_event, srv_api_draft, on_end, srv_gen_free};

enum MHD_Result srv_api_completions(struct srv_exchange *x)
{
    struct srv_error e;
    struct srv_gen *g = srv_gen_parse(x, false, &e);
    if (!g)
        return srv_http_error(x, &e);
    if (parse_prompts(g, &e)) {
        srv_gen_free(g);
        return srv_http_error(x, &e);
    }
    return srv_gen_submit(x, g, &ops);
}
