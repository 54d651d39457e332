// Memory that is freed all at once. For work that builds many small objects and ends soon (a template's rendering).
#pragma once

#include <stddef.h>

struct eng_arena;

// NULL when there is no memory.
struct eng_arena *eng_arena_new(void);
// 16-byte aligned, uninitialised; NULL when there is no memory. Lives until eng_arena_free.
void *eng_arena_alloc(struct eng_arena *a, size_t size);
// Copies n bytes and adds a NUL.
char *eng_arena_dup(struct eng_arena *a, const void *bytes, size_t n);
// Bytes handed out so far.
size_t eng_arena_used(const struct eng_arena *a);
// Takes NULL.
void eng_arena_free(struct eng_arena *a);
