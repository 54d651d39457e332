// A growable byte buffer.
#include "base/buf.h"

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"

int eng_buf_reserve(struct eng_buf *b, size_t extra)
{
    if (extra > SIZE_MAX / 4 - b->len)
        return ENG_ENOMEM;
    size_t need = b->len + extra + 1;
    if (need <= b->cap)
        return 0;
    size_t cap = b->cap < 64 ? 64 : b->cap;
    while (cap < need)
        cap *= 2;
    char *data = realloc(b->data, cap);
    if (!data)
        return ENG_ENOMEM;
    b->data = data;
    b->cap = cap;
    b->data[b->len] = '\0';
    return 0;
}

int eng_buf_append(struct eng_buf *b, const void *bytes, size_t n)
{
    int rc = eng_buf_reserve(b, n);
    if (rc)
        return rc;
    if (n)
        memcpy(b->data + b->len, bytes, n);
    b->len += n;
    b->data[b->len] = '\0';
    return 0;
}

int eng_buf_appendz(struct eng_buf *b, const char *text)
{
    return eng_buf_append(b, text, strlen(text));
}

int eng_buf_printf(struct eng_buf *b, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    int n = vsnprintf(NULL, 0, format, args);
    va_end(args);
    if (n < 0)
        return ENG_EINVAL;
    int rc = eng_buf_reserve(b, (size_t)n);
    if (rc)
        return rc;
    va_start(args, format);
    vsnprintf(b->data + b->len, (size_t)n + 1, format, args);
    va_end(args);
    b->len += (size_t)n;
    return 0;
}

void eng_buf_reset(struct eng_buf *b)
{
    b->len = 0;
    if (b->data)
        b->data[0] = '\0';
}

void eng_buf_free(struct eng_buf *b)
{
    free(b->data);
    *b = (struct eng_buf){0};
}

char *eng_buf_take(struct eng_buf *b)
{
    char *data = b->data;
    *b = (struct eng_buf){0};
    return data;
}
