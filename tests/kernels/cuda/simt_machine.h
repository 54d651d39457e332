// Inside the host's SIMT machine: the running block, its warps and threads, and the clock that orders their accesses of
// shared memory. Shared by simt_host.cc (fibres, collectives, launches) and simt_shared.cc (shared memory, copies).
//
// Time. `clock` grows with every barrier. A block has the time of its last sync_block, a warp that of its last
// sync_warp or sync_block. An access is stamped with its warp's time; a later access by another thread is ordered after
// it when that stamp is older than the later thread's block time, or, within one warp, than its warp time.
#pragma once

#include "simt_host.h"
#include "simt_switch.h"

// For what runs at every access and every matrix instruction and touches the machine's own tables alone.
#if defined(__SANITIZE_ADDRESS__)
#define SIMT_HOT __attribute__((no_sanitize("address", "undefined")))
#else
#define SIMT_HOT
#endif

namespace simt_host
{

enum {
    LANES = 32,
    THREADS_MAX = 1024,
    WARPS_MAX = THREADS_MAX / LANES,
    SHARED_MAX = 163 * 1024, // of one block on the smallest of the machines wanted (sm_80)
    STACK_BYTES = 192 * 1024,
    COPIES_MAX = 256, // of one thread, in flight
    GROUPS_MAX = 64,
};

struct warp {
    uint32_t time;
    uint32_t ready, ended; // by slot
    int arrived;
    int index;            // slot of the warp
    struct thread *first; // to arrive
    void *things[LANES];  // by lane
};

struct copy {
    uint32_t offset;
    bool valid;
    const void *src;
};

// A thread's copies: a ring, and a ring of where its groups end. Counts grow without end.
struct copies {
    uint32_t asked, done;
    uint32_t groups, groups_done;
    uint32_t group_end[GROUPS_MAX];
    struct copy ring[COPIES_MAX];
};

struct thread {
    struct self self; // first: simt_host::current
    struct warp *warp;
    int slot;     // in the order of turns; the lane's number in its warp is slot % 32, or reversed
    void *sp;     // while it does not run
    void *fake;   // AddressSanitizer's
    void *racing; // ThreadSanitizer's
    struct copies *copies;
    bool waits;
    enum kind kind;
    const char *file;
    int line;
};

// Who touched 4 bytes (or, once somebody touched a part of them, one byte) and when; see simt_shared.cc.
struct cell {
    uint32_t write, read, add, split;
    uint16_t writer, reader, adder, filler;
};

struct machine {
    const struct work *work;
    uint32_t clock, block_time, block_start; // block_start: the time at which the running block began
    uint32_t ready_warps;
    int arrived, ended, n_warps, n_stacks;
    struct thread *first; // to arrive
    bool faulted;
    void *main_sp;
    const void *main_stack;
    size_t main_stack_size;
    void *main_racing;
    char *stacks;
    alignas(128) char shared[SHARED_MAX];
    struct cell words[SHARED_MAX / 4], bytes[SHARED_MAX];
    struct warp warps[WARPS_MAX];
    struct thread threads[THREADS_MAX];
    struct copies copies[THREADS_MAX];
    void *things[THREADS_MAX];
};

extern SIMT_TLS struct machine *machine;

static inline SIMT_HOT struct thread *running()
{
    return (struct thread *)current;
}

// simt_shared.cc
const void *reading_as(const struct thread *thread, int64_t offset, size_t size, size_t align);
void use_scratch(int64_t offset, size_t size);
void drop_copies(struct thread *thread);
void forget_cells(struct machine *m);

} // namespace simt_host
