// 6 SAMPLE  Parameters of a choice. Nothing here depends on the step, the batch or the mode: only on the request, the
// position and the tokens before it, which is why two modes choose alike (MODEL.md 7).
#include "sample.h"

#include <string.h>

#include "base/err.h"
#include "request.h"
#include "seq.h"

void eng_sampler_reset(struct eng_sampler *s)
{
    eng_arena_free(s->arena);
    s->arena = NULL;
}

bool eng_sample_needs_history(const struct eng_params *p)
{
    return p->repetition_penalty != 1 || p->frequency_penalty != 0 || p->presence_penalty != 0;
}

int eng_sample_lookback(struct eng_sampler *s, const struct eng_seq *seq, const int32_t *extra, int32_t n_extra,
                        struct eng_lookback *ret)
{
    *ret = (struct eng_lookback){0};
    if (!eng_sample_needs_history(&seq->request->params))
        return 0;
    const struct eng_history *h = &seq->history;
    if (!n_extra) {
        *ret = (struct eng_lookback){h->counts, h->n};
        return 0;
    }
    if (!s->arena)
        s->arena = eng_arena_new();
    struct krn_token_count *counts =
        s->arena ? eng_arena_alloc(s->arena, ((size_t)h->n + (size_t)n_extra) * sizeof *counts) : NULL;
    if (!counts)
        return ENG_ENOMEM;
    memcpy(counts, h->counts, (size_t)h->n * sizeof *counts);
    int32_t n = h->n;
    for (int32_t i = 0; i < n_extra; i++) {
        int32_t at = eng_history_find(h, extra[i]);
        for (int32_t j = h->n; at < 0 && j < n; j++)
            if (counts[j].token == extra[i])
                at = j;
        if (at < 0) {
            at = n++;
            counts[at] = (struct krn_token_count){.token = extra[i]};
        }
        counts[at].in_output++;
    }
    *ret = (struct eng_lookback){counts, n};
    return 0;
}

void eng_sample_row(const struct eng_seq *seq, int32_t position, struct eng_lookback lookback,
                    struct krn_select_row *row)
{
    const struct eng_request *r = seq->request;
    const struct eng_params *p = &r->params;
    bool early = position - seq->n_prompt < p->min_tokens;
    *row = (struct krn_select_row){
        .row = row->row,
        .temperature = p->temperature,
        .top_k = p->top_k,
        .top_p = p->top_p,
        .min_p = p->min_p,
        .repetition_penalty = p->repetition_penalty,
        .frequency_penalty = p->frequency_penalty,
        .presence_penalty = p->presence_penalty,
        .seed = p->seed,
        .position = position,
        .allowed = early ? r->allowed_early : r->allowed,
        .counts = lookback.counts,
        .n_counts = lookback.n,
        .biases = r->biases,
        .n_biases = (int32_t)p->n_biases,
        .n_top = p->n_top < 0 ? 0 : p->n_top,
    };
}
