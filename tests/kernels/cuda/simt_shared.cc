// Shared memory of the host's SIMT machine: every access is checked against those that no barrier orders before it.
//
// Each 4 bytes have a cell that says who last wrote, read and atomically changed them and when (times: simt_machine.h).
// Several readers (or adders) are remembered as "several lanes of a warp" or "several warps", which is all that the
// next writer must know. A cell is split into one per byte when an access covers only a part of it. Nothing is cleared
// between blocks: stamps older than the block's start do not count, and bytes without a newer one are uninitialised.
#include "simt_machine.h"

#include <stdio.h>

namespace simt_host
{

enum : uint16_t {
    SEVERAL_LANES = 0x4000, // with the number of one of them
    SEVERAL_WARPS = 0xffff,
};

static SIMT_HOT bool same_warp(uint16_t who, const struct thread *thread)
{
    return who != SEVERAL_WARPS && (who & (SEVERAL_LANES - 1)) / LANES == thread->self.warp;
}

// Whether what `who` did at `when` is unordered with what the thread does now.
static SIMT_HOT bool conflicts(uint16_t who, uint32_t when, const struct thread *thread)
{
    if (when < machine->block_time || who == thread->self.thread)
        return false;
    return !same_warp(who, thread) || when >= thread->warp->time;
}

static SIMT_HOT void remember(uint16_t *who, uint32_t *when, const struct thread *thread)
{
    bool same = same_warp(*who, thread);
    if (*when < machine->block_time || *who == thread->self.thread || (same && *when < thread->warp->time)) {
        *who = (uint16_t)thread->self.thread;
        *when = thread->warp->time;
    } else if (same) {
        *who |= SEVERAL_LANES;
    } else {
        *who = SEVERAL_WARPS;
    }
}

[[noreturn]] static void race(const struct thread *thread, size_t at, const char *does, uint16_t who, const char *did)
{
    char name[48];
    if (who == SEVERAL_WARPS)
        snprintf(name, sizeof name, "threads of several warps");
    else if (who & SEVERAL_LANES)
        snprintf(name, sizeof name, "lanes of warp %d", (who & (SEVERAL_LANES - 1)) / LANES);
    else
        snprintf(name, sizeof name, "thread %d", who);
    fault("race on shared byte %zu: thread %d %s what %s %s, no barrier between", at, thread->self.thread, does, name,
          did);
}

static SIMT_HOT void check_filler(const struct cell *cell, size_t at, const char *does)
{
    if (cell->filler)
        fault("shared byte %zu is %s while an asynchronous copy of thread %d fills it", at, does, cell->filler - 1);
}

static SIMT_HOT void note_read(struct cell *cell, const struct thread *thread, size_t at)
{
    check_filler(cell, at, "read");
    if (cell->write < machine->block_start && cell->add < machine->block_start)
        fault("shared byte %zu is read by thread %d but was never written", at, thread->self.thread);
    if (conflicts(cell->writer, cell->write, thread))
        race(thread, at, "reads", cell->writer, "wrote");
    if (conflicts(cell->adder, cell->add, thread))
        race(thread, at, "reads", cell->adder, "changed");
    remember(&cell->reader, &cell->read, thread);
}

static SIMT_HOT void note_write(struct cell *cell, const struct thread *thread, size_t at)
{
    check_filler(cell, at, "written");
    if (conflicts(cell->writer, cell->write, thread))
        race(thread, at, "writes", cell->writer, "wrote");
    if (conflicts(cell->reader, cell->read, thread))
        race(thread, at, "writes", cell->reader, "read");
    if (conflicts(cell->adder, cell->add, thread))
        race(thread, at, "writes", cell->adder, "changed");
    cell->writer = (uint16_t)thread->self.thread;
    cell->write = thread->warp->time;
}

static SIMT_HOT void note_add(struct cell *cell, const struct thread *thread, size_t at)
{
    check_filler(cell, at, "changed");
    if (cell->write < machine->block_start && cell->add < machine->block_start)
        fault("shared byte %zu is changed by thread %d but was never written", at, thread->self.thread);
    if (conflicts(cell->writer, cell->write, thread))
        race(thread, at, "changes", cell->writer, "wrote");
    if (conflicts(cell->reader, cell->read, thread))
        race(thread, at, "changes", cell->reader, "read");
    remember(&cell->adder, &cell->add, thread);
}

// An asynchronous copy was asked for: nobody may touch the bytes until it was waited for.
static SIMT_HOT void note_fill(struct cell *cell, const struct thread *thread, size_t at)
{
    uint32_t write = cell->write;
    uint16_t writer = cell->writer;
    note_write(cell, thread, at);
    cell->write = write;
    cell->writer = writer;
    cell->filler = (uint16_t)(thread->self.thread + 1);
}

static SIMT_HOT void note_filled(struct cell *cell, const struct thread *thread, size_t)
{
    cell->filler = 0;
    cell->writer = (uint16_t)thread->self.thread;
    cell->write = thread->warp->time;
}

static SIMT_HOT void note_dropped(struct cell *cell, const struct thread *, size_t)
{
    cell->filler = 0;
}

static SIMT_HOT void note_scratch(struct cell *cell, const struct thread *thread, size_t at)
{
    check_filler(cell, at, "scratch");
    if (cell->write >= machine->block_time || cell->read >= machine->block_time || cell->add >= machine->block_time)
        fault("shared byte %zu is scratch of all threads, but it was touched and no sync_block came between", at);
    cell->writer = SEVERAL_WARPS;
    cell->write = thread->warp->time;
}

static SIMT_HOT void split(struct cell *word, size_t at)
{
    if (word->split >= machine->block_start)
        return;
    for (size_t i = 0; i < 4; i++)
        machine->bytes[at / 4 * 4 + i] = *word;
    word->split = machine->clock;
}

template <void (*note)(struct cell *, const struct thread *, size_t)>
static inline SIMT_HOT void note_all(const struct thread *thread, size_t at, size_t size)
{
    for (size_t end = at + size; at < end;) {
        struct cell *word = &machine->words[at / 4];
        bool whole = at % 4 == 0 && end - at >= 4;
        if (!whole)
            split(word, at);
        if (whole && word->split < machine->block_start) {
            note(word, thread, at);
            at += 4;
        } else {
            note(&machine->bytes[at], thread, at);
            at++;
        }
    }
}

static inline SIMT_HOT size_t place_of(int64_t offset, size_t size, size_t align)
{
    if (offset < 0 || (uint64_t)offset + size > machine->work->shared)
        fault("shared bytes %lld .. %lld are outside the launch's %zu", (long long)offset,
              (long long)offset + (long long)size - 1, machine->work->shared);
    if ((uint64_t)offset % align)
        fault("shared byte %lld is not aligned to %zu", (long long)offset, align);
    return (size_t)offset;
}

SIMT_HOT const void *reading_as(const struct thread *thread, int64_t offset, size_t size, size_t align)
{
    size_t at = place_of(offset, size, align);
    note_all<note_read>(thread, at, size);
    return machine->shared + at;
}

SIMT_HOT const void *reading(int64_t offset, size_t size, size_t align)
{
    return reading_as(running(), offset, size, align);
}

SIMT_HOT void *writing(int64_t offset, size_t size, size_t align)
{
    size_t at = place_of(offset, size, align);
    note_all<note_write>(running(), at, size);
    return machine->shared + at;
}

SIMT_HOT void *adding(int64_t offset, size_t size, size_t align)
{
    size_t at = place_of(offset, size, align);
    note_all<note_add>(running(), at, size);
    return machine->shared + at;
}

// As if all threads wrote it: until the next barrier nobody may touch it.
void use_scratch(int64_t offset, size_t size)
{
    note_all<note_scratch>(running(), place_of(offset, size, 16), size);
}

void forget_cells(struct machine *m)
{
    memset(m->words, 0, sizeof m->words);
    memset(m->bytes, 0, sizeof m->bytes);
    m->clock = 1;
}

// ---- asynchronous copies --------------------------------------------------------------------------------------------

void copy16(int64_t offset, const void *src, bool valid)
{
    struct thread *thread = running();
    struct copies *copies = thread->copies;
    size_t at = place_of(offset, 16, 16);
    if (valid)
        check_aligned(src, 16);
    if (copies->asked - copies->done == COPIES_MAX)
        fault("more than %d asynchronous copies of one thread under way", COPIES_MAX);
    note_all<note_fill>(thread, at, 16);
    copies->ring[copies->asked++ % COPIES_MAX] = {(uint32_t)at, valid, src};
}

void copy_commit()
{
    struct copies *copies = running()->copies;
    if (copies->groups - copies->groups_done == GROUPS_MAX)
        fault("more than %d groups of asynchronous copies under way", GROUPS_MAX);
    copies->group_end[copies->groups++ % GROUPS_MAX] = copies->asked;
}

void copy_wait(int n)
{
    struct thread *thread = running();
    struct copies *copies = thread->copies;
    while (copies->groups - copies->groups_done > (uint32_t)n) {
        uint32_t end = copies->group_end[copies->groups_done++ % GROUPS_MAX];
        for (; copies->done != end; copies->done++) {
            const struct copy *copy = &copies->ring[copies->done % COPIES_MAX];
            note_all<note_filled>(thread, copy->offset, 16);
            if (copy->valid)
                memcpy(machine->shared + copy->offset, copy->src, 16);
            else
                memset(machine->shared + copy->offset, 0, 16);
        }
    }
}

// Of a thread that ends: a GPU completes or drops them, and nobody can tell.
void drop_copies(struct thread *thread)
{
    struct copies *copies = thread->copies;
    for (; copies->done != copies->asked; copies->done++)
        note_all<note_dropped>(thread, copies->ring[copies->done % COPIES_MAX].offset, 16);
    copies->groups_done = copies->groups;
}

} // namespace simt_host
