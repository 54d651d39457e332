// 2 PARSE: byte-pair merges of one piece: again and again the adjacent pair of lowest rank, the leftmost on a tie.
// Short pieces (nearly all) scan an array; long ones, which user text can contain, use a heap: O(n log n).
#include "text/tokenizer_inner.h"

#include "base/err.h"

#include <stdlib.h>
#include <string.h>

enum { SHORT_PIECE = 48, NO_RANK = INT32_MAX };

int eng_tokenizer_push_id(struct ids *ids, int32_t id)
{
    if (ids->n == ids->cap) {
        if (ids->n >= INT32_MAX)
            return ENG_ELIMIT;
        size_t cap = ids->cap ? ids->cap * 2 : 64;
        int32_t *data = realloc(ids->data, cap * sizeof *data);
        if (!data)
            return ENG_ENOMEM;
        ids->data = data;
        ids->cap = cap;
    }
    ids->data[ids->n++] = id;
    return 0;
}

struct merge *eng_tokenizer_find_merge(const struct eng_tokenizer *t, int32_t left, int32_t right)
{
    uint64_t key = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    uint64_t h = key * 0x9E3779B97F4A7C15u;
    size_t i = (size_t)(h ^ h >> 32) & t->merge_mask;
    while (t->merges[i].key != key && t->merges[i].key != UINT64_MAX)
        i = (i + 1) & t->merge_mask;
    return &t->merges[i];
}

static int32_t rank_of(const struct eng_tokenizer *t, int32_t left, int32_t right, int32_t *ret_id)
{
    const struct merge *m = eng_tokenizer_find_merge(t, left, right);
    if (m->key == UINT64_MAX)
        return NO_RANK;
    *ret_id = m->id;
    return m->rank;
}

// The piece's bytes as ids; a byte without a token is unk (a run of them is one, with fuse_unk). ids has room for len.
static size_t initial(const struct eng_tokenizer *t, const char *piece, size_t len, int32_t *ids)
{
    size_t n = 0;
    bool after_unk = false;
    for (size_t i = 0; i < len; i++) {
        int32_t id = t->byte_ids[(unsigned char)piece[i]];
        bool unk = id < 0;
        if (!(unk && after_unk && t->fuse_unk))
            ids[n++] = unk ? t->unk_id : id;
        after_unk = unk;
    }
    return n;
}

static int merge_short(const struct eng_tokenizer *t, const char *piece, size_t len, struct ids *out)
{
    int32_t ids[SHORT_PIECE], ranks[SHORT_PIECE], merged[SHORT_PIECE]; // ranks[i], merged[i]: of the pair (i, i + 1)
    size_t n = initial(t, piece, len, ids);
    for (size_t i = 0; i + 1 < n; i++)
        ranks[i] = rank_of(t, ids[i], ids[i + 1], &merged[i]);
    while (n > 1) {
        size_t best = 0;
        for (size_t i = 1; i + 1 < n; i++)
            if (ranks[i] < ranks[best])
                best = i;
        if (ranks[best] == NO_RANK)
            break;
        ids[best] = merged[best];
        size_t rest = n - best - 2; // symbols right of the pair
        memmove(ids + best + 1, ids + best + 2, rest * sizeof *ids);
        if (rest) {
            memmove(ranks + best + 1, ranks + best + 2, (rest - 1) * sizeof *ranks);
            memmove(merged + best + 1, merged + best + 2, (rest - 1) * sizeof *merged);
            ranks[best] = rank_of(t, ids[best], ids[best + 1], &merged[best]);
        }
        if (best > 0)
            ranks[best - 1] = rank_of(t, ids[best - 1], ids[best], &merged[best - 1]);
        n--;
    }
    for (size_t i = 0; i < n; i++) {
        int rc = eng_tokenizer_push_id(out, ids[i]);
        if (rc)
            return rc;
    }
    return 0;
}

// ---- long pieces ----------------------------------------------------------------------------------------------------

struct symbol {
    int32_t id; // -1: merged into its left neighbour
    int32_t previous, next;
};

struct candidate {
    int32_t rank, at;        // order of the heap
    int32_t left, right, id; // the pair when it was pushed: it counts only if it still stands there
};

struct heap {
    struct candidate *data;
    size_t n;
};

static bool before(const struct candidate *a, const struct candidate *b)
{
    return a->rank != b->rank ? a->rank < b->rank : a->at < b->at;
}

static void heap_push(struct heap *h, struct candidate c)
{
    size_t i = h->n++;
    while (i > 0 && before(&c, &h->data[(i - 1) / 2])) {
        h->data[i] = h->data[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    h->data[i] = c;
}

static struct candidate heap_pop(struct heap *h)
{
    struct candidate top = h->data[0], last = h->data[--h->n];
    size_t i = 0;
    for (;;) {
        size_t child = 2 * i + 1;
        if (child >= h->n)
            break;
        if (child + 1 < h->n && before(&h->data[child + 1], &h->data[child]))
            child++;
        if (!before(&h->data[child], &last))
            break;
        h->data[i] = h->data[child];
        i = child;
    }
    h->data[i] = last;
    return top;
}

static void push_pair(const struct eng_tokenizer *t, struct heap *h, const struct symbol *symbols, int32_t at)
{
    int32_t next = symbols[at].next;
    if (next < 0)
        return;
    struct candidate c = {.at = at, .left = symbols[at].id, .right = symbols[next].id};
    c.rank = rank_of(t, c.left, c.right, &c.id);
    if (c.rank != NO_RANK)
        heap_push(h, c);
}

static int merge_long(const struct eng_tokenizer *t, const char *piece, size_t len, struct ids *out)
{
    if (len > INT32_MAX / 4)
        return ENG_ELIMIT;
    int rc = ENG_ENOMEM;
    int32_t *ids = malloc(len * sizeof *ids);
    struct symbol *symbols = malloc(len * sizeof *symbols);
    // One candidate for each first pair and at most two for each of the len - 1 merges.
    struct heap heap = {.data = malloc(3 * len * sizeof *heap.data)};
    if (!ids || !symbols || !heap.data)
        goto done;

    int32_t n = (int32_t)initial(t, piece, len, ids);
    for (int32_t i = 0; i < n; i++)
        symbols[i] = (struct symbol){.id = ids[i], .previous = i - 1, .next = i + 1 < n ? i + 1 : -1};
    for (int32_t i = 0; i < n; i++)
        push_pair(t, &heap, symbols, i);
    while (heap.n) {
        struct candidate c = heap_pop(&heap);
        struct symbol *left = &symbols[c.at];
        if (left->id != c.left || left->next < 0 || symbols[left->next].id != c.right)
            continue;
        struct symbol *right = &symbols[left->next];
        left->id = c.id;
        left->next = right->next;
        if (right->next >= 0)
            symbols[right->next].previous = c.at;
        right->id = -1;
        if (left->previous >= 0)
            push_pair(t, &heap, symbols, left->previous);
        push_pair(t, &heap, symbols, c.at);
    }
    rc = 0;
    for (int32_t i = 0; i >= 0 && n > 0 && !rc; i = symbols[i].next)
        rc = eng_tokenizer_push_id(out, symbols[i].id);
done:
    free(heap.data);
    free(symbols);
    free(ids);
    return rc;
}

int eng_tokenizer_bpe(const struct eng_tokenizer *t, const char *piece, size_t len, struct ids *out)
{
    if (t->ignore_merges || len == 1) {
        int32_t id = eng_tokenizer_find_piece(t, piece, len);
        // A special token never comes out of ordinary text, whatever the file's merges say.
        if (id >= 0 && !(t->pieces[id].flags & PIECE_SPECIAL))
            return eng_tokenizer_push_id(out, id);
    }
    return len <= SHORT_PIECE ? merge_short(t, piece, len, out) : merge_long(t, piece, len, out);
}
