// The passes under way: what they bring to the device and what comes back.
//
// A pass's metadata (device_pass.h) is built in pinned memory, one of KRN_PASSES_AHEAD + 1 buffers, and brought to one
// fixed block of device memory by one copy; stream order keeps it from the kernels of the pass before. Its choices
// return to pinned memory of their own and are unpacked when the pass is waited for. Engine thread only.
#pragma once

#include "attention_plan.h"
#include "driver.h"
#include "kernels.h"
#include "memory.h"
#include "ops.h"

struct krn_cuda_staging {
    struct krn_dev_pass *block; // pinned
    struct krn_cuda_event *copied;
    bool used;
};

struct krn_cuda_results {
    struct krn_dev_choice *choices; // pinned, [max_rows]
    struct krn_dev_top *tops;       // pinned, [max_rows]
    struct krn_dev_accepted *accepted;
    struct krn_cuda_event *done;
    const struct krn_pass *pass;
    bool with_tops;
};

// How many elements of each kind a pass has.
struct krn_cuda_counts {
    int64_t rows, segments, items, pages, wanted, counts, biases, accepts, bitmaps;
};

struct krn_cuda_passes {
    const struct krn_cuda_driver *driver;
    struct krn_cuda_memory *memory;
    struct krn_limits limits;
    int32_t page_size, n_pages; // of the KV store
    int32_t last_wanted;        // choices of the pass before: what links may name
    // Device.
    struct krn_dev_pass *block;
    size_t room;                       // of block and of each staging buffer
    struct krn_dev_choice *choices;    // [max_rows]
    struct krn_dev_top *tops;          // [max_rows]
    struct krn_dev_accepted *accepted; // [max_rows]
    float *sums;                       // of attention
    struct krn_attention_setup setup;  // how the attention of these passes is cut

    struct krn_cuda_staging staging[KRN_PASSES_AHEAD + 1];
    struct krn_cuda_results results[KRN_PASSES_AHEAD];
    int next_staging, next_results, n_ahead;
    const void **bitmaps; // host, [max_rows]: the distinct ones of the pass being built
};

// Allocates for these limits. driver and memory must outlive p. On failure p is half-built: krn_cuda_passes_done.
int krn_cuda_passes_open(struct krn_cuda_passes *p, const struct krn_cuda_driver *driver,
                         struct krn_cuda_memory *memory, const struct krn_limits *limits);
// Frees the pinned memory; the device's belongs to `memory`. A zeroed p is fine.
void krn_cuda_passes_done(struct krn_cuda_passes *p);

// NULL, or one phrase on what is wrong with the pass.
const char *krn_cuda_pass_check(const struct krn_cuda_passes *p, const struct krn_pass *pass);
// Counts a checked pass; *ret_bytes: what its block needs.
void krn_cuda_pass_count(struct krn_cuda_passes *p, const struct krn_pass *pass, struct krn_cuda_counts *ret,
                         size_t *ret_bytes);
// A larger block at another address. The device must be idle, and no graph may hold the old address.
int krn_cuda_passes_grow(struct krn_cuda_passes *p, size_t bytes);
// Builds the block of a checked and counted pass and starts its copy. Waits for a free staging buffer.
int krn_cuda_pass_send(struct krn_cuda_passes *p, const struct krn_pass *pass, const struct krn_cuda_counts *counts);

// After the pass's kernels: starts the copies of what it found, and counts it as ahead.
int krn_cuda_pass_fetch(struct krn_cuda_passes *p, const struct krn_pass *pass);
// Waits for the oldest pass ahead and fills its choices. There must be one.
int krn_cuda_pass_take(struct krn_cuda_passes *p);
