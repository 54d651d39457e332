// 8 STREAM: pieces of JSON that the answers of both completion endpoints share. No I/O.
#include <math.h>
#include <stdlib.h>

#include "api_common.h"
#include "server.h"
#include "sse.h"

const char *srv_api_finish_name(enum eng_finish finish)
{
    return finish == ENG_FINISH_LENGTH ? "length" : "stop";
}

void srv_api_ids(struct srv_buf *out, const int32_t *ids, size_t n)
{
    srv_buf_append(out, "[", 1);
    for (size_t i = 0; i < n; i++)
        srv_buf_printf(out, "%s%d", i ? "," : "", (int)ids[i]);
    srv_buf_append(out, "]", 1);
}

void srv_api_gather_ids(struct srv_choice *c, const struct eng_event *ev)
{
    const struct srv_gen *g = c->stream->data;
    if (!g->return_ids)
        return;
    for (int32_t i = 0; i < ev->n_tokens; i++)
        srv_buf_printf(&c->ids, "%s%d", c->ids.len ? "," : "", (int)ev->tokens[i].id);
}

void srv_api_logprob(struct srv_buf *out, float logprob)
{
    srv_buf_number(out, isfinite(logprob) ? (double)logprob : -9999.0);
}

void srv_api_usage(struct srv_buf *out, const struct srv_stream *s)
{
    const struct srv_gen *g = s->data;
    long long prompt = 0, completion = 0, cached = 0;
    for (int i = 0; i < g->n_prompts; i++) {
        prompt += (long long)g->prompts[i].n;
        cached += s->choices[i * g->n].stats.cached_tokens;
    }
    for (int i = 0; i < s->n_choices; i++) {
        const struct srv_choice *c = &s->choices[i];
        completion += c->finish ? c->stats.completion_tokens : c->n_tokens;
    }
    srv_buf_printf(out,
                   "{\"prompt_tokens\":%lld,\"completion_tokens\":%lld,\"total_tokens\":%lld,"
                   "\"prompt_tokens_details\":{\"cached_tokens\":%lld}}",
                   prompt, completion, prompt + completion, cached);
}

static void trimode_fields(struct srv_buf *out, const struct eng_request_stats *st)
{
    srv_buf_printf(out, "\"mode\":\"%s\",\"reason\":", eng_mode_name(st->mode));
    srv_buf_jsonz(out, st->reason);
    srv_buf_printf(out, ",\"block_length\":");
    if (st->block_length)
        srv_buf_printf(out, "%d", (int)st->block_length);
    else
        srv_buf_puts(out, "null");
    srv_buf_printf(out, ",\"forward_passes\":%d,\"tokens_per_forward\":", (int)st->forward_passes);
    srv_buf_printf(out, "%.4g", st->forward_passes ? (double)st->completion_tokens / st->forward_passes : 0.0);
    srv_buf_printf(out,
                   ",\"blocks\":%d,\"drafted_tokens\":%d,\"accepted_tokens\":%d,\"denoise_passes\":%d,\"timeline\":[",
                   (int)st->blocks, (int)st->drafted_tokens, (int)st->accepted_tokens, (int)st->denoise_passes);
    for (int32_t i = 0; i < st->n_spans && i < ENG_MAX_SPANS; i++) {
        const struct eng_span *span = &st->spans[i];
        srv_buf_printf(out, "%s{\"from_token\":%d,\"mode\":\"%s\",\"block_length\":", i ? "," : "",
                       (int)span->from_token, eng_mode_name(span->mode));
        if (span->block_length)
            srv_buf_printf(out, "%d}", (int)span->block_length);
        else
            srv_buf_puts(out, "null}");
    }
    srv_buf_printf(out, "],\"queue_ms\":%.3f,\"first_token_ms\":%.3f,\"total_ms\":%.3f", st->queue_ms,
                   st->first_token_ms, st->total_ms);
}

void srv_api_trimode(struct srv_buf *out, const struct srv_stream *s, const struct srv_choice *c)
{
    srv_buf_append(out, "{", 1);
    trimode_fields(out, c ? &c->stats : &s->choices[0].stats);
    if (!c && s->n_choices > 1) {
        srv_buf_puts(out, ",\"choices\":[");
        for (int i = 0; i < s->n_choices; i++) {
            srv_buf_printf(out, "%s{\"index\":%d,", i ? "," : "", i);
            trimode_fields(out, &s->choices[i].stats);
            srv_buf_append(out, "}", 1);
        }
        srv_buf_append(out, "]", 1);
    }
    srv_buf_append(out, "}", 1);
}

void srv_api_stop_reason(struct srv_buf *out, const struct srv_choice *c)
{
    srv_buf_puts(out, "\"stop_reason\":");
    if (c->stop)
        srv_buf_jsonz(out, c->stop);
    else {
        // As vLLM: an id only when the client asked to stop at it; the model's own end is null.
        const struct srv_gen *g = c->stream->data;
        bool asked = false;
        for (size_t i = 0; i < g->params.n_stop_ids; i++)
            asked |= c->finish == ENG_FINISH_STOP && g->stop_ids[i] == c->stop_id;
        if (asked)
            srv_buf_printf(out, "%d", (int)c->stop_id);
        else
            srv_buf_puts(out, "null");
    }
}

void srv_api_chunk(struct srv_buf *out, const struct srv_stream *s)
{
    const struct srv_gen *g = s->data;
    srv_sse_chunk(out, g->id, g->chat ? "chat.completion.chunk" : "text_completion", g->created, s->server->model_name);
}

void srv_api_chunk_end(struct srv_buf *out, const struct srv_stream *s, const struct srv_choice *c)
{
    const struct srv_gen *g = s->data;
    if (g->continuous_usage) {
        srv_buf_puts(out, ",\"usage\":");
        srv_api_usage(out, s);
    } else if (g->include_usage) {
        srv_buf_puts(out, ",\"usage\":null");
    }
    if (c) {
        srv_buf_puts(out, ",\"trimode\":");
        srv_api_trimode(out, s, c);
    }
    srv_buf_append(out, "}", 1);
    srv_sse_close(out);
}

static bool is_masked(const struct eng_draft *d, int32_t i)
{
    return d->masked >> i & 1;
}

// Runs of masked positions and of tokens take turns. A character that begins in one run and ends in another shows as
// U+FFFD until it is final.
static void draft_pieces(struct srv_buf *out, struct srv_buf *text, const struct srv_gen *g, const struct eng_draft *d)
{
    for (int32_t i = 0, end; i < d->n; i = end) {
        for (end = i + 1; end < d->n && is_masked(d, end) == is_masked(d, i);)
            end++;
        srv_buf_puts(out, i ? "," : "");
        if (is_masked(d, i)) {
            srv_buf_printf(out, "{\"masked\":%d}", (int)(end - i));
            for (int32_t k = i; k < end; k++)
                srv_buf_puts(text, "\xe2\x96\x91"); // U+2591, a light shade
            continue;
        }
        char *piece = NULL;
        size_t len = 0;
        if (eng_decode(g->server->engine, d->ids + i, (size_t)(end - i), g->params.skip_special, &piece, &len))
            len = 0;
        srv_buf_puts(out, "{\"text\":");
        srv_buf_json(out, piece ? piece : "", len);
        srv_buf_append(out, "}", 1);
        srv_buf_append(text, piece ? piece : "", len);
        free(piece);
    }
}

void srv_api_draft(struct srv_stream *s, struct srv_choice *c, const struct eng_draft *d)
{
    const struct srv_gen *g = s->data;
    struct srv_buf *out = &s->outbox, text = {0};
    // An empty list of choices, so that a client which reads every event as a chunk finds what it expects.
    srv_sse_chunk(out, g->id, "trimode.draft", g->created, s->server->model_name);
    srv_buf_printf(out, "],\"index\":%d,\"mode\":\"%s\",\"pass\":%d,\"from_token\":%d,\"n_tokens\":%d,\"pieces\":[",
                   c->index, eng_mode_name(d->mode), (int)d->pass, (int)d->from_token, (int)d->n);
    draft_pieces(out, &text, g, d);
    srv_buf_puts(out, "],\"text\":");
    srv_buf_json(out, text.data ? text.data : "", text.len);
    srv_buf_append(out, "}", 1);
    out->failed |= text.failed;
    srv_buf_free(&text);
    srv_sse_close(out);
}

void srv_api_stream_end(struct srv_buf *out, const struct srv_stream *s)
{
    const struct srv_gen *g = s->data;
    if (g->include_usage) {
        srv_api_chunk(out, s);
        srv_buf_puts(out, "],\"usage\":");
        srv_api_usage(out, s);
        srv_buf_puts(out, ",\"trimode\":");
        srv_api_trimode(out, s, NULL);
        srv_buf_append(out, "}", 1);
        srv_sse_close(out);
    }
    srv_sse_done(out);
}
