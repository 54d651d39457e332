// 4 SCHEDULE  Page accounting of the KV store: a stack of free page numbers and one table per slot.
//
// Engine thread. Owns page numbers, not their bytes. Sharing pages between sequences is left out: a page has one owner.
#include "kv.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"

int eng_kv_init(struct eng_kv *kv, int32_t n_pages, int32_t page_size, int32_t n_slots, int32_t max_positions)
{
    *kv = (struct eng_kv){0};
    if (n_pages < 1 || page_size < 1 || n_slots < 1 || max_positions < 1)
        return ENG_EINVAL;
    kv->n_pages = n_pages;
    kv->page_size = page_size;
    kv->n_slots = n_slots;
    kv->max_pages = eng_kv_pages_for(kv, max_positions);
    kv->free_pages = malloc((size_t)n_pages * sizeof *kv->free_pages);
    kv->slots = calloc((size_t)n_slots, sizeof *kv->slots);
    kv->tables = calloc((size_t)n_slots * (size_t)kv->max_pages, sizeof *kv->tables);
    if (!kv->free_pages || !kv->slots || !kv->tables) {
        eng_kv_done(kv);
        return ENG_ENOMEM;
    }
    for (int32_t i = 0; i < n_slots; i++)
        kv->slots[i].pages = kv->tables + (size_t)i * (size_t)kv->max_pages;
    // The lowest page number is taken first.
    for (int32_t i = 0; i < n_pages; i++)
        kv->free_pages[i] = n_pages - 1 - i;
    kv->n_free = n_pages;
    return 0;
}

void eng_kv_done(struct eng_kv *kv)
{
    free(kv->free_pages);
    free(kv->slots);
    free(kv->tables);
    *kv = (struct eng_kv){0};
}

int32_t eng_kv_pages_for(const struct eng_kv *kv, int32_t n_positions)
{
    return n_positions / kv->page_size + (n_positions % kv->page_size != 0);
}

int eng_kv_reserve(struct eng_kv *kv, int32_t slot, int32_t n_positions)
{
    struct eng_kv_slot *s = &kv->slots[slot];
    int32_t want = eng_kv_pages_for(kv, n_positions);
    assert(want <= kv->max_pages);
    if (want - s->n_pages > kv->n_free)
        return ENG_ELIMIT;
    while (s->n_pages < want)
        s->pages[s->n_pages++] = kv->free_pages[--kv->n_free];
    return 0;
}

void eng_kv_commit(struct eng_kv *kv, int32_t slot, int32_t n_positions)
{
    struct eng_kv_slot *s = &kv->slots[slot];
    assert(n_positions >= s->committed && eng_kv_pages_for(kv, n_positions) <= s->n_pages);
    s->committed = n_positions;
}

static void give_back(struct eng_kv *kv, struct eng_kv_slot *s, int32_t keep)
{
    while (s->n_pages > keep)
        kv->free_pages[kv->n_free++] = s->pages[--s->n_pages];
    assert(kv->n_free <= kv->n_pages);
}

void eng_kv_rollback(struct eng_kv *kv, int32_t slot)
{
    struct eng_kv_slot *s = &kv->slots[slot];
    give_back(kv, s, eng_kv_pages_for(kv, s->committed));
}

void eng_kv_release(struct eng_kv *kv, int32_t slot)
{
    kv->slots[slot].committed = 0;
    give_back(kv, &kv->slots[slot], 0);
}

const int32_t *eng_kv_table(const struct eng_kv *kv, int32_t slot)
{
    return kv->slots[slot].pages;
}

int32_t eng_kv_used(const struct eng_kv *kv)
{
    return kv->n_pages - kv->n_free;
}

static bool mark(uint8_t *seen, int32_t n_pages, int32_t page)
{
    if (page < 0 || page >= n_pages || seen[page])
        return false;
    seen[page] = 1;
    return true;
}

bool eng_kv_check(const struct eng_kv *kv)
{
    uint8_t *seen = calloc((size_t)kv->n_pages, 1);
    if (!seen)
        return true;
    int32_t owned = 0;
    bool good = true;
    for (int32_t i = 0; good && i < kv->n_free; i++, owned++)
        good = mark(seen, kv->n_pages, kv->free_pages[i]);
    for (int32_t s = 0; s < kv->n_slots; s++) {
        const struct eng_kv_slot *slot = &kv->slots[s];
        good = good && eng_kv_pages_for(kv, slot->committed) <= slot->n_pages;
        for (int32_t i = 0; good && i < slot->n_pages; i++, owned++)
            good = mark(seen, kv->n_pages, slot->pages[i]);
    }
    free(seen);
    return good && owned == kv->n_pages;
}
