// HTTP exchanges: routes, checks that need no body, answers.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <microhttpd.h>

#include "buf.h"
#include "json.h"
#include "server.h"

struct srv_route;
struct srv_stream;

struct srv_exchange {
    struct srv_server *server;
    struct MHD_Connection *connection;
    const struct srv_route *route; // NULL: unknown path
    char method[16];
    char path[256];   // cut for messages
    const char *rest; // the path after a prefix route, in tail
    char tail[512];
    char request_id[130];
    int64_t start_ns;

    struct srv_buf body;
    uint64_t discarded; // body bytes that were thrown away
    bool has_body;
    bool refused;           // error is answered once the body was read and thrown away
    struct srv_error error; // of a refusal
    bool close;             // Connection: close on the answer
    const char *allow;      // Allow header of a 405 and of OPTIONS
    bool challenge;         // WWW-Authenticate
    int key;                // which of the route's keys it came with; 0 where none is asked for

    struct srv_buf ignored;    // names for x-trimode-ignored
    struct srv_stream *stream; // once generation was submitted
    int status;                // of the answer, 0 before
};

typedef enum MHD_Result (*srv_handler)(struct srv_exchange *x);

// MHD's callbacks.
enum MHD_Result srv_http_handle(void *user, struct MHD_Connection *connection, const char *url, const char *method,
                                const char *version, const char *upload, size_t *upload_size, void **ret_exchange);
void srv_http_completed(void *user, struct MHD_Connection *connection, void **exchange,
                        enum MHD_RequestTerminationCode why);

// Queue an answer with the headers every answer has. srv_http_queue takes r over; the others empty *body (its memory
// goes to MHD).
enum MHD_Result srv_http_queue(struct srv_exchange *x, int status, struct MHD_Response *r);
enum MHD_Result srv_http_json(struct srv_exchange *x, int status, struct srv_buf *body);
enum MHD_Result srv_http_text(struct srv_exchange *x, int status, const char *type, struct srv_buf *body);
enum MHD_Result srv_http_error(struct srv_exchange *x, const struct srv_error *e);

// One key a line, without the blanks around it; empty lines and lines that start with # are skipped. An empty path
// means no keys. -1 and one sentence.
int srv_http_keys_load(struct srv_keys *keys, const char *setting, const char *path, char *err, size_t err_size);
void srv_http_keys_free(struct srv_keys *keys);
// Which of the keys the Authorization header carries, or -1. The time taken does not depend on how much of a key
// matches.
int srv_http_keys_find(const struct srv_keys *keys, const char *authorization);
