// 2 PARSE: chat messages to token ids, through the checkpoint's own Jinja template.
#pragma once

#include "base/buf.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct cJSON;
struct eng_chat;
struct eng_tokenizer;

// Reads chat_template.jinja, else "chat_template" of tokenizer_config.json (a text, or a list of named ones of which
// "default" and "tool_use" are taken), and the texts of bos_token, eos_token and the like, from the model folder dir. t
// must outlive the result. A model without a template loads; rendering then fails with ENG_ENOTSUP. ENG_EIO,
// ENG_EFORMAT, ENG_ELIMIT, ENG_ENOMEM with one sentence in err. *ret is freed with eng_chat_free and immutable: the
// functions below may run on any number of threads.
int eng_chat_load(const char *dir, const struct eng_tokenizer *t, struct eng_chat **ret, char *err, size_t err_size);

// Takes NULL.
void eng_chat_free(struct eng_chat *c);

bool eng_chat_has_template(const struct eng_chat *c);

// Token ids of a conversation. messages: a JSON array of objects; tools: an array or NULL; kwargs: an object of further
// template variables, or NULL. Nothing is kept. What the template writes is parsed for special tokens, what comes out
// of messages, tools and kwargs never is. add_generation_prompt: end where the assistant begins to speak.
// continue_final_message: end inside the last message, right after its text, so that the model goes on with it;
// excludes add_generation_prompt. *ret_ids is freed with free. ENG_EINVAL: the arguments, or the template refuses or
// cannot handle them (err is for the client); ENG_ENOTSUP: no template; ENG_ELIMIT; ENG_ENOMEM.
int eng_chat_render(const struct eng_chat *c, const struct cJSON *messages, const struct cJSON *tools,
                    bool add_generation_prompt, bool continue_final_message, const struct cJSON *kwargs,
                    int32_t **ret_ids, size_t *ret_n, char *err, size_t err_size);

// The same as text, appended to out. Encoding that text anew would parse special tokens in what users wrote.
int eng_chat_render_text(const struct eng_chat *c, const struct cJSON *messages, const struct cJSON *tools,
                         bool add_generation_prompt, bool continue_final_message, const struct cJSON *kwargs,
                         struct eng_buf *out, char *err, size_t err_size);
