// How a kernel is launched: on which stream, and whether it may overlap the end of the kernel before it.
#pragma once

#include <stdbool.h>

#ifdef __cplusplus
extern "C" {
#endif

struct krn_cuda_launch {
    void *stream; // cudaStream_t, or the fake driver's stream
    bool overlap; // programmatic dependent launch (compute capability 9.0 on)
};

// Keeps the device's last error for the driver table and returns KRN_EDEVICE.
int krn_cuda_launch_failed(void);

#ifdef __cplusplus
}
#endif
