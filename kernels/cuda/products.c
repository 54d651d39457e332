// The products of a pass: which kernel makes them, and what they leave.
//
// A product of up to 64 rows is our own kernel's: its bits depend on nothing but the row and the weight. Above, the
// library's, whose bits may depend on the number of rows (not with `deterministic`). The adapter's products are our own
// always. What a product leaves is a number of partial sums; the matrix's record says how many, and the op that reads
// them takes it from there. The records are only used while ops are issued: a replayed pass has them in its arguments.
#include "backend.h"
#include "quant.h"

static bool good_weight(const struct krn_tensor *w)
{
    return w && w->data && w->rows > 0 && w->cols > 0 &&
           (w->type == KRN_BF16 || ((w->type == KRN_FP8 || w->type == KRN_Q4) && w->scales));
}

static struct krn_dev_weight dev_weight(const struct krn_tensor *w)
{
    return (struct krn_dev_weight){
        .data = w->data, .scales = w->scales, .type = (int32_t)w->type, .rows = w->rows, .cols = w->cols};
}

// The matrix y as what a product of this width in n parts will leave there; fewer parts where they do not fit, which
// depends on the allocation alone. NULL: not so wide.
static struct krn_cuda_rows *find_output(struct krn_cuda_backend *b, void *y, int32_t rows, int32_t width, int32_t n)
{
    struct krn_cuda_rows *m = krn_cuda_memory_rows(&b->memory, y, KRN_ROWS_OUTPUT);
    if (!m || rows > m->rows)
        return NULL;
    int64_t one = (int64_t)m->rows * width, fit = m->elements / one - 1;
    if (fit < 1)
        return NULL;
    m->sums = (struct krn_dev_sums){.data = m->data, .stride = one, .n = n < fit ? n : (int32_t)fit, .width = width};
    return m;
}

static int library_product(struct krn_cuda_backend *b, float *y, const void *x, const struct krn_tensor *w,
                           int32_t rows)
{
    struct krn_cuda_step step = {
        .kind = KRN_STEP_PRODUCT,
        .as.product = {.y = y,
                       .x = x,
                       .w = w->data,
                       .ldy = w->rows,
                       .ldx = KRN_PAD(w->cols),
                       .ldw = krn_weight_stride(w->type, w->cols),
                       .rows = rows,
                       .outputs = w->rows,
                       .cols = w->cols},
    };
    int rc = krn_cuda_issue(b, &step);
    if (rc == KRN_ENOTSUP)
        b->library = false;
    return rc;
}

static bool for_library(const struct krn_cuda_backend *b, int32_t rows, const struct krn_tensor *w)
{
    return b->library && rows > KRN_CUDA_OWN_ROWS && w->type == KRN_BF16;
}

// One launch for the first of n products that share a type; *ret_n: how many.
static int own_products(struct krn_cuda_backend *b, const struct krn_product *products, int32_t n, const void *x,
                        int32_t rows, int32_t *ret_n)
{
    struct krn_cuda_step step = {
        .kind = KRN_STEP_LINEAR,
        .as.linear = {.x = x, .rows = rows, .cols = products[0].w->cols, .scale = 1},
    };
    struct krn_linear_args *args = &step.as.linear;
    for (*ret_n = 0; *ret_n < n && products[*ret_n].w->type == products[0].w->type; (*ret_n)++) {
        const struct krn_product *p = &products[*ret_n];
        const struct krn_cuda_rows *y =
            find_output(b, p->y, rows, p->w->rows, krn_cuda_linear_sums(p->w->rows, p->w->cols));
        if (!y)
            return krn_cuda_refuse_op(b, "linear");
        args->w[args->n] = dev_weight(p->w);
        args->y[args->n++] = y->sums;
    }
    return krn_cuda_issue(b, &step);
}

// Up to 4 products of one input. own: never the library's.
static int multiply(struct krn_cuda_backend *b, const struct krn_product *products, int32_t n, const void *x,
                    int32_t rows, bool own)
{
    int32_t bucket = krn_cuda_bucket(rows);
    for (int32_t i = 0; i < n; i++)
        if (!good_weight(products[i].w) || products[i].w->cols != products[0].w->cols ||
            !krn_cuda_find_input(b, x, bucket, products[i].w->cols) ||
            !find_output(b, products[i].y, bucket, products[i].w->rows, 1))
            return krn_cuda_refuse_op(b, "linear");
    int rc = 0;
    for (int32_t i = 0, done; rc == 0 && rows > 0 && i < n; i += done) {
        done = 1;
        rc = KRN_ENOTSUP;
        if (!own && for_library(b, bucket, products[i].w))
            rc = library_product(b, find_output(b, products[i].y, bucket, products[i].w->rows, 1)->sums.data, x,
                                 products[i].w, bucket);
        if (rc == KRN_ENOTSUP)
            rc = own_products(b, products + i, n - i, x, bucket, &done);
    }
    return rc;
}

static bool good_adapter(const struct krn_cuda_backend *b, const struct krn_adapter *adapter,
                         const struct krn_tensor *w)
{
    return good_weight(&adapter->a) && good_weight(&adapter->b) && adapter->a.cols == w->cols &&
           adapter->b.rows == w->rows && adapter->b.cols == adapter->a.rows &&
           adapter->a.rows <= b->limits.adapter_rank;
}

// y's extra matrix = scale * bf16(scratch) B^T.
static int adapter_up(struct krn_cuda_backend *b, void *y, const struct krn_adapter *adapter, void *scratch,
                      int32_t bucket)
{
    struct krn_cuda_rows *out = krn_cuda_memory_rows(&b->memory, y, KRN_ROWS_OUTPUT);
    struct krn_cuda_step round = {
        .kind = KRN_STEP_ROUND,
        .as.round = {.y = b->inner, .rows = bucket, .width = adapter->a.rows},
    };
    if (!krn_cuda_find_sums(b, scratch, bucket, adapter->a.rows, &round.as.round.x))
        return krn_cuda_refuse_op(b, "linear");
    struct krn_cuda_step up = {
        .kind = KRN_STEP_LINEAR,
        .as.linear = {.x = b->inner,
                      .rows = bucket,
                      .cols = adapter->b.cols,
                      .n = 1,
                      .w = {dev_weight(&adapter->b)},
                      .y = {{.data = out->sums.data + out->sums.n * out->sums.stride,
                             .stride = out->sums.stride,
                             .n = 1,
                             .width = out->sums.width}},
                      .scale = adapter->scale},
    };
    int rc = krn_cuda_issue(b, &round);
    if (rc == 0)
        rc = krn_cuda_issue(b, &up);
    out->sums.extra = 1;
    return rc;
}

static int cuda_linear(void *ctx, void *y, const void *x, const struct krn_tensor *w, int32_t rows,
                       const struct krn_adapter *adapter, const uint8_t *adapter_rows, void *scratch)
{
    struct krn_cuda_backend *b = ctx;
    int rc = krn_cuda_enter(b, rows);
    if (rc < 0)
        return rc;
    if (!good_weight(w) ||
        (adapter && (!good_adapter(b, adapter, w) || !adapter_rows || adapter_rows != b->pass->adapter_rows ||
                     rows != b->pass->n_rows || !scratch || scratch == y)))
        return krn_cuda_refuse_op(b, "linear");
    const struct krn_product products[] = {{y, w}, {scratch, adapter ? &adapter->a : NULL}};
    if (!adapter || !b->key.adapter) // no row has it on: the pass's key says so, and its graph is without
        return multiply(b, products, 1, x, rows, false);
    if (for_library(b, krn_cuda_bucket(rows), w)) {
        rc = multiply(b, products, 1, x, rows, false);
        if (rc == 0)
            rc = multiply(b, products + 1, 1, x, rows, true);
    } else {
        rc = multiply(b, products, 2, x, rows, true);
    }
    return rc < 0 || rows == 0 ? rc : adapter_up(b, y, adapter, scratch, krn_cuda_bucket(rows));
}

static int cuda_project(void *ctx, const struct krn_product *products, int32_t n, const void *x, int32_t rows)
{
    struct krn_cuda_backend *b = ctx;
    int rc = krn_cuda_enter(b, rows);
    if (rc < 0)
        return rc;
    if (n < 0 || n > 3 || (n > 0 && !products))
        return krn_cuda_refuse_op(b, "project");
    return multiply(b, products, n, x, rows, false);
}

// Two products into scratch, then one step over both.
static int gated_apart(struct krn_cuda_backend *b, void *y, const void *x, const struct krn_tensor *gate,
                       const struct krn_tensor *up, int32_t rows, void *const scratch[2])
{
    const struct krn_product products[] = {{scratch[0], gate}, {scratch[1], up}};
    int32_t bucket = krn_cuda_bucket(rows);
    struct krn_cuda_step step = {
        .kind = KRN_STEP_SWIGLU,
        .as.swiglu = {.y = y, .rows = bucket, .width = gate->rows},
    };
    int rc = multiply(b, products, 2, x, rows, false);
    if (rc < 0)
        return rc;
    if (!krn_cuda_find_sums(b, scratch[0], bucket, gate->rows, &step.as.swiglu.gate) ||
        !krn_cuda_find_sums(b, scratch[1], bucket, gate->rows, &step.as.swiglu.up))
        return krn_cuda_refuse_op(b, "gated");
    return krn_cuda_issue(b, &step);
}

static int cuda_gated(void *ctx, void *y, const void *x, const struct krn_tensor *gate, const struct krn_tensor *up,
                      int32_t rows, void *const scratch[2])
{
    struct krn_cuda_backend *b = ctx;
    int rc = krn_cuda_enter(b, rows);
    if (rc < 0)
        return rc;
    int32_t bucket = krn_cuda_bucket(rows);
    if (!good_weight(gate) || !good_weight(up) || gate->rows != up->rows || gate->cols != up->cols || y == x ||
        !krn_cuda_find_input(b, x, bucket, gate->cols) || !krn_cuda_find_input(b, y, bucket, gate->rows) || !scratch ||
        scratch[0] == scratch[1])
        return krn_cuda_refuse_op(b, "gated");
    if (rows == 0)
        return 0;
    if (gate->type != up->type || for_library(b, bucket, gate))
        return gated_apart(b, y, x, gate, up, rows, scratch);
    struct krn_cuda_step step = {
        .kind = KRN_STEP_LINEAR,
        .as.linear = {.x = x,
                      .rows = bucket,
                      .cols = gate->cols,
                      .n = 2,
                      .w = {dev_weight(gate), dev_weight(up)},
                      .gated_y = y,
                      .scale = 1},
    };
    return krn_cuda_issue(b, &step);
}

static int cuda_head(void *ctx, float *logits, const void *x, const struct krn_tensor *w, int32_t rows)
{
    struct krn_cuda_backend *b = ctx;
    int rc = krn_cuda_enter(b, rows);
    if (rc < 0)
        return rc;
    int32_t bucket = krn_cuda_bucket(rows);
    if (!logits || !good_weight(w) || !krn_cuda_find_input(b, x, bucket, w->cols) || rows > b->limits.max_chunk)
        return krn_cuda_refuse_op(b, "head");
    if (rows == 0)
        return 0;
    rc = for_library(b, bucket, w) ? library_product(b, logits, x, w, bucket) : KRN_ENOTSUP;
    if (rc != KRN_ENOTSUP)
        return rc;
    struct krn_cuda_step step = {
        .kind = KRN_STEP_LINEAR,
        .as.linear = {.x = x,
                      .rows = bucket,
                      .cols = w->cols,
                      .n = 1,
                      .w = {dev_weight(w)},
                      .y = {{.data = logits, .n = 1, .width = w->rows}},
                      .scale = 1},
    };
    return krn_cuda_issue(b, &step);
}

void krn_cuda_products(struct krn_backend *backend)
{
    backend->linear = cuda_linear;
    backend->project = cuda_project;
    backend->gated = cuda_gated;
    backend->head = cuda_head;
}
