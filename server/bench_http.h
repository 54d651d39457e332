// Reads one HTTP/1.1 answer from bytes as they come.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum srv_bench_http_state {
    SRV_BENCH_HTTP_STATUS,
    SRV_BENCH_HTTP_HEADER,
    SRV_BENCH_HTTP_LENGTH, // a body of Content-Length bytes
    SRV_BENCH_HTTP_CLOSE,  // a body that ends with the connection
    SRV_BENCH_HTTP_SIZE,   // the line before a chunk
    SRV_BENCH_HTTP_DATA,
    SRV_BENCH_HTTP_DATA_END, // the line break after a chunk
    SRV_BENCH_HTTP_TRAILER,
    SRV_BENCH_HTTP_DONE,
};

struct srv_bench_http {
    enum srv_bench_http_state state;
    int status;        // HTTP's; 0 until its line was read
    bool keep;         // the connection may carry another request
    bool event_stream; // Content-Type: text/event-stream
    const char *why;   // of the last -1
    bool chunked, has_length;
    uint64_t left; // bytes of the body or the chunk
    size_t n_line;
    char line[8192];
    // Pieces of the decoded body; -1 stops the reading, which then returns -1 with why untouched.
    int (*on_body)(void *user, const char *bytes, size_t n);
    void *user;
};

// Expects a new answer; on_body and user are set by the caller.
void srv_bench_http_begin(struct srv_bench_http *h);
// 0: more is expected. 1: the answer is complete. -1: it is not HTTP, or more came than was announced.
int srv_bench_http_feed(struct srv_bench_http *h, const char *bytes, size_t n);
// The connection ended: 1 when that completes the answer, -1 when it cuts it.
int srv_bench_http_eof(struct srv_bench_http *h);
