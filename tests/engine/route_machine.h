// A machine on paper: requests go through the router in simulated time, passes take what a cost model says, and drafts
// are accepted by a given law. So what auto makes of a load can be compared with every fixed mode, without noise.
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "router.h"

// How good drafts are: a draft is sure (accepted with sure_chance) or not (accepted with a chance between 0 and
// unsure_chance), and says so in its confidence.
struct machine_text {
    double sure, sure_chance, unsure_chance;
    int32_t length; // tokens of an answer
};

struct machine {
    struct eng_cost cost;     // what passes really take
    struct eng_cost believed; // what the router is told; as cost unless a test says otherwise
    double host_s;            // between two passes
    struct machine_text texts[4];
    int32_t n_texts;        // requests take them in turn
    unsigned auto_modes;    // 0: ar and self_speculation
    bool allow_diffusion;   // of every request
    int32_t denoise_passes; // of a block of 8, as diffusion would need them; longer blocks in proportion
    uint64_t seed;
};

// Everyone in one way: `mode`, and a block length or 0.
struct machine_mode {
    enum eng_mode mode;
    int32_t block_length;
};

struct machine_result {
    double rate;               // tokens a second of everyone together, in the second half of the time
    double share[ENG_N_MODES]; // of tokens
    int64_t changes;           // of mode or block length, in the second half
    double shortest_between_s; // between two changes of one request in the second half; large: there were none
    double slowest;            // the slowest request's tokens a second there
};

// `clients` closed loops of requests for `seconds` of simulated time.
struct machine_result machine_run(const struct machine *m, struct machine_mode how, int32_t clients, double seconds);

// The number of clients changes; *ret_settled: seconds after the change from which on the share of tokens made by
// blocks stays within 0.2 of where it ends. Twice `seconds` are simulated.
void machine_step(const struct machine *m, int32_t from, int32_t to, double seconds, double *ret_settled);

// Two machines: one whose rows cost little up to 256 in a pass and then much (a GPU with a model of some billions of
// parameters), and one whose rows all cost nearly the same (a small model on two CPU cores).
struct eng_cost machine_gpu(void);
struct eng_cost machine_cpu(void);
