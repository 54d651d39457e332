// The CUDA backend from the inside: what its files share.
//
// backend.c owns order and failure, storage.c and prepare.c memory; operations.c and products.c turn ops into steps;
// pass.c, graphs.c, memory.c and steps.c are the parts. Engine thread only.
#pragma once

#include "driver.h"
#include "graphs.h"
#include "kernels.h"
#include "memory.h"
#include "pass.h"
#include "steps.h"

enum krn_cuda_state {
    KRN_CUDA_IDLE,   // no pass is begun
    KRN_CUDA_EAGER,  // ops are launched as they come
    KRN_CUDA_RECORD, // ops are recorded; submit launches them
    KRN_CUDA_REPLAY, // a graph will be launched; there are no ops
};

// Products of more rows than this are the library's, unless bits must not depend on the number of rows.
enum { KRN_CUDA_OWN_ROWS = 64 };
// Rows that one launch of select takes: bounds its working memory.
enum { KRN_CUDA_SELECT_ROWS = 128 };

struct krn_cuda_backend {
    struct krn_backend backend; // handed out
    struct krn_cuda_driver driver;
    struct krn_cuda_options options;
    bool overlap;
    bool library; // the driver has products of its own
    char description[512];

    int failed; // KRN_EDEVICE once the device failed: every later call returns it
    char error[400];

    struct krn_cuda_memory memory;
    struct krn_cuda_passes passes;
    struct krn_cuda_graphs graphs;
    struct krn_cuda_tape tape;
    int64_t graph_bytes; // of device memory that one graph takes, measured

    // Made by prepare.
    bool prepared;
    struct krn_limits limits;
    struct krn_rope rope; // inv_freq: host, ours
    float *inv_freq;      // device
    int32_t *row_tokens;  // [rows]
    float *rope_table, *q_scale;
    uint16_t *q;     // what rope_write leaves
    uint16_t *inner; // INPUT [rows][adapter_rank]
    float *select_work;

    // The pass whose ops are issued.
    enum krn_cuda_state state;
    const struct krn_pass *pass;
    struct krn_cuda_key key;
    struct krn_cuda_graph *replay;
    bool rope_table_made;
    bool shared;         // flatten was called: others put work of their own between the ops of this pass
    const void *rotated; // the q that rope_write was last given
};

// Keeps a sentence for error() and returns code.
int krn_cuda_refuse(struct krn_cuda_backend *b, int code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
// Passes rc of a driver call or launch through; KRN_EDEVICE is kept for good, with the driver's sentence.
int krn_cuda_checked(struct krn_cuda_backend *b, int rc);

// No graphs from here on; the backend's description says why.
void krn_cuda_no_graphs(struct krn_cuda_backend *b, const char *reason);

// Runs a step as the state wants it. A step that cannot be recorded ends recording: everything so far is then launched.
int krn_cuda_issue(struct krn_cuda_backend *b, const struct krn_cuda_step *step);

// Before memory goes away or changes its address: waits until nothing uses it and throws the graphs away.
void krn_cuda_let_go(struct krn_cuda_backend *b);

// krn_backend.prepare.
int krn_cuda_prepare(void *ctx, const struct krn_limits *limits);

// Each fills in its entries of the table.
void krn_cuda_storage(struct krn_backend *backend);    // alloc .. download
void krn_cuda_operations(struct krn_backend *backend); // embed .. accept without the next
void krn_cuda_products(struct krn_backend *backend);   // linear, project, gated, head

// ---- what ops share (operations.c) ----------------------------------------------------------------------------------

// 0: an op on so many rows may run now.
int krn_cuda_enter(struct krn_cuda_backend *b, int32_t rows);
// KRN_EINVAL, with the op's name in the sentence.
int krn_cuda_refuse_op(struct krn_cuda_backend *b, const char *op);
// The INPUT matrix x, wide and tall enough; or NULL.
struct krn_cuda_rows *krn_cuda_find_input(struct krn_cuda_backend *b, const void *x, int32_t rows, int32_t width);
// What the last product left in the OUTPUT matrix x. False: nothing of this width.
bool krn_cuda_find_sums(struct krn_cuda_backend *b, const void *x, int32_t rows, int32_t width,
                        struct krn_dev_sums *ret);

// A backend over any driver table, which is taken over on success and on failure alike. err (may be NULL) gets one
// sentence on failure; *ret is then untouched.
int krn_cuda_backend_open(const struct krn_cuda_driver *driver, const struct krn_cuda_options *options,
                          struct krn_backend **ret, char *err, size_t err_size);
