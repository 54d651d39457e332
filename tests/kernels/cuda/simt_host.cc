// The host's SIMT machine: a block's threads as fibres, the collectives, the launch.
//
// One machine per OS thread, made at its first launch: stacks and tables are mapped once and used again by every block.
// A fibre runs until it must wait; then the next ready lane of its warp runs, then the next warp. Blocks run one after
// another. When nobody is ready and not all have ended, the launch ends with a fault that names who waits where. A
// fault leaves the fibres where they stand and returns to the launching function: kernels own nothing that needs
// freeing.
#include "simt_machine.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

namespace simt_host
{

SIMT_TLS struct self *current;
SIMT_TLS struct place here;
SIMT_TLS struct machine *machine;

static __thread char fault_text[640];
static __thread bool reversed;

static const char *const kind_names[] = {
    "sync_block",   "block_exclusive_sum", "block_reduce", "sync_warp",   "shuffle",           "shuffle_xor",
    "shuffle_down", "shuffle_up",          "ballot",       "ldmatrix_x4", "ldmatrix_x4_trans", "mma_16x8x16",
};

// ---- fibres ---------------------------------------------------------------------------------------------------------

enum { GUARD_BYTES = 4096 };

static SIMT_HOT char *stack_of(const struct thread *thread)
{
    return machine->stacks + (size_t)thread->slot * STACK_BYTES + GUARD_BYTES;
}

// The tops are spread over the cache's sets: stacks at one distance of a power of 2 would all share the same few.
static SIMT_HOT size_t stack_size(const struct thread *thread)
{
    return STACK_BYTES - GUARD_BYTES - (size_t)(thread->slot % 64) * 320;
}

static SIMT_UNTRACED SIMT_HOT void go_to(struct thread *from, struct thread *to, bool for_good)
{
    current = &to->self;
    simt_switch_note(for_good ? NULL : &from->fake, stack_of(to), stack_size(to), to->racing);
    simt_switch(&from->sp, to->sp);
    simt_switch_done(from->fake, NULL, NULL);
}

[[noreturn]] static SIMT_UNTRACED void go_to_main(struct thread *from)
{
    current = NULL;
    simt_switch_note(NULL, machine->main_stack, machine->main_stack_size, machine->main_racing);
    simt_switch(&from->sp, machine->main_sp);
    __builtin_unreachable();
}

static const char *base_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

static void describe(const struct work *work, const struct thread *thread, const char *format, va_list args)
{
    int n = snprintf(fault_text, sizeof fault_text, "kernel launched at %s:%d: ", base_name(work->file), work->line);
    if (thread)
        n += snprintf(fault_text + n, sizeof fault_text - (size_t)n, "block (%d, %d, %d), thread %d: ", here.block[0],
                      here.block[1], here.block[2], thread->self.thread);
    vsnprintf(fault_text + n, sizeof fault_text - (size_t)n, format, args);
}

void fault(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    describe(machine->work, running(), format, args);
    va_end(args);
    machine->faulted = true;
    go_to_main(running());
}

// ---- turns ----------------------------------------------------------------------------------------------------------

// The lowest bit of ready above `last`, else the lowest.
static SIMT_HOT int next_bit(uint32_t ready, int last)
{
    uint32_t above = ready & (~1u << last);
    return __builtin_ctz(above ? above : ready);
}

static SIMT_HOT struct thread *next_thread(struct thread *self)
{
    struct warp *warp = self->warp;
    if (warp->ready)
        return &machine->threads[warp->index * LANES + next_bit(warp->ready, self->slot % LANES)];
    machine->ready_warps &= ~(1u << warp->index);
    if (!machine->ready_warps)
        return NULL;
    warp = &machine->warps[next_bit(machine->ready_warps, warp->index)];
    return &machine->threads[warp->index * LANES + __builtin_ctz(warp->ready)];
}

[[noreturn]] static void fault_stuck()
{
    const struct thread *first = NULL;
    for (int i = 0; i < here.threads; i++) {
        const struct thread *t = &machine->threads[reversed ? here.threads - 1 - i : i];
        if (!t->waits)
            continue;
        if (!first)
            first = t;
        else if (t->kind != first->kind || t->line != first->line)
            fault("nobody can go on: thread %d waits at %s (%s:%d), thread %d at %s (%s:%d)", first->self.thread,
                  kind_names[first->kind], base_name(first->file), first->line, t->self.thread, kind_names[t->kind],
                  base_name(t->file), t->line);
    }
    fault("nobody can go on: thread %d waits at %s (%s:%d)", first->self.thread, kind_names[first->kind],
          base_name(first->file), first->line);
}

static SIMT_HOT void wait_turn(struct thread *self)
{
    self->warp->ready &= ~(1u << self->slot % LANES);
    struct thread *next = next_thread(self);
    if (!next)
        fault_stuck();
    go_to(self, next, false);
}

// Notes where a thread is about to wait, and that it is where the others of its group are.
static SIMT_HOT void arrive(struct thread *self, enum kind kind, const char *file, int line, int arrived,
                            const struct thread *other, int ended, const char *who)
{
    self->waits = true;
    self->kind = kind;
    self->file = file;
    self->line = line;
    if (ended)
        fault("reaches %s (%s:%d), but %d %s already ended", kind_names[kind], base_name(file), line, ended, who);
    if (arrived && (other->kind != kind || other->line != line))
        fault("reaches %s (%s:%d), but thread %d waits at %s (%s:%d)", kind_names[kind], base_name(file), line,
              other->self.thread, kind_names[other->kind], base_name(other->file), other->line);
}

SIMT_HOT void meet_warp(enum kind kind, void *mine, together all, const char *file, int line)
{
    struct thread *self = running();
    struct warp *warp = self->warp;
    arrive(self, kind, file, line, warp->arrived, warp->first, __builtin_popcount(warp->ended), "lanes of the warp");
    if (warp->arrived == 0)
        warp->first = self;
    warp->things[self->self.lane] = mine;
    if (++warp->arrived < LANES) {
        wait_turn(self);
    } else {
        warp->arrived = 0;
        if (all)
            all(warp->things, LANES);
        warp->ready = ~0u;
    }
    self->waits = false;
}

SIMT_HOT void meet_block(enum kind kind, void *mine, together all, const char *file, int line)
{
    struct thread *self = running();
    arrive(self, kind, file, line, machine->arrived, machine->first, machine->ended, "threads of the block");
    if (machine->arrived == 0)
        machine->first = self;
    machine->things[self->self.thread] = mine;
    if (++machine->arrived < here.threads) {
        wait_turn(self);
    } else {
        machine->arrived = 0;
        if (all)
            all(machine->things, here.threads);
        for (int w = 0; w < machine->n_warps; w++)
            machine->warps[w].ready = ~0u;
        machine->ready_warps = ~0u >> (WARPS_MAX - machine->n_warps);
    }
    self->waits = false;
}

void meet_block_in(enum kind kind, int threads, int64_t scratch, void *mine, together all, const char *file, int line)
{
    if (threads != here.threads)
        fault("%s of %d threads in a block of %d", kind_names[kind], threads, here.threads);
    if (machine->arrived == threads - 1)
        use_scratch(scratch, simt::block_scratch);
    meet_block(kind, mine, all, file, line);
}

void sync_block(const char *file, int line)
{
    meet_block(
        SYNC_BLOCK, NULL,
        [](void *const *, int) {
            machine->block_time = ++machine->clock;
            for (int w = 0; w < machine->n_warps; w++)
                machine->warps[w].time = machine->clock;
        },
        file, line);
}

void sync_warp(const char *file, int line)
{
    meet_warp(
        SYNC_WARP, NULL, [](void *const *, int) { running()->warp->time = ++machine->clock; }, file, line);
}

// ---- the life of a thread -------------------------------------------------------------------------------------------

[[noreturn]] static SIMT_UNTRACED void end_thread(struct thread *self)
{
    struct warp *warp = self->warp;
    const struct thread *waiting = warp->arrived ? warp->first : machine->arrived ? machine->first : NULL;
    if (self->self.inputs_waited != 1)
        fault("called wait_for_inputs %d times", self->self.inputs_waited);
    if (waiting)
        fault("ends, but thread %d waits at %s (%s:%d)", waiting->self.thread, kind_names[waiting->kind],
              base_name(waiting->file), waiting->line);
    drop_copies(self);
    warp->ready &= ~(1u << self->slot % LANES);
    warp->ended |= 1u << self->slot % LANES;
    if (++machine->ended == here.threads)
        go_to_main(self);
    struct thread *next = next_thread(self);
    if (!next)
        fault_stuck();
    go_to(self, next, true);
    __builtin_unreachable();
}

static SIMT_UNTRACED void begin_thread()
{
    const void *bottom = NULL;
    size_t size = 0;
    simt_switch_done(NULL, &bottom, &size);
    if (!machine->main_stack) { // only the main stack can have been before the first of all fibres
        machine->main_stack = bottom;
        machine->main_stack_size = size;
    }
    machine->work->start(machine->work->kernel, machine->work->args);
    end_thread(running());
}

// ---- blocks and launches --------------------------------------------------------------------------------------------

static void prepare_block(int x, int y, int z)
{
    struct machine *m = machine;
    here.block[0] = x;
    here.block[1] = y;
    here.block[2] = z;
    m->block_start = m->block_time = ++m->clock;
    m->arrived = m->ended = 0;
    m->n_warps = here.threads / LANES;
    m->ready_warps = ~0u >> (WARPS_MAX - m->n_warps);
    for (int w = 0; w < m->n_warps; w++) {
        struct warp *warp = &m->warps[w];
        warp->time = m->clock;
        warp->ready = ~0u;
        warp->ended = 0;
        warp->arrived = 0;
        warp->index = w;
    }
    for (int s = 0; s < here.threads; s++) {
        struct thread *t = &m->threads[s];
        int number = reversed ? here.threads - 1 - s : s;
        t->self = {number, number % LANES, number / LANES, 0};
        t->warp = &m->warps[s / LANES];
        t->slot = s;
        t->copies = &m->copies[s];
        t->waits = false;
        t->fake = NULL;
        t->sp = simt_switch_new(stack_of(t), stack_size(t), begin_thread);
    }
}

static SIMT_UNTRACED void run_block()
{
    struct thread *first = &machine->threads[0];
    void *fake = NULL;
    current = &first->self;
    simt_switch_note(&fake, stack_of(first), stack_size(first), first->racing);
    simt_switch(&machine->main_sp, first->sp);
    simt_switch_done(fake, NULL, NULL);
}

static void clean_up_after_fault()
{
    forget_cells(machine);
    memset((void *)machine->copies, 0, sizeof machine->copies);
#if defined(__SANITIZE_ADDRESS__)
    for (int s = 0; s < here.threads; s++)
        __asan_unpoison_memory_region(stack_of(&machine->threads[s]), stack_size(&machine->threads[s]));
#endif
}

static int refuse(const struct work *work, const char *format, ...) __attribute__((format(printf, 2, 3)));
static int refuse(const struct work *work, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    describe(work, NULL, format, args);
    va_end(args);
    return KRN_EDEVICE;
}

static void close_machine(struct machine *m)
{
#if defined(__SANITIZE_ADDRESS__)
    // Fibres end without returning, so their frames stay marked; what is mapped there next must not inherit that.
    __asan_unpoison_memory_region(m->stacks, (size_t)m->n_stacks * STACK_BYTES);
#endif
#if defined(__SANITIZE_THREAD__)
    for (int s = 0; s < m->n_stacks; s++)
        __tsan_destroy_fiber(m->threads[s].racing);
#endif
    munmap(m->stacks, (size_t)THREADS_MAX * STACK_BYTES);
    munmap(m, sizeof *m);
}

// Of the OS thread; closed with it.
static struct machine *open_machine()
{
    static thread_local struct closer {
        struct machine *m;
        ~closer()
        {
            if (m)
                close_machine(m);
            machine = NULL;
        }
    } closer = {NULL};
    int protection = PROT_READ | PROT_WRITE, flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void *m = mmap(NULL, sizeof(struct machine), protection, flags, -1, 0);
    void *stacks = mmap(NULL, (size_t)THREADS_MAX * STACK_BYTES, protection, flags, -1, 0);
    if (m == MAP_FAILED || stacks == MAP_FAILED)
        abort();
    madvise(stacks, (size_t)THREADS_MAX * STACK_BYTES, MADV_NOHUGEPAGE);
    closer.m = machine = (struct machine *)m;
    machine->stacks = (char *)stacks;
    machine->clock = 1;
#if defined(__SANITIZE_THREAD__)
    machine->main_racing = __tsan_get_current_fiber();
#endif
    return machine;
}

static void open_stacks(struct machine *m, int threads)
{
    for (; m->n_stacks < threads; m->n_stacks++) {
        if (mprotect(m->stacks + (size_t)m->n_stacks * STACK_BYTES, GUARD_BYTES, PROT_NONE) != 0)
            abort();
#if defined(__SANITIZE_THREAD__)
        m->threads[m->n_stacks].racing = __tsan_create_fiber(0);
#endif
    }
}

int run(const struct work *work)
{
    struct machine *m = machine ? machine : open_machine();
    if (work->threads < LANES || work->threads > THREADS_MAX || work->threads % LANES)
        return refuse(work, "blocks of %d threads", work->threads);
    if (work->shared > SHARED_MAX)
        return refuse(work, "%zu bytes of shared memory, more than %d", work->shared, SHARED_MAX);
    if (work->grid[1] > 65535 || work->grid[2] > 65535)
        return refuse(work, "grid of %d x %d x %d blocks", work->grid[0], work->grid[1], work->grid[2]);
    open_stacks(m, work->threads);
    if (m->clock > UINT32_MAX / 2)
        forget_cells(m);
    m->work = work;
    m->faulted = false;
    here.threads = work->threads;
    memcpy(here.grid, work->grid, sizeof here.grid);
    int64_t plane = (int64_t)work->grid[0] * work->grid[1], n = plane * work->grid[2];
    for (int64_t i = 0; i < n && !m->faulted; i++) {
        int64_t b = reversed ? n - 1 - i : i;
        prepare_block((int)(b % work->grid[0]), (int)(b % plane / work->grid[0]), (int)(b / plane));
        run_block();
    }
    if (!m->faulted)
        return 0;
    clean_up_after_fault();
    return KRN_EDEVICE;
}

int submit(void *stream, const struct work *work)
{
    struct stream *to = (struct stream *)stream;
    return to ? to->submit(to, work) : run(work);
}

} // namespace simt_host

const char *simt_host_fault(void)
{
    return simt_host::fault_text;
}

void simt_host_set_reversed(bool wanted)
{
    simt_host::reversed = wanted;
}
