// Tensor parallelism: opening and closing a composite backend, and the order of its passes.
//
// begin, submit, abandon and wait go to all children. Each child gets the caller's pass; the ones after the first write
// their choices to memory of ours, because links make them read their own later. wait compares those with the first
// child's: devices that computed different tokens have parted for good, so that is a failure of a device and not left
// to show as nonsense. One thread calls (the engine's); children that are asynchronous run at the same time.
//
// Leaves out recovery: after a submit or an exchange that failed on some devices only, the devices stand at different
// places, and the composite refuses everything but wait and close.
#include "tensor_parallel_inner.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// ---- failures -------------------------------------------------------------------------------------------------------

int krn_tp_fail(struct krn_tp *tp, int rc, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(tp->text, sizeof tp->text, format, args);
    va_end(args);
    return rc;
}

// The first failure of a lost composite is the one that explains the others.
int krn_tp_child_failed(struct krn_tp *tp, int32_t d, int rc)
{
    struct krn_backend *child = tp->children[d];
    if (tp->lost)
        return rc;
    bool explained = rc == KRN_EDEVICE || rc == KRN_ENOTSUP;
    return krn_tp_fail(tp, rc, "device %d: %s", d, explained ? child->error(child->ctx) : krn_strerror(rc));
}

// From here on no pass is begun. Devices that wait for one that does not come are freed.
static int lose(struct krn_tp *tp, int rc)
{
    if (!tp->lost) {
        tp->lost = rc;
        if (tp->comm.abort)
            tp->comm.abort(tp->comm.ctx);
    }
    return rc;
}

int krn_tp_comm_failed(struct krn_tp *tp, int rc)
{
    if (!tp->lost)
        krn_tp_fail(tp, rc, "%s", tp->comm.error(tp->comm.ctx));
    return lose(tp, rc);
}

static const char *tp_error(void *ctx)
{
    struct krn_tp *tp = ctx;
    return tp->text[0] ? tp->text : "no device has failed";
}

// ---- prepare --------------------------------------------------------------------------------------------------------

static int refuse_indivisible(struct krn_tp *tp, const struct krn_limits *limits)
{
    const struct {
        const char *what;
        int32_t n;
    } counts[] = {{"attention heads", limits->n_heads}, {"kv heads", limits->n_kv_heads}, {"hidden units", limits->ff}};
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++)
        if (counts[i].n % tp->n != 0)
            return krn_tp_fail(tp, KRN_ENOTSUP, "%d %s cannot be divided among %d devices", counts[i].n, counts[i].what,
                               tp->n);
    return 0;
}

// Where the children after the first write their results.
static int alloc_results(struct krn_tp *tp)
{
    size_t others = (size_t)KRN_TP_SLOTS * (size_t)(tp->n - 1);
    tp->choices = calloc(others * (size_t)tp->max_rows, sizeof *tp->choices);
    tp->accepted = calloc(others * (size_t)tp->max_segments, sizeof *tp->accepted);
    return tp->choices && tp->accepted ? 0 : krn_tp_fail(tp, KRN_ENOMEM, "no memory on the host for choices");
}

// What a split head writes before its parts are put side by side.
static int alloc_logits(struct krn_tp *tp)
{
    if (!krn_tp_has_split(tp, tp->n_vocab))
        return 0;
    for (int32_t d = 0; d < tp->n; d++) {
        struct krn_backend *child = tp->children[d];
        tp->logits[d] = child->alloc_rows(child->ctx, KRN_ROWS_STATE, tp->max_chunk, tp->n_vocab / tp->n, "logits");
        if (!tp->logits[d])
            return krn_tp_fail(tp, KRN_ENOMEM, "device %d: no memory for its part of the logits", d);
    }
    return 0;
}

static int tp_prepare(void *ctx, const struct krn_limits *limits)
{
    struct krn_tp *tp = ctx;
    if (limits->max_rows < 1 || limits->max_segments < 1 || tp->max_rows)
        return krn_tp_fail(tp, KRN_EINVAL, "the limits are out of range or were set before");
    int rc = refuse_indivisible(tp, limits);
    if (rc < 0)
        return rc;
    struct krn_limits part = *limits;
    part.n_heads /= tp->n;
    part.n_kv_heads /= tp->n;
    part.ff /= tp->n;
    for (int32_t d = 0; d < tp->n; d++) {
        struct krn_backend *child = tp->children[d];
        rc = child->prepare(child->ctx, &part);
        if (rc < 0)
            return krn_tp_child_failed(tp, d, rc);
    }
    tp->max_rows = limits->max_rows;
    tp->max_segments = limits->max_segments;
    tp->max_chunk = limits->max_chunk;
    tp->n_vocab = limits->n_vocab;
    rc = alloc_results(tp);
    return rc < 0 ? rc : alloc_logits(tp);
}

// ---- passes ---------------------------------------------------------------------------------------------------------

// Ends what the first n children began.
static void abandon_first(struct krn_tp *tp, int32_t n)
{
    for (int32_t d = 0; d < n; d++) {
        struct krn_backend *child = tp->children[d];
        child->abandon(child->ctx);
    }
}

static void fill_slot(struct krn_tp *tp, struct krn_tp_slot *slot, const struct krn_pass *pass)
{
    slot->pass = pass;
    for (int32_t d = 1; d < tp->n; d++) {
        size_t i = (size_t)(slot - tp->slots) * (size_t)(tp->n - 1) + (size_t)(d - 1);
        slot->copies[d] = *pass;
        slot->copies[d].choices = tp->choices + i * (size_t)tp->max_rows;
        slot->copies[d].accepted = tp->accepted + i * (size_t)tp->max_segments;
        // What no op fills must not look like a difference.
        for (int32_t j = 0; j < pass->n_wanted; j++)
            slot->copies[d].choices[j] = pass->choices[j];
        for (int32_t j = 0; j < pass->n_accepts; j++)
            slot->copies[d].accepted[j] = pass->accepted[j];
    }
}

static int tp_begin(void *ctx, const struct krn_pass *pass)
{
    struct krn_tp *tp = ctx;
    struct krn_tp_slot *slot = &tp->slots[tp->slot];
    if (tp->lost)
        return tp->lost;
    if (tp->begun || pass->n_wanted < 0 || pass->n_wanted > tp->max_rows || pass->n_accepts < 0 ||
        pass->n_accepts > tp->max_segments)
        return krn_tp_fail(tp, KRN_EINVAL, "a pass was begun before the last ended, or beyond the limits");
    fill_slot(tp, slot, pass);
    int first = 0;
    for (int32_t d = 0; d < tp->n; d++) {
        struct krn_backend *child = tp->children[d];
        int rc = child->begin(child->ctx, d == 0 ? pass : &slot->copies[d]);
        if (rc < 0) {
            krn_tp_child_failed(tp, d, rc);
            abandon_first(tp, d);
            return rc;
        }
        first = d == 0 ? rc : first;
        // A replayed exchange and one that is issued now need not meet.
        if (rc != first) {
            abandon_first(tp, d + 1);
            return krn_tp_fail(tp, KRN_EDEVICE, "devices 0 and %d do not agree on replaying a pass", d);
        }
    }
    tp->begun = true;
    return first;
}

static void tp_abandon(void *ctx)
{
    struct krn_tp *tp = ctx;
    if (tp->begun)
        abandon_first(tp, tp->n);
    tp->begun = false;
}

static int tp_submit(void *ctx)
{
    struct krn_tp *tp = ctx;
    if (!tp->begun || tp->n_ahead == KRN_PASSES_AHEAD)
        return krn_tp_fail(tp, KRN_EINVAL, "no pass was begun, or too many are under way");
    tp->begun = false;
    int rc = tp->lost;
    for (int32_t d = 0; d < tp->n; d++) {
        struct krn_backend *child = tp->children[d];
        if (rc < 0) { // the devices before it may have started without it
            child->abandon(child->ctx);
            continue;
        }
        rc = child->submit(child->ctx);
        if (rc < 0) {
            krn_tp_child_failed(tp, d, rc);
            lose(tp, rc);
        }
    }
    if (rc < 0)
        return rc;
    tp->slot = (tp->slot + 1) % KRN_TP_SLOTS;
    tp->n_ahead++;
    rc = tp->comm.submitted ? tp->comm.submitted(tp->comm.ctx) : 0;
    return rc < 0 ? krn_tp_comm_failed(tp, rc) : 0;
}

static int compare(struct krn_tp *tp, const struct krn_tp_slot *slot)
{
    const struct krn_pass *pass = slot->pass;
    for (int32_t d = 1; d < tp->n; d++) {
        bool same = true;
        for (int32_t i = 0; i < pass->n_wanted; i++)
            same = same && slot->copies[d].choices[i].token == pass->choices[i].token;
        for (int32_t i = 0; i < pass->n_accepts; i++)
            same = same && slot->copies[d].accepted[i].n == pass->accepted[i].n &&
                   slot->copies[d].accepted[i].seed == pass->accepted[i].seed;
        if (!same) {
            krn_tp_fail(tp, KRN_EDEVICE, "devices 0 and %d computed different tokens", d);
            return lose(tp, KRN_EDEVICE);
        }
    }
    return 0;
}

static int tp_wait(void *ctx)
{
    struct krn_tp *tp = ctx;
    int rc = tp->n_ahead > 0 && tp->comm.finish && !tp->lost ? tp->comm.finish(tp->comm.ctx) : 0;
    if (rc < 0)
        krn_tp_comm_failed(tp, rc);
    for (int32_t d = 0; d < tp->n; d++) {
        struct krn_backend *child = tp->children[d];
        int child_rc = child->wait(child->ctx);
        if (child_rc < 0) {
            krn_tp_child_failed(tp, d, child_rc);
            lose(tp, child_rc);
        }
    }
    if (tp->n_ahead == 0)
        return tp->lost;
    const struct krn_tp_slot *oldest = &tp->slots[(tp->slot + KRN_TP_SLOTS - tp->n_ahead) % KRN_TP_SLOTS];
    tp->n_ahead--;
    return tp->lost ? tp->lost : compare(tp, oldest);
}

// ---- open and close -------------------------------------------------------------------------------------------------

static void tp_close(void *ctx)
{
    struct krn_tp *tp = ctx;
    if (!tp)
        return;
    tp_abandon(tp);
    tp->comm.close(tp->comm.ctx);
    for (int32_t d = 0; d < tp->n; d++)
        tp->children[d]->close(tp->children[d]->ctx);
    krn_tp_free_handles(tp);
    free(tp->choices);
    free(tp->accepted);
    free(tp);
}

static const struct krn_backend template = {
    .alloc = krn_tp_alloc,
    .release = krn_tp_release,
    .alloc_rows = krn_tp_alloc_rows,
    .import_weights = krn_tp_import_weights,
    .drop_weights = krn_tp_drop_weights,
    .weights_type = krn_tp_weights_type,
    .kv_page_bytes = krn_tp_kv_page_bytes,
    .kv_open = krn_tp_kv_open,
    .kv_close = krn_tp_kv_close,
    .memory = krn_tp_memory,
    .upload = krn_tp_upload,
    .download = krn_tp_download,
    .prepare = tp_prepare,
    .begin = tp_begin,
    .submit = tp_submit,
    .abandon = tp_abandon,
    .wait = tp_wait,
    .error = tp_error,
    .embed = krn_tp_embed,
    .rms_norm = krn_tp_rms_norm,
    .linear = krn_tp_linear,
    .project = krn_tp_project,
    .gated = krn_tp_gated,
    .head = krn_tp_head,
    .rope_write = krn_tp_rope_write,
    .attention = krn_tp_attention,
    .add = krn_tp_add,
    .gather = krn_tp_gather,
    .select = krn_tp_select,
    .accept = krn_tp_accept,
    .close = tp_close,
};

static int refuse(int rc, const char *why, char *err, size_t err_size)
{
    if (err && err_size > 0)
        snprintf(err, err_size, "%s", why);
    return rc;
}

int krn_open_tensor_parallel(struct krn_backend *const children[], int32_t n, const struct krn_comm *comm,
                             struct krn_backend **ret, char *err, size_t err_size)
{
    if (n < 2 || n > KRN_TENSOR_PARALLEL_MAX)
        return refuse(KRN_EINVAL, "a model can be shared by 2 to 8 devices", err, err_size);
    for (int32_t d = 0; d < n; d++)
        if (!children[d]->flatten || !children[d]->bucket || strcmp(children[d]->name, children[0]->name) != 0)
            return refuse(KRN_ENOTSUP, "these backends cannot share a model", err, err_size);
    struct krn_tp *tp = calloc(1, sizeof *tp);
    if (!tp)
        return refuse(KRN_ENOMEM, "no memory for tensor parallelism", err, err_size);
    tp->backend = template;
    tp->backend.name = children[0]->name;
    tp->backend.description = tp->description;
    tp->backend.ctx = tp;
    tp->backend.async = children[0]->async;
    tp->n = n;
    tp->comm = *comm;
    memcpy(tp->children, children, (size_t)n * sizeof *children);
    snprintf(tp->description, sizeof tp->description, "%d devices, each: %s", n, children[0]->description);
    *ret = &tp->backend;
    return 0;
}
