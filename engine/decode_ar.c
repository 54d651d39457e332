// 7 COMMIT  Autoregressive (MODEL.md 3): one causal row a step, the seed; its choice is the next token.
#include <assert.h>

#include "base/err.h"
#include "decode.h"
#include "sample.h"

static int32_t ar_rows(const struct eng_seq *seq, int32_t *ret_end)
{
    *ret_end = seq->n_tokens;
    return 1;
}

static int ar_plan(struct eng_seq *seq, const struct eng_decode_env *env, struct eng_batch *batch)
{
    assert(seq->n_kv == seq->n_tokens - 1);
    struct eng_segment *s = eng_batch_add(batch, seq->slot, ENG_PASS_AR, seq->n_kv, 1);
    if (!s)
        return ENG_ELIMIT;
    s->keep = true;
    batch->tokens[s->row] = seq->tokens[seq->n_kv];
    struct eng_lookback back;
    int rc = eng_sample_lookback(env->sampler, seq, NULL, 0, &back);
    if (rc)
        return rc;
    eng_sample_row(seq, seq->n_tokens, back, eng_batch_want(batch, s, 0));
    return 0;
}

static int32_t ar_rows_ahead(const struct eng_seq *seq, const struct eng_segment *flying, int32_t *ret_end)
{
    *ret_end = seq->n_tokens + 1;
    return flying->kind == ENG_PASS_AR ? 1 : 0;
}

static int ar_plan_ahead(const struct eng_seq *seq, const struct eng_segment *flying, struct eng_batch *batch)
{
    struct eng_segment *s = eng_batch_add(batch, seq->slot, ENG_PASS_AR, flying->first_pos + 1, 1);
    if (!s)
        return ENG_ELIMIT;
    s->keep = true;
    eng_batch_link(batch, s->row, flying->first_wanted);
    eng_sample_row(seq, seq->n_tokens + 1, (struct eng_lookback){0}, eng_batch_want(batch, s, 0));
    return 0;
}

static void ar_commit(struct eng_seq *seq, const struct eng_batch *batch, const struct eng_segment *segment,
                      struct eng_run *run)
{
    const struct krn_choice *choices = batch->choices + segment->first_wanted;
    seq->n_kv++;
    run->failed = choices[0].token < 0;
    run->tokens[0] = choices[0].token;
    run->choices[0] = &choices[0];
    run->n = 1;
}

const struct eng_decode eng_decode_ar = {ENG_MODE_AR, ar_rows, ar_plan, ar_rows_ahead, ar_plan_ahead, ar_commit};
