// The CPU backend: opening, closing, and the order of its passes.
//
// Its ops are synchronous (ops_cpu.c), so a pass is done when its last op returns: submit and wait only keep count, and
// begin finds the choices that links point to already there. Buffers are plain host memory and weights are read where
// the engine mapped them (memory_cpu.c).
#include "backend_cpu.h"
#include "cpu_features.h"

#include <stdio.h>
#include <stdlib.h>

static void scratch_free(struct krn_select_scratch *scratch)
{
    free(scratch->value);
    free(scratch->scaled);
    free(scratch->ids);
    *scratch = (struct krn_select_scratch){0};
}

// Grows the scratch to n_vocab tokens. 0, or KRN_ENOMEM (the scratch stays as it was).
static int scratch_reserve(struct krn_select_scratch *scratch, int32_t n_vocab)
{
    if (n_vocab <= scratch->n_vocab)
        return 0;
    struct krn_select_scratch grown = {
        .value = malloc((size_t)n_vocab * sizeof *grown.value),
        .scaled = malloc((size_t)n_vocab * sizeof *grown.scaled),
        .ids = malloc((size_t)n_vocab * sizeof *grown.ids),
        .n_vocab = n_vocab,
    };
    if (!grown.value || !grown.scaled || !grown.ids) {
        scratch_free(&grown);
        return KRN_ENOMEM;
    }
    scratch_free(scratch);
    *scratch = grown;
    return 0;
}

static int cpu_prepare(void *ctx, const struct krn_limits *limits)
{
    struct krn_cpu *cpu = ctx;
    if (limits->max_rows < 1 || limits->max_segments < 1 || limits->n_vocab < 1)
        return KRN_EINVAL;
    if (limits->head_dim % 2 != 0 || limits->head_dim > KRN_ROPE_DIM_MAX)
        return KRN_ENOTSUP;
    for (int i = 0; i < cpu->n_threads; i++) {
        int rc = scratch_reserve(&cpu->threads[i].select, limits->n_vocab);
        if (rc != 0)
            return rc;
    }
    cpu->max_rows = limits->max_rows;
    cpu->max_segments = limits->max_segments;
    return 0;
}

// ---- passes ---------------------------------------------------------------------------------------------------------

static int cpu_begin(void *ctx, const struct krn_pass *pass)
{
    struct krn_cpu *cpu = ctx;
    if (cpu->pass || pass->n_rows < 0 || pass->n_rows > cpu->max_rows || pass->n_segments > cpu->max_segments ||
        pass->n_wanted < 0 || pass->n_wanted > cpu->max_rows || pass->n_accepts < 0 ||
        pass->n_accepts > cpu->max_segments)
        return KRN_EINVAL;
    for (int32_t i = 0; pass->links && i < pass->n_rows; i++)
        if (pass->links[i] >= cpu->n_old)
            return KRN_EINVAL;
    for (int32_t i = 0; pass->links && i < pass->n_rows; i++)
        if (pass->links[i] >= 0) {
            int32_t token = cpu->old[pass->links[i]].token;
            pass->tokens[i] = token < 0 ? 0 : token;
        }
    cpu->pass = pass;
    return 0;
}

static int cpu_submit(void *ctx)
{
    struct krn_cpu *cpu = ctx;
    if (!cpu->pass || cpu->n_ahead == KRN_PASSES_AHEAD)
        return KRN_EINVAL;
    cpu->old = cpu->pass->choices;
    cpu->n_old = cpu->pass->n_wanted;
    cpu->pass = NULL;
    cpu->n_ahead++;
    return 0;
}

static void cpu_abandon(void *ctx)
{
    struct krn_cpu *cpu = ctx;
    cpu->pass = NULL;
    cpu->n_old = 0;
}

static int cpu_wait(void *ctx)
{
    struct krn_cpu *cpu = ctx;
    cpu->n_ahead -= cpu->n_ahead > 0;
    return 0;
}

static const char *cpu_error(void *ctx)
{
    (void)ctx;
    return krn_strerror(KRN_ENOTSUP); // there is no device that could fail
}

// ---- open and close -------------------------------------------------------------------------------------------------

static void cpu_close(void *ctx)
{
    struct krn_cpu *cpu = ctx;
    if (!cpu)
        return;
    krn_pool_close(cpu->pool);
    for (int i = 0; cpu->threads && i < cpu->n_threads; i++) {
        krn_rope_cache_close(cpu->threads[i].rope_cache);
        scratch_free(&cpu->threads[i].select);
    }
    free(cpu->threads);
    krn_cpu_free_all(cpu);
    free(cpu);
}

static const struct krn_backend template = {
    .name = "cpu",
    .alloc = krn_cpu_alloc,
    .release = krn_cpu_release,
    .alloc_rows = krn_cpu_alloc_rows,
    .import_weights = krn_cpu_import_weights,
    .drop_weights = krn_cpu_drop_weights,
    .weights_type = krn_cpu_weights_type,
    .kv_page_bytes = krn_cpu_kv_page_bytes,
    .kv_open = krn_cpu_kv_open,
    .kv_close = krn_cpu_kv_close,
    .memory = krn_cpu_memory,
    .upload = krn_cpu_upload,
    .download = krn_cpu_download,
    .prepare = cpu_prepare,
    .begin = cpu_begin,
    .submit = cpu_submit,
    .abandon = cpu_abandon,
    .wait = cpu_wait,
    .error = cpu_error,
    .embed = krn_cpu_embed,
    .rms_norm = krn_cpu_rms_norm,
    .linear = krn_cpu_linear,
    .project = krn_cpu_project,
    .gated = krn_cpu_gated,
    .head = krn_cpu_head,
    .rope_write = krn_cpu_rope_write,
    .attention = krn_cpu_attention,
    .add = krn_cpu_add,
    .flatten = krn_cpu_flatten,
    .bucket = krn_cpu_bucket,
    .gather = krn_cpu_gather,
    .select = krn_cpu_select,
    .accept = krn_cpu_accept,
    .close = cpu_close,
};

int krn_open_cpu(int threads, uint32_t cpu_mask, struct krn_backend **ret_backend, char *err, size_t err_size)
{
    if (threads < 0 || threads > KRN_POOL_MAX) {
        if (err && err_size > 0)
            snprintf(err, err_size, "the number of threads must be 0 to %d, not %d", KRN_POOL_MAX, threads);
        return KRN_EINVAL;
    }
    struct krn_cpu *cpu = calloc(1, sizeof *cpu);
    if (!cpu)
        goto fail;
    cpu->backend = template;
    cpu->backend.ctx = cpu;
    cpu->backend.description = cpu->description;
    krn_ops_init(&cpu->ops, krn_cpu_features() & cpu_mask);
    int cores = threads > 0 ? threads : krn_cpu_cores();
    cpu->pool = krn_pool_open(cores < KRN_POOL_MAX ? cores : KRN_POOL_MAX);
    if (!cpu->pool)
        goto fail;
    cpu->n_threads = krn_pool_threads(cpu->pool);
    cpu->threads = calloc((size_t)cpu->n_threads, sizeof *cpu->threads);
    if (!cpu->threads)
        goto fail;
    for (int i = 0; i < cpu->n_threads; i++) {
        cpu->threads[i].rope_cache = krn_rope_cache_open();
        if (!cpu->threads[i].rope_cache)
            goto fail;
    }
    snprintf(cpu->description, sizeof cpu->description, "linear %s, attention %s, %d thread%s", cpu->ops.linear_version,
             cpu->ops.attention_version, cpu->n_threads, cpu->n_threads == 1 ? "" : "s");
    *ret_backend = &cpu->backend;
    return 0;

fail:
    cpu_close(cpu);
    if (err && err_size > 0)
        snprintf(err, err_size, "no memory for the cpu backend");
    return KRN_ENOMEM;
}
