// A caller of the engine for tests: submits requests, waits for their ends, keeps what came.
#pragma once

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "core.h"
#include "fake_model.h"

struct answer { // of one request
    struct eng_request *request;
    int32_t *tokens;
    float *logprobs;
    int32_t n_tokens, cap;
    char *text;
    size_t text_len;
    int32_t n_events, n_finishes;
    int32_t n_drafts, n_masked, n_drafted; // draft events; positions in them with a mask, and with a token
    int32_t last_draft[64];                // the ids of the last one, -1 where masked
    int32_t last_n, last_from;
    enum eng_finish finish;
    char stop[32];
    int32_t stop_id;
    char error[120];
    struct eng_request_stats stats;
};

struct client {
    struct eng_engine *engine;
    struct fake_model *fake; // NULL: a real model
    pthread_mutex_t mutex;
    pthread_cond_t ready;
    bool notified;
    char fault[200]; // of the event stream
    int32_t n_open;  // submitted and not finished
};

// Small defaults: 8 sequences, 64 rows, context 200.
struct eng_options client_options(void);
// Opens an engine on the fake. max_context 0: as many as its pages hold, at most 200. Fails the test on error.
void client_open(struct client *c, struct fake_model *f, struct eng_options options, int32_t max_context,
                 const struct eng_tokenizer *tokenizer);
// Opens an engine on a checkpoint. Returns eng_open's code.
int client_open_dir(struct client *c, struct eng_options options, char *err, size_t err_size);
// Waits for everything, closes, and fails the test on a fault of model or stream, or a page that is not free.
void client_close(struct client *c);

// Makes and submits. Fails the test on error. a is zeroed first; it must stay where it is until the end.
void client_submit(struct client *c, struct answer *a, const struct eng_params *params, const int32_t *prompt,
                   size_t n_prompt);
// Handles what is there, waiting at most timeout_ms for something. False when nothing came.
bool client_poll(struct client *c, int timeout_ms);
// Until every submitted request has finished.
void client_wait(struct client *c);
void answer_free(struct answer *a);
// Fails the test where the sums over all requests that an engine has answered are not its counters.
void client_check_sums(const struct answer *answers, int32_t n, const struct eng_stats *stats);
// The next question of a file of the training data's format, as the model's chat template renders it: writes at most
// max ids, skipping longer ones, and returns how many; 0 at the end of the file. Fails the test on error.
int32_t client_chat_prompt(const struct eng_engine *e, FILE *file, int32_t *ret_ids, int32_t max);
// Same tokens, text and end.
bool answer_equal(const struct answer *a, const struct answer *b);

// A small generator for tests' own choices.
uint32_t test_random(uint64_t *state);
