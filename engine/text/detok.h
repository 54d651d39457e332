// 8 STREAM: token ids to text as they come, whole characters only. One owner at a time; no allocation of its own.
#pragma once

#include "base/buf.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct eng_tokenizer;

struct eng_detok {
    const struct eng_tokenizer *tokenizer;
    bool skip_special; // special tokens give no text
    size_t n_pending;  // bytes of a character whose end has not come yet
    unsigned char pending[4];
};

// t must outlive d.
void eng_detok_init(struct eng_detok *d, const struct eng_tokenizer *t, bool skip_special);

// Appends the text that id completes, often none. Ill-formed bytes become U+FFFD, one per maximal subpart, so all the
// text of a stream is what decoding its bytes at once gives (Python's errors="replace"). 0; ENG_EINVAL for an id that
// the tokenizer does not have (d and out unchanged); ENG_ENOMEM (out may hold a part; the stream cannot go on).
int eng_detok_push(struct eng_detok *d, int32_t id, struct eng_buf *out);

// The end: appends U+FFFD if a character was left unfinished; d is ready for another stream. 0 or ENG_ENOMEM.
int eng_detok_finish(struct eng_detok *d, struct eng_buf *out);

// All at once: appends the text of n ids. Errors as eng_detok_push.
int eng_detok_all(const struct eng_tokenizer *t, const int32_t *ids, size_t n, bool skip_special, struct eng_buf *out);
