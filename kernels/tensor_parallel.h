// Tensor parallelism: one backend made of several, each with its own memory, that compute every pass together.
//
// What is where, with n devices (split: kernels.h, enum krn_split):
//
//     q, k, v, gate, up   by outputs: device d has heads d * n_heads / n ... and a like part of the hidden layer
//     o, down             by inputs: each device's product is a part of the sum; one all-reduce after each of the two
//     head                by outputs where it is a matrix of its own; its logits are gathered. Whole where it is the
//                         embedding table too
//     adapter of o        A by inputs, B whole: sum_d (x_d A_d^T) B^T = (x A^T) B^T, so every device adds its share and
//                         the all-reduce of o carries it; no exchange of its own
//     embeddings, norms   whole on every device
//     KV                  n_kv_heads / n heads of every page
//     select, accept      on every device, from the same bits: each has the choices that links of the next pass name
//
// So every linear weight exists once; n - 1 more copies exist of the embedding table, the norms and the adapter's B.
// Activations are allocated in their whole width everywhere. A pass moves, into each device: 2 n_layers all-reduces of
// rows * hidden floats and, of a split head, (n - 1) / n * wanted * n_vocab floats.
//
// Batch invariance holds where it holds in the children: the all-reduce adds in the order of the devices, never in one
// that depends on the number of rows. The bits differ from those of one device (another order of summation).
//
// What a composite gives out as an address (buffers, krn_tensor.data, krn_kv.k) is its own handle: it cannot be offset.
#pragma once

#include "kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { KRN_TENSOR_PARALLEL_MAX = 8 };

// How the devices exchange activations. Arrays have an entry a device; addresses are those of the children's memory.
// Every entry returns 0 or a negative KRN_E* code and is called from the backend's thread, the exchanges between the
// ops of a pass: they take their place in each device's order of work.
struct krn_comm {
    void *ctx;
    // In place: every parts[d][i] = parts[0][i] + parts[1][i] + ... in this order, i < count, the same bits everywhere.
    int (*all_reduce)(void *ctx, float *const parts[], int64_t count);
    // to[e][r][d * width + i] = parts[d][r][i] for every e: [rows][width] each, side by side. No part overlaps a `to`.
    int (*all_gather_columns)(void *ctx, float *const to[], const float *const parts[], int32_t rows, int32_t width);
    // Every child has submitted a pass. May be NULL.
    int (*submitted)(void *ctx);
    // Called before the children are waited for: returns when the oldest pass submitted and not finished is done on all
    // devices, or KRN_EDEVICE as soon as one of them failed (the others may then wait for it for ever). May be NULL.
    int (*finish)(void *ctx);
    // Ends exchanges that cannot end by themselves; none is started afterwards. May be NULL.
    void (*abort)(void *ctx);
    // One sentence on the last failure, never NULL.
    const char *(*error)(void *ctx);
    void (*close)(void *ctx); // before the children are closed
};

// Makes one backend of n (2 .. KRN_TENSOR_PARALLEL_MAX) of the same kind. On success *ret owns the children and the
// communicator and closes them; on failure they stay the caller's, *ret is untouched and err (may be NULL) holds one
// sentence. Models whose heads, hidden layer or split head do not divide by n are refused where they become known
// (import_weights, prepare, kv_open) with KRN_ENOTSUP and a sentence in error. After a failure that may have left the
// devices at different places (a submit, an exchange) every pass is refused with its code.
int krn_open_tensor_parallel(struct krn_backend *const children[], int32_t n, const struct krn_comm *comm,
                             struct krn_backend **ret, char *err, size_t err_size);

#ifdef __cplusplus
}
#endif
