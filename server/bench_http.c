// bench serve: the answer's side of HTTP/1.1, byte by byte where there are lines and piece by piece where there is a
// body. No I/O and no memory of its own: the caller hands over what a read returned, at the moment it returned. A
// library would do this too, but would call back from its own event loop, after its own buffers; times of tokens are
// what is measured here. Interim answers (1xx), compression and upgrades are never asked for and are refused.
#include "bench_http.h"

#include <string.h>
#include <strings.h>

void srv_bench_http_begin(struct srv_bench_http *h)
{
    h->state = SRV_BENCH_HTTP_STATUS;
    h->status = 0;
    h->keep = true;
    h->event_stream = h->chunked = h->has_length = false;
    h->why = NULL;
    h->left = 0;
    h->n_line = 0;
}

static int broken(struct srv_bench_http *h, const char *why)
{
    h->why = why;
    return -1;
}

static int status_line(struct srv_bench_http *h)
{
    const char *p = h->line;
    if (strncmp(p, "HTTP/1.", 7) || (p[7] != '0' && p[7] != '1') || p[8] != ' ' || strspn(p + 9, "0123456789") != 3 ||
        (p[12] && p[12] != ' '))
        return broken(h, "the answer does not begin with a status line");
    h->status = (p[9] - '0') * 100 + (p[10] - '0') * 10 + p[11] - '0';
    if (h->status < 200)
        return broken(h, "an interim answer that nobody asked for");
    h->keep = p[7] == '1';
    h->state = SRV_BENCH_HTTP_HEADER;
    return 0;
}

// Digits of the base and nothing else, at most 15 of them, so that nothing overflows.
static int number(const char *text, size_t n, int base, uint64_t *ret)
{
    uint64_t v = 0;
    if (n == 0 || n > 15)
        return -1;
    for (size_t i = 0; i < n; i++) {
        int c = (unsigned char)text[i] | 0x20, d = c >= '0' && c <= '9'   ? c - '0'
                                                   : c >= 'a' && c <= 'f' ? c - 'a' + 10
                                                                          : 99;
        if (d >= base)
            return -1;
        v = v * (uint64_t)base + (uint64_t)d;
    }
    *ret = v;
    return 0;
}

static int header_line(struct srv_bench_http *h)
{
    if (!*h->line) {
        bool empty = h->status == 204 || h->status == 304;
        h->state = h->chunked                             ? SRV_BENCH_HTTP_SIZE
                   : empty || (h->has_length && !h->left) ? SRV_BENCH_HTTP_DONE
                   : h->has_length                        ? SRV_BENCH_HTTP_LENGTH
                                                          : SRV_BENCH_HTTP_CLOSE;
        return 0;
    }
    char *colon = strchr(h->line, ':'), *value = colon;
    if (!colon || colon == h->line)
        return broken(h, "a header line without a name");
    *value++ = 0;
    value += strspn(value, " \t");
    size_t n = strlen(value);
    while (n && (value[n - 1] == ' ' || value[n - 1] == '\t'))
        n--;
    value[n] = 0;
    if (!strcasecmp(h->line, "content-length")) {
        if (h->has_length || h->chunked || number(value, n, 10, &h->left))
            return broken(h, "a content-length that makes no sense");
        h->has_length = true;
    } else if (!strcasecmp(h->line, "transfer-encoding")) {
        if (h->has_length || h->chunked || strcasecmp(value, "chunked"))
            return broken(h, "a transfer-encoding that makes no sense");
        h->chunked = true;
    } else if (!strcasecmp(h->line, "connection")) {
        h->keep = h->keep && strcasecmp(value, "close");
    } else if (!strcasecmp(h->line, "content-type")) {
        h->event_stream = !strncasecmp(value, "text/event-stream", 17);
    }
    return 0;
}

static int size_line(struct srv_bench_http *h)
{
    if (number(h->line, strcspn(h->line, " ;"), 16, &h->left))
        return broken(h, "a chunk without a size");
    h->state = h->left ? SRV_BENCH_HTTP_DATA : SRV_BENCH_HTTP_TRAILER;
    return 0;
}

static int line(struct srv_bench_http *h)
{
    switch (h->state) {
    case SRV_BENCH_HTTP_STATUS:
        return status_line(h);
    case SRV_BENCH_HTTP_HEADER:
        return header_line(h);
    case SRV_BENCH_HTTP_SIZE:
        return size_line(h);
    case SRV_BENCH_HTTP_DATA_END:
        if (*h->line)
            return broken(h, "a chunk longer than its size");
        h->state = SRV_BENCH_HTTP_SIZE;
        return 0;
    default: // SRV_BENCH_HTTP_TRAILER
        if (!*h->line)
            h->state = SRV_BENCH_HTTP_DONE;
        return 0;
    }
}

// One byte of a line; lines end in \r\n and hold no NUL.
static int line_byte(struct srv_bench_http *h, char c)
{
    if (c != '\n') {
        if (!c || h->n_line == sizeof h->line - 1)
            return broken(h, "a line of the answer is too long or holds a NUL");
        h->line[h->n_line++] = c;
        return 0;
    }
    if (!h->n_line || h->line[h->n_line - 1] != '\r')
        return broken(h, "a line of the answer does not end in CR LF");
    h->line[h->n_line - 1] = 0;
    h->n_line = 0;
    return line(h);
}

int srv_bench_http_feed(struct srv_bench_http *h, const char *bytes, size_t n)
{
    while (n) {
        if (h->state == SRV_BENCH_HTTP_DONE)
            return broken(h, "more came than was announced");
        bool counted = h->state == SRV_BENCH_HTTP_LENGTH || h->state == SRV_BENCH_HTTP_DATA;
        if (!counted && h->state != SRV_BENCH_HTTP_CLOSE) {
            if (line_byte(h, *bytes))
                return -1;
            bytes++;
            n--;
            continue;
        }
        size_t take = counted && n > h->left ? (size_t)h->left : n;
        if (h->on_body(h->user, bytes, take))
            return -1;
        bytes += take;
        n -= take;
        h->left -= counted ? take : 0;
        if (counted && !h->left)
            h->state = h->state == SRV_BENCH_HTTP_DATA ? SRV_BENCH_HTTP_DATA_END : SRV_BENCH_HTTP_DONE;
    }
    return h->state == SRV_BENCH_HTTP_DONE;
}

int srv_bench_http_eof(struct srv_bench_http *h)
{
    h->keep = false;
    if (h->state == SRV_BENCH_HTTP_CLOSE)
        h->state = SRV_BENCH_HTTP_DONE;
    if (h->state == SRV_BENCH_HTTP_DONE)
        return 1;
    return broken(h, h->status ? "the connection ended in the middle of the answer"
                               : "the connection ended before an answer");
}
