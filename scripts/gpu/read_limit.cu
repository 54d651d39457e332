// The limits that everything else is compared with, measured on this GPU: reading device memory, copying it (bytes read
// plus bytes written) and moving pinned host memory to the device. Prints one JSON object; exit 1 with a message when
// CUDA fails. Stands alone: it uses nothing of ours, so that it cannot share a mistake with what it judges.
#include <cstdio>
#include <cstdlib>

#include <cuda_runtime.h>

#define CHECK(call)                                                                 \
    do {                                                                            \
        cudaError_t e_ = (call);                                                    \
        if (e_ != cudaSuccess) {                                                    \
            fprintf(stderr, "read_limit: %s: %s\n", #call, cudaGetErrorString(e_)); \
            exit(1);                                                                \
        }                                                                           \
    } while (0)

enum { RUNS = 12 };

// Every thread keeps UNROLL 16-byte loads in flight; the sum is stored only if it has a value that random data never
// has.
template <int UNROLL> __global__ void read_all(const uint4 *data, size_t n, unsigned *out)
{
    size_t step = (size_t)gridDim.x * blockDim.x, i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    unsigned sum = 0;
    for (; i + (UNROLL - 1) * step < n; i += UNROLL * step) {
        uint4 v[UNROLL];
#pragma unroll
        for (int k = 0; k < UNROLL; k++)
            v[k] = __ldcs(data + i + k * step);
#pragma unroll
        for (int k = 0; k < UNROLL; k++)
            sum |= v[k].x ^ v[k].y ^ v[k].z ^ v[k].w;
    }
    if (sum == 0x12345678u)
        *out = sum;
}

typedef void (*work)(void *arg);

static float median_ms(work run, void *arg)
{
    static float ms[RUNS];
    cudaEvent_t from, to;
    CHECK(cudaEventCreate(&from));
    CHECK(cudaEventCreate(&to));
    for (int i = -2; i < RUNS; i++) {
        CHECK(cudaEventRecord(from));
        run(arg);
        CHECK(cudaEventRecord(to));
        CHECK(cudaEventSynchronize(to));
        CHECK(cudaGetLastError());
        float t;
        CHECK(cudaEventElapsedTime(&t, from, to));
        int k = i;
        for (; k > 0 && ms[k - 1] > t; k--)
            ms[k] = ms[k - 1];
        if (k >= 0)
            ms[k] = t;
    }
    CHECK(cudaEventDestroy(from));
    CHECK(cudaEventDestroy(to));
    return ms[RUNS / 2];
}

struct job {
    uint4 *from, *to;
    void *host;
    size_t bytes, host_bytes;
    unsigned *out;
    int blocks, threads, unroll;
};

static void run_read(void *arg)
{
    struct job *j = (struct job *)arg;
    size_t n = j->bytes / sizeof(uint4);
    if (j->unroll == 4)
        read_all<4><<<j->blocks, j->threads>>>(j->from, n, j->out);
    else
        read_all<8><<<j->blocks, j->threads>>>(j->from, n, j->out);
}

static void run_copy(void *arg)
{
    struct job *j = (struct job *)arg;
    CHECK(cudaMemcpyAsync(j->to, j->from, j->bytes, cudaMemcpyDeviceToDevice));
}

static void run_host(void *arg)
{
    struct job *j = (struct job *)arg;
    CHECK(cudaMemcpyAsync(j->to, j->host, j->host_bytes, cudaMemcpyHostToDevice));
}

int main()
{
    cudaDeviceProp p;
    CHECK(cudaGetDeviceProperties(&p, 0));
    struct job j = {};
    j.bytes = (size_t)4 << 30;
    j.host_bytes = (size_t)512 << 20;
    CHECK(cudaMalloc(&j.from, j.bytes));
    CHECK(cudaMalloc(&j.to, j.bytes));
    CHECK(cudaMalloc(&j.out, 4));
    CHECK(cudaMemset(j.from, 0x5a, j.bytes));
    CHECK(cudaMallocHost(&j.host, j.host_bytes));
    double best = 0;
    struct job how = j;
    for (int per_sm = 1; per_sm <= 8; per_sm *= 2)
        for (int threads = 256; threads <= 1024; threads *= 2)
            for (int unroll = 4; unroll <= 8; unroll += 4) {
                if (per_sm * threads > p.maxThreadsPerMultiProcessor)
                    continue;
                j.blocks = per_sm * p.multiProcessorCount;
                j.threads = threads;
                j.unroll = unroll;
                double rate = (double)j.bytes / median_ms(run_read, &j) * 1e-6;
                if (rate > best) {
                    best = rate;
                    how = j;
                }
            }
    double copy = 2.0 * (double)j.bytes / median_ms(run_copy, &j) * 1e-6;
    double host = (double)j.host_bytes / median_ms(run_host, &j) * 1e-6;
    printf("{\"device\": \"%s\", \"read_gbps\": %.1f, \"copy_gbps\": %.1f, \"host_gbps\": %.1f, \"l2_bytes\": %d, "
           "\"multiprocessors\": %d, \"how\": \"%d blocks of %d threads, %d loads each\"}\n",
           p.name, best, copy, host, p.l2CacheSize, p.multiProcessorCount, how.blocks, how.threads, how.unroll);
    return 0;
}
