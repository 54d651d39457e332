// 8 STREAM  The text of one generation: tokens in, whole characters out, with stop strings found before they are sent.
//
// Engine thread. Joins the detokeniser and the stop matcher of text/; what could be the beginning of a stop string or
// is half a character is held back until it is decided.
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/buf.h"
#include "text/detok.h"
#include "text/stop.h"

struct eng_tokenizer;

struct eng_output {
    const struct eng_tokenizer *tokenizer; // NULL: there is no text
    struct eng_detok detok;
    struct eng_stop *stop;
    struct eng_buf chars; // the present token's whole characters
};

// tokenizer may be NULL. 0 or ENG_ENOMEM.
int eng_output_init(struct eng_output *o, const struct eng_tokenizer *tokenizer, bool skip_special,
                    const char *const *stops, size_t n_stops);
// Takes a zeroed or half-built object.
void eng_output_done(struct eng_output *o);

// Adds a token and appends to `text` what now stands. search: look for stop strings in this token's characters.
// *ret_stop is the index of the stop string that was found (text then ends before it) or -1. 0 or ENG_ENOMEM.
int eng_output_push(struct eng_output *o, int32_t token, bool search, struct eng_buf *text, int32_t *ret_stop);
// The end: appends what was held back; half a character becomes U+FFFD. 0 or ENG_ENOMEM.
int eng_output_end(struct eng_output *o, struct eng_buf *text);
