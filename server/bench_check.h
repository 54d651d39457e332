// One stream of completion chunks, verified as it comes, and what it measured.
#pragma once

#include "bench_stats.h"
#include "buf.h"

struct srv_bench_expect {
    bool chat;
    int64_t prompt_tokens; // 0: unknown
    int64_t output_tokens; // exactly that many, ended by length; 0: unknown
};

struct srv_bench_check {
    struct srv_bench_expect expect;
    struct srv_buf line;  // the part of an event line that has come
    bool data_line;       // an event's line was read and its blank line is due
    bool comment_line;    // the same for a comment
    struct srv_buf event; // the data of the event
    struct srv_buf id;    // of all chunks
    bool opened, finished, used, done;
    bool length;                        // finish_reason: length
    int64_t tokens, chunk_tokens;       // so far; of the read under way
    double start_ms, first_ms, last_ms; // 0: not seen
    struct srv_bench_samples gaps;
    int64_t prompt_tokens, cached_tokens, forward_passes;
    int64_t mode_tokens[ENG_N_MODES];
    char error[200];
};

// Forgets the last stream, keeps memory.
void srv_bench_check_begin(struct srv_bench_check *k, const struct srv_bench_expect *expect, double start_ms);
// Bytes that arrived at now_ms; -1 and error at the first violation.
int srv_bench_check_feed(struct srv_bench_check *k, const char *bytes, size_t n);
// What the feeds since the last call brought arrived together, at now_ms.
void srv_bench_check_arrived(struct srv_bench_check *k, double now_ms);
// The body is complete: whether the stream was. Same returns.
int srv_bench_check_end(struct srv_bench_check *k);
void srv_bench_check_free(struct srv_bench_check *k);
