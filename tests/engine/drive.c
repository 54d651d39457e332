// The driver of one sequence.
#include "drive.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

void drive_open(struct drive *d, struct fake_model fake, const struct eng_params *params, const int32_t *prompt,
                size_t n_prompt, int32_t context)
{
    char err[200] = "";
    *d = (struct drive){.fake = fake};
    d->fake.page_size = 4;
    d->fake.n_pages = 64;
    d->model = fake_model_open(&d->fake);
    d->limits = (struct eng_request_limits){
        .n_vocab = fake.n_vocab,
        .max_context = context ? context : 200,
        .eos_ids = &d->fake.end_id,
        .n_eos = fake.end_id >= 0,
        .modes = 15,
        .mode = ENG_MODE_AUTO,
        .block_length = 8,
        .threshold = 0.9f,
    };
    for (int32_t i = 0; i < 64; i++)
        d->pages[i] = i;
    d->env =
        (struct eng_decode_env){fake.mask_id, fake.has_adapter, fake.has_adapter && fake.block_adapter, &d->sampler};
    assert_int_equal(eng_batch_init(&d->batch, 64, 4), 0);
    if (eng_request_make(&d->limits, params, prompt, n_prompt, &d->r, NULL, err, sizeof err))
        fail_msg("%s", err);
    assert_int_equal(eng_seq_start(&d->r->seq), 0);
    d->r->seq.slot = 0;
    eng_seq_set_mode(&d->r->seq, d->r->mode, d->r->params.block_length, "as the test wants");
}

enum eng_pass_kind drive_step(struct drive *d)
{
    struct eng_seq *q = &d->r->seq;
    eng_batch_reset(&d->batch);
    eng_sampler_reset(&d->sampler);
    const struct eng_decode *mode = eng_decode_of(q->mode);
    bool prompt = eng_seq_in_prompt(q);
    int32_t end = 0;
    if (prompt) {
        assert_int_equal(eng_decode_prompt_plan(q, &d->env, &d->batch, eng_decode_prompt_rows(q, 64)), 0);
    } else {
        int32_t rows = mode->rows(q, &end);
        assert_int_equal(mode->plan(q, &d->env, &d->batch), 0);
        assert_int_equal(d->batch.n_rows, rows);
        assert_int_equal(d->batch.segments[0].first_pos + rows, end);
    }
    assert_int_equal(d->batch.n_segments, 1);
    d->batch.segments[0].pages = d->pages;
    assert_int_equal(eng_model_forward(&d->model, &d->batch), 0);
    d->run = (struct eng_run){0};
    if (prompt)
        eng_decode_prompt_commit(q, &d->batch.segments[0], d->batch.choices, &d->run);
    else
        mode->commit(q, &d->batch, &d->batch.segments[0], &d->run);
    assert_false(d->run.failed);
    assert_int_equal(eng_seq_append(q, &d->run, &d->builder, &d->taken), 0);
    return d->batch.segments[0].kind;
}

void drive_to_end(struct drive *d)
{
    for (int i = 0; d->r->seq.finish == ENG_FINISH_NONE; i++) {
        drive_step(d);
        assert_true(i < 2000);
    }
}

void drive_close(struct drive *d)
{
    eng_request_free(d->r);
    eng_batch_done(&d->batch);
    eng_sampler_reset(&d->sampler);
    eng_event_builder_done(&d->builder);
    d->model.close(d->model.ctx);
    assert_string_equal(d->fake.fault, "");
}
