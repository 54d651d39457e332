// The one table of settings that parsing, checking, help and --print-config read.
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "config.h"

enum srv_option_type {
    SRV_TEXT,    // char *
    SRV_WORD,    // const char *, one of words
    SRV_INTEGER, // int64_t
    SRV_BLOCK,   // int64_t: 4, 8, 16, 32, 64
    SRV_SIZE,    // int64_t bytes: 4096, 64KiB, 2MiB, 1GiB
    SRV_SECONDS, // double
    SRV_NUMBER,  // double
    SRV_MODES,   // int64_t bits, a comma list
    SRV_MASK,    // int64_t: `all` or a number
    SRV_SWITCH,  // bool, a flag without a value
};

struct srv_option {
    const char *key; // with `_`; the flag has `-`
    enum srv_option_type type;
    size_t offset;
    unsigned commands;
    double min, max;
    bool zero_is_auto; // `auto` is allowed and means 0
    const char *words; // SRV_WORD: "a|b|c"
    const char *help;
};

extern const struct srv_option srv_options[];
extern const int srv_n_options;

// Where the setting lives in c.
void *srv_option_field(const struct srv_config *c, const struct srv_option *o);
// What is allowed, as text for people.
void srv_option_allowed(const struct srv_option *o, char *out, size_t size);
