// Memory that is freed all at once: a list of chunks, each twice the one before up to a bound.
#include "base/arena.h"

#include <stdalign.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { FIRST_CHUNK = 4096, LARGEST_CHUNK = 1 << 20 };

struct chunk {
    struct chunk *next;
    size_t used, cap;
    alignas(16) char data[];
};

struct eng_arena {
    struct chunk *chunks; // the newest first; only it has room
    size_t used;
};

struct eng_arena *eng_arena_new(void)
{
    return calloc(1, sizeof(struct eng_arena));
}

void *eng_arena_alloc(struct eng_arena *a, size_t size)
{
    if (size > SIZE_MAX / 2)
        return NULL;
    size = (size + 15) & ~(size_t)15;
    struct chunk *c = a->chunks;
    if (!c || c->cap - c->used < size) {
        size_t cap = !c ? FIRST_CHUNK : c->cap < LARGEST_CHUNK ? c->cap * 2 : LARGEST_CHUNK;
        if (cap < size)
            cap = size;
        c = malloc(sizeof *c + cap);
        if (!c)
            return NULL;
        c->next = a->chunks;
        c->used = 0;
        c->cap = cap;
        a->chunks = c;
    }
    void *p = c->data + c->used;
    c->used += size;
    a->used += size;
    return p;
}

char *eng_arena_dup(struct eng_arena *a, const void *bytes, size_t n)
{
    char *p = eng_arena_alloc(a, n + 1);
    if (!p)
        return NULL;
    if (n)
        memcpy(p, bytes, n);
    p[n] = '\0';
    return p;
}

size_t eng_arena_used(const struct eng_arena *a)
{
    return a->used;
}

void eng_arena_free(struct eng_arena *a)
{
    if (!a)
        return;
    for (struct chunk *c = a->chunks, *next; c; c = next) {
        next = c->next;
        free(c);
    }
    free(a);
}
