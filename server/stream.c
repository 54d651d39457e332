// 8 STREAM: suspend and resume, heartbeat, disconnects, slow readers. Loop thread only.
//
// A connection with nothing to send is suspended (a content reader that returns 0 without suspending spins) and resumed
// by the wake-up. A suspended connection is in no epoll set of MHD's and does not notice that its peer left, so its
// socket is watched with UV_DISCONNECT from right after the suspend to right before the resume. Status and headers
// leave with the first event, so that errors before it keep their status; after 15 s of silence they leave with a ping.
// A stream lives until HTTP is done with it, the engine is done with every choice, and its watch handle is closed.
#include "stream.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "http.h"
#include "log.h"
#include "loop.h"
#include "server.h"
#include "sse.h"

enum { CHUNK = 16 << 10 }; // bytes of one HTTP chunk at most

static void on_gone(uv_poll_t *handle, int status, int events);

// ---- lifetime -------------------------------------------------------------------------------------------------------

static void free_stream(struct srv_stream *s)
{
    struct srv_server *server = s->server;
    if (s->prev)
        s->prev->next = s->next;
    else
        server->streams = s->next;
    if (s->next)
        s->next->prev = s->prev;
    server->n_streams--;
    for (int i = 0; i < s->n_choices; i++) {
        struct srv_choice *c = &s->choices[i];
        eng_request_free(c->request);
        free(c->stop);
        srv_buf_free(&c->text);
        srv_buf_free(&c->ids);
        for (int k = 0; k < 4; k++)
            srv_buf_free(&c->logprobs[k]);
    }
    srv_buf_free(&s->outbox);
    s->ops->free_data(s->data);
    free(s);
}

static void free_if_done(struct srv_stream *s)
{
    if (!s->x && s->n_live == 0 && !s->watch_open)
        free_stream(s);
}

struct srv_stream *srv_stream_new(struct srv_exchange *x, enum srv_metrics_endpoint endpoint, bool sse,
                                  const struct srv_stream_ops *ops, void *data, int n_choices)
{
    struct srv_stream *s = calloc(1, sizeof *s + (size_t)n_choices * sizeof s->choices[0]);
    if (!s) {
        ops->free_data(data);
        return NULL;
    }
    struct srv_server *server = x->server;
    s->server = server;
    s->x = x;
    s->ops = ops;
    s->data = data;
    s->endpoint = endpoint;
    s->start_ns = (int64_t)uv_hrtime();
    s->sse = sse;
    s->last_write_ms = srv_loop_now_ms(server);
    s->n_choices = n_choices;
    for (int i = 0; i < n_choices; i++) {
        s->choices[i].stream = s;
        s->choices[i].index = i;
        s->choices[i].stop_id = -1;
    }
    s->next = server->streams;
    if (s->next)
        s->next->prev = s;
    server->streams = s;
    server->n_streams++;
    return s;
}

void srv_stream_discard(struct srv_stream *s)
{
    s->x = NULL;
    free_if_done(s);
}

static void cancel(struct srv_stream *s)
{
    for (int i = 0; i < s->n_choices; i++)
        if (s->choices[i].submitted)
            eng_cancel(s->choices[i].request);
}

int srv_stream_submit(struct srv_stream *s, struct srv_error *e)
{
    struct srv_server *server = s->server;
    int status = 0;
    for (int i = 0; i < s->n_choices && !status; i++) {
        status = eng_submit(server->engine, s->choices[i].request);
        if (!status) {
            s->choices[i].submitted = true;
            s->n_live++;
        }
    }
    const union MHD_ConnectionInfo *info = MHD_get_connection_info(s->x->connection, MHD_CONNECTION_INFO_CONNECTION_FD);
    if (!status) {
        s->watch.data = s;
        s->watch_open = info && !uv_poll_init(&server->loop, &s->watch, info->connect_fd);
        s->x->stream = s;
        return 0;
    }
    if (status == ENG_EBUSY)
        srv_error_status(e, 503, "service_unavailable_error", "server_is_overloaded",
                         "The server's queue is full. Please try again later.");
    else if (status == ENG_ECLOSED)
        srv_error_status(e, 503, "service_unavailable_error", "server_is_overloaded", "The server is shutting down.");
    else
        srv_error_status(e, 500, "server_error", NULL, "The request could not be queued: %s.", eng_strerror(status));
    e->retry_after = e->status == 503 ? 1 : 0;
    s->gone = true; // whatever was submitted before ends unseen
    cancel(s);
    s->x = NULL;
    free_if_done(s);
    return -1;
}

static void on_watch_closed(uv_handle_t *handle)
{
    struct srv_stream *s = handle->data;
    s->watch_open = false;
    free_if_done(s);
}

void srv_stream_detach(struct srv_stream *s)
{
    if (!s->ended && !s->failed && !s->gone)
        srv_log(SRV_LOG_INFO, s->x->request_id, "the client left; its request is cancelled");
    s->gone = true;
    s->suspended = false;
    s->x = NULL;
    cancel(s);
    if (s->watch_open)
        uv_close((uv_handle_t *)&s->watch, on_watch_closed);
    else
        free_if_done(s);
}

// ---- suspend and resume ---------------------------------------------------------------------------------------------

// Only from within the connection's own callback.
static void park(struct srv_stream *s)
{
    MHD_suspend_connection(s->x->connection);
    s->suspended = true;
    if (s->watch_open)
        uv_poll_start(&s->watch, UV_DISCONNECT, on_gone);
}

static void unpark(struct srv_stream *s)
{
    if (!s->suspended)
        return;
    if (s->watch_open)
        uv_poll_stop(&s->watch);
    s->suspended = false;
    MHD_resume_connection(s->x->connection);
    srv_loop_kick(s->server);
}

static void give_up(struct srv_stream *s)
{
    s->gone = true;
    srv_buf_free(&s->outbox);
    s->sent = 0;
    cancel(s);
    unpark(s);
}

// FIN arrives as UV_DISCONNECT, RST as a negative status.
static void on_gone(uv_poll_t *handle, int status, int events)
{
    struct srv_stream *s = handle->data;
    if (status >= 0 && !(events & UV_DISCONNECT))
        return;
    srv_log(SRV_LOG_INFO, s->x->request_id, "the client left while waiting; its request is cancelled");
    s->server->metrics.disconnects++;
    give_up(s);
}

// No closing chunk: the client must see that it is incomplete. MHD (0.9.75, epoll) closes such a connection at once,
// but frees it and its descriptor only when it looks at it again, which it does in the order of idling: not while an
// older connection is merely idle. Those with a timeout of their own are looked at in each round.
static ssize_t break_off(struct srv_stream *s)
{
    MHD_set_connection_option(s->x->connection, MHD_CONNECTION_OPTION_TIMEOUT, 1u);
    srv_loop_kick(s->server);
    return MHD_CONTENT_READER_END_WITH_ERROR;
}

// MHD asks for bytes.
static ssize_t read_outbox(void *cls, uint64_t position, char *out, size_t max)
{
    struct srv_stream *s = cls;
    (void)position;
    size_t n = s->outbox.len - s->sent;
    if (n) {
        n = n < max ? n : max;
        memcpy(out, s->outbox.data + s->sent, n);
        s->sent += n;
        if (s->sent == s->outbox.len) {
            srv_buf_reset(&s->outbox);
            s->sent = 0;
        }
        s->last_write_ms = srv_loop_now_ms(s->server);
        return (ssize_t)n;
    }
    if (s->gone || s->failed)
        return break_off(s);
    if (s->ended)
        return MHD_CONTENT_READER_END_OF_STREAM;
    park(s);
    return 0;
}

int srv_stream_answer(struct srv_stream *s)
{
    if (s->gone)
        return MHD_NO;
    if (s->sse && s->head_ready) {
        struct MHD_Response *r = MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, CHUNK, read_outbox, s, NULL);
        if (!r)
            return MHD_NO;
        MHD_add_response_header(r, "Content-Type", "text/event-stream; charset=utf-8");
        MHD_add_response_header(r, "Cache-Control", "no-cache");
        MHD_add_response_header(r, "X-Accel-Buffering", "no");
        return (int)srv_http_queue(s->x, 200, r);
    }
    if (s->failed)
        return (int)srv_http_error(s->x, &s->error);
    if (s->ended)
        return (int)srv_http_json(s->x, 200, &s->outbox);
    park(s);
    return MHD_YES;
}

// Something changed: let MHD run this connection if there is anything to send.
static void wake(struct srv_stream *s)
{
    if (s->gone)
        return;
    if (s->outbox.failed) {
        give_up(s);
        return;
    }
    size_t waiting = s->outbox.len - s->sent;
    if (s->sse && waiting)
        s->head_ready = true;
    if (s->sse && !s->suspended && waiting > s->server->max_outbox) {
        srv_log(SRV_LOG_WARN, s->x->request_id,
                "the client reads too slowly (%zu bytes wait); its request is cancelled", waiting);
        s->server->metrics.slow_readers++;
        give_up(s);
        return;
    }
    if (s->ended || s->failed || (s->sse && waiting))
        unpark(s);
}

// ---- events ---------------------------------------------------------------------------------------------------------

void srv_stream_fail(struct srv_stream *s, const struct srv_error *e)
{
    if (s->ended || s->failed || s->gone)
        return;
    s->failed = true;
    s->error = *e;
    if (s->sse && s->head_ready)
        srv_sse_error(&s->outbox, e);
    cancel(s);
    wake(s);
}

static void finish_choice(struct srv_stream *s, struct srv_choice *c, const struct eng_event *ev)
{
    c->finish = ev->finish;
    if (ev->stats)
        c->stats = *ev->stats;
    c->stop = ev->stop ? strdup(ev->stop) : NULL;
    c->stop_id = ev->stop_id;
    srv_metrics_finished(&s->server->metrics, s->endpoint, ev->finish, &c->stats, &c->gaps);
}

static void fail_choice(struct srv_stream *s, const struct eng_event *ev)
{
    struct srv_error e;
    if (ev->finish == ENG_FINISH_TIMEOUT) {
        srv_error_status(&e, 504, "server_error", "request_timeout",
                         "The request did not finish within its time limit.");
        e.no_retry = true;
    } else if (ev->finish == ENG_FINISH_CANCELLED) {
        srv_error_status(&e, 503, "service_unavailable_error", "server_is_overloaded",
                         "The request was cancelled because the server is shutting down.");
        e.retry_after = 1;
    } else {
        srv_error_status(&e, 500, "server_error", NULL, "The model failed: %s.",
                         ev->error ? ev->error : "unknown error");
        if (!s->failed && !s->gone)
            srv_log(SRV_LOG_ERROR, s->x ? s->x->request_id : NULL, "the model failed: %s", ev->error ? ev->error : "?");
    }
    srv_stream_fail(s, &e);
}

// A picture that is worth nothing later: a reader who is behind goes without, rather than be cut for it.
static void take_draft(struct srv_choice *c, const struct eng_draft *draft)
{
    struct srv_stream *s = c->stream;
    if (s->failed || s->gone || s->outbox.len - s->sent > s->server->max_outbox / 4)
        return;
    s->ops->draft(s, c, draft);
    wake(s);
}

static void take_event(struct srv_choice *c, const struct eng_event *ev)
{
    struct srv_stream *s = c->stream;
    if (ev->draft) {
        take_draft(c, ev->draft);
        return;
    }
    if (ev->n_tokens > 0) {
        int64_t now = (int64_t)uv_hrtime();
        if (c->last_ns)
            srv_metrics_gap(&c->gaps, (double)(now - c->last_ns) * 1e-9, ev->n_tokens);
        c->last_ns = now;
        c->n_tokens += ev->n_tokens;
    }
    if (ev->finish)
        finish_choice(s, c, ev);
    bool bad = ev->finish > ENG_FINISH_LENGTH;
    if (!s->failed && !s->gone && !bad)
        s->ops->event(s, c, ev);
    if (ev->finish) {
        s->n_live--;
        c->submitted = false;
        if (bad)
            fail_choice(s, ev);
        else if (s->n_live == 0 && !s->failed && !s->gone) {
            s->ops->end(s);
            s->ended = true;
        }
    }
    wake(s);
}

void srv_stream_take_events(struct srv_server *server)
{
    struct eng_event *next;
    for (struct eng_event *ev = eng_take_events(server->engine); ev; ev = next) {
        next = ev->next;
        struct srv_choice *c = ev->user;
        struct srv_stream *s = c->stream;
        take_event(c, ev);
        bool finished = ev->finish != ENG_FINISH_NONE;
        eng_event_free(ev);
        if (finished) {
            eng_request_free(c->request);
            c->request = NULL;
            free_if_done(s);
        }
    }
}

void srv_stream_summary(const struct srv_stream *s, char *out, size_t size)
{
    const struct srv_choice *first = &s->choices[0];
    int prompt = first->stats.prompt_tokens, tokens = 0;
    for (int i = 0; i < s->n_choices; i++)
        tokens += s->choices[i].finish ? s->choices[i].stats.completion_tokens : s->choices[i].n_tokens;
    if (first->finish)
        snprintf(out, size, ", %d + %d tokens, %s", prompt, tokens, eng_mode_name(first->stats.mode));
    else
        snprintf(out, size, ", %d tokens so far", tokens);
}

void srv_stream_tick(struct srv_server *server)
{
    int64_t now = srv_loop_now_ms(server);
    for (struct srv_stream *s = server->streams; s; s = s->next) {
        if (!s->sse || !s->suspended || s->ended || s->failed || s->gone ||
            now - s->last_write_ms < server->heartbeat_ms)
            continue;
        srv_sse_ping(&s->outbox);
        wake(s);
    }
}

// ---- shutdown -------------------------------------------------------------------------------------------------------

void srv_stream_fail_all(struct srv_server *server)
{
    struct srv_error e;
    srv_error_status(&e, 503, "service_unavailable_error", "server_is_overloaded",
                     "The request was cancelled because the server is shutting down.");
    e.retry_after = 1;
    for (struct srv_stream *s = server->streams; s; s = s->next)
        srv_stream_fail(s, &e);
}

void srv_stream_resume_all(struct srv_server *server)
{
    for (struct srv_stream *s = server->streams; s; s = s->next)
        unpark(s);
}

void srv_stream_free_all(struct srv_server *server)
{
    struct srv_stream *next;
    for (struct srv_stream *s = server->streams; s; s = next) {
        next = s->next;
        for (int i = 0; i < s->n_choices; i++)
            if (s->choices[i].submitted)
                s->choices[i].request = NULL; // the engine freed it
        s->n_live = 0;
        free_if_done(s); // otherwise its watch handle is being closed and frees it
    }
}
