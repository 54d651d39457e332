// Counters and histograms of the server, and the page that Prometheus reads.
#pragma once

#include <stdint.h>

#include "buf.h"
#include "engine.h"

struct srv_server;

enum {
    SRV_METRICS_ROUTES = 11, // entries of srv_routes; one more counts unknown paths
    SRV_METRICS_CODES = 600,
    SRV_METRICS_BUCKETS = 24,
    SRV_METRICS_FINISHES = 6, // enum eng_finish
};

enum srv_metrics_endpoint { SRV_ENDPOINT_CHAT, SRV_ENDPOINT_COMPLETIONS, SRV_N_ENDPOINTS };

struct srv_hist { // counts are not cumulative; the last bucket is +Inf
    const double *bounds;
    int n_bounds;
    uint64_t counts[SRV_METRICS_BUCKETS + 1];
    double sum;
    uint64_t count;
};

struct srv_vllm { // what only vLLM's names need, of requests that gave a token
    struct srv_hist prompt_tokens, generation_tokens, per_token, inference, prefill, decode;
};

struct srv_metrics { // loop thread only
    uint64_t answers[SRV_METRICS_ROUTES + 1][SRV_METRICS_CODES - 100];
    uint64_t requests[SRV_N_ENDPOINTS][ENG_N_MODES][SRV_METRICS_FINISHES];
    uint64_t decisions[ENG_N_MODES][ENG_N_CAUSES];
    struct srv_hist first_token[ENG_N_MODES], inter_token[ENG_N_MODES], queue[ENG_N_MODES], request[ENG_N_MODES];
    struct srv_hist tokens_per_forward[ENG_N_MODES];
    uint64_t disconnects, slow_readers;
    struct srv_vllm vllm;
};

void srv_metrics_init(struct srv_metrics *m);
void srv_hist_add(struct srv_hist *h, double value, uint64_t times);

// One answer of a route (SRV_METRICS_ROUTES: unknown path).
void srv_metrics_answer(struct srv_metrics *m, int route, int status);
// A run of n tokens, `gap` seconds after the one before. h is kept by the choice until its mode is known.
void srv_metrics_gap(struct srv_hist *h, double gap, int n);
// The end of one choice, with its gaps.
void srv_metrics_finished(struct srv_metrics *m, enum srv_metrics_endpoint endpoint, enum eng_finish finish,
                          const struct eng_request_stats *stats, const struct srv_hist *gaps);

// The whole page under the names that the configuration wants, from memory.
void srv_metrics_render(const struct srv_server *s, struct srv_buf *out);
// The rows of one histogram. name in full; label: `mode="ar"`, or "".
void srv_metrics_hist(struct srv_buf *out, const char *name, const char *label, const struct srv_hist *h);
// `name="value"`, escaped as JSON escapes, which covers what the format asks for.
void srv_metrics_label(struct srv_buf *out, const char *name, const char *value);

// metrics_vllm.c. latency, gap: empty histograms with the bounds of long and of short times.
void srv_vllm_init(struct srv_vllm *v, const struct srv_hist *latency, const struct srv_hist *gap);
void srv_vllm_finished(struct srv_vllm *v, const struct eng_request_stats *stats);
void srv_vllm_render(const struct srv_server *s, struct srv_buf *out);
