// 2 PARSE: everything that generates nothing: models, tokenize, detokenize, health, ready, version, status, metrics.
// Answered from memory, also while requests run; probes work before the model is loaded.
#include <stdlib.h>
#include <string.h>

#include "api.h"
#include "api_common.h"

enum { MAX_TEXT = 1 << 20 }; // bytes that /tokenize takes

static void put_modes(struct srv_buf *out, unsigned modes)
{
    bool first = true;
    srv_buf_append(out, "[", 1);
    for (int m = 1; m < ENG_N_MODES; m++) {
        if (!(modes & 1u << m))
            continue;
        srv_buf_printf(out, "%s\"%s\"", first ? "" : ",", eng_mode_name(m));
        first = false;
    }
    srv_buf_append(out, "]", 1);
}

// ---- models ---------------------------------------------------------------------------------------------------------

static void put_model(struct srv_buf *out, const struct srv_server *s)
{
    srv_buf_puts(out, "{\"id\":");
    srv_buf_jsonz(out, s->model_name);
    srv_buf_printf(out,
                   ",\"object\":\"model\",\"created\":%lld,\"owned_by\":\"trimode\",\"root\":", (long long)s->started);
    srv_buf_jsonz(out, s->model_name);
    srv_buf_printf(out, ",\"parent\":null,\"max_model_len\":%d,\"vocab_size\":%d,\"modes\":", (int)s->info->max_context,
                   (int)s->info->n_vocab);
    put_modes(out, s->info->modes);
    srv_buf_append(out, "}", 1);
}

// llm-d uses this path as a readiness probe, so it says 503 when requests are not accepted.
enum MHD_Result srv_api_models(struct srv_exchange *x)
{
    struct srv_error e;
    if (srv_api_available(x->server, &e))
        return srv_http_error(x, &e);
    struct srv_buf out = {0};
    srv_buf_puts(&out, "{\"object\":\"list\",\"data\":[");
    put_model(&out, x->server);
    srv_buf_puts(&out, "]}");
    return srv_http_json(x, 200, &out);
}

enum MHD_Result srv_api_model(struct srv_exchange *x)
{
    struct srv_error e;
    if (srv_api_available(x->server, &e))
        return srv_http_error(x, &e);
    if (strcmp(x->rest, x->server->model_name)) {
        srv_error_status(&e, 404, "invalid_request_error", "model_not_found",
                         "The model `%.200s` does not exist or you do not have access to it.", x->rest);
        return srv_http_error(x, &e);
    }
    struct srv_buf out = {0};
    put_model(&out, x->server);
    return srv_http_json(x, 200, &out);
}

// ---- tokenize -------------------------------------------------------------------------------------------------------

static int tokenize(struct srv_exchange *x, const cJSON *body, struct srv_buf *out, struct srv_error *e)
{
    struct srv_server *s = x->server;
    const char *prompt = NULL;
    bool strings = false;
    int32_t *ids = NULL;
    size_t n = 0;
    int has = srv_json_string(body, "", "prompt", &prompt, e);
    if (srv_api_check_model(s, body, e) || has < 0 || srv_json_bool(body, "", "return_token_strs", &strings, e) < 0)
        return -1;
    if (!has && !srv_json_get(body, "messages"))
        return srv_error_set(e, "missing_required_parameter", "prompt",
                             "Missing required parameter: 'prompt' or 'messages'.");
    // Unlike a completion's prompt, a text may be longer than the context, but this thread must not tokenize for long.
    if (has && strlen(prompt) > MAX_TEXT)
        return srv_error_set(e, "invalid_value", "prompt",
                             "Invalid value for 'prompt': at most %d bytes are allowed here.", MAX_TEXT);
    if (!has && !srv_json_get(body, "messages"))
        return srv_error_set(e, "missing_required_parameter", "prompt",
                             "Missing required parameter: 'prompt' or 'messages'.");
    // Unlike a completion's prompt, a text may be longer than the context; the body limit bounds it.
    int status =
        has ? eng_encode(s->engine, prompt, strlen(prompt), true, &ids, &n) : srv_api_render(s, body, &ids, &n, e);
    if (status && has)
        srv_error_set(e, "invalid_value", "prompt", "Invalid value for 'prompt': the text cannot be tokenized (%s).",
                      eng_strerror(status));
    if (status)
        return -1;
    srv_buf_printf(out, "{\"count\":%zu,\"max_model_len\":%d,\"tokens\":", n, (int)s->info->max_context);
    srv_api_ids(out, ids, n);
    srv_buf_puts(out, ",\"token_strs\":");
    if (strings) {
        for (size_t i = 0; i < n; i++) {
            size_t len = 0;
            const char *bytes = eng_token_bytes(s->engine, ids[i], &len);
            srv_buf_puts(out, i ? "," : "[");
            srv_buf_json(out, bytes ? bytes : "", bytes ? len : 0);
        }
        srv_buf_puts(out, n ? "]" : "[]");
    } else {
        srv_buf_puts(out, "null");
    }
    srv_buf_append(out, "}", 1);
    free(ids);
    return 0;
}

static int detokenize(struct srv_exchange *x, const cJSON *body, struct srv_buf *out, struct srv_error *e)
{
    struct srv_server *s = x->server;
    if (srv_api_check_model(s, body, e))
        return -1;
    const cJSON *list = srv_json_get(body, "tokens"), *item;
    if (!cJSON_IsArray(list))
        return srv_error_set(e, list ? "invalid_type" : "missing_required_parameter", "tokens",
                             list ? "Invalid type for 'tokens': expected an array of token ids."
                                  : "Missing required parameter: 'tokens'.");
    size_t n = 0, len = 0;
    int32_t *ids = calloc((size_t)cJSON_GetArraySize(list) + 1, sizeof *ids);
    if (!ids)
        return srv_error_status(e, 500, "server_error", NULL, "Out of memory.");
    cJSON_ArrayForEach(item, list)
    {
        int64_t id = -1;
        if (!srv_json_exact(item, &id) || id < 0 || id >= s->info->n_vocab) {
            free(ids);
            return srv_error_set(e, "invalid_value", "tokens",
                                 "Invalid value for 'tokens[%zu]': expected a token id from 0 to %d.", n,
                                 (int)s->info->n_vocab - 1);
        }
        ids[n++] = (int32_t)id;
    }
    char *text = NULL;
    int status = eng_decode(s->engine, ids, n, false, &text, &len);
    free(ids);
    if (status)
        return srv_error_status(e, 500, "server_error", NULL, "The tokens could not be decoded: %s.",
                                eng_strerror(status));
    srv_buf_puts(out, "{\"prompt\":");
    srv_buf_json(out, text, len);
    srv_buf_append(out, "}", 1);
    free(text);
    return 0;
}

static enum MHD_Result with_body(struct srv_exchange *x, int (*work)(struct srv_exchange *, const cJSON *,
                                                                     struct srv_buf *, struct srv_error *))
{
    struct srv_error e;
    cJSON *body = NULL;
    struct srv_buf out = {0};
    int status = srv_api_available(x->server, &e);
    if (!status)
        status = srv_json_parse(x->body.data, x->body.len, &body, &e);
    if (!status)
        status = work(x, body, &out, &e);
    cJSON_Delete(body);
    if (!status)
        return srv_http_json(x, 200, &out);
    srv_buf_free(&out);
    return srv_http_error(x, &e);
}

enum MHD_Result srv_api_tokenize(struct srv_exchange *x)
{
    return with_body(x, tokenize);
}

enum MHD_Result srv_api_detokenize(struct srv_exchange *x)
{
    return with_body(x, detokenize);
}

// ---- probes ---------------------------------------------------------------------------------------------------------

static const char *engine_failure(const struct srv_server *s)
{
    return s->engine ? eng_failure(s->engine) : NULL;
}

enum MHD_Result srv_api_health(struct srv_exchange *x)
{
    struct srv_buf out = {0};
    bool failed = engine_failure(x->server) != NULL;
    srv_buf_printf(&out, "{\"status\":\"%s\"}", failed ? "failed" : "ok");
    return srv_http_json(x, failed ? 503 : 200, &out);
}

enum MHD_Result srv_api_ready(struct srv_exchange *x)
{
    const struct srv_server *s = x->server;
    struct srv_buf out = {0};
    if (engine_failure(s)) {
        srv_buf_puts(&out, "{\"status\":\"failed\",\"reason\":");
        srv_buf_jsonz(&out, engine_failure(s));
        srv_buf_append(&out, "}", 1);
    } else if (s->state == SRV_READY) {
        srv_buf_puts(&out, "{\"status\":\"ready\"}");
        return srv_http_json(x, 200, &out);
    } else if (s->state == SRV_LOADING) {
        srv_buf_printf(&out, "{\"status\":\"loading\",\"reason\":\"the model is being loaded, %d %%\"}",
                       atomic_load(&s->load_percent));
    } else {
        srv_buf_printf(&out,
                       "{\"status\":\"draining\",\"reason\":\"the server is shutting down, %d requests still run\"}",
                       s->n_streams);
    }
    return srv_http_json(x, 503, &out);
}

// Why the backend is not the one that "auto" prefers; NULL when there is nothing to say.
static const char *reason_of(const struct eng_info *info)
{
    return info && info->backend_reason && *info->backend_reason ? info->backend_reason : NULL;
}

enum MHD_Result srv_api_version(struct srv_exchange *x)
{
    const struct srv_server *s = x->server;
    struct srv_buf out = {0};
    srv_buf_puts(&out, "{\"version\":");
    srv_buf_jsonz(&out, TRIMODE_VERSION);
    srv_buf_puts(&out, ",\"libmicrohttpd\":");
    srv_buf_jsonz(&out, MHD_get_version());
    srv_buf_puts(&out, ",\"libuv\":");
    srv_buf_jsonz(&out, uv_version_string());
    srv_buf_puts(&out, ",\"backend\":");
    srv_buf_jsonz(&out, s->info ? s->info->backend : NULL);
    srv_buf_puts(&out, ",\"backend_description\":");
    srv_buf_jsonz(&out, s->info ? s->info->backend_description : NULL);
    srv_buf_puts(&out, ",\"backend_reason\":");
    srv_buf_jsonz(&out, reason_of(s->info));
    srv_buf_append(&out, "}", 1);
    return srv_http_json(x, 200, &out);
}

// ---- status ---------------------------------------------------------------------------------------------------------

// The engine's picture of the requests that run; freed by the caller, *ret_n 0 without memory.
static struct eng_live *live_of(const struct srv_server *s, int32_t *ret_n)
{
    int32_t max = (int32_t)s->config->max_sequences;
    struct eng_live *live = s->engine ? calloc((size_t)max, sizeof *live) : NULL;
    *ret_n = live ? eng_live(s->engine, live, max) : 0;
    return live;
}

static void put_live(struct srv_buf *out, const struct srv_choice *c, const struct eng_live *l)
{
    srv_buf_printf(out, "{\"index\":%d,\"mode\":\"%s\",\"reason\":", c->index, eng_mode_name(l->mode));
    srv_buf_jsonz(out, l->reason);
    srv_buf_puts(out, ",\"block_length\":");
    if (l->block_length)
        srv_buf_printf(out, "%d", (int)l->block_length);
    else
        srv_buf_puts(out, "null");
    srv_buf_printf(out, ",\"computed_tokens\":%d,\"tokens\":%d,\"forward_passes\":%d,\"acceptance\":",
                   (int)l->computed_tokens, (int)l->completion_tokens, (int)l->forward_passes);
    if (l->drafted_tokens)
        srv_buf_printf(out, "%.4g", (double)l->accepted_tokens / l->drafted_tokens);
    else
        srv_buf_puts(out, "null");
    srv_buf_puts(out, ",\"tokens_per_second\":");
    if (l->tokens_per_second > 0)
        srv_buf_printf(out, "%.4g", l->tokens_per_second);
    else
        srv_buf_puts(out, "null");
    srv_buf_puts(out, ",\"predicted_tokens_per_second\":");
    if (l->predicted_tokens_per_second > 0)
        srv_buf_printf(out, "%.4g}", l->predicted_tokens_per_second);
    else
        srv_buf_puts(out, "null}");
}

// The choices of a stream that are being decoded; the others wait or have ended.
static void put_decoding(struct srv_buf *out, const struct srv_stream *t, const struct eng_live *live, int32_t n_live)
{
    bool first = true;
    srv_buf_puts(out, ",\"decoding\":[");
    for (int32_t i = 0; i < n_live; i++) {
        const struct srv_choice *c = live[i].user;
        // Its stream is found by address, among those that exist, before anything of it is read.
        if (c < t->choices || c >= t->choices + t->n_choices)
            continue;
        srv_buf_puts(out, first ? "" : ",");
        put_live(out, c, &live[i]);
        first = false;
    }
    srv_buf_append(out, "]", 1);
}

static void put_streams(struct srv_buf *out, const struct srv_server *s)
{
    int32_t n_live;
    struct eng_live *live = live_of(s, &n_live);
    int64_t now = (int64_t)uv_hrtime();
    bool first = true;
    srv_buf_append(out, "[", 1);
    for (const struct srv_stream *t = s->streams; t; t = t->next) {
        if (t->ended || !t->x)
            continue;
        const struct srv_gen *g = t->data;
        int64_t tokens = 0;
        for (int i = 0; i < t->n_choices; i++)
            tokens += t->choices[i].n_tokens;
        srv_buf_puts(out, first ? "{\"request_id\":" : ",{\"request_id\":");
        srv_buf_jsonz(out, t->x->request_id);
        srv_buf_printf(out,
                       ",\"endpoint\":\"%s\",\"mode\":\"%s\",\"stream\":%s,\"choices\":%d,\"prompt_tokens\":%zu,"
                       "\"tokens\":%lld,\"age_ms\":%lld",
                       g->chat ? "chat" : "completions", eng_mode_name(g->params.mode), t->sse ? "true" : "false",
                       t->n_choices, g->prompts[0].n, (long long)tokens, (long long)(now - t->start_ns) / 1000000);
        put_decoding(out, t, live, n_live);
        srv_buf_append(out, "}", 1);
        first = false;
    }
    srv_buf_append(out, "]", 1);
    free(live);
}

static void put_memory(struct srv_buf *out, const struct eng_memory *m)
{
    srv_buf_printf(out, ",\"memory\":{\"total\":%lld,\"free\":%lld,\"categories\":{", (long long)m->total,
                   (long long)m->free);
    for (int32_t i = 0; i < m->n_categories; i++) {
        srv_buf_puts(out, i ? "," : "");
        srv_buf_jsonz(out, m->categories[i].name);
        srv_buf_printf(out, ":%lld", (long long)m->categories[i].bytes);
    }
    srv_buf_puts(out, "}}");
}

// The coefficients in seconds, as `trimode calibrate` writes them; null when there is no model.
static void put_cost(struct srv_buf *out, const struct eng_info *info, const struct eng_stats *st)
{
    const struct eng_cost *c = &info->cost;
    srv_buf_puts(out, ",\"cost_model\":");
    if (!c->n_knots) {
        srv_buf_puts(out, "null");
        return;
    }
    srv_buf_puts(out, "{\"origin\":");
    srv_buf_jsonz(out, info->cost_origin);
    srv_buf_printf(out,
                   ",\"samples\":%d,\"median_error\":%.4g,\"worst_error\":%.4g,\"base\":%.6g,\"segment\":%.6g,"
                   "\"choice\":%.6g,\"context\":%.6g,\"pair\":%.6g,\"adapter_row\":%.6g,\"rows\":[",
                   (int)c->n_samples, c->median_error, c->worst_error, c->base, c->segment, c->choice, c->context,
                   c->pair, c->adapter_row);
    for (int32_t k = 0; k < c->n_knots; k++)
        srv_buf_printf(out, "%s{\"from\":%d,\"seconds_a_row\":%.6g}", k ? "," : "", (int)c->knots[k], c->slopes[k]);
    srv_buf_puts(out, "],\"beyond\":[");
    for (int i = 0; i < ENG_COST_BENDS; i++)
        srv_buf_printf(out, "%s{\"context\":%d,\"seconds_a_position\":%.6g}", i ? "," : "", (int)eng_cost_bend(i),
                       c->far[i]);
    srv_buf_printf(out, "],\"predicted_step_error_ratio\":%.6g}", st->step_error_ratio);
}

static void put_engine(struct srv_buf *out, const struct srv_server *s)
{
    struct eng_stats st = {0};
    eng_stats(s->engine, &st);
    const struct eng_info *info = s->info;
    srv_buf_puts(out, ",\"backend\":");
    srv_buf_jsonz(out, info->backend);
    srv_buf_puts(out, ",\"backend_description\":");
    srv_buf_jsonz(out, info->backend_description);
    srv_buf_puts(out, ",\"backend_reason\":");
    srv_buf_jsonz(out, reason_of(info));
    srv_buf_puts(out, ",\"weights\":{\"type\":");
    srv_buf_jsonz(out, info->weights_type);
    srv_buf_printf(out, ",\"bytes\":%lld,\"file_bytes\":%lld,\"parameters\":%lld},\"max_context\":%d,\"modes\":",
                   (long long)info->weights_bytes, (long long)info->file_bytes, (long long)info->parameters,
                   (int)info->max_context);
    put_modes(out, info->modes);
    srv_buf_puts(out, ",\"auto_modes\":");
    put_modes(out, (unsigned)s->config->auto_modes & info->modes);
    srv_buf_printf(out, ",\"waiting\":%d,\"running\":{", (int)st.waiting);
    for (int m = 1; m < ENG_N_MODES; m++)
        srv_buf_printf(out, "%s\"%s\":%d", m > 1 ? "," : "", eng_mode_name(m), (int)st.running[m]);
    srv_buf_printf(out,
                   "},\"kv_pages\":{\"total\":%d,\"used\":%d,\"cached\":%d,\"page_size\":%d,\"type\":\"%s\"},\"forward_"
                   "steps\":%llu",
                   (int)st.pages_total, (int)st.pages_used, (int)st.pages_cached, (int)info->page_size, info->kv_type,
                   (unsigned long long)st.steps);
    put_cost(out, info, &st);
    put_memory(out, &info->memory);
}

enum MHD_Result srv_api_status(struct srv_exchange *x)
{
    static const char *const states[] = {"loading", "ready", "draining"};
    const struct srv_server *s = x->server;
    struct srv_buf out = {0};
    srv_buf_printf(&out, "{\"status\":\"%s\",\"version\":\"" TRIMODE_VERSION "\",\"uptime_s\":%lld,\"model\":",
                   engine_failure(s) ? "failed" : states[s->state], (long long)(time(NULL) - s->started));
    srv_buf_jsonz(&out, s->model_name);
    if (s->engine)
        put_engine(&out, s);
    srv_buf_puts(&out, ",\"requests\":");
    put_streams(&out, s);
    srv_buf_append(&out, "}", 1);
    return srv_http_json(x, 200, &out);
}

enum MHD_Result srv_api_metrics(struct srv_exchange *x)
{
    struct srv_buf out = {0};
    srv_metrics_render(x->server, &out);
    return srv_http_text(x, 200, "text/plain; version=0.0.4; charset=utf-8", &out);
}
