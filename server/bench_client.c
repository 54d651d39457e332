// bench serve: one client on libuv: connect, write, read, verify, and again on the same connection, as the OpenAI
// clients do. Hundreds of them share one thread and its loop. The time of a token is taken when the read returns,
// before anything is parsed. A request begins when it is sent, or when its connection is opened if there is none yet. A
// connection that the server closed between two requests is opened again without an error. Everything that fails ends
// in finish() with a reason, and the connection with it. No TLS.
#include "bench_client.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "json.h"

enum { MAX_BODY = 1 << 20 }; // bytes of an answer that is no stream

double srv_bench_now_ms(void)
{
    return (double)uv_hrtime() * 1e-6;
}

// ---- where to -------------------------------------------------------------------------------------------------------

int srv_bench_target_open(struct srv_bench_target *t, const char *url, char *err, size_t err_size)
{
    char name[256], port[8] = "80";
    const char *p = url, *end, *tail;
    if (strncmp(p, "http://", 7))
        goto refuse;
    p += 7;
    bool bracket = *p == '[';
    p += bracket;
    end = p + strcspn(p, bracket ? "]" : ":/?#");
    if (end == p || (size_t)(end - p) >= sizeof name || (bracket && *end != ']'))
        goto refuse;
    snprintf(name, sizeof name, "%.*s", (int)(end - p), p);
    tail = end + bracket;
    if (*tail == ':') {
        size_t n = strspn(tail + 1, "0123456789");
        if (n == 0 || n > 5 || atoi(tail + 1) < 1 || atoi(tail + 1) > 65535)
            goto refuse;
        snprintf(port, sizeof port, "%.*s", (int)n, tail + 1);
        tail += 1 + n;
    }
    size_t n_path = strlen(tail);
    while (n_path && tail[n_path - 1] == '/')
        n_path--;
    // The base URL that OpenAI's clients are given ends in /v1.
    if (n_path >= 3 && !memcmp(tail + n_path - 3, "/v1", 3))
        n_path -= 3;
    if ((n_path && *tail != '/') || n_path >= sizeof t->path || strcspn(tail, " ?#\r\n") < n_path)
        goto refuse;
    snprintf(t->path, sizeof t->path, "%.*s", (int)n_path, tail);
    snprintf(t->host, sizeof t->host, bracket ? "[%s]:%s" : "%s:%s", name, port);

    uv_getaddrinfo_t lookup;
    struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM};
    int rc = uv_getaddrinfo(t->loop, &lookup, NULL, name, port, &hints);
    if (rc) {
        snprintf(err, err_size, "url: the host '%s' cannot be found (%s)", name, uv_strerror(rc));
        return -1;
    }
    memcpy(&t->address, lookup.addrinfo->ai_addr, lookup.addrinfo->ai_addrlen);
    uv_freeaddrinfo(lookup.addrinfo);
    return 0;
refuse:
    snprintf(err, err_size, "url cannot be '%.200s'; allowed: http://HOST[:PORT][/PREFIX]", url);
    return -1;
}

// ---- the end of a request -------------------------------------------------------------------------------------------

static void open_connection(struct srv_bench_client *c);

static void on_closed(uv_handle_t *handle)
{
    struct srv_bench_client *c = handle->data;
    c->state = SRV_BENCH_CLOSED;
    if (c->busy)
        open_connection(c);
}

static void close_connection(struct srv_bench_client *c)
{
    if (c->state != SRV_BENCH_CONNECTING && c->state != SRV_BENCH_OPEN)
        return;
    c->state = SRV_BENCH_CLOSING;
    uv_close((uv_handle_t *)&c->tcp, on_closed);
}

// The last thing any callback does: on_done may begin the next request.
static void finish(struct srv_bench_client *c, const char *error)
{
    uv_timer_stop(&c->timer);
    snprintf(c->error, sizeof c->error, "%s", error);
    c->ended_ms = srv_bench_now_ms();
    c->busy = false;
    if (*error || !c->http.keep)
        close_connection(c);
    c->on_done(c);
}

static void on_timeout(uv_timer_t *timer)
{
    struct srv_bench_client *c = timer->data;
    char text[80];
    snprintf(text, sizeof text, "no %s within %g s", c->http.status ? "end of the answer" : "answer",
             (double)c->target->timeout_ms * 1e-3);
    finish(c, text);
}

// What the server said against the request, cut to what fits a line.
static void refused(struct srv_bench_client *c)
{
    char text[300];
    cJSON *answer = NULL;
    struct srv_error e;
    const cJSON *message = NULL;
    if (c->body.len && !srv_json_parse(c->body.data, c->body.len, &answer, &e))
        message = srv_json_get(srv_json_get(answer, "error"), "message");
    if (cJSON_IsString(message))
        snprintf(text, sizeof text, "status %d: %.200s", c->http.status, message->valuestring);
    else
        snprintf(text, sizeof text, "status %d", c->http.status);
    cJSON_Delete(answer);
    finish(c, text);
}

static void completed(struct srv_bench_client *c)
{
    if (c->http.status != 200)
        refused(c);
    else if (c->streaming && !c->http.event_stream)
        finish(c, "the answer is no event stream");
    else if (c->streaming && srv_bench_check_end(&c->check))
        finish(c, c->check.error);
    else
        finish(c, c->body.failed ? "the client ran out of memory" : "");
}

// ---- what comes -----------------------------------------------------------------------------------------------------

static int on_body(void *user, const char *bytes, size_t n)
{
    struct srv_bench_client *c = user;
    if (c->streaming && c->http.status == 200 && c->http.event_stream) {
        if (!srv_bench_check_feed(&c->check, bytes, n))
            return 0;
        c->http.why = c->check.error;
        return -1;
    }
    srv_buf_append(&c->body, bytes, n);
    if (c->body.len <= MAX_BODY)
        return 0;
    c->http.why = "the answer is too long";
    return -1;
}

static void on_alloc(uv_handle_t *handle, size_t suggested, uv_buf_t *buf)
{
    struct srv_bench_client *c = handle->data;
    (void)suggested;
    *buf = uv_buf_init(c->target->read, sizeof c->target->read);
}

static void ended(struct srv_bench_client *c, ssize_t code)
{
    // The server may close a connection just when the next request goes out; nothing was answered, so nothing is lost.
    bool again = c->busy && c->reused;
    if (c->busy && !again && code == UV_EOF && srv_bench_http_eof(&c->http) > 0) {
        completed(c);
        return;
    }
    close_connection(c);
    if (c->busy && !again)
        finish(c, code == UV_EOF ? c->http.why : uv_strerror((int)code));
}

static void on_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *buf)
{
    struct srv_bench_client *c = stream->data;
    if (n == 0 || c->state != SRV_BENCH_OPEN)
        return;
    if (n < 0) {
        ended(c, n);
        return;
    }
    double now = srv_bench_now_ms();
    c->reused = false;
    if (!c->busy) { // nobody asked: the next request gets a clean connection
        close_connection(c);
        return;
    }
    int status = srv_bench_http_feed(&c->http, buf->base, (size_t)n);
    srv_bench_check_arrived(&c->check, now);
    if (status < 0)
        finish(c, c->http.why);
    else if (status > 0)
        completed(c);
}

// ---- what goes ------------------------------------------------------------------------------------------------------

static void on_written(uv_write_t *write, int status)
{
    struct srv_bench_client *c = write->data;
    c->writing = false;
    if (status < 0 && status != UV_ECANCELED && c->state == SRV_BENCH_OPEN)
        ended(c, status);
}

static void write_request(struct srv_bench_client *c)
{
    uv_buf_t buf = uv_buf_init(c->out.data, (unsigned)c->out.len);
    c->writing = true;
    int rc = uv_write(&c->write, (uv_stream_t *)&c->tcp, &buf, 1, on_written);
    if (rc) {
        c->writing = false;
        ended(c, rc);
    }
}

static void on_connected(uv_connect_t *connect, int status)
{
    struct srv_bench_client *c = connect->data;
    if (c->state != SRV_BENCH_CONNECTING)
        return; // closed meanwhile
    if (!status)
        status = uv_read_start((uv_stream_t *)&c->tcp, on_alloc, on_read);
    if (status) {
        char text[120];
        snprintf(text, sizeof text, "cannot connect: %s", uv_strerror(status));
        finish(c, text);
        return;
    }
    c->state = SRV_BENCH_OPEN;
    uv_tcp_nodelay(&c->tcp, 1);
    if (c->busy)
        write_request(c);
}

static void open_connection(struct srv_bench_client *c)
{
    c->reused = false;
    uv_tcp_init(c->target->loop, &c->tcp);
    c->tcp.data = c->connect.data = c->write.data = c;
    c->state = SRV_BENCH_CONNECTING;
    int rc = uv_tcp_connect(&c->connect, &c->tcp, (const struct sockaddr *)&c->target->address, on_connected);
    if (rc) {
        char text[120];
        snprintf(text, sizeof text, "cannot connect: %s", uv_strerror(rc));
        finish(c, text);
    }
}

void srv_bench_client_init(struct srv_bench_client *c, struct srv_bench_target *target)
{
    *c = (struct srv_bench_client){.target = target};
    uv_timer_init(target->loop, &c->timer);
    c->timer.data = c;
    c->http.on_body = on_body;
    c->http.user = c;
}

void srv_bench_client_send(struct srv_bench_client *c, const char *path, const struct srv_buf *json,
                           const struct srv_bench_expect *expect)
{
    static const struct srv_bench_expect nothing;
    const struct srv_bench_target *t = c->target;
    // An answer may be there before its request was written out; libuv then still reads from the old bytes.
    if (c->writing)
        close_connection(c);
    srv_buf_reset(&c->out);
    srv_buf_printf(&c->out, "%s %s%s HTTP/1.1\r\nHost: %s\r\nUser-Agent: trimode-bench\r\n", json ? "POST" : "GET",
                   t->path, path, t->host);
    if (*t->key)
        srv_buf_printf(&c->out, "Authorization: Bearer %s\r\n", t->key);
    if (json)
        srv_buf_printf(&c->out, "Content-Type: application/json\r\nContent-Length: %zu\r\n", json->len);
    srv_buf_puts(&c->out, "\r\n");
    if (json)
        srv_buf_append(&c->out, json->data, json->len);
    srv_buf_reset(&c->body);
    srv_bench_http_begin(&c->http);
    srv_bench_check_begin(&c->check, expect ? expect : &nothing, srv_bench_now_ms());
    c->streaming = expect != NULL;
    c->busy = true;
    // The loop's clock stands still during its callbacks.
    uv_update_time(t->loop);
    if (t->timeout_ms)
        uv_timer_start(&c->timer, on_timeout, t->timeout_ms, 0);
    c->reused = c->state == SRV_BENCH_OPEN;
    if (c->state == SRV_BENCH_OPEN)
        write_request(c);
    else if (c->state == SRV_BENCH_CLOSED)
        open_connection(c);
}

void srv_bench_client_close(struct srv_bench_client *c)
{
    c->busy = false;
    close_connection(c);
    if (!uv_is_closing((uv_handle_t *)&c->timer))
        uv_close((uv_handle_t *)&c->timer, NULL);
}

void srv_bench_client_done(struct srv_bench_client *c)
{
    srv_buf_free(&c->out);
    srv_buf_free(&c->body);
    srv_bench_check_free(&c->check);
}
