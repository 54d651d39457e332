// 7 COMMIT  One generation: appending final tokens, finding its end, giving its pages up and starting over.
//
// Engine thread. Left out: pages (scheduler.c), what the next pass is (decode_*.c), parameters' meaning for a choice
// (sample.c).
#include "seq.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "events.h"
#include "request.h"
#include "sample.h"

static int start_history(struct eng_seq *seq)
{
    if (!eng_sample_needs_history(&seq->request->params))
        return 0;
    for (int32_t i = 0; i < seq->n_prompt; i++) {
        int rc = eng_history_add(&seq->history, seq->tokens[i], true);
        if (rc)
            return rc;
    }
    return 0;
}

int eng_seq_start(struct eng_seq *seq)
{
    if (seq->started)
        return 0;
    const struct eng_request *r = seq->request;
    seq->tokens = malloc(((size_t)seq->limit + 1) * sizeof *seq->tokens);
    seq->block.reveals = calloc(ENG_MAX_BLOCK, sizeof *seq->block.reveals);
    int rc = seq->tokens && seq->block.reveals ? 0 : ENG_ENOMEM;
    if (!rc) {
        memcpy(seq->tokens, r->prompt, (size_t)seq->n_prompt * sizeof *seq->tokens);
        seq->n_tokens = seq->n_prompt;
        rc = start_history(seq);
    }
    if (!rc)
        rc = eng_output_init(&seq->output, r->tokenizer, r->params.skip_special, r->params.stops, r->params.n_stops);
    if (rc) {
        eng_seq_done(seq);
        return rc;
    }
    seq->started = true;
    return 0;
}

void eng_seq_done(struct eng_seq *seq)
{
    free(seq->tokens);
    free(seq->block.reveals);
    eng_history_done(&seq->history);
    eng_output_done(&seq->output);
    seq->tokens = NULL;
    seq->block.reveals = NULL;
    seq->started = false;
}

bool eng_seq_in_prompt(const struct eng_seq *seq)
{
    return seq->n_kv < seq->prefill_end;
}

bool eng_seq_at_boundary(const struct eng_seq *seq)
{
    return seq->block.rows == 0;
}

int32_t eng_seq_n_output(const struct eng_seq *seq)
{
    return seq->n_tokens - seq->n_prompt;
}

int32_t eng_seq_wanted(const struct eng_seq *seq)
{
    return seq->limit - seq->n_tokens;
}

void eng_seq_set_mode(struct eng_seq *seq, enum eng_mode mode, int32_t block_length, const char *reason)
{
    assert(eng_seq_at_boundary(seq) && mode != ENG_MODE_AUTO);
    struct eng_request_stats *st = &seq->stats;
    seq->mode = mode;
    seq->block_length = block_length;
    int32_t shown = mode == ENG_MODE_AR ? 0 : block_length;
    st->mode = mode;
    st->block_length = shown;
    snprintf(st->reason, sizeof st->reason, "%s", reason);
    // The next token is the first one of this decision; the seed that the prompt gave belongs to it too.
    int32_t from = eng_seq_n_output(seq) > 1 ? eng_seq_n_output(seq) : 0;
    struct eng_span *last = st->n_spans ? &st->spans[st->n_spans - 1] : NULL;
    if (last && last->mode == mode && last->block_length == shown)
        return;
    struct eng_span span = {.from_token = from, .mode = mode, .block_length = shown};
    if (last && last->from_token == from)
        *last = span;
    else if (st->n_spans < ENG_MAX_SPANS)
        st->spans[st->n_spans++] = span;
}

void eng_seq_cut_draft(struct eng_seq *seq, int32_t rows)
{
    assert(seq->block.drafted && rows >= 1 && rows <= seq->block.drafted);
    seq->block.rows = rows;
}

void eng_seq_preempt(struct eng_seq *seq)
{
    // A generation without output still has to compute its whole prompt and take the first token from its last row.
    if (!eng_seq_in_prompt(seq))
        seq->prefill_end = seq->n_kv;
    seq->n_lost = seq->n_kv;
    seq->n_kv = 0;
    seq->slot = -1;
    seq->n_preempted++;
}

bool eng_seq_ends_with(const struct eng_seq *seq, int32_t token)
{
    const struct eng_request *r = seq->request;
    for (size_t i = 0; i < r->n_end_ids; i++)
        if (r->end_ids[i] == token)
            return true;
    return false;
}

// One final token. Sets finish when it is the last.
static int append(struct eng_seq *seq, int32_t token, const struct krn_choice *choice, struct eng_event_builder *b)
{
    const struct eng_request *r = seq->request;
    seq->tokens[seq->n_tokens++] = token;
    seq->stats.completion_tokens++;
    int rc = 0;
    if (eng_sample_needs_history(&r->params))
        rc = eng_history_add(&seq->history, token, false);
    if (rc)
        return rc;
    if (eng_seq_ends_with(seq, token)) {
        seq->finish = ENG_FINISH_STOP;
        seq->stop_id = token;
        return eng_output_end(&seq->output, &b->text);
    }
    int32_t stop = -1;
    bool search = eng_seq_n_output(seq) > r->params.min_tokens;
    rc = eng_output_push(&seq->output, token, search, &b->text, &stop);
    if (rc)
        return rc;
    rc = eng_event_builder_token(b, token, choice, r->params.n_top);
    if (rc)
        return rc;
    if (stop >= 0) {
        seq->finish = ENG_FINISH_STOP;
        seq->stop = r->params.stops[stop];
    } else if (seq->n_tokens == seq->limit) {
        seq->finish = ENG_FINISH_LENGTH;
        return eng_output_end(&seq->output, &b->text);
    }
    return 0;
}

int eng_seq_append(struct eng_seq *seq, const struct eng_run *run, struct eng_event_builder *b, int32_t *ret_taken)
{
    int32_t taken = 0;
    int rc = 0;
    while (!rc && taken < run->n && seq->finish == ENG_FINISH_NONE) {
        rc = append(seq, run->tokens[taken], run->choices[taken], b);
        taken++;
    }
    *ret_taken = taken;
    return rc;
}

void eng_seq_end(struct eng_seq *seq, enum eng_finish finish, const char *error, struct eng_event_builder *b)
{
    assert(seq->finish == ENG_FINISH_NONE && finish != ENG_FINISH_NONE);
    seq->finish = finish;
    seq->error = error;
    // Held-back text is released as far as memory allows; the end itself must not fail.
    if (seq->started && finish != ENG_FINISH_ERROR)
        (void)eng_output_end(&seq->output, &b->text);
}

// ---- history --------------------------------------------------------------------------------------------------------

static uint32_t slot_of(const struct eng_history *h, int32_t token)
{
    uint32_t mask = (uint32_t)h->cap * 2 - 1;
    uint32_t i = (uint32_t)token * 2654435761u & mask;
    while (h->index[i] && h->counts[h->index[i] - 1].token != token)
        i = (i + 1) & mask;
    return i;
}

static int grow(struct eng_history *h)
{
    int32_t cap = h->cap ? h->cap * 2 : 64;
    struct krn_token_count *counts = realloc(h->counts, (size_t)cap * sizeof *counts);
    if (!counts)
        return ENG_ENOMEM;
    h->counts = counts;
    int32_t *index = calloc((size_t)cap * 2, sizeof *index);
    if (!index)
        return ENG_ENOMEM;
    free(h->index);
    h->index = index;
    h->cap = cap;
    for (int32_t i = 0; i < h->n; i++)
        h->index[slot_of(h, h->counts[i].token)] = i + 1;
    return 0;
}

int32_t eng_history_find(const struct eng_history *h, int32_t token)
{
    return h->cap ? h->index[slot_of(h, token)] - 1 : -1;
}

int eng_history_add(struct eng_history *h, int32_t token, bool in_prompt)
{
    int32_t i = eng_history_find(h, token);
    if (i < 0) {
        if (h->n == h->cap) {
            int rc = grow(h);
            if (rc)
                return rc;
        }
        i = h->n++;
        h->counts[i] = (struct krn_token_count){.token = token};
        h->index[slot_of(h, token)] = i + 1;
    }
    if (in_prompt)
        h->counts[i].in_prompt++;
    else
        h->counts[i].in_output++;
    return 0;
}

void eng_history_done(struct eng_history *h)
{
    free(h->counts);
    free(h->index);
    *h = (struct eng_history){0};
}
