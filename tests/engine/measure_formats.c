// What a format of the weights and of the KV store costs in quality: the bundled model reads held-out conversations
// (prompt and answer), and each answer token's prediction is compared with the CPU's in f32.
//
//   measure_formats [--backend cpu|cuda] [--prompts N] [--context N] [--model DIR] [WEIGHTS/KV ...]
//                                                                                  e.g. bf16/q8 fp8/bf16
//
// --context: so many tokens of other conversations stand before each one, where the model is far less sure.
//
// Prints, over the answers' tokens: perplexity, the share of positions whose most probable token is the one of f32, and
// the largest and the mean difference of a logit; and what weights and a token's keys and values take. The cuda backend
// comes from its module (TRIMODE_CUDA_MODULE).
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cjson/cJSON.h>

#include "forward.h"
#include "model/weights.h"
#include "text/chat.h"
#include "text/tokenizer.h"

enum { MAX_CONVERSATION = 192, MAX_TOKENS = 2048, PAGE_SIZE = 16, MAX_TEXTS = 400 };

struct text {
    int32_t ids[MAX_TOKENS], n, n_prompt;
};

static struct text texts[MAX_TEXTS];
static int n_texts;
static char err[512];

static void die(const char *what)
{
    fprintf(stderr, "measure_formats: %s: %s\n", what, err);
    exit(1);
}

// ---- the texts ------------------------------------------------------------------------------------------------------

static bool render(const struct eng_tokenizer *t, const struct eng_chat *chat, const cJSON *line, struct text *ret)
{
    const char *answer = cJSON_GetObjectItem(line, "answer")->valuestring;
    cJSON *messages = cJSON_CreateArray(), *message = cJSON_CreateObject();
    cJSON_AddStringToObject(message, "role", "user");
    cJSON_AddStringToObject(message, "content", cJSON_GetObjectItem(line, "prompt")->valuestring);
    cJSON_AddItemToArray(messages, message);
    int32_t *prompt = NULL, *reply = NULL;
    size_t n_prompt = 0, n_reply = 0;
    bool fits = eng_chat_render(chat, messages, NULL, true, false, NULL, &prompt, &n_prompt, err, sizeof err) == 0 &&
                eng_tokenizer_encode(t, answer, strlen(answer), 0, &reply, &n_reply) == 0 &&
                n_prompt + n_reply <= MAX_CONVERSATION && n_reply > 0;
    if (fits) {
        memcpy(ret->ids, prompt, n_prompt * sizeof *prompt);
        memcpy(ret->ids + n_prompt, reply, n_reply * sizeof *reply);
        ret->n = (int32_t)(n_prompt + n_reply);
        ret->n_prompt = (int32_t)n_prompt;
    }
    free(prompt);
    free(reply);
    cJSON_Delete(messages);
    return fits;
}

// Every k-th line of the held-out set, so that all tasks are met.
static void read_texts(const char *dir, int most)
{
    static char line[16384];
    char path[1024];
    struct eng_tokenizer *t;
    struct eng_chat *chat;
    snprintf(path, sizeof path, "%s/tokenizer.json", dir);
    if (eng_tokenizer_load(path, &t, err, sizeof err) != 0 || eng_chat_load(dir, t, &chat, err, sizeof err) != 0)
        die(dir);
    FILE *f = fopen(TRIMODE_SOURCE_DIR "/scripts/train/heldout.jsonl", "rb");
    if (!f)
        die("scripts/train/heldout.jsonl");
    int step = most < MAX_TEXTS ? MAX_TEXTS / most : 1;
    for (int i = 0; n_texts < most && fgets(line, sizeof line, f); i++) {
        cJSON *json = i % step ? NULL : cJSON_Parse(line);
        n_texts += json && render(t, chat, json, &texts[n_texts]);
        cJSON_Delete(json);
    }
    fclose(f);
    eng_chat_free(chat);
    eng_tokenizer_free(t);
}

// Puts whole conversations before each, the ones after it in turn, as many as fit into `context` tokens.
static void add_context(int32_t context)
{
    static struct text alone[MAX_TEXTS];
    memcpy(alone, texts, sizeof alone);
    for (int i = 0; i < n_texts; i++) {
        struct text *t = &texts[i];
        int32_t before = 0;
        for (int k = 1; k <= n_texts; k++) {
            const struct text *other = &alone[(i + k) % n_texts];
            if (before + other->n > context || before + other->n + alone[i].n > MAX_TOKENS)
                break;
            memcpy(t->ids + before, other->ids, (size_t)other->n * sizeof *t->ids);
            before += other->n;
        }
        memcpy(t->ids + before, alone[i].ids, (size_t)alone[i].n * sizeof *t->ids);
        t->n = before + alone[i].n;
        t->n_prompt = before + alone[i].n_prompt;
    }
}

// ---- a model --------------------------------------------------------------------------------------------------------

struct rig {
    struct krn_backend *backend;
    struct eng_weights *weights;
    struct eng_model model;
    struct eng_batch batch;
};

static void rig_open(struct rig *r, const char *dir, const char *backend, const char *weights, enum krn_type kv)
{
    struct krn_cuda_options options = {0};
    if (strcmp(backend, "cpu") == 0 ? krn_open_cpu(0, ~0u, &r->backend, err, sizeof err)
                                    : krn_open_cuda(&options, &r->backend, err, sizeof err))
        die(backend);
    struct eng_forward_sizes sizes = {.max_rows = MAX_TOKENS,
                                      .max_segments = 1,
                                      .n_pages = MAX_TOKENS / PAGE_SIZE,
                                      .page_size = PAGE_SIZE,
                                      .kv_type = kv};
    if (eng_weights_load(dir, weights, "none", r->backend, NULL, NULL, &r->weights, err, sizeof err) != 0 ||
        eng_forward_open(r->backend, r->weights, &sizes, &r->model, err, sizeof err) != 0 ||
        eng_batch_init(&r->batch, MAX_TOKENS, 1) != 0)
        die(weights);
}

static void rig_close(struct rig *r)
{
    eng_batch_done(&r->batch);
    r->model.close(r->model.ctx);
    eng_weights_free(r->weights, r->backend);
    r->backend->close(r->backend->ctx);
}

// Logits [n answer tokens][n_vocab]: row i predicts answer token i.
static void predict(struct rig *r, const struct text *t, float *logits)
{
    int32_t pages[MAX_TOKENS / PAGE_SIZE];
    for (int32_t i = 0; i < MAX_TOKENS / PAGE_SIZE; i++)
        pages[i] = i;
    eng_batch_reset(&r->batch);
    struct eng_segment *s = eng_batch_add(&r->batch, 0, ENG_PASS_PREFILL, 0, t->n);
    s->keep = true;
    s->pages = pages;
    memcpy(r->batch.tokens, t->ids, (size_t)t->n * sizeof *t->ids);
    for (int32_t i = t->n_prompt; i < t->n; i++)
        eng_batch_want(&r->batch, s, i - 1);
    if (eng_forward_logits(&r->model, &r->batch, logits) != 0) {
        snprintf(err, sizeof err, "%s", r->backend->error(r->backend->ctx));
        die("forward");
    }
}

// ---- the comparison -------------------------------------------------------------------------------------------------

struct score {
    double loss, largest, difference;
    long tokens, agree, values;
};

static int32_t best_of(const float *x, int32_t n, int32_t banned)
{
    int32_t best = -1;
    for (int32_t i = 0; i < n; i++)
        if (i != banned && (best < 0 || x[i] > x[best]))
            best = i;
    return best;
}

// -log of the token's probability, the mask id left out.
static double loss_of(const float *x, int32_t n, int32_t banned, int32_t token)
{
    double max = (double)x[best_of(x, n, banned)], sum = 0;
    for (int32_t i = 0; i < n; i++)
        if (i != banned)
            sum += exp((double)x[i] - max);
    return log(sum) + max - (double)x[token];
}

static void compare(const struct rig *r, const struct text *t, const float *logits, const float *expected,
                    struct score *s)
{
    int32_t n = r->model.n_vocab, banned = r->model.mask_id;
    for (int32_t i = 0; i < t->n - t->n_prompt; i++) {
        const float *x = logits + (size_t)i * (size_t)n, *e = expected + (size_t)i * (size_t)n;
        s->loss += loss_of(x, n, banned, t->ids[t->n_prompt + i]);
        s->agree += best_of(x, n, banned) == best_of(e, n, banned);
        s->tokens++;
        for (int32_t k = 0; k < n; k++) {
            double d = fabs((double)x[k] - (double)e[k]);
            s->largest = d > s->largest ? d : s->largest;
            s->difference += d;
            s->values++;
        }
    }
}

static enum krn_type kv_type_of(const char *name)
{
    for (int t = 0; t < KRN_N_TYPES; t++)
        if (strcmp(name, krn_type_name((enum krn_type)t)) == 0)
            return (enum krn_type)t;
    return KRN_N_TYPES;
}

static void print_row(const struct rig *r, const char *backend, const char *weights, const char *kv,
                      const struct score *s)
{
    int64_t page = eng_forward_page_bytes(r->backend, r->weights, PAGE_SIZE, kv_type_of(kv));
    printf("| %-5s| %-8s| %-5s| %11.2f %% | %10.5f | %9.4f | %9.5f | %8.2f MiB | %6lld |\n", backend, weights, kv,
           100.0 * (double)s->agree / (double)s->tokens, exp(s->loss / (double)s->tokens), s->largest,
           s->difference / (double)s->values, (double)r->weights->resident_bytes / 1048576,
           (long long)(page / PAGE_SIZE));
    fflush(stdout);
}

static void measure(const char *dir, const char *backend, const char *format, float *const *expected)
{
    char weights[16] = "", kv[16] = "";
    if (sscanf(format, "%15[^/]/%15s", weights, kv) != 2)
        die(format);
    struct rig r = {0};
    struct score s = {0};
    rig_open(&r, dir, backend, weights, kv_type_of(kv));
    float *logits = calloc((size_t)MAX_CONVERSATION * (size_t)r.model.n_vocab, sizeof *logits);
    for (int i = 0; logits && i < n_texts; i++) {
        predict(&r, &texts[i], logits);
        compare(&r, &texts[i], logits, expected[i], &s);
    }
    print_row(&r, backend, weights, kv, &s);
    free(logits);
    rig_close(&r);
}

int main(int argc, char **argv)
{
    const char *dir = TRIMODE_SOURCE_DIR "/config/models/nano", *backend = "cuda";
    const char *of_cuda[] = {"bf16/bf16", "bf16/fp8", "fp8/bf16", "fp8/fp8", "q4/bf16", "q4/fp8"};
    const char *of_cpu[] = {"bf16/f32", "bf16/bf16", "bf16/q8"};
    int32_t context = 0;
    int most = 100, i = 1;
    for (; i + 1 < argc && argv[i][0] == '-'; i += 2) {
        if (strcmp(argv[i], "--backend") == 0)
            backend = argv[i + 1];
        else if (strcmp(argv[i], "--prompts") == 0)
            most = atoi(argv[i + 1]);
        else if (strcmp(argv[i], "--context") == 0)
            context = (int32_t)atoi(argv[i + 1]);
        else if (strcmp(argv[i], "--model") == 0)
            dir = argv[i + 1];
    }
    bool cpu = strcmp(backend, "cpu") == 0;
    const char **formats = i < argc ? (const char **)argv + i : cpu ? of_cpu : of_cuda;
    int n_formats = i < argc ? argc - i : (int)(cpu ? sizeof of_cpu : sizeof of_cuda) / (int)sizeof *of_cpu;
    read_texts(dir, most < 1 ? 1 : most > MAX_TEXTS ? MAX_TEXTS : most);
    add_context(context);

    static float *expected[MAX_TEXTS];
    struct rig r = {0};
    struct score self = {0};
    rig_open(&r, dir, "cpu", "f32", KRN_F32);
    for (int t = 0; t < n_texts; t++) {
        expected[t] = calloc((size_t)MAX_CONVERSATION * (size_t)r.model.n_vocab, sizeof(float));
        if (!expected[t])
            die("memory");
        predict(&r, &texts[t], expected[t]);
        compare(&r, &texts[t], expected[t], expected[t], &self);
    }
    printf("%d held-out conversations, %ld answer tokens\n\n", n_texts, self.tokens);
    printf("| where | weights | KV   | top-1 as f32  | perplexity | max diff  | mean diff | weights     | KV bytes a "
           "token |\n"
           "| --- | --- | --- | --- | --- | --- | --- | --- | --- |\n");
    print_row(&r, "cpu", "f32", "f32", &self);
    rig_close(&r);
    for (int f = 0; f < n_formats; f++)
        measure(dir, backend, formats[f], expected);
    for (int t = 0; t < n_texts; t++)
        free(expected[t]);
    return 0;
}
