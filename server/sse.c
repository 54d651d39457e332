// 8 STREAM: bytes of one event; no I/O. Every event ends in a blank line (the Node client waits for it), JSON comes
// from srv_buf_json, which escapes line breaks, so an event is always one data line.
#include "sse.h"

#include <string.h>

void srv_sse_open(struct srv_buf *out)
{
    srv_buf_append(out, "data: ", 6);
}

void srv_sse_close(struct srv_buf *out)
{
    srv_buf_append(out, "\n\n", 2);
}

void srv_sse_done(struct srv_buf *out)
{
    srv_buf_puts(out, "data: [DONE]\n\n");
}

void srv_sse_ping(struct srv_buf *out)
{
    srv_buf_puts(out, ": ping\n\n");
}

void srv_sse_error_object(struct srv_buf *out, const struct srv_error *e)
{
    srv_buf_puts(out, "{\"error\":{\"message\":");
    srv_buf_jsonz(out, e->message);
    srv_buf_puts(out, ",\"type\":");
    srv_buf_jsonz(out, e->type);
    srv_buf_puts(out, ",\"param\":");
    srv_buf_jsonz(out, *e->param ? e->param : NULL);
    srv_buf_puts(out, ",\"code\":");
    srv_buf_jsonz(out, e->code);
    srv_buf_puts(out, "}}");
}

void srv_sse_error(struct srv_buf *out, const struct srv_error *e)
{
    srv_sse_open(out);
    srv_sse_error_object(out, e);
    srv_sse_close(out);
}

void srv_sse_chunk(struct srv_buf *out, const char *id, const char *object, int64_t created, const char *model)
{
    srv_sse_open(out);
    srv_buf_printf(out, "{\"id\":\"%s\",\"object\":\"%s\",\"created\":%lld,\"model\":", id, object, (long long)created);
    srv_buf_jsonz(out, model);
    srv_buf_puts(out, ",\"choices\":[");
}
