// 3 QUEUE  The bounded submit list: one mutex, one condition; the engine thread takes the whole list between two
// passes.
#include "queue.h"

#include <assert.h>

#include "base/clock.h"
#include "base/err.h"
#include "request.h"

int eng_queue_init(struct eng_queue *q, int32_t max_live)
{
    *q = (struct eng_queue){.max_live = max_live};
    q->tail = &q->head;
    if (pthread_mutex_init(&q->mutex, NULL))
        return ENG_ENOMEM;
    if (pthread_cond_init(&q->changed, NULL)) {
        pthread_mutex_destroy(&q->mutex);
        return ENG_ENOMEM;
    }
    return 0;
}

void eng_queue_done(struct eng_queue *q)
{
    pthread_cond_destroy(&q->changed);
    pthread_mutex_destroy(&q->mutex);
}

int eng_queue_submit(struct eng_queue *q, struct eng_request *r)
{
    int64_t now = eng_now_ns();
    pthread_mutex_lock(&q->mutex);
    int rc = q->refuse ? q->refuse : q->n_live >= q->max_live ? ENG_EBUSY : 0;
    if (!rc) {
        // Everything is set before the engine thread can see it: after the unlock the request is not ours.
        r->queue = q;
        r->next = NULL;
        r->seq.submit_ns = now;
        r->seq.age = q->next_age++;
        r->deadline_ns = r->params.timeout_ms ? now + r->params.timeout_ms * 1000000 : 0;
        *q->tail = r;
        q->tail = &r->next;
        q->n_live++;
        pthread_cond_signal(&q->changed);
    }
    pthread_mutex_unlock(&q->mutex);
    return rc;
}

void eng_queue_refuse(struct eng_queue *q, int code)
{
    pthread_mutex_lock(&q->mutex);
    if (!q->refuse || code == ENG_EDEVICE)
        q->refuse = code;
    pthread_mutex_unlock(&q->mutex);
}

void eng_queue_wake(struct eng_queue *q)
{
    pthread_mutex_lock(&q->mutex);
    q->woken = true;
    pthread_cond_signal(&q->changed);
    pthread_mutex_unlock(&q->mutex);
}

struct eng_request *eng_queue_take(struct eng_queue *q, bool wait, bool *ret_woken)
{
    pthread_mutex_lock(&q->mutex);
    while (wait && !q->head && !q->woken)
        pthread_cond_wait(&q->changed, &q->mutex);
    struct eng_request *first = q->head;
    q->head = NULL;
    q->tail = &q->head;
    *ret_woken = q->woken;
    q->woken = false;
    pthread_mutex_unlock(&q->mutex);
    return first;
}

int32_t eng_queue_live(struct eng_queue *q)
{
    pthread_mutex_lock(&q->mutex);
    int32_t n = q->n_live;
    pthread_mutex_unlock(&q->mutex);
    return n;
}

void eng_queue_finished(struct eng_queue *q, int32_t n)
{
    pthread_mutex_lock(&q->mutex);
    q->n_live -= n;
    assert(q->n_live >= 0);
    pthread_mutex_unlock(&q->mutex);
}
