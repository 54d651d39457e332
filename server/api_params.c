// 2 PARSE: the fields that say how to sample, where to stop and in which mode to decode, with their ranges. What
// depends on the model (ids, block lengths it allows, modes it has) is checked by eng_request_new or against eng_info.
#include <float.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "api_common.h"

enum { MAX_STOPS = 64, MAX_STOP_BYTES = 1024, MAX_STOP_IDS = 1024, MAX_SALT = 1024 };

static int parse_stop(struct srv_gen *g, struct srv_error *e)
{
    const cJSON *stop = srv_json_get(g->body, "stop");
    if (!stop)
        return 0;
    int n = cJSON_IsArray(stop) ? cJSON_GetArraySize(stop) : 1;
    if (!cJSON_IsArray(stop) && !cJSON_IsString(stop))
        return srv_error_set(e, "invalid_type", "stop",
                             "Invalid type for 'stop': expected a string or an array of strings, but got %s instead.",
                             srv_json_kind(stop));
    if (n > MAX_STOPS)
        return srv_error_set(e, "invalid_value", "stop", "Invalid value for 'stop': at most %d strings are allowed.",
                             MAX_STOPS);
    g->stops = calloc((size_t)n + 1, sizeof *g->stops);
    if (!g->stops)
        return srv_error_status(e, 500, "server_error", NULL, "Out of memory.");
    const cJSON *item = cJSON_IsArray(stop) ? stop->child : stop;
    for (int i = 0; i < n; i++, item = item->next) {
        if (!cJSON_IsString(item))
            return srv_error_set(e, "invalid_type", "stop",
                                 "Invalid type for 'stop[%d]': expected a string, but got %s instead.", i,
                                 srv_json_kind(item));
        size_t len = strlen(item->valuestring);
        if (len == 0 || len > MAX_STOP_BYTES)
            return srv_error_set(e, "invalid_value", "stop", "Invalid value for 'stop[%d]': 1 to %d bytes are allowed.",
                                 i, MAX_STOP_BYTES);
        g->stops[i] = item->valuestring;
    }
    g->params.stops = g->stops;
    g->params.n_stops = (size_t)n;
    return 0;
}

static int parse_stop_ids(struct srv_gen *g, struct srv_error *e)
{
    const cJSON *list = srv_json_get(g->body, "stop_token_ids");
    if (!list)
        return 0;
    int n = cJSON_GetArraySize(list);
    if (!cJSON_IsArray(list) || n > MAX_STOP_IDS)
        return srv_error_set(e, cJSON_IsArray(list) ? "invalid_value" : "invalid_type", "stop_token_ids",
                             "'stop_token_ids' must be an array of at most %d token ids.", MAX_STOP_IDS);
    g->stop_ids = calloc((size_t)n + 1, sizeof *g->stop_ids);
    if (!g->stop_ids)
        return srv_error_status(e, 500, "server_error", NULL, "Out of memory.");
    int i = 0;
    const cJSON *item;
    cJSON_ArrayForEach(item, list)
    {
        int64_t id = -1;
        if (!srv_json_exact(item, &id) || id < 0 || id >= g->server->info->n_vocab)
            return srv_error_set(e, "invalid_value", "stop_token_ids",
                                 "Invalid value for 'stop_token_ids[%d]': expected a token id from 0 to %d.", i,
                                 (int)g->server->info->n_vocab - 1);
        g->stop_ids[i++] = (int32_t)id;
    }
    g->params.stop_ids = g->stop_ids;
    g->params.n_stop_ids = (size_t)n;
    return 0;
}

static int parse_biases(struct srv_gen *g, struct srv_error *e)
{
    const cJSON *map = srv_json_get(g->body, "logit_bias");
    if (!map)
        return 0;
    if (!cJSON_IsObject(map))
        return srv_error_set(e, "invalid_type", "logit_bias",
                             "Invalid type for 'logit_bias': expected an object, but got %s instead.",
                             srv_json_kind(map));
    g->biases = calloc((size_t)cJSON_GetArraySize(map) + 1, sizeof *g->biases);
    if (!g->biases)
        return srv_error_status(e, 500, "server_error", NULL, "Out of memory.");
    const cJSON *item;
    cJSON_ArrayForEach(item, map)
    {
        char *end;
        long id = strtol(item->string, &end, 10);
        if (!*item->string || *end || id < 0 || id >= g->server->info->n_vocab)
            return srv_error_set(e, "invalid_value", "logit_bias",
                                 "Invalid key '%.32s' in 'logit_bias': expected a token id from 0 to %d.", item->string,
                                 (int)g->server->info->n_vocab - 1);
        double bias = item->valuedouble;
        if (!cJSON_IsNumber(item) || !(bias >= -100 && bias <= 100))
            return srv_error_set(e, "invalid_value", "logit_bias",
                                 "Invalid value for 'logit_bias.%ld': expected a number from -100 to 100.", id);
        g->biases[g->params.n_biases++] = (struct eng_logit_bias){(int32_t)id, (float)bias};
    }
    g->params.biases = g->biases;
    return 0;
}

// A number that is not 0 does not become 0, which would mean something else.
static float above_zero(double value)
{
    return value > (double)FLT_MIN ? (float)value : FLT_MIN;
}

static int parse_sampling(struct srv_exchange *x, struct srv_gen *g, struct srv_error *e)
{
    const cJSON *b = g->body;
    struct eng_params *p = &g->params;
    double temperature = 1, top_p = 1, min_p = 0, repetition = 1, presence = 0, frequency = 0;
    int64_t top_k = 0, min_tokens = 0, seed = 0, timeout = 0, priority = 0;
    if (srv_json_number(b, "", "temperature", 0, 2, false, &temperature, e) < 0 ||
        srv_json_number(b, "", "top_p", 0, 1, false, &top_p, e) < 0 ||
        srv_json_number(b, "", "min_p", 0, 1, false, &min_p, e) < 0 ||
        srv_json_number(b, "", "repetition_penalty", 0, 100, true, &repetition, e) < 0 ||
        srv_json_number(b, "", "presence_penalty", -2, 2, false, &presence, e) < 0 ||
        srv_json_number(b, "", "frequency_penalty", -2, 2, false, &frequency, e) < 0 ||
        srv_json_int(b, "", "top_k", -1, INT32_MAX, &top_k, e) < 0 ||
        srv_json_int(b, "", "min_tokens", 0, INT32_MAX, &min_tokens, e) < 0 ||
        srv_json_int(b, "", "timeout_ms", 1, 86400000, &timeout, e) < 0 ||
        srv_json_int(b, "", "priority", -ENG_MAX_PRIORITY, ENG_MAX_PRIORITY, &priority, e) < 0 ||
        srv_json_bool(b, "", "ignore_eos", &p->ignore_eos, e) < 0 ||
        srv_json_bool(b, "", "skip_special_tokens", &p->skip_special, e) < 0)
        return -1;
    int has_seed = srv_json_int64_raw(x->body.data, x->body.len, "seed", &seed, e);
    if (!has_seed) // the key may be written with escapes, which the raw reader does not see
        has_seed = srv_json_int(b, "", "seed", -9007199254740991, 9007199254740991, &seed, e);
    if (has_seed < 0)
        return -1;
    if (has_seed)
        p->seed = (uint64_t)seed;
    else if (getrandom(&p->seed, sizeof p->seed, GRND_NONBLOCK) != (ssize_t)sizeof p->seed)
        p->seed = uv_hrtime();
    p->temperature = (float)temperature;
    p->top_p = above_zero(top_p); // 0 means what an infinitely small nucleus means: one token
    p->min_p = (float)min_p;
    p->repetition_penalty = above_zero(repetition);
    p->presence_penalty = (float)presence;
    p->frequency_penalty = (float)frequency;
    p->top_k = top_k > 0 ? (int32_t)top_k : 0;
    p->min_tokens = (int32_t)min_tokens;
    p->priority = (int32_t)priority;
    p->tenant = x->key % ENG_MAX_TENANTS; // who has the same key shares the machine's part of it
    int64_t limit = (int64_t)(x->server->config->request_timeout * 1000);
    p->timeout_ms = !timeout ? limit : limit && limit < timeout ? limit : timeout;
    return 0;
}

static int parse_counts(struct srv_gen *g, struct srv_error *e)
{
    const cJSON *b = g->body;
    int64_t n = 1, max_tokens = -1;
    if (srv_json_int(b, "", "n", 1, 128, &n, e) < 0 ||
        srv_json_int(b, "", "max_tokens", g->chat ? 1 : 0, INT32_MAX, &max_tokens, e) < 0 ||
        (g->chat && srv_json_int(b, "", "max_completion_tokens", 1, INT32_MAX, &max_tokens, e) < 0))
        return -1;
    g->n = (int)n;
    g->max_tokens = (int32_t)max_tokens;
    if (max_tokens >= 0 && g->params.min_tokens > max_tokens)
        return srv_error_set(e, "invalid_value", "min_tokens",
                             "Invalid value for 'min_tokens': %d is more than the %lld tokens that may be generated.",
                             (int)g->params.min_tokens, (long long)max_tokens);
    int64_t top = -1;
    if (g->chat) {
        bool wanted = false;
        if (srv_json_bool(b, "", "logprobs", &wanted, e) < 0 || srv_json_int(b, "", "top_logprobs", 0, 20, &top, e) < 0)
            return -1;
        if (top >= 0 && !wanted)
            return srv_error_set(e, "invalid_value", "top_logprobs", "'top_logprobs' needs 'logprobs': true.");
        g->params.n_top = wanted ? (top > 0 ? (int)top : 0) : -1;
        return 0;
    }
    if (srv_json_int(b, "", "logprobs", 0, 20, &top, e) < 0 || srv_json_bool(b, "", "echo", &g->echo, e) < 0)
        return -1;
    if (g->echo && top >= 0)
        return srv_error_set(e, "unsupported_parameter", "logprobs",
                             "Unsupported parameter: 'logprobs' cannot be combined with 'echo' by this server.");
    g->params.n_top = (int)top;
    return 0;
}

static int parse_stream(struct srv_gen *g, struct srv_error *e)
{
    const cJSON *b = g->body;
    if (srv_json_bool(b, "", "stream", &g->stream, e) < 0 ||
        srv_json_bool(b, "", "stream_draft", &g->params.stream_draft, e) < 0 ||
        srv_json_bool(b, "", "return_token_ids", &g->return_ids, e) < 0)
        return -1;
    if (g->params.stream_draft && !g->stream)
        return srv_error_set(e, "invalid_value", "stream_draft",
                             "The 'stream_draft' parameter is only allowed when 'stream' is enabled.");
    const cJSON *options = srv_json_get(b, "stream_options");
    if (!options)
        return 0;
    if (!cJSON_IsObject(options))
        return srv_error_set(e, "invalid_type", "stream_options",
                             "Invalid type for 'stream_options': expected an object, but got %s instead.",
                             srv_json_kind(options));
    if (!g->stream)
        return srv_error_set(e, "invalid_value", "stream_options",
                             "The 'stream_options' parameter is only allowed when 'stream' is enabled.");
    bool obfuscation;
    if (srv_json_bool(options, "stream_options", "include_usage", &g->include_usage, e) < 0 ||
        srv_json_bool(options, "stream_options", "continuous_usage_stats", &g->continuous_usage, e) < 0 ||
        srv_json_bool(options, "stream_options", "include_obfuscation", &obfuscation, e) < 0)
        return -1;
    g->continuous_usage &= g->include_usage;
    return 0;
}

// The modes a message may offer, for people.
static void list_modes(unsigned modes, struct srv_buf *out)
{
    srv_buf_puts(out, "auto");
    for (int m = 1; m < ENG_N_MODES; m++)
        if (modes & 1u << m)
            srv_buf_printf(out, ", %s", eng_mode_name(m));
}

static int check_mode(struct srv_gen *g, enum eng_mode mode, struct srv_error *e)
{
    unsigned modes = g->server->info->modes;
    if (mode == ENG_MODE_AUTO || modes & 1u << mode)
        return 0;
    struct srv_buf list = {0};
    list_modes(modes, &list);
    srv_error_set(e, "unsupported_value", "mode",
                  "Unsupported value for 'mode': this model cannot decode with %s%s; it has %s.", eng_mode_name(mode),
                  mode == ENG_MODE_SELF_SPECULATION && !g->server->info->has_adapter ? " without its draft adapter"
                                                                                     : "",
                  list.data ? list.data : "auto");
    srv_buf_free(&list);
    return -1;
}

static int parse_block(struct srv_gen *g, struct srv_error *e)
{
    int64_t block = 0;
    if (srv_json_int(g->body, "", "block_length", 4, 64, &block, e) < 0)
        return -1;
    if (block & (block - 1))
        return srv_error_set(e, "invalid_value", "block_length",
                             "Invalid value for 'block_length': %d; allowed are 4, 8, 16, 32 and 64.", (int)block);
    g->params.block_length = (int32_t)block;
    return 0;
}

static int parse_mode(struct srv_gen *g, struct srv_error *e)
{
    const cJSON *b = g->body;
    struct eng_params *p = &g->params;
    const char *name = NULL, *policy = NULL;
    bool lossless = false;
    double threshold = 0;
    int64_t steps = 0;
    int has_lossless, has_threshold = 0, has_steps = 0, has_policy = 0;
    if ((has_lossless = srv_json_bool(b, "", "lossless", &lossless, e)) < 0 ||
        (has_threshold = srv_json_number(b, "", "threshold", 0, 1, true, &threshold, e)) < 0 ||
        (has_steps = srv_json_int(b, "", "steps", 1, 64, &steps, e)) < 0 ||
        (has_policy = srv_json_string(b, "", "commit_policy", &policy, e)) < 0 ||
        srv_json_string(b, "", "mode", &name, e) < 0 || parse_block(g, e))
        return -1;
    int mode = eng_mode_parse(name ? name : g->server->config->mode);
    if (mode < 0)
        return srv_error_set(e, "invalid_value", "mode",
                             "Invalid value for 'mode': '%.32s'; allowed are auto, ar, diffusion and self_speculation.",
                             name);
    if (!name && lossless && mode == ENG_MODE_DIFFUSION)
        mode = ENG_MODE_AUTO; // the request's wish beats the server's default
    g->params.mode_by_default = !name && mode != ENG_MODE_AUTO;
    if (check_mode(g, (enum eng_mode)mode, e))
        return -1;
    if (lossless && mode == ENG_MODE_DIFFUSION)
        return srv_error_set(e, "invalid_value", "lossless",
                             "'lossless': true cannot be combined with mode 'diffusion', whose text differs.");
    const char *only = has_threshold ? "threshold" : has_steps ? "steps" : has_policy ? "commit_policy" : NULL;
    if (only && mode != ENG_MODE_AUTO && mode != ENG_MODE_DIFFUSION)
        return srv_error_set(
            e, "unsupported_parameter", only,
            "Unsupported parameter: '%s' applies to diffusion only, and this request decodes with %s%s.", only,
            eng_mode_name(mode), name ? "" : " (the server's default mode)");
    int parsed = policy ? eng_commit_policy_parse(policy) : ENG_COMMIT_CONFIDENCE;
    if (parsed < 0)
        return srv_error_set(
            e, "invalid_value", "commit_policy",
            "Invalid value for 'commit_policy': '%.32s'; allowed are confidence, schedule and leftmost.", policy);
    p->mode = (enum eng_mode)mode;
    p->threshold = has_threshold ? above_zero(threshold) : 0;
    p->steps = (int32_t)steps;
    p->commit_policy = (enum eng_commit_policy)parsed;
    p->lossless = lossless;
    p->allow_diffusion = has_lossless && !lossless;
    return 0;
}

// What is cached for one salt is never used for another.
static int parse_salt(struct srv_gen *g, struct srv_error *e)
{
    const char *salt = NULL;
    if (srv_json_string(g->body, "", "cache_salt", &salt, e) < 0)
        return -1;
    size_t len = salt ? strlen(salt) : 0;
    if (salt && (len == 0 || len > MAX_SALT))
        return srv_error_set(e, "invalid_value", "cache_salt",
                             "Invalid value for 'cache_salt': 1 to %d bytes are allowed.", MAX_SALT);
    g->params.cache_salt = salt;
    return 0;
}

int srv_api_params(struct srv_exchange *x, struct srv_gen *g, struct srv_error *e)
{
    return parse_stream(g, e) || parse_sampling(x, g, e) || parse_counts(g, e) || parse_stop(g, e) ||
                   parse_stop_ids(g, e) || parse_biases(g, e) || parse_mode(g, e) || parse_salt(g, e)
               ? -1
               : 0;
}
