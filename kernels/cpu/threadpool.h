// A pool of threads that share the chunks of an index range.
//
// One thread (the owner) opens, runs and closes it; jobs do not queue. Which thread takes a chunk is left to chance, so
// a job must give the same result for any partition of its range.
#pragma once

#include <stdint.h>

struct krn_pool;

// Work on the indices [begin, end); thread identifies the thread, 0 .. threads - 1 (for per-thread scratch).
typedef void krn_pool_fn(void *arg, int64_t begin, int64_t end, int thread);

enum { KRN_POOL_MAX = 256, KRN_POOL_CHUNKS_MAX = 1024 };

// Opens a pool of `threads` (1 .. KRN_POOL_MAX, the caller's included). Fewer are opened when the system refuses
// threads. NULL: no memory.
struct krn_pool *krn_pool_open(int threads);

// Threads it really has, the caller's included.
int krn_pool_threads(const struct krn_pool *pool);

// Calls fn on [0, n) cut into `chunks` contiguous pieces of equal size (to one index; never empty) and returns when all
// are done. With one chunk or one thread it is a plain call on the caller's thread (number 0). fn must not call
// krn_pool_run.
void krn_pool_run(struct krn_pool *pool, int64_t n, int chunks, krn_pool_fn *fn, void *arg);

// Joins the threads. Takes NULL.
void krn_pool_close(struct krn_pool *pool);
