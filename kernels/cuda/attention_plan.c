// How a pass's attention is cut into items; see attention_plan.h.
//
// Work is counted in chunks that a block walks; a fair share is the work divided by the resident blocks. A run of
// chunks much longer than that would still run when all else is done: its segment is cut along the context, at the
// price of writing every chunk's partial result and reading it again. That price grows with the queries, so a segment
// of several tiles must be longer to be cut.
//
// Items are ordered by length, the longest first, because blocks take them in turn.
#include "attention_plan.h"

#include "kernels.h"

enum {
    FEW_SHARES = 2,      // a segment of one tile is cut when it is longer than this many shares,
    MANY_SHARES = 4,     // one of more tiles when it is longer than these
    LENGTH_CLASSES = 32, // of the order
};

struct cutter {
    const struct krn_attention_setup *setup;
    int32_t longest, share;
    int32_t places[LENGTH_CLASSES]; // items of each length class, then where the next one goes
};

static int32_t at_least(int64_t n, int64_t unit)
{
    return (int32_t)((n + unit - 1) / unit);
}

static int32_t tiles_of(const struct krn_attention_setup *setup, const struct krn_dev_segment *segment)
{
    return at_least((int64_t)segment->rows * setup->group, KRN_ATTENTION_QUERIES);
}

// Chunks that the tiles [.., end) see at most.
static int32_t chunks_seen(const struct krn_attention_setup *setup, const struct krn_dev_segment *segment, int32_t end)
{
    if (segment->mask == KRN_MASK_BLOCK)
        return segment->n_chunks;
    int32_t row = (int32_t)(((int64_t)end * KRN_ATTENTION_QUERIES - 1) / setup->group);
    row = row < segment->rows ? row : segment->rows - 1;
    return (segment->first_pos + row) / KRN_ATTENTION_CHUNK + 1;
}

static int32_t smaller(int32_t a, int32_t b)
{
    return a < b ? a : b;
}

// Fills n_chunks in; the work of one kv head.
static int64_t measure(const struct krn_attention_setup *setup, struct krn_dev_segment *segment)
{
    segment->n_chunks = (segment->first_pos + segment->rows - 1) / KRN_ATTENTION_CHUNK + 1;
    segment->sums = -1;
    int64_t work = 0;
    int32_t tiles = tiles_of(setup, segment);
    for (int32_t tile = 0; tile < tiles; tile += KRN_ATTENTION_WARPS)
        work += chunks_seen(setup, segment, smaller(tile + KRN_ATTENTION_WARPS, tiles));
    return work;
}

// Takes slots for the segment if it is to be cut and they suffice.
static void decide(const struct cutter *cutter, struct krn_dev_segment *segment, int64_t *slots_used)
{
    const struct krn_attention_setup *setup = cutter->setup;
    int64_t shares = tiles_of(setup, segment) == 1 ? FEW_SHARES : MANY_SHARES;
    bool cut = segment->n_chunks > shares * cutter->share;
    if (setup->cut != KRN_ATTENTION_CUT_AUTO)
        cut = setup->cut == KRN_ATTENTION_CUT_ALWAYS;
    int64_t slots = (int64_t)setup->n_kv_heads * setup->group * segment->rows * segment->n_chunks;
    if (!cut || slots > setup->slots - *slots_used)
        return;
    segment->sums = (int32_t)*slots_used;
    *slots_used += slots;
}

// One item for every kv head: counted where items is NULL, else written.
static void add(struct cutter *cutter, struct krn_dev_attention_item *items, struct krn_dev_attention_item item)
{
    int32_t *place = &cutter->places[(int64_t)(cutter->longest - item.n_chunks) * LENGTH_CLASSES / cutter->longest];
    int32_t heads = cutter->setup->n_kv_heads;
    for (item.kv_head = 0; items && item.kv_head < heads; item.kv_head++)
        items[*place + item.kv_head] = item;
    *place += heads;
}

static void cut_segment(struct cutter *cutter, const struct krn_dev_segment *segment, int32_t index,
                        struct krn_dev_attention_item *items)
{
    int32_t tiles = tiles_of(cutter->setup, segment);
    for (int32_t tile = 0; tile < tiles; tile += KRN_ATTENTION_WARPS) {
        struct krn_dev_attention_item item = {.segment = index, .tile = tile};
        item.n_tiles = smaller(KRN_ATTENTION_WARPS, tiles - tile);
        item.deep = item.n_tiles == 1;
        int32_t chunks = chunks_seen(cutter->setup, segment, tile + item.n_tiles), run = chunks;
        if (segment->sums >= 0) {
            int32_t pieces = at_least(chunks, cutter->share);
            run = at_least(chunks, pieces < 2 ? 2 : pieces);
        }
        for (; item.chunk < chunks; item.chunk += run) {
            item.n_chunks = smaller(run, chunks - item.chunk);
            add(cutter, items, item);
        }
    }
}

// Items that have the slots of the segments that were cut folded.
static int32_t add_folds(const struct krn_attention_setup *setup, const struct krn_dev_segment *segments,
                         int32_t n_segments, struct krn_dev_attention_item *items)
{
    int32_t n = 0;
    for (int32_t s = 0; s < n_segments; s++) {
        int32_t tiles = segments[s].sums >= 0 ? tiles_of(setup, &segments[s]) : 0;
        for (int32_t tile = 0; tile < tiles; tile++)
            for (int32_t head = 0; head < setup->n_kv_heads; head++)
                items[n++] = (struct krn_dev_attention_item){.segment = s, .kv_head = head, .tile = tile, .n_tiles = 1};
    }
    return n;
}

int32_t krn_attention_items_max(const struct krn_attention_setup *setup, int32_t rows, int32_t segments)
{
    int64_t queries = (int64_t)rows * setup->group;
    segments = smaller(segments, rows);
    int64_t tiles = queries / KRN_ATTENTION_QUERIES + segments;
    int64_t groups = queries / (KRN_ATTENTION_QUERIES * KRN_ATTENTION_WARPS) + segments;
    // Pieces of a run: its length / share, rounded up, and at least 2. The lengths add up to at most
    // KRN_ATTENTION_BLOCKS * multiprocessors shares.
    return (int32_t)(setup->n_kv_heads * (2 * groups + tiles) + KRN_ATTENTION_BLOCKS * (int64_t)setup->multiprocessors);
}

int32_t krn_attention_plan(const struct krn_attention_setup *setup, struct krn_dev_segment *segments,
                           int32_t n_segments, struct krn_dev_attention_item *items)
{
    struct cutter cutter = {.setup = setup, .longest = 1};
    int64_t work = 0, slots_used = 0;
    for (int32_t s = 0; s < n_segments; s++) {
        work += measure(setup, &segments[s]);
        cutter.longest = segments[s].n_chunks > cutter.longest ? segments[s].n_chunks : cutter.longest;
    }
    cutter.share = at_least(work * setup->n_kv_heads, (int64_t)KRN_ATTENTION_BLOCKS * setup->multiprocessors);
    for (int32_t s = 0; s < n_segments; s++)
        decide(&cutter, &segments[s], &slots_used);
    for (int32_t s = 0; s < n_segments; s++)
        cut_segment(&cutter, &segments[s], s, NULL);
    int32_t n = 0;
    for (int c = 0; c < LENGTH_CLASSES; c++) {
        int32_t count = cutter.places[c];
        cutter.places[c] = n;
        n += count;
    }
    for (int32_t s = 0; s < n_segments; s++)
        cut_segment(&cutter, &segments[s], s, items);
    return n + add_folds(setup, segments, n_segments, items + n);
}
