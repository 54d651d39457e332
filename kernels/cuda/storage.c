// The CUDA backend's memory as the engine asks for it: buffers, weights, the KV store, the table for people.
//
// Memory may only go away when nothing uses it: a release waits for the device and throws the graphs away, since they
// hold addresses. That is no loss: buffers live as long as the model.
#include "backend.h"

// Device memory that is left alone beside what was measured: kernels that are loaded when first launched, ours and the
// library's.
enum { MARGIN_BYTES = 256 << 20 };

// ---- buffers --------------------------------------------------------------------------------------------------------

void krn_cuda_let_go(struct krn_cuda_backend *b)
{
    b->backend.abandon(b); // a pass that is being recorded would keep the address
    if (!b->failed)
        krn_cuda_checked(b, b->driver.sync(b->driver.ctx, b->driver.stream));
    krn_cuda_graphs_drop(&b->graphs);
    if (!b->failed)
        krn_cuda_checked(b, krn_cuda_memory_settle(&b->memory));
}

// Memory comes and goes between passes only.
static int between_passes(struct krn_cuda_backend *b)
{
    if (b->failed)
        return b->failed;
    if (b->state == KRN_CUDA_IDLE)
        return 0;
    return krn_cuda_refuse(b, KRN_EINVAL, "memory is asked for or copied inside a pass");
}

static void *cuda_alloc(void *ctx, size_t bytes, const char *purpose)
{
    struct krn_cuda_backend *b = ctx;
    void *ptr = NULL;
    if (between_passes(b) == 0)
        krn_cuda_checked(b, krn_cuda_memory_alloc(&b->memory, bytes, purpose, true, &ptr));
    return ptr;
}

static void cuda_release(void *ctx, void *ptr)
{
    struct krn_cuda_backend *b = ctx;
    if (!ptr)
        return;
    krn_cuda_let_go(b);
    krn_cuda_memory_release(&b->memory, ptr);
}

static void *cuda_alloc_rows(void *ctx, enum krn_rows_kind kind, int32_t rows, int32_t width, const char *purpose)
{
    struct krn_cuda_backend *b = ctx;
    void *ptr = NULL;
    if (between_passes(b) == 0)
        krn_cuda_checked(b, krn_cuda_memory_alloc_rows(&b->memory, kind, rows, width, purpose, &ptr));
    return ptr;
}

static int cuda_import_weights(void *ctx, const struct krn_tensor *host, enum krn_type type, enum krn_split split,
                               struct krn_tensor *ret)
{
    struct krn_cuda_backend *b = ctx;
    (void)split; // one device has everything
    int rc = between_passes(b);
    if (rc < 0)
        return rc;
    rc = krn_cuda_memory_import(&b->memory, host, type, ret);
    if (rc == KRN_ENOTSUP)
        return krn_cuda_refuse(b, rc, "the cuda backend does not take this matrix as %s", krn_type_name(type));
    return krn_cuda_checked(b, rc);
}

static void cuda_drop_weights(void *ctx, struct krn_tensor *tensor)
{
    cuda_release(ctx, (void *)(uintptr_t)tensor->data); // the scales are in the same allocation
    *tensor = (struct krn_tensor){0};
}

static enum krn_type cuda_weights_type(void *ctx, enum krn_type file_type)
{
    (void)ctx;
    return file_type == KRN_F32 ? KRN_BF16 : file_type;
}

static int kv_bytes(const struct krn_kv *kv, int64_t *ret_values, int64_t *ret_scales)
{
    if (kv->type != KRN_N_TYPES && kv->type != KRN_BF16 && kv->type != KRN_FP8)
        return KRN_ENOTSUP;
    if (kv->head_dim <= 0 || kv->head_dim > 128 || kv->head_dim % 2 != 0)
        return KRN_ENOTSUP;
    if (kv->n_layers <= 0 || kv->page_size <= 0 || kv->n_kv_heads <= 0)
        return KRN_EINVAL;
    bool fp8 = kv->type == KRN_FP8;
    int64_t vectors = (int64_t)kv->n_layers * kv->page_size * kv->n_kv_heads;
    *ret_values = vectors * KRN_KV_DIM(kv->head_dim) * (fp8 ? 1 : 2);
    *ret_scales = fp8 ? vectors * (int64_t)sizeof(float) : 0;
    return 0;
}

static int64_t cuda_kv_page_bytes(void *ctx, const struct krn_kv *kv)
{
    struct krn_cuda_backend *b = ctx;
    int64_t values = 0, scales = 0;
    int rc = kv_bytes(kv, &values, &scales);
    if (rc < 0)
        return krn_cuda_refuse(b, rc, "no KV store of type %s with %d elements a head on cuda",
                               kv->type < KRN_N_TYPES ? krn_type_name(kv->type) : "auto", kv->head_dim);
    return 2 * (values + scales);
}

static void cuda_kv_close(void *ctx, struct krn_kv *kv)
{
    struct krn_cuda_backend *b = ctx;
    void *const parts[] = {kv->k, kv->v, kv->k_scales, kv->v_scales};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        cuda_release(ctx, parts[i]);
    kv->k = kv->v = NULL;
    kv->k_scales = kv->v_scales = NULL;
    b->passes.page_size = b->passes.n_pages = 0;
}

static int cuda_kv_open(void *ctx, struct krn_kv *kv)
{
    struct krn_cuda_backend *b = ctx;
    int64_t values = 0, scales = 0;
    if (b->failed)
        return b->failed;
    if (b->passes.n_pages > 0)
        return krn_cuda_refuse(b, KRN_EINVAL, "there is a KV store already");
    int64_t page = cuda_kv_page_bytes(ctx, kv);
    if (page < 0)
        return (int)page;
    if (kv->n_pages <= 0 || page > INT64_MAX / kv->n_pages)
        return krn_cuda_refuse(b, KRN_EINVAL, "a KV store of %d pages is out of range", kv->n_pages);
    kv_bytes(kv, &values, &scales);
    kv->k = kv->v = NULL;
    kv->k_scales = kv->v_scales = NULL;
    kv->k = cuda_alloc(ctx, (size_t)(values * kv->n_pages), "kv");
    kv->v = kv->k ? cuda_alloc(ctx, (size_t)(values * kv->n_pages), "kv") : NULL;
    if (kv->v && scales > 0) {
        kv->k_scales = cuda_alloc(ctx, (size_t)(scales * kv->n_pages), "kv");
        kv->v_scales = kv->k_scales ? cuda_alloc(ctx, (size_t)(scales * kv->n_pages), "kv") : NULL;
    }
    if (!kv->v || (scales > 0 && !kv->v_scales)) {
        cuda_kv_close(ctx, kv);
        return b->failed ? b->failed : KRN_ENOMEM;
    }
    if (kv->type == KRN_N_TYPES)
        kv->type = KRN_BF16;
    b->passes.page_size = kv->page_size;
    b->passes.n_pages = kv->n_pages;
    return 0;
}

static void cuda_memory(void *ctx, struct krn_memory *ret)
{
    struct krn_cuda_backend *b = ctx;
    const struct krn_cuda_memory *m = &b->memory;
    *ret = (struct krn_memory){0};
    if (b->driver.memory(b->driver.ctx, &ret->free, &ret->total) < 0)
        ret->free = ret->total = 0;
    int32_t graphs = b->graphs.disabled ? 0 : b->graphs.most - b->graphs.n;
    ret->reserve = MARGIN_BYTES + graphs * b->graph_bytes;
    for (int32_t i = 0; i < m->n_categories; i++)
        if (m->categories[i].bytes > 0)
            ret->categories[ret->n_categories++] = m->categories[i];
    if (b->driver.device.workspace > 0 && ret->n_categories < KRN_MEMORY_CATEGORIES)
        ret->categories[ret->n_categories++] =
            (struct krn_memory_category){"library workspace", b->driver.device.workspace};
}

static int cuda_upload(void *ctx, void *dst, const void *host, size_t bytes)
{
    struct krn_cuda_backend *b = ctx;
    int rc = between_passes(b);
    return rc < 0 ? rc : krn_cuda_checked(b, krn_cuda_memory_upload(&b->memory, dst, host, bytes));
}

static int cuda_download(void *ctx, void *host, const void *src, size_t bytes)
{
    struct krn_cuda_backend *b = ctx;
    int rc = between_passes(b);
    return rc < 0 ? rc : krn_cuda_checked(b, krn_cuda_memory_download(&b->memory, host, src, bytes));
}

void krn_cuda_storage(struct krn_backend *backend)
{
    backend->alloc = cuda_alloc;
    backend->release = cuda_release;
    backend->alloc_rows = cuda_alloc_rows;
    backend->import_weights = cuda_import_weights;
    backend->drop_weights = cuda_drop_weights;
    backend->weights_type = cuda_weights_type;
    backend->kv_page_bytes = cuda_kv_page_bytes;
    backend->kv_open = cuda_kv_open;
    backend->kv_close = cuda_kv_close;
    backend->memory = cuda_memory;
    backend->upload = cuda_upload;
    backend->download = cuda_download;
}
