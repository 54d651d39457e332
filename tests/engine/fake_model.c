// The fake model: hashes in place of arithmetic.
#include "fake_model.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct fake_model fake_model_default(void)
{
    return (struct fake_model){
        .n_vocab = 97,
        .mask_id = 5,
        .n_pages = 256,
        .page_size = 4,
        .agree = 0.75,
        .has_adapter = true,
        .end_id = -1,
        .poison = -1,
        .async = getenv("TRIMODE_TEST_ASYNC") != NULL,
    };
}

static uint64_t mix(uint64_t a, uint64_t b)
{
    uint64_t x = (a ^ (b + 0x9e3779b97f4a7c15u)) * 0xbf58476d1ce4e5b9u;
    x ^= x >> 29;
    x *= 0x94d049bb133111ebu;
    return x ^ x >> 32;
}

static double fraction(uint64_t x)
{
    return (double)(x >> 11) * 0x1p-53;
}

uint64_t fake_chain_next(uint64_t chain, int32_t token)
{
    return mix(chain, (uint64_t)(uint32_t)token);
}

uint64_t fake_chain(const int32_t *tokens, int32_t n)
{
    uint64_t chain = 1;
    for (int32_t i = 0; i < n; i++)
        chain = fake_chain_next(chain, tokens[i]);
    return chain;
}

__attribute__((format(printf, 2, 3))) static void fault(struct fake_model *f, const char *format, ...)
{
    if (f->fault[0])
        return;
    va_list args;
    va_start(args, format);
    vsnprintf(f->fault, sizeof f->fault, format, args);
    va_end(args);
}

static uint64_t mix_float(uint64_t h, float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return mix(h, bits);
}

// Everything that may change a choice goes in; the order of counts does not.
static uint64_t key_of(const struct krn_select_row *row)
{
    uint64_t h = mix_float(17, row->temperature);
    if (row->temperature > 0) {
        h = mix(h, row->seed);
        h = mix(h, (uint64_t)row->position);
        h = mix(h, (uint64_t)row->top_k);
        h = mix_float(h, row->top_p);
        h = mix_float(h, row->min_p);
    }
    uint64_t counts = 0;
    for (int32_t i = 0; i < row->n_counts; i++)
        counts += mix(mix((uint64_t)row->counts[i].token, (uint64_t)row->counts[i].in_output),
                      (uint64_t)row->counts[i].in_prompt);
    h = mix(h, counts);
    h = mix_float(h, row->repetition_penalty);
    h = mix_float(h, row->frequency_penalty);
    return mix_float(h, row->presence_penalty);
}

static bool allowed(const struct fake_model *f, const struct krn_select_row *row, int32_t token)
{
    if (token == f->mask_id)
        return false;
    for (int32_t i = 0; i < row->n_biases; i++)
        if (row->biases[i].token == token && row->biases[i].bias <= -100)
            return false;
    return !row->allowed || row->allowed[token / 32] >> token % 32 & 1;
}

void fake_choose(const struct fake_model *f, uint64_t chain, const struct krn_select_row *row, struct krn_choice *ret)
{
    uint64_t h = mix(chain, key_of(row));
    *ret = (struct krn_choice){.token = -1,
                               .confidence = (float)fraction(mix(h, 3)),
                               .logprob = -(float)fraction(mix(h, 4)),
                               .n_top = row->n_top};
    for (int32_t i = 0; i < row->n_top; i++) {
        ret->top_token[i] = (int32_t)(mix(h, 100 + (uint64_t)i) % (uint64_t)f->n_vocab);
        ret->top_logprob[i] = ret->logprob - (float)i;
    }
    if (f->end_id >= 0 && allowed(f, row, f->end_id) && fraction(mix(h, 5)) < f->end_rate) {
        ret->token = f->end_id;
        return;
    }
    for (uint64_t k = 0; k < 4096; k++) {
        int32_t token = f->first_id + (int32_t)(mix(h, 1000 + k) % (uint64_t)(f->n_vocab - f->first_id));
        if (token != f->end_id && allowed(f, row, token)) {
            ret->token = token;
            return;
        }
    }
}

// ---- KV -------------------------------------------------------------------------------------------------------------

static struct fake_entry *entry_at(struct fake_model *f, const struct eng_segment *s, int32_t position)
{
    int32_t page = s->pages[position / f->page_size];
    if (page < 0 || page >= f->n_pages) {
        fault(f, "position %d of slot %d has page %d", position, s->slot, page);
        return &f->kv[0];
    }
    return &f->kv[(size_t)page * (size_t)f->page_size + (size_t)(position % f->page_size)];
}

// May the segment read a position that another sequence wrote? Only in a page that lies wholly in its prefix.
static bool may_be_foreign(const struct fake_model *f, const struct eng_segment *s, int32_t position)
{
    return f->shares && (position / f->page_size + 1) * f->page_size <= s->first_pos;
}

// Checks the prefix and returns its hash.
static uint64_t read_prefix(struct fake_model *f, const struct eng_segment *s)
{
    uint64_t chain = 1;
    for (int32_t p = 0; p < s->first_pos; p++) {
        const struct fake_entry *e = entry_at(f, s, p);
        chain = fake_chain_next(chain, e->token);
        bool good = e->owner == s->slot || may_be_foreign(f, s, p);
        f->foreign += e->owner != s->slot;
        if (e->position != p || !good || !e->final || e->chain != chain)
            fault(f, "slot %d reads position %d (%s pass at %d): holds position %d of slot %d, %s, chain %s", s->slot,
                  p, eng_pass_kind_name(s->kind), s->first_pos, e->position, e->owner, e->final ? "final" : "scratch",
                  e->chain == chain ? "right" : "wrong");
    }
    return chain;
}

static void write_rows(struct fake_model *f, const struct eng_segment *s)
{
    uint64_t chain = 1;
    for (int32_t p = 0; p < s->first_pos; p++)
        chain = fake_chain_next(chain, entry_at(f, s, p)->token);
    for (int32_t i = 0; i < s->rows; i++) {
        int32_t token = f->tokens[s->row + i];
        if (token < 0 || token >= f->n_vocab)
            fault(f, "row %d has token %d", s->row + i, token);
        chain = fake_chain_next(chain, token);
        *entry_at(f, s, s->first_pos + i) = (struct fake_entry){
            .token = token,
            .position = s->first_pos + i,
            .owner = s->slot,
            .final = s->keep && s->mask == KRN_MASK_CAUSAL,
            .chain = chain,
        };
    }
}

static void check_own_rows(struct fake_model *f, const struct eng_segment *s)
{
    for (int32_t i = 0; i < s->rows; i++) {
        const struct fake_entry *e = entry_at(f, s, s->first_pos + i);
        if (e->token != f->tokens[s->row + i] || e->owner != s->slot || e->position != s->first_pos + i)
            fault(f, "position %d of slot %d was overwritten by slot %d", s->first_pos + i, s->slot, e->owner);
    }
}

// ---- segments -------------------------------------------------------------------------------------------------------

static void check_segment(struct fake_model *f, const struct eng_batch *b, const struct eng_segment *s)
{
    bool block = s->kind == ENG_PASS_DENOISE || s->kind == ENG_PASS_DRAFT;
    bool adapter = s->kind == ENG_PASS_DRAFT ? f->has_adapter : block && f->has_adapter && f->block_adapter;
    const char *name = eng_pass_kind_name(s->kind);
    if (s->rows < 1 || s->row + s->rows > b->n_rows || s->first_wanted + s->n_wanted > b->n_wanted)
        fault(f, "%s segment out of range", name);
    if ((s->mask == KRN_MASK_BLOCK) != block || s->keep == block || s->adapter != adapter)
        fault(f, "%s segment: mask %d keep %d adapter %d", name, (int)s->mask, s->keep, s->adapter);
    if (s->kind == ENG_PASS_VERIFY && s->n_wanted != s->rows)
        fault(f, "verify of %d rows wants %d", s->rows, s->n_wanted);
    if ((s->kind == ENG_PASS_VERIFY) != (s->accept >= 0))
        fault(f, "%s segment with accept %d", name, s->accept);
    if ((s->kind == ENG_PASS_AR || s->kind == ENG_PASS_SEAL) && s->n_wanted != 1)
        fault(f, "%s wants %d", name, s->n_wanted);
    if (s->kind == ENG_PASS_DRAFT && s->n_wanted != s->rows - 1)
        fault(f, "draft of %d rows wants %d", s->rows, s->n_wanted);
    for (int32_t i = 0; i < s->n_wanted; i++) {
        const struct krn_select_row *w = &b->wanted[s->first_wanted + i];
        int32_t p = s->first_pos + w->row - s->row;
        if (w->row < s->row || w->row >= s->row + s->rows || w->position != (block ? p : p + 1))
            fault(f, "%s: row at position %d chooses for %lld", name, p, (long long)w->position);
        if (block && f->tokens[w->row] != f->mask_id)
            fault(f, "%s: wanted position %d is not masked", name, p);
    }
}

static void choose_causal(struct fake_model *f, const struct eng_batch *b, const struct eng_segment *s,
                          struct krn_choice *choices, uint64_t prefix)
{
    int32_t row = s->row;
    uint64_t chain = prefix;
    for (int32_t i = 0; i < s->n_wanted; i++) {
        const struct krn_select_row *w = &b->wanted[s->first_wanted + i];
        for (; row <= w->row; row++)
            chain = fake_chain_next(chain, f->tokens[row]);
        fake_choose(f, chain, w, &choices[s->first_wanted + i]);
    }
}

// The true continuation, spoilt here and there.
static void choose_draft(struct fake_model *f, const struct eng_batch *b, const struct eng_segment *s,
                         struct krn_choice *choices, uint64_t prefix)
{
    uint64_t chain = fake_chain_next(prefix, f->tokens[s->row]);
    double agree = s->adapter ? f->agree : f->agree / 2;
    for (int32_t i = 0; i < s->n_wanted; i++) {
        struct krn_choice *c = &choices[s->first_wanted + i], spoilt;
        const struct krn_select_row *w = &b->wanted[s->first_wanted + i];
        fake_choose(f, chain, w, c);
        int32_t token = c->token;
        if (fraction(mix(chain, 77)) >= agree) {
            fake_choose(f, mix(chain, 78), w, &spoilt);
            *c = spoilt;
        }
        chain = fake_chain_next(chain, token);
    }
}

static void choose_denoise(struct fake_model *f, const struct eng_batch *b, const struct eng_segment *s,
                           struct krn_choice *choices, uint64_t prefix)
{
    uint64_t seen = prefix;
    for (int32_t i = 0; i < s->rows; i++)
        seen = fake_chain_next(seen, f->tokens[s->row + i]);
    for (int32_t i = 0; i < s->n_wanted; i++) {
        const struct krn_select_row *w = &b->wanted[s->first_wanted + i];
        fake_choose(f, mix(seen, (uint64_t)w->position), w, &choices[s->first_wanted + i]);
    }
}

// ---- passes ---------------------------------------------------------------------------------------------------------

static uint64_t sum_of(const struct eng_batch *b)
{
    uint64_t h = mix((uint64_t)b->n_rows, (uint64_t)b->n_wanted);
    for (int32_t i = 0; i < b->n_rows; i++)
        h = mix(mix(h, (uint64_t)b->tokens[i]), (uint64_t)b->links[i]);
    for (int32_t i = 0; i < b->n_wanted; i++)
        h = mix(mix(h, (uint64_t)b->wanted[i].row), (uint64_t)b->wanted[i].position);
    for (int32_t i = 0; i < b->n_segments; i++)
        h = mix(mix(h, (uint64_t)b->segments[i].first_pos), (uint64_t)b->segments[i].slot);
    return h;
}

static void make_room(struct fake_model *f, struct fake_pass *p, const struct eng_batch *b)
{
    if (p->cap < b->max_rows) {
        p->cap = b->max_rows;
        free(p->choices);
        free(p->accepted);
        p->choices = calloc((size_t)p->cap, sizeof *p->choices);
        p->accepted = calloc((size_t)p->cap, sizeof *p->accepted);
    }
    if (f->cap_tokens < b->max_rows) {
        f->cap_tokens = b->max_rows;
        free(f->tokens);
        f->tokens = calloc((size_t)f->cap_tokens, sizeof *f->tokens);
    }
}

// Linked tokens are choices of the pass submitted last, whether or not it was waited for.
static void resolve_links(struct fake_model *f, const struct eng_batch *b, const struct fake_pass *before)
{
    int32_t n_links = 0;
    for (int32_t i = 0; i < b->n_rows; i++) {
        int32_t link = b->links[i];
        f->tokens[i] = b->tokens[i];
        if (link < 0)
            continue;
        n_links++;
        if (f->n_flying == 0 || link >= before->n_wanted)
            fault(f, "row %d is linked to choice %d of %d, %d passes under way", i, link, before->n_wanted,
                  f->n_flying);
        else
            f->tokens[i] = before->choices[link].token < 0 ? 0 : before->choices[link].token;
    }
    if (n_links != b->n_links)
        fault(f, "%d rows are linked, not %d", n_links, b->n_links);
    f->links += (uint64_t)n_links;
}

static struct krn_accepted accept_block(const struct fake_model *f, const struct krn_accept *a,
                                        const struct krn_choice *choices)
{
    for (int32_t i = 0;; i++) {
        int32_t token = choices[a->choice + i].token;
        if (token < 0)
            return (struct krn_accepted){0, -1};
        if (i + 1 == a->rows || f->tokens[a->row + i + 1] != token)
            return (struct krn_accepted){i + 1, token};
    }
}

static int fake_submit(void *ctx, struct eng_batch *b)
{
    struct fake_model *f = ctx;
    struct fake_pass *p = &f->flying[f->next_pass], *before = &f->flying[(f->next_pass + 1) % KRN_PASSES_AHEAD];
    f->steps++;
    if (f->step_us)
        usleep((useconds_t)f->step_us);
    if (f->fail_at_step && f->steps >= (uint64_t)f->fail_at_step)
        return KRN_EDEVICE;
    if (f->full_at_step && f->steps == (uint64_t)f->full_at_step)
        return KRN_ENOMEM;
    if (b->n_rows > b->max_rows || b->n_segments < 1)
        fault(f, "a batch of %d rows and %d segments", b->n_rows, b->n_segments);
    if (f->n_flying == KRN_PASSES_AHEAD || (f->n_flying && !f->async))
        fault(f, "%d passes are under way", f->n_flying);
    if ((uint64_t)b->n_segments > f->max_segments)
        f->max_segments = (uint64_t)b->n_segments;
    f->ahead += f->n_flying > 0;
    make_room(f, p, b);
    resolve_links(f, b, before);
    for (int32_t i = 0; i < b->n_segments; i++)
        write_rows(f, &b->segments[i]);
    for (int32_t i = 0; i < b->n_segments; i++) {
        const struct eng_segment *s = &b->segments[i];
        check_segment(f, b, s);
        check_own_rows(f, s);
        f->passes[s->kind]++;
        f->rows[s->kind] += (uint64_t)s->rows;
        uint64_t prefix = read_prefix(f, s);
        if (s->kind == ENG_PASS_DRAFT)
            choose_draft(f, b, s, p->choices, prefix);
        else if (s->kind == ENG_PASS_DENOISE)
            choose_denoise(f, b, s, p->choices, prefix);
        else
            choose_causal(f, b, s, p->choices, prefix);
        if (f->poison >= 0 && entry_at(f, s, 0)->token == f->poison)
            for (int32_t j = 0; j < s->n_wanted; j++)
                p->choices[s->first_wanted + j].token = -1;
    }
    for (int32_t i = 0; i < b->n_accepts; i++)
        p->accepted[i] = accept_block(f, &b->accepts[i], p->choices);
    // Whoever looks before the wait sees nonsense.
    memset(b->choices, 0x5a, (size_t)b->n_wanted * sizeof *b->choices);
    memset(b->accepted, 0x5a, (size_t)b->n_accepts * sizeof *b->accepted);
    p->batch = b;
    p->sum = sum_of(b);
    p->n_wanted = b->n_wanted;
    p->n_accepts = b->n_accepts;
    f->next_pass = (f->next_pass + 1) % KRN_PASSES_AHEAD;
    f->n_flying++;
    return 0;
}

static int fake_wait(void *ctx, struct eng_batch *b)
{
    struct fake_model *f = ctx;
    struct fake_pass *p = &f->flying[(f->next_pass + KRN_PASSES_AHEAD - f->n_flying) % KRN_PASSES_AHEAD];
    if (f->n_flying == 0 || p->batch != b || p->sum != sum_of(b)) {
        fault(f, "the batch that is waited for is not the oldest one under way as it was submitted");
        return KRN_EINVAL;
    }
    memcpy(b->choices, p->choices, (size_t)p->n_wanted * sizeof *b->choices);
    memcpy(b->accepted, p->accepted, (size_t)p->n_accepts * sizeof *b->accepted);
    f->n_flying--;
    return 0;
}

static const char *fake_error(void *ctx, int code)
{
    (void)ctx;
    return code == KRN_EDEVICE ? "the fake device fell off the bus" : eng_strerror(code);
}

static void fake_close(void *ctx)
{
    struct fake_model *f = ctx;
    free(f->kv);
    f->kv = NULL;
    free(f->tokens);
    for (int i = 0; i < KRN_PASSES_AHEAD; i++) {
        free(f->flying[i].choices);
        free(f->flying[i].accepted);
    }
}

struct eng_model fake_model_open(struct fake_model *f)
{
    f->kv = malloc((size_t)f->n_pages * (size_t)f->page_size * sizeof *f->kv);
    for (int32_t i = 0; i < f->n_pages * f->page_size; i++)
        f->kv[i] = (struct fake_entry){.position = -1, .owner = -1};
    return (struct eng_model){
        .submit = fake_submit,
        .wait = fake_wait,
        .error = fake_error,
        .close = fake_close,
        .async = f->async,
        .ctx = f,
        .n_vocab = f->n_vocab,
        .mask_id = f->mask_id,
        .block_adapter = f->block_adapter,
        .has_adapter = f->has_adapter,
    };
}
