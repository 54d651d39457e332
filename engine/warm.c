// Passes that nobody asked for. A backend groups passes by their rounded numbers of rows and choices, by whether the
// adapter is on and whether blocks are verified; which sizes it rounds to is its own matter, so all powers of two and
// the sizes half way between them are run, up to where passes are large enough that recording them hardly pays. Runs on
// the thread that opens the engine.
#include "warm.h"

#include <stdlib.h>

#include "base/err.h"

enum { MOST_ROWS = 256, BLOCK = 32 }; // BLOCK: rows of a segment, as many as a usual block has

// The next size: 1, 2, 3, 4, 6, 8, 12, 16, 24, ...
static int32_t next_size(int32_t n)
{
    bool power = (n & (n - 1)) == 0;
    return n == 1 ? 2 : power ? n + n / 2 : n / 3 * 4;
}

// Fills the batch with `rows` rows of a kind; every segment has its own pages, from page 0 on.
static void lay_out(const struct eng_model *m, const struct eng_warm_limits *l, enum eng_pass_kind kind, int32_t rows,
                    const int32_t *pages, struct eng_batch *batch)
{
    bool block = kind == ENG_PASS_DRAFT || kind == ENG_PASS_DENOISE;
    eng_batch_reset(batch);
    for (int32_t slot = 0; rows > 0; slot++) {
        int32_t n = rows < BLOCK ? rows : BLOCK;
        struct eng_segment *s = eng_batch_add(batch, slot, kind, 0, n);
        s->mask = block ? KRN_MASK_BLOCK : KRN_MASK_CAUSAL;
        s->keep = !block;
        s->adapter = m->has_adapter && (kind == ENG_PASS_DRAFT || (block && m->block_adapter));
        s->pages = pages;
        for (int32_t i = 0; i < n; i++) {
            batch->tokens[s->row + i] = block && i > 0 ? m->mask_id : 0;
            if (!block || i > 0)
                eng_batch_want(batch, s, i)->position = block ? i : i + 1;
        }
        if (kind == ENG_PASS_VERIFY)
            eng_batch_accept(batch, s);
        pages += (n + l->page_size - 1) / l->page_size;
        rows -= n;
    }
}

static int32_t most_rows(const struct eng_warm_limits *l)
{
    int32_t block_pages = (BLOCK + l->page_size - 1) / l->page_size;
    int32_t blocks = l->n_pages / block_pages < l->max_segments ? l->n_pages / block_pages : l->max_segments;
    int32_t most = blocks * BLOCK < l->max_rows ? blocks * BLOCK : l->max_rows;
    return most < MOST_ROWS ? most : MOST_ROWS;
}

int eng_model_warm(const struct eng_model *model, const struct eng_warm_limits *limits,
                   void (*progress)(void *user, const char *what, double fraction), void *user)
{
    static const enum eng_pass_kind kinds[] = {ENG_PASS_PREFILL, ENG_PASS_VERIFY, ENG_PASS_DRAFT, ENG_PASS_DENOISE};
    int32_t n_kinds = model->mask_id < 0 ? 1 : 4, most = most_rows(limits);
    if (most < 1)
        return 0;
    struct eng_batch batch;
    int rc = eng_batch_init(&batch, most, (most + BLOCK - 1) / BLOCK);
    int32_t *pages = calloc((size_t)limits->n_pages, sizeof *pages);
    if (!pages)
        rc = ENG_ENOMEM;
    for (int32_t i = 0; rc == 0 && i < limits->n_pages; i++)
        pages[i] = i;
    for (int32_t rows = 1; rc == 0 && rows <= most; rows = next_size(rows)) {
        for (int32_t k = 0; rc == 0 && k < n_kinds; k++) {
            lay_out(model, limits, kinds[k], rows, pages, &batch);
            rc = eng_model_forward(model, &batch);
        }
        if (progress)
            progress(user, "warm-up", (double)rows / most);
    }
    free(pages);
    eng_batch_done(&batch);
    return rc;
}
