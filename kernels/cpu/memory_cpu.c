// The CPU backend's memory: plain host memory, counted by purpose, and what is read where others mapped it.
//
// A weight whose type is the wanted one stays where it is; the others are converted once. The KV store is f32, bf16 or
// q8. Leaves out quantised weights and any limit: the system says when there is no memory.
#include "backend_cpu.h"

#include <stdlib.h>
#include <string.h>

enum { ALIGNMENT = 64 };
_Static_assert(sizeof(struct krn_cpu_allocation) <= ALIGNMENT, "the header fits before an aligned buffer");

// ---- the table ------------------------------------------------------------------------------------------------------

// The category of a purpose; the last one takes what comes when the others are taken.
static int32_t category_of(struct krn_memory *memory, const char *purpose)
{
    int32_t i = 0;
    while (i < memory->n_categories && strcmp(memory->categories[i].name, purpose) != 0)
        i++;
    if (i == KRN_MEMORY_CATEGORIES)
        return i - 1;
    if (i == memory->n_categories) {
        memory->categories[i].name = i + 1 < KRN_MEMORY_CATEGORIES ? purpose : "other";
        memory->n_categories++;
    }
    return i;
}

static void count(struct krn_cpu *cpu, int32_t category, int64_t bytes)
{
    cpu->memory.categories[category].bytes += bytes;
}

void krn_cpu_memory(void *ctx, struct krn_memory *ret)
{
    const struct krn_cpu *cpu = ctx;
    *ret = cpu->memory;
}

// ---- buffers --------------------------------------------------------------------------------------------------------

void *krn_cpu_alloc(void *ctx, size_t bytes, const char *purpose)
{
    struct krn_cpu *cpu = ctx;
    if (bytes > PTRDIFF_MAX - 2 * ALIGNMENT)
        return NULL;
    // calloc, because the system hands out large blocks already zeroed, untouched until used.
    char *raw = calloc(1, bytes + 2 * ALIGNMENT);
    if (!raw)
        return NULL;
    char *data = raw + ALIGNMENT + (ALIGNMENT - (uintptr_t)raw % ALIGNMENT);
    struct krn_cpu_allocation *allocation = (struct krn_cpu_allocation *)(data - ALIGNMENT);
    *allocation = (struct krn_cpu_allocation){
        .next = cpu->allocations,
        .prev_next = &cpu->allocations,
        .raw = raw,
        .bytes = (int64_t)bytes,
        .category = category_of(&cpu->memory, purpose),
    };
    if (allocation->next)
        allocation->next->prev_next = &allocation->next;
    cpu->allocations = allocation;
    count(cpu, allocation->category, allocation->bytes);
    return data;
}

void krn_cpu_release(void *ctx, void *ptr)
{
    if (!ptr)
        return;
    struct krn_cpu_allocation *allocation = (struct krn_cpu_allocation *)((char *)ptr - ALIGNMENT);
    count(ctx, allocation->category, -allocation->bytes);
    *allocation->prev_next = allocation->next;
    if (allocation->next)
        allocation->next->prev_next = allocation->prev_next;
    free(allocation->raw);
}

void krn_cpu_free_all(struct krn_cpu *cpu)
{
    while (cpu->allocations) {
        struct krn_cpu_allocation *next = cpu->allocations->next;
        free(cpu->allocations->raw);
        cpu->allocations = next;
    }
}

// Every kind is f32 [rows][width] here.
void *krn_cpu_alloc_rows(void *ctx, enum krn_rows_kind kind, int32_t rows, int32_t width, const char *purpose)
{
    (void)kind;
    if (rows < 0 || width < 0)
        return NULL;
    return krn_cpu_alloc(ctx, (size_t)rows * (size_t)width * sizeof(float), purpose);
}

int krn_cpu_upload(void *ctx, void *dst, const void *host, size_t bytes)
{
    (void)ctx;
    if (bytes > 0)
        memcpy(dst, host, bytes);
    return 0;
}

int krn_cpu_download(void *ctx, void *host, const void *src, size_t bytes)
{
    (void)ctx;
    if (bytes > 0)
        memcpy(host, src, bytes);
    return 0;
}

// ---- weights --------------------------------------------------------------------------------------------------------

static uint16_t bf16_round(uint32_t bits)
{
    if ((bits & 0x7fffffffu) > 0x7f800000u) // NaN stays NaN
        return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16); // to nearest, ties to even
}

static void convert(void *to, enum krn_type to_type, const void *from, size_t n)
{
    if (to_type == KRN_F32)
        for (size_t i = 0; i < n; i++)
            ((uint32_t *)to)[i] = (uint32_t)((const uint16_t *)from)[i] << 16;
    else
        for (size_t i = 0; i < n; i++)
            ((uint16_t *)to)[i] = bf16_round(((const uint32_t *)from)[i]);
}

static bool is_plain(enum krn_type type)
{
    return type == KRN_F32 || type == KRN_BF16;
}

static int64_t tensor_bytes(const struct krn_tensor *t)
{
    return krn_matrix_bytes(t->type, t->rows, t->cols);
}

int krn_cpu_import_weights(void *ctx, const struct krn_tensor *host, enum krn_type type, enum krn_split split,
                           struct krn_tensor *ret)
{
    struct krn_cpu *cpu = ctx;
    (void)split; // one memory
    if (!host->data || host->rows <= 0 || host->cols <= 0)
        return KRN_EINVAL;
    if (!is_plain(host->type) || !is_plain(type))
        return KRN_ENOTSUP;
    struct krn_tensor t = *host;
    t.type = type;
    if (type == host->type) {
        count(cpu, category_of(&cpu->memory, "weights"), tensor_bytes(&t));
    } else {
        void *data = krn_cpu_alloc(cpu, (size_t)tensor_bytes(&t), "weights");
        if (!data)
            return KRN_ENOMEM;
        convert(data, type, host->data, (size_t)t.rows * (size_t)t.cols);
        t.data = data;
    }
    *ret = t;
    return 0;
}

void krn_cpu_drop_weights(void *ctx, struct krn_tensor *tensor)
{
    struct krn_cpu *cpu = ctx;
    if (!tensor->data)
        return;
    const struct krn_cpu_allocation *own = (const struct krn_cpu_allocation *)((const char *)tensor->data - ALIGNMENT);
    const struct krn_cpu_allocation *a = cpu->allocations;
    while (a && a != own)
        a = a->next;
    if (a)
        krn_cpu_release(cpu, (void *)tensor->data);
    else
        count(cpu, category_of(&cpu->memory, "weights"), -tensor_bytes(tensor));
    *tensor = (struct krn_tensor){0};
}

enum krn_type krn_cpu_weights_type(void *ctx, enum krn_type file_type)
{
    (void)ctx;
    return file_type;
}

// ---- KV -------------------------------------------------------------------------------------------------------------

int64_t krn_cpu_kv_page_bytes(void *ctx, const struct krn_kv *kv)
{
    (void)ctx;
    enum krn_type type = kv->type == KRN_N_TYPES ? KRN_F32 : kv->type;
    if (type != KRN_F32 && type != KRN_BF16 && type != KRN_Q8)
        return KRN_ENOTSUP;
    if (kv->n_layers <= 0 || kv->page_size <= 0 || kv->n_kv_heads <= 0 || kv->head_dim <= 0)
        return KRN_EINVAL;
    return 2 * krn_matrix_bytes(type, (int64_t)kv->n_layers * kv->n_kv_heads * kv->page_size, kv->head_dim);
}

void krn_cpu_kv_close(void *ctx, struct krn_kv *kv)
{
    void *const parts[] = {kv->k, kv->v, kv->k_scales, kv->v_scales};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        krn_cpu_release(ctx, parts[i]);
    kv->k = kv->v = NULL;
    kv->k_scales = kv->v_scales = NULL;
}

int krn_cpu_kv_open(void *ctx, struct krn_kv *kv)
{
    int64_t page = krn_cpu_kv_page_bytes(ctx, kv), bytes;
    if (page < 0)
        return (int)page;
    if (kv->n_pages <= 0)
        return KRN_EINVAL;
    if (__builtin_mul_overflow(page / 2, kv->n_pages, &bytes))
        return KRN_ENOMEM;
    struct krn_kv made = *kv;
    made.type = kv->type == KRN_N_TYPES ? KRN_F32 : kv->type;
    size_t vectors = (size_t)kv->n_pages * (size_t)kv->n_layers * (size_t)kv->n_kv_heads * (size_t)kv->page_size;
    size_t scales = made.type == KRN_Q8 ? vectors * sizeof(float) : 0, elements = (size_t)bytes - scales;
    made.k = krn_cpu_alloc(ctx, elements, "kv");
    made.v = krn_cpu_alloc(ctx, elements, "kv");
    made.k_scales = scales ? krn_cpu_alloc(ctx, scales, "kv") : NULL;
    made.v_scales = scales ? krn_cpu_alloc(ctx, scales, "kv") : NULL;
    if (!made.k || !made.v || (scales && (!made.k_scales || !made.v_scales))) {
        krn_cpu_kv_close(ctx, &made);
        return KRN_ENOMEM;
    }
    *kv = made;
    return 0;
}
