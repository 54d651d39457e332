// UTF-8: validation and decoding (Unicode 15, table 3-7). No locale, no tables beyond the second-byte ranges.
#include "text/utf8.h"

#include <string.h>

size_t eng_utf8_next(const char *s, size_t len, uint32_t *ret_cp, enum eng_utf8_status *ret_status)
{
    const unsigned char *p = (const unsigned char *)s;
    unsigned char lead = p[0];
    *ret_status = ENG_UTF8_OK;
    if (lead < 0x80) {
        *ret_cp = lead;
        return 1;
    }

    // The second byte's range excludes overlong forms, surrogates and values above U+10FFFF.
    unsigned char low = 0x80, high = 0xBF;
    size_t n;
    uint32_t cp;
    if (lead >= 0xC2 && lead <= 0xDF) {
        n = 2;
        cp = lead & 0x1Fu;
    } else if (lead >= 0xE0 && lead <= 0xEF) {
        n = 3;
        cp = lead & 0x0Fu;
        low = lead == 0xE0 ? 0xA0 : 0x80;
        high = lead == 0xED ? 0x9F : 0xBF;
    } else if (lead >= 0xF0 && lead <= 0xF4) {
        n = 4;
        cp = lead & 0x07u;
        low = lead == 0xF0 ? 0x90 : 0x80;
        high = lead == 0xF4 ? 0x8F : 0xBF;
    } else {
        *ret_cp = 0xFFFD;
        *ret_status = ENG_UTF8_INVALID;
        return 1;
    }

    for (size_t i = 1; i < n; i++) {
        if (i >= len || p[i] < low || p[i] > high) {
            *ret_cp = 0xFFFD;
            *ret_status = i >= len ? ENG_UTF8_INCOMPLETE : ENG_UTF8_INVALID;
            return i;
        }
        cp = cp << 6 | (p[i] & 0x3Fu);
        low = 0x80;
        high = 0xBF;
    }
    *ret_cp = cp;
    return n;
}

bool eng_utf8_valid(const char *s, size_t len)
{
    for (size_t i = 0; i < len;) {
        if ((unsigned char)s[i] < 0x80) {
            i++;
            continue;
        }
        uint32_t cp;
        enum eng_utf8_status status;
        i += eng_utf8_next(s + i, len - i, &cp, &status);
        if (status != ENG_UTF8_OK)
            return false;
    }
    return true;
}

size_t eng_utf8_encode(uint32_t cp, char out[4])
{
    if (cp > 0x10FFFF || (cp >= 0xD800 && cp <= 0xDFFF))
        cp = 0xFFFD;
    if (cp < 0x80) {
        out[0] = (char)cp;
        return 1;
    }
    if (cp < 0x800) {
        out[0] = (char)(0xC0 | cp >> 6);
        out[1] = (char)(0x80 | (cp & 0x3F));
        return 2;
    }
    if (cp < 0x10000) {
        out[0] = (char)(0xE0 | cp >> 12);
        out[1] = (char)(0x80 | (cp >> 6 & 0x3F));
        out[2] = (char)(0x80 | (cp & 0x3F));
        return 3;
    }
    out[0] = (char)(0xF0 | cp >> 18);
    out[1] = (char)(0x80 | (cp >> 12 & 0x3F));
    out[2] = (char)(0x80 | (cp >> 6 & 0x3F));
    out[3] = (char)(0x80 | (cp & 0x3F));
    return 4;
}

size_t eng_utf8_count(const char *s, size_t len)
{
    size_t n = 0;
    for (size_t i = 0; i < len; i++)
        n += ((unsigned char)s[i] & 0xC0) != 0x80;
    return n;
}

int eng_utf8_append_lossy(struct eng_buf *out, const char *s, size_t len)
{
    size_t start = 0, i = 0;
    while (i < len) {
        uint32_t cp;
        enum eng_utf8_status status;
        size_t n = eng_utf8_next(s + i, len - i, &cp, &status);
        if (status != ENG_UTF8_OK) {
            int rc = i > start ? eng_buf_append(out, s + start, i - start) : 0;
            if (!rc)
                rc = eng_buf_append(out, "\xEF\xBF\xBD", 3);
            if (rc)
                return rc;
            start = i + n;
        }
        i += n;
    }
    return i > start ? eng_buf_append(out, s + start, i - start) : 0;
}

bool eng_utf8_is_space(uint32_t cp)
{
    return (cp >= 0x09 && cp <= 0x0D) || cp == 0x20 || cp == 0x85 || cp == 0xA0 || cp == 0x1680 ||
           (cp >= 0x2000 && cp <= 0x200A) || cp == 0x2028 || cp == 0x2029 || cp == 0x202F || cp == 0x205F ||
           cp == 0x3000;
}
