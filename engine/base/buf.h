// A growable byte buffer. Zero-initialise to start; the bytes are always followed by a NUL that len does not count.
#pragma once

#include <stddef.h>

struct eng_buf {
    char *data; // NULL until the first append
    size_t len, cap;
};

// All return 0 or ENG_ENOMEM; on failure the buffer is unchanged.
int eng_buf_reserve(struct eng_buf *b, size_t extra);
int eng_buf_append(struct eng_buf *b, const void *bytes, size_t n);
int eng_buf_appendz(struct eng_buf *b, const char *text);
int eng_buf_printf(struct eng_buf *b, const char *format, ...) __attribute__((format(printf, 2, 3)));

// Empties it, keeping the memory.
void eng_buf_reset(struct eng_buf *b);
// Frees the memory and returns to the zero state.
void eng_buf_free(struct eng_buf *b);
// Gives the bytes away (to be freed with free) and returns to the zero state. NULL when nothing was ever appended.
char *eng_buf_take(struct eng_buf *b);
