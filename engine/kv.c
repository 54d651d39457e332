// 4 SCHEDULE  Page accounting of the KV store: a stack of free page numbers, one table per slot, and the list of pages
// that are only cached.
//
// Engine thread. Owns page numbers, not their bytes; nothing is ever copied. What a page holds is prefix.c's matter.
// That list is in the order of last use. A slot that uses a cached page uses all pages before it in the chain, and
// gives its pages back from the last to the first, so a page stands in the list behind everything that continues it:
// taking the oldest never leaves a page whose predecessor is gone.
#include "kv.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"

int eng_kv_init(struct eng_kv *kv, int32_t n_pages, int32_t page_size, int32_t n_slots, int32_t max_positions)
{
    *kv = (struct eng_kv){.oldest = -1, .youngest = -1};
    if (n_pages < 1 || page_size < 1 || n_slots < 1 || max_positions < 1)
        return ENG_EINVAL;
    kv->n_pages = n_pages;
    kv->page_size = page_size;
    kv->n_slots = n_slots;
    kv->max_pages = eng_kv_pages_for(kv, max_positions);
    kv->free_pages = malloc((size_t)n_pages * sizeof *kv->free_pages);
    kv->pages = calloc((size_t)n_pages, sizeof *kv->pages);
    kv->slots = calloc((size_t)n_slots, sizeof *kv->slots);
    kv->tables = calloc((size_t)n_slots * (size_t)kv->max_pages, sizeof *kv->tables);
    if (!kv->free_pages || !kv->pages || !kv->slots || !kv->tables) {
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

int eng_kv_enable_sharing(struct eng_kv *kv)
{
    return eng_prefix_init(&kv->prefix, kv->n_pages, kv->page_size);
}

void eng_kv_done(struct eng_kv *kv)
{
    eng_prefix_done(&kv->prefix);
    free(kv->free_pages);
    free(kv->pages);
    free(kv->slots);
    free(kv->tables);
    *kv = (struct eng_kv){0};
}

int32_t eng_kv_pages_for(const struct eng_kv *kv, int32_t n_positions)
{
    return n_positions / kv->page_size + (n_positions % kv->page_size != 0);
}

int32_t eng_kv_missing(const struct eng_kv *kv, int32_t slot, int32_t n_positions)
{
    int32_t n = eng_kv_pages_for(kv, n_positions) - kv->slots[slot].n_pages;
    return n > 0 ? n : 0;
}

int32_t eng_kv_available(const struct eng_kv *kv)
{
    return kv->n_free + kv->n_cached;
}

// ---- pages ----------------------------------------------------------------------------------------------------------

static void list_append(struct eng_kv *kv, int32_t page)
{
    kv->pages[page].older = kv->youngest;
    kv->pages[page].younger = -1;
    *(kv->youngest < 0 ? &kv->oldest : &kv->pages[kv->youngest].younger) = page;
    kv->youngest = page;
    kv->n_cached++;
}

static void list_remove(struct eng_kv *kv, int32_t page)
{
    const struct eng_kv_page *p = &kv->pages[page];
    *(p->older < 0 ? &kv->oldest : &kv->pages[p->older].younger) = p->younger;
    *(p->younger < 0 ? &kv->youngest : &kv->pages[p->younger].older) = p->older;
    kv->n_cached--;
}

// A page for one user, at the cost of what the longest unused one holds if none is free.
static int32_t take(struct eng_kv *kv)
{
    int32_t page;
    if (kv->n_free) {
        page = kv->free_pages[--kv->n_free];
    } else {
        page = kv->oldest;
        list_remove(kv, page);
        eng_prefix_remove(&kv->prefix, page);
    }
    kv->pages[page].n_users = 1;
    return page;
}

static void add_user(struct eng_kv *kv, int32_t page)
{
    if (kv->pages[page].n_users++ == 0)
        list_remove(kv, page);
}

static void drop_user(struct eng_kv *kv, int32_t page)
{
    assert(kv->pages[page].n_users > 0);
    if (--kv->pages[page].n_users)
        return;
    if (eng_prefix_has(&kv->prefix, page))
        list_append(kv, page);
    else
        kv->free_pages[kv->n_free++] = page;
}

// ---- slots ----------------------------------------------------------------------------------------------------------

int eng_kv_reserve(struct eng_kv *kv, int32_t slot, int32_t n_positions)
{
    struct eng_kv_slot *s = &kv->slots[slot];
    int32_t want = eng_kv_pages_for(kv, n_positions);
    assert(want <= kv->max_pages);
    if (want - s->n_pages > eng_kv_available(kv))
        return ENG_ELIMIT;
    while (s->n_pages < want)
        s->pages[s->n_pages++] = take(kv);
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
        drop_user(kv, s->pages[--s->n_pages]);
}

void eng_kv_rollback(struct eng_kv *kv, int32_t slot)
{
    struct eng_kv_slot *s = &kv->slots[slot];
    give_back(kv, s, eng_kv_pages_for(kv, s->committed));
}

void eng_kv_release(struct eng_kv *kv, int32_t slot)
{
    struct eng_kv_slot *s = &kv->slots[slot];
    s->committed = 0;
    s->chain = (struct eng_prefix_chain){0};
    give_back(kv, s, 0);
}

const int32_t *eng_kv_table(const struct eng_kv *kv, int32_t slot)
{
    return kv->slots[slot].pages;
}

int32_t eng_kv_used(const struct eng_kv *kv)
{
    return kv->n_pages - eng_kv_available(kv);
}

// ---- sharing --------------------------------------------------------------------------------------------------------

int32_t eng_kv_match_used(const struct eng_kv *kv, const int32_t *tokens, int32_t n_tokens, const char *salt)
{
    if (!kv->prefix.n_pages)
        return 0;
    struct eng_prefix_chain chain;
    eng_prefix_begin(&kv->prefix, salt, &chain);
    int32_t n = n_tokens / kv->page_size;
    while (chain.n_pages < n) {
        int32_t page = eng_prefix_follow(&kv->prefix, &chain, tokens + (int64_t)chain.n_pages * kv->page_size);
        // Whoever uses a page uses all before it, so the first unused one ends the used ones.
        if (page < 0 || !kv->pages[page].n_users)
            return chain.n_pages - (page >= 0);
    }
    return n;
}

int32_t eng_kv_attach(struct eng_kv *kv, int32_t slot, const int32_t *tokens, int32_t n_tokens, const char *salt)
{
    struct eng_kv_slot *s = &kv->slots[slot];
    assert(s->n_pages == 0);
    if (!kv->prefix.n_pages)
        return 0;
    eng_prefix_begin(&kv->prefix, salt, &s->chain);
    int32_t n = n_tokens / kv->page_size, page;
    while (s->n_pages < n &&
           (page = eng_prefix_follow(&kv->prefix, &s->chain, tokens + (int64_t)s->n_pages * kv->page_size)) >= 0) {
        add_user(kv, page);
        s->pages[s->n_pages++] = page;
    }
    s->committed = s->n_pages * kv->page_size;
    return s->committed;
}

void eng_kv_share(struct eng_kv *kv, int32_t slot, const int32_t *tokens, int32_t n_tokens)
{
    struct eng_kv_slot *s = &kv->slots[slot];
    int32_t n = (n_tokens < s->committed ? n_tokens : s->committed) / kv->page_size;
    if (!kv->prefix.n_pages)
        return;
    while (s->chain.n_pages < n) {
        int32_t *own = &s->pages[s->chain.n_pages];
        const int32_t *ids = tokens + (int64_t)s->chain.n_pages * kv->page_size;
        int32_t page = eng_prefix_follow(&kv->prefix, &s->chain, ids);
        if (page < 0) {
            eng_prefix_extend(&kv->prefix, &s->chain, ids, *own);
        } else {
            add_user(kv, page);
            drop_user(kv, *own);
            *own = page;
        }
    }
}

// ---- check ----------------------------------------------------------------------------------------------------------

// A page's users as the slots have it, then how often it was met in a list.
struct seen {
    int32_t users, listed;
};

static bool check_slots(const struct eng_kv *kv, struct seen *seen)
{
    for (int32_t i = 0; i < kv->n_slots; i++) {
        const struct eng_kv_slot *s = &kv->slots[i];
        if (eng_kv_pages_for(kv, s->committed) > s->n_pages || s->chain.n_pages * kv->page_size > s->committed)
            return false;
        for (int32_t k = 0; k < s->n_pages; k++) {
            int32_t page = s->pages[k];
            if (page < 0 || page >= kv->n_pages)
                return false;
            seen[page].users++;
            if (eng_prefix_has(&kv->prefix, page) != (k < s->chain.n_pages))
                return false;
            if (k < s->chain.n_pages && kv->prefix.entries[page].parent != (k ? s->pages[k - 1] : -1))
                return false;
        }
    }
    return true;
}

static bool check_lists(const struct eng_kv *kv, struct seen *seen)
{
    for (int32_t i = 0; i < kv->n_free; i++) {
        int32_t page = kv->free_pages[i];
        if (page < 0 || page >= kv->n_pages || seen[page].listed++ || eng_prefix_has(&kv->prefix, page))
            return false;
    }
    int32_t n = 0;
    for (int32_t page = kv->oldest; page >= 0; page = kv->pages[page].younger, n++) {
        if (seen[page].listed++ || !eng_prefix_has(&kv->prefix, page))
            return false;
        int32_t parent = kv->prefix.entries[page].parent;
        if (parent >= 0 && (!eng_prefix_has(&kv->prefix, parent) || seen[parent].listed))
            return false; // it would be, or was, evicted before what continues it
    }
    return n == kv->n_cached;
}

bool eng_kv_check(const struct eng_kv *kv)
{
    struct seen *seen = calloc((size_t)kv->n_pages, sizeof *seen);
    if (!seen)
        return true;
    bool good = check_slots(kv, seen) && check_lists(kv, seen);
    for (int32_t i = 0; good && i < kv->n_pages; i++)
        good = seen[i].users == kv->pages[i].n_users && (seen[i].users > 0) + seen[i].listed == 1 &&
               (seen[i].users <= 1 || eng_prefix_has(&kv->prefix, i));
    free(seen);
    return good;
}
