// A server in this process on the scripted engine, and a plain socket client for it.
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include <cjson/cJSON.h>

#include "config.h"
#include "fake_engine.h"
#include "server.h"

struct reply {
    int status; // 0: the connection ended without an answer
    char *raw;  // everything that came, NUL-terminated
    char *body; // decoded, inside its own memory
    size_t body_len;
    bool chunked, complete; // complete: the body ended as announced
};

// Settings may be changed between the two; also fake and the server's own limits.
void test_config(struct srv_config *c);
// Starts a server and waits until it is ready (unless loading takes long on purpose). c must stay until test_stop.
struct srv_server *test_start(const struct srv_config *c);
struct srv_server *test_open(const struct srv_config *c); // without running
void test_run(struct srv_server *s);
// Starts the drain and returns.
void test_begin_drain(void);
// Drains, joins, frees; the exit status of srv_loop_run.
int test_stop(void);
// Waits for a server that drains by itself.
int test_join(void);

int client_connect(void);
void client_send(int fd, const char *bytes, size_t n);
void client_sendz(int fd, const char *text);
// Sends a POST with a Content-Length; extra: header lines with \r\n, or "".
void client_post(int fd, const char *path, const char *extra, const char *json);
// Reads what arrives until `until` was seen in it or the time is over; freed by the caller.
char *client_read_until(int fd, const char *until, int timeout_ms);
// Reads one answer. Freed with reply_free.
struct reply client_reply(int fd);
void reply_free(struct reply *r);

// One exchange on a connection of its own.
struct reply http_get(const char *path, const char *extra);
struct reply http_post(const char *path, const char *json);
// Asserts the status and returns the parsed body; freed with cJSON_Delete.
cJSON *post_json(const char *path, const char *json, int status);
cJSON *get_json(const char *path, int status);
// A path such as "choices.0.message.content"; NULL when absent.
const cJSON *at(const cJSON *root, const char *path);
const char *text_at(const cJSON *root, const char *path);
double number_at(const cJSON *root, const char *path);
// A header's value in the raw answer, or NULL; static memory.
const char *header_of(const struct reply *r, const char *name);
// The n-th data event of a stream, parsed; NULL when there are fewer or it is [DONE].
cJSON *event_at(const struct reply *r, int n);
int event_count(const struct reply *r); // data events, [DONE] included
