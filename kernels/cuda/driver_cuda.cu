// The real driver table: the CUDA runtime for memory, streams, events and graphs; cuBLASLt for large products.
//
// Kernels are loaded at their first launch, which may be while a pass is recorded: capture is relaxed, so that loading
// is allowed there. (Loading everything at once would bring in all of the library's kernels.) The library gets one
// fixed workspace and one plan for each shape that it meets; it picks a plan by rule, without measuring, so the same
// shape has the same plan in every run on one version of the library.
//
// An error of the runtime is kept as a sentence with the call that reported it, which for asynchronous work is often a
// later one. Leaves out every decision: backend.c.
#include "driver.h"

#include "kernels.h"

#include <cublasLt.h>
#include <cuda_runtime.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct krn_cuda_event {
    cudaEvent_t event;
};

struct krn_cuda_graph {
    cudaGraphExec_t exec;
};

namespace
{

enum { WORKSPACE_BYTES = 32 << 20, MAX_PLANS = 256, MAX_ERROR = 320 };

// One product's shape and what the library chose for it.
struct plan {
    int32_t rows, outputs, cols, ldx, ldw, ldy;
    cublasLtMatmulDesc_t product;
    cublasLtMatrixLayout_t w, x, y;
    cublasLtMatmulAlgo_t algorithm;
};

struct context {
    int32_t device;
    cudaStream_t stream, load_stream;
    cublasLtHandle_t library; // NULL: none
    void *workspace;
    plan plans[MAX_PLANS];
    int32_t n_plans, next_plan; // next_plan: the one that makes room when all are taken
};

// Launches come without a context (launch.h), so errors are the thread's.
thread_local char last_error[MAX_ERROR] = "nothing failed";
thread_local int32_t current_device = -1;

int failed(const char *call, cudaError_t error)
{
    snprintf(last_error, sizeof last_error, "%s: %s (%s)", call, cudaGetErrorString(error), cudaGetErrorName(error));
    cudaGetLastError(); // an error that is not the device's end must not be found again by a later launch
    return error == cudaErrorMemoryAllocation ? KRN_ENOMEM : KRN_EDEVICE;
}

#define TRY(call)                            \
    do {                                     \
        cudaError_t try_error = (call);      \
        if (try_error != cudaSuccess)        \
            return failed(#call, try_error); \
    } while (0)

context *context_of(void *ctx)
{
    return (context *)ctx;
}

int use(void *ctx)
{
    if (current_device == context_of(ctx)->device)
        return 0;
    TRY(cudaSetDevice(context_of(ctx)->device));
    current_device = context_of(ctx)->device;
    return 0;
}

#define USE(ctx)                \
    do {                        \
        if (use(ctx) != 0)      \
            return KRN_EDEVICE; \
    } while (0)

// ---- memory, streams, events ----------------------------------------------------------------------------------------

int alloc(void *ctx, size_t bytes, void **ret)
{
    USE(ctx);
    TRY(cudaMalloc(ret, bytes));
    return 0;
}

void release(void *ctx, void *ptr)
{
    if (ptr && use(ctx) == 0)
        cudaFree(ptr);
}

int host_alloc(void *ctx, size_t bytes, void **ret)
{
    USE(ctx);
    TRY(cudaHostAlloc(ret, bytes, cudaHostAllocDefault));
    return 0;
}

void host_release(void *ctx, void *ptr)
{
    if (ptr && use(ctx) == 0)
        cudaFreeHost(ptr);
}

int memory(void *ctx, int64_t *ret_free, int64_t *ret_total)
{
    size_t free_bytes, total;
    USE(ctx);
    TRY(cudaMemGetInfo(&free_bytes, &total));
    *ret_free = (int64_t)free_bytes;
    *ret_total = (int64_t)total;
    return 0;
}

int copy_in(void *ctx, void *stream, void *dst, const void *host, size_t bytes)
{
    USE(ctx);
    TRY(cudaMemcpyAsync(dst, host, bytes, cudaMemcpyHostToDevice, (cudaStream_t)stream));
    return 0;
}

int copy_out(void *ctx, void *stream, void *host, const void *src, size_t bytes)
{
    USE(ctx);
    TRY(cudaMemcpyAsync(host, src, bytes, cudaMemcpyDeviceToHost, (cudaStream_t)stream));
    return 0;
}

int fill(void *ctx, void *stream, void *dst, int byte, size_t bytes)
{
    USE(ctx);
    TRY(cudaMemsetAsync(dst, byte, bytes, (cudaStream_t)stream));
    return 0;
}

int sync(void *ctx, void *stream)
{
    USE(ctx);
    TRY(cudaStreamSynchronize((cudaStream_t)stream));
    return 0;
}

int event_new(void *ctx, struct krn_cuda_event **ret)
{
    USE(ctx);
    krn_cuda_event *event = (krn_cuda_event *)calloc(1, sizeof *event);
    if (!event)
        return KRN_ENOMEM;
    cudaError_t error = cudaEventCreateWithFlags(&event->event, cudaEventDisableTiming);
    if (error != cudaSuccess) {
        free(event);
        return failed("cudaEventCreateWithFlags", error);
    }
    *ret = event;
    return 0;
}

void event_free(void *ctx, struct krn_cuda_event *event)
{
    if (event && use(ctx) == 0)
        cudaEventDestroy(event->event);
    free(event);
}

int event_record(void *ctx, struct krn_cuda_event *event, void *stream)
{
    USE(ctx);
    TRY(cudaEventRecord(event->event, (cudaStream_t)stream));
    return 0;
}

int event_wait(void *ctx, struct krn_cuda_event *event)
{
    USE(ctx);
    TRY(cudaEventSynchronize(event->event));
    return 0;
}

int event_query(void *ctx, struct krn_cuda_event *event)
{
    USE(ctx);
    cudaError_t error = cudaEventQuery(event->event);
    if (error == cudaErrorNotReady) {
        cudaGetLastError(); // no error, but the runtime keeps it as one
        return 0;
    }
    return error == cudaSuccess ? 1 : failed("cudaEventQuery", error);
}

// ---- graphs ---------------------------------------------------------------------------------------------------------

// Relaxed, because one thread serves all GPUs that share a model: while one's stream is recorded it waits for another's
// copies, and NCCL may allocate. What must not happen on the recorded stream itself fails in every mode.
int capture_begin(void *ctx, void *stream)
{
    USE(ctx);
    TRY(cudaStreamBeginCapture((cudaStream_t)stream, cudaStreamCaptureModeRelaxed));
    return 0;
}

int instantiate(cudaGraph_t recorded, struct krn_cuda_graph **ret)
{
    krn_cuda_graph *graph = (krn_cuda_graph *)calloc(1, sizeof *graph);
    if (!graph)
        return KRN_ENOMEM;
    cudaError_t error = cudaGraphInstantiate(&graph->exec, recorded, 0);
    if (error != cudaSuccess) {
        free(graph);
        return failed("cudaGraphInstantiate", error);
    }
    *ret = graph;
    return 0;
}

int capture_end(void *ctx, void *stream, struct krn_cuda_graph **ret)
{
    cudaGraph_t recorded = NULL;
    USE(ctx);
    TRY(cudaStreamEndCapture((cudaStream_t)stream, &recorded));
    int rc = ret ? instantiate(recorded, ret) : 0;
    cudaGraphDestroy(recorded);
    return rc;
}

int graph_launch(void *ctx, struct krn_cuda_graph *graph, void *stream)
{
    USE(ctx);
    TRY(cudaGraphLaunch(graph->exec, (cudaStream_t)stream));
    return 0;
}

void graph_free(void *ctx, struct krn_cuda_graph *graph)
{
    if (graph && use(ctx) == 0)
        cudaGraphExecDestroy(graph->exec);
    free(graph);
}

// ---- products -------------------------------------------------------------------------------------------------------

int library_failed(const char *call, cublasStatus_t status)
{
    snprintf(last_error, sizeof last_error, "%s: %s", call, cublasLtGetStatusString(status));
    return KRN_EDEVICE;
}

void plan_done(plan *p)
{
    if (p->product)
        cublasLtMatmulDescDestroy(p->product);
    if (p->w)
        cublasLtMatrixLayoutDestroy(p->w);
    if (p->x)
        cublasLtMatrixLayoutDestroy(p->x);
    if (p->y)
        cublasLtMatrixLayoutDestroy(p->y);
    *p = {};
}

// The library thinks in columns: y^T [outputs][rows] = (w^T)^T x^T, each of our rows being one of its columns.
cublasStatus_t plan_describe(plan *p)
{
    cublasOperation_t transposed = CUBLAS_OP_T;
    cublasStatus_t status = cublasLtMatmulDescCreate(&p->product, CUBLAS_COMPUTE_32F, CUDA_R_32F);
    if (status == CUBLAS_STATUS_SUCCESS)
        status =
            cublasLtMatmulDescSetAttribute(p->product, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof transposed);
    if (status == CUBLAS_STATUS_SUCCESS)
        status = cublasLtMatrixLayoutCreate(&p->w, CUDA_R_16BF, (uint64_t)p->cols, (uint64_t)p->outputs, p->ldw);
    if (status == CUBLAS_STATUS_SUCCESS)
        status = cublasLtMatrixLayoutCreate(&p->x, CUDA_R_16BF, (uint64_t)p->cols, (uint64_t)p->rows, p->ldx);
    if (status == CUBLAS_STATUS_SUCCESS)
        status = cublasLtMatrixLayoutCreate(&p->y, CUDA_R_32F, (uint64_t)p->outputs, (uint64_t)p->rows, p->ldy);
    return status;
}

cublasStatus_t plan_choose(const context *c, plan *p)
{
    cublasLtMatmulPreference_t wish = NULL;
    cublasLtMatmulHeuristicResult_t result = {};
    size_t workspace = WORKSPACE_BYTES;
    int n = 0;
    cublasStatus_t status = cublasLtMatmulPreferenceCreate(&wish);
    if (status == CUBLAS_STATUS_SUCCESS)
        status = cublasLtMatmulPreferenceSetAttribute(wish, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace,
                                                      sizeof workspace);
    if (status == CUBLAS_STATUS_SUCCESS)
        status = cublasLtMatmulAlgoGetHeuristic(c->library, p->product, p->w, p->x, p->y, p->y, wish, 1, &result, &n);
    if (wish)
        cublasLtMatmulPreferenceDestroy(wish);
    if (status == CUBLAS_STATUS_SUCCESS && n == 0)
        status = CUBLAS_STATUS_NOT_SUPPORTED;
    p->algorithm = result.algo;
    return status;
}

bool same_shape(const plan *a, const plan *b)
{
    return a->rows == b->rows && a->outputs == b->outputs && a->cols == b->cols && a->ldx == b->ldx &&
           a->ldw == b->ldw && a->ldy == b->ldy;
}

// NULL: no plan, and *ret_status says why.
const plan *plan_for(context *c, const plan *shape, cublasStatus_t *ret_status)
{
    for (int32_t i = 0; i < c->n_plans; i++)
        if (same_shape(&c->plans[i], shape))
            return &c->plans[i];
    plan made = *shape;
    *ret_status = plan_describe(&made);
    if (*ret_status == CUBLAS_STATUS_SUCCESS)
        *ret_status = plan_choose(c, &made);
    if (*ret_status != CUBLAS_STATUS_SUCCESS) {
        plan_done(&made);
        return NULL;
    }
    plan *place = c->n_plans < MAX_PLANS ? &c->plans[c->n_plans++] : &c->plans[c->next_plan++ % MAX_PLANS];
    plan_done(place);
    *place = made;
    return place;
}

// Nothing was launched: our own kernels can do it.
bool unable(cublasStatus_t status)
{
    return status == CUBLAS_STATUS_NOT_SUPPORTED || status == CUBLAS_STATUS_ARCH_MISMATCH ||
           status == CUBLAS_STATUS_INVALID_VALUE;
}

int product(void *ctx, void *stream, float *y, int32_t ldy, const void *x, int32_t ldx, const void *w, int32_t ldw,
            int32_t rows, int32_t outputs, int32_t cols)
{
    context *c = context_of(ctx);
    const float one = 1, zero = 0;
    cublasStatus_t status = CUBLAS_STATUS_SUCCESS;
    USE(ctx);
    if (!c->library)
        return KRN_ENOTSUP;
    plan shape = {};
    shape.rows = rows, shape.outputs = outputs, shape.cols = cols;
    shape.ldx = ldx, shape.ldw = ldw, shape.ldy = ldy;
    const plan *p = plan_for(c, &shape, &status);
    if (!p)
        return unable(status) ? KRN_ENOTSUP : library_failed("choosing a product", status);
    status = cublasLtMatmul(c->library, p->product, &one, w, p->w, x, p->x, &zero, y, p->y, y, p->y, &p->algorithm,
                            c->workspace, WORKSPACE_BYTES, (cudaStream_t)stream);
    if (unable(status))
        return KRN_ENOTSUP;
    return status == CUBLAS_STATUS_SUCCESS ? 0 : library_failed("cublasLtMatmul", status);
}

// ---- open and close -------------------------------------------------------------------------------------------------

const char *error_text(void *)
{
    return last_error;
}

void close_driver(void *ctx)
{
    context *c = context_of(ctx);
    if (!c)
        return;
    if (use(ctx) == 0) {
        for (int32_t i = 0; i < c->n_plans; i++)
            plan_done(&c->plans[i]);
        if (c->library)
            cublasLtDestroy(c->library);
        if (c->workspace)
            cudaFree(c->workspace);
        if (c->stream)
            cudaStreamDestroy(c->stream);
        if (c->load_stream)
            cudaStreamDestroy(c->load_stream);
    }
    free(c);
}

// Why no device can be used, as a whole sentence.
int refuse(char *err, size_t err_size, const char *what, const char *detail)
{
    if (err && err_size > 0)
        snprintf(err, err_size, "%s (%s)", what, detail);
    return KRN_ENOTSUP;
}

int describe(int32_t device, struct krn_cuda_device *ret)
{
    cudaDeviceProp properties;
    TRY(cudaGetDeviceProperties(&properties, device));
    snprintf(ret->name, sizeof ret->name, "%.127s", properties.name);
    ret->multiprocessors = properties.multiProcessorCount;
    ret->major = properties.major;
    ret->minor = properties.minor;
    ret->memory = (int64_t)properties.totalGlobalMem;
    ret->l2_bytes = properties.l2CacheSize;
    return 0;
}

// Streams that do not wait for the default stream; the library and its workspace.
int start(context *c, struct krn_cuda_device *device)
{
    USE(c);
    TRY(cudaFree(NULL)); // creates the device's context
    TRY(cudaStreamCreateWithFlags(&c->stream, cudaStreamNonBlocking));
    TRY(cudaStreamCreateWithFlags(&c->load_stream, cudaStreamNonBlocking));
    if (cublasLtCreate(&c->library) != CUBLAS_STATUS_SUCCESS) {
        c->library = NULL; // our own kernels serve every size
        return 0;
    }
    TRY(cudaMalloc(&c->workspace, WORKSPACE_BYTES));
    device->workspace = WORKSPACE_BYTES;
    return 0;
}

} // namespace

extern "C" int krn_cuda_launch_failed(void)
{
    return failed("a kernel's launch", cudaGetLastError());
}

extern "C" int krn_cuda_driver_open(int32_t device, struct krn_cuda_driver *ret, char *err, size_t err_size)
{
    int n = 0;
    cudaError_t error = cudaGetDeviceCount(&n);
    if (error == cudaErrorInsufficientDriver)
        return refuse(err, err_size, "no NVIDIA driver here, or one that is too old", cudaGetErrorString(error));
    if (error != cudaSuccess || n == 0)
        return refuse(err, err_size, "no NVIDIA GPU here", cudaGetErrorString(error));
    if (device < 0 || device >= n) {
        if (err && err_size > 0)
            snprintf(err, err_size, "there is no GPU %d: this machine has %d", device, n);
        return KRN_ENOTSUP;
    }
    struct krn_cuda_driver driver = {};
    context *c = (context *)calloc(1, sizeof *c);
    if (!c)
        return KRN_ENOMEM;
    c->device = device;
    if (describe(device, &driver.device) != 0 || start(c, &driver.device) != 0) {
        close_driver(c);
        refuse(err, err_size, "the GPU cannot be used", last_error);
        return KRN_EDEVICE;
    }
    driver.ctx = c;
    driver.stream = c->stream;
    driver.load_stream = c->load_stream;
    driver.use = use;
    driver.alloc = alloc;
    driver.release = release;
    driver.host_alloc = host_alloc;
    driver.host_release = host_release;
    driver.memory = memory;
    driver.copy_in = copy_in;
    driver.copy_out = copy_out;
    driver.fill = fill;
    driver.sync = sync;
    driver.event_new = event_new;
    driver.event_free = event_free;
    driver.event_record = event_record;
    driver.event_wait = event_wait;
    driver.event_query = event_query;
    driver.capture_begin = capture_begin;
    driver.capture_end = capture_end;
    driver.graph_launch = graph_launch;
    driver.graph_free = graph_free;
    driver.product = product;
    driver.error = error_text;
    driver.close = close_driver;
    *ret = driver;
    return 0;
}
