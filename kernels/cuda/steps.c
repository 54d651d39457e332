// Steps of a pass: from data to a launch, and the tape that keeps them while a graph is recorded.
//
// The tape grows while the first passes are recorded and then keeps its room: an op does not allocate once every shape
// was seen. Leaves out what a step means: operations.c makes them.
#include "steps.h"

#include <stdlib.h>

int krn_cuda_step_run(const struct krn_cuda_driver *driver, bool overlap, const struct krn_cuda_step *step)
{
    struct krn_cuda_launch how = {.stream = driver->stream, .overlap = overlap};
    switch (step->kind) {
    case KRN_STEP_EMBED:
        return krn_cuda_embed(how, &step->as.embed);
    case KRN_STEP_NORM:
        return krn_cuda_norm(how, &step->as.norm);
    case KRN_STEP_GATHER:
        return krn_cuda_gather(how, &step->as.gather);
    case KRN_STEP_SWIGLU:
        return krn_cuda_swiglu(how, &step->as.swiglu);
    case KRN_STEP_ROUND:
        return krn_cuda_round(how, &step->as.round);
    case KRN_STEP_FLATTEN:
        return krn_cuda_flatten(how, &step->as.flatten);
    case KRN_STEP_LINEAR:
        return krn_cuda_linear(how, &step->as.linear);
    case KRN_STEP_PRODUCT: {
        const struct krn_product_args *p = &step->as.product;
        return driver->product(driver->ctx, driver->stream, p->y, p->ldy, p->x, p->ldx, p->w, p->ldw, p->rows,
                               p->outputs, p->cols);
    }
    case KRN_STEP_ROPE_TABLE:
        return krn_cuda_rope_table(how, &step->as.rope_table);
    case KRN_STEP_ROPE_WRITE:
        return krn_cuda_rope_write(how, &step->as.rope_write);
    case KRN_STEP_ATTENTION:
        return krn_cuda_attention(how, &step->as.attention);
    case KRN_STEP_SELECT:
        return krn_cuda_select(how, &step->as.select);
    case KRN_STEP_ACCEPT:
        return krn_cuda_accept(how, &step->as.accept);
    }
    return KRN_EINVAL;
}

int krn_cuda_tape_add(struct krn_cuda_tape *tape, const struct krn_cuda_step *step)
{
    if (tape->n == tape->room) {
        int32_t room = tape->room ? tape->room * 2 : 64;
        struct krn_cuda_step *steps = realloc(tape->steps, (size_t)room * sizeof *steps);
        if (!steps)
            return KRN_ENOMEM;
        tape->steps = steps;
        tape->room = room;
    }
    tape->steps[tape->n++] = *step;
    return 0;
}

int krn_cuda_tape_run(const struct krn_cuda_tape *tape, const struct krn_cuda_driver *driver, bool overlap)
{
    int rc = 0;
    for (int32_t i = 0; rc == 0 && i < tape->n; i++)
        rc = krn_cuda_step_run(driver, overlap, &tape->steps[i]);
    return rc;
}

void krn_cuda_tape_done(struct krn_cuda_tape *tape)
{
    free(tape->steps);
    *tape = (struct krn_cuda_tape){0};
}
