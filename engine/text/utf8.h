// UTF-8: validation and decoding. Strict: no surrogates, no overlong forms, nothing above U+10FFFF. All functions are
// pure and may be called from any thread.
#pragma once

#include "base/buf.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum eng_utf8_status {
    ENG_UTF8_OK,        // a whole character
    ENG_UTF8_INVALID,   // bytes that no continuation can make valid
    ENG_UTF8_INCOMPLETE // a valid beginning that the input's end cuts off
};

// True if all len bytes are valid UTF-8. s may be NULL when len is 0.
bool eng_utf8_valid(const char *s, size_t len);

// Looks at the first character of s[0..len), len >= 1. Returns how many bytes it takes: the character's length, or for
// INVALID and INCOMPLETE the length of the maximal subpart (Unicode 3.9), which one U+FFFD replaces. *ret_cp is the
// code point, or 0xFFFD when the status is not OK.
size_t eng_utf8_next(const char *s, size_t len, uint32_t *ret_cp, enum eng_utf8_status *ret_status);

// Writes the character cp to out and returns its length, 1..4. Surrogates and values above U+10FFFF become U+FFFD.
size_t eng_utf8_encode(uint32_t cp, char out[4]);

// Number of characters in valid UTF-8.
size_t eng_utf8_count(const char *s, size_t len);

// Appends s with every ill-formed part replaced by U+FFFD, as Python's decode(errors="replace") does. 0 or ENG_ENOMEM.
int eng_utf8_append_lossy(struct eng_buf *out, const char *s, size_t len);

// True for the 25 code points with the property White_Space, which is what \s means in tokenizer files.
bool eng_utf8_is_space(uint32_t cp);
