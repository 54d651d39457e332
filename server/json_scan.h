// The grammar check that runs before cJSON sees a body.
#pragma once

#include <stdbool.h>
#include <stddef.h>

// True when the bytes are one JSON value and nothing else, within the limits of json.h. Otherwise *ret_why is a phrase
// and *ret_at the byte it is about.
bool srv_json_scan(const char *text, size_t len, const char **ret_why, size_t *ret_at);
// Finds the raw text of the value of a key of the top-level object. The text must have passed srv_json_scan.
bool srv_json_scan_key(const char *text, size_t len, const char *key, const char **ret_value, size_t *ret_len);
