// 7 COMMIT  Block diffusion (MODEL.md 4): the seed and masks, revealed in a few bidirectional passes, then sealed by a
// causal one.
//
// The block has its full length, cut only by the context's end: the model was trained on full blocks, and max_tokens
// cuts the output, not the block. Tokens are final, and handed on, as soon as no mask stands before them. Which
// positions are masked is a bitmap; a mask id among the tokens is a token like any other.
#include <assert.h>

#include "base/err.h"
#include "decode.h"
#include "request.h"
#include "sample.h"

// ---- policies -------------------------------------------------------------------------------------------------------

static int count(uint64_t bits)
{
    return __builtin_popcountll(bits);
}

static int lowest(uint64_t bits)
{
    return __builtin_ctzll(bits);
}

// How many positions an even schedule reveals now.
static int32_t share(const struct eng_commit_view *v)
{
    int32_t left = v->steps - v->passes;
    int32_t masked = count(v->masked);
    return left <= 1 ? masked : (masked + left - 1) / left;
}

// The n most confident masked positions; of equals the leftmost.
static uint64_t most_confident(const struct eng_commit_view *v, int32_t n)
{
    uint64_t chosen = 0;
    while (n-- > 0) {
        uint64_t best = 0;
        float best_confidence = 0;
        int k = 0;
        for (uint64_t rest = v->masked; rest; rest &= rest - 1, k++) {
            uint64_t bit = rest & -rest;
            if (!(chosen & bit) && (!best || v->choices[k].confidence > best_confidence)) {
                best = bit;
                best_confidence = v->choices[k].confidence;
            }
        }
        chosen |= best;
    }
    return chosen;
}

static uint64_t reveal_confidence(const struct eng_commit_view *v)
{
    if (v->steps)
        return most_confident(v, share(v));
    uint64_t chosen = most_confident(v, 1);
    int k = 0;
    for (uint64_t rest = v->masked; rest; rest &= rest - 1, k++)
        if (v->choices[k].confidence >= v->threshold)
            chosen |= rest & -rest;
    return chosen;
}

// From left to right: one a pass, or as many as the schedule says.
static uint64_t reveal_leftmost(const struct eng_commit_view *v)
{
    uint64_t chosen = 0;
    int32_t n = v->steps ? share(v) : 1;
    for (uint64_t rest = v->masked; rest && n > 0; rest &= rest - 1, n--)
        chosen |= rest & -rest;
    return chosen;
}

uint64_t eng_decode_reveal(enum eng_commit_policy policy, const struct eng_commit_view *view)
{
    static uint64_t (*const table[ENG_N_COMMIT])(const struct eng_commit_view *) = {
        [ENG_COMMIT_CONFIDENCE] = reveal_confidence,
        [ENG_COMMIT_SCHEDULE] =
            reveal_confidence, // a schedule is what `steps` asks for; requests check that it is given
        [ENG_COMMIT_LEFTMOST] = reveal_leftmost,
    };
    return table[policy](view);
}

// ---- planning -------------------------------------------------------------------------------------------------------

static int32_t block_rows(const struct eng_seq *seq)
{
    if (seq->block.rows)
        return seq->block.rows;
    int32_t room = seq->max_context - seq->n_kv;
    return room < seq->block_length ? room : seq->block_length;
}

static int32_t diffusion_rows(const struct eng_seq *seq, int32_t *ret_end)
{
    int32_t rows = block_rows(seq);
    *ret_end = seq->n_kv + rows;
    return rows;
}

static void begin(struct eng_seq *seq, int32_t rows)
{
    struct eng_block *b = &seq->block;
    assert(seq->n_kv == seq->n_tokens - 1 && rows > 1);
    b->start = seq->n_kv;
    b->rows = rows;
    b->passes = 0;
    b->tokens[0] = seq->tokens[seq->n_kv];
    b->masked = (rows == 64 ? ~UINT64_C(0) : (UINT64_C(1) << rows) - 1) & ~UINT64_C(1);
}

static int plan_denoise(struct eng_seq *seq, const struct eng_decode_env *env, struct eng_batch *batch)
{
    const struct eng_block *b = &seq->block;
    struct eng_segment *s = eng_batch_add(batch, seq->slot, ENG_PASS_DENOISE, b->start, b->rows);
    if (!s)
        return ENG_ELIMIT;
    s->mask = KRN_MASK_BLOCK;
    s->adapter = env->block_adapter;
    // Tokens revealed behind a mask are not in the sequence yet, but a choice looks back on them too.
    int32_t behind[ENG_MAX_BLOCK], n_behind = 0;
    for (int32_t i = seq->n_tokens - b->start; i < b->rows; i++)
        if (!(b->masked >> i & 1))
            behind[n_behind++] = b->tokens[i];
    struct eng_lookback back;
    int rc = eng_sample_lookback(env->sampler, seq, behind, n_behind, &back);
    if (rc)
        return rc;
    for (int32_t i = 0; i < b->rows; i++) {
        bool masked = b->masked >> i & 1;
        batch->tokens[s->row + i] = masked ? env->mask_id : b->tokens[i];
        if (masked)
            eng_sample_row(seq, b->start + i, back, eng_batch_want(batch, s, i));
    }
    return 0;
}

static int plan_seal(struct eng_seq *seq, const struct eng_decode_env *env, struct eng_batch *batch)
{
    const struct eng_block *b = &seq->block;
    assert(seq->n_tokens == b->start + b->rows);
    struct eng_segment *s = eng_batch_add(batch, seq->slot, ENG_PASS_SEAL, b->start, b->rows);
    if (!s)
        return ENG_ELIMIT;
    s->keep = true;
    for (int32_t i = 0; i < b->rows; i++)
        batch->tokens[s->row + i] = b->tokens[i];
    struct eng_lookback back;
    int rc = eng_sample_lookback(env->sampler, seq, NULL, 0, &back);
    if (rc)
        return rc;
    eng_sample_row(seq, seq->n_tokens, back, eng_batch_want(batch, s, b->rows - 1));
    return 0;
}

static int diffusion_plan(struct eng_seq *seq, const struct eng_decode_env *env, struct eng_batch *batch)
{
    if (!seq->block.rows) {
        int32_t rows = block_rows(seq);
        if (rows > batch->max_rows - batch->n_rows)
            return ENG_ELIMIT;
        begin(seq, rows);
    }
    return seq->block.masked ? plan_denoise(seq, env, batch) : plan_seal(seq, env, batch);
}

// ---- committing -----------------------------------------------------------------------------------------------------

static void commit_denoise(struct eng_seq *seq, const struct krn_choice *choices, struct eng_run *run)
{
    struct eng_block *b = &seq->block;
    const struct eng_params *p = &seq->request->params;
    struct eng_commit_view view = {b->masked, choices, p->threshold, p->steps, b->passes};
    uint64_t revealed = eng_decode_reveal(p->commit_policy, &view);
    assert(revealed && !(revealed & ~b->masked));
    int k = 0;
    for (uint64_t rest = b->masked; rest; rest &= rest - 1, k++) {
        if (!(revealed & (rest & -rest)))
            continue;
        int i = lowest(rest);
        run->failed = run->failed || choices[k].token < 0;
        b->tokens[i] = choices[k].token;
        b->reveals[i] = choices[k];
    }
    b->masked &= ~revealed;
    run->blocks = b->passes++ == 0;
    int32_t stands = b->masked ? lowest(b->masked) : b->rows;
    for (int32_t i = seq->n_tokens - b->start; i < stands; i++) {
        run->tokens[run->n] = b->tokens[i];
        run->choices[run->n] = &b->reveals[i];
        run->n++;
    }
    if (!b->masked)
        run->denoise_passes = b->passes;
}

static void commit_seal(struct eng_seq *seq, const struct krn_choice *choices, struct eng_run *run)
{
    seq->n_kv += seq->block.rows;
    seq->block.rows = 0;
    run->failed = choices[0].token < 0;
    run->tokens[0] = choices[0].token;
    run->choices[0] = &choices[0];
    run->n = 1;
}

// Which positions are revealed, and so what follows, is read off the choices.
static int32_t diffusion_rows_ahead(const struct eng_seq *seq, const struct eng_segment *flying, int32_t *ret_end)
{
    (void)seq, (void)flying;
    *ret_end = 0;
    return 0;
}

static void diffusion_commit(struct eng_seq *seq, const struct eng_batch *batch, const struct eng_segment *segment,
                             struct eng_run *run)
{
    const struct krn_choice *choices = batch->choices + segment->first_wanted;
    if (segment->kind == ENG_PASS_SEAL)
        commit_seal(seq, choices, run);
    else
        commit_denoise(seq, choices, run);
}

const struct eng_decode eng_decode_diffusion = {ENG_MODE_DIFFUSION,   diffusion_rows, diffusion_plan,
                                                diffusion_rows_ahead, NULL,           diffusion_commit};
