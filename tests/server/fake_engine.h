// A scripted engine: the functions of engine.h without a model. A token is a byte; what a request generates is said by
// the test.
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "engine.h"

enum { FAKE_VOCAB = 258, FAKE_EOS = 256, FAKE_CONTEXT = 512 };

struct fake_control { // set before the server starts, unless marked
    bool hold;        // do nothing on submit; the test speaks through fake_say and fake_finish
    int queue_limit;  // submissions that are not finished; more are ENG_EBUSY
    int load_ms;      // how long eng_open takes
    bool load_fails;
    bool no_adapter;     // no self-speculation
    bool no_cost;        // no cost model
    const char *failure; // what eng_failure says (any time); NULL: nothing
    const char *reply;   // what an automatic reply says, in runs of `run` bytes
    int run;
    int32_t top; // alternatives that come with each token when log-probabilities are asked for
};
extern struct fake_control fake;

void fake_reset(void);
// Requests submitted so far; waits until there are n, false after timeout_ms.
bool fake_wait_submitted(int n, int timeout_ms);
// Waits until request i was cancelled; milliseconds waited, or -1.
int fake_wait_cancelled(int i, int timeout_ms);
bool fake_cancelled(int i);
// What request i asked for (its stops and biases are not kept).
struct eng_params fake_params(int i);
// Its prompt as text; lives until fake_reset.
const char *fake_prompt(int i);
int fake_live(void); // requests whose finish event was not taken and freed

// One event of request i.
void fake_say(int i, const char *text);
// A draft of request i after what it said: bytes are tokens, '_' is a masked position.
void fake_draft(int i, const char *tokens);
void fake_finish(int i, enum eng_finish finish, const char *error);
