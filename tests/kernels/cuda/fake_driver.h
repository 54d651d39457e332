// A device that is not there: every call of driver.h on host memory, with kernels run by the host's SIMT machine.
//
// Stricter than a GPU where a GPU would be silent: copies and fills must stay inside one live allocation, host memory
// of copies must come from host_alloc, nothing but launches, copies, fills, products and event_record may happen while
// a stream is captured. Fresh memory is 0xff (NaN). Device memory is malloc's, so AddressSanitizer sees what runs over
// and what is never released.
//
// deferred: work on a stream waits until the host waits for it (sync, event_wait of an event behind it, and everything
// that waits for the whole device: release, host_release, graph_free, close), so that a host that reads a result too
// early sees 0xff or old bytes, and one that overwrites a pinned buffer too early sends the new bytes. Without it, work
// is done at the call.
#pragma once

#include "driver.h"

#ifdef __cplusplus
extern "C" {
#endif

enum fake_call {
    FAKE_ALLOC,
    FAKE_HOST_ALLOC,
    FAKE_COPY_IN,
    FAKE_COPY_OUT,
    FAKE_FILL,
    FAKE_SYNC,
    FAKE_EVENT_NEW,
    FAKE_EVENT_RECORD,
    FAKE_EVENT_WAIT,
    FAKE_CAPTURE_BEGIN,
    FAKE_CAPTURE_END,
    FAKE_GRAPH_LAUNCH,
    FAKE_PRODUCT,
    FAKE_LAUNCH, // of a kernel, by simt::launch
    FAKE_N_CALLS
};

struct fake_driver_options {
    int64_t memory;          // bytes of the device; 0: 1 GiB
    int32_t multiprocessors; // 0: 4
    bool deferred;
    bool no_product; // the library is not there: KRN_ENOTSUP
    bool reversed;   // blocks and threads run from last to first; also by KRN_SIMT_REVERSED=1 in the environment
};

struct fake_driver_counts {
    int64_t calls[FAKE_N_CALLS];
    int64_t kernels;                                              // run, those of graphs included
    int64_t allocations, bytes, host_allocations, graphs, events; // alive
};

int fake_driver_open(const struct fake_driver_options *options, struct krn_cuda_driver *ret);
struct fake_driver_counts fake_driver_count(const struct krn_cuda_driver *driver);
// The nth call of this kind from now on (1: the next) returns `code` and does nothing else; KRN_EDEVICE: the device is
// then lost. One request per kind; nth 0 takes it back.
void fake_driver_fail(const struct krn_cuda_driver *driver, enum fake_call call, int64_t nth, int code);
// Of all drivers together: allocations alive now, for tests whose driver was closed by the backend.
int64_t fake_driver_live_allocations(void);

#ifdef __cplusplus
}
#endif
