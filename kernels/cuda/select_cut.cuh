// The smallest set of best tokens that has a given number of tokens or a given share of the probability.
//
// Tokens are ordered by rank: value over temperature first, lower id first among equals. Weights are integers (1, or
// the probability in units of 2^-44 of the best token's), so every sum is exact and its order is free.
//   1. A histogram of weights over the distance to the best says in which bin the set ends and what lies above it.
//   2. The tokens of that bin (or, where few are wanted, all from it upwards) are listed in shared memory and sorted.
//   3. A running sum over the list finds the last token.
// Where a bin holds more than the list can take (thousands of equal values), bisection over the rank does the same with
// one pass over the row for every bit of it: slow, and never seen with trained models.
#pragma once

#include "select_row.cuh"

using select_weight = unsigned long long;
#define SELECT_UNIT 17592186044416.0    // 2^44: the weight of the best token
using select_rank = unsigned long long; // 0 is below all ranks

enum {
    SELECT_BINS = 512,
    SELECT_COPIES = 8, // of the histogram, so that lanes rarely add to one place
    SELECT_LIST = 4096,
    SELECT_SHARED = SELECT_TABLE_AT + SELECT_LIST * 8,
};
// Bins of 1/32 nat reach 16 nats down: most of a model's tokens lie below, and cost little there. Bins of 1/16 nat
// reach 32 nats: below, no noise makes a token win and no probability counts.
#define SELECT_FINE 32.0f
#define SELECT_COARSE 16.0f

// ---- order ----------------------------------------------------------------------------------------------------------

struct select_scaled {
    struct select_values values;
    float temperature, inverse;
    float max;  // largest value / temperature, finite
    bool rough; // value * inverse may be used to leave tokens out early
};

KRN_DEVICE struct select_scaled select_scaled_make(const struct select_values &values, float max, float temperature)
{
    struct select_scaled s = {values, temperature, KRN_DIV(1.0f, temperature), KRN_DIV(max, temperature), false};
    s.rough = temperature > 1e-30f && temperature < 1e30f && fabsf(s.max) < 1e30f;
    return s;
}

KRN_DEVICE float select_scale(const struct select_scaled &s, float x)
{
    return KRN_DIV(x, s.temperature);
}

KRN_DEVICE float select_scale_roughly(const struct select_scaled &s, float x)
{
    return s.rough ? KRN_MUL(x, s.inverse) : KRN_DIV(x, s.temperature);
}

// Values below it are certainly more than `nats` below the largest once divided by the temperature.
KRN_DEVICE float select_floor(const struct select_scaled &s, float nats)
{
    if (!s.rough)
        return -INFINITY;
    float floor = (s.max - (nats * 1.0001f + 0.01f + 2e-6f * fabsf(s.max))) * s.temperature;
    return floor - 1e-6f * fabsf(floor);
}

// Larger for larger floats; the same for both zeros.
KRN_DEVICE uint32_t select_key(float x)
{
    x = KRN_ADD(x, 0.0f);
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

KRN_DEVICE float select_key_value(uint32_t key)
{
    uint32_t bits = key & 0x80000000u ? key & 0x7fffffffu : ~key;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

KRN_DEVICE select_rank select_rank_of(float x, int id)
{
    return (select_rank)select_key(x) << 32 | ~(uint32_t)id;
}

KRN_DEVICE float select_rank_value(select_rank rank)
{
    return select_key_value((uint32_t)(rank >> 32));
}

KRN_DEVICE int select_rank_id(select_rank rank)
{
    return (int)~(uint32_t)rank;
}

template <bool MASS> KRN_DEVICE select_weight select_weigh(const struct select_scaled &s, float scaled)
{
    return MASS ? (select_weight)(krn_expf(KRN_SUB(scaled, s.max)) * (float)SELECT_UNIT) : 1;
}

// An amount, or (share >= 0) a share of all there is.
struct select_wanted {
    select_weight amount;
    float share;
};

KRN_DEVICE select_weight select_amount(const struct select_wanted &wanted, select_weight total)
{
    if (wanted.share < 0)
        return wanted.amount;
    select_weight amount = (select_weight)ceil((double)wanted.share * (double)total);
    return amount > 0 ? amount : 1;
}

KRN_DEVICE select_weight select_scan_warp(select_weight v)
{
    for (int delta = 1; delta < 32; delta *= 2) {
        select_weight before = simt::shuffle_up(v, delta);
        v += simt::lane() >= delta ? before : 0;
    }
    return v;
}

// Sum over the threads before this one, and over all. CUB's, of 64-bit values, want more registers than 1024 threads
// have.
KRN_DEVICE select_weight select_scan(select_weight v, select_weight *ret_total)
{
    simt::smem<select_weight> warps = simt::shared<select_weight>(SELECT_WARPS_AT);
    select_weight through = select_scan_warp(v);
    if (simt::lane() == 31)
        warps.set(simt::warp(), through);
    simt::sync_block();
    select_weight all = select_scan_warp(warps.get(simt::lane()));
    select_weight before = simt::shuffle(all, (simt::warp() + 31) & 31);
    *ret_total = simt::shuffle(all, 31);
    simt::sync_block();
    return through - v + (simt::warp() > 0 ? before : 0);
}

// ---- histogram ------------------------------------------------------------------------------------------------------

KRN_DEVICE simt::smem<unsigned> select_low()
{
    return simt::shared<unsigned>(SELECT_TABLE_AT);
}

KRN_DEVICE simt::smem<unsigned> select_high()
{
    return simt::shared<unsigned>(SELECT_TABLE_AT + SELECT_BINS * SELECT_COPIES * 4);
}

// SELECT_BINS: below the histogram. Never decreases as `scaled` falls.
KRN_DEVICE int select_bin(const struct select_scaled &s, float scaled, float per_nat)
{
    return (int)fminf(KRN_MUL(KRN_SUB(s.max, scaled), per_nat), (float)SELECT_BINS);
}

// Returns the weight of a token below the histogram, roughly.
template <bool MASS>
KRN_DEVICE float select_histogram_add(const struct select_scaled &s, float x, float per_nat, float floor)
{
    if (!(x >= floor))
        return MASS ? select_exp(x * s.inverse - s.max) : 0;
    float scaled = select_scale(s, x);
    int bin = select_bin(s, scaled, per_nat);
    if (bin >= SELECT_BINS)
        return MASS ? select_exp(scaled - s.max) : 0;
    int at = bin * SELECT_COPIES + (simt::lane() & (SELECT_COPIES - 1));
    select_weight weight = select_weigh<MASS>(s, scaled);
    // 64 bits from two additions of 32, which shared memory does by itself.
    unsigned low = (unsigned)weight, old = simt::shared_add(select_low(), at, low);
    unsigned high = (unsigned)(weight >> 32) + (old + low < old ? 1u : 0u);
    if (high > 0)
        simt::shared_add(select_high(), at, high);
    return 0;
}

// Returns what the block's tokens below the histogram weigh, roughly; the histogram itself is exact.
template <bool MASS> KRN_DEVICE double select_histogram(const struct select_scaled &s, float per_nat)
{
    simt::sync_block();
    for (int i = simt::thread(); i < SELECT_BINS * SELECT_COPIES; i += SELECT_THREADS) {
        select_low().set(i, 0);
        select_high().set(i, 0);
    }
    simt::sync_block();
    float floor = select_floor(s, (float)SELECT_BINS / per_nat), below = 0;
    for (int at = simt::thread(); at < select_quads(s.values); at += SELECT_THREADS * SELECT_PAIR) {
        float x[SELECT_PAIR][4];
        select_load<SELECT_PAIR>(s.values, at, x);
        KRN_UNROLL
        for (int i = 0; i < SELECT_PAIR * 4; i++)
            below += select_histogram_add<MASS>(s, x[i / 4][i % 4], per_nat, floor);
    }
    simt::sync_block();
    return MASS ? select_sum((double)below) : 0;
}

struct select_zone {
    int bin; // where the set ends; -1: the whole histogram weighs too little
    select_weight above, weight, amount;
};

template <bool MASS>
KRN_DEVICE struct select_zone select_find_zone(const struct select_scaled &s, float per_nat,
                                               const struct select_wanted &wanted)
{
    double below = select_histogram<MASS>(s, per_nat);
    struct select_zone zone = {-1, 0, 0, 0};
    select_weight total = 0;
    if (simt::thread() < SELECT_BINS)
        for (int c = 0; c < SELECT_COPIES; c++) {
            int at = simt::thread() * SELECT_COPIES + c;
            zone.weight += (select_weight)select_high().get(at) << 32 | select_low().get(at);
        }
    zone.above = select_scan(zone.weight, &total);
    bool counts = per_nat > SELECT_COARSE; // else it is nothing
    zone.amount = select_amount(wanted, total + (counts ? (select_weight)(below * SELECT_UNIT) : 0));
    if (total < zone.amount)
        return zone;
    simt::smem<select_weight> words = simt::shared<select_weight>(SELECT_WORDS_AT);
    if (zone.above < zone.amount && zone.above + zone.weight >= zone.amount) {
        words.set(0, (select_weight)simt::thread());
        words.set(1, zone.above);
        words.set(2, zone.weight);
    }
    simt::sync_block();
    zone.bin = (int)words.get(0);
    zone.above = words.get(1);
    zone.weight = words.get(2);
    return zone;
}

// ---- list -----------------------------------------------------------------------------------------------------------

KRN_DEVICE simt::smem<select_rank> select_list()
{
    return simt::shared<select_rank>(SELECT_TABLE_AT);
}

struct select_range {
    int first, last; // bins
    float per_nat;
    select_rank least;
};

KRN_DEVICE void select_list_add(const struct select_scaled &s, const struct select_range &range, float floor, float x,
                                int id, simt::smem<unsigned> count)
{
    if (!(x >= floor))
        return;
    float scaled = select_scale(s, x);
    int bin = select_bin(s, scaled, range.per_nat);
    select_rank rank = select_rank_of(scaled, id);
    if (bin < range.first || bin > range.last || rank < range.least || scaled == -INFINITY)
        return;
    unsigned at = simt::shared_add(count, 0, 1u);
    if (at < SELECT_LIST)
        select_list().set((int)at, rank);
}

// Lists the tokens of a range in any order; returns how many there are (more than SELECT_LIST: the list is of no use).
KRN_DEVICE int select_gather(const struct select_scaled &s, const struct select_range &range)
{
    simt::smem<unsigned> count = simt::shared<unsigned>(SELECT_WORDS_AT + 64);
    simt::sync_block();
    if (simt::thread() == 0)
        count.set(0, 0);
    simt::sync_block();
    float floor = range.last < SELECT_BINS ? select_floor(s, (float)(range.last + 1) / range.per_nat) : -INFINITY;
    for (int at = simt::thread(); at < select_quads(s.values); at += SELECT_THREADS * SELECT_PAIR) {
        float x[SELECT_PAIR][4];
        select_load<SELECT_PAIR>(s.values, at, x);
        KRN_UNROLL
        for (int i = 0; i < SELECT_PAIR * 4; i++)
            select_list_add(s, range, floor, x[i / 4][i % 4], (at + i / 4 * SELECT_THREADS) * 4 + i % 4, count);
    }
    simt::sync_block();
    return (int)count.get(0);
}

// Bitonic, best rank first.
KRN_DEVICE void select_sort(int n)
{
    int size = 2;
    while (size < n)
        size *= 2;
    for (int i = n + simt::thread(); i < size; i += SELECT_THREADS)
        select_list().set(i, 0);
    simt::sync_block();
    for (int run = 2; run <= size; run *= 2)
        for (int stride = run / 2; stride > 0; stride /= 2) {
            for (int i = simt::thread(); i < size / 2; i += SELECT_THREADS) {
                int low = 2 * i - (i & (stride - 1)), high = low + stride;
                select_rank a = select_list().get(low), b = select_list().get(high);
                if ((a < b) == ((low & run) == 0)) {
                    select_list().set(low, b);
                    select_list().set(high, a);
                }
            }
            simt::sync_block();
        }
}

// How many of the sorted list's first n entries it takes to reach what is wanted, with `above` before them.
template <bool MASS>
KRN_DEVICE int select_list_prefix(const struct select_scaled &s, int n, select_weight above,
                                  const struct select_wanted &wanted)
{
    enum { EACH = SELECT_LIST / SELECT_THREADS };
    select_weight weights[EACH], own = 0, total;
    for (int j = 0; j < EACH; j++) {
        int i = simt::thread() * EACH + j;
        weights[j] = i < n ? select_weigh<MASS>(s, select_rank_value(select_list().get(i))) : 0;
        own += weights[j];
    }
    select_weight sum = above + select_scan(own, &total);
    select_weight amount = select_amount(wanted, total);
    int reached = 0;
    for (int j = 0; j < EACH; j++) {
        if (sum < amount && sum + weights[j] >= amount)
            reached = simt::thread() * EACH + j + 1;
        sum += weights[j];
    }
    reached = select_most(reached);
    return reached > 0 ? reached : n;
}

// ---- bisection ------------------------------------------------------------------------------------------------------

template <bool MASS> KRN_DEVICE select_weight select_weight_from(const struct select_scaled &s, select_rank least)
{
    select_weight sum = 0;
    for (int at = simt::thread(); at < select_quads(s.values); at += SELECT_THREADS) {
        float x[4];
        select_load_raw(s.values, at, x);
        select_hide(s.values, at, x);
        KRN_UNROLL
        for (int j = 0; j < 4; j++) {
            float scaled = select_scale(s, x[j]);
            if (scaled != -INFINITY && select_rank_of(scaled, at * 4 + j) >= least)
                sum += select_weigh<MASS>(s, scaled);
        }
    }
    select_weight total;
    select_scan(sum, &total);
    return total;
}

// The largest rank that leaves at least `amount`: that of the set's last token.
template <bool MASS> KRN_DEVICE select_rank select_bisect(const struct select_scaled &s, select_weight amount)
{
    int id_bits = 1;
    while (id_bits < 31 && 1 << id_bits < s.values.n)
        id_bits++;
    select_rank rank = 0;
    for (int bit = 63; bit >= 0; bit--) {
        if (bit == 31) { // bits of ~id that no id clears
            rank |= (select_rank)(~0u << id_bits);
            bit = id_bits - 1;
        }
        select_rank tried = rank | (select_rank)1 << bit;
        if (select_weight_from<MASS>(s, tried) >= amount)
            rank = tried;
    }
    return rank;
}

// ---- together -------------------------------------------------------------------------------------------------------

struct select_kept {
    select_rank least; // of those kept; 0: all are
    int listed;        // > 0: those kept stand first in the list, in order
};

template <bool MASS>
KRN_DEVICE struct select_kept select_keep(const struct select_scaled &s, const struct select_wanted &wanted)
{
    struct select_zone zone;
    float per_nat = SELECT_FINE;
    for (;; per_nat = SELECT_COARSE) {
        zone = select_find_zone<MASS>(s, per_nat, wanted);
        if (zone.bin >= 0)
            break;
        if (per_nat == SELECT_COARSE)
            return {0, 0};
    }
    bool all = !MASS && zone.above + zone.weight <= SELECT_LIST;
    int n = select_gather(s, {all ? 0 : zone.bin, zone.bin, per_nat, 0});
    if (n > SELECT_LIST)
        return {select_bisect<MASS>(s, zone.amount), 0};
    select_sort(n);
    int kept = select_list_prefix<MASS>(s, n, all ? 0 : zone.above, {zone.amount, -1});
    return {select_list().get(kept - 1), all ? kept : 0};
}
