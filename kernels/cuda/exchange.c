// The communicator of several GPUs: NCCL moves parts between their staging memory, ranks.cu adds them up.
//
// A sum has two ways. Up to SHORT_FLOATS received, each device gets all parts whole and adds them: one exchange, n - 1
// times the matrix received. Above, device d gets the d-th slice of every part, adds those, and the sums are gathered:
// two exchanges, 2 (n - 1) / n times the matrix. With 2 devices both move the same, so the first serves always. Either
// adds in the order of the devices, so which way an element went never shows. What does not fit the staging memory goes
// in pieces. Everything takes its place on the devices' streams, and so in the graphs that are recorded from them.
//
// A device that dies leaves the others waiting for its part. finish therefore asks all devices in turn instead of
// waiting for one, and abort ends what waits. NCCL's abort and destroy wait until no graph holds its work: close lets
// the children throw their graphs away first, and abort, which comes while they exist, waits on threads of its own.
// Leaves out replacing a lost device: the backend is lost with it.
#include "exchange.h"

#include "kernels.h"

#include <assert.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    SHORT_FLOATS = 2 << 20,        // by arithmetic: where a second exchange (15 us) costs less than the bytes it saves
    EVENTS = KRN_PASSES_AHEAD + 1, // of passes that are under way
    TRIAL = 2,                     // floats of a slice that are tried at the start
};

struct exchange {
    struct krn_nccl nccl;
    int32_t n;
    struct krn_cuda_driver drivers[KRN_TENSOR_PARALLEL_MAX];
    struct krn_backend *children[KRN_TENSOR_PARALLEL_MAX];
    struct ncclComm *comms[KRN_TENSOR_PARALLEL_MAX]; // NULL after abort
    float *staging[KRN_TENSOR_PARALLEL_MAX];         // the children's memory
    int64_t staging_floats;
    struct krn_cuda_event *done[EVENTS][KRN_TENSOR_PARALLEL_MAX];
    int32_t next, n_ahead; // of done
    char error[320];
};

static int nccl_failed(struct exchange *x, const char *call, int error)
{
    snprintf(x->error, sizeof x->error, "NCCL: %s: %s", call, x->nccl.get_error_string(error));
    return KRN_EDEVICE;
}

static int device_failed(struct exchange *x, int32_t d, int rc)
{
    snprintf(x->error, sizeof x->error, "device %d: %s", d, x->drivers[d].error(x->drivers[d].ctx));
    return rc;
}

static struct krn_cuda_launch launch_on(const struct exchange *x, int32_t d)
{
    return (struct krn_cuda_launch){.stream = x->drivers[d].stream};
}

static int use(struct exchange *x, int32_t d)
{
    int rc = x->drivers[d].use ? x->drivers[d].use(x->drivers[d].ctx) : 0;
    return rc < 0 ? device_failed(x, d, rc) : 0;
}

static int start_group(struct exchange *x, const char *call)
{
    if (!x->comms[0])
        return KRN_EDEVICE; // aborted: error says why
    int error = x->nccl.group_start();
    return error ? nccl_failed(x, call, error) : 0;
}

// Ends a group of calls, whatever `error` one of them returned.
static int end_group(struct exchange *x, const char *call, int error)
{
    int ended = x->nccl.group_end();
    return error ? nccl_failed(x, call, error) : ended ? nccl_failed(x, call, ended) : 0;
}

// ---- moving and adding ----------------------------------------------------------------------------------------------

// recv[e] = send[0], send[1], ... one after the other, on every device e.
static int gather(struct exchange *x, const float *const send[], float *const recv[], int64_t count)
{
    int error = 0, rc = start_group(x, "all-gather");
    if (rc < 0)
        return rc;
    for (int32_t d = 0; !error && d < x->n; d++)
        error =
            x->nccl.all_gather(send[d], recv[d], (size_t)count, KRN_NCCL_FLOAT32, x->comms[d], x->drivers[d].stream);
    return end_group(x, "all-gather", error);
}

// staging[e] = slice e of parts[0], slice e of parts[1], ...
static int scatter(struct exchange *x, float *const parts[], int64_t slice)
{
    int error = 0, rc = start_group(x, "scatter");
    if (rc < 0)
        return rc;
    for (int32_t d = 0; d < x->n; d++)
        for (int32_t e = 0; !error && e < x->n; e++) {
            void *stream = x->drivers[d].stream;
            error = x->nccl.send(parts[d] + e * slice, (size_t)slice, KRN_NCCL_FLOAT32, e, x->comms[d], stream);
            if (!error)
                error =
                    x->nccl.recv(x->staging[d] + e * slice, (size_t)slice, KRN_NCCL_FLOAT32, e, x->comms[d], stream);
        }
    return end_group(x, "scatter", error);
}

// y[d] = the sum of the parts in staging[d].
static int add_up(struct exchange *x, float *const y[], int64_t count)
{
    for (int32_t d = 0; d < x->n; d++) {
        struct krn_rank_sum_args args = {.from = x->staging[d], .y = y[d], .count = count, .n = x->n};
        int rc = use(x, d);
        if (rc == 0 && (rc = krn_cuda_rank_sum(launch_on(x, d), &args)) < 0)
            rc = device_failed(x, d, rc);
        if (rc < 0)
            return rc;
    }
    return 0;
}

static int reduce_whole(struct exchange *x, float *const parts[], int64_t count)
{
    int rc = gather(x, (const float *const *)parts, x->staging, count);
    return rc < 0 ? rc : add_up(x, parts, count);
}

static int reduce_slices(struct exchange *x, float *const parts[], int64_t slice)
{
    float *own[KRN_TENSOR_PARALLEL_MAX];
    for (int32_t d = 0; d < x->n; d++)
        own[d] = parts[d] + d * slice;
    int rc = scatter(x, parts, slice);
    if (rc == 0)
        rc = add_up(x, own, slice);
    return rc < 0 ? rc : gather(x, (const float *const *)own, parts, slice);
}

static int all_reduce(void *ctx, float *const parts[], int64_t count)
{
    struct exchange *x = ctx;
    int64_t whole = x->staging_floats / x->n; // floats of a part that fit when all come whole
    if (x->n > 2 && whole > SHORT_FLOATS / x->n)
        whole = SHORT_FLOATS / x->n;
    int rc = 0;
    for (int64_t at = 0, piece; rc == 0 && at < count; at += piece) {
        float *from[KRN_TENSOR_PARALLEL_MAX];
        for (int32_t d = 0; d < x->n; d++)
            from[d] = parts[d] + at;
        piece = count - at;
        int64_t slice = (piece < x->staging_floats ? piece : x->staging_floats) / x->n;
        if (piece <= whole || x->n == 2 || slice == 0) {
            piece = piece < whole ? piece : whole;
            rc = reduce_whole(x, from, piece);
        } else {
            piece = slice * x->n;
            rc = reduce_slices(x, from, slice);
        }
    }
    return rc;
}

static int all_gather_columns(void *ctx, float *const to[], const float *const parts[], int32_t rows, int32_t width)
{
    struct exchange *x = ctx;
    int64_t most = x->staging_floats / ((int64_t)x->n * width);
    if (most == 0) {
        snprintf(x->error, sizeof x->error, "a row of logits does not fit the exchange's memory");
        return KRN_ENOTSUP;
    }
    int rc = 0;
    for (int32_t row = 0, some; rc == 0 && row < rows; row += some) {
        const float *from[KRN_TENSOR_PARALLEL_MAX];
        some = rows - row < most ? rows - row : (int32_t)most;
        for (int32_t d = 0; d < x->n; d++)
            from[d] = parts[d] + (int64_t)row * width;
        rc = gather(x, from, x->staging, (int64_t)some * width);
        for (int32_t d = 0; rc == 0 && d < x->n; d++) {
            struct krn_rank_columns_args args = {.from = x->staging[d],
                                                 .to = to[d] + (int64_t)row * x->n * width,
                                                 .n = x->n,
                                                 .rows = some,
                                                 .width = width};
            rc = use(x, d);
            if (rc == 0 && (rc = krn_cuda_rank_columns(launch_on(x, d), &args)) < 0)
                rc = device_failed(x, d, rc);
        }
    }
    return rc;
}

// ---- passes ---------------------------------------------------------------------------------------------------------

static int submitted(void *ctx)
{
    struct exchange *x = ctx;
    for (int32_t d = 0; d < x->n; d++) {
        const struct krn_cuda_driver *driver = &x->drivers[d];
        int rc = driver->event_record(driver->ctx, x->done[x->next][d], driver->stream);
        if (rc < 0)
            return device_failed(x, d, rc);
    }
    x->next = (x->next + 1) % EVENTS;
    x->n_ahead++;
    return 0;
}

// 1: all devices have come to these events; 0: not yet.
static int all_done(struct exchange *x, struct krn_cuda_event *const events[])
{
    int done = 1;
    for (int32_t d = 0; d < x->n; d++) {
        const struct krn_cuda_driver *driver = &x->drivers[d];
        int error = 0, rc = driver->event_query(driver->ctx, events[d]);
        if (rc < 0)
            return device_failed(x, d, rc);
        int failed = rc == 0 ? x->nccl.comm_get_async_error(x->comms[d], &error) : 0;
        if (failed || (error && error != KRN_NCCL_IN_PROGRESS))
            return nccl_failed(x, "an exchange", failed ? failed : error);
        done &= rc;
    }
    return done;
}

static int finish(void *ctx)
{
    struct exchange *x = ctx;
    if (x->n_ahead == 0)
        return 0;
    struct krn_cuda_event *const *events = x->done[(x->next + EVENTS - x->n_ahead) % EVENTS];
    int rc;
    while ((rc = all_done(x, events)) == 0)
        sched_yield();
    x->n_ahead--;
    return rc < 0 ? rc : 0;
}

static const char *last_error(void *ctx)
{
    struct exchange *x = ctx;
    return x->error;
}

// ---- open and close -------------------------------------------------------------------------------------------------

struct aborted {
    int (*comm_abort)(struct ncclComm *comm);
    struct ncclComm *comm;
};

static void *abort_one(void *arg)
{
    struct aborted *aborted = arg;
    aborted->comm_abort(aborted->comm);
    free(aborted);
    return NULL;
}

// Each on its own thread, which nobody waits for: none of them ends before all have begun.
static void abort_all(void *ctx)
{
    struct exchange *x = ctx;
    for (int32_t d = 0; d < x->n; d++) {
        struct aborted *aborted = x->comms[d] ? malloc(sizeof *aborted) : NULL;
        pthread_t thread;
        if (aborted) {
            *aborted = (struct aborted){x->nccl.comm_abort, x->comms[d]};
            if (pthread_create(&thread, NULL, abort_one, aborted) == 0)
                pthread_detach(thread);
            else
                free(aborted);
        }
        x->comms[d] = NULL;
    }
}

static void close_exchange(void *ctx)
{
    struct exchange *x = ctx;
    for (int32_t d = 0; d < x->n; d++)
        if (x->staging[d]) // with it go the graphs, which hold its address and NCCL's work
            x->children[d]->release(x->children[d]->ctx, x->staging[d]);
    for (int32_t d = 0; d < x->n; d++)
        if (x->comms[d])
            x->nccl.comm_destroy(x->comms[d]);
    for (int i = 0; i < EVENTS; i++)
        for (int32_t d = 0; d < x->n; d++)
            if (x->done[i][d])
                x->drivers[d].event_free(x->drivers[d].ctx, x->done[i][d]);
    free(x);
}

static int open_devices(struct exchange *x, const int devices[])
{
    int error = x->nccl.comm_init_all(x->comms, x->n, devices);
    if (error) {
        memset(x->comms, 0, sizeof x->comms);
        return nccl_failed(x, "ncclCommInitAll", error);
    }
    for (int32_t d = 0; d < x->n; d++) {
        const struct krn_cuda_driver *driver = &x->drivers[d];
        size_t bytes = (size_t)x->staging_floats * sizeof(float);
        for (int i = 0; i < EVENTS; i++) {
            int rc = driver->event_new(driver->ctx, &x->done[i][d]);
            if (rc < 0)
                return device_failed(x, d, rc);
        }
        x->staging[d] = x->children[d]->alloc(x->children[d]->ctx, bytes, "exchange");
        if (!x->staging[d]) {
            snprintf(x->error, sizeof x->error, "device %d: no memory to exchange activations (%zu bytes)", d, bytes);
            return KRN_ENOMEM;
        }
    }
    return 0;
}

// Runs one sum both ways on small numbers, whose sum is exact, and looks at the result.
static int try_sums(struct exchange *x, float *const trial[])
{
    struct krn_backend *const *children = x->children;
    int32_t n = x->n;
    float values[TRIAL * KRN_TENSOR_PARALLEL_MAX], sums[TRIAL * KRN_TENSOR_PARALLEL_MAX];
    for (int way = 0; way < 2; way++) {
        int rc = 0;
        for (int32_t d = 0; rc == 0 && d < n; d++) {
            for (int32_t i = 0; i < TRIAL * n; i++)
                values[i] = (float)((d + 1) * (i + 1 + way));
            rc = children[d]->upload(children[d]->ctx, trial[d], values, (size_t)(TRIAL * n) * sizeof *values);
        }
        if (rc == 0)
            rc = way == 0 ? reduce_whole(x, trial, TRIAL * n) : reduce_slices(x, trial, TRIAL);
        for (int32_t d = 0; rc == 0 && d < n; d++) {
            rc = children[d]->download(children[d]->ctx, sums, trial[d], (size_t)(TRIAL * n) * sizeof *sums);
            for (int32_t i = 0; rc == 0 && i < TRIAL * n; i++)
                if (sums[i] != (float)(n * (n + 1) / 2 * (i + 1 + way)))
                    rc = KRN_EDEVICE;
        }
        if (rc < 0) {
            if (!x->error[0])
                snprintf(x->error, sizeof x->error, "the devices do not exchange what they should");
            return rc;
        }
    }
    return 0;
}

static int try_exchange(struct exchange *x)
{
    struct krn_backend *const *children = x->children;
    float *trial[KRN_TENSOR_PARALLEL_MAX] = {0};
    int rc = 0;
    for (int32_t d = 0; rc == 0 && d < x->n; d++)
        if (!(trial[d] =
                  children[d]->alloc(children[d]->ctx, sizeof(float[TRIAL * KRN_TENSOR_PARALLEL_MAX]), "exchange")))
            rc = KRN_ENOMEM;
    if (rc == 0)
        rc = try_sums(x, trial);
    else
        snprintf(x->error, sizeof x->error, "no memory to try the exchange of activations");
    if (rc < 0)
        abort_all(x); // a release waits for the device
    for (int32_t d = 0; d < x->n; d++)
        children[d]->release(children[d]->ctx, trial[d]);
    return rc;
}

int krn_cuda_exchange_open(const struct krn_nccl *nccl, const struct krn_cuda_driver drivers[],
                           struct krn_backend *const children[], const int devices[], int32_t n, int64_t staging_floats,
                           struct krn_comm *ret, char *err, size_t err_size)
{
    struct exchange *x = calloc(1, sizeof *x);
    int rc = x ? 0 : KRN_ENOMEM;
    assert(staging_floats >= TRIAL * n * n);
    if (x) {
        x->nccl = *nccl;
        x->n = n;
        memcpy(x->drivers, drivers, (size_t)n * sizeof *drivers);
        memcpy(x->children, children, (size_t)n * sizeof *children);
        x->staging_floats = staging_floats;
        rc = open_devices(x, devices);
        if (rc == 0)
            rc = try_exchange(x);
    }
    if (rc < 0) {
        if (err && err_size > 0)
            snprintf(err, err_size, "%s", x ? x->error : "no memory for the exchange between devices");
        if (x)
            close_exchange(x);
        return rc;
    }
    *ret = (struct krn_comm){
        .ctx = x,
        .all_reduce = all_reduce,
        .all_gather_columns = all_gather_columns,
        .submitted = submitted,
        .finish = finish,
        .abort = abort_all,
        .error = last_error,
        .close = close_exchange,
    };
    return 0;
}
