// What a composite backend gives out: buffers, weights and KV stores, each a handle with a part for every child.
//
// A weight is cut on the host, before a child sees it: by outputs its rows are handed over where they lie, by inputs a
// child's columns are copied together first, one matrix at a time. Such a copy is freed at once unless the child reads
// weights where they are, as the CPU does. Leaves out quantised files: children quantise their own part.
#include "tensor_parallel_inner.h"

#include <stdlib.h>
#include <string.h>

// ---- handles --------------------------------------------------------------------------------------------------------

static void link_handle(struct krn_tp *tp, struct krn_tp_handle *handle, enum krn_tp_kind kind)
{
    handle->kind = kind;
    handle->next = tp->handles;
    handle->prev_next = &tp->handles;
    if (handle->next)
        handle->next->prev_next = &handle->next;
    tp->handles = handle;
}

static void free_handle(struct krn_tp_handle *handle)
{
    *handle->prev_next = handle->next;
    if (handle->next)
        handle->next->prev_next = handle->prev_next;
    for (int32_t d = 0; d < KRN_TENSOR_PARALLEL_MAX; d++)
        free(handle->copies[d]);
    free(handle);
}

void krn_tp_free_handles(struct krn_tp *tp)
{
    while (tp->handles)
        free_handle(tp->handles);
}

// ---- buffers --------------------------------------------------------------------------------------------------------

void krn_tp_release(void *ctx, void *ptr)
{
    struct krn_tp *tp = ctx;
    struct krn_tp_buffer *buffer = ptr;
    if (!buffer)
        return;
    for (int32_t d = 0; d < tp->n; d++) {
        struct krn_backend *child = tp->children[d];
        if (buffer->parts[d])
            child->release(child->ctx, buffer->parts[d]);
    }
    free_handle(&buffer->handle);
}

static struct krn_tp_buffer *buffer_new(struct krn_tp *tp)
{
    struct krn_tp_buffer *buffer = calloc(1, sizeof *buffer);
    if (buffer)
        link_handle(tp, &buffer->handle, KRN_TP_BUFFER);
    return buffer;
}

void *krn_tp_alloc(void *ctx, size_t bytes, const char *purpose)
{
    struct krn_tp *tp = ctx;
    struct krn_tp_buffer *buffer = buffer_new(tp);
    for (int32_t d = 0; buffer && d < tp->n; d++) {
        struct krn_backend *child = tp->children[d];
        buffer->parts[d] = child->alloc(child->ctx, bytes, purpose);
        if (!buffer->parts[d]) {
            krn_tp_release(tp, buffer);
            return NULL;
        }
    }
    return buffer;
}

void *krn_tp_alloc_rows(void *ctx, enum krn_rows_kind kind, int32_t rows, int32_t width, const char *purpose)
{
    struct krn_tp *tp = ctx;
    struct krn_tp_buffer *buffer = buffer_new(tp);
    for (int32_t d = 0; buffer && d < tp->n; d++) {
        struct krn_backend *child = tp->children[d];
        buffer->parts[d] = child->alloc_rows(child->ctx, kind, rows, width, purpose);
        if (!buffer->parts[d]) {
            krn_tp_release(tp, buffer);
            return NULL;
        }
    }
    return buffer;
}

// Every device gets all of it: what is uploaded is small and the same for all.
int krn_tp_upload(void *ctx, void *dst, const void *host, size_t bytes)
{
    struct krn_tp *tp = ctx;
    struct krn_tp_buffer *buffer = dst;
    for (int32_t d = 0; d < tp->n; d++) {
        struct krn_backend *child = tp->children[d];
        int rc = child->upload(child->ctx, buffer ? buffer->parts[d] : NULL, host, bytes);
        if (rc < 0)
            return krn_tp_child_failed(tp, d, rc);
    }
    return 0;
}

// Whole matrices only, which are the same everywhere.
int krn_tp_download(void *ctx, void *host, const void *src, size_t bytes)
{
    struct krn_tp *tp = ctx;
    const struct krn_tp_buffer *buffer = src;
    struct krn_backend *child = tp->children[0];
    int rc = child->download(child->ctx, host, buffer ? buffer->parts[0] : NULL, bytes);
    return rc < 0 ? krn_tp_child_failed(tp, 0, rc) : rc;
}

// ---- weights --------------------------------------------------------------------------------------------------------

void krn_tp_drop_weights(void *ctx, struct krn_tensor *tensor)
{
    struct krn_tp *tp = ctx;
    struct krn_tp_weight *weight = (void *)(uintptr_t)tensor->data;
    if (!weight)
        return;
    for (int32_t d = 0; d < tp->n; d++) {
        struct krn_backend *child = tp->children[d];
        if (weight->parts[d].data)
            child->drop_weights(child->ctx, &weight->parts[d]);
    }
    free_handle(&weight->handle);
    *tensor = (struct krn_tensor){0};
}

// Part d of the host's matrix. By inputs it is a copy, which *ret_copy owns.
static int cut(const struct krn_tp *tp, const struct krn_tensor *host, enum krn_split split, int32_t d,
               struct krn_tensor *ret, void **ret_copy)
{
    size_t size = krn_type_size(host->type), row = (size_t)host->cols * size;
    *ret = *host;
    if (split == KRN_SPLIT_OUTPUTS) {
        ret->rows = host->rows / tp->n;
        ret->data = (const char *)host->data + (size_t)d * (size_t)ret->rows * row;
    } else if (split == KRN_SPLIT_INPUTS) {
        ret->cols = host->cols / tp->n;
        size_t part = (size_t)ret->cols * size;
        char *copy = malloc((size_t)host->rows * part);
        if (!copy)
            return KRN_ENOMEM;
        for (int32_t r = 0; r < host->rows; r++)
            memcpy(copy + (size_t)r * part, (const char *)host->data + (size_t)r * row + (size_t)d * part, part);
        ret->data = *ret_copy = copy;
    }
    return 0;
}

static int import_part(struct krn_tp *tp, struct krn_tp_weight *weight, const struct krn_tensor *host,
                       enum krn_type type, int32_t d)
{
    struct krn_tensor part;
    struct krn_backend *child = tp->children[d];
    int rc = cut(tp, host, weight->split, d, &part, &weight->handle.copies[d]);
    if (rc < 0)
        return krn_tp_fail(tp, rc, "no memory on the host for a part of a matrix of [%d, %d]", host->rows, host->cols);
    rc = child->import_weights(child->ctx, &part, type, KRN_SPLIT_NONE, &weight->parts[d]);
    if (rc < 0)
        return krn_tp_child_failed(tp, d, rc);
    if (weight->parts[d].data != weight->handle.copies[d]) {
        free(weight->handle.copies[d]);
        weight->handle.copies[d] = NULL;
    }
    return 0;
}

int krn_tp_import_weights(void *ctx, const struct krn_tensor *host, enum krn_type type, enum krn_split split,
                          struct krn_tensor *ret)
{
    struct krn_tp *tp = ctx;
    int32_t n = tp->n;
    if (!host->data || host->rows <= 0 || host->cols <= 0)
        return krn_tp_fail(tp, KRN_EINVAL, "a weight matrix is empty");
    if (split != KRN_SPLIT_NONE && host->type != KRN_F32 && host->type != KRN_BF16)
        return krn_tp_fail(tp, KRN_ENOTSUP, "a matrix of type %s in the file cannot be divided among devices",
                           krn_type_name(host->type));
    if ((split == KRN_SPLIT_OUTPUTS && host->rows % n != 0) || (split == KRN_SPLIT_INPUTS && host->cols % n != 0))
        return krn_tp_fail(tp, KRN_ENOTSUP, "a matrix of %d %s cannot be divided among %d devices",
                           split == KRN_SPLIT_OUTPUTS ? host->rows : host->cols,
                           split == KRN_SPLIT_OUTPUTS ? "outputs" : "inputs", n);
    struct krn_tp_weight *weight = calloc(1, sizeof *weight);
    if (!weight)
        return krn_tp_fail(tp, KRN_ENOMEM, "no memory on the host for a weight matrix");
    weight->split = split;
    weight->outputs = host->rows;
    link_handle(tp, &weight->handle, KRN_TP_WEIGHT);
    struct krn_tensor taken = {.data = weight, .rows = host->rows, .cols = host->cols};
    for (int32_t d = 0; d < n; d++) {
        int rc = import_part(tp, weight, host, type, d);
        if (rc < 0) {
            krn_tp_drop_weights(tp, &taken);
            return rc;
        }
    }
    taken.type = weight->parts[0].type;
    *ret = taken;
    return 0;
}

bool krn_tp_has_split(const struct krn_tp *tp, int32_t outputs)
{
    for (const struct krn_tp_handle *handle = tp->handles; handle; handle = handle->next) {
        const struct krn_tp_weight *weight = (const void *)handle;
        if (handle->kind == KRN_TP_WEIGHT && weight->split == KRN_SPLIT_OUTPUTS && weight->outputs == outputs)
            return true;
    }
    return false;
}

enum krn_type krn_tp_weights_type(void *ctx, enum krn_type file_type)
{
    struct krn_tp *tp = ctx;
    return tp->children[0]->weights_type(tp->children[0]->ctx, file_type);
}

// ---- the KV store ---------------------------------------------------------------------------------------------------

// Heads that do not divide are refused by kv_open; until then every device counts as having the larger part.
int64_t krn_tp_kv_page_bytes(void *ctx, const struct krn_kv *kv)
{
    struct krn_tp *tp = ctx;
    struct krn_kv part = *kv;
    part.n_kv_heads = (kv->n_kv_heads + tp->n - 1) / tp->n;
    int64_t bytes = tp->children[0]->kv_page_bytes(tp->children[0]->ctx, &part);
    return bytes < 0 ? krn_tp_child_failed(tp, 0, (int)bytes) : bytes * tp->n;
}

void krn_tp_kv_close(void *ctx, struct krn_kv *kv)
{
    struct krn_tp *tp = ctx;
    struct krn_tp_kv *store = kv->k;
    if (!store)
        return;
    for (int32_t d = 0; d < tp->n; d++) {
        struct krn_backend *child = tp->children[d];
        if (store->parts[d].k)
            child->kv_close(child->ctx, &store->parts[d]);
    }
    free_handle(&store->handle);
    kv->k = kv->v = NULL;
}

int krn_tp_kv_open(void *ctx, struct krn_kv *kv)
{
    struct krn_tp *tp = ctx;
    if (kv->n_kv_heads % tp->n != 0)
        return krn_tp_fail(tp, KRN_ENOTSUP, "%d kv heads cannot be divided among %d devices", kv->n_kv_heads, tp->n);
    struct krn_tp_kv *store = calloc(1, sizeof *store);
    if (!store)
        return krn_tp_fail(tp, KRN_ENOMEM, "no memory on the host for the KV store");
    link_handle(tp, &store->handle, KRN_TP_KV);
    struct krn_kv opened = *kv;
    opened.k = opened.v = store;
    opened.k_scales = opened.v_scales = NULL;
    for (int32_t d = 0; d < tp->n; d++) {
        struct krn_kv part = *kv;
        part.n_kv_heads = kv->n_kv_heads / tp->n;
        struct krn_backend *child = tp->children[d];
        int rc = child->kv_open(child->ctx, &part);
        if (rc < 0) {
            krn_tp_kv_close(tp, &opened);
            return krn_tp_child_failed(tp, d, rc);
        }
        store->parts[d] = part;
    }
    opened.type = store->parts[0].type;
    *kv = opened;
    return 0;
}

// ---- the memory table -----------------------------------------------------------------------------------------------

static void add_category(struct krn_memory *sum, const struct krn_memory_category *category)
{
    int32_t i = 0;
    while (i < sum->n_categories && strcmp(sum->categories[i].name, category->name) != 0)
        i++;
    if (i == KRN_MEMORY_CATEGORIES)
        i--;
    if (i == sum->n_categories)
        sum->categories[sum->n_categories++] = (struct krn_memory_category){.name = category->name};
    sum->categories[i].bytes += category->bytes;
}

// Sums, but what is free counts n times as much as on the device that has least: all get the same KV pages.
void krn_tp_memory(void *ctx, struct krn_memory *ret)
{
    struct krn_tp *tp = ctx;
    struct krn_memory sum = {0};
    for (int32_t d = 0; d < tp->n; d++) {
        struct krn_memory one = {0};
        struct krn_backend *child = tp->children[d];
        child->memory(child->ctx, &one);
        sum.total += one.total;
        sum.free = d == 0 || one.free < sum.free ? one.free : sum.free;
        sum.reserve = one.reserve > sum.reserve ? one.reserve : sum.reserve;
        for (int32_t i = 0; i < one.n_categories; i++)
            add_category(&sum, &one.categories[i]);
    }
    sum.free *= tp->n;
    sum.reserve *= tp->n;
    *ret = sum;
}
