// The CUDA backend: order and failure. Memory is in storage.c and prepare.c, what the ops do in operations.c.
//
// A pass is begun by sending its metadata, and from then on is one of three: replayed (a graph of its shape exists),
// recorded (its ops become a graph, launched by submit) or eager (each op is launched as it comes). Nothing waits for
// the device but wait, upload and download, a begin whose staging buffer is still being copied, and the rare begin that
// must move the pass block or throw a graph away.
//
// A recording that fails costs its graph, not the pass: the tape still holds every step, nothing has run yet, and the
// steps are launched one by one; graphs are then off for good, with the reason kept. A failure of the device itself is
// kept too: every later call returns it at once, and only close is left.
//
// Leaves out several GPUs: one backend is one device.
#include "backend.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

// ---- failure --------------------------------------------------------------------------------------------------------

int krn_cuda_refuse(struct krn_cuda_backend *b, int code, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(b->error, sizeof b->error, format, args);
    va_end(args);
    return code;
}

int krn_cuda_checked(struct krn_cuda_backend *b, int rc)
{
    if (rc >= 0)
        return rc;
    if (rc == KRN_EDEVICE && !b->failed)
        b->failed = rc;
    if (rc == KRN_EDEVICE || rc == KRN_ENOMEM)
        return krn_cuda_refuse(b, rc, "%s: %s", krn_strerror(rc), b->driver.error(b->driver.ctx));
    return krn_cuda_refuse(b, rc, "%s", krn_strerror(rc));
}

static void describe(struct krn_cuda_backend *b)
{
    const struct krn_cuda_device *device = &b->driver.device;
    int n = snprintf(b->description, sizeof b->description,
                     "%s, compute capability %d.%d, %d multiprocessors, %.1f GiB%s%s", device->name, device->major,
                     device->minor, device->multiprocessors, (double)device->memory / (1 << 30),
                     b->overlap ? "" : ", no overlap", b->options.deterministic ? ", deterministic" : "");
    if (b->graphs.disabled && n > 0 && (size_t)n < sizeof b->description)
        snprintf(b->description + n, sizeof b->description - (size_t)n, ", no graphs (%s)", b->graphs.reason);
}

void krn_cuda_no_graphs(struct krn_cuda_backend *b, const char *reason)
{
    krn_cuda_graphs_disable(&b->graphs, reason);
    describe(b);
}

static const char *cuda_error(void *ctx)
{
    struct krn_cuda_backend *b = ctx;
    return b->error;
}

// ---- order ----------------------------------------------------------------------------------------------------------

static struct krn_cuda_key key_of(const struct krn_pass *pass)
{
    struct krn_cuda_key key = {
        .rows = krn_cuda_bucket(pass->n_rows),
        .wanted = krn_cuda_bucket(pass->n_wanted),
        .accepts = pass->n_accepts > 0,
    };
    for (int32_t r = 0; pass->adapter_rows && !key.adapter && r < pass->n_rows; r++)
        key.adapter = pass->adapter_rows[r] != 0;
    return key;
}

// More wanted rows than one chunk have: then the number of chunks, and so of launches, is not in the key.
static bool may_have_graph(const struct krn_cuda_backend *b, const struct krn_pass *pass)
{
    return !b->graphs.disabled && pass->n_rows > 0 && pass->n_rows <= KRN_CUDA_GRAPH_ROWS &&
           pass->n_wanted <= b->limits.max_chunk;
}

// The rare things before a pass for which the device must be idle: weights came in, the block is too small, the cache
// of graphs is full.
static int make_way(struct krn_cuda_backend *b, const struct krn_pass *pass, size_t bytes)
{
    const struct krn_cuda_driver *d = &b->driver;
    bool graph = may_have_graph(b, pass), grow = bytes > b->passes.room;
    int rc = krn_cuda_memory_settle(&b->memory);
    if (rc == 0 && (grow || (graph && !b->replay && krn_cuda_graphs_full(&b->graphs)))) {
        if ((rc = d->sync(d->ctx, d->stream)) < 0)
            return rc;
        if (grow) {
            krn_cuda_graphs_drop(&b->graphs);
            b->replay = NULL;
            rc = krn_cuda_passes_grow(&b->passes, bytes);
        } else {
            krn_cuda_graphs_make_room(&b->graphs);
        }
    }
    return rc;
}

static int cuda_begin(void *ctx, const struct krn_pass *pass)
{
    struct krn_cuda_backend *b = ctx;
    const struct krn_cuda_driver *d = &b->driver;
    if (b->failed)
        return b->failed;
    const char *wrong = !b->prepared                            ? "a pass comes before prepare"
                        : b->state != KRN_CUDA_IDLE             ? "a pass is begun inside another"
                        : b->passes.n_ahead == KRN_PASSES_AHEAD ? "too many passes are ahead"
                                                                : krn_cuda_pass_check(&b->passes, pass);
    if (wrong)
        return krn_cuda_refuse(b, KRN_EINVAL, "%s", wrong);
    struct krn_cuda_counts counts;
    size_t bytes;
    krn_cuda_pass_count(&b->passes, pass, &counts, &bytes);
    if (bytes > INT32_MAX)
        return krn_cuda_refuse(b, KRN_ENOMEM, "the pass is larger than 2 GiB");
    b->pass = pass;
    b->key = key_of(pass);
    b->rope_table_made = false;
    b->shared = false;
    b->rotated = NULL;
    b->tape.n = 0;
    for (int32_t i = 0; i < b->memory.n_rows; i++)
        b->memory.rows[i].sums.n = 0; // what an earlier pass left is nobody's any more
    b->replay = may_have_graph(b, pass) ? krn_cuda_graphs_find(&b->graphs, &b->key) : NULL;
    int rc = d->use ? d->use(d->ctx) : 0;
    if (rc < 0 || (rc = make_way(b, pass, bytes)) < 0 || (rc = krn_cuda_pass_send(&b->passes, pass, &counts)) < 0)
        return krn_cuda_checked(b, rc);
    if (b->replay) {
        b->state = KRN_CUDA_REPLAY;
        return KRN_REPLAY;
    }
    b->state = KRN_CUDA_EAGER;
    if (may_have_graph(b, pass)) {
        if (d->capture_begin(d->ctx, d->stream) == 0)
            b->state = KRN_CUDA_RECORD;
        else
            krn_cuda_no_graphs(b, d->error(d->ctx));
    }
    return 0;
}

// Recording failed: what the tape holds has not run, so it is launched now, op by op, as the rest of the pass will be.
static int fall_back(struct krn_cuda_backend *b, bool recording)
{
    const struct krn_cuda_driver *d = &b->driver;
    krn_cuda_no_graphs(b, d->error(d->ctx));
    if (recording)
        d->capture_end(d->ctx, d->stream, NULL);
    b->state = KRN_CUDA_EAGER;
    if (b->shared) // what the other devices recorded in between is not on the tape
        return KRN_EDEVICE;
    return krn_cuda_tape_run(&b->tape, d, b->overlap);
}

int krn_cuda_issue(struct krn_cuda_backend *b, const struct krn_cuda_step *step)
{
    if (b->state != KRN_CUDA_RECORD)
        return krn_cuda_checked(b, krn_cuda_step_run(&b->driver, b->overlap, step));
    int rc = krn_cuda_tape_add(&b->tape, step);
    if (rc < 0)
        return krn_cuda_refuse(b, rc, "no memory to record a pass");
    rc = krn_cuda_step_run(&b->driver, b->overlap, step);
    if (rc == KRN_ENOTSUP) // nothing happened; the caller has another way
        b->tape.n--;
    else if (rc < 0)
        rc = krn_cuda_checked(b, fall_back(b, true));
    return rc;
}

// Ends the recording with a graph in the cache, or with the pass launched op by op.
static int end_recording(struct krn_cuda_backend *b)
{
    const struct krn_cuda_driver *d = &b->driver;
    struct krn_cuda_graph *graph = NULL;
    if (d->capture_end(d->ctx, d->stream, &graph) < 0)
        return fall_back(b, false);
    krn_cuda_graphs_add(&b->graphs, &b->key, graph);
    return d->graph_launch(d->ctx, graph, d->stream);
}

static int cuda_submit(void *ctx)
{
    struct krn_cuda_backend *b = ctx;
    const struct krn_cuda_driver *d = &b->driver;
    if (b->failed)
        return b->failed;
    if (b->state == KRN_CUDA_IDLE)
        return krn_cuda_refuse(b, KRN_EINVAL, "submit without a pass");
    int rc = 0;
    if (b->state == KRN_CUDA_REPLAY)
        rc = d->graph_launch(d->ctx, b->replay, d->stream);
    else if (b->state == KRN_CUDA_RECORD)
        rc = end_recording(b);
    b->state = KRN_CUDA_IDLE;
    if (rc == 0)
        rc = krn_cuda_pass_fetch(&b->passes, b->pass);
    if (rc < 0)
        b->passes.last_wanted = 0; // as after abandon
    return krn_cuda_checked(b, rc);
}

static void cuda_abandon(void *ctx)
{
    struct krn_cuda_backend *b = ctx;
    if (b->state == KRN_CUDA_RECORD)
        b->driver.capture_end(b->driver.ctx, b->driver.stream, NULL);
    if (b->state != KRN_CUDA_IDLE)
        b->passes.last_wanted = 0; // half of its choices may be there
    b->state = KRN_CUDA_IDLE;
}

static int cuda_wait(void *ctx)
{
    struct krn_cuda_backend *b = ctx;
    const struct krn_cuda_driver *d = &b->driver;
    if (b->failed) {
        b->passes.n_ahead = 0;
        return b->failed;
    }
    if (b->state == KRN_CUDA_RECORD)
        return krn_cuda_refuse(b, KRN_EINVAL, "wait stands inside a pass");
    if (b->passes.n_ahead > 0)
        return krn_cuda_checked(b, krn_cuda_pass_take(&b->passes));
    int rc = krn_cuda_memory_settle(&b->memory);
    return krn_cuda_checked(b, rc < 0 ? rc : d->sync(d->ctx, d->stream));
}

// ---- open and close -------------------------------------------------------------------------------------------------

static void cuda_close(void *ctx)
{
    struct krn_cuda_backend *b = ctx;
    if (!b)
        return;
    cuda_abandon(b);
    krn_cuda_let_go(b);
    krn_cuda_passes_done(&b->passes);
    krn_cuda_memory_done(&b->memory);
    krn_cuda_tape_done(&b->tape);
    b->driver.close(b->driver.ctx);
    free((float *)(uintptr_t)b->rope.inv_freq);
    free(b);
}

static const struct krn_backend template = {
    .name = "cuda",
    .async = true,
    .prepare = krn_cuda_prepare,
    .begin = cuda_begin,
    .submit = cuda_submit,
    .abandon = cuda_abandon,
    .wait = cuda_wait,
    .error = cuda_error,
    .close = cuda_close,
};

static const char *check_device(const struct krn_cuda_device *device, const struct krn_cuda_options *options)
{
    if (device->major < 8)
        return "it is older than compute capability 8.0";
    return options->tensor_parallel > 1 ? "one backend does not share a model among several" : NULL;
}

int krn_cuda_backend_open(const struct krn_cuda_driver *driver, const struct krn_cuda_options *options,
                          struct krn_backend **ret, char *err, size_t err_size)
{
    const struct krn_cuda_device *device = &driver->device;
    const char *wrong = check_device(device, options);
    struct krn_cuda_backend *b = wrong ? NULL : calloc(1, sizeof *b);
    if (!b) {
        if (err && err_size > 0)
            snprintf(err, err_size, "%s cannot be used: %s", device->name, wrong ? wrong : "no memory");
        driver->close(driver->ctx);
        return wrong ? KRN_ENOTSUP : KRN_ENOMEM;
    }
    b->backend = template;
    krn_cuda_storage(&b->backend);
    krn_cuda_operations(&b->backend);
    krn_cuda_products(&b->backend);
    b->backend.ctx = b;
    b->backend.description = b->description;
    b->driver = *driver;
    b->options = *options;
    b->overlap = device->major >= 9 && !options->no_overlap;
    b->library = driver->product && !options->deterministic;
    krn_cuda_memory_init(&b->memory, &b->driver);
    krn_cuda_graphs_init(&b->graphs, &b->driver, options->no_graphs ? "switched off" : NULL);
    snprintf(b->error, sizeof b->error, "nothing failed");
    describe(b);
    *ret = &b->backend;
    return 0;
}
