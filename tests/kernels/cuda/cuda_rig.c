// See cuda_rig.h. All copies go through one pinned buffer and are waited for: simple, and right on both drivers.
#include "cuda_rig.h"

#include <stdio.h>

#ifndef CUDA_RIG_DEVICE
#include "fake_driver.h"
#endif

enum { STAGING_BYTES = 1 << 20, ATTENTION_SLOTS = 4096, SKIPPED = 77 };

void rig_open(struct cuda_rig *rig)
{
    *rig = (struct cuda_rig){0};
#ifdef CUDA_RIG_DEVICE
    char err[256] = "";
    if (krn_cuda_driver_open(0, &rig->driver, err, sizeof err) != 0) {
        printf("1..0 # SKIP %s\n", err);
        exit(SKIPPED);
    }
#else
    if (fake_driver_open(NULL, &rig->driver) != 0)
        abort();
    rig->emulated = true;
#endif
    rig->how = (struct krn_cuda_launch){.stream = rig->driver.stream, .overlap = rig->driver.device.major >= 9};
}

void rig_close(struct cuda_rig *rig)
{
    rig->driver.close(rig->driver.ctx);
}

void rig_must(struct cuda_rig *rig, int rc, const char *what)
{
    if (rc == 0)
        return;
    printf("Bail out! %s: %s (%s)\n", what, krn_strerror(rc), rig->driver.error(rig->driver.ctx));
    exit(1);
}

// ---- memory ---------------------------------------------------------------------------------------------------------

void *rig_alloc(struct cuda_rig *rig, size_t bytes)
{
    const struct krn_cuda_driver *d = &rig->driver;
    void *device = NULL;
    rig_must(rig, d->alloc(d->ctx, bytes, &device), "alloc");
    rig_must(rig, d->fill(d->ctx, d->stream, device, 0xff, bytes), "fill");
    return device;
}

// One direction: in when device_to is given, else out.
static void copy(struct cuda_rig *rig, void *device_to, const void *device_from, void *host_to, const void *host_from,
                 size_t bytes)
{
    const struct krn_cuda_driver *d = &rig->driver;
    void *staging = NULL;
    rig_must(rig, d->host_alloc(d->ctx, STAGING_BYTES, &staging), "host_alloc");
    for (size_t done = 0, n; done < bytes; done += n) {
        n = bytes - done < STAGING_BYTES ? bytes - done : STAGING_BYTES;
        if (device_to) {
            memcpy(staging, (const char *)host_from + done, n);
            rig_must(rig, d->copy_in(d->ctx, d->stream, (char *)device_to + done, staging, n), "copy_in");
        } else {
            rig_must(rig, d->copy_out(d->ctx, d->stream, staging, (const char *)device_from + done, n), "copy_out");
        }
        rig_must(rig, d->sync(d->ctx, d->stream), "sync");
        if (!device_to)
            memcpy((char *)host_to + done, staging, n);
    }
    d->host_release(d->ctx, staging);
}

void *rig_upload(struct cuda_rig *rig, const void *host, size_t bytes)
{
    void *device = rig_alloc(rig, bytes);
    copy(rig, device, NULL, NULL, host, bytes);
    return device;
}

void rig_write(struct cuda_rig *rig, void *device, const void *host, size_t bytes)
{
    copy(rig, device, NULL, NULL, host, bytes);
}

void rig_read(struct cuda_rig *rig, void *host, const void *device, size_t bytes)
{
    copy(rig, NULL, device, host, NULL, bytes);
}

void rig_free(struct cuda_rig *rig, void *device)
{
    const struct krn_cuda_driver *d = &rig->driver;
    rig_must(rig, d->sync(d->ctx, d->stream), "sync");
    d->release(d->ctx, device);
}

void rig_report(struct cuda_rig *rig, bool ok, const char *what)
{
    rig->n_checks++;
    rig->n_failures += !ok;
    printf("%s %d - %s\n", ok ? "ok" : "not ok", rig->n_checks, what);
    fflush(stdout);
}

// ---- a pass ---------------------------------------------------------------------------------------------------------

struct block {
    char *data;
    size_t bytes, room;
};

// Room for n elements at the end of the block, zeroed; its offset.
static uint32_t block_add(struct block *block, size_t n, size_t size)
{
    size_t at = KRN_PAD_TO(block->bytes, 16), end = at + n * size;
    if (end > block->room) {
        block->room = 2 * end;
        block->data = must(realloc(block->data, block->room));
    }
    memset(block->data + block->bytes, 0, end - block->bytes);
    block->bytes = end;
    return (uint32_t)at;
}

static struct krn_dev_pass *header(const struct block *block)
{
    return (struct krn_dev_pass *)block->data;
}

#define ARRAY(block, type, field) ((type *)((block)->data + header(block)->field))

static void add_rows(struct block *block, const struct krn_segment *segments, int32_t n_segments)
{
    int32_t n = header(block)->n_rows;
    uint32_t tokens = block_add(block, (size_t)n, sizeof(int32_t)),
             links = block_add(block, (size_t)n, sizeof(int32_t));
    uint32_t positions = block_add(block, (size_t)n, sizeof(int32_t));
    uint32_t row_segments = block_add(block, (size_t)n, sizeof(int32_t));
    uint32_t adapter_rows = block_add(block, (size_t)n, 1);
    struct krn_dev_pass *h = header(block);
    h->tokens = tokens;
    h->links = links;
    h->positions = positions;
    h->row_segments = row_segments;
    h->adapter_rows = adapter_rows;
    for (int32_t s = 0, row = 0; s < n_segments; s++)
        for (int32_t r = 0; r < segments[s].rows; r++, row++) {
            ARRAY(block, int32_t, links)[row] = -1;
            ARRAY(block, int32_t, positions)[row] = segments[s].first_pos + r;
            ARRAY(block, int32_t, row_segments)[row] = s;
        }
}

static void add_segments(struct block *block, const struct krn_segment *segments, int32_t n_segments, int32_t page_size)
{
    uint32_t at = block_add(block, (size_t)n_segments, sizeof(struct krn_dev_segment));
    int32_t n_pages = 0;
    header(block)->segments = at;
    for (int32_t s = 0, row = 0; s < n_segments; row += segments[s].rows, s++) {
        ARRAY(block, struct krn_dev_segment, segments)
        [s] = (struct krn_dev_segment){.row = row,
                                       .rows = segments[s].rows,
                                       .first_pos = segments[s].first_pos,
                                       .mask = segments[s].mask,
                                       .pages = n_pages};
        n_pages += (segments[s].first_pos + segments[s].rows + page_size - 1) / page_size;
    }
    at = block_add(block, (size_t)n_pages, sizeof(int32_t));
    header(block)->pages = at;
    for (int32_t s = 0; s < n_segments; s++) {
        int32_t first = ARRAY(block, struct krn_dev_segment, segments)[s].pages;
        int32_t n = (segments[s].first_pos + segments[s].rows + page_size - 1) / page_size;
        memcpy(ARRAY(block, int32_t, pages) + first, segments[s].pages, (size_t)n * sizeof(int32_t));
    }
}

static void add_items(struct block *block, const struct krn_attention_setup *setup)
{
    int32_t most = krn_attention_items_max(setup, header(block)->n_rows, header(block)->n_segments);
    uint32_t at = block_add(block, (size_t)most, sizeof(struct krn_dev_attention_item));
    struct krn_dev_pass *h = header(block);
    h->items = at;
    h->n_items = krn_attention_plan(setup, ARRAY(block, struct krn_dev_segment, segments), h->n_segments,
                                    ARRAY(block, struct krn_dev_attention_item, items));
    if (h->n_items > most)
        abort();
}

struct krn_attention_setup rig_setup(const struct cuda_rig *rig, int32_t group, int32_t n_kv_heads)
{
    return (struct krn_attention_setup){.n_kv_heads = n_kv_heads,
                                        .group = group,
                                        .slots = ATTENTION_SLOTS,
                                        .multiprocessors = rig->driver.device.multiprocessors};
}

struct krn_dev_pass *rig_pass_with(struct cuda_rig *rig, const struct krn_attention_setup *setup,
                                   const struct krn_segment *segments, int32_t n_segments, int32_t page_size)
{
    struct block block = {0};
    block_add(&block, 1, sizeof(struct krn_dev_pass));
    for (int32_t s = 0; s < n_segments; s++)
        header(&block)->n_rows += segments[s].rows;
    header(&block)->n_segments = n_segments;
    add_rows(&block, segments, n_segments);
    add_segments(&block, segments, n_segments, page_size);
    add_items(&block, setup);
    uint32_t end = (uint32_t)KRN_PAD_TO(block.bytes, 16);
    header(&block)->wanted_rows = header(&block)->selects = header(&block)->counts = end;
    header(&block)->biases = header(&block)->accepts = header(&block)->bytes = end;
    block_add(&block, 0, 16);
    struct krn_dev_pass *pass = rig_upload(rig, block.data, end);
    free(block.data);
    return pass;
}

struct krn_dev_pass *rig_pass(struct cuda_rig *rig, const struct krn_segment *segments, int32_t n_segments,
                              int32_t page_size, int32_t group, int32_t n_kv_heads)
{
    struct krn_attention_setup setup = rig_setup(rig, group, n_kv_heads);
    return rig_pass_with(rig, &setup, segments, n_segments, page_size);
}
