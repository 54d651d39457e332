// The numbers behind /metrics. A reader waits at most for the copying of one struct, never for a forward pass.
#include "stats.h"

#include "base/err.h"

static const double row_bounds[] = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384};
static const double second_bounds[] = {0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1,
                                       0.25,   0.5,   1,      2.5,   5,    10,    30,   60};
static const double token_bounds[] = {1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64};

#define HIST(bounds_of)                                                         \
    {                                                                           \
        .bounds = bounds_of, .n_bounds = sizeof bounds_of / sizeof bounds_of[0] \
    }

const char *eng_pass_kind_name(enum eng_pass_kind k)
{
    static const char *const names[ENG_N_PASS_KINDS] = {"prefill", "ar", "denoise", "seal", "draft", "verify"};
    return names[k];
}

int eng_counters_init(struct eng_counters *c)
{
    *c = (struct eng_counters){
        .now = {.rows = HIST(row_bounds),
                .seconds = HIST(second_bounds),
                .accepted_length = HIST(token_bounds),
                .denoise_passes = HIST(token_bounds)},
    };
    c->shown = c->now;
    return pthread_mutex_init(&c->mutex, NULL) ? ENG_ENOMEM : 0;
}

void eng_counters_done(struct eng_counters *c)
{
    pthread_mutex_destroy(&c->mutex);
}

void eng_counters_publish(struct eng_counters *c)
{
    pthread_mutex_lock(&c->mutex);
    c->shown = c->now;
    pthread_mutex_unlock(&c->mutex);
}

void eng_counters_read(struct eng_counters *c, struct eng_stats *ret)
{
    pthread_mutex_lock(&c->mutex);
    *ret = c->shown;
    pthread_mutex_unlock(&c->mutex);
}

void eng_hist_add(struct eng_hist *h, double value)
{
    int32_t i = 0;
    while (i < h->n_bounds && value > h->bounds[i])
        i++;
    h->counts[i]++;
    h->sum += value;
    h->count++;
}
