// See fake_driver.h. A stream is a queue of operations; without `deferred` the queue is emptied after every call. A
// graph is a recorded queue. One driver is used by one thread.
#include "fake_driver.h"

#include "kernels.h"
#include "simt_host.h"

#include <atomic>
#include <map>
#include <memory>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <vector>

namespace
{

struct fake;

enum op_kind { OP_LAUNCH, OP_COPY_IN, OP_COPY_OUT, OP_FILL, OP_PRODUCT, OP_EVENT };

struct product {
    float *y;
    const uint16_t *x, *w;
    int32_t ldy, ldx, ldw, rows, outputs, cols;
};

struct op {
    enum op_kind kind;
    struct simt_host::work work; // OP_LAUNCH, with its args in the vector below
    std::vector<char> args;
    void *dst;
    const void *src;
    size_t bytes;
    int byte;
    struct product product;
    std::shared_ptr<bool> reached; // OP_EVENT
};

using ops = std::vector<std::shared_ptr<const struct op>>;

struct stream {
    struct simt_host::stream base; // first: what simt::launch sees
    struct fake *fake;
    ops queue;
    bool capturing;
    ops recorded;
};

struct fake {
    struct fake_driver_options options;
    struct stream streams[2]; // passes, loads
    std::map<const char *, size_t> device, host;
    struct fake_driver_counts counts;
    int64_t fail_at[FAKE_N_CALLS]; // calls left before it; 0: never
    int fail_code[FAKE_N_CALLS];
    bool lost;
    char error[768];
};

std::atomic<int64_t> live_allocations;

const char *const call_names[FAKE_N_CALLS] = {
    "alloc",        "host_alloc", "copy_in",       "copy_out",    "fill",         "sync",    "event_new",
    "event_record", "event_wait", "capture_begin", "capture_end", "graph_launch", "product", "launch",
};

} // namespace

struct krn_cuda_event {
    struct stream *stream;
    std::shared_ptr<bool> reached; // NULL: never recorded
};

struct krn_cuda_graph {
    ops recorded;
};

namespace
{

struct fake *fake_of(void *ctx)
{
    return (struct fake *)ctx;
}

int failure(struct fake *fake, int code, const char *format, ...) __attribute__((format(printf, 3, 4)));
int failure(struct fake *fake, int code, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(fake->error, sizeof fake->error, format, args);
    va_end(args);
    return code;
}

int lose(struct fake *fake)
{
    fake->lost = true;
    return KRN_EDEVICE;
}

// Counts a call and says whether it may go on.
int enter(struct fake *fake, enum fake_call call)
{
    fake->counts.calls[call]++;
    if (fake->lost)
        return KRN_EDEVICE;
    if (fake->fail_at[call] == 0 || --fake->fail_at[call] > 0)
        return 0;
    fake->lost = fake->fail_code[call] == KRN_EDEVICE;
    return failure(fake, fake->fail_code[call], "%s failed on demand", call_names[call]);
}

// Calls that are not allowed while a stream is captured.
int enter_uncaptured(struct fake *fake, enum fake_call call)
{
    int rc = enter(fake, call);
    if (rc == 0 && (fake->streams[0].capturing || fake->streams[1].capturing))
        rc = failure(fake, KRN_EDEVICE, "%s while a stream is captured", call_names[call]);
    return rc;
}

// ---- memory ---------------------------------------------------------------------------------------------------------

bool inside(const std::map<const char *, size_t> &blocks, const void *ptr, size_t bytes)
{
    auto after = blocks.upper_bound((const char *)ptr);
    if (after == blocks.begin())
        return false;
    auto block = std::prev(after);
    return (const char *)ptr + bytes <= block->first + block->second;
}

void *take(std::map<const char *, size_t> *blocks, size_t bytes)
{
    void *ptr = NULL;
    if (posix_memalign(&ptr, 256, bytes ? bytes : 1) != 0)
        return NULL;
    memset(ptr, 0xff, bytes);
    (*blocks)[(const char *)ptr] = bytes;
    live_allocations++;
    return ptr;
}

int fake_alloc(void *ctx, size_t bytes, void **ret)
{
    struct fake *fake = fake_of(ctx);
    int rc = enter_uncaptured(fake, FAKE_ALLOC);
    if (rc != 0)
        return rc;
    if (bytes > (size_t)(fake->options.memory - fake->counts.bytes))
        return failure(fake, KRN_ENOMEM, "out of device memory: %zu bytes wanted, %lld free", bytes,
                       (long long)(fake->options.memory - fake->counts.bytes));
    void *ptr = take(&fake->device, bytes);
    if (!ptr)
        return failure(fake, KRN_ENOMEM, "out of memory");
    fake->counts.allocations++;
    fake->counts.bytes += (int64_t)bytes;
    *ret = ptr;
    return 0;
}

int fake_host_alloc(void *ctx, size_t bytes, void **ret)
{
    struct fake *fake = fake_of(ctx);
    int rc = enter_uncaptured(fake, FAKE_HOST_ALLOC);
    if (rc != 0)
        return rc;
    void *ptr = take(&fake->host, bytes);
    if (!ptr)
        return failure(fake, KRN_ENOMEM, "out of memory");
    fake->counts.host_allocations++;
    *ret = ptr;
    return 0;
}

int fake_memory(void *ctx, int64_t *ret_free, int64_t *ret_total)
{
    struct fake *fake = fake_of(ctx);
    if (fake->lost)
        return KRN_EDEVICE;
    *ret_free = fake->options.memory - fake->counts.bytes;
    *ret_total = fake->options.memory;
    return 0;
}

// ---- running --------------------------------------------------------------------------------------------------------

float from_bf16(uint16_t half)
{
    uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

// The sums begin at another place for another number of rows: nobody may lean on their bits.
void run_product(const struct product *p)
{
    for (int32_t r = 0; r < p->rows; r++)
        for (int32_t o = 0; o < p->outputs; o++) {
            float sum = 0;
            for (int32_t i = 0; i < p->cols; i++) {
                int32_t k = (i + p->rows) % p->cols;
                sum += from_bf16(p->x[(int64_t)r * p->ldx + k]) * from_bf16(p->w[(int64_t)o * p->ldw + k]);
            }
            p->y[(int64_t)r * p->ldy + o] = sum;
        }
}

int run_copy(struct fake *fake, const struct op *op, const char *name, const void *device, const void *host)
{
    if (!inside(fake->device, device, op->bytes))
        return failure(fake, lose(fake), "%s: %zu bytes at %p are not inside an allocation", name, op->bytes, device);
    if (!inside(fake->host, host, op->bytes))
        return failure(fake, lose(fake), "%s: %zu bytes at %p are not pinned host memory", name, op->bytes, host);
    memcpy(op->dst, op->src, op->bytes);
    return 0;
}

int run_op(struct fake *fake, const struct op *op)
{
    struct simt_host::work work = op->work;
    switch (op->kind) {
    case OP_LAUNCH:
        work.args = op->args.data();
        fake->counts.kernels++;
        simt_host_set_reversed(fake->options.reversed);
        if (simt_host::run(&work) != 0)
            return failure(fake, lose(fake), "%s", simt_host_fault());
        return 0;
    case OP_COPY_IN:
        return run_copy(fake, op, "copy_in", op->dst, op->src);
    case OP_COPY_OUT:
        return run_copy(fake, op, "copy_out", op->src, op->dst);
    case OP_FILL:
        if (!inside(fake->device, op->dst, op->bytes))
            return failure(fake, lose(fake), "fill: %zu bytes at %p are not inside an allocation", op->bytes, op->dst);
        memset(op->dst, op->byte, op->bytes);
        return 0;
    case OP_PRODUCT:
        run_product(&op->product);
        return 0;
    case OP_EVENT:
        *op->reached = true;
        return 0;
    }
    return 0;
}

// Runs what waits on a stream, up to an event if one is given.
int drain(struct stream *stream, const bool *until)
{
    size_t done = 0;
    int rc = stream->fake->lost ? KRN_EDEVICE : 0;
    while (rc == 0 && done < stream->queue.size() && !(until && *until))
        rc = run_op(stream->fake, stream->queue[done++].get());
    if (rc != 0)
        done = stream->queue.size();
    stream->queue.erase(stream->queue.begin(), stream->queue.begin() + (ptrdiff_t)done);
    return rc;
}

void drain_all(struct fake *fake)
{
    for (struct stream &stream : fake->streams)
        drain(&stream, NULL);
}

int put(void *to, struct op &&op)
{
    struct stream *stream = (struct stream *)to;
    auto shared = std::make_shared<const struct op>(std::move(op));
    if (stream->capturing) {
        stream->recorded.push_back(shared);
        return 0;
    }
    stream->queue.push_back(shared);
    return stream->fake->options.deferred ? 0 : drain(stream, NULL);
}

int submit(struct simt_host::stream *base, const struct simt_host::work *work)
{
    struct stream *stream = (struct stream *)base;
    int rc = enter(stream->fake, FAKE_LAUNCH);
    if (rc != 0)
        return rc;
    struct op op = {};
    op.kind = OP_LAUNCH;
    op.work = *work;
    op.args.assign((const char *)work->args, (const char *)work->args + work->args_size);
    return put(stream, std::move(op));
}

// ---- the table ------------------------------------------------------------------------------------------------------

void fake_release(void *ctx, void *ptr)
{
    struct fake *fake = fake_of(ctx);
    auto block = fake->device.find((const char *)ptr);
    if (!ptr)
        return;
    if (block == fake->device.end())
        abort();
    drain_all(fake);
    fake->counts.allocations--;
    fake->counts.bytes -= (int64_t)block->second;
    fake->device.erase(block);
    live_allocations--;
    free(ptr);
}

void fake_host_release(void *ctx, void *ptr)
{
    struct fake *fake = fake_of(ctx);
    if (!ptr)
        return;
    drain_all(fake);
    if (fake->host.erase((const char *)ptr) != 1)
        abort();
    fake->counts.host_allocations--;
    live_allocations--;
    free(ptr);
}

int put_bytes(void *ctx, enum fake_call call, enum op_kind kind, void *stream, void *dst, const void *src, int byte,
              size_t bytes)
{
    int rc = enter(fake_of(ctx), call);
    if (rc != 0 || bytes == 0)
        return rc;
    struct op op = {};
    op.kind = kind;
    op.dst = dst;
    op.src = src;
    op.byte = byte;
    op.bytes = bytes;
    return put(stream, std::move(op));
}

int fake_copy_in(void *ctx, void *stream, void *dst, const void *host, size_t bytes)
{
    return put_bytes(ctx, FAKE_COPY_IN, OP_COPY_IN, stream, dst, host, 0, bytes);
}

int fake_copy_out(void *ctx, void *stream, void *host, const void *src, size_t bytes)
{
    return put_bytes(ctx, FAKE_COPY_OUT, OP_COPY_OUT, stream, host, src, 0, bytes);
}

int fake_fill(void *ctx, void *stream, void *dst, int byte, size_t bytes)
{
    return put_bytes(ctx, FAKE_FILL, OP_FILL, stream, dst, NULL, byte, bytes);
}

int fake_sync(void *ctx, void *stream)
{
    int rc = enter_uncaptured(fake_of(ctx), FAKE_SYNC);
    return rc != 0 ? rc : drain((struct stream *)stream, NULL);
}

int fake_event_new(void *ctx, struct krn_cuda_event **ret)
{
    int rc = enter(fake_of(ctx), FAKE_EVENT_NEW);
    if (rc != 0)
        return rc;
    fake_of(ctx)->counts.events++;
    *ret = new krn_cuda_event();
    return 0;
}

void fake_event_free(void *ctx, struct krn_cuda_event *event)
{
    fake_of(ctx)->counts.events -= event != NULL;
    delete event;
}

int fake_event_record(void *ctx, struct krn_cuda_event *event, void *stream)
{
    int rc = enter(fake_of(ctx), FAKE_EVENT_RECORD);
    if (rc != 0)
        return rc;
    struct op op = {};
    op.kind = OP_EVENT;
    op.reached = std::make_shared<bool>(false);
    event->stream = (struct stream *)stream;
    event->reached = op.reached;
    return put(stream, std::move(op));
}

int fake_event_wait(void *ctx, struct krn_cuda_event *event)
{
    int rc = enter_uncaptured(fake_of(ctx), FAKE_EVENT_WAIT);
    if (rc != 0 || !event->reached || *event->reached)
        return rc;
    return drain(event->stream, event->reached.get());
}

// Deferred work goes on when the host asks for it, so one question is enough.
int fake_event_query(void *ctx, struct krn_cuda_event *event)
{
    int rc = fake_event_wait(ctx, event);
    return rc < 0 ? rc : 1;
}

int fake_capture_begin(void *ctx, void *to)
{
    struct stream *stream = (struct stream *)to;
    int rc = enter(fake_of(ctx), FAKE_CAPTURE_BEGIN);
    if (rc != 0)
        return rc;
    if (stream->capturing)
        return failure(fake_of(ctx), KRN_EDEVICE, "capture_begin in a capture");
    stream->capturing = true;
    return 0;
}

int fake_capture_end(void *ctx, void *from, struct krn_cuda_graph **ret)
{
    struct stream *stream = (struct stream *)from;
    ops recorded = std::move(stream->recorded);
    bool was_capturing = stream->capturing;
    stream->recorded.clear();
    stream->capturing = false; // also when it fails
    int rc = enter(fake_of(ctx), FAKE_CAPTURE_END);
    if (rc != 0)
        return rc;
    if (!was_capturing)
        return failure(fake_of(ctx), KRN_EDEVICE, "capture_end without capture_begin");
    if (!ret)
        return 0;
    fake_of(ctx)->counts.graphs++;
    *ret = new krn_cuda_graph{std::move(recorded)};
    return 0;
}

int fake_graph_launch(void *ctx, struct krn_cuda_graph *graph, void *to)
{
    struct stream *stream = (struct stream *)to;
    int rc = enter_uncaptured(fake_of(ctx), FAKE_GRAPH_LAUNCH);
    if (rc != 0)
        return rc;
    stream->queue.insert(stream->queue.end(), graph->recorded.begin(), graph->recorded.end());
    return stream->fake->options.deferred ? 0 : drain(stream, NULL);
}

void fake_graph_free(void *ctx, struct krn_cuda_graph *graph)
{
    drain_all(fake_of(ctx));
    fake_of(ctx)->counts.graphs -= graph != NULL;
    delete graph;
}

int fake_product(void *ctx, void *stream, float *y, int32_t ldy, const void *x, int32_t ldx, const void *w, int32_t ldw,
                 int32_t rows, int32_t outputs, int32_t cols)
{
    struct fake *fake = fake_of(ctx);
    int rc = enter(fake, FAKE_PRODUCT);
    if (rc != 0)
        return rc;
    if (fake->options.no_product)
        return failure(fake, KRN_ENOTSUP, "no library of products");
    struct op op = {};
    op.kind = OP_PRODUCT;
    op.product = {y, (const uint16_t *)x, (const uint16_t *)w, ldy, ldx, ldw, rows, outputs, cols};
    return put(stream, std::move(op));
}

const char *fake_error(void *ctx)
{
    return fake_of(ctx)->error;
}

// What was not released stays allocated: the leak checker finds it.
void fake_close(void *ctx)
{
    drain_all(fake_of(ctx));
    delete fake_of(ctx);
}

} // namespace

int fake_driver_open(const struct fake_driver_options *options, struct krn_cuda_driver *ret)
{
    struct fake *fake = new struct fake();
    if (options)
        fake->options = *options;
    if (fake->options.memory == 0)
        fake->options.memory = (int64_t)1 << 30;
    if (fake->options.multiprocessors == 0)
        fake->options.multiprocessors = 4;
    const char *wish = getenv("KRN_SIMT_REVERSED");
    fake->options.reversed |= wish && wish[0] == '1';
    for (struct stream &stream : fake->streams) {
        stream.base.submit = submit;
        stream.fake = fake;
    }
    struct krn_cuda_driver driver = {};
    driver.ctx = fake;
    snprintf(driver.device.name, sizeof driver.device.name, "no device (emulated)");
    driver.device.multiprocessors = fake->options.multiprocessors;
    driver.device.major = 9;
    driver.device.memory = fake->options.memory;
    driver.device.l2_bytes = 50 << 20;
    driver.stream = &fake->streams[0];
    driver.load_stream = &fake->streams[1];
    driver.alloc = fake_alloc;
    driver.release = fake_release;
    driver.host_alloc = fake_host_alloc;
    driver.host_release = fake_host_release;
    driver.memory = fake_memory;
    driver.copy_in = fake_copy_in;
    driver.copy_out = fake_copy_out;
    driver.fill = fake_fill;
    driver.sync = fake_sync;
    driver.event_new = fake_event_new;
    driver.event_free = fake_event_free;
    driver.event_record = fake_event_record;
    driver.event_wait = fake_event_wait;
    driver.event_query = fake_event_query;
    driver.capture_begin = fake_capture_begin;
    driver.capture_end = fake_capture_end;
    driver.graph_launch = fake_graph_launch;
    driver.graph_free = fake_graph_free;
    driver.product = fake_product;
    driver.error = fake_error;
    driver.close = fake_close;
    *ret = driver;
    return 0;
}

struct fake_driver_counts fake_driver_count(const struct krn_cuda_driver *driver)
{
    return fake_of(driver->ctx)->counts;
}

void fake_driver_fail(const struct krn_cuda_driver *driver, enum fake_call call, int64_t nth, int code)
{
    fake_of(driver->ctx)->fail_at[call] = nth;
    fake_of(driver->ctx)->fail_code[call] = code;
}

int64_t fake_driver_live_allocations(void)
{
    return live_allocations;
}

int krn_cuda_launch_failed(void)
{
    return KRN_EDEVICE;
}
