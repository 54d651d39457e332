// 2 PARSE: executes statements of a template. A scope is opened by a loop's pass, a macro, with, and blocks that are
// captured; an if has none, so what it sets stays.
#include "text/jinja_inner.h"

#include "base/err.h"

#include <string.h>

// ---- scopes ---------------------------------------------------------------------------------------------------------

void eng_jinja_push_scope(struct jinja_env *e, struct jinja_scope *parent)
{
    struct jinja_scope *s = eng_jinja_alloc(e, sizeof *s);
    *s = (struct jinja_scope){.parent = parent};
    e->scope = s;
}

void eng_jinja_set(struct jinja_env *e, const char *name, struct jinja_value v)
{
    struct jinja_scope *s = e->scope;
    for (size_t i = 0; i < s->n; i++) {
        if (!strcmp(s->vars[i].name, name)) {
            s->vars[i].value = v;
            return;
        }
    }
    if (s->n == s->cap) {
        size_t cap = s->cap ? 2 * s->cap : 4;
        struct jinja_named *vars = eng_jinja_alloc(e, cap * sizeof *vars);
        if (s->n)
            memcpy(vars, s->vars, s->n * sizeof *vars);
        s->vars = vars;
        s->cap = cap;
    }
    s->vars[s->n++] = (struct jinja_named){name, v};
}

static void assign(struct jinja_env *e, const struct jinja_node *target, struct jinja_value v)
{
    if (target->kind == NODE_NAME) {
        eng_jinja_set(e, target->name, v);
    } else if (target->kind == NODE_ATTRIBUTE) {
        struct jinja_value object = eng_jinja_eval(e, target->a);
        if (object.type != JINJA_NAMESPACE)
            eng_jinja_fail(e, ENG_EINVAL, "cannot set the attribute '%.40s' of anything but a namespace", target->name);
        eng_jinja_dict_set(e, object.dict, eng_jinja_stringz(e, target->name), v);
    } else {
        const struct jinja_list *parts = eng_jinja_iterate(e, v);
        if (parts->n != target->n_items)
            eng_jinja_fail(e, ENG_EINVAL, "cannot unpack %zu values into %zu names", parts->n, target->n_items);
        for (size_t i = 0; i < parts->n; i++)
            assign(e, target->items[i], parts->items[i]);
    }
}

// ---- captured output ------------------------------------------------------------------------------------------------

// What n prints, in a scope of its own below parent.
static struct jinja_value capture(struct jinja_env *e, const struct jinja_node *n, struct jinja_scope *parent)
{
    struct jinja_builder b = {.max = ENG_JINJA_MAX_OUTPUT}, *out = e->out;
    struct jinja_scope *scope = e->scope;
    e->out = &b;
    if (parent)
        eng_jinja_push_scope(e, parent);
    eng_jinja_exec(e, n);
    e->scope = scope;
    e->out = out;
    return eng_jinja_built(e, &b);
}

struct jinja_value eng_jinja_call_macro(struct jinja_env *e, const struct jinja_function *f,
                                        const struct jinja_args *args)
{
    const struct jinja_node *m = f->macro;
    struct jinja_scope *scope = e->scope;
    eng_jinja_enter(e);
    eng_jinja_push_scope(e, f->closure);
    if (args->n > m->n_named)
        eng_jinja_fail(e, ENG_EINVAL, "macro '%.40s' takes not more than %zu arguments", f->name, m->n_named);
    for (size_t i = 0; i < args->n_named; i++) {
        size_t k = 0;
        while (k < m->n_named && strcmp(m->names[k], args->named[i].name))
            k++;
        if (k == m->n_named || k < args->n)
            eng_jinja_fail(e, ENG_EINVAL, "macro '%.40s' cannot take the argument '%.40s'", f->name,
                           args->named[i].name);
    }
    if (args->caller)
        eng_jinja_set(e, "caller", (struct jinja_value){.type = JINJA_FUNCTION, .function = args->caller});
    for (size_t i = 0; i < m->n_named; i++) {
        struct jinja_value v = jinja_undefined(m->names[i]);
        bool given = i < args->n;
        if (given)
            v = args->values[i];
        for (size_t k = 0; k < args->n_named && !given; k++) {
            given = !strcmp(args->named[k].name, m->names[i]);
            if (given)
                v = args->named[k].value;
        }
        if (!given && m->items[i])
            v = eng_jinja_eval(e, m->items[i]);
        eng_jinja_set(e, m->names[i], v);
    }
    struct jinja_value result = capture(e, m->a, NULL);
    e->scope = scope;
    eng_jinja_leave(e);
    return result;
}

static struct jinja_value new_macro(struct jinja_env *e, const struct jinja_node *n)
{
    struct jinja_value v = {.type = JINJA_FUNCTION};
    v.function = eng_jinja_alloc(e, sizeof *v.function);
    *v.function = (struct jinja_function){.kind = FUNCTION_MACRO, .name = n->name, .macro = n, .closure = e->scope};
    return v;
}

static void print(struct jinja_env *e, struct jinja_value v)
{
    eng_jinja_add_string(e, e->out, eng_jinja_text(e, v).s);
}

static void exec_call_block(struct jinja_env *e, const struct jinja_node *n)
{
    struct jinja_value f = eng_jinja_eval(e, n->b->a);
    struct jinja_args args = eng_jinja_args(e, n->b);
    args.caller = new_macro(e, n).function;
    print(e, eng_jinja_call(e, f, &args));
}

// ---- loops ----------------------------------------------------------------------------------------------------------

// The items for which the loop's own if holds.
static const struct jinja_list *filtered(struct jinja_env *e, const struct jinja_node *n, const struct jinja_list *all)
{
    struct jinja_value kept = eng_jinja_list(e, JINJA_LIST, 0);
    struct jinja_scope *scope = e->scope;
    for (size_t i = 0; i < all->n; i++) {
        eng_jinja_push_scope(e, scope);
        assign(e, n->a, all->items[i]);
        if (eng_jinja_truth(eng_jinja_eval(e, n->c)))
            eng_jinja_push(e, kept.list, all->items[i]);
    }
    e->scope = scope;
    return kept.list;
}

static enum jinja_flow exec_for(struct jinja_env *e, const struct jinja_node *n)
{
    const struct jinja_list *items = eng_jinja_iterate(e, eng_jinja_eval(e, n->b));
    if (n->c)
        items = filtered(e, n, items);
    struct jinja_scope *scope = e->scope;
    struct jinja_value loop = {.type = JINJA_LOOP};
    loop.loop = eng_jinja_alloc(e, sizeof *loop.loop);
    *loop.loop = (struct jinja_loop){.items = items};
    enum jinja_flow flow = FLOW_NORMAL;
    for (size_t i = 0; i < items->n && flow != FLOW_BREAK; i++) {
        loop.loop->at = i;
        eng_jinja_push_scope(e, scope);
        eng_jinja_set(e, "loop", loop);
        assign(e, n->a, items->items[i]);
        flow = eng_jinja_exec(e, n->items[0]);
    }
    e->scope = scope;
    if (!items->n && n->items[1])
        return eng_jinja_exec(e, n->items[1]);
    return FLOW_NORMAL;
}

// ---- all statements -------------------------------------------------------------------------------------------------

static enum jinja_flow exec_with(struct jinja_env *e, const struct jinja_node *n)
{
    struct jinja_scope *scope = e->scope;
    eng_jinja_push_scope(e, scope);
    struct jinja_scope *inner = e->scope;
    for (size_t i = 0; i + 1 < n->n_items; i += 2) {
        e->scope = scope; // the values do not see each other
        struct jinja_value v = eng_jinja_eval(e, n->items[i + 1]);
        e->scope = inner;
        eng_jinja_set(e, n->items[i]->name, v);
    }
    e->scope = inner;
    enum jinja_flow flow = eng_jinja_exec(e, n->a);
    e->scope = scope;
    return flow;
}

static enum jinja_flow exec_inner(struct jinja_env *e, const struct jinja_node *n)
{
    enum jinja_flow flow = FLOW_NORMAL;
    switch (n->kind) {
    case NODE_BLOCK:
        for (size_t i = 0; i < n->n_items && flow == FLOW_NORMAL; i++)
            flow = eng_jinja_exec(e, n->items[i]);
        return flow;
    case NODE_DATA:
        eng_jinja_add_string(e, e->out, n->value.s);
        return flow;
    case NODE_PRINT:
        print(e, eng_jinja_eval(e, n->a));
        return flow;
    case NODE_IF:
        for (; n && n->kind == NODE_IF; n = n->c)
            if (eng_jinja_truth(eng_jinja_eval(e, n->a)))
                return eng_jinja_exec(e, n->b);
        return n ? eng_jinja_exec(e, n) : flow;
    case NODE_FOR:
        return exec_for(e, n);
    case NODE_SET:
        assign(e, n->a, eng_jinja_eval(e, n->b));
        return flow;
    case NODE_SET_BLOCK:
        assign(e, n->a, eng_jinja_apply(e, n->c, capture(e, n->b, e->scope)));
        return flow;
    case NODE_MACRO:
        eng_jinja_set(e, n->name, new_macro(e, n));
        return flow;
    case NODE_CALL_BLOCK:
        exec_call_block(e, n);
        return flow;
    case NODE_FILTER_BLOCK:
        print(e, eng_jinja_apply(e, n->b, capture(e, n->a, e->scope)));
        return flow;
    case NODE_WITH:
        return exec_with(e, n);
    case NODE_BREAK:
        return FLOW_BREAK;
    case NODE_CONTINUE:
        return FLOW_CONTINUE;
    default:
        eng_jinja_fail(e, ENG_EINVAL, "not a statement");
    }
}

enum jinja_flow eng_jinja_exec(struct jinja_env *e, const struct jinja_node *n)
{
    eng_jinja_enter(e);
    e->line = n->line;
    enum jinja_flow flow = exec_inner(e, n);
    eng_jinja_leave(e);
    return flow;
}
