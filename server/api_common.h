// What both completion endpoints share: the parsed request, and the pieces of JSON of their answers.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cjson/cJSON.h>

#include "engine.h"
#include "http.h"
#include "stream.h"

struct srv_prompt {
    int32_t *ids;
    size_t n;
    char *text; // of completions with echo, or NULL
    size_t text_len;
};

struct srv_gen { // the data of a stream
    struct srv_server *server;
    bool chat;
    cJSON *body; // strings below point into it
    char id[64];
    int64_t created;
    bool stream, include_usage, continuous_usage, return_ids, echo;
    int n;              // choices per prompt
    int32_t max_tokens; // -1: not given
    struct eng_params params;
    int32_t *stop_ids;
    const char **stops;
    struct eng_logit_bias *biases;
    struct srv_prompt *prompts;
    int n_prompts;
};

// 0 when requests are accepted; otherwise -1 and a 503 with the reason.
int srv_api_available(struct srv_server *s, struct srv_error *e);
// The requested model's name, if any, must be ours: 0, or -1 and a 404.
int srv_api_check_model(struct srv_server *s, const cJSON *body, struct srv_error *e);
// "chatcmpl-" and 32 hexadecimal digits.
void srv_api_id(const char *prefix, char *out, size_t size);
// Text to ids as prompts are read: 0, or -1 and a 400 about param. Refuses what is too long without reading it all.
int srv_api_encode(struct srv_server *s, const char *text, const char *param, int32_t **ret_ids, size_t *ret_n,
                   struct srv_error *e);
// api_chat.c: the messages of a body, checked and rendered through the model's template. *ret_ids is freed with free.
int srv_api_render(struct srv_server *s, const cJSON *body, int32_t **ret_ids, size_t *ret_n, struct srv_error *e);
// "maximum context length is N tokens": other programs match on these words.
int srv_api_too_long(const struct srv_server *s, const char *param, size_t n, struct srv_error *e);

// Parses x->body and every field but the prompt. The result is freed with srv_gen_free; NULL and *e on failure. Names
// that nobody knows go to x->ignored.
struct srv_gen *srv_gen_parse(struct srv_exchange *x, bool chat, struct srv_error *e);
void srv_gen_free(void *gen);
// Takes gen over, submits n requests per prompt and suspends the exchange, or answers with an error.
enum MHD_Result srv_gen_submit(struct srv_exchange *x, struct srv_gen *gen, const struct srv_stream_ops *ops);

// api_fields.c: what to do with each top-level key.
int srv_api_check_fields(struct srv_exchange *x, const cJSON *body, bool chat, struct srv_error *e);
// Fields that say how to sample, where to stop and in which mode to decode.
int srv_api_params(struct srv_exchange *x, struct srv_gen *gen, struct srv_error *e);

// api_format.c
const char *srv_api_finish_name(enum eng_finish finish); // "stop", "length"
void srv_api_usage(struct srv_buf *out, const struct srv_stream *s);
// The trimode object of one choice, or of all when c is NULL.
void srv_api_trimode(struct srv_buf *out, const struct srv_stream *s, const struct srv_choice *c);
// `"stop_reason":` and what ended the choice: a stop string, an id, or null.
void srv_api_stop_reason(struct srv_buf *out, const struct srv_choice *c);
// `,"usage":...` and `,"trimode":...` as a stream's chunk needs them, then the closing of the chunk. c: the choice that
// ends with this chunk, or NULL. The caller has closed the array of choices.
void srv_api_chunk_end(struct srv_buf *out, const struct srv_stream *s, const struct srv_choice *c);
// Opens a chunk of this stream.
void srv_api_chunk(struct srv_buf *out, const struct srv_stream *s);
// The usage chunk, if asked for, and [DONE].
void srv_api_stream_end(struct srv_buf *out, const struct srv_stream *s);
// Appends the ids of an event to c->ids when the client asked for them.
void srv_api_gather_ids(struct srv_choice *c, const struct eng_event *ev);
// One event `trimode.draft`: the positions of a block that are not final yet.
void srv_api_draft(struct srv_stream *s, struct srv_choice *c, const struct eng_draft *draft);
// A JSON list of ids.
void srv_api_ids(struct srv_buf *out, const int32_t *ids, size_t n);
// A log-probability as JSON; minus infinity becomes -9999.
void srv_api_logprob(struct srv_buf *out, float logprob);
