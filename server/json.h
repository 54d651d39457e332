// Parsing of request bodies into cJSON trees, and typed getters whose errors name the JSON path.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cjson/cJSON.h>

// What a client is told. type and code point to constants.
struct srv_error {
    int status; // HTTP; 0: no error
    const char *type;
    const char *code; // or NULL
    char param[128];  // "" for null
    char message[640];
    int retry_after; // seconds, 0: no header
    bool no_retry;   // x-should-retry: false
};

// Fills *e as a 400 invalid_request_error. param and code may be NULL. Returns -1, so that checks can end in it.
int srv_error_set(struct srv_error *e, const char *code, const char *param, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
// The same for any status and type.
int srv_error_status(struct srv_error *e, int status, const char *type, const char *code, const char *format, ...)
    __attribute__((format(printf, 5, 6)));

enum { SRV_JSON_DEPTH = 64, SRV_JSON_VALUES = 2000000 };

// A strict RFC 8259 check, then cJSON: UTF-8 only, no \u0000, no duplicate keys, finite numbers, nothing after the
// value, at most SRV_JSON_DEPTH levels and SRV_JSON_VALUES values. The top must be an object. *ret is freed with
// cJSON_Delete. body[len] must be a NUL.
int srv_json_parse(const char *body, size_t len, cJSON **ret, struct srv_error *e);

// Getters: 1 and *ret set when the key is there, 0 and *ret untouched when it is absent or null, -1 and *e on a wrong
// type or range. path: where obj is ("" at the top), used in messages and param.
int srv_json_int(const cJSON *obj, const char *path, const char *key, int64_t min, int64_t max, int64_t *ret,
                 struct srv_error *e);
// lo_open: min itself is not allowed.
int srv_json_number(const cJSON *obj, const char *path, const char *key, double min, double max, bool lo_open,
                    double *ret, struct srv_error *e);
int srv_json_bool(const cJSON *obj, const char *path, const char *key, bool *ret, struct srv_error *e);
int srv_json_string(const cJSON *obj, const char *path, const char *key, const char **ret, struct srv_error *e);
// The item itself, or NULL when absent or null.
const cJSON *srv_json_get(const cJSON *obj, const char *key);
// "a string", "an array", ...: how messages name what was sent.
const char *srv_json_kind(const cJSON *item);
// True when the number is an integer that a double holds exactly; *ret is then its value.
bool srv_json_exact(const cJSON *item, int64_t *ret);

// A top-level integer read from the raw text, exact over the whole int64 range (cJSON keeps doubles). 1, 0, -1 as
// above.
int srv_json_int64_raw(const char *body, size_t len, const char *key, int64_t *ret, struct srv_error *e);
