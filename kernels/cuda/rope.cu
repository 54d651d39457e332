// Rotary embedding, half-split (NeoX), and the KV store:
//     x'[i]        = (x[i] cos - x[i + half] sin) * scale          i < half = head_dim / 2
//     x'[i + half] = (x[i + half] cos + x[i] sin) * scale
// with the cosine and sine of the row's position from a table that is made once a pass, in double. x is the sum of a
// product's parts in their order. q goes to q_out as bf16, times log2(e) / sqrt(head_dim); k and v go to their
// sequence's page of the layer, as bf16 or as e4m3 with one scale a vector (largest magnitude / 448).
//
// One warp has one vector of one row; a lane has pairs (i, i + half). Bound by memory and, in small passes, by the time
// that a launch takes. Rows beyond the pass's are not touched.
#include "ops.h"
#include "quant.h"
#include "simt.cuh"

#include <math.h>

namespace
{

enum {
    WARPS = 4,
    THREADS = 32 * WARPS,
    HALF_MAX = 64,         // of head_dim
    PAIRS = HALF_MAX / 32, // of a lane
    TERMS = 4,             // of a sum, loaded before the first is added: one wait for memory instead of four
};

// ---- the table ------------------------------------------------------------------------------------------------------

// A thread for each pair of each row.
KRN_KERNEL(THREADS, 4) rope_table(KRN_ARGS(struct krn_rope_table_args) a)
{
    simt::wait_for_inputs();
    simt::let_next_start();
    int half = a.head_dim / 2, index = simt::block_x() * THREADS + simt::thread(), row = index / half;
    if (row >= a.pass->n_rows)
        return;
    int pair = index % half, position = KRN_PASS_ARRAY(a.pass, int32_t, positions)[row];
    double angle = (double)position * (double)a.inv_freq[pair];
    a.table[2 * (size_t)index] = (float)(cos(angle) * (double)a.attention_factor);
    a.table[2 * (size_t)index + 1] = (float)(sin(angle) * (double)a.attention_factor);
    if (pair > 0)
        return;
    bool scaled = a.query_beta != 0 && a.query_original_max > 0;
    a.q_scale[row] =
        scaled ? (float)(1.0 + (double)a.query_beta * log(1.0 + (double)(position / a.query_original_max))) : 1.0f;
}

// ---- rotating and writing -------------------------------------------------------------------------------------------

// A lane's elements of a vector: low[p] is element lane + 32p, high[p] that plus half; 0 where there are none.
struct part {
    float low[PAIRS], high[PAIRS];
};

KRN_DEVICE struct part load(const struct krn_dev_sums &x, const struct krn_dev_pass *pass, int row, int head,
                            int head_dim)
{
    bool extra = x.extra && KRN_PASS_ARRAY(pass, uint8_t, adapter_rows)[row];
    int half = head_dim / 2, terms = x.n + (extra ? 1 : 0);
    const float *from = x.data + (size_t)row * (size_t)x.width + (size_t)(head * head_dim);
    struct part part;
    KRN_UNROLL for (int p = 0; p < PAIRS; p++) part.low[p] = part.high[p] = -0.0f; // adding it changes nothing
    KRN_UNROLL_BY(1)
    for (int first = 0; first < terms; first += TERMS) {
        float low[TERMS][PAIRS], high[TERMS][PAIRS];
        KRN_UNROLL for (int i = 0; i < TERMS; i++) KRN_UNROLL for (int p = 0; p < PAIRS; p++)
        {
            const float *at = from + (size_t)(first + i) * (size_t)x.stride + simt::lane() + 32 * p;
            bool there = first + i < terms && simt::lane() + 32 * p < half;
            low[i][p] = there ? at[0] : -0.0f;
            high[i][p] = there ? at[half] : -0.0f;
        }
        KRN_UNROLL for (int i = 0; i < TERMS; i++) KRN_UNROLL for (int p = 0; p < PAIRS; p++)
        {
            part.low[p] = KRN_ADD(part.low[p], low[i][p]);
            part.high[p] = KRN_ADD(part.high[p], high[i][p]);
        }
    }
    return part;
}

// How a lane's pairs turn. Asked for before the elements, so that both are on their way at once.
struct turn {
    float cos[PAIRS], sin[PAIRS], scale;
};

KRN_DEVICE struct turn turn_of(const struct krn_rope_write_args &a, int row, int kind)
{
    int head_dim = a.kv.head_dim;
    const float *table = a.table + (size_t)row * (size_t)head_dim;
    struct turn turn;
    KRN_UNROLL for (int p = 0; p < PAIRS; p++)
    {
        int i = simt::lane() + 32 * p;
        bool there = kind < 2 && i < head_dim / 2;
        turn.cos[p] = there ? table[2 * i] : 0.0f;
        turn.sin[p] = there ? table[2 * i + 1] : 0.0f;
    }
    turn.scale = kind == 0 ? a.q_scale[row] : 1.0f;
    return turn;
}

KRN_DEVICE void rotate(struct part *part, const struct turn &turn, float scale)
{
    KRN_UNROLL for (int p = 0; p < PAIRS; p++)
    {
        float c = turn.cos[p], s = turn.sin[p], low = part->low[p], high = part->high[p];
        part->low[p] = KRN_MUL(KRN_SUB(KRN_MUL(low, c), KRN_MUL(high, s)), scale);
        part->high[p] = KRN_MUL(KRN_ADD(KRN_MUL(high, c), KRN_MUL(low, s)), scale);
    }
}

// The vector in its place, dim elements long: the padding is zero. T: uint16_t (bf16) or uint8_t (e4m3 of x / scale).
KRN_DEVICE void put(uint16_t *to, float x, float)
{
    *to = krn_bf16_round(x);
}
KRN_DEVICE void put(uint8_t *to, float x, float scale)
{
    *to = krn_fp8_code(x, scale);
}
template <class T> KRN_DEVICE void store(T *to, const struct part &part, int half, int dim, float scale)
{
    KRN_UNROLL for (int p = 0; p < PAIRS; p++)
    {
        int i = simt::lane() + 32 * p;
        if (i < half) {
            put(&to[i], part.low[p], scale);
            put(&to[i + half], part.high[p], scale);
        }
    }
    for (int i = 2 * half + simt::lane(); i < dim; i += 32)
        to[i] = 0;
}

// The scale of a vector, in every lane. A vector that is not finite has none: NaN.
KRN_DEVICE float scale_of(const struct part &part)
{
    float largest = 0;
    KRN_UNROLL for (int p = 0; p < PAIRS; p++) largest = fmaxf(largest, fmaxf(fabsf(part.low[p]), fabsf(part.high[p])));
    KRN_UNROLL for (int mask = 16; mask > 0; mask /= 2) largest = fmaxf(largest, simt::shuffle_xor(largest, mask));
    bool finite = true;
    KRN_UNROLL for (int p = 0; p < PAIRS; p++) finite =
        finite && fabsf(part.low[p]) <= 3.40282347e38f && fabsf(part.high[p]) <= 3.40282347e38f;
    return simt::ballot(!finite) ? NAN : krn_fp8_scale(largest);
}

// Where a row's key or value of one head goes, in vectors.
KRN_DEVICE size_t vector_of(const struct krn_rope_write_args &a, int row, int head)
{
    const struct krn_dev_segment *segment =
        KRN_PASS_ARRAY(a.pass, struct krn_dev_segment, segments) + KRN_PASS_ARRAY(a.pass, int32_t, row_segments)[row];
    const struct krn_dev_kv *kv = &a.kv;
    int position = segment->first_pos + row - segment->row;
    int page = KRN_PASS_ARRAY(a.pass, int32_t, pages)[segment->pages + position / kv->page_size];
    size_t vector = ((size_t)a.layer * (size_t)kv->n_pages + (size_t)page) * (size_t)kv->n_kv_heads + (size_t)head;
    return vector * (size_t)kv->page_size + (size_t)(position % kv->page_size);
}

KRN_DEVICE void store_kv(const struct krn_dev_kv &kv, const struct part &part, size_t vector, bool value)
{
    void *to = value ? kv.v : kv.k;
    int half = kv.head_dim / 2, dim = KRN_KV_DIM(kv.head_dim);
    if (!kv.fp8) {
        store((uint16_t *)to + vector * (size_t)dim, part, half, dim, 1.0f);
        return;
    }
    float scale = scale_of(part);
    if (simt::lane() == 0)
        (value ? kv.v_scales : kv.k_scales)[vector] = scale;
    store((uint8_t *)to + vector * (size_t)dim, part, half, dim, scale);
}

// Blocks (row, .): a warp for each head of q, then of k, then of v. The pass's description is read before the wait: no
// kernel writes it.
KRN_KERNEL(THREADS, 4) rope_write(KRN_ARGS(struct krn_rope_write_args) a)
{
    int row = simt::block_x(), index = simt::block_y() * WARPS + simt::warp(), head_dim = a.kv.head_dim;
    int n_kv_heads = a.kv.n_kv_heads, kind = index < a.n_heads ? 0 : index < a.n_heads + n_kv_heads ? 1 : 2;
    int head = kind == 0 ? index : index - a.n_heads - (kind - 1) * n_kv_heads;
    bool works = row < a.pass->n_rows && head < (kind == 0 ? a.n_heads : n_kv_heads);
    size_t vector = works && kind > 0 ? vector_of(a, row, head) : 0;
    simt::wait_for_inputs();
    simt::let_next_start();
    if (!works)
        return;
    struct turn turn = turn_of(a, row, kind);
    struct part part = load(kind == 0 ? a.q : kind == 1 ? a.k : a.v, a.pass, row, head, head_dim);
    float scale = kind == 0 ? KRN_MUL(turn.scale, KRN_DIV(1.44269504f, sqrtf((float)head_dim))) : 1.0f;
    if (kind < 2)
        rotate(&part, turn, scale);
    if (kind > 0) {
        store_kv(a.kv, part, vector, kind == 2);
    } else {
        int dim = KRN_KV_DIM(head_dim);
        uint16_t *to = a.q_out + ((size_t)row * (size_t)a.n_heads + (size_t)head) * (size_t)dim;
        store(to, part, head_dim / 2, dim, 1.0f);
    }
}

} // namespace

int krn_cuda_rope_table(struct krn_cuda_launch how, const struct krn_rope_table_args *args)
{
    int64_t pairs = (int64_t)args->rows * (args->head_dim / 2);
    return simt::launch(rope_table, how, {(int)((pairs + THREADS - 1) / THREADS), 1, 1}, THREADS, 0, *args);
}

int krn_cuda_rope_write(struct krn_cuda_launch how, const struct krn_rope_write_args *args)
{
    int vectors = args->n_heads + 2 * args->kv.n_kv_heads;
    return simt::launch(rope_write, how, {args->rows, (vectors + WARPS - 1) / WARPS, 1}, THREADS, 0, *args);
}
