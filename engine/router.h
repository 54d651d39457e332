// 4 ROUTE  Which mode and block length a request uses for its next cycle, and why.
//
// A pure function of the request, the configuration and the load, so that it can be replaced and tested alone. A forced
// mode is always honoured. AR and self-speculation give the same text, so moving between them is always allowed;
// diffusion gives another text and is chosen only where the client or the configuration allows it.
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "engine.h"

struct eng_request;

struct eng_router {
    unsigned modes;      // what the model can do, bits of enum eng_mode
    unsigned auto_modes; // what auto may choose
    int32_t auto_rows;   // auto speculates while all active blocks fit this many rows
};

// The load of this moment.
struct eng_load {
    int32_t active;     // running requests, this one included
    int32_t block_rows; // the sum of their block lengths
};

struct eng_route {
    enum eng_mode mode; // never AUTO
    int32_t block_length;
    char reason[160]; // one sentence with numbers
};

// The mode that decide would take, without its sentence: cheap enough to ask for every request in every step.
enum eng_mode eng_router_mode(const struct eng_router *router, const struct eng_request *r,
                              const struct eng_load *load);
void eng_router_decide(const struct eng_router *router, const struct eng_request *r, const struct eng_load *load,
                       struct eng_route *ret);
