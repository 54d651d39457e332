// Drawing a token: the largest of value / temperature + Gumbel noise among the tokens that top-k, top-p and min-p
// leave.
//
// Every thread gets the noise of its tokens from noise.h, so the choice is the CPU's. As there, the best token is drawn
// first, and noise is made only for tokens that it could lift above the best so far: noise above d needs a Philox word
// below 2^32 e^-d, and there is none above 23.
#pragma once

#include "noise.h"
#include "select_cut.cuh"

#define SELECT_NOISE_MAX 23.0f

struct select_draw {
    const struct krn_dev_select *row;
    select_rank least; // of the tokens to draw among
    float noisy;       // -inf: none yet
    int token;
};

KRN_DEVICE void select_draw_one(struct select_draw *draw, int token, float scaled, uint32_t word)
{
    float noisy = KRN_ADD(scaled, krn_gumbel(word));
    if (noisy > draw->noisy || (noisy == draw->noisy && token < draw->token) || draw->token < 0) {
        draw->noisy = noisy;
        draw->token = token;
    }
}

template <class T> KRN_DEVICE T select_pick(const T v[4], int i)
{
    T low = i & 1 ? v[1] : v[0], high = i & 1 ? v[3] : v[2];
    return i & 2 ? high : low;
}

KRN_DEVICE void select_draw_token(struct select_draw *draw, int token, float scaled)
{
    uint32_t words[4];
    krn_philox(draw->row->seed, (uint64_t)draw->row->position, (uint32_t)token / 4, words);
    select_draw_one(draw, token, scaled, select_pick(words, token & 3));
}

// Words above it cannot give that much noise. The factor is far more than all roundings.
KRN_DEVICE uint32_t select_word_limit(float noise)
{
    if (!(noise > 0))
        return 0xffffffffu;
    return (uint32_t)fminf(simt::exp2(32.0f - noise * 1.44269504f) * 1.002f + 4.0f, 4294967040.0f);
}

// to_beat: the best noisy value known, which may be another thread's.
KRN_DEVICE void select_draw_quad(struct select_draw *draw, const struct select_scaled &s, int quad, const float x[4],
                                 float to_beat)
{
    float top = fmaxf(fmaxf(x[0], x[1]), fmaxf(x[2], x[3]));
    // Less some slack for the rounding of the sum.
    float needed = to_beat - select_scale_roughly(s, top) - 0.01f - 1e-6f * fabsf(to_beat);
    if (top == -INFINITY || needed > SELECT_NOISE_MAX)
        return;
    uint32_t words[4];
    krn_philox(draw->row->seed, (uint64_t)draw->row->position, (uint32_t)quad, words);
    uint32_t limit = to_beat == -INFINITY ? 0xffffffffu : select_word_limit(needed);
    int which = 0;
    KRN_UNROLL
    for (int j = 0; j < 4; j++)
        which |= (words[j] <= limit && x[j] != -INFINITY) << j;
    for (; which != 0; which &= which - 1) {
        int j = which & 1 ? 0 : which & 2 ? 1 : which & 4 ? 2 : 3;
        float scaled = select_scale(s, select_pick(x, j));
        if (scaled != -INFINITY && select_rank_of(scaled, quad * 4 + j) >= draw->least)
            select_draw_one(draw, quad * 4 + j, scaled, select_pick(words, j));
    }
}

KRN_DEVICE void select_draw_all(struct select_draw *draw, const struct select_scaled &s)
{
    float to_beat = draw->noisy;
    for (int base = 0; base < select_quads(s.values); base += SELECT_THREADS * SELECT_PAIR) {
        float x[SELECT_PAIR][4];
        select_load<SELECT_PAIR>(s.values, base + simt::thread(), x);
        KRN_UNROLL
        for (int b = 0; b < SELECT_PAIR; b++)
            select_draw_quad(draw, s, base + simt::thread() + b * SELECT_THREADS, x[b], fmaxf(to_beat, draw->noisy));
        to_beat = fmaxf(to_beat, draw->noisy);
        for (int delta = 16; delta > 0; delta >>= 1)
            to_beat = fmaxf(to_beat, simt::shuffle_xor(to_beat, delta));
    }
}

KRN_DEVICE void select_draw_listed(struct select_draw *draw, int listed)
{
    for (int i = simt::thread(); i < listed; i += SELECT_THREADS) {
        select_rank rank = select_list().get(i);
        if (rank >= draw->least)
            select_draw_token(draw, select_rank_id(rank), select_rank_value(rank));
    }
}

// The least rank that passes min-p: a probability of at least min_p times the largest. krn_expf never decreases, so
// there is one edge.
KRN_DEVICE select_rank select_min_p(const struct select_scaled &s, float min_p)
{
    uint32_t fails = select_key(-INFINITY), passes = select_key(s.max);
    while (passes - fails > 1) {
        uint32_t middle = fails + (passes - fails) / 2;
        if (krn_expf(KRN_SUB(select_key_value(middle), s.max)) >= min_p)
            passes = middle;
        else
            fails = middle;
    }
    return (select_rank)passes << 32;
}

KRN_DEVICE struct select_kept select_filter(const struct select_scaled &s, const struct krn_dev_select *row)
{
    struct select_kept kept = {0, 0};
    if (row->top_k > 0 && row->top_k < s.values.n)
        kept = select_keep<false>(s, {(select_weight)row->top_k, -1});
    if (row->top_p < 1 && kept.listed > 0) {
        kept.listed = select_list_prefix<true>(s, kept.listed, 0, {0, fmaxf(row->top_p, 0)});
        kept.least = select_list().get(kept.listed - 1);
    } else if (row->top_p < 1) {
        struct select_wanted wanted = {0, fmaxf(row->top_p, 0)};
        if (kept.least > 0)
            wanted = {select_amount(wanted, select_weight_from<true>(s, kept.least)), -1};
        struct select_kept fewer = select_keep<true>(s, wanted);
        kept.least = fewer.least > kept.least ? fewer.least : kept.least;
    }
    if (row->min_p > 0) {
        select_rank least = select_min_p(s, row->min_p);
        kept.least = least > kept.least ? least : kept.least;
    }
    return kept;
}

// The token drawn, in every thread. stats: of the values.
KRN_DEVICE int select_sample(const struct select_values &values, const struct select_stats &stats,
                             const struct krn_dev_select *row)
{
    struct select_scaled s = select_scaled_make(values, stats.max, row->temperature);
    if (!(fabsf(s.max) <= FLT_MAX)) // the temperature is too small for f32
        return stats.best;
    simt::smem<int> best_at = simt::shared<int>(SELECT_WORDS_AT + 72); // a register less until it is needed
    if (simt::thread() == 0)
        best_at.set(0, stats.best);
    struct select_kept kept = select_filter(s, row);
    simt::sync_block();
    int best = best_at.get(0);
    struct select_draw draw = {row, kept.least, -INFINITY, -1};
    if (kept.listed > 0) {
        select_draw_listed(&draw, kept.listed);
    } else {
        if (select_rank_of(s.max, best) >= kept.least)
            select_draw_token(&draw, best, s.max);
        select_draw_all(&draw, s);
    }
    select_rank drawn = select_most(draw.token < 0 ? 0 : select_rank_of(draw.noisy, draw.token));
    return drawn > 0 ? select_rank_id(drawn) : best;
}
