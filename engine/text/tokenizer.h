// 2 PARSE: text to token ids and back. Byte-level BPE as in Hugging Face's tokenizer.json. Everything a file asks for
// that is not implemented is refused at load by name. After loading a tokenizer is immutable: every function but free
// may run on any number of threads at once.
#pragma once

#include "text/span.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct eng_tokenizer;

enum {
    ENG_TOKENIZER_PARSE_SPECIAL = 1, // special tokens' text in the input becomes their ids
};

// Reads tokenizer.json. On failure err holds one sentence, *ret is untouched: ENG_EIO, ENG_EFORMAT (malformed),
// ENG_ENOTSUP (a component that is not implemented), ENG_ELIMIT (too large), ENG_ENOMEM. *ret is freed with
// eng_tokenizer_free.
int eng_tokenizer_load(const char *path, struct eng_tokenizer **ret, char *err, size_t err_size);

// Takes NULL.
void eng_tokenizer_free(struct eng_tokenizer *t);

// Token ids of text[0..len). No token is added at the ends. Without ENG_TOKENIZER_PARSE_SPECIAL the text of a special
// token is ordinary text; added tokens that the file does not call special are always matched, as they are vocabulary.
// *ret_ids is freed with free, never NULL on success. ENG_EINVAL: not UTF-8 (or unknown flags). ENG_ELIMIT: the
// pre-tokenizer gave up, or more than INT32_MAX tokens. ENG_ENOMEM.
int eng_tokenizer_encode(const struct eng_tokenizer *t, const char *text, size_t len, unsigned flags, int32_t **ret_ids,
                         size_t *ret_n);

// The same, where a special token is matched only if all of it lies in template spans; ordinary text runs on across
// span borders, so the result is what one encoding of the whole text gives, less the special tokens from input. spans
// must tile [0, len) (span.h), else ENG_EINVAL.
int eng_tokenizer_encode_marked(const struct eng_tokenizer *t, const char *text, size_t len,
                                const struct eng_text_span *spans, size_t n_spans, int32_t **ret_ids, size_t *ret_n);

// One more than the largest id, added tokens included. Ids in between may be unused.
int32_t eng_tokenizer_n_vocab(const struct eng_tokenizer *t);

// True for ids of special added tokens; false for any other number.
bool eng_tokenizer_is_special(const struct eng_tokenizer *t, int32_t id);

// The raw bytes of a token (not NUL-terminated, often not whole characters); an added token gives its text. NULL and 0
// for an unused or unknown id. Lives as long as t.
const char *eng_tokenizer_piece(const struct eng_tokenizer *t, int32_t id, size_t *ret_len);

// Id of the added token with this NUL-terminated text, -1 if there is none.
int32_t eng_tokenizer_find_special(const struct eng_tokenizer *t, const char *text);
