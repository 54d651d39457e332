// 7 COMMIT  Linear self-speculation (MODEL.md 5): draft a block in one bidirectional pass, verify it in one causal
// pass.
//
// Row i of the verification chooses the AR token of position i + 1. Drafts are accepted while they equal it; the first
// difference yields the AR token itself. Every emitted token is a causal choice, so the output is AR's whatever the
// draft was. Rejected rows leave KV beyond n_kv, which the next pass overwrites before anything reads it.
#include <assert.h>

#include "base/err.h"
#include "decode.h"
#include "sample.h"

// A cycle yields as many tokens as its block has rows, so the block is cut to what is still wanted. 1: a plain AR row.
static int32_t block_rows(const struct eng_seq *seq)
{
    if (seq->block.rows)
        return seq->block.rows;
    int32_t wanted = eng_seq_wanted(seq);
    return wanted < seq->block_length ? wanted : seq->block_length;
}

static int32_t ss_rows(const struct eng_seq *seq, int32_t *ret_end)
{
    int32_t rows = block_rows(seq);
    *ret_end = seq->n_kv + rows;
    return rows;
}

static int plan_draft(struct eng_seq *seq, const struct eng_decode_env *env, struct eng_batch *batch, int32_t rows)
{
    struct eng_block *b = &seq->block;
    struct eng_segment *s = eng_batch_add(batch, seq->slot, ENG_PASS_DRAFT, seq->n_kv, rows);
    if (!s)
        return ENG_ELIMIT;
    s->mask = KRN_MASK_BLOCK;
    s->adapter = env->has_adapter;
    struct eng_lookback back;
    int rc = eng_sample_lookback(env->sampler, seq, NULL, 0, &back);
    if (rc)
        return rc;
    b->start = seq->n_kv;
    b->rows = rows;
    b->tokens[0] = seq->tokens[seq->n_kv];
    batch->tokens[s->row] = b->tokens[0];
    for (int32_t i = 1; i < rows; i++) {
        batch->tokens[s->row + i] = env->mask_id;
        eng_sample_row(seq, b->start + i, back, eng_batch_want(batch, s, i));
    }
    return 0;
}

static int plan_verify(struct eng_seq *seq, const struct eng_decode_env *env, struct eng_batch *batch)
{
    const struct eng_block *b = &seq->block;
    struct eng_segment *s = eng_batch_add(batch, seq->slot, ENG_PASS_VERIFY, b->start, b->rows);
    if (!s)
        return ENG_ELIMIT;
    s->keep = true;
    for (int32_t i = 0; i < b->rows; i++) {
        batch->tokens[s->row + i] = b->tokens[i];
        // Row i looks back on the drafts up to its own token, as AR would had they been chosen.
        struct eng_lookback back;
        int rc = eng_sample_lookback(env->sampler, seq, b->tokens + 1, i, &back);
        if (rc)
            return rc;
        eng_sample_row(seq, b->start + i + 1, back, eng_batch_want(batch, s, i));
    }
    eng_batch_accept(batch, s);
    return 0;
}

static int ss_plan(struct eng_seq *seq, const struct eng_decode_env *env, struct eng_batch *batch)
{
    assert(seq->n_kv == seq->n_tokens - 1);
    if (seq->block.drafted)
        return plan_verify(seq, env, batch);
    int32_t rows = block_rows(seq);
    return rows == 1 ? eng_decode_ar.plan(seq, env, batch) : plan_draft(seq, env, batch, rows);
}

static void commit_draft(struct eng_block *b, const struct krn_choice *choices, struct eng_run *run)
{
    for (int32_t i = 1; i < b->rows; i++) {
        b->tokens[i] = choices[i - 1].token;
        b->confidence[i - 1] = choices[i - 1].confidence;
        run->failed = run->failed || b->tokens[i] < 0;
    }
    b->drafted = b->rows;
}

// A verification's length and seed are its choices'; how much of a draft is verified is the draft's, unless rows are so
// cheap that all of it is.
static int32_t ss_rows_ahead(const struct eng_seq *seq, const struct eng_segment *flying, int32_t *ret_end)
{
    *ret_end = flying->first_pos + flying->rows;
    return flying->kind == ENG_PASS_DRAFT && seq->routing.row_price < ENG_FREE_ROW_PRICE ? flying->rows : 0;
}

static int ss_plan_ahead(const struct eng_seq *seq, const struct eng_segment *flying, struct eng_batch *batch)
{
    const struct eng_block *b = &seq->block;
    struct eng_segment *s = eng_batch_add(batch, seq->slot, ENG_PASS_VERIFY, b->start, b->rows);
    if (!s)
        return ENG_ELIMIT;
    s->keep = true;
    batch->tokens[s->row] = b->tokens[0];
    for (int32_t i = 0; i < b->rows; i++) {
        if (i > 0)
            eng_batch_link(batch, s->row + i, flying->first_wanted + i - 1);
        eng_sample_row(seq, b->start + i + 1, (struct eng_lookback){0}, eng_batch_want(batch, s, i));
    }
    eng_batch_accept(batch, s);
    return 0;
}

// The model has compared the block with its choices.
static void commit_verify(struct eng_seq *seq, const struct krn_choice *choices, const struct krn_accepted *accepted,
                          struct eng_run *run)
{
    struct eng_block *b = &seq->block;
    assert(accepted->n <= b->rows); // nobody cut the draft while all of it was being verified
    run->drafted = b->drafted - 1;
    run->blocks = 1;
    run->failed = accepted->n == 0;
    run->n = accepted->n;
    for (int32_t i = 0; i < run->n; i++) {
        run->tokens[i] = choices[i].token;
        run->choices[i] = &choices[i];
    }
    assert(run->failed || run->tokens[run->n - 1] == accepted->seed);
    run->accepted = run->failed ? 0 : run->n - 1;
    // Of a draft that was not verified whole, the last token may be the next draft.
    run->accepted += run->n == b->rows && b->rows < b->drafted && run->tokens[run->n - 1] == b->tokens[run->n];
    run->rejected = b->rows - run->n;
    seq->n_kv += run->n;
    b->rows = 0;
    b->drafted = 0;
}

static void ss_commit(struct eng_seq *seq, const struct eng_batch *batch, const struct eng_segment *segment,
                      struct eng_run *run)
{
    const struct krn_choice *choices = batch->choices + segment->first_wanted;
    if (segment->kind == ENG_PASS_AR) {
        eng_decode_ar.commit(seq, batch, segment, run);
        run->blocks = 1;
    } else if (segment->kind == ENG_PASS_DRAFT)
        commit_draft(&seq->block, choices, run);
    else
        commit_verify(seq, choices, &batch->accepted[segment->accept], run);
}

const struct eng_decode eng_decode_self_speculation = {
    ENG_MODE_SELF_SPECULATION, ss_rows, ss_plan, ss_rows_ahead, ss_plan_ahead, ss_commit};
