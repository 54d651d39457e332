// 2 PARSE: text to token ids and back. First the added tokens are cut out (leftmost, then longest), then what is left
// between them goes through the pre-tokenizer and BPE. Loading is in tokenizer_load.c, merging in tokenizer_bpe.c.
#include "text/tokenizer.h"

#include "base/err.h"
#include "text/tokenizer_inner.h"
#include "text/utf8.h"

#include <stdlib.h>
#include <string.h>

size_t eng_tokenizer_hash(const char *bytes, size_t len)
{
    uint64_t h = 0xCBF29CE484222325u;
    for (size_t i = 0; i < len; i++)
        h = (h ^ (unsigned char)bytes[i]) * 0x100000001B3u;
    return (size_t)(h ^ h >> 29);
}

int32_t eng_tokenizer_find_piece(const struct eng_tokenizer *t, const char *bytes, size_t len)
{
    for (size_t i = eng_tokenizer_hash(bytes, len) & t->piece_mask;; i = (i + 1) & t->piece_mask) {
        int32_t id = t->piece_slots[i];
        if (id < 0 || (t->pieces[id].len == len && !memcmp(t->bytes + t->pieces[id].offset, bytes, len)))
            return id;
    }
}

void eng_tokenizer_free(struct eng_tokenizer *t)
{
    if (!t)
        return;
    eng_pretokenizer_free(t->pre);
    free(t->bytes);
    free(t->pieces);
    free(t->piece_slots);
    free(t->merges);
    free(t->added);
    free(t);
}

// ---- added tokens ---------------------------------------------------------------------------------------------------

// The longest added token at the beginning of text[0..len), or -1. Special ones may use only the first special_len
// bytes. The sorted list is narrowed byte by byte, so a thousand tokens that begin with '<' cost ten comparisons a
// byte.
static int32_t match_added(const struct eng_tokenizer *t, const char *text, size_t len, size_t special_len)
{
    int32_t best = -1;
    size_t low = t->added_first[(unsigned char)text[0]], high = t->added_first[(unsigned char)text[0] + 1];
    for (size_t depth = 1; low < high; depth++) {
        const struct piece *p = &t->pieces[t->added[low]];
        if (p->len == depth) { // the shortest sorts first
            if (!(p->flags & PIECE_SPECIAL) || depth <= special_len)
                best = t->added[low];
            low++;
        }
        if (depth >= len)
            break;
        unsigned char c = (unsigned char)text[depth];
        size_t a = low, b = high; // first with byte >= c
        while (a < b) {
            size_t middle = a + (b - a) / 2;
            if ((unsigned char)t->bytes[t->pieces[t->added[middle]].offset + depth] < c)
                a = middle + 1;
            else
                b = middle;
        }
        low = a;
        b = high; // first with byte > c
        while (a < b) {
            size_t middle = a + (b - a) / 2;
            if ((unsigned char)t->bytes[t->pieces[t->added[middle]].offset + depth] <= c)
                a = middle + 1;
            else
                b = middle;
        }
        high = a;
    }
    return best;
}

// Length of the white space that text ends or begins with.
static size_t space_before(const char *text, size_t len)
{
    size_t end = len;
    while (end > 0) {
        size_t begin = end - 1;
        while (begin > 0 && ((unsigned char)text[begin] & 0xC0) == 0x80)
            begin--;
        uint32_t cp;
        enum eng_utf8_status status;
        eng_utf8_next(text + begin, end - begin, &cp, &status);
        if (!eng_utf8_is_space(cp))
            break;
        end = begin;
    }
    return len - end;
}

static size_t space_after(const char *text, size_t len)
{
    size_t i = 0;
    while (i < len) {
        uint32_t cp;
        enum eng_utf8_status status;
        size_t n = eng_utf8_next(text + i, len - i, &cp, &status);
        if (!eng_utf8_is_space(cp))
            break;
        i += n;
    }
    return i;
}

// ---- encoding -------------------------------------------------------------------------------------------------------

struct encoding {
    const struct eng_tokenizer *t;
    struct ids ids;
};

static int on_piece(void *ctx, const char *piece, size_t len)
{
    struct encoding *e = ctx;
    return eng_tokenizer_bpe(e->t, piece, len, &e->ids);
}

static int encode_run(struct encoding *e, const char *text, size_t len)
{
    return len ? eng_pretokenizer_split(e->t->pre, text, len, on_piece, e) : 0;
}

static bool spans_tile(const struct eng_text_span *spans, size_t n_spans, size_t len)
{
    size_t at = 0;
    for (size_t i = 0; i < n_spans; i++) {
        if (spans[i].begin != at || spans[i].end <= at)
            return false;
        at = spans[i].end;
    }
    return at == len;
}

int eng_tokenizer_encode_marked(const struct eng_tokenizer *t, const char *text, size_t len,
                                const struct eng_text_span *spans, size_t n_spans, int32_t **ret_ids, size_t *ret_n)
{
    if (!spans_tile(spans, n_spans, len) || !eng_utf8_valid(text, len))
        return ENG_EINVAL;
    struct encoding e = {.t = t};
    int rc = 0;
    size_t run = 0, span = 0; // where the ordinary text begins; the span of the current byte
    size_t special_end = 0;   // end of the template text around the current byte
    for (size_t i = 0; i < len;) {
        if (t->added_first[(unsigned char)text[i]] == t->added_first[(unsigned char)text[i] + 1]) {
            i++;
            continue;
        }
        while (spans[span].end <= i)
            span++;
        if (special_end <= i && !spans[span].from_input)
            for (size_t s = span; s < n_spans && !spans[s].from_input; s++)
                special_end = spans[s].end;
        int32_t id = match_added(t, text + i, len - i, special_end > i ? special_end - i : 0);
        if (id < 0) {
            i++;
            continue;
        }
        const struct piece *p = &t->pieces[id];
        size_t begin = i, end = i + p->len;
        if (p->flags & PIECE_LSTRIP)
            begin -= space_before(text + run, begin - run);
        if (p->flags & PIECE_RSTRIP)
            end += space_after(text + end, len - end);
        rc = encode_run(&e, text + run, begin - run);
        if (!rc)
            rc = eng_tokenizer_push_id(&e.ids, id);
        if (rc)
            goto fail;
        i = run = end;
    }
    if (run < len)
        rc = encode_run(&e, text + run, len - run);
    if (!rc && !e.ids.data) {
        e.ids.data = malloc(sizeof *e.ids.data);
        rc = e.ids.data ? 0 : ENG_ENOMEM;
    }
    if (rc)
        goto fail;
    *ret_ids = e.ids.data;
    *ret_n = e.ids.n;
    return 0;
fail:
    free(e.ids.data);
    return rc;
}

int eng_tokenizer_encode(const struct eng_tokenizer *t, const char *text, size_t len, unsigned flags, int32_t **ret_ids,
                         size_t *ret_n)
{
    if (flags & ~(unsigned)ENG_TOKENIZER_PARSE_SPECIAL)
        return ENG_EINVAL;
    struct eng_text_span all = {0, len, !(flags & ENG_TOKENIZER_PARSE_SPECIAL)};
    return eng_tokenizer_encode_marked(t, text, len, &all, len ? 1 : 0, ret_ids, ret_n);
}

// ---- single tokens --------------------------------------------------------------------------------------------------

static const struct piece *get(const struct eng_tokenizer *t, int32_t id)
{
    if (id < 0 || (size_t)id >= t->n_pieces || !(t->pieces[id].flags & PIECE_USED))
        return NULL;
    return &t->pieces[id];
}

int32_t eng_tokenizer_n_vocab(const struct eng_tokenizer *t)
{
    return (int32_t)t->n_pieces;
}

bool eng_tokenizer_is_special(const struct eng_tokenizer *t, int32_t id)
{
    const struct piece *p = get(t, id);
    return p && p->flags & PIECE_SPECIAL;
}

const char *eng_tokenizer_piece(const struct eng_tokenizer *t, int32_t id, size_t *ret_len)
{
    const struct piece *p = get(t, id);
    *ret_len = p ? p->len : 0;
    return p ? t->bytes + p->offset : NULL;
}

int32_t eng_tokenizer_find_special(const struct eng_tokenizer *t, const char *text)
{
    size_t len = strlen(text);
    if (!len)
        return -1;
    unsigned char c = (unsigned char)text[0];
    for (size_t i = t->added_first[c]; i < t->added_first[c + 1]; i++) {
        const struct piece *p = &t->pieces[t->added[i]];
        if (p->len == len && !memcmp(t->bytes + p->offset, text, len))
            return t->added[i];
    }
    return -1;
}
