// 1 REQUEST: routes, methods, auth, body and type limits, request ids, answers. Loop thread only.
//
// MHD calls the handler once with the headers, then with pieces of the body, then once more. What is wrong with the
// headers is noticed at the first call. If the body is short enough it is still read and thrown away, so that the
// client gets the answer and keeps its connection; otherwise (and always when the length itself is in doubt) the answer
// goes out at once and the connection closes.
#include "http.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "http_guard.h"
#include "log.h"
#include "routes.h"
#include "sse.h"
#include "stream.h"

// ---- answers --------------------------------------------------------------------------------------------------------

static void cors_headers(const struct srv_exchange *x, struct MHD_Response *r)
{
    const char *origin = x->server->config->cors_origin;
    if (!*origin)
        return;
    MHD_add_response_header(r, "Access-Control-Allow-Origin", origin);
    MHD_add_response_header(r, "Access-Control-Expose-Headers", "x-request-id, retry-after, x-trimode-ignored");
    if (strcmp(origin, "*"))
        MHD_add_response_header(r, "Vary", "Origin");
    if (!strcmp(x->method, "OPTIONS")) {
        MHD_add_response_header(r, "Access-Control-Allow-Methods", "GET, POST, OPTIONS");
        MHD_add_response_header(r, "Access-Control-Allow-Headers", "*, Authorization, Content-Type");
        MHD_add_response_header(r, "Access-Control-Max-Age", "600");
    }
}

enum MHD_Result srv_http_queue(struct srv_exchange *x, int status, struct MHD_Response *r)
{
    MHD_add_response_header(r, "x-request-id", x->request_id);
    if (x->ignored.len && !x->ignored.failed)
        MHD_add_response_header(r, "x-trimode-ignored", x->ignored.data);
    if (x->allow)
        MHD_add_response_header(r, "Allow", x->allow);
    if (x->challenge)
        MHD_add_response_header(r, "WWW-Authenticate", "Bearer");
    if (x->close || x->server->state == SRV_DRAINING)
        MHD_add_response_header(r, "Connection", "close");
    cors_headers(x, r);
    x->status = status;
    enum MHD_Result ok = MHD_queue_response(x->connection, (unsigned)status, r);
    MHD_destroy_response(r);
    return ok;
}

static struct MHD_Response *make_response(struct srv_buf *body, const char *type)
{
    if (body->failed) {
        srv_buf_free(body);
        return NULL;
    }
    struct MHD_Response *r = MHD_create_response_from_buffer(body->len, body->data, MHD_RESPMEM_MUST_FREE);
    if (!r) {
        srv_buf_free(body);
        return NULL;
    }
    *body = (struct srv_buf){0};
    MHD_add_response_header(r, "Content-Type", type);
    return r;
}

enum MHD_Result srv_http_text(struct srv_exchange *x, int status, const char *type, struct srv_buf *body)
{
    struct MHD_Response *r = make_response(body, type);
    return r ? srv_http_queue(x, status, r) : MHD_NO;
}

enum MHD_Result srv_http_json(struct srv_exchange *x, int status, struct srv_buf *body)
{
    struct MHD_Response *r = make_response(body, "application/json");
    if (!r)
        return MHD_NO;
    char ms[32];
    snprintf(ms, sizeof ms, "%lld", (long long)((int64_t)uv_hrtime() - x->start_ns) / 1000000);
    MHD_add_response_header(r, "openai-processing-ms", ms);
    return srv_http_queue(x, status, r);
}

enum MHD_Result srv_http_error(struct srv_exchange *x, const struct srv_error *e)
{
    struct srv_buf body = {0};
    srv_sse_error_object(&body, e);
    struct MHD_Response *r = make_response(&body, "application/json");
    if (!r)
        return MHD_NO;
    char seconds[16];
    snprintf(seconds, sizeof seconds, "%d", e->retry_after);
    if (e->retry_after)
        MHD_add_response_header(r, "Retry-After", seconds);
    if (e->no_retry)
        MHD_add_response_header(r, "x-should-retry", "false");
    srv_log(SRV_LOG_DEBUG, x->request_id, "%d: %s", e->status, e->message);
    return srv_http_queue(x, e->status, r);
}

// ---- the header block -----------------------------------------------------------------------------------------------

static const char *header(const struct srv_exchange *x, const char *name)
{
    return MHD_lookup_connection_value(x->connection, MHD_HEADER_KIND, name);
}

static int check_key(struct srv_exchange *x)
{
    enum srv_auth auth = x->route->auth;
    const struct srv_keys *keys = auth == SRV_AUTH_API ? &x->server->api_keys : &x->server->metrics_keys;
    if (auth == SRV_AUTH_NONE || keys->n == 0)
        return 0;
    const char *given = header(x, "Authorization");
    int key = srv_http_keys_find(keys, given);
    if (key >= 0) {
        x->key = key;
        return 0;
    }
    x->challenge = true;
    return srv_error_status(&x->error, 401, "invalid_request_error", given ? "invalid_api_key" : NULL,
                            given ? "Incorrect API key provided."
                                  : "You didn't provide an API key. Send it as 'Authorization: Bearer KEY'.");
}

// 0, or -1 and x->error when the request is refused whatever its body says.
static int check_headers(struct srv_exchange *x, const char *url, uint64_t length)
{
    struct srv_error *e = &x->error;
    uint64_t max_body = (uint64_t)x->server->config->max_body;
    const char *rest;
    x->route = srv_route_find(url, &rest);
    if (!x->route) {
        return srv_error_status(e, 404, "invalid_request_error", NULL, "Invalid URL (%s %s)", x->method, x->path);
    }
    snprintf(x->tail, sizeof x->tail, "%s", rest);
    x->rest = x->tail;
    bool get = !strcmp(x->route->method, "GET");
    x->allow = get ? "GET, HEAD, OPTIONS" : "POST, OPTIONS";
    if (!strcmp(x->method, "OPTIONS"))
        return 0;
    if (strcmp(x->method, x->route->method) && !(get && !strcmp(x->method, "HEAD")))
        return srv_error_status(e, 405, "invalid_request_error", "method_not_supported",
                                "Not allowed to %s on %s (HINT: use %s).", x->method, x->path, x->route->method);
    x->allow = NULL;
    if (check_key(x))
        return -1;
    if (length != UINT64_MAX && length > max_body)
        return srv_error_status(e, 413, "invalid_request_error", "request_too_large",
                                "The request body is larger than %llu bytes.", (unsigned long long)max_body);
    if (!get && !srv_http_is_json(header(x, "Content-Type")))
        return srv_error_status(e, 415, "invalid_request_error", NULL,
                                "Unsupported Content-Type; send the body as application/json.");
    return 0;
}

static enum MHD_Result begin(struct srv_exchange *x, const char *url)
{
    uint64_t length;
    if (srv_http_guard(x, &length)) {
        x->close = true;
        return srv_http_error(x, &x->error);
    }
    if (!check_headers(x, url, length))
        return MHD_YES;
    // A body of at most twice the limit is read and dropped first; anything else is answered at once.
    uint64_t patience = 2 * (uint64_t)x->server->config->max_body;
    if (x->has_body && (header(x, "Expect") || (length != UINT64_MAX && length > patience))) {
        x->close = true;
        return srv_http_error(x, &x->error);
    }
    x->refused = true;
    return MHD_YES;
}

// ---- the exchange ---------------------------------------------------------------------------------------------------

static struct srv_exchange *new_exchange(struct srv_server *server, struct MHD_Connection *connection, const char *url,
                                         const char *method)
{
    struct srv_exchange *x = calloc(1, sizeof *x);
    if (!x)
        return NULL;
    x->server = server;
    x->connection = connection;
    x->start_ns = (int64_t)uv_hrtime();
    snprintf(x->method, sizeof x->method, "%s", method);
    snprintf(x->path, sizeof x->path, "%s", url);
    srv_http_request_id(header(x, "x-request-id"), x->request_id, sizeof x->request_id);
    return x;
}

// A piece of the body. MHD_NO only for a sender that ignores every limit.
static enum MHD_Result take_piece(struct srv_exchange *x, const char *upload, size_t n)
{
    size_t max_body = (size_t)x->server->config->max_body;
    if (!x->refused && x->body.len + n > max_body) {
        srv_error_status(&x->error, 413, "invalid_request_error", "request_too_large",
                         "The request body is larger than %zu bytes.", max_body);
        x->refused = true;
        x->discarded = x->body.len;
        srv_buf_free(&x->body);
    }
    bool wanted = !x->refused && x->route && !strcmp(x->route->method, "POST");
    if (wanted)
        srv_buf_append(&x->body, upload, n);
    else
        x->discarded += n;
    return x->discarded > 2 * (uint64_t)max_body ? MHD_NO : MHD_YES;
}

static enum MHD_Result dispatch(struct srv_exchange *x)
{
    if (x->refused)
        return srv_http_error(x, &x->error);
    if (!strcmp(x->method, "OPTIONS")) {
        struct MHD_Response *r = MHD_create_response_from_buffer(0, NULL, MHD_RESPMEM_PERSISTENT);
        return r ? srv_http_queue(x, 204, r) : MHD_NO;
    }
    if (x->body.failed)
        return MHD_NO;
    if (!x->body.data)
        srv_buf_append(&x->body, "", 0); // handlers may rely on the NUL
    return x->body.failed ? MHD_NO : x->route->handle(x);
}

enum MHD_Result srv_http_handle(void *user, struct MHD_Connection *connection, const char *url, const char *method,
                                const char *version, const char *upload, size_t *upload_size, void **ret_exchange)
{
    (void)version;
    struct srv_exchange *x = *ret_exchange;
    if (!x) {
        x = *ret_exchange = new_exchange(user, connection, url, method);
        return x ? begin(x, url) : MHD_NO;
    }
    if (x->stream)
        return (enum MHD_Result)srv_stream_answer(x->stream);
    if (*upload_size) {
        size_t n = *upload_size;
        *upload_size = 0;
        return take_piece(x, upload, n);
    }
    enum MHD_Result ok = dispatch(x);
    // The body is not needed any more, and a generation may hold the exchange for minutes.
    srv_buf_free(&x->body);
    return ok;
}

void srv_http_completed(void *user, struct MHD_Connection *connection, void **exchange,
                        enum MHD_RequestTerminationCode why)
{
    struct srv_server *server = user;
    struct srv_exchange *x = *exchange;
    (void)connection;
    if (!x)
        return;
    *exchange = NULL;
    int status = x->status ? x->status : 499; // nginx' number for a client that left; it is never sent
    int route = x->route ? (int)(x->route - srv_routes) : SRV_METRICS_ROUTES;
    srv_metrics_answer(&server->metrics, route, status);
    enum srv_log_level level = x->route && x->route->probe && status < 500 ? SRV_LOG_DEBUG : SRV_LOG_INFO;
    if (srv_log_enabled(level)) {
        char summary[96] = "";
        if (x->stream)
            srv_stream_summary(x->stream, summary, sizeof summary);
        srv_log(level, x->request_id, "%s %s %d %.1f ms%s%s", x->method, x->path, status,
                (double)((int64_t)uv_hrtime() - x->start_ns) * 1e-6, summary,
                why == MHD_REQUEST_TERMINATED_COMPLETED_OK ? "" : " (cut off)");
    }
    if (x->stream)
        srv_stream_detach(x->stream);
    srv_buf_free(&x->body);
    srv_buf_free(&x->ignored);
    free(x);
}
