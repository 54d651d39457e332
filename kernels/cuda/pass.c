// The passes under way: checks a pass, packs it into one block, sends it, fetches and unpacks its choices.
//
// The block is packed in the order of device_pass.h's offsets, so its size follows what the pass really holds, and one
// copy brings it. Bitmaps of allowed tokens are large (16 KiB) and often the same for many rows: rows that give the
// same address share one, and so do neighbours that give the same penalties or biases. Those have no bound known
// beforehand, so a block may outgrow its room; backend.c then asks for a larger one between passes.
//
// Leaves out when a pass may start, and everything about graphs: backend.c.
#include "pass.h"

#include <stdlib.h>
#include <string.h>

// Memory for attention's partial sums: enough to cut one row's context of 64 Ki positions at 8 kv heads. What does not
// fit is cut less finely.
enum { SUMS_BYTES_MOST = 128 << 20, SUMS_MEMORY_SHARE = 256 };

// ---- open and close -------------------------------------------------------------------------------------------------

// Where each array stands in a block of these counts; returns the bytes of the block.
static size_t lay_out(const struct krn_cuda_counts *c, int32_t n_vocab, struct krn_dev_pass *h, size_t *ret_bitmaps)
{
    size_t at = sizeof *h;
#define PLACE(field, n, size)               \
    do {                                    \
        at = KRN_PAD_TO(at, (size_t)16);    \
        h->field = (uint32_t)at;            \
        at += (size_t)(n) * (size_t)(size); \
    } while (0)
    PLACE(tokens, c->rows, sizeof(int32_t));
    PLACE(links, c->rows, sizeof(int32_t));
    PLACE(positions, c->rows, sizeof(int32_t));
    PLACE(row_segments, c->rows, sizeof(int32_t));
    PLACE(adapter_rows, c->rows, 1);
    PLACE(segments, c->segments, sizeof(struct krn_dev_segment));
    PLACE(items, c->items, sizeof(struct krn_dev_attention_item));
    PLACE(pages, c->pages, sizeof(int32_t));
    PLACE(wanted_rows, c->wanted, sizeof(int32_t));
    PLACE(selects, c->wanted, sizeof(struct krn_dev_select));
    PLACE(counts, c->counts, sizeof(struct krn_dev_count));
    PLACE(biases, c->biases, sizeof(struct krn_dev_bias));
    PLACE(accepts, c->accepts, sizeof(struct krn_dev_accept));
#undef PLACE
    *ret_bitmaps = at = KRN_PAD_TO(at, (size_t)16);
    return at + (size_t)c->bitmaps * (((size_t)n_vocab + 31) / 32) * sizeof(uint32_t);
}

// Room for the block on both sides.
static int alloc_block(struct krn_cuda_passes *p, size_t bytes)
{
    const struct krn_cuda_driver *d = p->driver;
    void *block = NULL;
    int rc = krn_cuda_memory_alloc(p->memory, bytes, "pass", true, &block);
    p->block = block;
    for (int i = 0; rc == 0 && i < KRN_PASSES_AHEAD + 1; i++) {
        void *pinned = NULL;
        rc = d->host_alloc(d->ctx, bytes, &pinned);
        p->staging[i].block = pinned;
    }
    p->room = rc == 0 ? bytes : 0;
    return rc;
}

static void free_block(struct krn_cuda_passes *p)
{
    krn_cuda_memory_release(p->memory, p->block);
    p->block = NULL;
    p->room = 0;
    for (int i = 0; i < KRN_PASSES_AHEAD + 1; i++) {
        if (p->staging[i].block)
            p->driver->host_release(p->driver->ctx, p->staging[i].block);
        p->staging[i].block = NULL;
        p->staging[i].used = false;
    }
}

static int alloc_results(struct krn_cuda_passes *p, size_t rows)
{
    const struct krn_cuda_driver *d = p->driver;
    int rc = 0;
    for (int i = 0; rc == 0 && i < KRN_PASSES_AHEAD + 1; i++)
        rc = d->event_new(d->ctx, &p->staging[i].copied);
    for (int i = 0; rc == 0 && i < KRN_PASSES_AHEAD; i++) {
        struct krn_cuda_results *r = &p->results[i];
        void *choices = NULL, *tops = NULL, *accepted = NULL;
        if ((rc = d->event_new(d->ctx, &r->done)) == 0 &&
            (rc = d->host_alloc(d->ctx, rows * sizeof *r->choices, &choices)) == 0 &&
            (rc = d->host_alloc(d->ctx, rows * sizeof *r->tops, &tops)) == 0)
            rc = d->host_alloc(d->ctx, rows * sizeof *r->accepted, &accepted);
        r->choices = choices;
        r->tops = tops;
        r->accepted = accepted;
    }
    return rc;
}

// What a kernel of this backend writes in device memory for the host or for the next pass.
static int alloc_device(struct krn_cuda_passes *p, size_t rows)
{
    const char *what = "choices";
    void *choices, *tops, *accepted, *sums;
    int64_t slot = krn_cuda_attention_slot(p->limits.head_dim) * (int64_t)sizeof(float);
    int64_t bytes = p->driver->device.memory / SUMS_MEMORY_SHARE;
    bytes = bytes < SUMS_BYTES_MOST ? bytes : SUMS_BYTES_MOST;
    p->setup.slots = (int32_t)(bytes / slot);
    int rc;
    if ((rc = krn_cuda_memory_alloc(p->memory, rows * sizeof *p->choices, what, true, &choices)) < 0 ||
        (rc = krn_cuda_memory_alloc(p->memory, rows * sizeof *p->tops, what, true, &tops)) < 0 ||
        (rc = krn_cuda_memory_alloc(p->memory, rows * sizeof *p->accepted, what, true, &accepted)) < 0 ||
        (rc = krn_cuda_memory_alloc(p->memory, (size_t)(p->setup.slots * slot), "attention sums", false, &sums)) < 0)
        return rc;
    p->choices = choices;
    p->tops = tops;
    p->accepted = accepted;
    p->sums = sums;
    return 0;
}

int krn_cuda_passes_open(struct krn_cuda_passes *p, const struct krn_cuda_driver *driver,
                         struct krn_cuda_memory *memory, const struct krn_limits *limits)
{
    *p = (struct krn_cuda_passes){.driver = driver, .memory = memory, .limits = *limits};
    p->limits.rope = NULL;
    p->setup = (struct krn_attention_setup){.n_kv_heads = limits->n_kv_heads,
                                            .group = limits->n_heads / limits->n_kv_heads,
                                            .multiprocessors = driver->device.multiprocessors};
    size_t rows = (size_t)KRN_PAD_TO(limits->max_rows, KRN_ROW_TILE);
    int rc = alloc_device(p, rows);
    if (rc < 0)
        return rc;
    // A guess at what has no bound: one bitmap, and 64 penalties a row.
    struct krn_cuda_counts counts = {
        .rows = limits->max_rows,
        .segments = limits->max_segments,
        .items = krn_attention_items_max(&p->setup, limits->max_rows, limits->max_segments),
        .pages = limits->max_pages,
        .wanted = limits->max_rows,
        .counts = (int64_t)limits->max_rows * 64,
        .accepts = limits->max_rows,
        .bitmaps = 1,
    };
    struct krn_dev_pass unused;
    size_t bitmaps;
    p->bitmaps = calloc(rows, sizeof *p->bitmaps);
    if (!p->bitmaps)
        return KRN_ENOMEM;
    rc = alloc_block(p, lay_out(&counts, limits->n_vocab, &unused, &bitmaps));
    return rc < 0 ? rc : alloc_results(p, rows);
}

void krn_cuda_passes_done(struct krn_cuda_passes *p)
{
    if (!p->driver)
        return;
    const struct krn_cuda_driver *d = p->driver;
    free_block(p);
    for (int i = 0; i < KRN_PASSES_AHEAD + 1; i++)
        if (p->staging[i].copied)
            d->event_free(d->ctx, p->staging[i].copied);
    for (int i = 0; i < KRN_PASSES_AHEAD; i++) {
        struct krn_cuda_results *r = &p->results[i];
        void *const pinned[] = {r->choices, r->tops, r->accepted};
        for (size_t j = 0; j < sizeof pinned / sizeof *pinned; j++)
            if (pinned[j])
                d->host_release(d->ctx, pinned[j]);
        if (r->done)
            d->event_free(d->ctx, r->done);
    }
    free(p->bitmaps);
    *p = (struct krn_cuda_passes){0};
}

int krn_cuda_passes_grow(struct krn_cuda_passes *p, size_t bytes)
{
    free_block(p);
    return alloc_block(p, bytes + bytes / 2); // half more, so that slow growth does not come back each pass
}

// ---- check and count ------------------------------------------------------------------------------------------------

static int32_t pages_of(const struct krn_cuda_passes *p, const struct krn_segment *segment)
{
    return (segment->first_pos + segment->rows - 1) / p->page_size + 1;
}

static const char *check_segments(const struct krn_cuda_passes *p, const struct krn_pass *pass)
{
    int32_t row = 0;
    int64_t pages = 0;
    for (int32_t s = 0; s < pass->n_segments; s++) {
        const struct krn_segment *segment = &pass->segments[s];
        if (segment->row != row || segment->rows <= 0 || segment->rows > pass->n_rows - row || segment->first_pos < 0 ||
            segment->first_pos > INT32_MAX - segment->rows || !segment->pages ||
            (segment->mask != KRN_MASK_CAUSAL && segment->mask != KRN_MASK_BLOCK))
            return "a segment of the pass is malformed";
        row += segment->rows;
        int32_t n = pages_of(p, segment);
        pages += n;
        // A page that is not there would take the whole device down.
        for (int32_t i = 0; i < n; i++)
            if (segment->pages[i] < 0 || segment->pages[i] >= p->n_pages)
                return "a segment names a page that the KV store does not have";
    }
    if (row != pass->n_rows)
        return "the segments of the pass do not cover its rows";
    return pages > p->limits.max_pages ? "the pass has more pages than were prepared for" : NULL;
}

static bool good_select_row(const struct krn_select_row *row, const struct krn_limits *limits)
{
    // Written so that a NaN fails.
    if (row->row < 0 || row->row >= limits->max_chunk || !(row->temperature >= 0) || row->n_top < 0 ||
        row->n_top > KRN_TOP_MAX || row->n_counts < 0 || row->n_biases < 0 || !(row->repetition_penalty > 0) ||
        !(row->top_p >= 0) || !(row->min_p >= 0 && row->min_p <= 1))
        return false;
    for (int32_t i = 0; i < row->n_counts; i++)
        if (row->counts[i].token < 0 || row->counts[i].token >= limits->n_vocab)
            return false;
    for (int32_t i = 0; i < row->n_biases; i++)
        if (row->biases[i].token < 0 || row->biases[i].token >= limits->n_vocab)
            return false;
    return true;
}

static const char *check_accepts(const struct krn_pass *pass)
{
    for (int32_t i = 0; i < pass->n_accepts; i++) {
        const struct krn_accept *a = &pass->accepts[i];
        if (a->row < 0 || a->rows <= 0 || a->rows > pass->n_rows - a->row || a->choice < 0 ||
            a->rows > pass->n_wanted - a->choice)
            return "an accept of the pass is out of range";
    }
    return NULL;
}

const char *krn_cuda_pass_check(const struct krn_cuda_passes *p, const struct krn_pass *pass)
{
    if (!pass || pass->n_rows < 0 || pass->n_segments < 0 || pass->n_wanted < 0 || pass->n_accepts < 0 ||
        (pass->n_rows > 0 && (!pass->tokens || !pass->segments)) ||
        (pass->n_wanted > 0 && (!pass->wanted_rows || !pass->wanted || !pass->choices)) ||
        (pass->n_accepts > 0 && (!pass->accepts || !pass->accepted)))
        return "the pass is malformed";
    if (pass->n_rows > p->limits.max_rows || pass->n_segments > p->limits.max_segments ||
        pass->n_wanted > pass->n_rows || pass->n_accepts > pass->n_rows)
        return "the pass is larger than was prepared for";
    if (pass->n_segments > 0 && p->page_size == 0)
        return "the pass comes before the KV store was opened";
    for (int32_t r = 0; r < pass->n_rows; r++) {
        bool linked = pass->links && pass->links[r] >= 0;
        if (linked ? pass->links[r] >= p->last_wanted : pass->tokens[r] < 0 || pass->tokens[r] >= p->limits.n_vocab)
            return linked ? "a row is linked to a choice that the pass before did not make"
                          : "a token of the pass is outside the vocabulary";
    }
    for (int32_t i = 0; i < pass->n_wanted; i++) {
        if (pass->wanted_rows[i] < 0 || pass->wanted_rows[i] >= pass->n_rows)
            return "a wanted row is not of the pass";
        if (!good_select_row(&pass->wanted[i], &p->limits))
            return "the parameters of a choice are out of range";
    }
    const char *wrong = check_segments(p, pass);
    return wrong ? wrong : check_accepts(pass);
}

// Rows of one block look back on the same tokens, and all rows of a request have the same biases: an array that row i
// has in common with the row before stands in the block once.
static bool shares_counts(const struct krn_pass *pass, int32_t i)
{
    const struct krn_select_row *row = &pass->wanted[i];
    return i > 0 && row->counts == row[-1].counts && row->n_counts == row[-1].n_counts;
}

static bool shares_biases(const struct krn_pass *pass, int32_t i)
{
    const struct krn_select_row *row = &pass->wanted[i];
    return i > 0 && row->biases == row[-1].biases && row->n_biases == row[-1].n_biases;
}

void krn_cuda_pass_count(struct krn_cuda_passes *p, const struct krn_pass *pass, struct krn_cuda_counts *ret,
                         size_t *ret_bytes)
{
    *ret = (struct krn_cuda_counts){
        .rows = pass->n_rows,
        .segments = pass->n_segments,
        .items = krn_attention_items_max(&p->setup, pass->n_rows, pass->n_segments),
        .wanted = pass->n_wanted,
        .accepts = pass->n_accepts,
    };
    for (int32_t s = 0; s < pass->n_segments; s++)
        ret->pages += pages_of(p, &pass->segments[s]);
    for (int32_t i = 0; i < pass->n_wanted; i++) {
        const struct krn_select_row *row = &pass->wanted[i];
        ret->counts += shares_counts(pass, i) ? 0 : row->n_counts;
        ret->biases += shares_biases(pass, i) ? 0 : row->n_biases;
        int64_t b = 0;
        while (row->allowed && b < ret->bitmaps && p->bitmaps[b] != row->allowed)
            b++;
        if (row->allowed && b == ret->bitmaps)
            p->bitmaps[ret->bitmaps++] = row->allowed;
    }
    struct krn_dev_pass unused;
    size_t bitmaps;
    *ret_bytes = lay_out(ret, p->limits.n_vocab, &unused, &bitmaps);
}

// ---- build and send -------------------------------------------------------------------------------------------------

#define ARRAY(block, type, field) ((type *)((char *)(block) + (block)->field))

static void put_rows(struct krn_dev_pass *block, const struct krn_pass *pass)
{
    int32_t *links = ARRAY(block, int32_t, links);
    uint8_t *adapter = ARRAY(block, uint8_t, adapter_rows);
    if (pass->n_rows > 0)
        memcpy(ARRAY(block, int32_t, tokens), pass->tokens, (size_t)pass->n_rows * sizeof(int32_t));
    for (int32_t r = 0; r < pass->n_rows; r++) {
        links[r] = pass->links && pass->links[r] >= 0 ? pass->links[r] : -1;
        adapter[r] = pass->adapter_rows && pass->adapter_rows[r];
    }
}

static void put_segments(const struct krn_cuda_passes *p, struct krn_dev_pass *block, const struct krn_pass *pass)
{
    struct krn_dev_segment *segments = ARRAY(block, struct krn_dev_segment, segments);
    int32_t *positions = ARRAY(block, int32_t, positions), *row_segments = ARRAY(block, int32_t, row_segments);
    int32_t *pages = ARRAY(block, int32_t, pages), page = 0;
    for (int32_t s = 0; s < pass->n_segments; s++) {
        const struct krn_segment *from = &pass->segments[s];
        segments[s] = (struct krn_dev_segment){.row = from->row,
                                               .rows = from->rows,
                                               .first_pos = from->first_pos,
                                               .mask = (int32_t)from->mask,
                                               .pages = page};
        int32_t n = pages_of(p, from);
        memcpy(pages + page, from->pages, (size_t)n * sizeof *pages);
        page += n;
        for (int32_t r = 0; r < from->rows; r++) {
            positions[from->row + r] = from->first_pos + r;
            row_segments[from->row + r] = s;
        }
    }
    block->n_items =
        krn_attention_plan(&p->setup, segments, pass->n_segments, ARRAY(block, struct krn_dev_attention_item, items));
}

// Where bitmap b stands, in words from the block's start.
static int32_t bitmap_at(const struct krn_cuda_passes *p, size_t bitmaps, int64_t b)
{
    return (int32_t)(bitmaps / 4 + (size_t)b * (((size_t)p->limits.n_vocab + 31) / 32));
}

static void put_select(const struct krn_cuda_passes *p, struct krn_dev_pass *block, const struct krn_pass *pass,
                       const struct krn_cuda_counts *n, size_t bitmaps)
{
    struct krn_dev_select *selects = ARRAY(block, struct krn_dev_select, selects);
    struct krn_dev_count *counts = ARRAY(block, struct krn_dev_count, counts);
    struct krn_dev_bias *biases = ARRAY(block, struct krn_dev_bias, biases);
    int32_t count = 0, bias = 0, counts_at = 0, biases_at = 0;
    for (int32_t i = 0; i < pass->n_wanted; i++) {
        const struct krn_select_row *from = &pass->wanted[i];
        int64_t b = 0;
        while (from->allowed && p->bitmaps[b] != from->allowed)
            b++;
        bool new_counts = !shares_counts(pass, i), new_biases = !shares_biases(pass, i);
        counts_at = new_counts ? count : counts_at;
        biases_at = new_biases ? bias : biases_at;
        selects[i] = (struct krn_dev_select){
            .row = from->row,
            .temperature = from->temperature,
            .top_k = from->top_k,
            .top_p = from->top_p,
            .min_p = from->min_p,
            .repetition_penalty = from->repetition_penalty,
            .frequency_penalty = from->frequency_penalty,
            .presence_penalty = from->presence_penalty,
            .seed = from->seed,
            .position = from->position,
            .allowed = from->allowed ? bitmap_at(p, bitmaps, b) : -1,
            .counts = counts_at,
            .n_counts = from->n_counts,
            .biases = biases_at,
            .n_biases = from->n_biases,
            .n_top = from->n_top,
        };
        for (int32_t j = 0; new_counts && j < from->n_counts; j++)
            counts[count++] =
                (struct krn_dev_count){from->counts[j].token, from->counts[j].in_output, from->counts[j].in_prompt};
        for (int32_t j = 0; new_biases && j < from->n_biases; j++)
            biases[bias++] = (struct krn_dev_bias){from->biases[j].token, from->biases[j].bias};
    }
    for (int64_t b = 0; b < n->bitmaps; b++)
        memcpy((uint32_t *)block + bitmap_at(p, bitmaps, b), p->bitmaps[b],
               ((size_t)p->limits.n_vocab + 31) / 32 * sizeof(uint32_t));
}

int krn_cuda_pass_send(struct krn_cuda_passes *p, const struct krn_pass *pass, const struct krn_cuda_counts *counts)
{
    const struct krn_cuda_driver *d = p->driver;
    struct krn_cuda_staging *staging = &p->staging[p->next_staging];
    int rc = staging->used ? d->event_wait(d->ctx, staging->copied) : 0;
    if (rc < 0)
        return rc;
    staging->used = false;
    struct krn_dev_pass *block = staging->block;
    size_t bitmaps;
    *block = (struct krn_dev_pass){.n_rows = pass->n_rows,
                                   .n_segments = pass->n_segments,
                                   .n_wanted = pass->n_wanted,
                                   .n_accepts = pass->n_accepts};
    block->bytes = (uint32_t)lay_out(counts, p->limits.n_vocab, block, &bitmaps);
    put_rows(block, pass);
    put_segments(p, block, pass);
    if (pass->n_wanted > 0) {
        memcpy(ARRAY(block, int32_t, wanted_rows), pass->wanted_rows, (size_t)pass->n_wanted * sizeof(int32_t));
        put_select(p, block, pass, counts, bitmaps);
    }
    struct krn_dev_accept *accepts = ARRAY(block, struct krn_dev_accept, accepts);
    for (int32_t i = 0; i < pass->n_accepts; i++)
        accepts[i] = (struct krn_dev_accept){pass->accepts[i].row, pass->accepts[i].rows, pass->accepts[i].choice};
    if ((rc = d->copy_in(d->ctx, d->stream, p->block, block, block->bytes)) < 0 ||
        (rc = d->event_record(d->ctx, staging->copied, d->stream)) < 0)
        return rc;
    staging->used = true;
    p->next_staging = (p->next_staging + 1) % (KRN_PASSES_AHEAD + 1);
    return 0;
}

// ---- what comes back ------------------------------------------------------------------------------------------------

int krn_cuda_pass_fetch(struct krn_cuda_passes *p, const struct krn_pass *pass)
{
    const struct krn_cuda_driver *d = p->driver;
    struct krn_cuda_results *r = &p->results[p->next_results];
    size_t n = (size_t)pass->n_wanted;
    int rc = 0;
    r->pass = pass;
    r->with_tops = false;
    for (int32_t i = 0; i < pass->n_wanted; i++)
        r->with_tops = r->with_tops || pass->wanted[i].n_top > 0;
    if (n > 0)
        rc = d->copy_out(d->ctx, d->stream, r->choices, p->choices, n * sizeof *r->choices);
    if (rc == 0 && r->with_tops)
        rc = d->copy_out(d->ctx, d->stream, r->tops, p->tops, n * sizeof *r->tops);
    if (rc == 0 && pass->n_accepts > 0)
        rc = d->copy_out(d->ctx, d->stream, r->accepted, p->accepted, (size_t)pass->n_accepts * sizeof *r->accepted);
    if (rc == 0)
        rc = d->event_record(d->ctx, r->done, d->stream);
    if (rc < 0)
        return rc;
    p->last_wanted = pass->n_wanted;
    p->next_results = (p->next_results + 1) % KRN_PASSES_AHEAD;
    p->n_ahead++;
    return 0;
}

static void unpack_choice(struct krn_choice *to, const struct krn_dev_choice *from, const struct krn_dev_top *top)
{
    *to = (struct krn_choice){
        .token = from->token, .confidence = from->confidence, .logprob = from->logprob, .n_top = from->n_top};
    for (int32_t i = 0; top && i < from->n_top && i < KRN_TOP_MAX; i++) {
        to->top_token[i] = top->token[i];
        to->top_logprob[i] = top->logprob[i];
    }
}

int krn_cuda_pass_take(struct krn_cuda_passes *p)
{
    const struct krn_cuda_driver *d = p->driver;
    struct krn_cuda_results *r = &p->results[(p->next_results + KRN_PASSES_AHEAD - p->n_ahead) % KRN_PASSES_AHEAD];
    const struct krn_pass *pass = r->pass;
    p->n_ahead--;
    int rc = d->event_wait(d->ctx, r->done);
    if (rc < 0)
        return rc;
    for (int32_t i = 0; i < pass->n_wanted; i++)
        unpack_choice(&pass->choices[i], &r->choices[i], r->with_tops ? &r->tops[i] : NULL);
    for (int32_t i = 0; i < pass->n_accepts; i++)
        pass->accepted[i] = (struct krn_accepted){r->accepted[i].n, r->accepted[i].seed};
    return 0;
}
