// 4 ROUTE  The present rule of `auto`: blocks while all of them together fit auto_rows, one row each beyond that.
//
// A pass over few rows costs about what a pass over one row costs, because it is bound by reading the weights. Up to
// that point speculation is nearly free; beyond it every rejected row takes time from somebody else.
#include "router.h"

#include <stdio.h>

#include "request.h"

static bool allowed(const struct eng_router *router, const struct eng_request *r, enum eng_mode mode)
{
    const struct eng_params *p = &r->params;
    if (!(router->modes & 1u << mode))
        return false;
    if (mode == ENG_MODE_DIFFUSION && p->lossless)
        return false;
    return router->auto_modes & 1u << mode || (mode == ENG_MODE_DIFFUSION && p->allow_diffusion);
}

// The block mode that auto would use, or AR when there is none.
static enum eng_mode block_mode(const struct eng_router *router, const struct eng_request *r)
{
    if (allowed(router, r, ENG_MODE_SELF_SPECULATION))
        return ENG_MODE_SELF_SPECULATION;
    return allowed(router, r, ENG_MODE_DIFFUSION) ? ENG_MODE_DIFFUSION : ENG_MODE_AR;
}

static bool fits(const struct eng_router *router, const struct eng_load *load)
{
    return load->block_rows <= router->auto_rows;
}

enum eng_mode eng_router_mode(const struct eng_router *router, const struct eng_request *r, const struct eng_load *load)
{
    if (r->mode != ENG_MODE_AUTO)
        return r->mode;
    // Without AR among the allowed modes the block mode stays, however many there are.
    bool block = fits(router, load) || !allowed(router, r, ENG_MODE_AR);
    return block ? block_mode(router, r) : ENG_MODE_AR;
}

void eng_router_decide(const struct eng_router *router, const struct eng_request *r, const struct eng_load *load,
                       struct eng_route *ret)
{
    ret->mode = eng_router_mode(router, r, load);
    ret->block_length = r->params.block_length;
    const char *plural = load->active == 1 ? "" : "s";
    if (r->mode != ENG_MODE_AUTO)
        snprintf(ret->reason, sizeof ret->reason, "%s was asked for by the %s", eng_mode_name(r->mode),
                 r->params.mode == ENG_MODE_AUTO ? "configuration" : "request");
    else if (block_mode(router, r) == ENG_MODE_AR)
        snprintf(ret->reason, sizeof ret->reason, "%d active request%s: auto may choose only ar here", load->active,
                 plural);
    else if (fits(router, load))
        snprintf(ret->reason, sizeof ret->reason, "%d active request%s: blocks of %d rows in all fit auto-rows %d",
                 load->active, plural, load->block_rows, router->auto_rows);
    else
        snprintf(ret->reason, sizeof ret->reason, "%d active request%s: blocks of %d rows in all exceed auto-rows %d%s",
                 load->active, plural, load->block_rows, router->auto_rows,
                 ret->mode == ENG_MODE_AR ? "" : ", but auto may not choose ar");
}
