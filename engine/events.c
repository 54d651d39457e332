// 8 STREAM  Events: the builder of one memory block per event, and the list that hands them over.
//
// Build and publish on the engine thread, take on the caller's. A block holds the event, its statistics, its tokens,
// their alternatives and its text, in this order.
#include "events.h"

#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "request.h"

struct eng_event_block *eng_event_reserve(void)
{
    return calloc(1, sizeof(struct eng_event_block));
}

void eng_event_release(struct eng_event_block *block)
{
    free(block);
}

void eng_event_free(struct eng_event *ev)
{
    free(ev);
}

// ---- builder --------------------------------------------------------------------------------------------------------

void eng_event_builder_reset(struct eng_event_builder *b)
{
    eng_buf_reset(&b->text);
    b->n_tokens = 0;
}

void eng_event_builder_done(struct eng_event_builder *b)
{
    eng_buf_free(&b->text);
    free(b->tokens);
    free(b->tops);
    *b = (struct eng_event_builder){0};
}

static int grow(struct eng_event_builder *b)
{
    int32_t cap = b->cap_tokens ? b->cap_tokens * 2 : 64;
    struct eng_token *tokens = realloc(b->tokens, (size_t)cap * sizeof *tokens);
    if (!tokens)
        return ENG_ENOMEM;
    b->tokens = tokens;
    struct krn_choice *tops = realloc(b->tops, (size_t)cap * sizeof *tops);
    if (!tops)
        return ENG_ENOMEM;
    b->tops = tops;
    b->cap_tokens = cap;
    return 0;
}

int eng_event_builder_token(struct eng_event_builder *b, int32_t id, const struct krn_choice *choice, int32_t n_top)
{
    if (b->n_tokens == b->cap_tokens) {
        int rc = grow(b);
        if (rc)
            return rc;
    }
    int32_t i = b->n_tokens++;
    b->tokens[i] = (struct eng_token){.id = id, .text_end = b->text.len};
    if (choice) {
        b->tokens[i].logprob = choice->logprob;
        b->tokens[i].n_top = n_top < 0 ? 0 : n_top < choice->n_top ? n_top : choice->n_top;
        if (b->tokens[i].n_top)
            b->tops[i] = *choice;
    }
    return 0;
}

// ---- event ----------------------------------------------------------------------------------------------------------

static struct eng_event_block *with_contents(const struct eng_event_builder *b)
{
    size_t n_tops = 0;
    for (int32_t i = 0; i < b->n_tokens; i++)
        n_tops += (size_t)b->tokens[i].n_top;
    size_t tokens_bytes = (size_t)b->n_tokens * sizeof(struct eng_token);
    size_t tops_bytes = n_tops * (sizeof(int32_t) + sizeof(float));
    struct eng_event_block *block = malloc(sizeof *block + tokens_bytes + tops_bytes + b->text.len + 1);
    if (!block)
        return NULL;
    *block = (struct eng_event_block){0};
    struct eng_token *tokens = (struct eng_token *)(block + 1);
    int32_t *ids = (int32_t *)(tokens + b->n_tokens);
    float *logprobs = (float *)(ids + n_tops);
    char *text = (char *)(logprobs + n_tops);
    for (int32_t i = 0; i < b->n_tokens; i++) {
        size_t n = (size_t)b->tokens[i].n_top;
        tokens[i] = b->tokens[i];
        if (!n)
            continue;
        tokens[i].top_ids = memcpy(ids, b->tops[i].top_token, n * sizeof *ids);
        tokens[i].top_logprobs = memcpy(logprobs, b->tops[i].top_logprob, n * sizeof *logprobs);
        ids += n;
        logprobs += n;
    }
    if (b->text.len)
        memcpy(text, b->text.data, b->text.len);
    text[b->text.len] = '\0';
    block->ev.tokens = tokens;
    block->ev.n_tokens = b->n_tokens;
    block->ev.text = text;
    block->ev.text_len = b->text.len;
    return block;
}

struct eng_event *eng_event_build(const struct eng_event_builder *b, struct eng_request *r)
{
    const struct eng_seq *seq = &r->seq;
    struct eng_event_block *block = with_contents(b);
    if (!block) {
        if (seq->finish == ENG_FINISH_NONE)
            return NULL;
        block = r->last;
        r->last = NULL;
        block->ev.text = "";
    }
    block->ev.request = r;
    block->ev.user = r->params.user;
    block->ev.stop_id = -1;
    if (seq->finish != ENG_FINISH_NONE) {
        block->stats = seq->stats;
        block->ev.stats = &block->stats;
        block->ev.finish = seq->finish;
        block->ev.stop = seq->stop;
        block->ev.stop_id = seq->stop_id;
        if (seq->finish == ENG_FINISH_ERROR) {
            strncpy(block->error, seq->error ? seq->error : "the engine failed", sizeof block->error - 1);
            block->ev.error = block->error;
        }
    }
    return &block->ev;
}

// ids[0] is the block's first position that is not final.
struct eng_event *eng_event_draft(struct eng_request *r)
{
    const struct eng_seq *seq = &r->seq;
    const struct eng_block *block = &seq->block;
    int32_t first = seq->n_tokens - block->start, n = block->rows - first;
    n = n < eng_seq_wanted(seq) ? n : eng_seq_wanted(seq);
    struct with_draft {
        struct eng_event_block block;
        struct eng_draft draft;
        int32_t ids[];
    } *d = calloc(1, sizeof *d + (size_t)n * sizeof d->ids[0]);
    if (!d)
        return NULL;
    bool denoise = seq->mode == ENG_MODE_DIFFUSION;
    d->draft = (struct eng_draft){.mode = seq->mode,
                                  .from_token = eng_seq_n_output(seq),
                                  .pass = denoise ? block->passes : 1,
                                  .n = n,
                                  .ids = d->ids};
    for (int32_t i = 0; i < n; i++) {
        if (denoise && block->masked >> (first + i) & 1)
            d->draft.masked |= UINT64_C(1) << i;
        else
            d->ids[i] = block->tokens[first + i];
    }
    d->block.ev.request = r;
    d->block.ev.user = r->params.user;
    d->block.ev.stop_id = -1;
    d->block.ev.text = "";
    d->block.ev.draft = &d->draft;
    return &d->block.ev;
}

// ---- list -----------------------------------------------------------------------------------------------------------

int eng_events_init(struct eng_events *l, void (*notify)(void *user), void *user)
{
    *l = (struct eng_events){.notify = notify, .user = user};
    l->tail = &l->head;
    return pthread_mutex_init(&l->mutex, NULL) ? ENG_ENOMEM : 0;
}

void eng_events_done(struct eng_events *l)
{
    for (struct eng_event *ev = l->head, *next; ev; ev = next) {
        next = ev->next;
        if (ev->finish != ENG_FINISH_NONE)
            eng_request_free(ev->request);
        eng_event_free(ev);
    }
    l->head = NULL;
    pthread_mutex_destroy(&l->mutex);
}

void eng_events_publish(struct eng_events *l, struct eng_event *first)
{
    if (!first)
        return;
    struct eng_event **tail = &first->next;
    while (*tail)
        tail = &(*tail)->next;
    pthread_mutex_lock(&l->mutex);
    *l->tail = first;
    l->tail = tail;
    pthread_mutex_unlock(&l->mutex);
    if (l->notify)
        l->notify(l->user);
}

struct eng_event *eng_events_take(struct eng_events *l)
{
    pthread_mutex_lock(&l->mutex);
    struct eng_event *first = l->head;
    l->head = NULL;
    l->tail = &l->head;
    pthread_mutex_unlock(&l->mutex);
    return first;
}
