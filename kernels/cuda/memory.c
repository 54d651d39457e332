// Device memory of the backend: allocations by purpose, matrices of activations, weights on their way in.
//
// A weight travels in pieces of whole rows: mapped file -> pinned buffer -> device -> pack kernel -> its place. While a
// piece is copied and packed on the load stream, the next is read from the file into the other pinned buffer, so the
// slowest of disk, PCIe and the reading thread sets the pace. What needs no change of type or padding is copied
// straight to its place. Nothing here waits for the last piece: settle does, before the first pass.
//
// Matrices that products write hold several partial sums. How many depends on the weight's shape alone, which is not
// known when the matrix is allocated; so it gets room for what the widest product would need, and a product of another
// shape takes as many parts as fit: still a function of shapes, never of a pass.
//
// Leaves out graphs, which hold addresses: backend.c drops them before anything is released.
#include "memory.h"
#include "quant.h"

#include <stdlib.h>
#include <string.h>

// Of a pinned buffer: large enough for full speed, small beside the device.
enum { MOST_WIDTH = 1 << 24 };
enum { PIECE_BYTES_MOST = 32 << 20, PIECE_BYTES_LEAST = 64 << 10, PIECE_MEMORY_SHARE = 256 };

struct krn_cuda_block {
    struct krn_cuda_block *next;
    void *data;
    int64_t bytes;
    int32_t category;
};

void krn_cuda_memory_init(struct krn_cuda_memory *m, const struct krn_cuda_driver *driver)
{
    int64_t piece = driver->device.memory / PIECE_MEMORY_SHARE;
    piece = piece < PIECE_BYTES_LEAST ? PIECE_BYTES_LEAST : piece > PIECE_BYTES_MOST ? PIECE_BYTES_MOST : piece;
    *m = (struct krn_cuda_memory){.driver = driver, .piece_bytes = (size_t)piece};
}

// ---- allocations ----------------------------------------------------------------------------------------------------

// The last category takes what comes after the table is full.
static int32_t category_of(struct krn_cuda_memory *m, const char *purpose)
{
    for (int32_t i = 0; i < m->n_categories; i++)
        if (strcmp(m->categories[i].name, purpose) == 0)
            return i;
    if (m->n_categories == KRN_MEMORY_CATEGORIES)
        return KRN_MEMORY_CATEGORIES - 1;
    m->categories[m->n_categories] =
        (struct krn_memory_category){.name = m->n_categories == KRN_MEMORY_CATEGORIES - 1 ? "other" : purpose};
    return m->n_categories++;
}

int krn_cuda_memory_alloc(struct krn_cuda_memory *m, size_t bytes, const char *purpose, bool zero, void **ret)
{
    const struct krn_cuda_driver *d = m->driver;
    if (bytes > PTRDIFF_MAX)
        return KRN_ENOMEM;
    bytes = bytes ? bytes : 1;
    struct krn_cuda_block *block = calloc(1, sizeof *block);
    if (!block)
        return KRN_ENOMEM;
    int rc = d->alloc(d->ctx, bytes, &block->data);
    if (rc < 0) {
        free(block);
        return rc;
    }
    if (zero && (rc = d->fill(d->ctx, d->stream, block->data, 0, bytes)) < 0) {
        d->release(d->ctx, block->data);
        free(block);
        return rc;
    }
    block->bytes = (int64_t)bytes;
    block->category = category_of(m, purpose);
    block->next = m->blocks;
    m->blocks = block;
    m->categories[block->category].bytes += block->bytes;
    *ret = block->data;
    return 0;
}

void krn_cuda_memory_release(struct krn_cuda_memory *m, void *ptr)
{
    if (!ptr)
        return;
    for (int32_t i = 0; i < m->n_rows; i++)
        if (m->rows[i].data == ptr) {
            m->rows[i] = m->rows[--m->n_rows];
            break;
        }
    for (struct krn_cuda_block **at = &m->blocks; *at; at = &(*at)->next)
        if ((*at)->data == ptr) {
            struct krn_cuda_block *block = *at;
            *at = block->next;
            m->categories[block->category].bytes -= block->bytes;
            m->driver->release(m->driver->ctx, block->data);
            free(block);
            return;
        }
}

// ---- activations ----------------------------------------------------------------------------------------------------

// The most parts that a product of this width is cut into: a deeper weight is never cut into fewer.
static int32_t most_sums(int32_t width)
{
    int32_t n = krn_cuda_linear_sums(width, 1 << 20);
    return n < KRN_LINEAR_SUMS_MAX ? n : KRN_LINEAR_SUMS_MAX;
}

int krn_cuda_memory_alloc_rows(struct krn_cuda_memory *m, enum krn_rows_kind kind, int32_t rows, int32_t width,
                               const char *purpose, void **ret)
{
    if (rows < 0 || rows > INT32_MAX - KRN_ROW_TILE || width <= 0 || width > MOST_WIDTH ||
        m->n_rows == KRN_CUDA_ROWS_MAX)
        return KRN_EINVAL;
    int64_t tall = rows > 0 ? KRN_PAD_TO(rows, KRN_ROW_TILE) : KRN_ROW_TILE, bytes, elements;
    bool too_large;
    if (kind == KRN_ROWS_INPUT) {
        too_large = __builtin_mul_overflow(tall, (int64_t)KRN_PAD(width), &elements) ||
                    __builtin_mul_overflow(elements, (int64_t)sizeof(uint16_t), &bytes);
    } else {
        // One matrix more than the parts: the adapter's addition stands apart from them.
        int64_t matrices = kind == KRN_ROWS_OUTPUT ? most_sums(width) + 1 : 1;
        too_large = __builtin_mul_overflow(tall * matrices, (int64_t)width, &elements) ||
                    __builtin_mul_overflow(elements, (int64_t)sizeof(float), &bytes);
    }
    if (too_large)
        return KRN_ENOMEM;
    int rc = krn_cuda_memory_alloc(m, (size_t)bytes, purpose, true, ret);
    if (rc < 0)
        return rc;
    m->rows[m->n_rows++] =
        (struct krn_cuda_rows){.data = *ret, .kind = kind, .rows = (int32_t)tall, .elements = elements};
    return 0;
}

struct krn_cuda_rows *krn_cuda_memory_rows(struct krn_cuda_memory *m, const void *data, enum krn_rows_kind kind)
{
    for (int32_t i = 0; i < m->n_rows; i++)
        if (m->rows[i].data == data && m->rows[i].kind == kind)
            return &m->rows[i];
    return NULL;
}

// ---- weights --------------------------------------------------------------------------------------------------------

// Bytes of the elements and of the scales in device memory.
static void weight_bytes(enum krn_type type, int32_t rows, int32_t cols, int64_t *ret_data, int64_t *ret_scales)
{
    int64_t elements = (int64_t)rows * krn_weight_stride(type, cols);
    *ret_scales = 0;
    switch (type) {
    case KRN_FP8:
        *ret_data = elements;
        *ret_scales = (int64_t)rows * (int64_t)sizeof(float);
        break;
    case KRN_Q4:
        *ret_data = elements / 2;
        *ret_scales = elements / KRN_Q4_GROUP * 2;
        break;
    default:
        *ret_data = elements * (type == KRN_BF16 ? 2 : 4);
    }
}

static int loader_open(struct krn_cuda_memory *m)
{
    const struct krn_cuda_driver *d = m->driver;
    struct krn_cuda_loader *l = &m->loader;
    for (int i = 0; i < 2; i++) {
        int rc = 0;
        if ((!l->pinned[i] && (rc = d->host_alloc(d->ctx, m->piece_bytes, &l->pinned[i])) < 0) ||
            (!l->copied[i] && (rc = d->event_new(d->ctx, &l->copied[i])) < 0))
            return rc;
    }
    return 0;
}

// Device memory for pieces that must be packed; copies to their place need none.
static int loader_open_device(struct krn_cuda_memory *m)
{
    for (int i = 0; i < 2; i++) {
        int rc;
        if (!m->loader.device[i] &&
            (rc = krn_cuda_memory_alloc(m, m->piece_bytes, "loading", false, &m->loader.device[i])) < 0)
            return rc;
    }
    return 0;
}

static void loader_close(struct krn_cuda_memory *m)
{
    const struct krn_cuda_driver *d = m->driver;
    struct krn_cuda_loader *l = &m->loader;
    for (int i = 0; i < 2; i++) {
        if (l->pinned[i])
            d->host_release(d->ctx, l->pinned[i]);
        if (l->copied[i])
            d->event_free(d->ctx, l->copied[i]);
        krn_cuda_memory_release(m, l->device[i]);
    }
    *l = (struct krn_cuda_loader){0};
}

// Brings the next piece into a pinned buffer and from there to `dst` (NULL: to the loader's own device buffer, whose
// address is returned in *ret_at). The buffer is free as soon as its copy was done, whatever reads the device's side.
static int send_piece(struct krn_cuda_memory *m, void *dst, const void *host, size_t bytes, const void **ret_at)
{
    const struct krn_cuda_driver *d = m->driver;
    struct krn_cuda_loader *l = &m->loader;
    int i = l->next, rc = 0;
    if (l->used[i] && (rc = d->event_wait(d->ctx, l->copied[i])) < 0)
        return rc;
    l->used[i] = false;
    memcpy(l->pinned[i], host, bytes);
    void *to = dst ? dst : l->device[i];
    if ((rc = d->copy_in(d->ctx, d->load_stream, to, l->pinned[i], bytes)) < 0)
        return rc;
    m->loading = true;
    if ((rc = d->event_record(d->ctx, l->copied[i], d->load_stream)) < 0)
        return rc;
    l->used[i] = true;
    l->next = 1 - i;
    *ret_at = to;
    return 0;
}

static int send_straight(struct krn_cuda_memory *m, void *dst, const void *host, int64_t bytes)
{
    int64_t most = (int64_t)m->piece_bytes;
    int rc = 0;
    for (int64_t at = 0, piece; rc == 0 && at < bytes; at += piece) {
        const void *ignored;
        piece = bytes - at < most ? bytes - at : most;
        rc = send_piece(m, (char *)dst + at, (const char *)host + at, (size_t)piece, &ignored);
    }
    return rc;
}

static int send_and_pack(struct krn_cuda_memory *m, const struct krn_tensor *host, enum krn_type type, void *data,
                         void *scales)
{
    int64_t row_bytes = (int64_t)host->cols * (int64_t)krn_type_size(host->type);
    int64_t step = (int64_t)m->piece_bytes / row_bytes;
    if (step == 0)
        return KRN_EINVAL;
    int rc = loader_open_device(m);
    for (int64_t row = 0; rc == 0 && row < host->rows; row += step) {
        int64_t rows = host->rows - row < step ? host->rows - row : step;
        struct krn_pack_args pack = {
            .from_f32 = host->type == KRN_F32,
            .first = (int32_t)row,
            .rows = (int32_t)rows,
            .cols = host->cols,
            .type = (int32_t)type,
            .data = data,
            .scales = scales,
            .stride = krn_weight_stride(type, host->cols),
        };
        rc = send_piece(m, NULL, (const char *)host->data + row * row_bytes, (size_t)(rows * row_bytes), &pack.from);
        if (rc == 0)
            rc = krn_cuda_pack((struct krn_cuda_launch){.stream = m->driver->load_stream}, &pack);
    }
    return rc;
}

int krn_cuda_memory_import(struct krn_cuda_memory *m, const struct krn_tensor *host, enum krn_type type,
                           struct krn_tensor *ret)
{
    if (!host || !host->data || host->rows <= 0 || host->cols <= 0)
        return KRN_EINVAL;
    bool vector = host->rows == 1;
    if ((host->type != KRN_F32 && host->type != KRN_BF16) || type > KRN_Q4 || (type == KRN_F32 && !vector))
        return KRN_ENOTSUP;
    int64_t data_bytes, scale_bytes;
    weight_bytes(type, host->rows, host->cols, &data_bytes, &scale_bytes);
    int64_t scales_at = KRN_PAD_TO(data_bytes, 256);
    void *data = NULL;
    int rc = loader_open(m);
    if (rc == 0)
        rc = krn_cuda_memory_alloc(m, (size_t)(scale_bytes ? scales_at + scale_bytes : data_bytes), "weights", false,
                                   &data);
    if (rc < 0)
        return rc;
    void *scales = scale_bytes ? (char *)data + scales_at : NULL;
    bool same = host->type == type && krn_weight_stride(type, host->cols) == host->cols;
    rc = same ? send_straight(m, data, host->data, data_bytes) : send_and_pack(m, host, type, data, scales);
    if (rc < 0) {
        krn_cuda_memory_settle(m);
        krn_cuda_memory_release(m, data);
        return rc;
    }
    *ret = (struct krn_tensor){.data = data, .type = type, .rows = host->rows, .cols = host->cols, .scales = scales};
    return 0;
}

int krn_cuda_memory_settle(struct krn_cuda_memory *m)
{
    if (!m->loading)
        return 0;
    m->loading = false;
    m->loader.used[0] = m->loader.used[1] = false;
    return m->driver->sync(m->driver->ctx, m->driver->load_stream);
}

int krn_cuda_memory_end_loading(struct krn_cuda_memory *m)
{
    int rc = krn_cuda_memory_settle(m);
    loader_close(m);
    return rc;
}

// ---- copies ---------------------------------------------------------------------------------------------------------

// Through the loader's first pinned buffer, piece by piece. in: to the device, else from it.
static int copy_pieces(struct krn_cuda_memory *m, char *device, char *host, size_t bytes, bool in)
{
    const struct krn_cuda_driver *d = m->driver;
    int rc = krn_cuda_memory_settle(m);
    if (rc < 0 || (rc = loader_open(m)) < 0)
        return rc;
    char *pinned = m->loader.pinned[0];
    for (size_t at = 0, piece; rc == 0 && at < bytes; at += piece) {
        piece = bytes - at < m->piece_bytes ? bytes - at : m->piece_bytes;
        if (in)
            memcpy(pinned, host + at, piece);
        rc = in ? d->copy_in(d->ctx, d->stream, device + at, pinned, piece)
                : d->copy_out(d->ctx, d->stream, pinned, device + at, piece);
        int synced = d->sync(d->ctx, d->stream); // the buffer is used again
        rc = rc < 0 ? rc : synced;
        if (rc == 0 && !in)
            memcpy(host + at, pinned, piece);
    }
    return rc;
}

int krn_cuda_memory_upload(struct krn_cuda_memory *m, void *dst, const void *host, size_t bytes)
{
    return copy_pieces(m, dst, (char *)(uintptr_t)host, bytes, true);
}

int krn_cuda_memory_download(struct krn_cuda_memory *m, void *host, const void *src, size_t bytes)
{
    return copy_pieces(m, (char *)(uintptr_t)src, host, bytes, false);
}

void krn_cuda_memory_done(struct krn_cuda_memory *m)
{
    if (!m->driver)
        return;
    loader_close(m);
    while (m->blocks)
        krn_cuda_memory_release(m, m->blocks->data);
    *m = (struct krn_cuda_memory){0};
}
