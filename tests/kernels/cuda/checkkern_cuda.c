// checkkern_cuda: every CUDA kernel against the reference, over odd sizes, and the bits of a row against the same row
// in other company. Linked with the fake driver it runs the kernels on the host; linked with the real driver and nvcc's
// objects it checks a GPU.
//
// checkkern_cuda [name ...]: only these (rows linear pack rope attention select accept ranks). TAP; exit status 0 when
// everything held.
#include "cuda_rig.h"

#include <stdio.h>

// All of them, unless the compiler's command names a few (README.md).
#ifndef CHECKS
#define CHECKS(X) X(pack) X(rows) X(linear) X(rope) X(attention) X(select) X(accept) X(ranks)
#endif

static const struct {
    const char *name;
    void (*run)(struct cuda_rig *rig);
} checks[] = {
#define X(name) {#name, check_##name},
    CHECKS(X)
#undef X
};
enum { N_CHECKS = sizeof checks / sizeof checks[0] };

static bool wanted(const char *name, int argc, char **argv)
{
    for (int i = 1; i < argc; i++)
        if (strcmp(argv[i], name) == 0)
            return true;
    return argc == 1;
}

int main(int argc, char **argv)
{
    struct cuda_rig rig;
    rig_open(&rig);
    for (int i = 0; i < N_CHECKS; i++)
        if (wanted(checks[i].name, argc, argv))
            checks[i].run(&rig);
    printf("1..%d\n", rig.n_checks);
    rig_close(&rig);
    return rig.n_failures != 0 || rig.n_checks == 0;
}
