// 4 SCHEDULE  The ragged batch of one forward pass. Engine thread; memory is taken once, by init.
#include "batch.h"

#include <assert.h>
#include <stdlib.h>

#include "base/err.h"

int eng_batch_init(struct eng_batch *b, int32_t max_rows, int32_t max_segments)
{
    *b = (struct eng_batch){0};
    if (max_rows < 1 || max_segments < 1)
        return ENG_EINVAL;
    b->max_rows = max_rows;
    b->max_segments = max_segments;
    b->tokens = calloc((size_t)max_rows, sizeof *b->tokens);
    b->links = calloc((size_t)max_rows, sizeof *b->links);
    b->segments = calloc((size_t)max_segments, sizeof *b->segments);
    b->wanted = calloc((size_t)max_rows, sizeof *b->wanted);
    b->choices = calloc((size_t)max_rows, sizeof *b->choices);
    b->accepts = calloc((size_t)max_segments, sizeof *b->accepts);
    b->accepted = calloc((size_t)max_segments, sizeof *b->accepted);
    if (!b->tokens || !b->links || !b->segments || !b->wanted || !b->choices || !b->accepts || !b->accepted) {
        eng_batch_done(b);
        return ENG_ENOMEM;
    }
    return 0;
}

void eng_batch_done(struct eng_batch *b)
{
    free(b->tokens);
    free(b->links);
    free(b->segments);
    free(b->wanted);
    free(b->choices);
    free(b->accepts);
    free(b->accepted);
    *b = (struct eng_batch){0};
}

void eng_batch_reset(struct eng_batch *b)
{
    b->n_rows = b->n_segments = b->n_wanted = b->n_links = b->n_accepts = 0;
}

struct eng_segment *eng_batch_add(struct eng_batch *b, int32_t slot, enum eng_pass_kind kind, int32_t first_pos,
                                  int32_t rows)
{
    assert(rows > 0 && first_pos >= 0);
    if (rows > b->max_rows - b->n_rows || b->n_segments == b->max_segments)
        return NULL;
    struct eng_segment *s = &b->segments[b->n_segments++];
    *s = (struct eng_segment){
        .slot = slot,
        .kind = kind,
        .row = b->n_rows,
        .rows = rows,
        .first_pos = first_pos,
        .mask = KRN_MASK_CAUSAL,
        .first_wanted = b->n_wanted,
        .accept = -1,
    };
    for (int32_t i = 0; i < rows; i++)
        b->links[b->n_rows + i] = -1;
    b->n_rows += rows;
    return s;
}

struct krn_select_row *eng_batch_want(struct eng_batch *b, struct eng_segment *segment, int32_t i)
{
    assert(segment == &b->segments[b->n_segments - 1] && i >= 0 && i < segment->rows);
    assert(!segment->n_wanted || b->wanted[b->n_wanted - 1].row < segment->row + i);
    struct krn_select_row *w = &b->wanted[b->n_wanted++];
    *w = (struct krn_select_row){.row = segment->row + i, .top_p = 1.0f, .repetition_penalty = 1.0f};
    segment->n_wanted++;
    return w;
}

void eng_batch_accept(struct eng_batch *b, struct eng_segment *segment)
{
    assert(segment == &b->segments[b->n_segments - 1] && segment->n_wanted == segment->rows && segment->accept < 0);
    segment->accept = b->n_accepts++;
    b->accepts[segment->accept] =
        (struct krn_accept){.row = segment->row, .rows = segment->rows, .choice = segment->first_wanted};
}

void eng_batch_link(struct eng_batch *b, int32_t row, int32_t choice)
{
    assert(row >= 0 && row < b->n_rows && b->links[row] < 0 && choice >= 0);
    b->links[row] = choice;
    b->tokens[row] = 0;
    b->n_links++;
}

struct eng_cost_pass eng_batch_cost(const struct eng_batch *b)
{
    struct eng_cost_pass pass = {0};
    for (int32_t i = 0; i < b->n_segments; i++) {
        const struct eng_segment *s = &b->segments[i];
        eng_cost_pass_add(&pass, s->rows, s->first_pos, s->n_wanted, s->adapter);
    }
    return pass;
}
