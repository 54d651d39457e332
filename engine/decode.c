// 7 COMMIT  The table of modes, and the prompt, which is computed alike in all of them.
#include "decode.h"

#include <assert.h>
#include <string.h>

#include "base/err.h"
#include "sample.h"

const struct eng_decode *eng_decode_of(enum eng_mode mode)
{
    static const struct eng_decode *const table[ENG_N_MODES] = {
        [ENG_MODE_AR] = &eng_decode_ar,
        [ENG_MODE_DIFFUSION] = &eng_decode_diffusion,
        [ENG_MODE_SELF_SPECULATION] = &eng_decode_self_speculation,
    };
    assert(table[mode]);
    return table[mode];
}

int32_t eng_decode_prompt_rows(const struct eng_seq *seq, int32_t max_rows)
{
    int32_t left = seq->prefill_end - seq->n_kv;
    return left < max_rows ? left : max_rows;
}

// The first token is chosen by the prompt's last row, unless it is there already (a preempted sequence) or none is
// wanted.
static bool gives_seed(const struct eng_seq *seq, int32_t end)
{
    return end == seq->prefill_end && seq->n_tokens == seq->n_prompt && eng_seq_wanted(seq) > 0;
}

int eng_decode_prompt_plan(struct eng_seq *seq, const struct eng_decode_env *env, struct eng_batch *batch, int32_t rows)
{
    struct eng_segment *s = eng_batch_add(batch, seq->slot, ENG_PASS_PREFILL, seq->n_kv, rows);
    if (!s)
        return ENG_ELIMIT;
    s->keep = true;
    memcpy(batch->tokens + s->row, seq->tokens + seq->n_kv, (size_t)rows * sizeof *seq->tokens);
    if (!gives_seed(seq, seq->n_kv + rows))
        return 0;
    struct eng_lookback back;
    int rc = eng_sample_lookback(env->sampler, seq, NULL, 0, &back);
    if (rc)
        return rc;
    eng_sample_row(seq, seq->n_prompt, back, eng_batch_want(batch, s, rows - 1));
    return 0;
}

void eng_decode_prompt_commit(struct eng_seq *seq, const struct eng_segment *segment, const struct krn_choice *choices,
                              struct eng_run *run)
{
    seq->n_kv += segment->rows;
    if (!segment->n_wanted)
        return;
    run->failed = choices[0].token < 0;
    run->tokens[0] = choices[0].token;
    run->choices[0] = &choices[0];
    run->n = 1;
}
