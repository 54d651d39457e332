// Where text came from. Spans tile a text: the first begins at 0, each begins where the one before ends, none is empty.
#pragma once

#include <stdbool.h>
#include <stddef.h>

struct eng_text_span {
    size_t begin, end; // bytes
    bool from_input;   // came from a variable (a user's message); false: written by the template
};
