// The live picture behind /status. A step pays for it at most twenty times a second, or when a request ends; otherwise
// only the comparison of two times. The mutex is held for the filling or the copying of one small array.
#include "live.h"

#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "request.h"

enum { PERIOD_NS = 50 * 1000 * 1000 };

int eng_live_init(struct eng_live_list *l, int32_t cap)
{
    *l = (struct eng_live_list){.cap = cap};
    l->shown = calloc((size_t)cap, sizeof *l->shown);
    if (!l->shown)
        return ENG_ENOMEM;
    if (pthread_mutex_init(&l->mutex, NULL)) {
        free(l->shown);
        return ENG_ENOMEM;
    }
    return 0;
}

void eng_live_done(struct eng_live_list *l)
{
    pthread_mutex_destroy(&l->mutex);
    free(l->shown);
    *l = (struct eng_live_list){0};
}

static void show(struct eng_live *to, const struct eng_request *r, int64_t now_ns)
{
    const struct eng_seq *q = &r->seq;
    const struct eng_request_stats *st = &q->stats;
    *to = (struct eng_live){
        .user = r->params.user,
        .mode = q->mode,
        .block_length = st->block_length,
        .prompt_tokens = q->n_prompt,
        .computed_tokens = q->n_kv,
        .completion_tokens = st->completion_tokens,
        .forward_passes = st->forward_passes,
        .drafted_tokens = st->drafted_tokens,
        .accepted_tokens = st->accepted_tokens,
    };
    to->predicted_tokens_per_second = q->routing.predicted;
    // The first token ends the prompt; its time is no time between tokens.
    if (st->completion_tokens > 1 && now_ns > q->first_token_ns)
        to->tokens_per_second = (st->completion_tokens - 1) * 1e9 / (double)(now_ns - q->first_token_ns);
    memcpy(to->reason, st->reason, sizeof to->reason);
}

void eng_live_publish(struct eng_live_list *l, struct eng_request *const *running, int32_t n, bool finished,
                      int64_t now_ns)
{
    if (n && !finished && now_ns - l->shown_ns < PERIOD_NS)
        return;
    l->shown_ns = now_ns;
    pthread_mutex_lock(&l->mutex);
    for (int32_t i = 0; i < n; i++)
        show(&l->shown[i], running[i], now_ns);
    l->n_shown = n;
    pthread_mutex_unlock(&l->mutex);
}

int32_t eng_live_read(struct eng_live_list *l, struct eng_live *ret, int32_t max)
{
    pthread_mutex_lock(&l->mutex);
    int32_t n = l->n_shown < max ? l->n_shown : max;
    memcpy(ret, l->shown, (size_t)n * sizeof *ret);
    pthread_mutex_unlock(&l->mutex);
    return n;
}
