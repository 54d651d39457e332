// 2 PARSE: Jinja templates as checkpoints use them for chat: the language of Python's jinja2 in the environment that
// Hugging Face gives it (trim_blocks, lstrip_blocks, loop controls, tojson without HTML escapes, raise_exception,
// strftime_now). Letter case is ASCII only. Names that are not implemented are errors that say the name and the line.
//
// Input marking: the output says for each byte whether the template wrote it or it came out of a variable, through
// every operation (slices, joins, replacements, block sets). The tokenizer parses special tokens only in what the
// template wrote.
#pragma once

#include "text/span.h"

#include <stddef.h>

struct cJSON;
struct eng_jinja;

enum {
    ENG_JINJA_MAX_SOURCE = 1 << 20,   // bytes of a template
    ENG_JINJA_MAX_OUTPUT = 16 << 20,  // bytes of a rendering
    ENG_JINJA_MAX_MEMORY = 256 << 20, // bytes that one rendering may take
    ENG_JINJA_MAX_STEPS = 20000000,   // evaluated nodes and touched list items
    ENG_JINJA_MAX_DEPTH = 1000,       // nested evaluations, macros and values
};

// Parses a template of len bytes of UTF-8. ENG_EFORMAT: a syntax error or an unknown filter, test or tag; err is one
// sentence with the line. ENG_ELIMIT, ENG_ENOMEM. *ret is freed with eng_jinja_free; it is immutable and may be
// rendered by any number of threads at once.
int eng_jinja_compile(const char *src, size_t len, struct eng_jinja **ret, char *err, size_t err_size);

// Takes NULL.
void eng_jinja_free(struct eng_jinja *j);

struct eng_jinja_out {
    char *text; // NUL-terminated
    size_t len;
    struct eng_text_span *spans; // tile the text; neighbours differ
    size_t n_spans;
};

// Renders with the members of the objects vars (whose strings count as input) and trusted (whose strings count as the
// template's own, for bos_token and the like; may be NULL); on a common name trusted wins. JSON numbers without a
// fraction are integers. Neither object is kept. ENG_EINVAL: the template raised an exception (err is its message) or
// an operation failed (err says where and why). ENG_ELIMIT: one of the bounds above. ENG_ENOMEM. On success *out is
// freed with eng_jinja_out_free, on failure it is untouched.
int eng_jinja_render(const struct eng_jinja *j, const struct cJSON *vars, const struct cJSON *trusted,
                     struct eng_jinja_out *out, char *err, size_t err_size);

// Frees the members and zeroes them.
void eng_jinja_out_free(struct eng_jinja_out *out);
