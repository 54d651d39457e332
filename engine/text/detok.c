// 8 STREAM: token ids to text. A token may end inside a character, so at most three bytes wait for the next token.
#include "text/detok.h"

#include "base/err.h"
#include "text/tokenizer.h"
#include "text/utf8.h"

#include <string.h>

static const char replacement[] = "\xEF\xBF\xBD";

void eng_detok_init(struct eng_detok *d, const struct eng_tokenizer *t, bool skip_special)
{
    *d = (struct eng_detok){.tokenizer = t, .skip_special = skip_special};
}

// Feeds one byte to a pending character: emits it when it is whole, U+FFFD when the byte shows that it never will be.
static int push_byte(struct eng_detok *d, char byte, struct eng_buf *out)
{
    d->pending[d->n_pending++] = (unsigned char)byte;
    int rc = 0;
    while (d->n_pending && !rc) {
        uint32_t cp;
        enum eng_utf8_status status;
        size_t n = eng_utf8_next((const char *)d->pending, d->n_pending, &cp, &status);
        if (status == ENG_UTF8_INCOMPLETE)
            break;
        rc = status == ENG_UTF8_OK ? eng_buf_append(out, d->pending, n) : eng_buf_append(out, replacement, 3);
        d->n_pending -= n;
        memmove(d->pending, d->pending + n, d->n_pending);
    }
    return rc;
}

int eng_detok_push(struct eng_detok *d, int32_t id, struct eng_buf *out)
{
    size_t len, i = 0;
    const char *piece = eng_tokenizer_piece(d->tokenizer, id, &len);
    if (!piece)
        return ENG_EINVAL;
    if (d->skip_special && eng_tokenizer_is_special(d->tokenizer, id))
        return 0;
    int rc = 0;
    while (i < len && !rc) {
        // Whole characters in one go, the rest byte by byte.
        size_t begin = i;
        while (!d->n_pending && i < len) {
            uint32_t cp;
            enum eng_utf8_status status;
            size_t n = eng_utf8_next(piece + i, len - i, &cp, &status);
            if (status != ENG_UTF8_OK)
                break;
            i += n;
        }
        if (i > begin)
            rc = eng_buf_append(out, piece + begin, i - begin);
        if (!rc && i < len)
            rc = push_byte(d, piece[i++], out);
    }
    return rc;
}

int eng_detok_finish(struct eng_detok *d, struct eng_buf *out)
{
    if (!d->n_pending)
        return 0;
    d->n_pending = 0;
    return eng_buf_append(out, replacement, 3);
}

int eng_detok_all(const struct eng_tokenizer *t, const int32_t *ids, size_t n, bool skip_special, struct eng_buf *out)
{
    struct eng_detok d;
    int rc = 0;
    eng_detok_init(&d, t, skip_special);
    for (size_t i = 0; i < n && !rc; i++)
        rc = eng_detok_push(&d, ids[i], out);
    return rc ? rc : eng_detok_finish(&d, out);
}
