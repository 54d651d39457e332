// 8 STREAM  The text of one generation: detokeniser, then stop strings. Engine thread.
#include "output.h"

#include "base/err.h"

int eng_output_init(struct eng_output *o, const struct eng_tokenizer *tokenizer, bool skip_special,
                    const char *const *stops, size_t n_stops)
{
    *o = (struct eng_output){.tokenizer = tokenizer};
    if (!tokenizer)
        return 0;
    eng_detok_init(&o->detok, tokenizer, skip_special);
    return n_stops ? eng_stop_new(stops, n_stops, &o->stop) : 0;
}

void eng_output_done(struct eng_output *o)
{
    eng_stop_free(o->stop);
    eng_buf_free(&o->chars);
    *o = (struct eng_output){0};
}

int eng_output_push(struct eng_output *o, int32_t token, bool search, struct eng_buf *text, int32_t *ret_stop)
{
    *ret_stop = -1;
    if (!o->tokenizer)
        return 0;
    eng_buf_reset(&o->chars);
    int rc = eng_detok_push(&o->detok, token, &o->chars);
    // A model's vocabulary may be larger than its tokenizer's; such an id has no text.
    if (rc == ENG_EINVAL)
        return 0;
    if (rc || !o->chars.len)
        return rc;
    if (!o->stop || !search)
        return eng_buf_append(text, o->chars.data, o->chars.len);
    int match = -1;
    rc = eng_stop_push(o->stop, o->chars.data, o->chars.len, text, &match);
    *ret_stop = match;
    return rc;
}

int eng_output_end(struct eng_output *o, struct eng_buf *text)
{
    if (!o->tokenizer)
        return 0;
    eng_buf_reset(&o->chars);
    int rc = eng_detok_finish(&o->detok, &o->chars);
    int match = -1;
    if (rc || !o->stop)
        return rc ? rc : o->chars.len ? eng_buf_append(text, o->chars.data, o->chars.len) : 0;
    // The replacement of half a character cannot complete a stop string that a client could mean; if it does, it is
    // only text.
    if (o->chars.len)
        rc = eng_stop_push(o->stop, o->chars.data, o->chars.len, text, &match);
    return rc ? rc : eng_stop_finish(o->stop, text);
}
