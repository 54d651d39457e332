// How many KV pages there are. A backend without a limit of its own (the CPU) gets what the options ask for, at most a
// quarter of the machine's memory; a device gives what is free once weights and passes have theirs, less what it will
// still take for itself and a small part that stays free. A plan that does not fit is refused with its numbers. Runs on
// the thread that opens the engine. Leaves out which sequence owns which page (kv.c).
#include "kv_plan.h"

#include <string.h>
#include <unistd.h>

#include "forward.h"
#include "model/weights.h"
#include "text/fail.h"

enum { KEPT_FREE_PART = 50 }; // of the device's memory: allocators cut it into pieces

static int64_t quarter_of_machine(void)
{
    return (int64_t)sysconf(_SC_PHYS_PAGES) * (int64_t)sysconf(_SC_PAGESIZE) / 4;
}

static int64_t least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

// -1 for an unknown name; KRN_N_TYPES for "auto". q4 is of weights only.
static int type_of(const char *name)
{
    for (enum krn_type type = 0; type < KRN_N_TYPES; type++)
        if (type != KRN_Q4 && !strcmp(name, krn_type_name(type)))
            return (int)type;
    return strcmp(name, "auto") ? -1 : KRN_N_TYPES;
}

static int check(const struct eng_options *o, int32_t max_positions, char *err, size_t err_size)
{
    if (o->page_size < 1 || o->page_size > 256)
        return fail(ENG_EINVAL, err, err_size, "page_size must be between 1 and 256, not %d", o->page_size);
    if (o->max_sequences < 1 || o->max_sequences > 1024)
        return fail(ENG_EINVAL, err, err_size, "max_sequences must be between 1 and 1024, not %d", o->max_sequences);
    if (o->max_context < 0 || o->max_context > max_positions)
        return fail(ENG_EINVAL, err, err_size, "max_context must be between 2 and the model's %d, not %d",
                    max_positions, o->max_context);
    if (o->kv_memory < 0)
        return fail(ENG_EINVAL, err, err_size, "kv_memory must be at least 0");
    if (type_of(o->kv_type) < 0)
        return fail(ENG_EINVAL, err, err_size, "kv_type is \"%s\", expected auto, f32, bf16, fp8 or q8", o->kv_type);
    return 0;
}

static int64_t bytes_allowed(const struct eng_options *o, const struct krn_memory *memory)
{
    if (o->kv_memory)
        return o->kv_memory;
    return memory->total ? memory->free : quarter_of_machine();
}

// Names the types that the backend does have.
static int no_such_type(const struct eng_options *o, const struct krn_backend *backend,
                        const struct eng_weights *weights, char *err, size_t err_size)
{
    char have[64] = "";
    size_t at = 0;
    for (enum krn_type type = 0; type < KRN_N_TYPES; type++)
        if (type_of(krn_type_name(type)) >= 0 && eng_forward_page_bytes(backend, weights, o->page_size, type) >= 0)
            at += (size_t)snprintf(have + at, sizeof have - at, "%s%s", at ? ", " : "", krn_type_name(type));
    return fail(ENG_ENOTSUP, err, err_size,
                "the %s backend has no keys and values of type %s for this model (it has %s)", backend->name,
                o->kv_type, at ? have : "none");
}

int eng_kv_plan_begin(const struct eng_options *o, const struct krn_backend *backend, const struct eng_weights *weights,
                      struct eng_kv_plan *ret, char *err, size_t err_size)
{
    int32_t max_positions = weights->config.max_positions;
    int rc = check(o, max_positions, err, err_size);
    if (rc)
        return rc;
    struct eng_kv_plan p = {
        .type = (enum krn_type)type_of(o->kv_type),
        .page_size = o->page_size,
        .context = o->max_context ? o->max_context : max_positions,
    };
    p.page_bytes = eng_forward_page_bytes(backend, weights, p.page_size, p.type);
    if (p.page_bytes < 0)
        return no_such_type(o, backend, weights, err, err_size);
    struct krn_memory memory;
    backend->memory(backend->ctx, &memory);
    int64_t full = (int64_t)o->max_sequences * ((p.context + p.page_size - 1) / p.page_size);
    p.most_pages = least(full, INT32_MAX / p.page_size);
    p.most_pages = least(p.most_pages, bytes_allowed(o, &memory) / p.page_bytes);
    *ret = p;
    return 0;
}

// ---- the decision ---------------------------------------------------------------------------------------------------

static double gib(int64_t bytes)
{
    return (double)bytes / (double)(1 << 30);
}

// Names everything that has memory, what the pages would need and what there is.
static int does_not_fit(const struct krn_backend *backend, const struct krn_memory *m, int64_t kept, int64_t needed,
                        char *err, size_t err_size)
{
    char taken[300] = "";
    size_t at = 0;
    for (int32_t i = 0; i < m->n_categories && at < sizeof taken; i++)
        at += (size_t)snprintf(taken + at, sizeof taken - at, "%s%s %.2f", i ? ", " : "", m->categories[i].name,
                               gib(m->categories[i].bytes));
    return fail(ENG_ENOMEM, err, err_size,
                "the KV store needs %.2f GiB, but %.2f of the %s backend's %.2f GiB are free and %.2f are kept back "
                "(taken, in GiB: %s)",
                gib(needed), gib(m->free), backend->name, gib(m->total), gib(kept), taken);
}

int eng_kv_plan_end(const struct eng_options *o, const struct krn_backend *backend, const struct eng_kv_plan *plan,
                    int32_t *ret_pages, int32_t *ret_context, char *err, size_t err_size)
{
    struct krn_memory m;
    backend->memory(backend->ctx, &m);
    int64_t n = plan->most_pages, memory = bytes_allowed(o, &m);
    if (m.total) {
        int64_t kept = m.reserve + m.total / KEPT_FREE_PART, free = m.free > kept ? m.free - kept : 0;
        int64_t tokens = o->max_context ? o->max_context : 2;
        int64_t least_pages = (tokens + plan->page_size - 1) / plan->page_size;
        int64_t needed = (o->kv_memory ? n : least_pages) * plan->page_bytes;
        if (needed > free)
            return does_not_fit(backend, &m, kept, needed, err, err_size);
        n = least(n, free / plan->page_bytes);
    }
    if (n * plan->page_size < 2)
        return fail(ENG_EINVAL, err, err_size,
                    "kv_memory of %lld bytes holds no context: a page of %d tokens needs %lld", (long long)memory,
                    plan->page_size, (long long)plan->page_bytes);
    if (o->max_context && n * plan->page_size < o->max_context)
        return fail(ENG_EINVAL, err, err_size,
                    "max_context %d does not fit the KV memory of %lld bytes, which holds %lld tokens", o->max_context,
                    (long long)memory, (long long)(n * plan->page_size));
    *ret_pages = (int32_t)n;
    *ret_context = (int32_t)least(n * plan->page_size, plan->context);
    return 0;
}
