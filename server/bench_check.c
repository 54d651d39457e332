// bench serve: verification of a stream. Framing: `data: ` lines and comments, each followed by a blank line. Order:
// (chat) the role, text, one finish, one usage chunk, [DONE], nothing more; one id throughout. Counts: the usage equals
// the token ids that came (`return_token_ids`, as trimode and vLLM have it) and the prompt that was sent. Pure: no I/O
// and no clock.
#include "bench_check.h"

#include <stdarg.h>
#include <string.h>

#include "json.h"

void srv_bench_check_begin(struct srv_bench_check *k, const struct srv_bench_expect *expect, double start_ms)
{
    struct srv_bench_check clean = {
        .expect = *expect, .line = k->line, .event = k->event, .id = k->id, .gaps = k->gaps};
    *k = clean;
    k->start_ms = start_ms;
    k->gaps.n = 0;
    srv_buf_reset(&k->line);
    srv_buf_reset(&k->event);
    srv_buf_reset(&k->id);
}

void srv_bench_check_free(struct srv_bench_check *k)
{
    srv_buf_free(&k->line);
    srv_buf_free(&k->event);
    srv_buf_free(&k->id);
    srv_bench_samples_free(&k->gaps);
}

static int wrong(struct srv_bench_check *k, const char *format, ...) __attribute__((format(printf, 2, 3)));
static int wrong(struct srv_bench_check *k, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(k->error, sizeof k->error, format, args);
    va_end(args);
    return -1;
}

// ---- the chunks -----------------------------------------------------------------------------------------------------

static int64_t integer(const cJSON *obj, const char *key)
{
    int64_t v = -1;
    const cJSON *item = obj ? srv_json_get(obj, key) : NULL;
    return item && cJSON_IsNumber(item) && srv_json_exact(item, &v) ? v : -1;
}

static int check_identity(struct srv_bench_check *k, const cJSON *chunk)
{
    const cJSON *object = srv_json_get(chunk, "object"), *id = srv_json_get(chunk, "id");
    const char *expected = k->expect.chat ? "chat.completion.chunk" : "text_completion";
    if (!cJSON_IsString(object) || strcmp(object->valuestring, expected))
        return wrong(k, "a chunk is no %s", expected);
    if (!cJSON_IsString(id) || !*id->valuestring)
        return wrong(k, "a chunk has no id");
    if (!k->id.len)
        srv_buf_puts(&k->id, id->valuestring);
    else if (strcmp(k->id.data, id->valuestring))
        return wrong(k, "the id changes between chunks");
    return 0;
}

// From the timeline: tokens from one span to the next were decoded in its mode.
static void read_modes(struct srv_bench_check *k, const cJSON *trimode)
{
    const cJSON *timeline = srv_json_get(trimode, "timeline"), *span;
    int64_t passes = integer(trimode, "forward_passes");
    k->forward_passes = passes > 0 ? passes : 0;
    cJSON_ArrayForEach(span, timeline)
    {
        const cJSON *name = srv_json_get(span, "mode");
        int mode = cJSON_IsString(name) ? eng_mode_parse(name->valuestring) : -1;
        int64_t from = integer(span, "from_token"), to = span->next ? integer(span->next, "from_token") : k->tokens;
        if (mode >= 0 && from >= 0 && to > from)
            k->mode_tokens[mode] += to - from;
    }
}

static int check_usage(struct srv_bench_check *k, const cJSON *chunk)
{
    const cJSON *usage = srv_json_get(chunk, "usage"), *trimode = srv_json_get(chunk, "trimode");
    if (!cJSON_IsObject(usage))
        return wrong(k, "a chunk has neither choices nor a usage");
    if (!k->finished)
        return wrong(k, "the usage comes before the finish");
    int64_t prompt = integer(usage, "prompt_tokens"), completion = integer(usage, "completion_tokens");
    // A token that ends the answer is counted, but has no text, and trimode sends no id for it.
    if (completion == k->tokens + 1 && !k->length)
        k->tokens++;
    if (completion != k->tokens)
        return wrong(k, "the usage says %lld completion tokens, the stream had %lld token ids", (long long)completion,
                     (long long)k->tokens);
    if (prompt < 1 || (k->expect.prompt_tokens && prompt != k->expect.prompt_tokens))
        return wrong(k, "the usage says %lld prompt tokens, %lld were sent", (long long)prompt,
                     (long long)k->expect.prompt_tokens);
    if (integer(usage, "total_tokens") != prompt + completion)
        return wrong(k, "the usage does not add up");
    int64_t cached = integer(srv_json_get(usage, "prompt_tokens_details"), "cached_tokens");
    k->prompt_tokens = prompt;
    k->cached_tokens = cached > 0 ? cached : 0;
    if (cJSON_IsObject(trimode))
        read_modes(k, trimode);
    k->used = true;
    return 0;
}

// Text and role; 1 when the choice carries text.
static int check_content(struct srv_bench_check *k, const cJSON *choice)
{
    const cJSON *text = srv_json_get(choice, "text");
    if (k->expect.chat) {
        const cJSON *delta = srv_json_get(choice, "delta"), *role = srv_json_get(delta, "role");
        if (!cJSON_IsObject(delta))
            return wrong(k, "a choice has no delta");
        if (k->opened == (role != NULL))
            return wrong(k, role ? "the role comes twice" : "the first chunk has no role");
        text = srv_json_get(delta, "content");
    } else if (!text) {
        return wrong(k, "a choice has no text");
    }
    k->opened = true;
    if (text && !cJSON_IsString(text))
        return wrong(k, "the text of a chunk is no string");
    return 0;
}

static int check_choice(struct srv_bench_check *k, const cJSON *choice)
{
    const cJSON *finish = srv_json_get(choice, "finish_reason"), *ids = srv_json_get(choice, "token_ids");
    if (k->finished)
        return wrong(k, "%s after the finish", finish ? "a second finish" : "a chunk");
    if (integer(choice, "index") != 0)
        return wrong(k, "a choice that nobody asked for");
    if (check_content(k, choice))
        return -1;
    if (ids && !cJSON_IsArray(ids))
        return wrong(k, "the token ids are no list");
    int n = ids ? cJSON_GetArraySize(ids) : 0;
    k->tokens += n;
    k->chunk_tokens += n;
    if (!finish)
        return 0;
    if (!cJSON_IsString(finish))
        return wrong(k, "the finish reason is no string");
    k->finished = true;
    k->length = !strcmp(finish->valuestring, "length");
    return 0;
}

static int check_chunk(struct srv_bench_check *k, const cJSON *chunk)
{
    const cJSON *failure = srv_json_get(chunk, "error"), *choices = srv_json_get(chunk, "choices");
    if (failure) {
        const cJSON *message = srv_json_get(failure, "message");
        return wrong(k, "an error in the stream: %s", cJSON_IsString(message) ? message->valuestring : "(no message)");
    }
    if (k->used)
        return wrong(k, "a chunk after the usage");
    if (check_identity(k, chunk))
        return -1;
    if (!cJSON_IsArray(choices) || cJSON_GetArraySize(choices) > 1)
        return wrong(k, "a chunk does not have one choice");
    return choices->child ? check_choice(k, choices->child) : check_usage(k, chunk);
}

// ---- the framing ----------------------------------------------------------------------------------------------------

// A model may say U+0000, which cJSON would take for the end of the text. Which character it was is nothing to us.
static void mask_zeros(struct srv_buf *event)
{
    for (char *p = event->data; (p = strchr(p, '\\')) && p[1]; p += 2)
        if (!strncmp(p, "\\u0000", 6))
            p[5] = '1';
}

static int check_event(struct srv_bench_check *k)
{
    if (k->done)
        return wrong(k, "an event after [DONE]");
    if (!strcmp(k->event.data, "[DONE]")) {
        k->done = true;
        return 0;
    }
    cJSON *chunk = NULL;
    struct srv_error e;
    mask_zeros(&k->event);
    if (srv_json_parse(k->event.data, k->event.len, &chunk, &e))
        return wrong(k, "an event is not JSON: %.120s", e.message);
    int status = check_chunk(k, chunk);
    cJSON_Delete(chunk);
    return status;
}

static int check_line(struct srv_bench_check *k)
{
    const char *text = k->line.data ? k->line.data : "";
    if (!k->line.len) {
        bool event = k->data_line;
        if (!event && !k->comment_line)
            return wrong(k, "a blank line that ends no event");
        k->data_line = k->comment_line = false;
        return event ? check_event(k) : 0;
    }
    if (*text == ':') {
        k->comment_line = true;
        return 0;
    }
    if (k->data_line || strncmp(text, "data: ", 6))
        return wrong(k, "an event is not one data line");
    k->data_line = true;
    srv_buf_reset(&k->event);
    srv_buf_append(&k->event, text + 6, k->line.len - 6);
    return 0;
}

int srv_bench_check_feed(struct srv_bench_check *k, const char *bytes, size_t n)
{
    while (n) {
        const char *end = memchr(bytes, '\n', n);
        size_t take = end ? (size_t)(end - bytes) : n;
        srv_buf_append(&k->line, bytes, take);
        bytes += take;
        n -= take;
        if (k->line.failed || k->event.failed || k->id.failed || k->gaps.failed)
            return wrong(k, "the client ran out of memory");
        if (!end)
            return 0;
        if (check_line(k))
            return -1;
        srv_buf_reset(&k->line);
        bytes++;
        n--;
    }
    return 0;
}

void srv_bench_check_arrived(struct srv_bench_check *k, double now_ms)
{
    int64_t n = k->chunk_tokens;
    k->chunk_tokens = 0;
    if (!n)
        return;
    // Tokens that arrive together each count as an equal share of the time since the ones before, as in /metrics.
    if (k->first_ms > 0)
        srv_bench_samples_add(&k->gaps, (now_ms - k->last_ms) / (double)n, n);
    else
        k->first_ms = now_ms;
    k->last_ms = now_ms;
}

int srv_bench_check_end(struct srv_bench_check *k)
{
    if (k->line.len || k->data_line)
        return wrong(k, "the stream ends inside an event");
    if (!k->finished)
        return wrong(k, "the stream has no finish");
    if (!k->used)
        return wrong(k, "the stream has no usage");
    if (!k->done)
        return wrong(k, "the stream has no [DONE]");
    if (k->expect.output_tokens && (k->tokens != k->expect.output_tokens || !k->length))
        return wrong(k, "%lld tokens came, %lld were asked for", (long long)k->tokens,
                     (long long)k->expect.output_tokens);
    return 0;
}
