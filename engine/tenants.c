// 4 SCHEDULE  The waiting requests (tenants.h): a list of all, a pairing heap for each tenant, and the round of
// tenants.
//
// Whatever a request needs to stand here is in the request (child, sibling, up, next, prev), so ten thousand of them
// cost this file nothing.
#include "tenants.h"

#include <assert.h>
#include <stdlib.h>

#include "base/err.h"
#include "request.h"

enum { QUANTUM = 1024 }; // positions that a tenant may start in a round

int eng_tenants_init(struct eng_tenants *w, int32_t n_slots)
{
    *w = (struct eng_tenants){.n_slots = n_slots};
    w->all = calloc(ENG_MAX_TENANTS, sizeof *w->all);
    return w->all ? 0 : ENG_ENOMEM;
}

void eng_tenants_done(struct eng_tenants *w)
{
    free(w->all);
    *w = (struct eng_tenants){0};
}

struct eng_tenant *eng_tenants_of(const struct eng_tenants *w, const struct eng_request *r)
{
    return &w->all[r->params.tenant];
}

int32_t eng_tenants_share(const struct eng_tenants *w)
{
    int32_t n = w->n_active ? w->n_slots / w->n_active : w->n_slots;
    return n > 1 ? n : 1;
}

// ---- the order within a tenant --------------------------------------------------------------------------------------

bool eng_tenants_before(const struct eng_request *a, const struct eng_request *b)
{
    return a->turn_ns != b->turn_ns ? a->turn_ns < b->turn_ns : a->seq.age < b->seq.age;
}

static bool heap_before(const struct eng_request *a, const struct eng_request *b)
{
    bool pa = a->seq.n_preempted > 0, pb = b->seq.n_preempted > 0;
    return pa != pb ? pa : eng_tenants_before(a, b);
}

// Two heaps become one; b may be NULL. A root has neither up nor sibling.
static struct eng_request *meld(struct eng_request *a, struct eng_request *b)
{
    if (!b)
        return a;
    if (heap_before(b, a)) {
        struct eng_request *swap = a;
        a = b;
        b = swap;
    }
    b->up = a;
    b->sibling = a->child;
    if (a->child)
        a->child->up = b;
    a->child = b;
    return a;
}

// The heap of a removed root's children: pairs from left to right, then all of them from right to left.
static struct eng_request *meld_children(struct eng_request *first)
{
    struct eng_request *pairs = NULL, *root = NULL;
    while (first) {
        struct eng_request *a = first, *b = a->sibling;
        first = b ? b->sibling : NULL;
        a->up = a->sibling = NULL;
        if (b)
            b->up = b->sibling = NULL;
        a = meld(a, b);
        a->sibling = pairs;
        pairs = a;
    }
    while (pairs) {
        struct eng_request *next = pairs->sibling;
        pairs->sibling = NULL;
        root = meld(pairs, root);
        pairs = next;
    }
    return root;
}

static void heap_remove(struct eng_request **root, struct eng_request *r)
{
    struct eng_request *rest = meld_children(r->child);
    r->child = NULL;
    if (r == *root) {
        *root = rest;
        return;
    }
    *(r->up->child == r ? &r->up->child : &r->up->sibling) = r->sibling;
    if (r->sibling)
        r->sibling->up = r->up;
    r->up = r->sibling = NULL;
    *root = meld(*root, rest);
}

// ---- the round of tenants -------------------------------------------------------------------------------------------

static void round_append(struct eng_tenants *w, struct eng_tenant *t)
{
    t->prev = w->last;
    t->next = NULL;
    *(w->last ? &w->last->next : &w->first) = t;
    w->last = t;
}

static void round_remove(struct eng_tenants *w, struct eng_tenant *t)
{
    *(t->prev ? &t->prev->next : &w->first) = t->next;
    *(t->next ? &t->next->prev : &w->last) = t->prev;
}

// What a start costs its tenant: the positions it begins with.
static int64_t price(const struct eng_request *r)
{
    return r->seq.n_preempted ? 0 : r->seq.n_prompt + r->params.block_length;
}

void eng_tenants_add(struct eng_tenants *w, struct eng_request *r)
{
    struct eng_tenant *t = eng_tenants_of(w, r);
    r->turn_ns = r->seq.submit_ns + r->params.priority * ENG_PRIORITY_NS;
    r->child = r->sibling = r->up = NULL;
    r->next = NULL;
    r->prev = w->tail;
    *(w->tail ? &w->tail->next : &w->head) = r;
    w->tail = r;
    w->n_waiting++;
    w->n_active += !t->n_running && !t->n_waiting;
    if (!t->n_waiting++)
        round_append(w, t);
    t->heap = t->heap ? meld(t->heap, r) : r;
}

void eng_tenants_remove(struct eng_tenants *w, struct eng_request *r)
{
    struct eng_tenant *t = eng_tenants_of(w, r);
    *(r->prev ? &r->prev->next : &w->head) = r->next;
    *(r->next ? &r->next->prev : &w->tail) = r->prev;
    r->next = r->prev = NULL;
    w->n_waiting--;
    heap_remove(&t->heap, r);
    if (!--t->n_waiting) {
        round_remove(w, t);
        t->deficit = 0;
    }
    w->n_active -= !t->n_running && !t->n_waiting;
}

// The first of the round that can pay; under: of those that run less than `share`. *ret_rounds: how many more rounds
// the first of them needs, 0 when there is none at all.
static struct eng_tenant *can_pay(const struct eng_tenants *w, bool under, int32_t share, int64_t *ret_rounds)
{
    *ret_rounds = 0;
    for (struct eng_tenant *t = w->first; t; t = t->next) {
        if (under && t->n_running >= share)
            continue;
        int64_t missing = price(t->heap) - t->deficit, rounds = (missing + QUANTUM - 1) / QUANTUM;
        if (missing <= 0)
            return t;
        if (!*ret_rounds || rounds < *ret_rounds)
            *ret_rounds = rounds;
    }
    return NULL;
}

struct eng_request *eng_tenants_next(struct eng_tenants *w)
{
    int32_t share = eng_tenants_share(w);
    for (int under = 1; under >= 0; under--) {
        int64_t rounds;
        struct eng_tenant *t = can_pay(w, under, share, &rounds);
        // Rounds in which nobody could pay are passed over at once.
        for (struct eng_tenant *u = w->first; u && rounds && !t; u = u->next)
            if (!under || u->n_running < share)
                u->deficit += rounds * QUANTUM;
        if (!t && rounds)
            t = can_pay(w, under, share, &rounds);
        if (t)
            return t->heap;
    }
    return NULL;
}

void eng_tenants_take(struct eng_tenants *w, struct eng_request *r)
{
    struct eng_tenant *t = eng_tenants_of(w, r);
    assert(r == t->heap);
    int64_t paid = price(r);
    eng_tenants_remove(w, r);
    if (!t->n_waiting)
        return;
    t->deficit -= paid;
    if (t->deficit < price(t->heap)) {
        round_remove(w, t);
        round_append(w, t);
    }
}

void eng_tenants_started(struct eng_tenants *w, const struct eng_request *r)
{
    struct eng_tenant *t = eng_tenants_of(w, r);
    w->n_active += !t->n_running && !t->n_waiting;
    t->n_running++;
}

void eng_tenants_stopped(struct eng_tenants *w, const struct eng_request *r)
{
    struct eng_tenant *t = eng_tenants_of(w, r);
    t->n_running--;
    w->n_active -= !t->n_running && !t->n_waiting;
    if (!t->n_running) {
        t->credit = 0;
        t->prompts_waited = t->no_room = false;
    }
}
