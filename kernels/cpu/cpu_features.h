// How many threads this process can really run at once. (krn_cpu_features is in kernels.h.)
#pragma once

// Physical cores this process may use: distinct cores of its affinity mask, not more than its cgroup's CPU quota, at
// least 1.
int krn_cpu_cores(void);
