// One row of values as the 1024 threads of a block see it: loading, sums in a fixed order, mask, penalties and bias.
//
// Which thread takes which token depends on the token alone (quads of tokens, thread after thread), whether or not the
// row lies at an address that 16-byte loads can use. So a row has the same bits wherever it stands.
#pragma once

#include "exp.h"
#include "ops.h"
#include "simt.cuh"

#include <float.h>
#include <math.h>

enum {
    SELECT_THREADS = 1024,
    SELECT_BATCH = 4, // quads that a thread loads before it uses the first
    SELECT_PAIR = 2,  // likewise where more is done with each
};

// Bytes of shared memory: scratch of the collectives, a word a warp, a few words that one thread leaves for all, and a
// table.
enum {
    SELECT_WARPS_AT = simt::block_scratch,
    SELECT_WORDS_AT = SELECT_WARPS_AT + 256,
    SELECT_TABLE_AT = SELECT_WORDS_AT + 256,
};

struct select_values {
    const float *x;
    int32_t n;
    int32_t banned; // -1: none; never seen: its value is given as -inf
};

KRN_DEVICE int select_quads(const struct select_values &v)
{
    return (v.n + 3) / 4;
}

// The values of four tokens as they are; 0 beyond the last.
KRN_DEVICE void select_load_raw(const struct select_values &v, int quad, float x[4])
{
    if ((v.n & 3) == 0) {
        uint4 bits = {};
        if (quad * 4 < v.n)
            bits = simt::load16_once(v.x + quad * 4);
        memcpy(x, &bits, sizeof bits);
        return;
    }
    KRN_UNROLL
    for (int j = 0; j < 4; j++)
        x[j] = quad * 4 + j < v.n ? v.x[quad * 4 + j] : 0.0f;
}

// -inf for the banned token and beyond the last.
KRN_DEVICE void select_hide(const struct select_values &v, int quad, float x[4])
{
    if (quad * 4 + 4 <= v.n && quad != v.banned >> 2)
        return;
    KRN_UNROLL
    for (int j = 0; j < 4; j++)
        if (quad * 4 + j >= v.n || quad * 4 + j == v.banned)
            x[j] = -INFINITY;
}

// A thread's batch: quads at, at + SELECT_THREADS, ...
template <int BATCH> KRN_DEVICE void select_load(const struct select_values &v, int at, float x[BATCH][4])
{
    KRN_UNROLL
    for (int b = 0; b < BATCH; b++)
        select_load_raw(v, at + b * SELECT_THREADS, x[b]);
    KRN_UNROLL
    for (int b = 0; b < BATCH; b++)
        select_hide(v, at + b * SELECT_THREADS, x[b]);
}

// Sum over the block in a fixed order, in every thread.
KRN_DEVICE double select_sum(double v)
{
    simt::smem<double> parts = simt::shared<double>(SELECT_WARPS_AT);
    for (int delta = 16; delta > 0; delta >>= 1)
        v += simt::shuffle_xor(v, delta);
    if (simt::lane() == 0)
        parts.set(simt::warp(), v);
    simt::sync_block();
    v = parts.get(simt::lane());
    for (int delta = 16; delta > 0; delta >>= 1)
        v += simt::shuffle_xor(v, delta);
    simt::sync_block();
    return v;
}

// The largest, in every thread. A barrier must stand between two uses.
template <class T> KRN_DEVICE T select_most(T v)
{
    return simt::block_reduce<SELECT_THREADS>(
        v, [](T a, T b) { return a > b ? a : b; }, simt::shared<char>(0));
}

// ---- the largest value and the softmax's denominator ----------------------------------------------------------------

struct select_stats {
    float max;   // -inf: nothing is allowed
    int best;    // lowest id with it, -1
    float sum;   // of e^(x - max)
    bool finite; // all values are, the banned one too; true where that was not checked
};

// What a thread found in its own tokens: its sum is relative to its own maximum.
struct select_part {
    float max;
    int at; // batch where the maximum first stood, -1: no value above -inf
    float sums[4];
    bool bad;
};

KRN_DEVICE float select_exp(float x)
{
    return simt::exp2(KRN_MUL(x, 1.44269504f));
}

template <bool CHECK> KRN_DEVICE void select_part_add(struct select_part *part, const struct select_values &v, int at)
{
    float x[SELECT_BATCH][4];
    KRN_UNROLL
    for (int b = 0; b < SELECT_BATCH; b++)
        select_load_raw(v, at + b * SELECT_THREADS, x[b]);
    float top = -INFINITY;
    KRN_UNROLL
    for (int b = 0; b < SELECT_BATCH; b++) {
        KRN_UNROLL
        for (int j = 0; j < 4; j++)
            part->bad |= CHECK && !(fabsf(x[b][j]) <= FLT_MAX);
        select_hide(v, at + b * SELECT_THREADS, x[b]);
        KRN_UNROLL
        for (int j = 0; j < 4; j++)
            top = fmaxf(top, x[b][j]);
    }
    if (top > part->max || (part->at < 0 && top == part->max)) {
        float factor = select_exp(KRN_SUB(part->max, top));
        KRN_UNROLL
        for (int j = 0; j < 4; j++)
            part->sums[j] *= factor;
        part->max = top;
        part->at = at;
    }
    KRN_UNROLL
    for (int b = 0; b < SELECT_BATCH; b++)
        KRN_UNROLL
    for (int j = 0; j < 4; j++)
        part->sums[j] += select_exp(KRN_SUB(x[b][j], part->max));
}

// The lowest id in a batch whose value is `value`.
KRN_DEVICE int select_find(const struct select_values &v, int at, float value)
{
    float x[SELECT_BATCH][4];
    select_load<SELECT_BATCH>(v, at, x);
    int id = INT32_MAX;
    KRN_UNROLL
    for (int b = SELECT_BATCH - 1; b >= 0; b--)
        KRN_UNROLL
    for (int j = 3; j >= 0; j--)
        if (x[b][j] == value)
            id = (at + b * SELECT_THREADS) * 4 + j;
    return id;
}

// CHECK: are all values finite?
template <bool CHECK> KRN_DEVICE struct select_stats select_measure(const struct select_values &v)
{
    // -FLT_MAX, not -inf: the difference of two infinities is no number.
    struct select_part part = {-FLT_MAX, -1, {0, 0, 0, 0}, false};
    for (int at = simt::thread(); at < select_quads(v); at += SELECT_THREADS * SELECT_BATCH)
        select_part_add<CHECK>(&part, v, at);
    struct select_stats stats;
    stats.max = select_most(part.at < 0 ? -INFINITY : part.max);
    float sum = (part.sums[0] + part.sums[1]) + (part.sums[2] + part.sums[3]);
    stats.sum = (float)select_sum(part.at < 0 ? 0.0 : (double)sum * (double)select_exp(KRN_SUB(part.max, stats.max)));
    int id = part.at >= 0 && part.max == stats.max ? select_find(v, part.at, stats.max) : INT32_MAX;
    int least = -select_most(part.bad ? 1 : -id);
    stats.finite = least >= 0;
    stats.best = stats.max > -INFINITY ? least : -1;
    return stats;
}

// ---- mask, penalties, bias ------------------------------------------------------------------------------------------

KRN_DEVICE bool select_plain(const struct krn_dev_select &row)
{
    bool no_penalty =
        row.n_counts == 0 || (row.repetition_penalty == 1 && row.frequency_penalty == 0 && row.presence_penalty == 0);
    return row.allowed < 0 && row.n_biases == 0 && no_penalty;
}

KRN_DEVICE void select_mask(const struct select_values &v, const uint32_t *allowed, float *work)
{
    for (int at = simt::thread(); at < select_quads(v); at += SELECT_THREADS * SELECT_BATCH) {
        float x[SELECT_BATCH][4];
        select_load<SELECT_BATCH>(v, at, x);
        KRN_UNROLL
        for (int b = 0; b < SELECT_BATCH; b++) {
            int quad = at + b * SELECT_THREADS;
            if (quad >= select_quads(v))
                break;
            uint32_t bits = allowed ? allowed[quad >> 3] >> (quad & 7) * 4 : 15;
            KRN_UNROLL
            for (int j = 0; j < 4; j++) {
                x[b][j] = bits >> j & 1 ? x[b][j] : -INFINITY;
                if ((v.n & 3) != 0 && quad * 4 + j < v.n)
                    work[quad * 4 + j] = x[b][j];
            }
            uint4 all;
            memcpy(&all, x[b], sizeof all);
            if ((v.n & 3) == 0)
                simt::store16(work + quad * 4, all);
        }
    }
}

KRN_DEVICE float select_penalised(const struct krn_dev_select &row, const struct krn_dev_count &count, float v)
{
    if (row.repetition_penalty != 1 && count.in_output + count.in_prompt > 0)
        v = v > 0 ? KRN_DIV(v, row.repetition_penalty) : KRN_MUL(v, row.repetition_penalty);
    if (count.in_output > 0) {
        float penalty = KRN_MUL(row.frequency_penalty, (float)count.in_output);
        v = KRN_SUB(v, KRN_ADD(penalty, row.presence_penalty));
    }
    return v;
}

// A client may give one token several biases (keys "7" and "07"): the thread of the first applies all, in order.
KRN_DEVICE void select_bias(const struct krn_dev_bias *biases, int32_t n, float *work)
{
    for (int i = simt::thread(); i < n; i += SELECT_THREADS) {
        int32_t token = biases[i].token;
        int first = 0;
        while (biases[first].token != token)
            first++;
        if (first != i)
            continue;
        float v = work[token];
        for (; first < n; first++)
            if (biases[first].token == token)
                v = biases[first].bias <= -100 ? -INFINITY : KRN_ADD(v, biases[first].bias);
        work[token] = v;
    }
}

// Writes the adjusted values to work [n]; visible to the whole block on return. Tokens of counts are distinct.
KRN_DEVICE void select_adjust(const struct krn_dev_pass *pass, const struct krn_dev_select &row,
                              const struct select_values &v, float *work)
{
    const uint32_t *allowed = row.allowed < 0 ? nullptr : (const uint32_t *)pass + row.allowed;
    select_mask(v, allowed, work);
    simt::sync_block();
    const struct krn_dev_count *counts = KRN_PASS_ARRAY(pass, struct krn_dev_count, counts) + row.counts;
    for (int i = simt::thread(); i < row.n_counts; i += SELECT_THREADS)
        work[counts[i].token] = select_penalised(row, counts[i], work[counts[i].token]);
    simt::sync_block();
    select_bias(KRN_PASS_ARRAY(pass, struct krn_dev_bias, biases) + row.biases, row.n_biases, work);
    simt::sync_block();
}
