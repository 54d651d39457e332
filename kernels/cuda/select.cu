// From rows of logits to tokens on the device; the order is written in kernels.h above struct krn_select_row.
//
// One block a row. Sums of the softmax run over fixed parts of the vocabulary in a fixed order; top-k and top-p count
// in integers; noise is the CPU's: a row's choice depends on the row alone. A greedy row reads its logits once; one
// with temperature once more; top-k, top-p and alternatives add two passes, mask, penalties and bias two. The logits
// stay in the L2 cache between passes.
#include "select_draw.cuh"

// ---- alternatives ---------------------------------------------------------------------------------------------------

// Lists the n best raw values in order.
KRN_DEVICE void select_list_best(const struct select_scaled &s, int n)
{
    for (float per_nat = SELECT_FINE; per_nat > 1e-30f; per_nat *= 0.125f) {
        struct select_zone zone = select_find_zone<false>(s, per_nat, {(select_weight)n, -1});
        if (zone.bin < 0) // they reach farther down
            continue;
        int listed = select_gather(s, {0, zone.bin, per_nat, 0});
        if (listed > SELECT_LIST)
            break;
        select_sort(listed);
        return;
    }
    select_rank least = select_bisect<false>(s, (select_weight)n);
    select_sort(select_gather(s, {0, SELECT_BINS, 1, least}));
}

// Returns how many there are.
KRN_DEVICE int select_tops(const struct select_values &raw, const struct select_stats &stats, int n_top,
                           struct krn_dev_top *ret)
{
    int tokens = raw.n - (raw.banned >= 0 ? 1 : 0);
    int n = n_top < tokens ? n_top : tokens;
    select_list_best(select_scaled_make(raw, stats.max, 1), n);
    if (simt::thread() < n) {
        select_rank rank = select_list().get(simt::thread());
        ret->token[simt::thread()] = select_rank_id(rank);
        ret->logprob[simt::thread()] = (select_rank_value(rank) - stats.max) - logf(stats.sum);
    }
    return n;
}

// ---- one row --------------------------------------------------------------------------------------------------------

// What is needed at the end waits in shared memory: registers are short between.
struct select_later {
    struct select_stats raw, adjusted;
    const float *x; // adjusted values
};

KRN_DEVICE simt::smem<struct select_later> select_later_at()
{
    return simt::shared<struct select_later>(SELECT_WORDS_AT + 128);
}

KRN_DEVICE struct select_values select_raw(const struct krn_select_args &a, const struct krn_dev_select *row)
{
    bool bans = a.banned_id >= 0 && a.banned_id < a.n_vocab;
    return {a.logits + (size_t)row->row * (size_t)a.n_vocab, a.n_vocab, bans ? a.banned_id : -1};
}

// The token, in every thread; -1: none.
KRN_DEVICE int select_choose(const struct krn_select_args &a, const struct krn_dev_select *row)
{
    struct select_values values = select_raw(a, row);
    struct select_later later;
    later.raw = later.adjusted = select_measure<true>(values);
    bool sound = later.raw.finite && later.raw.best >= 0;
    if (sound && !select_plain(*row)) {
        float *work = a.work + (size_t)simt::block_x() * (size_t)a.n_vocab;
        select_adjust(a.pass, *row, values, work);
        values.x = work;
        later.adjusted = select_measure<false>(values);
    }
    later.x = values.x;
    if (simt::thread() == 0)
        select_later_at().set(0, later);
    if (!sound || !(fabsf(later.adjusted.max) <= FLT_MAX)) // nothing is allowed, or a penalty left the range of f32
        return -1;
    return row->temperature > 0 ? select_sample(values, later.adjusted, row) : later.adjusted.best;
}

KRN_KERNEL(SELECT_THREADS, 1) select_rows(KRN_ARGS(struct krn_select_args) a)
{
    simt::wait_for_inputs();
    simt::let_next_start();
    int at = a.first + simt::block_x();
    if (at >= a.pass->n_wanted)
        return;
    const struct krn_dev_select *row = KRN_PASS_ARRAY(a.pass, struct krn_dev_select, selects) + at;
    struct krn_dev_choice choice = {select_choose(a, row), 0, 0, 0};
    simt::sync_block();
    struct select_later later = select_later_at().get(0);
    if (row->n_top > 0 && later.raw.finite && later.raw.best >= 0)
        choice.n_top = select_tops(select_raw(a, row), later.raw, row->n_top, a.tops + at);
    if (simt::thread() > 0)
        return;
    if (choice.token >= 0) {
        float raw = select_raw(a, row).x[choice.token], adjusted = later.x[choice.token];
        choice.confidence = KRN_DIV(krn_expf(KRN_SUB(adjusted, later.adjusted.max)), later.adjusted.sum);
        choice.logprob = (raw - later.raw.max) - logf(later.raw.sum);
    }
    a.choices[at] = choice;
}

int krn_cuda_select(struct krn_cuda_launch how, const struct krn_select_args *args)
{
    return simt::launch(select_rows, how, {args->rows, 1, 1}, SELECT_THREADS, SELECT_SHARED, *args);
}

// ---- drafts that are accepted ---------------------------------------------------------------------------------------

enum { ACCEPT_THREADS = 128 };

// One warp a block of rows. Lane i looks whether row i's choice is the next row's token; the first that is not ends it.
KRN_KERNEL(ACCEPT_THREADS, 1) accept_blocks(KRN_ARGS(struct krn_accept_args) a)
{
    simt::wait_for_inputs();
    simt::let_next_start();
    int at = simt::block_x() * (ACCEPT_THREADS / 32) + simt::warp();
    if (at >= a.pass->n_accepts)
        return;
    struct krn_dev_accept block = KRN_PASS_ARRAY(a.pass, struct krn_dev_accept, accepts)[at];
    struct krn_dev_accepted accepted = {0, -1};
    uint32_t ends = 0;
    for (int first = 0; first < block.rows && ends == 0; first += 32) {
        int i = first + simt::lane();
        int32_t token = i < block.rows ? a.choices[block.choice + i].token : -1;
        bool goes_on = i < block.rows - 1 && token >= 0 && token == a.row_tokens[block.row + i + 1];
        ends = simt::ballot(!goes_on);
        if (ends == 0)
            continue;
        int lane = 0;
        while (!(ends >> lane & 1))
            lane++;
        accepted.seed = simt::shuffle(token, lane);
        accepted.n = accepted.seed < 0 ? 0 : first + lane + 1;
    }
    if (simt::lane() == 0)
        a.accepted[at] = accepted;
}

int krn_cuda_accept(struct krn_cuda_launch how, const struct krn_accept_args *args)
{
    int blocks = KRN_PAD_TO(args->accepts, ACCEPT_THREADS / 32) / (ACCEPT_THREADS / 32);
    return simt::launch(accept_blocks, how, {blocks, 1, 1}, ACCEPT_THREADS, 0, *args);
}
