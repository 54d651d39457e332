// One generation as HTTP sees it: the engine requests of its choices on one side, a connection on the other, an outbox
// between.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <uv.h>

#include "buf.h"
#include "engine.h"
#include "json.h"
#include "metrics.h"

struct srv_server;
struct srv_exchange;
struct srv_stream;

struct srv_choice {
    struct srv_stream *stream;
    int index;
    struct eng_request *request; // until its finish event was taken
    bool submitted;
    enum eng_finish finish;
    struct eng_request_stats stats; // once finish is set
    char *stop;                     // the stop string that matched, or NULL
    int32_t stop_id;                // the end id that was met, or -1
    int64_t last_ns;                // of its last event with tokens, 0 before
    int32_t n_tokens;               // so far
    struct srv_hist gaps;           // between its runs of tokens, until its mode is known
    // What the endpoint gathers.
    bool opened;                // streams: its first chunk was written
    struct srv_buf text, ids;   // ids: a JSON list without brackets
    struct srv_buf logprobs[4]; // chat: [0] items; completions: tokens, token_logprobs, top_logprobs, text_offset
    size_t chars;               // characters of the text before the next token
};

struct srv_stream_ops {
    // One event of one choice: append to the outbox (streams) or to the choice. Not called after a failure.
    void (*event)(struct srv_stream *s, struct srv_choice *c, const struct eng_event *ev);
    // What a choice's block holds for now, for a stream that asked for it. May be left out.
    void (*draft)(struct srv_stream *s, struct srv_choice *c, const struct eng_draft *draft);
    // Every choice ended well: append the closing events, or the whole body.
    void (*end)(struct srv_stream *s);
    void (*free_data)(void *data);
};

struct srv_stream {
    struct srv_server *server;
    struct srv_stream *next, *prev;
    struct srv_exchange *x; // NULL once HTTP is done with it
    const struct srv_stream_ops *ops;
    void *data; // the endpoint's
    enum srv_metrics_endpoint endpoint;
    int64_t start_ns;

    bool sse;
    struct srv_buf outbox; // bytes for the client; sent up to `sent`
    size_t sent;
    bool suspended;  // the connection waits for us
    bool head_ready; // streams: a 200 may go out
    bool ended;      // everything is in the outbox
    bool failed;     // error says why; streams: an error event is in the outbox once the head is out
    bool gone;       // nobody reads any more
    struct srv_error error;
    int64_t last_write_ms;

    uv_poll_t watch; // UV_DISCONNECT while suspended
    bool watch_open;

    int n_choices, n_live; // n_live: submitted and not finished
    struct srv_choice choices[];
};

// Owned by the caller until srv_stream_submit. Takes data over (freed by ops->free_data) even when it fails with NULL.
struct srv_stream *srv_stream_new(struct srv_exchange *x, enum srv_metrics_endpoint endpoint, bool sse,
                                  const struct srv_stream_ops *ops, void *data, int n_choices);
// Gives every choice's request to the engine. 0: x->stream is set and the exchange must return srv_stream_answer(). -1:
// *e is filled and the stream is already being disposed of.
int srv_stream_submit(struct srv_stream *s, struct srv_error *e);
// For a stream that was not submitted.
void srv_stream_discard(struct srv_stream *s);

// Called by the HTTP handler whenever MHD asks: queues an answer or suspends. An enum MHD_Result.
int srv_stream_answer(struct srv_stream *s);
// MHD is done with the exchange, however it ended. What still runs is cancelled.
void srv_stream_detach(struct srv_stream *s);
// The first failure wins; what still runs is cancelled.
void srv_stream_fail(struct srv_stream *s, const struct srv_error *e);

// `, 23 + 40 tokens, self_speculation`: for the log line at the end of an exchange.
void srv_stream_summary(const struct srv_stream *s, char *out, size_t size);

// Takes every event of the engine and resumes the connections that have something to send.
void srv_stream_take_events(struct srv_server *server);
// Pings to silent streams.
void srv_stream_tick(struct srv_server *server);

// Shutdown, in this order.
void srv_stream_fail_all(struct srv_server *server);
void srv_stream_resume_all(struct srv_server *server);
void srv_stream_free_all(struct srv_server *server); // after eng_close
