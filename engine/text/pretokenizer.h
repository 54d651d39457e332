// 2 PARSE: cuts text into the pieces that BPE may merge inside, by the regular expressions of tokenizer.json.
// Immutable after loading: split may run on any number of threads at once.
#pragma once

#include <stddef.h>

struct cJSON;
struct eng_pretokenizer;

// Called once per piece, in order; pieces are not empty and together are the text. Non-zero stops and is returned.
typedef int (*eng_pretokenizer_fn)(void *ctx, const char *piece, size_t len);

// Reads the "pre_tokenizer" value of tokenizer.json: ByteLevel, Split (Regex or String, Isolated) or a Sequence of
// them. Anything else is ENG_ENOTSUP and err names it; a malformed value is ENG_EFORMAT.
int eng_pretokenizer_load(const struct cJSON *json, struct eng_pretokenizer **ret, char *err, size_t err_size);

// Takes NULL.
void eng_pretokenizer_free(struct eng_pretokenizer *p);

// text must be valid UTF-8 (not checked here). 0, what fn returned, ENG_ENOMEM, or ENG_ELIMIT when the expression's
// search exceeds PCRE2's limits.
int eng_pretokenizer_split(const struct eng_pretokenizer *p, const char *text, size_t len, eng_pretokenizer_fn fn,
                           void *ctx);
