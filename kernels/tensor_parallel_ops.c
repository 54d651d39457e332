// The ops of a composite backend: each is passed on to every child with the child's part of its arguments.
//
// Two things are added: after a product of a weight split by inputs the children's sums are added up (reduce), and the
// logits of a head split by outputs are put side by side. Which of this happens is a matter of the weights' splits; the
// engine's calls are the same as for one device. Arguments are checked by the children.
#include "tensor_parallel_inner.h"

static void *part(const void *buffer, int32_t d)
{
    return buffer ? ((const struct krn_tp_buffer *)buffer)->parts[d] : NULL;
}

static const struct krn_tp_weight *weight_of(const struct krn_tensor *tensor)
{
    return tensor ? tensor->data : NULL;
}

static bool has_split(const struct krn_tensor *tensor, enum krn_split split)
{
    return weight_of(tensor) && weight_of(tensor)->split == split;
}

static const struct krn_tensor *tensor(const struct krn_tensor *of, int32_t d)
{
    return &weight_of(of)->parts[d];
}

static int misuse(struct krn_tp *tp, const char *what)
{
    return krn_tp_fail(tp, KRN_EINVAL, "%s", what);
}

// Calls every child in turn; the first failure ends the op.
#define ON_EVERY_CHILD(call)                             \
    for (int32_t d = 0; d < tp->n; d++) {                \
        struct krn_backend *child = tp->children[d];     \
        int child_rc = (call);                           \
        if (child_rc < 0)                                \
            return krn_tp_child_failed(tp, d, child_rc); \
    }

// ---- rows and elements ----------------------------------------------------------------------------------------------

int krn_tp_embed(void *ctx, void *x, const struct krn_tensor *table, const int32_t *tokens, int32_t rows)
{
    struct krn_tp *tp = ctx;
    if (!has_split(table, KRN_SPLIT_NONE))
        return misuse(tp, "the embedding table must be whole on every device");
    ON_EVERY_CHILD(child->embed(child->ctx, part(x, d), tensor(table, d), tokens, rows))
    return 0;
}

int krn_tp_rms_norm(void *ctx, void *y, void *x, const void *add, const struct krn_tensor *weight, float eps,
                    int32_t rows, int32_t width)
{
    struct krn_tp *tp = ctx;
    if (!has_split(weight, KRN_SPLIT_NONE))
        return misuse(tp, "a norm must be whole on every device");
    ON_EVERY_CHILD(
        child->rms_norm(child->ctx, part(y, d), part(x, d), part(add, d), tensor(weight, d), eps, rows, width))
    return 0;
}

int krn_tp_add(void *ctx, void *x, const void *y, int32_t rows, int32_t width)
{
    struct krn_tp *tp = ctx;
    ON_EVERY_CHILD(child->add(child->ctx, part(x, d), part(y, d), rows, width))
    return 0;
}

int krn_tp_gather(void *ctx, void *y, const void *x, const int32_t *rows, int32_t n, int32_t width)
{
    struct krn_tp *tp = ctx;
    ON_EVERY_CHILD(child->gather(child->ctx, part(y, d), part(x, d), rows, n, width))
    return 0;
}

// ---- products -------------------------------------------------------------------------------------------------------

// A recorded exchange is played again for passes of other numbers of rows.
static int32_t bucket(const struct krn_tp *tp, int32_t rows)
{
    return tp->children[0]->bucket(tp->children[0]->ctx, rows);
}

// Every child's y becomes the sum of all children's.
static int reduce(struct krn_tp *tp, void *y, int32_t rows, int32_t width)
{
    float *plain[KRN_TENSOR_PARALLEL_MAX] = {0};
    if (rows == 0)
        return 0;
    ON_EVERY_CHILD(child->flatten(child->ctx, part(y, d), rows, width, &plain[d]))
    int rc = tp->comm.all_reduce(tp->comm.ctx, plain, (int64_t)bucket(tp, rows) * width);
    return rc < 0 ? krn_tp_comm_failed(tp, rc) : 0;
}

// By inputs, B is whole and the all-reduce adds up what each device's share of x A^T contributes.
static bool adapter_fits(const struct krn_adapter *adapter, enum krn_split split)
{
    return has_split(&adapter->a, split == KRN_SPLIT_INPUTS ? KRN_SPLIT_INPUTS : KRN_SPLIT_NONE) &&
           has_split(&adapter->b, split == KRN_SPLIT_OUTPUTS ? KRN_SPLIT_OUTPUTS : KRN_SPLIT_NONE);
}

int krn_tp_linear(void *ctx, void *y, const void *x, const struct krn_tensor *w, int32_t rows,
                  const struct krn_adapter *adapter, const uint8_t *adapter_rows, void *scratch)
{
    struct krn_tp *tp = ctx;
    if (!weight_of(w))
        return misuse(tp, "a product without a weight");
    if (adapter && !adapter_fits(adapter, weight_of(w)->split))
        return misuse(tp, "the adapter is not divided as its weight is");
    struct krn_adapter parts[KRN_TENSOR_PARALLEL_MAX];
    for (int32_t d = 0; adapter && d < tp->n; d++)
        parts[d] = (struct krn_adapter){*tensor(&adapter->a, d), *tensor(&adapter->b, d), adapter->scale};
    ON_EVERY_CHILD(child->linear(child->ctx, part(y, d), part(x, d), tensor(w, d), rows, adapter ? &parts[d] : NULL,
                                 adapter_rows, part(scratch, d)))
    return weight_of(w)->split == KRN_SPLIT_INPUTS ? reduce(tp, y, rows, w->rows) : 0;
}

int krn_tp_project(void *ctx, const struct krn_product *products, int32_t n, const void *x, int32_t rows)
{
    enum { MOST = 3 };
    struct krn_tp *tp = ctx;
    struct krn_product parts[KRN_TENSOR_PARALLEL_MAX][MOST];
    if (n < 0 || n > MOST)
        return misuse(tp, "more than 3 products of one input");
    for (int32_t i = 0; i < n; i++) {
        if (!weight_of(products[i].w))
            return misuse(tp, "a product without a weight");
        for (int32_t d = 0; d < tp->n; d++)
            parts[d][i] = (struct krn_product){part(products[i].y, d), tensor(products[i].w, d)};
    }
    ON_EVERY_CHILD(child->project(child->ctx, parts[d], n, part(x, d), rows))
    int rc = 0;
    for (int32_t i = 0; rc == 0 && i < n; i++)
        if (has_split(products[i].w, KRN_SPLIT_INPUTS))
            rc = reduce(tp, products[i].y, rows, products[i].w->rows);
    return rc;
}

int krn_tp_gated(void *ctx, void *y, const void *x, const struct krn_tensor *gate, const struct krn_tensor *up,
                 int32_t rows, void *const scratch[2])
{
    struct krn_tp *tp = ctx;
    if (!weight_of(gate) || !weight_of(up) || weight_of(gate)->split != weight_of(up)->split ||
        has_split(gate, KRN_SPLIT_INPUTS))
        return misuse(tp, "gate and up must be divided alike, and not by inputs");
    void *parts[KRN_TENSOR_PARALLEL_MAX][2];
    for (int32_t d = 0; d < tp->n; d++)
        for (int i = 0; i < 2; i++)
            parts[d][i] = scratch ? part(scratch[i], d) : NULL;
    ON_EVERY_CHILD(child->gated(child->ctx, part(y, d), part(x, d), tensor(gate, d), tensor(up, d), rows,
                                scratch ? parts[d] : NULL))
    return 0;
}

int krn_tp_head(void *ctx, float *logits, const void *x, const struct krn_tensor *w, int32_t rows)
{
    struct krn_tp *tp = ctx;
    bool split = has_split(w, KRN_SPLIT_OUTPUTS);
    if (!split && !has_split(w, KRN_SPLIT_NONE))
        return misuse(tp, "the head must be whole or divided by outputs");
    if (split && (!tp->logits[0] || rows > tp->max_chunk || w->rows != tp->n_vocab))
        return misuse(tp, "the head is not the one that was prepared for");
    ON_EVERY_CHILD(child->head(child->ctx, split ? tp->logits[d] : part(logits, d), part(x, d), tensor(w, d), rows))
    if (!split || rows == 0)
        return 0;
    float *to[KRN_TENSOR_PARALLEL_MAX];
    const float *from[KRN_TENSOR_PARALLEL_MAX];
    for (int32_t d = 0; d < tp->n; d++) {
        to[d] = part(logits, d);
        from[d] = tp->logits[d];
    }
    int rc = tp->comm.all_gather_columns(tp->comm.ctx, to, from, bucket(tp, rows), w->rows / tp->n);
    return rc < 0 ? krn_tp_comm_failed(tp, rc) : 0;
}

// ---- attention ------------------------------------------------------------------------------------------------------

int krn_tp_rope_write(void *ctx, void *q, void *k, void *v, int32_t n_heads, const struct krn_rope *rope,
                      const struct krn_kv *kv, int32_t layer, const struct krn_segment *segments, int32_t n_segments)
{
    struct krn_tp *tp = ctx;
    const struct krn_tp_kv *store = kv ? kv->k : NULL;
    if (!store || n_heads % tp->n != 0)
        return misuse(tp, "no KV store, or heads that do not divide");
    ON_EVERY_CHILD(child->rope_write(child->ctx, part(q, d), part(k, d), part(v, d), n_heads / tp->n, rope,
                                     &store->parts[d], layer, segments, n_segments))
    return 0;
}

int krn_tp_attention(void *ctx, void *y, const void *q, int32_t n_heads, const struct krn_kv *kv, int32_t layer,
                     const struct krn_segment *segments, int32_t n_segments)
{
    struct krn_tp *tp = ctx;
    const struct krn_tp_kv *store = kv ? kv->k : NULL;
    if (!store || n_heads % tp->n != 0)
        return misuse(tp, "no KV store, or heads that do not divide");
    ON_EVERY_CHILD(child->attention(child->ctx, part(y, d), part(q, d), n_heads / tp->n, &store->parts[d], layer,
                                    segments, n_segments))
    return 0;
}

// ---- choices --------------------------------------------------------------------------------------------------------

int krn_tp_select(void *ctx, const float *logits, int32_t n_vocab, int32_t banned_id, const struct krn_select_row *rows,
                  int32_t n, struct krn_choice *ret)
{
    struct krn_tp *tp = ctx;
    const struct krn_tp_slot *slot = &tp->slots[tp->slot];
    if (!tp->begun || (n > 0 && (ret < slot->pass->choices || ret + n > slot->pass->choices + slot->pass->n_wanted)))
        return misuse(tp, "choices that are not the pass's");
    ptrdiff_t first = n > 0 ? ret - slot->pass->choices : 0;
    ON_EVERY_CHILD(child->select(child->ctx, part(logits, d), n_vocab, banned_id, rows, n,
                                 d == 0 ? ret : slot->copies[d].choices + first))
    return 0;
}

int krn_tp_accept(void *ctx, const struct krn_accept *accepts, int32_t n, struct krn_accepted *ret)
{
    struct krn_tp *tp = ctx;
    const struct krn_tp_slot *slot = &tp->slots[tp->slot];
    if (!tp->begun || (n > 0 && (ret != slot->pass->accepted || n > slot->pass->n_accepts)))
        return misuse(tp, "accepts that are not the pass's");
    ON_EVERY_CHILD(child->accept(child->ctx, accepts, n, d == 0 ? ret : slot->copies[d].accepted))
    return 0;
}
