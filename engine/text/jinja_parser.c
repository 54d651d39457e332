// 2 PARSE: statements of a template: tokens to a tree of blocks.
#include "text/jinja_inner.h"

#include "base/err.h"

#include <string.h>

static struct jinja_node *parse_statement(struct jinja_parser *p);

static _Noreturn void bad_tag(struct jinja_parser *p, const char *name)
{
    eng_jinja_fail(p->e, ENG_EFORMAT, "there is no tag '%.40s' here", name);
}

static void expect_kind(struct jinja_parser *p, enum jinja_token_kind kind, const char *what)
{
    struct jinja_token *t = eng_jinja_peek(p);
    if (t->kind != kind)
        eng_jinja_fail(p->e, ENG_EFORMAT, "expected %s, found '%.40s'", what,
                       t->kind == TOKEN_END ? "the end of the template" : t->text);
    p->at++;
}

static void end_tag(struct jinja_parser *p)
{
    expect_kind(p, TOKEN_BLOCK_END, "%}");
}

static const char *take_name(struct jinja_parser *p)
{
    struct jinja_token *t = eng_jinja_peek(p);
    expect_kind(p, TOKEN_NAME, "a name");
    return t->text;
}

// Nodes up to a tag whose name is one of ends (NULL-terminated), which is consumed and returned in *ret_end; with ends
// NULL up to the end of the template.
static struct jinja_node *parse_until(struct jinja_parser *p, const char *const *ends, const char **ret_end)
{
    struct jinja_node *block = eng_jinja_node(p, NODE_BLOCK), *n;
    int opened = block->line;
    eng_jinja_enter(p->e);
    for (;;) {
        struct jinja_token *t = eng_jinja_peek(p);
        p->at++;
        if (t->kind == TOKEN_END) {
            if (ends) {
                p->e->line = opened;
                eng_jinja_fail(p->e, ENG_EFORMAT, "a block has no %s", ends[0]);
            }
            break;
        }
        if (t->kind == TOKEN_DATA) {
            n = eng_jinja_node(p, NODE_DATA);
            n->value = eng_jinja_string(p->e, t->text, t->len, false);
        } else if (t->kind == TOKEN_PRINT_BEGIN) {
            n = eng_jinja_node(p, NODE_PRINT);
            n->a = eng_jinja_tuple(p, true);
            expect_kind(p, TOKEN_PRINT_END, "}}");
        } else { // TOKEN_BLOCK_BEGIN: nothing else stands between tags
            for (const char *const *end = ends; end && *end; end++) {
                if (eng_jinja_accept_name(p, *end)) {
                    *ret_end = *end;
                    eng_jinja_leave(p->e);
                    return block;
                }
            }
            n = parse_statement(p);
        }
        eng_jinja_add_item(p, block, n);
    }
    eng_jinja_leave(p->e);
    return block;
}

// The body of a block that has one end: from after its first tag to after its last.
static struct jinja_node *parse_body(struct jinja_parser *p, const char *end)
{
    const char *const ends[] = {end, NULL};
    const char *found;
    end_tag(p);
    struct jinja_node *n = parse_until(p, ends, &found);
    // {% endmacro name %} and the like
    if (eng_jinja_peek(p)->kind == TOKEN_NAME)
        p->at++;
    end_tag(p);
    return n;
}

static struct jinja_node *parse_if(struct jinja_parser *p)
{
    static const char *const ends[] = {"endif", "else", "elif", NULL};
    static const char *const last[] = {"endif", NULL};
    struct jinja_node *first = eng_jinja_node(p, NODE_IF), *n = first;
    const char *end;
    for (;;) {
        n->a = eng_jinja_tuple(p, true);
        end_tag(p);
        n->b = parse_until(p, ends, &end);
        if (strcmp(end, "elif"))
            break;
        n->c = eng_jinja_node(p, NODE_IF);
        n = n->c;
    }
    if (!strcmp(end, "else")) {
        end_tag(p);
        n->c = parse_until(p, last, &end);
    }
    end_tag(p);
    return first;
}

static struct jinja_node *parse_for(struct jinja_parser *p)
{
    static const char *const ends[] = {"endfor", "else", NULL};
    struct jinja_node *n = eng_jinja_node(p, NODE_FOR);
    const char *end;
    n->a = eng_jinja_target(p);
    if (!eng_jinja_accept_name(p, "in"))
        eng_jinja_fail(p->e, ENG_EFORMAT, "expected 'in' after the variable of a for");
    n->b = eng_jinja_tuple(p, false);
    if (eng_jinja_accept_name(p, "if"))
        n->c = eng_jinja_expression(p, true);
    if (eng_jinja_accept_name(p, "recursive"))
        eng_jinja_fail(p->e, ENG_EFORMAT, "recursive loops are not supported");
    end_tag(p);
    p->loops++;
    eng_jinja_add_item(p, n, parse_until(p, ends, &end));
    p->loops--;
    struct jinja_node *otherwise = NULL;
    if (!strcmp(end, "else")) {
        end_tag(p);
        otherwise = parse_until(p, ends, &end);
        if (!strcmp(end, "else"))
            bad_tag(p, "else");
    }
    end_tag(p);
    eng_jinja_add_item(p, n, otherwise);
    return n;
}

static struct jinja_node *parse_set(struct jinja_parser *p)
{
    struct jinja_node *n = eng_jinja_node(p, NODE_SET);
    n->a = eng_jinja_target(p);
    if (eng_jinja_accept(p, "=")) {
        n->b = eng_jinja_tuple(p, true);
        end_tag(p);
        return n;
    }
    if (n->a->kind == NODE_TUPLE)
        eng_jinja_fail(p->e, ENG_EFORMAT, "a block cannot be set to several names");
    n->kind = NODE_SET_BLOCK;
    while (eng_jinja_accept(p, "|"))
        n->c = eng_jinja_filter_name(p, n->c);
    n->b = parse_body(p, "endset");
    return n;
}

// Parameters "(a, b=1)" of a macro or call block, to names and defaults (NULL: none).
static void parse_parameters(struct jinja_parser *p, struct jinja_node *n)
{
    struct jinja_node list = {0};
    const char **names = NULL;
    size_t n_names = 0, cap = 0;
    bool defaults = false;
    eng_jinja_expect(p, "(");
    while (!eng_jinja_accept(p, ")")) {
        if (n_names) {
            eng_jinja_expect(p, ",");
            if (eng_jinja_accept(p, ")"))
                break;
        }
        const char *name = take_name(p);
        struct jinja_node *value = NULL;
        if (eng_jinja_accept(p, "="))
            value = eng_jinja_expression(p, true);
        if (!value && defaults)
            eng_jinja_fail(p->e, ENG_EFORMAT, "a parameter without a default follows one with a default");
        defaults = value;
        if (n_names == cap) {
            cap = cap ? 2 * cap : 8;
            const char **more = eng_jinja_alloc(p->e, cap * sizeof *more);
            if (n_names)
                memcpy(more, names, n_names * sizeof *more);
            names = more;
        }
        names[n_names++] = name;
        eng_jinja_add_item(p, &list, value);
    }
    n->names = names;
    n->n_named = n_names;
    n->items = list.items;
    n->n_items = list.n_items;
}

// Bodies of macros and call blocks are functions: a break in them leaves no loop around them.
static struct jinja_node *parse_function_body(struct jinja_parser *p, const char *end)
{
    int loops = p->loops;
    p->loops = 0;
    struct jinja_node *n = parse_body(p, end);
    p->loops = loops;
    return n;
}

static struct jinja_node *parse_macro(struct jinja_parser *p)
{
    struct jinja_node *n = eng_jinja_node(p, NODE_MACRO);
    n->name = take_name(p);
    parse_parameters(p, n);
    n->a = parse_function_body(p, "endmacro");
    return n;
}

static struct jinja_node *parse_call_block(struct jinja_parser *p)
{
    struct jinja_node *n = eng_jinja_node(p, NODE_CALL_BLOCK);
    if (eng_jinja_at(p, TOKEN_OPERATOR, "("))
        parse_parameters(p, n);
    n->name = "caller";
    n->b = eng_jinja_expression(p, true);
    if (n->b->kind != NODE_CALL)
        eng_jinja_fail(p->e, ENG_EFORMAT, "a call block needs a call");
    n->a = parse_function_body(p, "endcall");
    return n;
}

static struct jinja_node *parse_filter_block(struct jinja_parser *p)
{
    struct jinja_node *n = eng_jinja_node(p, NODE_FILTER_BLOCK);
    n->b = eng_jinja_filter_name(p, NULL);
    while (eng_jinja_accept(p, "|"))
        n->b = eng_jinja_filter_name(p, n->b);
    n->a = parse_body(p, "endfilter");
    return n;
}

static struct jinja_node *parse_with(struct jinja_parser *p)
{
    struct jinja_node *n = eng_jinja_node(p, NODE_WITH);
    while (eng_jinja_peek(p)->kind != TOKEN_BLOCK_END) {
        if (n->n_items)
            eng_jinja_expect(p, ",");
        struct jinja_node *name = eng_jinja_node(p, NODE_NAME);
        name->name = take_name(p);
        eng_jinja_expect(p, "=");
        eng_jinja_add_item(p, n, name);
        eng_jinja_add_item(p, n, eng_jinja_expression(p, true));
    }
    n->a = parse_body(p, "endwith");
    return n;
}

static struct jinja_node *parse_jump(struct jinja_parser *p, enum jinja_node_kind kind, const char *name)
{
    if (!p->loops)
        eng_jinja_fail(p->e, ENG_EFORMAT, "%s outside a loop", name);
    struct jinja_node *n = eng_jinja_node(p, kind);
    end_tag(p);
    return n;
}

static struct jinja_node *parse_statement(struct jinja_parser *p)
{
    const char *name = take_name(p);
    if (!strcmp(name, "if"))
        return parse_if(p);
    if (!strcmp(name, "for"))
        return parse_for(p);
    if (!strcmp(name, "set"))
        return parse_set(p);
    if (!strcmp(name, "macro"))
        return parse_macro(p);
    if (!strcmp(name, "call"))
        return parse_call_block(p);
    if (!strcmp(name, "filter"))
        return parse_filter_block(p);
    if (!strcmp(name, "with"))
        return parse_with(p);
    if (!strcmp(name, "generation")) // marks what the assistant says, for training; transparent here
        return parse_body(p, "endgeneration");
    if (!strcmp(name, "break"))
        return parse_jump(p, NODE_BREAK, name);
    if (!strcmp(name, "continue"))
        return parse_jump(p, NODE_CONTINUE, name);
    bad_tag(p, name);
}

struct jinja_node *eng_jinja_parse(struct jinja_env *e, struct jinja_tokens tokens)
{
    struct jinja_parser p = {.e = e, .tokens = tokens};
    return parse_until(&p, NULL, NULL);
}
