// 8 STREAM: stop strings in text that comes in parts. Text goes out as soon as it cannot be the beginning of a stop
// string any more. The result does not depend on how the text was cut into parts. One owner at a time.
#pragma once

#include "base/buf.h"

#include <stddef.h>

struct eng_stop;

// Copies n NUL-terminated stop strings; n may be 0 (all text passes at once). ENG_EINVAL: an empty string or one that
// is not UTF-8. ENG_ENOMEM. *ret is freed with eng_stop_free.
int eng_stop_new(const char *const *strings, size_t n, struct eng_stop **ret);

// Takes NULL.
void eng_stop_free(struct eng_stop *s);

// Appends to out what is now safe to send; whole characters if every part is. The first stop string to be complete
// wins, of several that end together the longest; out then ends before it, *ret_match is its index, and later text is
// swallowed. *ret_match is -1 as long as none was found. 0 or ENG_ENOMEM (out may hold a part; the stream cannot go
// on).
int eng_stop_push(struct eng_stop *s, const char *text, size_t len, struct eng_buf *out, int *ret_match);

// The end of the text without a match: appends what was held back. Nothing after a match. 0 or ENG_ENOMEM.
int eng_stop_finish(struct eng_stop *s, struct eng_buf *out);

// Bytes held back now: a beginning of some stop string.
size_t eng_stop_held(const struct eng_stop *s);
