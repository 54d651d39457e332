// 8 STREAM: growable bytes and JSON escaping. No I/O, no globals; any thread, one owner at a time.
#include "buf.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool reserve(struct srv_buf *b, size_t extra)
{
    if (b->failed)
        return false;
    if (b->cap - b->len > extra)
        return true;
    if (extra >= SIZE_MAX / 2 - b->len) { // doubling would end at 0
        b->failed = true;
        return false;
    }
    size_t cap = b->cap ? b->cap : 128;
    while (cap - b->len <= extra)
        cap *= 2;
    char *data = realloc(b->data, cap);
    if (!data) {
        b->failed = true;
        return false;
    }
    b->data = data;
    b->cap = cap;
    return true;
}

void srv_buf_append(struct srv_buf *b, const void *bytes, size_t n)
{
    if (!reserve(b, n))
        return;
    if (n)
        memcpy(b->data + b->len, bytes, n);
    b->len += n;
    b->data[b->len] = 0;
}

void srv_buf_puts(struct srv_buf *b, const char *text)
{
    srv_buf_append(b, text, strlen(text));
}

void srv_buf_printf(struct srv_buf *b, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    char small[256];
    int n = vsnprintf(small, sizeof small, format, args);
    va_end(args);
    if (n < 0) {
        b->failed = true;
        return;
    }
    if ((size_t)n < sizeof small) {
        srv_buf_append(b, small, (size_t)n);
        return;
    }
    if (!reserve(b, (size_t)n + 1))
        return;
    va_start(args, format);
    vsnprintf(b->data + b->len, (size_t)n + 1, format, args);
    va_end(args);
    b->len += (size_t)n;
}

size_t srv_utf8_char(const unsigned char *p, size_t n)
{
    if (n == 0)
        return 0;
    if (p[0] < 0x80)
        return 1;
    size_t len = p[0] >= 0xF0 ? 4 : p[0] >= 0xE0 ? 3 : 2;
    if (p[0] < 0xC2 || p[0] > 0xF4 || len > n)
        return 0;
    for (size_t i = 1; i < len; i++)
        if ((p[i] & 0xC0) != 0x80)
            return 0;
    if ((p[0] == 0xE0 && p[1] < 0xA0) || (p[0] == 0xED && p[1] > 0x9F) || (p[0] == 0xF0 && p[1] < 0x90) ||
        (p[0] == 0xF4 && p[1] > 0x8F))
        return 0;
    return len;
}

bool srv_utf8_valid(const char *text, size_t n)
{
    const unsigned char *p = (const unsigned char *)text;
    for (size_t i = 0, len; i < n; i += len)
        if (!(len = srv_utf8_char(p + i, n - i)))
            return false;
    return true;
}

size_t srv_utf8_count(const char *text, size_t n)
{
    size_t count = 0;
    for (size_t i = 0; i < n; i++)
        count += ((unsigned char)text[i] & 0xC0) != 0x80;
    return count;
}

void srv_buf_json(struct srv_buf *b, const char *text, size_t n)
{
    const unsigned char *p = (const unsigned char *)text;
    srv_buf_append(b, "\"", 1);
    size_t from = 0, i = 0; // from .. i is plain and not yet copied
    while (i < n) {
        size_t len = srv_utf8_char(p + i, n - i);
        if (len && p[i] >= 0x20 && p[i] != '"' && p[i] != '\\' && p[i] != 0x7F) {
            i += len;
            continue;
        }
        srv_buf_append(b, text + from, i - from);
        if (!len)
            srv_buf_puts(b, "\\ufffd");
        else if (p[i] == '"' || p[i] == '\\')
            srv_buf_append(b, p[i] == '"' ? "\\\"" : "\\\\", 2);
        else if (p[i] == '\n')
            srv_buf_puts(b, "\\n");
        else if (p[i] == '\t')
            srv_buf_puts(b, "\\t");
        else if (p[i] == '\r')
            srv_buf_puts(b, "\\r");
        else
            srv_buf_printf(b, "\\u%04x", p[i]);
        from = ++i;
    }
    srv_buf_append(b, text + from, n - from);
    srv_buf_append(b, "\"", 1);
}

void srv_buf_jsonz(struct srv_buf *b, const char *text)
{
    if (text)
        srv_buf_json(b, text, strlen(text));
    else
        srv_buf_puts(b, "null");
}

void srv_buf_number(struct srv_buf *b, double value)
{
    srv_buf_printf(b, "%.7g", isfinite(value) ? value : 0.0);
}

void srv_buf_reset(struct srv_buf *b)
{
    b->len = 0;
    b->failed = false;
    if (b->data)
        b->data[0] = 0;
}

void srv_buf_free(struct srv_buf *b)
{
    free(b->data);
    *b = (struct srv_buf){0};
}
