// The acceptance of drafts on the device against its definition in kernels.h.
#include "cuda_rig.h"

static struct krn_dev_accepted accept_plainly(const struct krn_dev_accept *block, const int32_t *tokens,
                                              const struct krn_dev_choice *choices)
{
    struct krn_dev_accepted ret = {0, -1};
    for (int32_t i = 0; i < block->rows; i++) {
        int32_t token = choices[block->choice + i].token;
        if (token < 0)
            return (struct krn_dev_accepted){0, -1};
        ret = (struct krn_dev_accepted){i + 1, token};
        if (i < block->rows - 1 && token != tokens[block->row + i + 1])
            break;
    }
    return ret;
}

void check_accept(struct cuda_rig *rig)
{
    enum { N = 40, PLACES = 2600, BUCKET = 47 };
    struct random random = {.state = 4};
    static int32_t tokens[PLACES];
    static struct krn_dev_choice choices[PLACES];
    static struct {
        struct krn_dev_pass header;
        struct krn_dev_accept accepts[N];
    } block;
    struct krn_dev_accept *accepts = block.accepts;
    struct krn_dev_accepted accepted[BUCKET];
    int32_t place = 0;
    for (int i = 0; i < N; i++) {
        int32_t rows = i < 10 ? 1 + i : 1 + random_below(&random, 70);
        int32_t breaks = random_below(&random, 2) ? rows : random_below(&random, rows);
        accepts[i] = (struct krn_dev_accept){place, rows, PLACES - place - rows};
        for (int32_t j = 0; j < rows; j++) {
            // The row behind a block holds what the block's last row chose: it must not count.
            tokens[place + j] = j == 0 ? i : random_below(&random, 1000);
            if (j > 0)
                choices[PLACES - place - rows + j - 1].token = tokens[place + j] + (j - 1 >= breaks);
        }
        choices[PLACES - place - 1].token = i + 1;
        if (i % 5 == 4) // failed, at a place that may be needed or not
            choices[PLACES - place - rows + random_below(&random, rows)].token = -1;
        place += rows;
    }
    if (place > PLACES)
        abort();
    block.header = (struct krn_dev_pass){.n_accepts = N, .accepts = (uint32_t)((char *)accepts - (char *)&block)};
    struct krn_accept_args args = {
        .pass = rig_upload(rig, &block, sizeof block),
        .row_tokens = rig_upload(rig, tokens, sizeof tokens),
        .choices = rig_upload(rig, choices, sizeof choices),
        .accepted = rig_alloc(rig, sizeof accepted),
        .accepts = BUCKET,
    };
    rig_must(rig, krn_cuda_accept(rig->how, &args), "accept");
    rig_read(rig, accepted, args.accepted, sizeof accepted);
    bool ok = true;
    for (int i = 0; i < N; i++) {
        struct krn_dev_accepted expected = accept_plainly(&accepts[i], tokens, choices);
        ok = ok && accepted[i].n == expected.n && accepted[i].seed == expected.seed;
    }
    for (int i = N; i < BUCKET; i++)
        ok = ok && accepted[i].n == -1;
    rig_free(rig, (void *)args.pass);
    rig_free(rig, (void *)args.row_tokens);
    rig_free(rig, (void *)args.choices);
    rig_free(rig, args.accepted);
    rig_report(rig, ok, "accept: the leading choices that are the next row's tokens, and one more");
}
