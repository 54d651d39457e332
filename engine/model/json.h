// Checked reading of a checkpoint's JSON files: every error names the file, the key and the value. A null counts as
// absent.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct cJSON;

// Where a sentence for a human goes. file: named in every error.
struct eng_json_ctx {
    const char *file;
    char *err; // may be NULL
    size_t err_size;
};

// Writes one sentence and returns code.
int eng_json_fail(char *err, size_t err_size, int code, const char *format, ...) __attribute__((format(printf, 4, 5)));

// Parses len bytes that must be one JSON object with nothing but white space around it. *ret is freed with
// cJSON_Delete. ENG_EFORMAT; on failure *ret is untouched.
int eng_json_parse(const char *bytes, size_t len, const struct eng_json_ctx *at, struct cJSON **ret);
// Reads and parses dir/at->file, at most 64 MiB. A missing file: ENG_EIO, or with `optional` success and *ret NULL.
int eng_json_load(const char *dir, bool optional, const struct eng_json_ctx *at, struct cJSON **ret);

// NULL when the key is absent or null.
const struct cJSON *eng_json_get(const struct cJSON *object, const char *key);

// 0 and *ret, or ENG_EFORMAT. An absent key leaves *ret alone when it is not required (so *ret starts as the default).
int eng_json_int(const struct cJSON *object, const char *key, bool required, int64_t min, int64_t max,
                 const struct eng_json_ctx *at, int32_t *ret);
// As above; min < value <= max when open_min, else min <= value <= max.
int eng_json_double(const struct cJSON *object, const char *key, bool required, bool open_min, double min, double max,
                    const struct eng_json_ctx *at, double *ret);
int eng_json_bool(const struct cJSON *object, const char *key, const struct eng_json_ctx *at, bool *ret);
// *ret points into the object.
int eng_json_string(const struct cJSON *object, const char *key, bool required, const struct eng_json_ctx *at,
                    const char **ret);

// The value as text, cut to fit; for errors.
const char *eng_json_show(const struct cJSON *value, char *buf, size_t size);
