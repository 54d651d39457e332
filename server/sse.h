// The bytes of one server-sent event.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "buf.h"
#include "json.h"

// An event is srv_sse_open, JSON without raw line breaks, srv_sse_close. Only data and comment lines are ever sent: an
// id, retry or lone event line makes the Python client parse an empty event.
void srv_sse_open(struct srv_buf *out);
void srv_sse_close(struct srv_buf *out);
// data: [DONE]
void srv_sse_done(struct srv_buf *out);
// A comment line, which clients skip; it keeps proxies from cutting a silent stream.
void srv_sse_ping(struct srv_buf *out);
// data: {"error":{...}}
void srv_sse_error(struct srv_buf *out, const struct srv_error *e);

// {"error":{"message","type","param","code"}} without a line break.
void srv_sse_error_object(struct srv_buf *out, const struct srv_error *e);
// Opens an event up to and including `"choices":[`. The caller closes with `]`, what follows, `}` and srv_sse_close.
void srv_sse_chunk(struct srv_buf *out, const char *id, const char *object, int64_t created, const char *model);
