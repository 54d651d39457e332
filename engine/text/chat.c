// 2 PARSE: chat messages to token ids: builds the template's variables, renders, and encodes with the marks that say
// what came from the client. Continuing the final message works as in Hugging Face: a tag that no client can know the
// place of is put after the message's text, and the rendering is cut there.
#include "text/chat.h"

#include "text/fail.h"
#include "text/file.h"
#include "text/jinja.h"
#include "text/tokenizer.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MAX_CONFIG = 16 << 20 };

// U+FDD0 is a noncharacter; the space at the end shows whether the template trims the message.
#define CONTINUE_TAG "\xEF\xB7\x90trimode-continue\xEF\xB7\x90"

struct eng_chat {
    const struct eng_tokenizer *tokenizer;
    struct eng_jinja *plain, *with_tools; // NULL: none; with_tools only where it differs
    cJSON *trusted;                       // bos_token and the like
};

// ---- loading --------------------------------------------------------------------------------------------------------

static int compile(const char *source, size_t len, struct eng_jinja **ret, char *err, size_t err_size)
{
    char why[256];
    struct eng_jinja *j = NULL;
    int rc = eng_jinja_compile(source, len, &j, why, sizeof why);
    if (rc)
        return fail(rc, err, err_size, "the chat template: %s", why);
    eng_jinja_free(*ret);
    *ret = j;
    return 0;
}

// The value of "chat_template".
static int load_template(struct eng_chat *c, const cJSON *json, char *err, size_t err_size)
{
    if (!json || cJSON_IsNull(json))
        return 0;
    if (cJSON_IsString(json))
        return compile(json->valuestring, strlen(json->valuestring), &c->plain, err, err_size);
    if (!cJSON_IsArray(json))
        return fail(ENG_EFORMAT, err, err_size, "chat_template is neither a text nor a list");
    const cJSON *item;
    cJSON_ArrayForEach(item, json)
    {
        const char *name = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(item, "name"));
        const char *source = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(item, "template"));
        if (!name || !source)
            return fail(ENG_EFORMAT, err, err_size, "a chat_template has no name or no template");
        struct eng_jinja **to = !strcmp(name, "default")    ? &c->plain
                                : !strcmp(name, "tool_use") ? &c->with_tools
                                                            : NULL;
        int rc = to ? compile(source, strlen(source), to, err, err_size) : 0;
        if (rc)
            return rc;
    }
    return 0;
}

// "x_token": "text" or {"content": "text"}.
static int load_tokens(struct eng_chat *c, const cJSON *config, char *err, size_t err_size)
{
    static const char *const names[] = {"bos_token", "eos_token",  "unk_token", "sep_token",
                                        "pad_token", "mask_token", "cls_token"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        const cJSON *json = cJSON_GetObjectItemCaseSensitive(config, names[i]);
        const char *text = cJSON_GetStringValue(json);
        if (cJSON_IsObject(json))
            text = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(json, "content"));
        if (text && !cJSON_AddStringToObject(c->trusted, names[i], text))
            return fail(ENG_ENOMEM, err, err_size, "out of memory");
    }
    return 0;
}

static char *join_path(const char *dir, const char *name)
{
    struct eng_buf b = {0};
    if (eng_buf_printf(&b, "%s/%s", dir, name)) {
        eng_buf_free(&b);
        return NULL;
    }
    return eng_buf_take(&b);
}

static int load_config(struct eng_chat *c, const char *path, char *err, size_t err_size)
{
    char *data = NULL;
    size_t len;
    cJSON *json = NULL;
    int rc = eng_text_read_file(path, MAX_CONFIG, &data, &len, err, err_size);
    if (!rc)
        rc = eng_text_parse_json(data, len, "tokenizer_config.json", &json, err, err_size);
    if (!rc)
        rc = load_tokens(c, json, err, err_size);
    if (!rc)
        rc = load_template(c, cJSON_GetObjectItemCaseSensitive(json, "chat_template"), err, err_size);
    cJSON_Delete(json);
    free(data);
    return rc;
}

// Goes before the configuration's template.
static int load_template_file(struct eng_chat *c, const char *path, char *err, size_t err_size)
{
    char *data = NULL;
    size_t len;
    int rc = eng_text_read_file(path, ENG_JINJA_MAX_SOURCE, &data, &len, err, err_size);
    if (!rc)
        rc = compile(data, len, &c->plain, err, err_size);
    if (!rc) {
        eng_jinja_free(c->with_tools);
        c->with_tools = NULL;
    }
    free(data);
    return rc;
}

int eng_chat_load(const char *dir, const struct eng_tokenizer *t, struct eng_chat **ret, char *err, size_t err_size)
{
    int rc = 0;
    char *config = join_path(dir, "tokenizer_config.json"), *template = join_path(dir, "chat_template.jinja");
    struct eng_chat *c = calloc(1, sizeof *c);
    if (c) {
        c->tokenizer = t;
        c->trusted = cJSON_CreateObject();
    }
    if (!config || !template || !c || !c->trusted)
        rc = fail(ENG_ENOMEM, err, err_size, "out of memory");
    if (!rc && !access(config, F_OK))
        rc = load_config(c, config, err, err_size);
    if (!rc && !access(template, F_OK))
        rc = load_template_file(c, template, err, err_size);
    free(config);
    free(template);
    if (rc) {
        eng_chat_free(c);
        return rc;
    }
    *ret = c;
    return 0;
}

void eng_chat_free(struct eng_chat *c)
{
    if (!c)
        return;
    eng_jinja_free(c->plain);
    eng_jinja_free(c->with_tools);
    cJSON_Delete(c->trusted);
    free(c);
}

bool eng_chat_has_template(const struct eng_chat *c)
{
    return c->plain || c->with_tools;
}

// ---- rendering ------------------------------------------------------------------------------------------------------

// Appends the tag to the text at *node (a string node), which is ours.
static int append_tag(cJSON *node)
{
    struct eng_buf b = {0};
    int rc = eng_buf_printf(&b, "%s%s ", node->valuestring, CONTINUE_TAG);
    if (!rc && !cJSON_SetValuestring(node, b.data))
        rc = ENG_ENOMEM;
    eng_buf_free(&b);
    return rc;
}

// A copy of messages whose last text ends in the tag.
static int tag_messages(const cJSON *messages, cJSON **ret, char *err, size_t err_size)
{
    cJSON *copy = cJSON_Duplicate(messages, 1);
    if (!copy)
        return fail(ENG_ENOMEM, err, err_size, "out of memory");
    int n = cJSON_GetArraySize(copy);
    cJSON *text = NULL, *part;
    cJSON *content = n ? cJSON_GetObjectItemCaseSensitive(cJSON_GetArrayItem(copy, n - 1), "content") : NULL;
    if (cJSON_IsString(content))
        text = content;
    else if (cJSON_IsArray(content)) // its last part with a text
        cJSON_ArrayForEach(part, content)
        {
            cJSON *t = cJSON_GetObjectItemCaseSensitive(part, "text");
            text = cJSON_IsString(t) ? t : text;
        }
    int rc = text ? append_tag(text) : ENG_EINVAL;
    if (rc) {
        cJSON_Delete(copy);
        return fail(rc, err, err_size, text ? "out of memory" : "the final message has no text to continue");
    }
    *ret = copy;
    return 0;
}

static size_t trim_end(const char *text, size_t len)
{
    while (len && strchr(" \t\n\v\f\r", text[len - 1]))
        len--;
    return len;
}

// Ends the rendering where the tag stands.
static int cut_at_tag(struct eng_jinja_out *out, char *err, size_t err_size)
{
    char *tag = NULL;
    size_t tag_len = strlen(CONTINUE_TAG);
    for (char *p = out->text; (p = memmem(p, out->len - (size_t)(p - out->text), CONTINUE_TAG, tag_len)); p++)
        tag = p;
    if (!tag)
        return fail(ENG_EINVAL, err, err_size,
                    "the chat template does not show the final message, so it cannot be continued");
    size_t len = (size_t)(tag - out->text);
    if (tag[tag_len] != ' ') // the template trims messages: what would have been trimmed goes too
        len = trim_end(out->text, len);
    out->len = len;
    out->text[len] = '\0';
    while (out->n_spans && out->spans[out->n_spans - 1].begin >= len)
        out->n_spans--;
    if (out->n_spans)
        out->spans[out->n_spans - 1].end = len;
    return 0;
}

static int check_kwargs(const struct eng_chat *c, const cJSON *kwargs, char *err, size_t err_size)
{
    static const char *const reserved[] = {"messages", "tools", "documents", "add_generation_prompt",
                                           "continue_final_message"};
    const cJSON *item;
    if (kwargs && !cJSON_IsNull(kwargs) && !cJSON_IsObject(kwargs))
        return fail(ENG_EINVAL, err, err_size, "the chat template's arguments must be an object");
    cJSON_ArrayForEach(item, kwargs)
    {
        bool taken = cJSON_GetObjectItemCaseSensitive(c->trusted, item->string);
        for (size_t i = 0; i < sizeof reserved / sizeof *reserved; i++)
            taken |= !strcmp(item->string, reserved[i]);
        if (taken)
            return fail(ENG_EINVAL, err, err_size, "the chat template's argument '%.40s' is set by the server",
                        item->string);
    }
    return 0;
}

// Lists and objects are shared, not copied: value is only read and must outlive object. NULL adds null.
static bool add_reference(cJSON *object, const char *name, const cJSON *value)
{
    cJSON *item = !value                  ? cJSON_CreateNull()
                  : cJSON_IsArray(value)  ? cJSON_CreateArrayReference(value->child)
                  : cJSON_IsObject(value) ? cJSON_CreateObjectReference(value->child)
                                          : cJSON_Duplicate(value, 1);
    if (cJSON_AddItemToObject(object, name, item))
        return true;
    cJSON_Delete(item);
    return false;
}

static cJSON *make_vars(const cJSON *messages, const cJSON *tools, bool add_generation_prompt, const cJSON *kwargs)
{
    cJSON *vars = cJSON_CreateObject();
    bool ok = vars && add_reference(vars, "messages", messages) && add_reference(vars, "tools", tools) &&
              add_reference(vars, "documents", NULL) &&
              cJSON_AddBoolToObject(vars, "add_generation_prompt", add_generation_prompt);
    const cJSON *item;
    cJSON_ArrayForEach(item, kwargs)
    {
        ok = ok && add_reference(vars, item->string, item);
    }
    if (!ok) {
        cJSON_Delete(vars);
        return NULL;
    }
    return vars;
}

static int render(const struct eng_chat *c, const cJSON *messages, const cJSON *tools, bool add_generation_prompt,
                  bool continue_final_message, const cJSON *kwargs, struct eng_jinja_out *out, char *err,
                  size_t err_size)
{
    if (!eng_chat_has_template(c))
        return fail(ENG_ENOTSUP, err, err_size, "the model has no chat template");
    if (!cJSON_IsArray(messages) || (tools && !cJSON_IsArray(tools) && !cJSON_IsNull(tools)))
        return fail(ENG_EINVAL, err, err_size, "messages and tools must be lists");
    if (add_generation_prompt && continue_final_message)
        return fail(ENG_EINVAL, err, err_size, "add_generation_prompt and continue_final_message exclude each other");
    int rc = check_kwargs(c, kwargs, err, err_size);
    cJSON *tagged = NULL;
    if (!rc && continue_final_message)
        rc = tag_messages(messages, &tagged, err, err_size);
    if (rc)
        return rc;
    bool use_tools = cJSON_IsArray(tools) && tools->child;
    const struct eng_jinja *template = (use_tools && c->with_tools) || !c->plain ? c->with_tools : c->plain;
    cJSON *vars = make_vars(tagged ? tagged : messages, use_tools ? tools : NULL, add_generation_prompt, kwargs);
    if (vars)
        rc = eng_jinja_render(template, vars, c->trusted, out, err, err_size);
    else
        rc = fail(ENG_ENOMEM, err, err_size, "out of memory");
    cJSON_Delete(vars);
    cJSON_Delete(tagged);
    if (!rc && continue_final_message) {
        rc = cut_at_tag(out, err, err_size);
        if (rc)
            eng_jinja_out_free(out);
    }
    return rc;
}

int eng_chat_render(const struct eng_chat *c, const cJSON *messages, const cJSON *tools, bool add_generation_prompt,
                    bool continue_final_message, const cJSON *kwargs, int32_t **ret_ids, size_t *ret_n, char *err,
                    size_t err_size)
{
    struct eng_jinja_out out = {0};
    int rc = render(c, messages, tools, add_generation_prompt, continue_final_message, kwargs, &out, err, err_size);
    if (rc)
        return rc;
    rc = eng_tokenizer_encode_marked(c->tokenizer, out.text, out.len, out.spans, out.n_spans, ret_ids, ret_n);
    eng_jinja_out_free(&out);
    return rc ? fail(rc, err, err_size, "the conversation cannot be tokenised: %s",
                     rc == ENG_EINVAL ? "it is not UTF-8" : "it is too long")
              : 0;
}

int eng_chat_render_text(const struct eng_chat *c, const cJSON *messages, const cJSON *tools,
                         bool add_generation_prompt, bool continue_final_message, const cJSON *kwargs,
                         struct eng_buf *out, char *err, size_t err_size)
{
    struct eng_jinja_out text = {0};
    int rc = render(c, messages, tools, add_generation_prompt, continue_final_message, kwargs, &text, err, err_size);
    if (rc)
        return rc;
    rc = eng_buf_append(out, text.text, text.len);
    eng_jinja_out_free(&text);
    return rc ? fail(rc, err, err_size, "out of memory") : 0;
}
