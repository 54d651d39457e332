// 4 SCHEDULE  Pages of the KV store: which sequence owns which, and how far each sequence's KV is final.
//
// The store itself belongs to the model; here are only page numbers. Engine thread only. All memory is sized by init.
// The numbered rules of engine/README.md are kept here and by the scheduler.
#pragma once

#include <stdbool.h>
#include <stdint.h>

struct eng_kv_slot {
    int32_t *pages; // [max_pages]; the first n_pages are owned
    int32_t n_pages;
    int32_t committed; // positions 0 .. committed - 1 hold final KV
};

struct eng_kv {
    int32_t n_pages, page_size;
    int32_t n_slots, max_pages; // a slot's limit
    int32_t *free_pages;        // stack of n_free page numbers
    int32_t n_free;
    struct eng_kv_slot *slots;
    int32_t *tables; // every slot's pages, one block
};

// max_positions: the longest a sequence may become. 0 or ENG_ENOMEM, ENG_EINVAL.
int eng_kv_init(struct eng_kv *kv, int32_t n_pages, int32_t page_size, int32_t n_slots, int32_t max_positions);
// Takes a zeroed or half-built object.
void eng_kv_done(struct eng_kv *kv);

// Pages that n positions need.
int32_t eng_kv_pages_for(const struct eng_kv *kv, int32_t n_positions);
// Makes sure that the slot owns pages for positions 0 .. n_positions - 1. All or nothing: 0, or ENG_ELIMIT when too few
// pages are free.
int eng_kv_reserve(struct eng_kv *kv, int32_t slot, int32_t n_positions);
// Positions below n_positions are final from now on. Never goes back, never beyond what is reserved.
void eng_kv_commit(struct eng_kv *kv, int32_t slot, int32_t n_positions);
// Gives back the pages that lie wholly beyond the committed positions.
void eng_kv_rollback(struct eng_kv *kv, int32_t slot);
// Gives back everything; nothing is committed any more.
void eng_kv_release(struct eng_kv *kv, int32_t slot);

// The slot's page numbers, for segments. Valid until the slot is reserved further or released; the address itself never
// moves.
const int32_t *eng_kv_table(const struct eng_kv *kv, int32_t slot);
int32_t eng_kv_used(const struct eng_kv *kv);

// Debug: true when every page is owned exactly once, by a slot or by the free list. Costs O(pages).
bool eng_kv_check(const struct eng_kv *kv);
