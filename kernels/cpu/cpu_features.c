// What this CPU offers: the instruction sets our versions need, and the number of physical cores to use.
//
// Two hyper-threads of one core share its vector units, so the pool takes one thread a core. A container's CPU quota is
// honoured too: threads above it are only throttled. Both are read from Linux's /sys; where it says nothing, the number
// of online processors stands.
#include "cpu_features.h"
#include "kernels.h"

#include <sched.h>
#include <stdio.h>
#include <unistd.h>

uint32_t krn_cpu_features(void)
{
    uint32_t features = 0;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        features |= KRN_CPU_AVX2;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl"))
        features |= KRN_CPU_AVX512;
#endif
    return features;
}

// The lowest-numbered processor among the hyper-threads of `cpu`, or `cpu` itself when unknown.
static int first_sibling(int cpu)
{
    char path[96];
    snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/topology/thread_siblings_list", cpu);
    FILE *file = fopen(path, "r");
    int first = cpu;
    if (file) {
        if (fscanf(file, "%d", &first) != 1 || first < 0)
            first = cpu;
        fclose(file);
    }
    return first;
}

// CPUs the cgroup allows, rounded up; 0 when there is no limit.
static int cgroup_quota(void)
{
    FILE *file = fopen("/sys/fs/cgroup/cpu.max", "r");
    if (!file)
        return 0;
    long long quota = 0, period = 0;
    int n = fscanf(file, "%lld %lld", &quota, &period);
    fclose(file);
    if (n != 2 || quota <= 0 || period <= 0 || quota / period > 4096)
        return 0;
    return (int)((quota + period - 1) / period);
}

int krn_cpu_cores(void)
{
    int n = 0;
    cpu_set_t set, cores;
    CPU_ZERO(&cores);
    if (sched_getaffinity(0, sizeof set, &set) == 0) {
        for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
            if (!CPU_ISSET(cpu, &set))
                continue;
            int first = first_sibling(cpu);
            if (first < CPU_SETSIZE && !CPU_ISSET(first, &cores)) {
                CPU_SET(first, &cores);
                n++;
            }
        }
    } else {
        n = (int)sysconf(_SC_NPROCESSORS_ONLN);
    }
    int quota = cgroup_quota();
    if (quota > 0 && n > quota)
        n = quota;
    return n < 1 ? 1 : n;
}
