// What the checks of the CUDA kernels share: device memory filled from the host and read back, a pass block, reporting.
// Everything goes through the driver table, so the same checks run on the host emulation and on a GPU.
#pragma once

#include "attention_plan.h"
#include "driver.h"
#include "kern_util.h"
#include "ops.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct cuda_rig {
    struct krn_cuda_driver driver;
    struct krn_cuda_launch how;
    bool emulated; // the host plays the GPU: keep sizes small
    int n_checks, n_failures;
};

// Opens the driver that this program was linked with: the fake one, or (CUDA_RIG_DEVICE) the first GPU's. Exits with 77
// (skipped) where there is no GPU.
void rig_open(struct cuda_rig *rig);
void rig_close(struct cuda_rig *rig);

// For results of krn_cuda_* and of the driver: anything but 0 ends the program with the driver's sentence.
void rig_must(struct cuda_rig *rig, int rc, const char *what);

// Device memory; freed by rig_free. Aborts on failure.
void *rig_alloc(struct cuda_rig *rig, size_t bytes); // filled with 0xff: NaN where nobody writes
void *rig_upload(struct cuda_rig *rig, const void *host, size_t bytes);
void rig_write(struct cuda_rig *rig, void *device, const void *host, size_t bytes);
void rig_read(struct cuda_rig *rig, void *host, const void *device, size_t bytes); // waits for the stream
void rig_free(struct cuda_rig *rig, void *device);

// One TAP line.
void rig_report(struct cuda_rig *rig, bool ok, const char *what);

// The device's weight of a random host matrix: packed with krn_cuda_pack in the type wanted. ret_values (may be NULL):
// what the device's matrix stands for, f32 [rows][cols], freed with free. Free the weight with rig_weight_free.
struct krn_dev_weight rig_weight(struct cuda_rig *rig, struct random *random, enum krn_type type, int32_t rows,
                                 int32_t cols, float **ret_values);
void rig_weight_free(struct cuda_rig *rig, struct krn_dev_weight *weight);

// A pass block of consecutive segments, without wanted rows: tokens 0, links -1, no adapter rows. The attention items
// are planned by krn_attention_plan. Freed with rig_free. segments[i].pages are host arrays as in kernels.h.
struct krn_dev_pass *rig_pass(struct cuda_rig *rig, const struct krn_segment *segments, int32_t n_segments,
                              int32_t page_size, int32_t group, int32_t n_kv_heads);
// The same for another plan than rig_setup's. For both, krn_attention_args.sums must have setup.slots slots.
struct krn_dev_pass *rig_pass_with(struct cuda_rig *rig, const struct krn_attention_setup *setup,
                                   const struct krn_segment *segments, int32_t n_segments, int32_t page_size);
struct krn_attention_setup rig_setup(const struct cuda_rig *rig, int32_t group, int32_t n_kv_heads);

void check_rows(struct cuda_rig *rig);
void check_linear(struct cuda_rig *rig);
void check_pack(struct cuda_rig *rig);
void check_ranks(struct cuda_rig *rig);
void check_rope(struct cuda_rig *rig);
void check_attention(struct cuda_rig *rig);
void check_select(struct cuda_rig *rig);
void check_accept(struct cuda_rig *rig);

#ifdef __cplusplus
}
#endif
