// select.cu against the CPU's reference: the same tokens and alternatives for the same logits, whatever the parameters.
//
// With top-p the reference adds probabilities in f32: where its cut falls within that rounding of the wanted share, the
// token may be the one it chooses for a share a little above or below.
#include "cuda_rig.h"

#include <float.h>
#include <math.h>
#include <stdio.h>

enum { ROWS_MAX = 48, BEYOND = 3 }; // rows of the bucket that no choice is wanted for

struct select_case {
    int32_t n_vocab, banned, n;
    float *logits; // [n_logits][n_vocab]
    int32_t n_logits;
    struct krn_select_row rows[ROWS_MAX];
};

// ---- the device's side ----------------------------------------------------------------------------------------------

struct block {
    char data[1 << 20];
    size_t bytes;
};

static uint32_t put(struct block *block, const void *data, size_t bytes)
{
    size_t at = KRN_PAD_TO(block->bytes, 16);
    if (at + bytes > sizeof block->data)
        abort();
    if (bytes)
        memcpy(block->data + at, data, bytes);
    block->bytes = at + bytes;
    return (uint32_t)at;
}

// A pass that wants `n` choices.
static struct krn_dev_pass *select_pass(struct cuda_rig *rig, const struct krn_select_row *rows, int32_t n,
                                        int32_t n_vocab)
{
    static struct block block;
    static struct krn_dev_count counts[8192];
    static struct krn_dev_bias biases[8192];
    struct krn_dev_select selects[ROWS_MAX];
    struct krn_dev_pass header = {.n_wanted = n};
    int32_t n_counts = 0, n_biases = 0;
    memset(&block, 0, sizeof block);
    put(&block, &header, sizeof header);
    for (int i = 0; i < n; i++) {
        const struct krn_select_row *r = &rows[i];
        selects[i] = (struct krn_dev_select){.row = r->row,
                                             .temperature = r->temperature,
                                             .top_k = r->top_k,
                                             .top_p = r->top_p,
                                             .min_p = r->min_p,
                                             .repetition_penalty = r->repetition_penalty,
                                             .frequency_penalty = r->frequency_penalty,
                                             .presence_penalty = r->presence_penalty,
                                             .seed = r->seed,
                                             .position = r->position,
                                             .allowed = -1,
                                             .counts = n_counts,
                                             .n_counts = r->n_counts,
                                             .biases = n_biases,
                                             .n_biases = r->n_biases,
                                             .n_top = r->n_top};
        if (r->allowed)
            selects[i].allowed = (int32_t)put(&block, r->allowed, (size_t)(n_vocab + 31) / 32 * 4) / 4;
        for (int c = 0; c < r->n_counts; c++)
            counts[n_counts++] =
                (struct krn_dev_count){r->counts[c].token, r->counts[c].in_output, r->counts[c].in_prompt};
        for (int b = 0; b < r->n_biases; b++)
            biases[n_biases++] = (struct krn_dev_bias){r->biases[b].token, r->biases[b].bias};
    }
    header.counts = put(&block, counts, (size_t)n_counts * sizeof counts[0]);
    header.biases = put(&block, biases, (size_t)n_biases * sizeof biases[0]);
    header.selects = put(&block, selects, (size_t)n * sizeof selects[0]); // last: what lies beyond is not the block's
    memcpy(block.data, &header, sizeof header);
    return rig_upload(rig, block.data, block.bytes);
}

// Launches `first` .. n of the case, as one chunk of its logits. ret: of those rows; untouched: rows that nobody may
// write are as they were.
static bool run_select(struct cuda_rig *rig, const struct select_case *c, int32_t first, struct krn_choice *ret)
{
    struct krn_dev_choice choices[ROWS_MAX + BEYOND];
    struct krn_dev_top tops[ROWS_MAX + BEYOND];
    int32_t bucket = c->n - first + BEYOND;
    size_t n_values = (size_t)c->n_vocab * (size_t)c->n_logits, all = (size_t)(c->n + BEYOND);
    float *logits = rig_upload(rig, c->logits, n_values * sizeof(float));
    struct krn_dev_pass *pass = select_pass(rig, c->rows, c->n, c->n_vocab);
    struct krn_select_args args = {
        .pass = pass,
        .logits = logits,
        .work = rig_alloc(rig, (size_t)bucket * (size_t)c->n_vocab * sizeof(float)),
        .n_vocab = c->n_vocab,
        .banned_id = c->banned,
        .first = first,
        .rows = bucket,
        .choices = rig_alloc(rig, all * sizeof choices[0]),
        .tops = rig_alloc(rig, all * sizeof tops[0]),
    };
    rig_must(rig, krn_cuda_select(rig->how, &args), "select");
    rig_read(rig, choices, args.choices, all * sizeof choices[0]);
    rig_read(rig, tops, args.tops, all * sizeof tops[0]);
    bool untouched = true;
    for (int i = 0; i < c->n + BEYOND; i++) {
        if (i < first || i >= c->n) {
            untouched = untouched && choices[i].n_top == -1 && tops[i].token[0] == -1;
            continue;
        }
        struct krn_choice *choice = &ret[i - first];
        *choice = (struct krn_choice){
            choices[i].token, choices[i].confidence, choices[i].logprob, choices[i].n_top, {0}, {0}};
        for (int j = 0; j < choice->n_top && j < KRN_TOP_MAX; j++) {
            choice->top_token[j] = tops[i].token[j];
            choice->top_logprob[j] = tops[i].logprob[j];
        }
    }
    rig_free(rig, (void *)logits);
    rig_free(rig, pass);
    rig_free(rig, args.work);
    rig_free(rig, args.choices);
    rig_free(rig, args.tops);
    return untouched;
}

// ---- the reference --------------------------------------------------------------------------------------------------

static struct krn_backend *cpu;

static struct krn_choice reference(const struct select_case *c, struct krn_select_row row)
{
    struct krn_choice choice;
    if (cpu->select(cpu->ctx, c->logits, c->n_vocab, c->banned, &row, 1, &choice) != 0)
        abort();
    return choice;
}

// The next position from row->position on where the reference chooses a token from `least` on: where the end of a set
// shows.
static void seek(const struct select_case *c, struct krn_select_row *row, int32_t least)
{
    while (reference(c, *row).token < least)
        row->position++;
}

// The reference loses some of a long tail beside a 1 in f32: a few 1e-6 of the logarithm.
static bool near(float a, float b, double abs)
{
    return fabs((double)a - (double)b) <= abs + 1e-5 * fabs((double)b);
}

static bool same_choice(const struct krn_choice *a, const struct krn_choice *b)
{
    bool same = a->token == b->token && near(a->confidence, b->confidence, 1e-30) &&
                near(a->logprob, b->logprob, 5e-6) && a->n_top == b->n_top;
    for (int j = 0; same && j < a->n_top; j++)
        same = a->top_token[j] == b->top_token[j] && near(a->top_logprob[j], b->top_logprob[j], 5e-6);
    return same;
}

static bool agrees(const struct select_case *c, const struct krn_select_row *row, const struct krn_choice *choice)
{
    struct krn_choice expected = reference(c, *row);
    if (same_choice(choice, &expected))
        return true;
    for (int sign = -1; sign <= 1 && row->temperature > 0 && row->top_p < 1; sign += 2) {
        struct krn_select_row moved = *row;
        moved.top_p = fmaxf(0, row->top_p + (float)sign * 2e-6f);
        struct krn_choice other = reference(c, moved);
        if (same_choice(choice, &other))
            return true;
    }
    printf(
        "# vocabulary %d banned %d T %g top_k %d top_p %g min_p %g n_top %d: token %d confidence %g logprob %g top %d,"
        " expected %d %g %g %d\n",
        c->n_vocab, c->banned, (double)row->temperature, row->top_k, (double)row->top_p, (double)row->min_p, row->n_top,
        choice->token, (double)choice->confidence, (double)choice->logprob, choice->n_top, expected.token,
        (double)expected.confidence, (double)expected.logprob, expected.n_top);
    return false;
}

static bool check_case(struct cuda_rig *rig, const struct select_case *c)
{
    struct krn_choice choices[ROWS_MAX];
    bool ok = run_select(rig, c, 0, choices);
    for (int i = 0; i < c->n; i++)
        ok = agrees(c, &c->rows[i], &choices[i]) && ok;
    return ok;
}

// ---- cases ----------------------------------------------------------------------------------------------------------

static struct krn_select_row greedy(int32_t row)
{
    return (struct krn_select_row){.row = row, .top_p = 1, .repetition_penalty = 1};
}

static struct select_case case_new(int32_t n_vocab, int32_t n_logits)
{
    return (struct select_case){
        .n_vocab = n_vocab, .banned = -1, .n_logits = n_logits, .logits = floats((size_t)n_vocab * (size_t)n_logits)};
}

// About normal, so that the best tokens stand out as a model's do.
static void fill_logits(struct random *random, struct select_case *c, float spread, bool coarse)
{
    for (size_t i = 0; i < (size_t)c->n_vocab * (size_t)c->n_logits; i++) {
        float x = 0;
        for (int j = 0; j < 6; j++)
            x += random_float(random);
        x *= spread * 0.7f;
        c->logits[i] = coarse ? floorf(x) : x;
    }
}

struct lists {
    uint32_t allowed[1024];
    struct krn_token_count counts[300];
    struct krn_token_bias biases[300];
};

// A token with penalties has one entry; one with biases may have several.
static void add_lists(struct random *random, struct select_case *c, struct krn_select_row *row, struct lists *lists)
{
    int32_t n = c->n_vocab;
    if (random_below(random, 3) == 0) {
        int32_t density = random_below(random, 5);
        for (int32_t i = 0; i < (n + 31) / 32; i++)
            lists->allowed[i] =
                density == 0 ? 0 : (uint32_t)(random_u64(random) | (density > 2 ? random_u64(random) : 0));
        row->allowed = lists->allowed;
    }
    if (random_below(random, 2)) {
        row->repetition_penalty = random_below(random, 2) ? 1 : 0.5f + (float)random_below(random, 30) / 10;
        row->frequency_penalty = (float)random_below(random, 5) / 4 - 0.25f;
        row->presence_penalty = (float)random_below(random, 5) / 4 - 0.25f;
        int32_t step = 1 + random_below(random, 9);
        for (int32_t i = 0; i < 300 && i * step < n; i++)
            lists->counts[row->n_counts++] =
                (struct krn_token_count){i * step, random_below(random, 4), random_below(random, 3)};
        row->counts = lists->counts;
    }
    if (random_below(random, 3) == 0) {
        row->n_biases = 1 + random_below(random, 300);
        for (int32_t i = 0; i < row->n_biases; i++)
            lists->biases[i] =
                (struct krn_token_bias){random_below(random, n), (float)random_below(random, 1400) / 100 - 7};
        lists->biases[0].bias = random_below(random, 2) ? -100 : 100;
        row->biases = lists->biases;
    }
}

static struct krn_select_row random_row(struct random *random, int32_t row, int32_t n_vocab)
{
    static const float temperatures[] = {0, 0.05f, 0.6f, 1, 1.7f, 30};
    static const int32_t tops[] = {0, 0, 1, 5, 20};
    struct krn_select_row r = greedy(row);
    r.temperature = temperatures[random_below(random, 6)];
    r.seed = random_u64(random);
    r.position = random_below(random, 1 << 20);
    if (random_below(random, 2))
        r.top_k = random_below(random, 4) ? random_below(random, 60) : random_below(random, n_vocab + 5);
    if (random_below(random, 2))
        r.top_p = (float)random_below(random, 1000) / 1000;
    if (random_below(random, 3) == 0)
        r.min_p = (float)random_below(random, 500) / 1000;
    r.n_top = tops[random_below(random, 5)];
    return r;
}

static void check_parameters(struct cuda_rig *rig, int32_t n_vocab, int32_t rounds, uint64_t seed)
{
    static const float spreads[] = {0.1f, 3, 12, 60};
    static struct lists lists[ROWS_MAX];
    struct random random = {.state = seed};
    bool ok = true;
    for (int round = 0; round < rounds; round++) {
        struct select_case c = case_new(n_vocab, 4);
        c.n = 24;
        c.banned = random_below(&random, 2) ? -1 : random_below(&random, n_vocab + 1);
        fill_logits(&random, &c, spreads[round % 4], round % 3 == 2);
        for (int i = 0; i < c.n; i++) {
            c.rows[i] = random_row(&random, i % 4, n_vocab);
            if (i % 2)
                add_lists(&random, &c, &c.rows[i], &lists[i]);
        }
        ok = check_case(rig, &c) && ok;
        free(c.logits);
    }
    char what[80];
    snprintf(what, sizeof what, "select: random parameters, %d tokens", n_vocab);
    rig_report(rig, ok, what);
}

static void check_ties(struct cuda_rig *rig)
{
    struct select_case c = case_new(997, 3);
    for (int i = 0; i < 997; i++) {
        c.logits[i] = i == 500 || i == 7 || i == 996 ? 3 : 1;
        c.logits[997 + i] = i % 2 ? 0.0f : -0.0f;
        c.logits[2 * 997 + i] = -FLT_MAX;
    }
    for (c.n = 0; c.n < 12; c.n++) {
        c.rows[c.n] = greedy(c.n % 3);
        c.rows[c.n].n_top = c.n < 6 ? 20 : 0;
        c.rows[c.n].temperature = c.n % 6 < 3 ? 0 : 1;
        c.rows[c.n].top_k = c.n < 6 ? 0 : 2;
        c.rows[c.n].position = c.n;
    }
    bool ok = true;
    for (c.banned = -1; c.banned <= 997; c.banned += c.banned == -1 ? 8 : 495) // -1, 7, 502, 997
        ok = check_case(rig, &c) && ok;
    free(c.logits);
    rig_report(rig, ok, "select: the lowest id wins a tie");
}

// Values that only the temperature makes equal: the best of them need not be kept.
static void check_merged(struct cuda_rig *rig)
{
    struct select_case c = case_new(97, 1);
    for (int i = 0; i < 97; i++)
        c.logits[i] = (float)i * 1e-40f;
    for (c.n = 0; c.n < 24; c.n++) {
        c.rows[c.n] = greedy(0);
        c.rows[c.n].temperature = 1e20f;
        c.rows[c.n].top_k = c.n % 2 ? 3 : 0;
        c.rows[c.n].top_p = c.n % 4 == 2 ? 0.05f : 1;
        c.rows[c.n].position = c.n;
    }
    rig_report(rig, check_case(rig, &c), "select: values that the temperature makes equal");
    free(c.logits);
}

// More equal tokens at the cut than the list takes.
static void check_flat(struct cuda_rig *rig)
{
    struct select_case c = case_new(9001, 2);
    struct random random = {.state = 12};
    for (int i = 0; i < 9001; i++) {
        c.logits[i] = 1.5f;
        c.logits[9001 + i] = (float)random_below(&random, 3) / 64;
    }
    for (c.n = 0; c.n < 12; c.n++) {
        struct krn_select_row r = greedy(c.n % 2);
        r.temperature = c.n < 2 ? 0 : 1;
        r.n_top = c.n < 2 ? 20 : 0;
        r.top_k = c.n < 4 ? 100 : c.n < 6 ? 7000 : c.n == 10 ? 8999 : 0;
        r.top_p = c.n >= 6 && c.n < 10 ? 0.37f : c.n >= 4 && c.n < 6 ? 0.5f : c.n == 11 ? 0.98f : 1;
        r.position = c.n;
        if (c.n >= 10)
            seek(&c, &r, 8192);
        c.rows[c.n] = r;
    }
    rig_report(rig, check_case(rig, &c), "select: thousands of equal values");
    free(c.logits);
}

// One token above all, and a tail far below that has a share: 12 nats (sums of small weights) or 16 (below the first
// histogram).
static void check_tail(struct cuda_rig *rig)
{
    enum { VOCAB = 30000 };
    struct select_case c = case_new(VOCAB, 2);
    struct random random = {.state = 14};
    for (int i = 0; i < VOCAB; i++) {
        c.logits[i] = i == 0 ? 1 : -11 + random_float(&random) / 10;
        c.logits[VOCAB + i] = i == 0 ? 16 : -0.2f + random_float(&random) / 10;
    }
    for (c.n = 0; c.n < 12; c.n++) {
        struct krn_select_row r = greedy(c.n % 2);
        r.temperature = 1;
        r.seed = (uint64_t)c.n;
        seek(&c, &r, 1); // with the whole tail, of which most is then kept
        r.top_p = c.n % 2 ? 0.9992f : 0.95f;
        c.rows[c.n] = r;
    }
    rig_report(rig, check_case(rig, &c), "select: top-p that ends in a long tail");
    free(c.logits);
}

// Sets of thousands: only the bin where they end is listed.
static void check_wide(struct cuda_rig *rig)
{
    struct select_case c = case_new(9001, 2);
    struct random random = {.state = 13};
    fill_logits(&random, &c, 2, false);
    c.banned = 17;
    for (int i = 0; i < 9001; i++) // one far above the others: much of the probability lies more than 16 nats down
        c.logits[9001 + i] = i == 4000 ? 30 : c.logits[9001 + i] / 4 + 12;
    for (c.n = 0; c.n < 48; c.n++) {
        struct krn_select_row r = greedy(c.n % 2);
        int32_t kind = c.n / 2 % 6;
        r.temperature = c.n < 12 ? 1 : c.n < 24 ? 1.3f : c.n < 36 ? 2.5f : 30;
        r.top_k = kind == 0 || kind == 5 ? 6000 : kind == 1 ? 8990 : 0;
        r.top_p = kind == 2 ? 0.9f : kind == 3 ? 0.9999f : kind == 4 ? 0.99999994f : kind == 5 ? 0.8f : 1;
        r.min_p = c.n % 3 == 2 ? 1e-4f : 0;
        r.seed = 5;
        r.position = c.n;
        c.rows[c.n] = r;
    }
    rig_report(rig, check_case(rig, &c), "select: sets of thousands of tokens");
    free(c.logits);
}

static void check_not_finite(struct cuda_rig *rig)
{
    static const float bad[4] = {NAN, INFINITY, -INFINITY, -NAN};
    bool ok = true;
    for (int32_t n = 97; n <= 4100; n += 4003) {
        struct select_case c = case_new(n, 13);
        struct random random = {.state = 3};
        fill_logits(&random, &c, 3, false);
        for (c.n = 0; c.n < 12; c.n++) {
            c.logits[c.n * n + random_below(&random, n)] = bad[c.n % 4];
            c.rows[c.n] = greedy(c.n);
            c.rows[c.n].n_top = c.n % 3;
        }
        c.logits[11 * n + n - 1] = NAN;
        c.rows[c.n++] = greedy(12); // this one is sound
        c.banned = n - 1;
        ok = check_case(rig, &c) && ok;
        free(c.logits);
    }
    rig_report(rig, ok, "select: logits that are not finite give no token");
}

static void check_extremes(struct cuda_rig *rig)
{
    static uint32_t none[4], one[4] = {0, 1u << 3};
    static const struct krn_token_bias forbid[3] = {{0, -100}, {50, -1000}, {96, 1000}};
    static const struct krn_token_count counts[2] = {{1, 1000000, 5}, {2, 7, 0}};
    static const float temperatures[] = {0, 1e-38f, 1e-30f, 1e-4f, 1, 1e20f, 1e38f};
    struct select_case c = case_new(97, 4);
    struct random random = {.state = 8};
    fill_logits(&random, &c, 4, false);
    c.logits[97] = 3e38f, c.logits[98] = -3e38f, c.logits[99] = 1e38f;
    for (int i = 0; i < 97; i++) {
        c.logits[2 * 97 + i] *= 1e-40f;
        c.logits[3 * 97 + i] *= 3e36f;
    }
    bool ok = true;
    for (int t = 0; t < 7; t++) {
        for (c.n = 0; c.n < 40; c.n++) {
            struct krn_select_row r = greedy(c.n % 4);
            int32_t kind = c.n / 4;
            r.temperature = temperatures[t];
            r.position = c.n;
            r.n_top = kind % 3 == 2 ? 20 : kind % 3;
            r.allowed = kind == 1 ? none : kind == 2 ? one : NULL;
            r.biases = forbid;
            r.n_biases = kind == 3 ? 3 : 0;
            r.counts = counts;
            r.n_counts = kind == 4 ? 2 : 0;
            r.frequency_penalty = kind == 4 ? 1e30f : 0;
            r.repetition_penalty = kind == 4 ? 1e30f : 1;
            r.top_k = kind == 5 ? 3 : kind == 6 ? 96 : 0;
            r.top_p = kind == 7 ? 0 : kind == 6 ? 0.9f : 1;
            r.min_p = kind == 8 ? 1 : kind == 9 ? 1e-30f : 0;
            c.rows[c.n] = r;
        }
        ok = check_case(rig, &c) && ok;
    }
    free(c.logits);
    rig_report(rig, ok, "select: nothing allowed, values and temperatures at the ends of f32");

    c = case_new(1, 1);
    c.n = 3;
    for (int i = 0; i < 3; i++) {
        c.rows[i] = greedy(0);
        c.rows[i].temperature = (float)i;
        c.rows[i].n_top = 2;
    }
    ok = check_case(rig, &c);
    c.banned = 0;
    ok = check_case(rig, &c) && ok;
    free(c.logits);
    rig_report(rig, ok, "select: a vocabulary of one");
}

static void check_large(struct cuda_rig *rig)
{
    struct select_case c = case_new(131072, 2);
    struct random random = {.state = 21};
    fill_logits(&random, &c, 3, false);
    c.logits[131072 + 131071] = 15;
    c.banned = 3;
    for (c.n = 0; c.n < (rig->emulated ? 5 : 40); c.n++) {
        struct krn_select_row r = greedy(c.n % 2);
        int32_t kind = c.n % 5;
        r.temperature = kind == 0 ? 0 : kind == 1 ? 1 : 0.7f;
        r.top_k = kind == 2 || kind == 3 ? 40 : 0;
        r.top_p = kind == 3 ? 0.9f : kind == 4 ? 0.95f : 1;
        r.min_p = kind == 2 ? 0.05f : 0;
        r.seed = 77;
        r.position = c.n;
        r.n_top = kind == 3 ? 20 : 0;
        c.rows[c.n] = r;
    }
    rig_report(rig, check_case(rig, &c), "select: 131072 tokens");
    free(c.logits);
}

static void check_alone(struct cuda_rig *rig)
{
    enum { ROWS = 12 };
    bool ok = true;
    for (int32_t n = 1000; n <= 1001; n++) { // rows that all lie at multiples of 16 bytes, and rows that do not
        struct select_case c = case_new(n, ROWS);
        struct lists lists[ROWS];
        struct krn_choice together[ROWS], alone;
        struct random random = {.state = 5};
        fill_logits(&random, &c, 4, false);
        for (c.n = 0; c.n < ROWS; c.n++) {
            c.rows[c.n] = random_row(&random, ROWS - 1 - c.n, n);
            if (c.n % 2)
                add_lists(&random, &c, &c.rows[c.n], &lists[c.n]);
        }
        ok = run_select(rig, &c, 0, together) && ok;
        for (int i = 0; i < ROWS; i++) {
            struct select_case one = {.n_vocab = n,
                                      .banned = -1,
                                      .n_logits = 1,
                                      .n = 1,
                                      .rows = {c.rows[i]},
                                      .logits = c.logits + c.rows[i].row * n};
            one.rows[0].row = 0;
            ok = run_select(rig, &one, 0, &alone) && memcmp(&alone, &together[i], sizeof alone) == 0 && ok;
        }
        struct krn_choice later[ROWS];
        ok = run_select(rig, &c, 7, later) && memcmp(later, together + 7, 5 * sizeof later[0]) == 0 && ok;
        free(c.logits);
    }
    rig_report(rig, ok, "select: a row alone, in a chunk and among others: the same bits");
}

void check_select(struct cuda_rig *rig)
{
    cpu = open_cpu(1, ~0u);
    check_parameters(rig, 97, rig->emulated ? 16 : 200, 1);
    check_parameters(rig, 1000, rig->emulated ? 16 : 200, 2);
    check_parameters(rig, 4099, rig->emulated ? 8 : 200, 3);
    check_ties(rig);
    check_merged(rig);
    check_flat(rig);
    check_tail(rig);
    check_wide(rig);
    check_not_finite(rig);
    check_extremes(rig);
    check_large(rig);
    check_alone(rig);
    cpu->close(cpu->ctx);
}
