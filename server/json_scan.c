// 2 PARSE: strict JSON grammar, one pass, no allocation. cJSON 1.7.15 accepts bytes that are not UTF-8, cuts strings at
// \u0000, takes [01] and raw control bytes, and recurses 1000 deep; all of that is refused here, before it runs.
#include "json_scan.h"

#include <string.h>

#include "buf.h"
#include "json.h"

struct scan {
    const unsigned char *start, *p, *end;
    int depth;
    size_t n_values;
    const char *why;
};

static bool fail(struct scan *s, const char *why)
{
    if (!s->why)
        s->why = why;
    return false;
}

static void skip_space(struct scan *s)
{
    while (s->p < s->end && (*s->p == ' ' || *s->p == '\n' || *s->p == '\r' || *s->p == '\t'))
        s->p++;
}

static int hex4(const unsigned char *p)
{
    int value = 0;
    for (int i = 0; i < 4; i++) {
        int c = p[i] | 0x20;
        int digit = p[i] >= '0' && p[i] <= '9' ? p[i] - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
        if (digit < 0)
            return -1;
        value = value * 16 + digit;
    }
    return value;
}

static bool scan_escape(struct scan *s)
{
    if (s->end - s->p < 2)
        return fail(s, "an unfinished string");
    if (s->p[1] != 'u') {
        if (!s->p[1] || !strchr("\"\\/bfnrt", s->p[1]))
            return fail(s, "an unknown escape in a string");
        s->p += 2;
        return true;
    }
    if (s->end - s->p < 6)
        return fail(s, "an unfinished string");
    int unit = hex4(s->p + 2);
    if (unit < 0)
        return fail(s, "a \\u escape without four hexadecimal digits");
    if (unit == 0)
        return fail(s, "\\u0000, which no text may contain");
    if (unit >= 0xDC00 && unit <= 0xDFFF)
        return fail(s, "half of a surrogate pair");
    if (unit >= 0xD800 && unit <= 0xDBFF) {
        int low = s->end - s->p >= 12 && s->p[6] == '\\' && s->p[7] == 'u' ? hex4(s->p + 8) : -1;
        if (low < 0xDC00 || low > 0xDFFF)
            return fail(s, "half of a surrogate pair");
        s->p += 6;
    }
    s->p += 6;
    return true;
}

static bool scan_string(struct scan *s)
{
    s->p++; // the quote
    while (s->p < s->end && *s->p != '"') {
        if (*s->p == '\\') {
            if (!scan_escape(s))
                return false;
            continue;
        }
        if (*s->p < 0x20)
            return fail(s, "a raw control character in a string");
        size_t n = srv_utf8_char(s->p, (size_t)(s->end - s->p));
        if (!n)
            return fail(s, "bytes that are not UTF-8");
        s->p += n;
    }
    if (s->p >= s->end)
        return fail(s, "an unfinished string");
    s->p++;
    return true;
}

static bool digits(struct scan *s)
{
    const unsigned char *from = s->p;
    while (s->p < s->end && *s->p >= '0' && *s->p <= '9')
        s->p++;
    return s->p > from || fail(s, "a malformed number");
}

static bool scan_number(struct scan *s)
{
    const unsigned char *from = s->p;
    if (*s->p == '-')
        s->p++;
    if (s->p < s->end && *s->p == '0')
        s->p++;
    else if (!digits(s))
        return false;
    if (s->p < s->end && *s->p == '.') {
        s->p++;
        if (!digits(s))
            return false;
    }
    if (s->p < s->end && (*s->p | 0x20) == 'e') {
        s->p++;
        if (s->p < s->end && (*s->p == '+' || *s->p == '-'))
            s->p++;
        if (!digits(s))
            return false;
    }
    // cJSON copies numbers into 64 bytes and would read a longer one as two.
    return s->p - from <= 60 || fail(s, "a number with more than 60 characters");
}

static bool scan_word(struct scan *s, const char *word)
{
    size_t n = strlen(word);
    if ((size_t)(s->end - s->p) < n || memcmp(s->p, word, n))
        return fail(s, "an unknown word");
    s->p += n;
    return true;
}

static bool scan_value(struct scan *s);

// A list of values, or of "key": value pairs when keys is set.
static bool scan_list(struct scan *s, unsigned char close, bool keys)
{
    if (++s->depth > SRV_JSON_DEPTH)
        return fail(s, "nesting deeper than 64 levels");
    s->p++;
    skip_space(s);
    if (s->p < s->end && *s->p == close) {
        s->p++;
        s->depth--;
        return true;
    }
    for (;;) {
        if (keys) {
            skip_space(s);
            if (s->p >= s->end || *s->p != '"')
                return fail(s, "an object key that is not a string");
            if (!scan_string(s))
                return false;
            skip_space(s);
            if (s->p >= s->end || *s->p != ':')
                return fail(s, "a key without a colon");
            s->p++;
        }
        if (!scan_value(s))
            return false;
        if (s->p < s->end && *s->p == ',') {
            s->p++;
            continue;
        }
        if (s->p < s->end && *s->p == close)
            break;
        return fail(s, s->p < s->end ? "a missing comma or bracket" : "an unexpected end");
    }
    s->p++;
    s->depth--;
    return true;
}

// Skips the space on both sides of the value.
static bool scan_value(struct scan *s)
{
    skip_space(s);
    if (s->p >= s->end)
        return fail(s, "an unexpected end");
    if (++s->n_values > SRV_JSON_VALUES)
        return fail(s, "more than 2000000 values");
    bool ok;
    switch (*s->p) {
    case '{':
        ok = scan_list(s, '}', true);
        break;
    case '[':
        ok = scan_list(s, ']', false);
        break;
    case '"':
        ok = scan_string(s);
        break;
    case 't':
        ok = scan_word(s, "true");
        break;
    case 'f':
        ok = scan_word(s, "false");
        break;
    case 'n':
        ok = scan_word(s, "null");
        break;
    default:
        ok = *s->p == '-' || (*s->p >= '0' && *s->p <= '9') ? scan_number(s) : fail(s, "an unexpected character");
    }
    if (ok)
        skip_space(s);
    return ok;
}

bool srv_json_scan(const char *text, size_t len, const char **ret_why, size_t *ret_at)
{
    const unsigned char *start = (const unsigned char *)text;
    struct scan s = {.start = start, .p = start, .end = start + len};
    if (scan_value(&s) && s.p < s.end)
        fail(&s, "something after the value");
    if (!s.why)
        return true;
    *ret_why = s.why;
    *ret_at = (size_t)(s.p - s.start);
    return false;
}

bool srv_json_scan_key(const char *text, size_t len, const char *key, const char **ret_value, size_t *ret_len)
{
    const unsigned char *start = (const unsigned char *)text;
    struct scan s = {.start = start, .p = start, .end = start + len};
    size_t n_key = strlen(key);
    skip_space(&s);
    if (s.p >= s.end || *s.p != '{')
        return false;
    s.p++;
    for (;;) {
        skip_space(&s);
        if (s.p >= s.end || *s.p != '"')
            return false;
        const unsigned char *name = s.p + 1;
        if (!scan_string(&s))
            return false;
        bool match = (size_t)(s.p - 1 - name) == n_key && !memcmp(name, key, n_key);
        skip_space(&s);
        s.p++; // the colon
        skip_space(&s);
        const unsigned char *value = s.p;
        if (!scan_value(&s))
            return false;
        if (match) {
            const unsigned char *stop = s.p;
            while (stop > value && strchr(" \n\r\t", stop[-1]))
                stop--;
            *ret_value = (const char *)value;
            *ret_len = (size_t)(stop - value);
            return true;
        }
        if (s.p >= s.end || *s.p != ',')
            return false;
        s.p++;
    }
}
