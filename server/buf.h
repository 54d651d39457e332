// A growable byte buffer with a sticky failure flag, and the JSON string escaper that everything we print goes through.
// Zero-initialise to start. The bytes are always followed by a NUL that len does not count. It is not the engine's
// eng_buf, because the server sees engine.h and nothing below it.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct srv_buf {
    char *data; // NULL until the first append
    size_t len, cap;
    bool failed; // there was no memory once: the contents are incomplete and must not be sent
};

void srv_buf_append(struct srv_buf *b, const void *bytes, size_t n);
void srv_buf_puts(struct srv_buf *b, const char *text);
void srv_buf_printf(struct srv_buf *b, const char *format, ...) __attribute__((format(printf, 2, 3)));

// Appends a JSON string literal, quotes included. Bytes that are not UTF-8 become U+FFFD.
void srv_buf_json(struct srv_buf *b, const char *text, size_t n);
// The same for a NUL-terminated text; NULL gives null.
void srv_buf_jsonz(struct srv_buf *b, const char *text);
// A JSON number; what JSON cannot say (infinities, NaN) becomes 0.
void srv_buf_number(struct srv_buf *b, double value);

// Empties it, keeping the memory (and forgiving a failure).
void srv_buf_reset(struct srv_buf *b);
// Frees the memory and returns to the zero state.
void srv_buf_free(struct srv_buf *b);

// Length of the UTF-8 character at p (1 .. 4), or 0 when the bytes are not one (overlong, surrogate, cut off, >
// U+10FFFF).
size_t srv_utf8_char(const unsigned char *p, size_t n);
bool srv_utf8_valid(const char *text, size_t n);
// Characters of valid UTF-8.
size_t srv_utf8_count(const char *text, size_t n);
