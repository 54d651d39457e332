// Cuts the attention of a pass into items for the blocks of attention.cu, on the host, once a pass.
//
// An item is (segment, kv head, up to KRN_ATTENTION_WARPS tiles of queries, a run of chunks). Long segments in a pass
// that has too few items to fill the device are cut along the context too: then every chunk's partial result goes to
// memory and a second kernel folds them. How a pass is cut never changes a bit of any result.
//
// Plain C; allocates nothing; linear in the number of items.
#pragma once

#include "device_pass.h"

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum krn_attention_cut {
    KRN_ATTENTION_CUT_AUTO,
    KRN_ATTENTION_CUT_NEVER,  // for tests
    KRN_ATTENTION_CUT_ALWAYS, // for tests: wherever the slots suffice
};

// Resident blocks of attention.cu on one multiprocessor: the persistent grid (krn_attention_args.blocks) is best
// multiprocessors times this.
enum { KRN_ATTENTION_BLOCKS = 2 };

struct krn_attention_setup {
    int32_t n_kv_heads, group; // query heads = n_kv_heads * group
    int32_t slots;             // capacity of krn_attention_args.sums, in slots
    int32_t multiprocessors;
    enum krn_attention_cut cut;
};

// A bound of the items of any pass of at most so many rows and segments.
int32_t krn_attention_items_max(const struct krn_attention_setup *setup, int32_t rows, int32_t segments);

// Of each segment row, rows, first_pos and mask are given; n_chunks and sums are filled in. Returns the number of items
// written (at most krn_attention_items_max of the pass), 0 when there are no segments.
int32_t krn_attention_plan(const struct krn_attention_setup *setup, struct krn_dev_segment *segments,
                           int32_t n_segments, struct krn_dev_attention_item *items);

#ifdef __cplusplus
}
#endif
