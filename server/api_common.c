// 2 PARSE: from a body to submitted engine requests, for both completion endpoints. Everything that can be refused is
// refused here, before the engine hears of it. Loop thread only.
#include "api_common.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

int srv_api_available(struct srv_server *s, struct srv_error *e)
{
    if (s->state == SRV_READY)
        return 0;
    srv_error_status(e, 503, "service_unavailable_error", "server_is_overloaded",
                     s->state == SRV_LOADING ? "The model is still being loaded." : "The server is shutting down.");
    e->retry_after = s->state == SRV_LOADING ? 2 : 1;
    return -1;
}

int srv_api_check_model(struct srv_server *s, const cJSON *body, struct srv_error *e)
{
    const char *model = NULL;
    int has = srv_json_string(body, "", "model", &model, e);
    if (has < 0)
        return -1;
    if (!has || !strcmp(model, s->model_name))
        return 0;
    srv_error_status(e, 404, "invalid_request_error", "model_not_found",
                     "The model `%.200s` does not exist or you do not have access to it.", model);
    snprintf(e->param, sizeof e->param, "model");
    return -1;
}

void srv_api_id(const char *prefix, char *out, size_t size)
{
    static uint64_t counter; // loop thread only
    uint64_t random[2] = {0};
    if (getrandom(random, sizeof random, GRND_NONBLOCK) != (ssize_t)sizeof random)
        random[0] = ++counter;
    snprintf(out, size, "%s-%016llx%016llx", prefix, (unsigned long long)random[0], (unsigned long long)random[1]);
}

int srv_api_too_long(const struct srv_server *s, const char *param, size_t n, struct srv_error *e)
{
    return srv_error_set(
        e, "context_length_exceeded", param,
        "This model's maximum context length is %d tokens. However, your %s resulted in at least %zu tokens. "
        "Please reduce the length of the %s.",
        (int)s->info->max_context, param, n, param);
}

int srv_api_encode(struct srv_server *s, const char *text, const char *param, int32_t **ret_ids, size_t *ret_n,
                   struct srv_error *e)
{
    size_t len = strlen(text);
    // No token is longer than the longest, so so many bytes need at least so many tokens.
    size_t least = s->longest_token ? len / s->longest_token : 0;
    if (least >= (size_t)s->info->max_context)
        return srv_api_too_long(s, param, least, e);
    int status = eng_encode(s->engine, text, len, true, ret_ids, ret_n);
    if (status == ENG_ENOMEM)
        return srv_error_status(e, 500, "server_error", NULL, "Out of memory.");
    if (status)
        return srv_error_set(e, "invalid_value", param, "Invalid value for '%s': the text cannot be tokenized (%s).",
                             param, eng_strerror(status));
    return 0;
}

void srv_gen_free(void *gen)
{
    struct srv_gen *g = gen;
    if (!g)
        return;
    for (int i = 0; i < g->n_prompts; i++) {
        free(g->prompts[i].ids);
        free(g->prompts[i].text);
    }
    free(g->prompts);
    free(g->stop_ids);
    free(g->stops);
    free(g->biases);
    cJSON_Delete(g->body);
    free(g);
}

struct srv_gen *srv_gen_parse(struct srv_exchange *x, bool chat, struct srv_error *e)
{
    if (srv_api_available(x->server, e))
        return NULL;
    struct srv_gen *g = calloc(1, sizeof *g);
    if (!g) {
        srv_error_status(e, 500, "server_error", NULL, "Out of memory.");
        return NULL;
    }
    g->server = x->server;
    g->chat = chat;
    g->created = (int64_t)time(NULL);
    g->params = eng_params_default();
    srv_api_id(chat ? "chatcmpl" : "cmpl", g->id, sizeof g->id);
    if (srv_json_parse(x->body.data, x->body.len, &g->body, e) || srv_api_check_model(x->server, g->body, e) ||
        srv_api_check_fields(x, g->body, chat, e) || srv_api_params(x, g, e)) {
        srv_gen_free(g);
        return NULL;
    }
    return g;
}

// The tokens this prompt may generate: 0 and *ret, or -1.
static int budget(const struct srv_gen *g, const struct srv_prompt *p, int32_t *ret, struct srv_error *e)
{
    const char *param = g->chat ? "messages" : "prompt";
    int64_t context = g->server->info->max_context, n = (int64_t)p->n;
    if (n == 0)
        return srv_error_set(e, "invalid_value", param, "Invalid value for '%s': it must have at least one token.",
                             param);
    if (n >= context)
        return srv_api_too_long(g->server, param, p->n, e);
    if (g->max_tokens >= 0 && n + g->max_tokens > context)
        return srv_error_set(
            e, "context_length_exceeded", param,
            "This model's maximum context length is %lld tokens. However, you requested %lld tokens (%lld in "
            "the %s, %d in the completion). Please reduce the length of the %s or completion.",
            (long long)context, (long long)(n + g->max_tokens), (long long)n, param, (int)g->max_tokens, param);
    int64_t rest = context - n, fallback = g->chat ? rest : 16;
    if (fallback < g->params.min_tokens)
        fallback = g->params.min_tokens;
    *ret = (int32_t)(g->max_tokens >= 0 ? g->max_tokens : fallback < rest ? fallback : rest);
    return 0;
}

static int make_requests(struct srv_stream *s, struct srv_gen *g, struct srv_error *e)
{
    uint64_t seed = g->params.seed;
    for (int i = 0; i < s->n_choices; i++) {
        const struct srv_prompt *p = &g->prompts[i / g->n];
        if (budget(g, p, &g->params.max_tokens, e))
            return -1;
        g->params.seed = seed + (uint64_t)(i % g->n);
        g->params.user = &s->choices[i];
        const char *param = NULL;
        char why[400] = "";
        int status = eng_request_new(g->server->engine, &g->params, p->ids, p->n, &s->choices[i].request, &param, why,
                                     sizeof why);
        if (status == ENG_ENOMEM)
            return srv_error_status(e, 500, "server_error", NULL, "Out of memory.");
        if (status)
            return srv_error_set(e, "invalid_value", param && g->chat && !strcmp(param, "prompt") ? "messages" : param,
                                 "Invalid request: %s.", why);
    }
    return 0;
}

enum MHD_Result srv_gen_submit(struct srv_exchange *x, struct srv_gen *g, const struct srv_stream_ops *ops)
{
    struct srv_error e;
    int64_t n = (int64_t)g->n_prompts * g->n;
    int64_t room = x->server->config->max_queue + x->server->config->max_sequences;
    if (n > room) {
        srv_error_set(&e, "invalid_value", g->n > 1 ? "n" : "prompt",
                      "The request asks for %lld generations; this server takes at most %lld at once.", (long long)n,
                      (long long)room);
        srv_gen_free(g);
        return srv_http_error(x, &e);
    }
    struct srv_stream *s =
        srv_stream_new(x, g->chat ? SRV_ENDPOINT_CHAT : SRV_ENDPOINT_COMPLETIONS, g->stream, ops, g, (int)n);
    if (!s)
        return MHD_NO;
    if (make_requests(s, g, &e)) {
        srv_stream_discard(s);
        return srv_http_error(x, &e);
    }
    if (srv_stream_submit(s, &e))
        return srv_http_error(x, &e);
    return (enum MHD_Result)srv_stream_answer(s);
}
