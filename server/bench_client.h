// One client: a connection that carries one request after another.
#pragma once

#include <stdbool.h>
#include <sys/socket.h>

#include <uv.h>

#include "bench_check.h"
#include "bench_http.h"

// Where requests go; shared by all clients, lives longer than they.
struct srv_bench_target {
    uv_loop_t *loop;
    struct sockaddr_storage address;
    char host[300];      // as the Host header has it
    char path[256];      // what comes before /v1, without a slash at its end
    char key[512];       // bearer token, or ""
    uint64_t timeout_ms; // for one request; 0: none
    char read[65536];    // what a read returned; used up before the next
};

struct srv_bench_client {
    struct srv_bench_target *target;
    void (*on_done)(struct srv_bench_client *c); // once a request; may send the next one
    void *user;

    uv_tcp_t tcp;
    uv_timer_t timer;
    uv_connect_t connect;
    uv_write_t write;
    enum { SRV_BENCH_CLOSED, SRV_BENCH_CONNECTING, SRV_BENCH_OPEN, SRV_BENCH_CLOSING } state;
    bool busy;      // a request is under way
    bool reused;    // it went out on a connection that had carried another one, and nothing has come back
    bool writing;   // libuv still holds `out`
    bool streaming; // the answer is expected to be a stream, otherwise it is gathered in body
    struct srv_buf out;
    struct srv_bench_http http;
    struct srv_buf body;
    struct srv_bench_check check;
    double ended_ms;
    char error[300]; // of the request that ended; "" when it went well
};

double srv_bench_now_ms(void);
// http://host[:port][/prefix], the name looked up now. -1 and one sentence.
int srv_bench_target_open(struct srv_bench_target *t, const char *url, char *err, size_t err_size);

// Connects with the first request.
void srv_bench_client_init(struct srv_bench_client *c, struct srv_bench_target *target);
// Sends a POST of json (or a GET when it is NULL) while none is under way. expect: what a stream must keep to; NULL:
// any answer of status 200 is gathered in body.
void srv_bench_client_send(struct srv_bench_client *c, const char *path, const struct srv_buf *json,
                           const struct srv_bench_expect *expect);
// Ends the connection without a callback. The memory may be freed once the loop has run out, after
// srv_bench_client_done.
void srv_bench_client_close(struct srv_bench_client *c);
void srv_bench_client_done(struct srv_bench_client *c);
