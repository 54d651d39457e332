// Inner to text/: reading a model's small files, with what cJSON does not check by itself.
#pragma once

#include <cjson/cJSON.h>
#include <stddef.h>

// Reads a regular file of at most max bytes. *ret_data is NUL-terminated (the NUL is not counted) and freed with free.
// ENG_EIO when it cannot be read, ENG_ELIMIT when it is larger, ENG_ENOMEM.
int eng_text_read_file(const char *path, size_t max, char **ret_data, size_t *ret_len, char *err, size_t err_size);

// Parses one whole NUL-terminated JSON text. Refuses what cJSON would let pass in silence: bytes that are not UTF-8,
// \u0000 in a string (it would cut the string), text after the value. name: what the error calls it. ENG_EFORMAT,
// ENG_ENOMEM. *ret is freed with cJSON_Delete.
int eng_text_parse_json(const char *data, size_t len, const char *name, cJSON **ret, char *err, size_t err_size);
