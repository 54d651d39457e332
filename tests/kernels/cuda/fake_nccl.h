// An NCCL that is not there: at group_end it does, on the host memory of fake drivers, what NCCL says it does, and
// refuses what NCCL would hang on or leave undefined. It cannot be recorded: two devices' graphs would have to run at
// the same time.
#pragma once

#include "cmocka_util.h"
#include "exchange.h"
#include "fake_driver.h"
#include "kern_util.h"

#include <stdatomic.h>

enum { MAX = KRN_TENSOR_PARALLEL_MAX };

struct ncclComm {
    int rank;
};

enum call_kind { GATHER, SEND, RECV };

struct call {
    enum call_kind kind;
    int rank, peer;
    const float *from;
    float *to;
    size_t count;
};

static struct {
    int n, depth, n_calls, groups;
    struct call calls[2 * MAX * MAX];
    struct krn_cuda_driver drivers[MAX];
    bool wrong;  // moves the parts of device 1 to the place of device 0
    int fail_in; // > 0: this group from now fails
    int init_error, async_error;
    int alive;
    atomic_int aborted;
} fake;

static inline int fake_init(struct ncclComm **comms, int n, const int *devices)
{
    if (fake.init_error)
        return fake.init_error;
    assert_int_equal(n, fake.n);
    for (int d = 0; d < n; d++) {
        assert_int_equal(devices[d], 3 + d);
        comms[d] = must(calloc(1, sizeof *comms[d]));
        comms[d]->rank = d;
        fake.alive++;
    }
    return 0;
}

static inline int fake_destroy(struct ncclComm *comm)
{
    fake.alive--;
    free(comm);
    return 0;
}

static inline int fake_abort(struct ncclComm *comm)
{
    free(comm);
    atomic_fetch_add(&fake.aborted, 1);
    return 0;
}

static inline int fake_async_error(struct ncclComm *comm, int *ret_error)
{
    (void)comm;
    *ret_error = fake.async_error;
    return 0;
}

static inline int add_call(struct call call, int type, void *stream)
{
    assert_true(fake.depth == 1 && type == KRN_NCCL_FLOAT32 && stream == fake.drivers[call.rank].stream);
    assert_true((size_t)fake.n_calls < sizeof fake.calls / sizeof *fake.calls);
    fake.calls[fake.n_calls++] = call;
    return 0;
}

static inline int fake_all_gather(const void *send, void *recv, size_t count, int type, struct ncclComm *comm,
                                  void *stream)
{
    const float *from = send, *to = recv;
    if (from < to + (size_t)fake.n * count && to < from + count) // the one overlap that NCCL allows
        assert_ptr_equal(from, to + (size_t)comm->rank * count);
    return add_call((struct call){GATHER, comm->rank, 0, send, recv, count}, type, stream);
}

static inline int fake_send(const void *send, size_t count, int type, int peer, struct ncclComm *comm, void *stream)
{
    return add_call((struct call){SEND, comm->rank, peer, send, NULL, count}, type, stream);
}

static inline int fake_recv(void *recv, size_t count, int type, int peer, struct ncclComm *comm, void *stream)
{
    return add_call((struct call){RECV, comm->rank, peer, NULL, recv, count}, type, stream);
}

static inline int fake_group_start(void)
{
    fake.depth++;
    return 0;
}

// The nth call of a kind by a rank (to or from a peer); every device must make the ones that belong together.
static inline const struct call *find(enum call_kind kind, int rank, int peer)
{
    for (int i = 0; i < fake.n_calls; i++)
        if (fake.calls[i].kind == kind && fake.calls[i].rank == rank && (kind == GATHER || fake.calls[i].peer == peer))
            return &fake.calls[i];
    fail_msg("device %d does not take part: the others would wait for ever", rank);
    return NULL;
}

// What `from` sends to `to`, wherever that goes.
static inline void move(int from, int to, const float *const sent[MAX][MAX])
{
    const struct call *send = find(fake.calls[0].kind == GATHER ? GATHER : SEND, from, to);
    const struct call *recv = find(fake.calls[0].kind == GATHER ? GATHER : RECV, to, from);
    assert_int_equal(send->count, recv->count);
    int place = fake.wrong ? 0 : from;
    memcpy(recv->kind == GATHER ? recv->to + (size_t)place * recv->count : recv->to, sent[from][to],
           send->count * sizeof(float));
}

static inline int fake_group_end(void)
{
    float *sent[MAX][MAX] = {{0}};
    fake.depth--;
    fake.groups++;
    if (fake.fail_in > 0 && --fake.fail_in == 0) {
        fake.n_calls = 0;
        return 3;
    }
    for (int d = 0; d < fake.n; d++) // what was launched before has its result, as on a stream
        if (fake.drivers[d].sync(fake.drivers[d].ctx, fake.drivers[d].stream) != 0)
            return 1;
    for (int d = 0; d < fake.n; d++)
        for (int e = 0; e < fake.n; e++) {
            const struct call *send = find(fake.calls[0].kind == GATHER ? GATHER : SEND, d, e);
            sent[d][e] = floats(send->count);
            memcpy(sent[d][e], send->from, send->count * sizeof(float));
        }
    for (int d = 0; d < fake.n; d++)
        for (int e = 0; e < fake.n; e++)
            move(d, e, (const float *const(*)[MAX])sent);
    for (int d = 0; d < fake.n; d++)
        for (int e = 0; e < fake.n; e++)
            free(sent[d][e]);
    fake.n_calls = 0;
    return 0;
}

static inline const char *fake_error_string(int error)
{
    return error == 3 ? "the link is down" : "unknown";
}

static const struct krn_nccl nccl = {
    .comm_init_all = fake_init,
    .comm_destroy = fake_destroy,
    .comm_abort = fake_abort,
    .comm_get_async_error = fake_async_error,
    .all_gather = fake_all_gather,
    .send = fake_send,
    .recv = fake_recv,
    .group_start = fake_group_start,
    .group_end = fake_group_end,
    .get_error_string = fake_error_string,
};

static inline void fake_open(int n, bool deferred)
{
    memset(&fake, 0, sizeof fake);
    fake.n = n;
    const struct fake_driver_options options = {.deferred = deferred};
    for (int d = 0; d < n; d++)
        assert_int_equal(fake_driver_open(&options, &fake.drivers[d]), 0);
}
