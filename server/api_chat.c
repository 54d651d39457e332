// 2 PARSE: POST /v1/chat/completions: messages to tokens through the checkpoint's template, events to chat chunks or
// one object.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api.h"
#include "api_common.h"

// ---- messages -------------------------------------------------------------------------------------------------------

// Text of a content: a string, or an array of text parts.
static int content_text(const cJSON *content, const char *path, struct srv_buf *out, struct srv_error *e)
{
    if (cJSON_IsString(content)) {
        srv_buf_puts(out, content->valuestring);
        return 0;
    }
    if (!cJSON_IsArray(content))
        return srv_error_set(e, "invalid_type", path,
                             "Invalid type for '%s': expected a string or an array of text parts, but got %s instead.",
                             path, srv_json_kind(content));
    int i = 0;
    const cJSON *part;
    cJSON_ArrayForEach(part, content)
    {
        char where[128];
        snprintf(where, sizeof where, "%s[%d]", path, i++);
        const char *type = NULL, *text = NULL;
        if (!cJSON_IsObject(part))
            return srv_error_set(e, "invalid_type", where,
                                 "Invalid type for '%s': expected an object, but got %s instead.", where,
                                 srv_json_kind(part));
        if (srv_json_string(part, where, "type", &type, e) < 0)
            return -1;
        if (!type || strcmp(type, "text"))
            return srv_error_set(e, "unsupported_value", where,
                                 "Unsupported content part in '%s': '%.40s'; this model reads text parts only.", where,
                                 type ? type : "no type");
        int has = srv_json_string(part, where, "text", &text, e);
        if (has <= 0)
            return has < 0 ? -1
                           : srv_error_set(e, "missing_required_parameter", where,
                                           "Missing required parameter: '%s.text'.", where);
        srv_buf_puts(out, text);
    }
    return 0;
}

static int add_message(cJSON *list, const cJSON *message, int index, size_t *bytes, struct srv_error *e)
{
    static const char *const roles[][2] = {
        {"system", "system"}, {"developer", "system"}, {"user", "user"}, {"assistant", "assistant"}};
    char path[64], where[96];
    snprintf(path, sizeof path, "messages[%d]", index);
    if (!cJSON_IsObject(message))
        return srv_error_set(e, "invalid_type", path, "Invalid type for '%s': expected an object, but got %s instead.",
                             path, srv_json_kind(message));
    const char *role = NULL, *as = NULL;
    int has = srv_json_string(message, path, "role", &role, e);
    snprintf(where, sizeof where, "%s.role", path);
    if (has <= 0)
        return has < 0
                   ? -1
                   : srv_error_set(e, "missing_required_parameter", where, "Missing required parameter: '%s'.", where);
    for (size_t i = 0; i < sizeof roles / sizeof *roles; i++)
        if (!strcmp(role, roles[i][0]))
            as = roles[i][1];
    if (!as)
        return srv_error_set(e, "unsupported_value", where,
                             "Unsupported value for '%s': '%.40s'; allowed are system, developer, user and assistant.",
                             where, role);
    const cJSON *calls = srv_json_get(message, "tool_calls");
    if (calls && calls->child) {
        snprintf(where, sizeof where, "%s.tool_calls", path);
        return srv_error_set(e, "unsupported_parameter", where,
                             "Unsupported parameter: '%s' is not supported by this server.", where);
    }
    snprintf(where, sizeof where, "%s.content", path);
    const cJSON *content = srv_json_get(message, "content");
    if (!content)
        return srv_error_set(e, "missing_required_parameter", where, "Missing required parameter: '%s'.", where);
    struct srv_buf text = {0};
    int status = content_text(content, where, &text, e);
    cJSON *copy = status ? NULL : cJSON_CreateObject();
    if (!status &&
        (text.failed || !copy || !cJSON_AddStringToObject(copy, "role", as) ||
         !cJSON_AddStringToObject(copy, "content", text.data ? text.data : "") || !cJSON_AddItemToArray(list, copy))) {
        cJSON_Delete(copy);
        status = srv_error_status(e, 500, "server_error", NULL, "Out of memory.");
    }
    *bytes += text.len;
    srv_buf_free(&text);
    return status;
}

static int template_options(const cJSON *body, bool *ret_generation, bool *ret_proceed, struct srv_error *e)
{
    int has = srv_json_bool(body, "", "add_generation_prompt", ret_generation, e);
    if (has < 0 || srv_json_bool(body, "", "continue_final_message", ret_proceed, e) < 0)
        return -1;
    if (!has)
        *ret_generation = !*ret_proceed;
    if (*ret_generation && *ret_proceed)
        return srv_error_set(e, "invalid_value", "continue_final_message",
                             "'continue_final_message' and 'add_generation_prompt' cannot both be true.");
    const cJSON *kwargs = srv_json_get(body, "chat_template_kwargs");
    if (kwargs && !cJSON_IsObject(kwargs))
        return srv_error_set(e, "invalid_type", "chat_template_kwargs",
                             "Invalid type for 'chat_template_kwargs': expected an object, but got %s instead.",
                             srv_json_kind(kwargs));
    return 0;
}

// The messages as the template reads them. *ret is freed with cJSON_Delete.
static int copy_messages(struct srv_server *server, const cJSON *body, cJSON **ret, struct srv_error *e)
{
    const cJSON *given = srv_json_get(body, "messages");
    if (!given)
        return srv_error_set(e, "missing_required_parameter", "messages", "Missing required parameter: 'messages'.");
    if (!cJSON_IsArray(given))
        return srv_error_set(e, "invalid_type", "messages",
                             "Invalid type for 'messages': expected an array, but got %s instead.",
                             srv_json_kind(given));
    if (!given->child)
        return srv_error_set(e, "invalid_value", "messages",
                             "Invalid value for 'messages': expected at least one message.");
    if (!server->info->has_chat_template)
        return srv_error_set(e, "unsupported_value", "messages",
                             "This model has no chat template; use /v1/completions instead.");
    cJSON *list = cJSON_CreateArray();
    if (!list)
        return srv_error_status(e, 500, "server_error", NULL, "Out of memory.");
    int status = 0, index = 0;
    size_t bytes = 0;
    const cJSON *message;
    cJSON_ArrayForEach(message, given)
    {
        status = add_message(list, message, index++, &bytes, e);
        if (status)
            break;
    }
    // No token is longer than the longest, so a text that long need not be rendered.
    size_t least = server->longest_token ? bytes / server->longest_token : 0;
    if (!status && least >= (size_t)server->info->max_context)
        status = srv_api_too_long(server, "messages", least, e);
    if (status)
        cJSON_Delete(list);
    else
        *ret = list;
    return status;
}

int srv_api_render(struct srv_server *server, const cJSON *body, int32_t **ret_ids, size_t *ret_n, struct srv_error *e)
{
    bool generation = false, proceed = false;
    cJSON *messages = NULL;
    if (copy_messages(server, body, &messages, e))
        return -1;
    int status = template_options(body, &generation, &proceed, e);
    char why[400] = "";
    if (!status) {
        const cJSON *kwargs = srv_json_get(body, "chat_template_kwargs");
        status = eng_chat(server->engine, messages, NULL, generation, proceed, kwargs, ret_ids, ret_n, why, sizeof why);
        if (status == ENG_ENOMEM)
            srv_error_status(e, 500, "server_error", NULL, "Out of memory.");
        else if (status)
            srv_error_set(e, "invalid_value", "messages", "Invalid value for 'messages': %s.",
                          *why ? why : eng_strerror(status));
    }
    cJSON_Delete(messages);
    return status ? -1 : 0;
}

// ---- log-probabilities ----------------------------------------------------------------------------------------------

// `"token":...,"logprob":...,"bytes":[...]`
static void token_fields(struct srv_buf *out, const struct eng_engine *engine, int32_t id, float logprob)
{
    size_t n = 0;
    const char *bytes = eng_token_bytes(engine, id, &n);
    srv_buf_puts(out, "\"token\":");
    srv_buf_json(out, bytes ? bytes : "", bytes ? n : 0);
    srv_buf_puts(out, ",\"logprob\":");
    srv_api_logprob(out, logprob);
    srv_buf_puts(out, ",\"bytes\":[");
    for (size_t i = 0; bytes && i < n; i++)
        srv_buf_printf(out, "%s%d", i ? "," : "", (unsigned char)bytes[i]);
    srv_buf_append(out, "]", 1);
}

static void gather_logprobs(struct srv_choice *c, const struct eng_event *ev)
{
    const struct srv_gen *g = c->stream->data;
    struct srv_buf *out = &c->logprobs[0];
    if (g->params.n_top < 0)
        return;
    for (int32_t i = 0; i < ev->n_tokens; i++) {
        const struct eng_token *t = &ev->tokens[i];
        srv_buf_puts(out, out->len ? ",{" : "{");
        token_fields(out, g->server->engine, t->id, t->logprob);
        srv_buf_puts(out, ",\"top_logprobs\":[");
        for (int32_t k = 0; k < t->n_top && k < g->params.n_top; k++) {
            srv_buf_puts(out, k ? ",{" : "{");
            token_fields(out, g->server->engine, t->top_ids[k], t->top_logprobs[k]);
            srv_buf_append(out, "}", 1);
        }
        srv_buf_puts(out, "]}");
    }
}

static void append_logprobs(struct srv_buf *out, struct srv_choice *c)
{
    const struct srv_gen *g = c->stream->data;
    srv_buf_puts(out, ",\"logprobs\":");
    if (g->params.n_top < 0) {
        srv_buf_puts(out, "null");
        return;
    }
    srv_buf_puts(out, "{\"content\":[");
    srv_buf_append(out, c->logprobs[0].data, c->logprobs[0].len);
    srv_buf_puts(out, "],\"refusal\":null}");
    out->failed |= c->logprobs[0].failed;
}

// ---- answers --------------------------------------------------------------------------------------------------------

static void stream_chunk(struct srv_choice *c, const char *text, size_t n)
{
    struct srv_stream *s = c->stream;
    const struct srv_gen *g = s->data;
    struct srv_buf *out = &s->outbox;
    srv_api_chunk(out, s);
    srv_buf_printf(out, "{\"index\":%d,\"delta\":{\"content\":", c->index);
    srv_buf_json(out, text, n);
    srv_buf_append(out, "}", 1);
    append_logprobs(out, c);
    srv_buf_puts(out, ",\"finish_reason\":null");
    if (g->return_ids) {
        srv_buf_puts(out, ",\"token_ids\":[");
        srv_buf_append(out, c->ids.data, c->ids.len);
        srv_buf_append(out, "]", 1);
    }
    srv_buf_append(out, "}]", 2);
    srv_api_chunk_end(out, s, NULL);
    srv_buf_reset(&c->logprobs[0]);
    srv_buf_reset(&c->ids);
}

static void stream_open(struct srv_choice *c)
{
    struct srv_stream *s = c->stream;
    const struct srv_gen *g = s->data;
    c->opened = true;
    srv_api_chunk(&s->outbox, s);
    srv_buf_printf(&s->outbox,
                   "{\"index\":%d,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"logprobs\":null,"
                   "\"finish_reason\":null}",
                   c->index);
    srv_buf_append(&s->outbox, "]", 1);
    if (g->return_ids) {
        srv_buf_puts(&s->outbox, ",\"prompt_token_ids\":");
        srv_api_ids(&s->outbox, g->prompts[0].ids, g->prompts[0].n);
    }
    srv_api_chunk_end(&s->outbox, s, NULL);
}

static void on_event(struct srv_stream *s, struct srv_choice *c, const struct eng_event *ev)
{
    const struct srv_gen *g = s->data;
    srv_api_gather_ids(c, ev);
    gather_logprobs(c, ev);
    if (!s->sse) {
        srv_buf_append(&c->text, ev->text, ev->text_len);
        return;
    }
    if (!c->opened)
        stream_open(c);
    bool details = g->return_ids || g->params.n_top >= 0;
    if (ev->text_len || (details && ev->n_tokens))
        stream_chunk(c, ev->text, ev->text_len);
    if (!ev->finish)
        return;
    srv_api_chunk(&s->outbox, s);
    srv_buf_printf(&s->outbox, "{\"index\":%d,\"delta\":{},\"logprobs\":null,\"finish_reason\":\"%s\",", c->index,
                   srv_api_finish_name(ev->finish));
    srv_api_stop_reason(&s->outbox, c);
    srv_buf_append(&s->outbox, "}]", 2);
    srv_api_chunk_end(&s->outbox, s, c);
}

static void on_end(struct srv_stream *s)
{
    const struct srv_gen *g = s->data;
    struct srv_buf *out = &s->outbox;
    if (s->sse) {
        srv_api_stream_end(out, s);
        return;
    }
    srv_buf_printf(out, "{\"id\":\"%s\",\"object\":\"chat.completion\",\"created\":%lld,\"model\":", g->id,
                   (long long)g->created);
    srv_buf_jsonz(out, s->server->model_name);
    srv_buf_puts(out, ",\"choices\":[");
    for (int i = 0; i < s->n_choices; i++) {
        struct srv_choice *c = &s->choices[i];
        srv_buf_printf(out, "%s{\"index\":%d,\"message\":{\"role\":\"assistant\",\"content\":", i ? "," : "", i);
        srv_buf_json(out, c->text.data ? c->text.data : "", c->text.len);
        srv_buf_puts(out, ",\"refusal\":null}");
        append_logprobs(out, c);
        srv_buf_printf(out, ",\"finish_reason\":\"%s\",", srv_api_finish_name(c->finish));
        srv_api_stop_reason(out, c);
        if (g->return_ids) {
            srv_buf_puts(out, ",\"token_ids\":[");
            srv_buf_append(out, c->ids.data, c->ids.len);
            srv_buf_append(out, "]", 1);
        }
        srv_buf_append(out, "}", 1);
        out->failed |= c->text.failed || c->ids.failed;
    }
    srv_buf_append(out, "]", 1);
    if (g->return_ids) {
        srv_buf_puts(out, ",\"prompt_token_ids\":");
        srv_api_ids(out, g->prompts[0].ids, g->prompts[0].n);
    }
    srv_buf_puts(out, ",\"usage\":");
    srv_api_usage(out, s);
    srv_buf_puts(out, ",\"trimode\":");
    srv_api_trimode(out, s, NULL);
    srv_buf_append(out, "}", 1);
}

static const struct srv_stream_ops ops = {on_event, srv_api_draft, on_end, srv_gen_free};

enum MHD_Result srv_api_chat(struct srv_exchange *x)
{
    struct srv_error e;
    struct srv_gen *g = srv_gen_parse(x, true, &e);
    if (!g)
        return srv_http_error(x, &e);
    g->prompts = calloc(1, sizeof *g->prompts);
    if (!g->prompts) {
        srv_gen_free(g);
        return MHD_NO;
    }
    g->n_prompts = 1;
    if (srv_api_render(g->server, g->body, &g->prompts[0].ids, &g->prompts[0].n, &e)) {
        srv_gen_free(g);
        return srv_http_error(x, &e);
    }
    return srv_gen_submit(x, g, &ops);
}
