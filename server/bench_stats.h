// What a load level measured, and how it is printed.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "buf.h"
#include "engine.h"

struct srv_bench_samples {
    double *values; // milliseconds
    size_t n, cap;
    bool failed; // there was no memory once
};

enum { SRV_BENCH_REASONS = 8 };

// One load level. Zero-initialise; released with srv_bench_level_done.
struct srv_bench_level {
    int clients; // 0 for an open loop
    double rate; // arrivals a second, open loop
    const char *mode;
    int64_t requests, errors; // requests that ended, and those of them that failed; all below counts the others
    int64_t tokens, prompt_tokens, cached_tokens, forward_passes;
    int64_t mode_tokens[ENG_N_MODES];
    double seconds; // from the first request to the end of the last
    struct srv_bench_samples ttft, itl, e2e;
    struct {
        char text[200];
        int64_t n;
    } reasons[SRV_BENCH_REASONS]; // kinds of error, the most that are told apart
    int n_reasons;
};

// The value `times` times.
void srv_bench_samples_add(struct srv_bench_samples *s, double value, int64_t times);
void srv_bench_samples_append(struct srv_bench_samples *s, const struct srv_bench_samples *more);
void srv_bench_samples_free(struct srv_bench_samples *s);
// Nearest rank: the smallest value that at least p (0 .. 1) of the values do not exceed; 0 when there is none. Sorts.
double srv_bench_percentile(struct srv_bench_samples *s, double p);

// One more failed request, counted under its reason (the last one takes what does not fit).
void srv_bench_level_error(struct srv_bench_level *l, const char *reason);
void srv_bench_level_done(struct srv_bench_level *l);
double srv_bench_level_tok_s(const struct srv_bench_level *l);
// One object and a line break.
void srv_bench_level_json(struct srv_bench_level *l, struct srv_buf *out);
void srv_bench_table_head(FILE *out);
void srv_bench_level_row(struct srv_bench_level *l, FILE *out);
// A line for each kind of error.
void srv_bench_level_reasons(const struct srv_bench_level *l, FILE *out);
