// 2 PARSE: expressions of a template, by recursive descent in the precedence of jinja2's parser:
// if-else, or, and, not, comparisons, + -, ~, * / // %, **, sign, then . [] () | is.
#include "text/jinja_inner.h"

#include "base/err.h"

#include <string.h>

static struct jinja_node *parse_or(struct jinja_parser *p);
static struct jinja_node *parse_unary(struct jinja_parser *p, bool with_filters);

// ---- tokens ---------------------------------------------------------------------------------------------------------

struct jinja_token *eng_jinja_peek(struct jinja_parser *p)
{
    struct jinja_token *t = &p->tokens.data[p->at];
    p->e->line = t->line;
    return t;
}

bool eng_jinja_at(struct jinja_parser *p, enum jinja_token_kind kind, const char *text)
{
    struct jinja_token *t = eng_jinja_peek(p);
    return t->kind == kind && !strcmp(t->text, text);
}

bool eng_jinja_accept(struct jinja_parser *p, const char *op)
{
    bool found = eng_jinja_at(p, TOKEN_OPERATOR, op);
    p->at += found;
    return found;
}

bool eng_jinja_accept_name(struct jinja_parser *p, const char *name)
{
    bool found = eng_jinja_at(p, TOKEN_NAME, name);
    p->at += found;
    return found;
}

static _Noreturn void unexpected(struct jinja_parser *p, const char *wanted)
{
    struct jinja_token *t = eng_jinja_peek(p);
    if (t->kind == TOKEN_END)
        eng_jinja_fail(p->e, ENG_EFORMAT, "expected %s, found the end of the template", wanted);
    eng_jinja_fail(p->e, ENG_EFORMAT, "expected %s, found '%.40s'", wanted, t->text);
}

void eng_jinja_expect(struct jinja_parser *p, const char *op)
{
    if (!eng_jinja_accept(p, op)) {
        char wanted[8] = "'";
        strncat(wanted, op, 4);
        strcat(wanted, "'");
        unexpected(p, wanted);
    }
}

// ---- nodes ----------------------------------------------------------------------------------------------------------

struct jinja_node *eng_jinja_node(struct jinja_parser *p, enum jinja_node_kind kind)
{
    struct jinja_node *n = eng_jinja_alloc(p->e, sizeof *n);
    memset(n, 0, sizeof *n);
    n->kind = kind;
    n->line = eng_jinja_peek(p)->line;
    return n;
}

static struct jinja_node *node1(struct jinja_parser *p, enum jinja_node_kind kind, struct jinja_node *a)
{
    struct jinja_node *n = eng_jinja_node(p, kind);
    n->a = a;
    return n;
}

static struct jinja_node *node2(struct jinja_parser *p, enum jinja_node_kind kind, struct jinja_node *a,
                                struct jinja_node *b)
{
    struct jinja_node *n = node1(p, kind, a);
    n->b = b;
    return n;
}

// Lists grow by doubling at powers of two, so no capacity is stored.
static void *grow(struct jinja_parser *p, void *old, size_t n, size_t size)
{
    if (n & (n - 1))
        return old;
    void *data = eng_jinja_alloc(p->e, (n ? 2 * n : 1) * size);
    if (n)
        memcpy(data, old, n * size);
    return data;
}

void eng_jinja_add_item(struct jinja_parser *p, struct jinja_node *n, struct jinja_node *item)
{
    n->items = grow(p, n->items, n->n_items, sizeof *n->items);
    n->items[n->n_items++] = item;
}

static struct jinja_node *constant(struct jinja_parser *p, struct jinja_value v)
{
    struct jinja_node *n = eng_jinja_node(p, NODE_CONSTANT);
    n->value = v;
    return n;
}

// ---- primaries ------------------------------------------------------------------------------------------------------

static struct jinja_node *parse_list(struct jinja_parser *p)
{
    struct jinja_node *n = eng_jinja_node(p, NODE_LIST);
    while (!eng_jinja_accept(p, "]")) {
        if (n->n_items) {
            eng_jinja_expect(p, ",");
            if (eng_jinja_accept(p, "]"))
                break;
        }
        eng_jinja_add_item(p, n, eng_jinja_expression(p, true));
    }
    return n;
}

static struct jinja_node *parse_dict(struct jinja_parser *p)
{
    struct jinja_node *n = eng_jinja_node(p, NODE_DICT);
    while (!eng_jinja_accept(p, "}")) {
        if (n->n_items) {
            eng_jinja_expect(p, ",");
            if (eng_jinja_accept(p, "}"))
                break;
        }
        eng_jinja_add_item(p, n, eng_jinja_expression(p, true));
        eng_jinja_expect(p, ":");
        eng_jinja_add_item(p, n, eng_jinja_expression(p, true));
    }
    return n;
}

static struct jinja_node *parse_strings(struct jinja_parser *p)
{
    struct jinja_builder b = {0};
    while (eng_jinja_peek(p)->kind == TOKEN_STRING) {
        struct jinja_token *t = eng_jinja_peek(p);
        eng_jinja_add(p->e, &b, t->text, t->len, false);
        p->at++;
    }
    return constant(p, eng_jinja_built(p->e, &b));
}

static struct jinja_node *parse_name(struct jinja_parser *p)
{
    struct jinja_token *t = eng_jinja_peek(p);
    p->at++;
    if (!strcmp(t->text, "true") || !strcmp(t->text, "True"))
        return constant(p, jinja_bool(true));
    if (!strcmp(t->text, "false") || !strcmp(t->text, "False"))
        return constant(p, jinja_bool(false));
    if (!strcmp(t->text, "none") || !strcmp(t->text, "None"))
        return constant(p, jinja_none());
    struct jinja_node *n = eng_jinja_node(p, NODE_NAME);
    n->name = t->text;
    return n;
}

static struct jinja_node *parse_primary(struct jinja_parser *p)
{
    struct jinja_token *t = eng_jinja_peek(p);
    switch (t->kind) {
    case TOKEN_NAME:
        return parse_name(p);
    case TOKEN_STRING:
        return parse_strings(p);
    case TOKEN_INT:
        p->at++;
        return constant(p, jinja_int(t->i));
    case TOKEN_FLOAT:
        p->at++;
        return constant(p, jinja_float(t->f));
    default:
        break;
    }
    if (eng_jinja_accept(p, "(")) {
        if (eng_jinja_accept(p, ")"))
            return eng_jinja_node(p, NODE_TUPLE);
        struct jinja_node *n = eng_jinja_tuple(p, true);
        eng_jinja_expect(p, ")");
        return n;
    }
    if (eng_jinja_accept(p, "["))
        return parse_list(p);
    if (eng_jinja_accept(p, "{"))
        return parse_dict(p);
    unexpected(p, "an expression");
}

static bool ends_tuple(struct jinja_parser *p)
{
    struct jinja_token *t = eng_jinja_peek(p);
    return t->kind == TOKEN_BLOCK_END || t->kind == TOKEN_PRINT_END || t->kind == TOKEN_END ||
           eng_jinja_at(p, TOKEN_OPERATOR, ")") || eng_jinja_at(p, TOKEN_OPERATOR, "]") ||
           eng_jinja_at(p, TOKEN_OPERATOR, "=") || eng_jinja_at(p, TOKEN_NAME, "in");
}

struct jinja_node *eng_jinja_tuple(struct jinja_parser *p, bool conditional)
{
    struct jinja_node *first = eng_jinja_expression(p, conditional);
    if (!eng_jinja_at(p, TOKEN_OPERATOR, ","))
        return first;
    struct jinja_node *n = eng_jinja_node(p, NODE_TUPLE);
    eng_jinja_add_item(p, n, first);
    while (eng_jinja_accept(p, ",") && !ends_tuple(p))
        eng_jinja_add_item(p, n, eng_jinja_expression(p, conditional));
    return n;
}

// ---- postfix --------------------------------------------------------------------------------------------------------

// After "(": positional, then named arguments, and ")".
static void parse_arguments(struct jinja_parser *p, struct jinja_node *n)
{
    for (bool first = true; !eng_jinja_accept(p, ")"); first = false) {
        if (!first) {
            eng_jinja_expect(p, ",");
            if (eng_jinja_accept(p, ")"))
                return;
        }
        if (eng_jinja_at(p, TOKEN_OPERATOR, "*") || eng_jinja_at(p, TOKEN_OPERATOR, "**"))
            eng_jinja_fail(p->e, ENG_EFORMAT, "arguments with * are not supported");
        struct jinja_token *t = eng_jinja_peek(p), *next = t + (t->kind != TOKEN_END);
        if (t->kind == TOKEN_NAME && next->kind == TOKEN_OPERATOR && !strcmp(next->text, "=")) {
            p->at += 2;
            n->names = grow(p, n->names, n->n_named, sizeof *n->names);
            n->named = grow(p, n->named, n->n_named, sizeof *n->named);
            n->names[n->n_named] = t->text;
            n->named[n->n_named++] = eng_jinja_expression(p, true);
        } else if (n->n_named) {
            eng_jinja_fail(p->e, ENG_EFORMAT, "a positional argument follows a named one");
        } else {
            eng_jinja_add_item(p, n, eng_jinja_expression(p, true));
        }
    }
}

// After "[": an index or a slice, and "]".
static struct jinja_node *parse_subscript(struct jinja_parser *p)
{
    struct jinja_node *parts[3] = {NULL, NULL, NULL};
    int n_colons = 0;
    while (!eng_jinja_at(p, TOKEN_OPERATOR, "]")) {
        if (eng_jinja_accept(p, ":")) {
            if (++n_colons > 2)
                unexpected(p, "']'");
        } else if (!parts[n_colons]) {
            parts[n_colons] = n_colons ? eng_jinja_expression(p, true) : eng_jinja_tuple(p, true);
        } else {
            break;
        }
    }
    eng_jinja_expect(p, "]");
    if (!n_colons) {
        if (!parts[0])
            eng_jinja_fail(p->e, ENG_EFORMAT, "expected an index in []");
        return parts[0];
    }
    struct jinja_node *n = eng_jinja_node(p, NODE_SLICE);
    for (int i = 0; i < 3; i++)
        eng_jinja_add_item(p, n, parts[i]);
    return n;
}

static struct jinja_node *parse_call(struct jinja_parser *p, struct jinja_node *callee)
{
    struct jinja_node *n = node1(p, NODE_CALL, callee);
    parse_arguments(p, n);
    return n;
}

struct jinja_node *eng_jinja_postfix(struct jinja_parser *p, struct jinja_node *n)
{
    for (;;) {
        if (eng_jinja_accept(p, ".")) {
            struct jinja_token *t = eng_jinja_peek(p);
            p->at++;
            if (t->kind == TOKEN_INT) {
                n = node2(p, NODE_ITEM, n, constant(p, jinja_int(t->i)));
            } else if (t->kind == TOKEN_NAME) {
                n = node1(p, NODE_ATTRIBUTE, n);
                n->name = t->text;
            } else {
                p->at--;
                unexpected(p, "a name");
            }
        } else if (eng_jinja_accept(p, "[")) {
            n = node1(p, NODE_ITEM, n);
            n->b = parse_subscript(p);
        } else if (eng_jinja_accept(p, "(")) {
            n = parse_call(p, n);
        } else {
            return n;
        }
    }
}

struct jinja_node *eng_jinja_filter_name(struct jinja_parser *p, struct jinja_node *input)
{
    struct jinja_node *n = node1(p, NODE_FILTER, input);
    struct jinja_token *t = eng_jinja_peek(p);
    if (t->kind != TOKEN_NAME)
        unexpected(p, "the name of a filter");
    n->name = t->text;
    n->filter = eng_jinja_find_filter(t->text);
    if (!n->filter)
        eng_jinja_fail(p->e, ENG_EFORMAT, "there is no filter '%.40s'", t->text);
    p->at++;
    if (eng_jinja_accept(p, "("))
        parse_arguments(p, n);
    return n;
}

// What may follow a test's name as its argument without parentheses.
static bool starts_argument(struct jinja_parser *p)
{
    struct jinja_token *t = eng_jinja_peek(p);
    if (t->kind == TOKEN_NAME)
        return strcmp(t->text, "else") && strcmp(t->text, "or") && strcmp(t->text, "and") && strcmp(t->text, "if") &&
               strcmp(t->text, "is") && strcmp(t->text, "in") && strcmp(t->text, "not");
    return t->kind == TOKEN_STRING || t->kind == TOKEN_INT || t->kind == TOKEN_FLOAT ||
           eng_jinja_at(p, TOKEN_OPERATOR, "[") || eng_jinja_at(p, TOKEN_OPERATOR, "{");
}

static struct jinja_node *parse_test(struct jinja_parser *p, struct jinja_node *input)
{
    struct jinja_node *n = node1(p, NODE_TEST, input);
    bool negated = eng_jinja_accept_name(p, "not");
    struct jinja_token *t = eng_jinja_peek(p);
    if (t->kind != TOKEN_NAME)
        unexpected(p, "the name of a test");
    n->name = t->text;
    n->test = eng_jinja_find_test(t->text);
    if (!n->test)
        eng_jinja_fail(p->e, ENG_EFORMAT, "there is no test '%.40s'", t->text);
    p->at++;
    if (eng_jinja_accept(p, "("))
        parse_arguments(p, n);
    else if (starts_argument(p))
        eng_jinja_add_item(p, n, eng_jinja_postfix(p, parse_primary(p)));
    return negated ? node1(p, NODE_NOT, n) : n;
}

struct jinja_node *eng_jinja_filters(struct jinja_parser *p, struct jinja_node *n)
{
    for (;;) {
        if (eng_jinja_accept(p, "|"))
            n = eng_jinja_filter_name(p, n);
        else if (eng_jinja_accept_name(p, "is"))
            n = parse_test(p, n);
        else if (eng_jinja_accept(p, "("))
            n = parse_call(p, n);
        else
            return n;
    }
}

// ---- operators ------------------------------------------------------------------------------------------------------

static struct jinja_node *parse_unary(struct jinja_parser *p, bool with_filters)
{
    struct jinja_node *n;
    eng_jinja_enter(p->e);
    if (eng_jinja_accept(p, "-"))
        n = node1(p, NODE_NEGATE, parse_unary(p, false));
    else if (eng_jinja_accept(p, "+"))
        n = node1(p, NODE_PLUS, parse_unary(p, false));
    else
        n = parse_primary(p);
    n = eng_jinja_postfix(p, n);
    if (with_filters)
        n = eng_jinja_filters(p, n);
    eng_jinja_leave(p->e);
    return n;
}

static const struct level {
    const char *text;
    enum jinja_operator op;
    int level;
} operators[] = {
    {"+", OP_ADD, 0}, {"-", OP_SUB, 0},        {"~", OP_CONCAT, 1}, {"*", OP_MUL, 2},
    {"/", OP_DIV, 2}, {"//", OP_FLOOR_DIV, 2}, {"%", OP_MOD, 2},    {"**", OP_POW, 3},
};

// All left-associative; level 0 binds least.
static struct jinja_node *parse_binary(struct jinja_parser *p, int level)
{
    if (level == 4)
        return parse_unary(p, true);
    struct jinja_node *n = parse_binary(p, level + 1);
    for (;;) {
        const struct level *found = NULL;
        for (size_t i = 0; i < sizeof operators / sizeof *operators && !found; i++)
            if (operators[i].level == level && eng_jinja_accept(p, operators[i].text))
                found = &operators[i];
        if (!found)
            return n;
        n = node1(p, NODE_BINARY, n);
        n->op = found->op;
        n->b = parse_binary(p, level + 1);
    }
}

static bool accept_comparison(struct jinja_parser *p, enum jinja_operator *ret)
{
    static const struct {
        const char *text;
        enum jinja_operator op;
    } comparisons[] = {{"==", OP_EQ}, {"!=", OP_NE}, {"<", OP_LT}, {"<=", OP_LE}, {">", OP_GT}, {">=", OP_GE}};
    for (size_t i = 0; i < sizeof comparisons / sizeof *comparisons; i++) {
        if (eng_jinja_accept(p, comparisons[i].text)) {
            *ret = comparisons[i].op;
            return true;
        }
    }
    if (eng_jinja_accept_name(p, "in")) {
        *ret = OP_IN;
        return true;
    }
    struct jinja_token *t = eng_jinja_peek(p);
    if (eng_jinja_at(p, TOKEN_NAME, "not") && t[1].kind == TOKEN_NAME && !strcmp(t[1].text, "in")) {
        p->at += 2;
        *ret = OP_NOT_IN;
        return true;
    }
    return false;
}

static struct jinja_node *parse_compare(struct jinja_parser *p)
{
    struct jinja_node *first = parse_binary(p, 0), *n = NULL;
    enum jinja_operator op;
    while (accept_comparison(p, &op)) {
        if (!n)
            n = node1(p, NODE_COMPARE, first);
        n->ops = grow(p, n->ops, n->n_items, sizeof *n->ops);
        n->ops[n->n_items] = op;
        eng_jinja_add_item(p, n, parse_binary(p, 0));
    }
    return n ? n : first;
}

static struct jinja_node *parse_not(struct jinja_parser *p)
{
    if (!eng_jinja_accept_name(p, "not"))
        return parse_compare(p);
    eng_jinja_enter(p->e);
    struct jinja_node *n = node1(p, NODE_NOT, parse_not(p));
    eng_jinja_leave(p->e);
    return n;
}

static struct jinja_node *parse_and(struct jinja_parser *p)
{
    struct jinja_node *n = parse_not(p);
    while (eng_jinja_accept_name(p, "and")) {
        n = node1(p, NODE_AND, n);
        n->b = parse_not(p);
    }
    return n;
}

static struct jinja_node *parse_or(struct jinja_parser *p)
{
    struct jinja_node *n = parse_and(p);
    while (eng_jinja_accept_name(p, "or")) {
        n = node1(p, NODE_OR, n);
        n->b = parse_and(p);
    }
    return n;
}

struct jinja_node *eng_jinja_expression(struct jinja_parser *p, bool conditional)
{
    eng_jinja_enter(p->e);
    struct jinja_node *n = parse_or(p);
    while (conditional && eng_jinja_accept_name(p, "if")) {
        n = node1(p, NODE_CONDITIONAL, n);
        n->b = parse_or(p);
        if (eng_jinja_accept_name(p, "else"))
            n->c = eng_jinja_expression(p, true);
    }
    eng_jinja_leave(p->e);
    return n;
}

struct jinja_node *eng_jinja_target(struct jinja_parser *p)
{
    struct jinja_node *tuple = NULL, *n;
    do {
        bool nested = eng_jinja_accept(p, "(");
        if (nested) {
            eng_jinja_enter(p->e);
            n = eng_jinja_target(p);
            eng_jinja_leave(p->e);
            eng_jinja_expect(p, ")");
        } else {
            if (tuple && ends_tuple(p))
                break; // a comma at the end
            if (eng_jinja_peek(p)->kind != TOKEN_NAME)
                unexpected(p, "a name");
            n = parse_name(p);
            if (n->kind != NODE_NAME)
                eng_jinja_fail(p->e, ENG_EFORMAT, "cannot assign to a constant");
            if (eng_jinja_accept(p, ".")) {
                if (eng_jinja_peek(p)->kind != TOKEN_NAME)
                    unexpected(p, "a name");
                n = node1(p, NODE_ATTRIBUTE, n);
                n->name = eng_jinja_peek(p)->text;
                p->at++;
            }
        }
        if (!tuple && !eng_jinja_at(p, TOKEN_OPERATOR, ","))
            return n;
        if (!tuple)
            tuple = eng_jinja_node(p, NODE_TUPLE);
        eng_jinja_add_item(p, tuple, n);
    } while (eng_jinja_accept(p, ","));
    return tuple;
}
