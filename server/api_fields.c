// 2 PARSE: every top-level key a completion request may have. A known parameter is never silently ignored: it is used,
// it is harmless by nature, or it is a 400 that names it. A key nobody knows is reported in x-trimode-ignored.
#include <string.h>

#include "api_common.h"
#include "log.h"

enum { CHAT = 1, TEXT = 2, BOTH = 3 };
enum kind { USED, HARMLESS, UNSUPPORTED };

struct known {
    const char *name;
    int where;
    enum kind kind;
};

static const struct known fields[] = {
    {"model", BOTH, USED},
    {"messages", CHAT, USED},
    {"prompt", TEXT, USED},
    {"max_tokens", BOTH, USED},
    {"max_completion_tokens", CHAT, USED},
    {"temperature", BOTH, USED},
    {"top_p", BOTH, USED},
    {"top_k", BOTH, USED},
    {"min_p", BOTH, USED},
    {"presence_penalty", BOTH, USED},
    {"frequency_penalty", BOTH, USED},
    {"repetition_penalty", BOTH, USED},
    {"stop", BOTH, USED},
    {"stop_token_ids", BOTH, USED},
    {"min_tokens", BOTH, USED},
    {"ignore_eos", BOTH, USED},
    {"n", BOTH, USED},
    {"seed", BOTH, USED},
    {"stream", BOTH, USED},
    {"stream_options", BOTH, USED},
    {"stream_draft", BOTH, USED},
    {"logprobs", BOTH, USED},
    {"top_logprobs", CHAT, USED},
    {"logit_bias", BOTH, USED},
    {"echo", TEXT, USED},
    {"mode", BOTH, USED},
    {"block_length", BOTH, USED},
    {"threshold", BOTH, USED},
    {"steps", BOTH, USED},
    {"commit_policy", BOTH, USED},
    {"lossless", BOTH, USED},
    {"return_token_ids", BOTH, USED},
    {"skip_special_tokens", BOTH, USED},
    {"add_generation_prompt", CHAT, USED},
    {"continue_final_message", CHAT, USED},
    {"chat_template_kwargs", CHAT, USED},
    {"timeout_ms", BOTH, USED},
    {"priority", BOTH, USED},
    {"cache_salt", BOTH, USED},
    // Nothing about the text depends on these.
    {"user", BOTH, HARMLESS},
    {"metadata", BOTH, HARMLESS},
    {"store", BOTH, HARMLESS},
    {"service_tier", BOTH, HARMLESS},
    {"safety_identifier", BOTH, HARMLESS},
    {"prompt_cache_key", BOTH, HARMLESS},
    {"prompt_cache_options", BOTH, HARMLESS},
    {"prompt_cache_retention", BOTH, HARMLESS},
    {"moderation", BOTH, HARMLESS},
    {"reasoning_effort", CHAT, HARMLESS},
    {"verbosity", CHAT, HARMLESS},
    {"prediction", CHAT, HARMLESS},
    {"parallel_tool_calls", CHAT, HARMLESS},
    {"request_id", BOTH, HARMLESS},
    // Refused unless the value says "no".
    {"tools", CHAT, UNSUPPORTED},
    {"tool_choice", CHAT, UNSUPPORTED},
    {"functions", CHAT, UNSUPPORTED},
    {"function_call", CHAT, UNSUPPORTED},
    {"response_format", BOTH, UNSUPPORTED},
    {"modalities", CHAT, UNSUPPORTED},
    {"audio", CHAT, UNSUPPORTED},
    {"web_search_options", CHAT, UNSUPPORTED},
    {"suffix", TEXT, UNSUPPORTED},
    {"best_of", BOTH, UNSUPPORTED},
    {"use_beam_search", BOTH, UNSUPPORTED},
    {"length_penalty", BOTH, UNSUPPORTED},
    {"bad_words", BOTH, UNSUPPORTED},
    {"allowed_token_ids", BOTH, UNSUPPORTED},
    {"prompt_logprobs", BOTH, UNSUPPORTED},
    {"prompt_embeds", TEXT, UNSUPPORTED},
    {"truncate_prompt_tokens", BOTH, UNSUPPORTED},
    {"include_stop_str_in_output", BOTH, UNSUPPORTED},
    {"documents", CHAT, UNSUPPORTED},
    {"chat_template", CHAT, UNSUPPORTED},
    {"logits_processors", BOTH, UNSUPPORTED},
    {"kv_transfer_params", BOTH, UNSUPPORTED},
    {"structured_outputs", BOTH, UNSUPPORTED},
    {"guided_json", BOTH, UNSUPPORTED},
    {"guided_regex", BOTH, UNSUPPORTED},
    {"guided_choice", BOTH, UNSUPPORTED},
    {"guided_grammar", BOTH, UNSUPPORTED},
};

static bool is_text(const cJSON *item, const char *text)
{
    return cJSON_IsString(item) && !strcmp(item->valuestring, text);
}

// Does this value of an unsupported field ask for nothing?
static bool is_neutral(const char *name, const cJSON *item, const cJSON *body)
{
    if (!strcmp(name, "prompt_logprobs"))
        return cJSON_IsFalse(item); // 0 asks for the tokens of the prompt, without alternatives
    if (cJSON_IsFalse(item) || is_text(item, "") || (cJSON_IsNumber(item) && item->valuedouble == 0) ||
        ((cJSON_IsArray(item) || cJSON_IsObject(item)) && !item->child))
        return true;
    if (!strcmp(name, "tool_choice") || !strcmp(name, "function_call"))
        return is_text(item, "none") || is_text(item, "auto");
    if (!strcmp(name, "response_format"))
        return is_text(cJSON_GetObjectItemCaseSensitive(item, "type"), "text");
    if (!strcmp(name, "modalities"))
        return cJSON_IsArray(item) && cJSON_GetArraySize(item) == 1 && is_text(item->child, "text");
    if (!strcmp(name, "length_penalty"))
        return cJSON_IsNumber(item) && item->valuedouble == 1;
    if (!strcmp(name, "best_of")) {
        const cJSON *n = srv_json_get(body, "n");
        return cJSON_IsNumber(item) && item->valuedouble == (cJSON_IsNumber(n) ? n->valuedouble : 1);
    }
    return false;
}

static const struct known *find(const char *name, int where)
{
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++)
        if ((fields[i].where & where) && !strcmp(fields[i].name, name))
            return &fields[i];
    return NULL;
}

// Header-safe: other characters become '?'.
static void report_ignored(struct srv_exchange *x, const char *name)
{
    if (x->ignored.len > 800)
        return;
    char safe[64];
    size_t n = 0;
    for (const char *p = name; *p && n < sizeof safe - 1; p++)
        safe[n++] = *p > 0x20 && *p < 0x7F && *p != ',' ? *p : '?';
    safe[n] = 0;
    srv_buf_printf(&x->ignored, "%s%s", x->ignored.len ? ", " : "", safe);
}

int srv_api_check_fields(struct srv_exchange *x, const cJSON *body, bool chat, struct srv_error *e)
{
    const cJSON *item;
    cJSON_ArrayForEach(item, body)
    {
        const struct known *field = find(item->string, chat ? CHAT : TEXT);
        if (!field) {
            report_ignored(x, item->string);
            srv_log(SRV_LOG_DEBUG, x->request_id, "ignoring the unknown field '%.64s'", item->string);
        } else if (field->kind == UNSUPPORTED && !cJSON_IsNull(item) && !is_neutral(field->name, item, body)) {
            return srv_error_set(e, "unsupported_parameter", field->name,
                                 "Unsupported parameter: '%s' is not supported by this server.", field->name);
        }
    }
    return 0;
}
