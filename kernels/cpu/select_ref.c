// From a row of logits to a token: the order is written in kernels.h above struct krn_select_row.
//
// What is computed, with x the raw logits (banned id left out everywhere):
//   value  = x after allowed mask, penalties, bias (forbidden: -inf)
//   token  = argmax(value)                                       temperature 0
//          = argmax over candidates of value / T + gumbel        otherwise; candidates pass top-k, then top-p (of what
//          top-k left), then min-p
//   confidence = exp(value[token] - logsumexp(value)),  logprob = x[token] - logsumexp(x)
// Ties always go to the lower id. Sums over the vocabulary run in a fixed order: 16 lanes in blocks of 1024, blocks
// added in double.
//
// Top-k and top-p need the largest values in order, not all of them: tokens within a distance of the best are gathered,
// the distance growing until they suffice, and only those are sorted. Noise is drawn for the tokens it could lift above
// the best so far: Gumbel noise above d needs a Philox word below about 2^32 e^-d, which is one comparison, and none is
// above 23.
#include "ops.h"
#include "noise.h"
#include "scalar.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>

enum { LANES = 16, SUM_BLOCK = 1024, NOISE_MAX = 23 };

// ---- sums and maxima over a row -------------------------------------------------------------------------------------

static uint32_t bits_of(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static bool all_finite(const float *x, int32_t n)
{
    uint32_t bad = 0;
    for (int32_t i = 0; i < n; i++)
        bad |= (bits_of(x[i]) & 0x7fffffffu) >= 0x7f800000u;
    return !bad;
}

// Largest of x[begin .. end), -inf when empty. No NaN.
static float max_of(const float *x, int32_t begin, int32_t end)
{
    float lanes[LANES];
    for (int j = 0; j < LANES; j++)
        lanes[j] = -INFINITY;
    int32_t i = begin;
    for (; i + LANES <= end; i += LANES)
        for (int j = 0; j < LANES; j++)
            lanes[j] = x[i + j] > lanes[j] ? x[i + j] : lanes[j];
    for (; i < end; i++)
        lanes[0] = x[i] > lanes[0] ? x[i] : lanes[0];
    float max = lanes[0];
    for (int j = 1; j < LANES; j++)
        max = lanes[j] > max ? lanes[j] : max;
    return max;
}

// Sum of e^(x - max) over x[begin .. end).
static double sum_exp(const float *x, int32_t begin, int32_t end, float max)
{
    double sum = 0;
    for (int32_t block = begin; block < end; block += SUM_BLOCK) {
        int32_t stop = end - block < SUM_BLOCK ? end : block + SUM_BLOCK;
        float lanes[LANES] = {0};
        int32_t i = block;
        for (; i + LANES <= stop; i += LANES)
            for (int j = 0; j < LANES; j++)
                lanes[j] += krn_expf(x[i + j] - max);
        for (; i < stop; i++)
            lanes[0] += krn_expf(x[i] - max);
        for (int j = 0; j < LANES; j++)
            sum += (double)lanes[j];
    }
    return sum;
}

// A row without its banned id: two ranges, one of which may be empty.
struct row {
    const float *x;
    int32_t n;
    int32_t banned; // n when there is none
    float max;
    double sum; // of e^(x - max)
};

static int32_t first_index_of(const struct row *row, float value)
{
    for (int32_t i = 0; i < row->n; i++)
        if (row->x[i] == value && i != row->banned)
            return i;
    return -1;
}

static struct row measure(const float *x, int32_t n, int32_t banned_id)
{
    struct row row = {.x = x, .n = n, .banned = banned_id >= 0 && banned_id < n ? banned_id : n};
    float low = max_of(x, 0, row.banned), high = row.banned < n ? max_of(x, row.banned + 1, n) : -INFINITY;
    row.max = high > low ? high : low;
    if (row.max == -INFINITY)
        return row;
    row.sum = sum_exp(x, 0, row.banned, row.max);
    if (row.banned < n)
        row.sum += sum_exp(x, row.banned + 1, n, row.max);
    return row;
}

static float log_probability(const struct row *row, int32_t token)
{
    return (float)((double)row->x[token] - (double)row->max - log(row->sum));
}

// ---- top log-probabilities ------------------------------------------------------------------------------------------

static void find_top(const struct row *raw, int32_t n_top, struct krn_choice *choice)
{
    int32_t n = 0;
    for (int32_t i = 0; i < raw->n; i++) {
        // Ascending ids: an equal value found later stays behind.
        if ((n == n_top && !(raw->x[i] > raw->x[choice->top_token[n - 1]])) || i == raw->banned)
            continue;
        if (n < n_top)
            n++;
        int32_t at = n - 1;
        for (; at > 0 && raw->x[i] > raw->x[choice->top_token[at - 1]]; at--)
            choice->top_token[at] = choice->top_token[at - 1];
        choice->top_token[at] = i;
    }
    choice->n_top = n;
    for (int32_t j = 0; j < n; j++)
        choice->top_logprob[j] = log_probability(raw, choice->top_token[j]);
}

// ---- mask, penalties, bias ------------------------------------------------------------------------------------------

static bool is_plain(const struct krn_select_row *row)
{
    bool no_penalty = row->n_counts == 0 ||
                      (row->repetition_penalty == 1 && row->frequency_penalty == 0 && row->presence_penalty == 0);
    return !row->allowed && row->n_biases == 0 && no_penalty;
}

static void adjust(const struct krn_select_row *row, const float *x, int32_t n, float *value)
{
    for (int32_t i = 0; i < n; i++)
        value[i] = !row->allowed || (row->allowed[i / 32] >> (i % 32) & 1) ? x[i] : -INFINITY;
    for (int32_t i = 0; i < row->n_counts; i++) {
        const struct krn_token_count *count = &row->counts[i];
        float *v = &value[count->token];
        if (row->repetition_penalty != 1 && count->in_output + count->in_prompt > 0)
            *v = *v > 0 ? *v / row->repetition_penalty : *v * row->repetition_penalty;
        if (count->in_output > 0)
            *v -= row->frequency_penalty * (float)count->in_output + row->presence_penalty;
    }
    for (int32_t i = 0; i < row->n_biases; i++)
        value[row->biases[i].token] =
            row->biases[i].bias <= -100 ? -INFINITY : value[row->biases[i].token] + row->biases[i].bias;
}

// ---- candidates -----------------------------------------------------------------------------------------------------

// Does token a come before token b? Larger value first, then lower id.
static bool before(const float *scaled, int32_t a, int32_t b)
{
    return scaled[a] > scaled[b] || (scaled[a] == scaled[b] && a < b);
}

static void sift_down(const float *scaled, int32_t *ids, int32_t at, int32_t n)
{
    int32_t id = ids[at];
    for (int32_t child; (child = 2 * at + 1) < n; at = child) {
        if (child + 1 < n && before(scaled, ids[child], ids[child + 1]))
            child++;
        if (!before(scaled, id, ids[child]))
            break;
        ids[at] = ids[child];
    }
    ids[at] = id;
}

// Heapsort: in place, and its worst case is its usual case.
static void sort_ids(const float *scaled, int32_t *ids, int32_t n)
{
    for (int32_t i = n / 2 - 1; i >= 0; i--)
        sift_down(scaled, ids, i, n);
    for (int32_t i = n - 1; i > 0; i--) {
        int32_t last = ids[0];
        ids[0] = ids[i];
        ids[i] = last;
        sift_down(scaled, ids, 0, i);
    }
}

// Distances tried, in nats below the best; the last takes every allowed token.
static const float distances[] = {4, 8, 16, 32, INFINITY};
enum { N_DISTANCES = sizeof distances / sizeof distances[0] };

static int32_t gather_within(const float *scaled, int32_t n, float max, float distance, int32_t *ids)
{
    int32_t found = 0;
    for (int32_t i = 0; i < n; i++)
        if (scaled[i] != -INFINITY && scaled[i] >= max - distance)
            ids[found++] = i;
    return found;
}

static double mass_of(const float *scaled, const int32_t *ids, int32_t n, float max)
{
    double mass = 0;
    for (int32_t i = 0; i < n; i++)
        mass += (double)krn_expf(scaled[ids[i]] - max);
    return mass;
}

// Fills ids with the min(k, allowed) best, in order; returns how many.
static int32_t keep_top_k(const float *scaled, int32_t n, float max, int32_t k, int32_t *ids)
{
    int32_t found = 0;
    for (int d = 0; d < N_DISTANCES; d++) {
        found = gather_within(scaled, n, max, distances[d], ids);
        if (found >= k)
            break;
    }
    sort_ids(scaled, ids, found);
    return found < k ? found : k;
}

// How many of the sorted ids reach p of the total; at least 1.
static int32_t prefix_of_mass(const float *scaled, const int32_t *ids, int32_t n, float max, double wanted)
{
    double mass = 0;
    for (int32_t i = 0; i < n; i++) {
        mass += (double)krn_expf(scaled[ids[i]] - max);
        if (mass >= wanted)
            return i + 1;
    }
    return n;
}

// Fills ids, in order, with the smallest set of best tokens that holds top_p of the probability; returns how many.
static int32_t keep_top_p(const float *scaled, int32_t n, float max, float top_p, int32_t *ids)
{
    double wanted = (double)top_p * sum_exp(scaled, 0, n, max);
    int32_t found = 0;
    for (int d = 0; d < N_DISTANCES; d++) {
        found = gather_within(scaled, n, max, distances[d], ids);
        if (mass_of(scaled, ids, found, max) >= wanted)
            break;
    }
    sort_ids(scaled, ids, found);
    return prefix_of_mass(scaled, ids, found, max, wanted);
}

// ---- noise ----------------------------------------------------------------------------------------------------------

// Philox words at or above noise_bound[d] cannot give noise of d or more: with v = word / 2^32, noise = -log(e) with e
// >= v, so noise >= d needs v <= e^-d. The table is 2^32 e^-d, enlarged by far more than the roundings of noise.h.
struct noise_bounds {
    uint64_t word[NOISE_MAX + 1];
};

static struct noise_bounds noise_bounds_make(void)
{
    struct noise_bounds bounds;
    for (int d = 0; d <= NOISE_MAX; d++)
        bounds.word[d] = (uint64_t)(4294967296.0 * exp(-d) * 1.001) + 2;
    return bounds;
}

struct draw {
    uint64_t seed, position;
    int32_t token; // best so far
    float noisy;   // its scaled value plus noise
};

static void draw_consider(struct draw *draw, int32_t token, float noisy)
{
    if (draw->token < 0 || noisy > draw->noisy || (noisy == draw->noisy && token < draw->token)) {
        draw->token = token;
        draw->noisy = noisy;
    }
}

static void draw_one(struct draw *draw, const float *scaled, int32_t token)
{
    uint32_t words[4];
    krn_philox(draw->seed, draw->position, (uint32_t)token / 4, words);
    draw_consider(draw, token, scaled[token] + krn_gumbel(words[token % 4]));
}

// Draws among all tokens with scaled >= least. The best token is drawn first: few others can then still win.
static void draw_all(struct draw *draw, const float *scaled, int32_t n, int32_t best, float least)
{
    struct noise_bounds bounds = noise_bounds_make();
    draw_one(draw, scaled, best);
    for (int32_t quad = 0; quad * 4 < n; quad++) {
        uint32_t words[4];
        bool have_words = false;
        for (int32_t token = quad * 4; token < quad * 4 + 4 && token < n; token++) {
            // The noise it needs, less some slack for the rounding of the sum.
            float needed = draw->noisy - scaled[token] - 0.01f - 1e-6f * fabsf(draw->noisy);
            if (!(scaled[token] >= least) || needed > NOISE_MAX)
                continue;
            if (!have_words)
                krn_philox(draw->seed, draw->position, (uint32_t)quad, words);
            have_words = true;
            if (needed > 0 && words[token % 4] >= bounds.word[(int)needed])
                continue;
            draw_consider(draw, token, scaled[token] + krn_gumbel(words[token % 4]));
        }
    }
}

// The smallest scaled value that passes min-p (a probability of at least min_p times the largest).
static bool passes_min_p(const struct krn_select_row *row, float scaled, float max)
{
    return row->min_p <= 0 || krn_expf(scaled - max) >= row->min_p;
}

static int32_t sample(const struct krn_select_row *row, const struct row *value, struct krn_select_scratch *scratch)
{
    float *scaled = scratch->scaled;
    for (int32_t i = 0; i < value->n; i++)
        scaled[i] = value->x[i] / row->temperature;
    if (value->banned < value->n)
        scaled[value->banned] = -INFINITY;
    float max = max_of(scaled, 0, value->n);
    int32_t best = first_index_of(value, value->max);
    if (!isfinite(max)) // the temperature is too small for f32
        return best;

    int32_t n = -1; // candidates in scratch->ids, in order; -1: all tokens
    if (row->top_k > 0 && row->top_k < value->n)
        n = keep_top_k(scaled, value->n, max, row->top_k, scratch->ids);
    if (row->top_p < 1) {
        if (n < 0)
            n = keep_top_p(scaled, value->n, max, row->top_p, scratch->ids);
        else
            n = prefix_of_mass(scaled, scratch->ids, n, max,
                               (double)row->top_p * mass_of(scaled, scratch->ids, n, max));
    }
    struct draw draw = {.seed = row->seed, .position = (uint64_t)row->position, .token = -1};
    if (n >= 0) {
        for (int32_t i = 0; i < n && passes_min_p(row, scaled[scratch->ids[i]], max); i++)
            draw_one(&draw, scaled, scratch->ids[i]);
        return draw.token < 0 ? best : draw.token;
    }
    float least = -FLT_MAX;
    if (row->min_p > 0) {
        least = INFINITY;
        for (int32_t i = 0; i < value->n; i++)
            if (scaled[i] < least && passes_min_p(row, scaled[i], max))
                least = scaled[i];
    }
    draw_all(&draw, scaled, value->n, best, least);
    return draw.token;
}

// ---- one row --------------------------------------------------------------------------------------------------------

static void choose(const struct krn_select_task *task, const struct krn_select_row *row,
                   struct krn_select_scratch *scratch, struct krn_choice *choice)
{
    const float *x = task->logits + (size_t)row->row * (size_t)task->n_vocab;
    memset(choice, 0, sizeof *choice);
    choice->token = -1;
    if (!all_finite(x, task->n_vocab))
        return;
    struct row raw = measure(x, task->n_vocab, task->banned_id), value = raw;
    if (raw.max == -INFINITY)
        return;
    if (row->n_top > 0)
        find_top(&raw, row->n_top, choice);
    if (!is_plain(row)) {
        adjust(row, x, task->n_vocab, scratch->value);
        value = measure(scratch->value, task->n_vocab, task->banned_id);
    }
    if (!isfinite(value.max)) // nothing is allowed, or a penalty left the range of f32
        return;
    int32_t token = row->temperature > 0 ? sample(row, &value, scratch) : first_index_of(&value, value.max);
    choice->token = token;
    choice->confidence = (float)((double)krn_expf(value.x[token] - value.max) / value.sum);
    choice->logprob = log_probability(&raw, token);
}

void KRN_VERSION(krn_select)(const struct krn_select_task *task, struct krn_select_scratch *scratch, int64_t begin,
                             int64_t end)
{
    for (int64_t i = begin; i < end; i++)
        choose(task, &task->rows[i], scratch, &task->choices[i]);
}
