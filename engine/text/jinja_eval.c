// 2 PARSE: evaluates expressions of a template.
#include "text/jinja_inner.h"

#include "base/err.h"

#include <math.h>
#include <string.h>

static _Noreturn void undefined_error(struct jinja_env *e, struct jinja_value v)
{
    eng_jinja_fail(e, ENG_EINVAL, "'%.80s' is undefined", v.name);
}

// ---- names, attributes, items ---------------------------------------------------------------------------------------

static struct jinja_value new_function(struct jinja_env *e, int kind, const char *name, struct jinja_value self)
{
    struct jinja_value v = {.type = JINJA_FUNCTION};
    v.function = eng_jinja_alloc(e, sizeof *v.function);
    *v.function = (struct jinja_function){.kind = kind, .name = name, .self = self};
    return v;
}

static struct jinja_value look_up(struct jinja_env *e, const char *name)
{
    for (const struct jinja_scope *s = e->scope; s; s = s->parent)
        for (size_t i = 0; i < s->n; i++)
            if (!strcmp(s->vars[i].name, name))
                return s->vars[i].value;
    if (eng_jinja_has_global(name))
        return new_function(e, FUNCTION_GLOBAL, name, jinja_none());
    return jinja_undefined(name);
}

static struct jinja_value loop_attribute(struct jinja_env *e, struct jinja_value v, const char *name)
{
    const struct jinja_loop *l = v.loop;
    int64_t at = (int64_t)l->at, n = (int64_t)l->items->n;
    if (!strcmp(name, "index"))
        return jinja_int(at + 1);
    if (!strcmp(name, "index0"))
        return jinja_int(at);
    if (!strcmp(name, "revindex"))
        return jinja_int(n - at);
    if (!strcmp(name, "revindex0"))
        return jinja_int(n - at - 1);
    if (!strcmp(name, "first"))
        return jinja_bool(at == 0);
    if (!strcmp(name, "last"))
        return jinja_bool(at == n - 1);
    if (!strcmp(name, "length"))
        return jinja_int(n);
    if (!strcmp(name, "depth"))
        return jinja_int(1); // it counts recursion, which is not supported
    if (!strcmp(name, "depth0"))
        return jinja_int(0);
    if (!strcmp(name, "previtem"))
        return at > 0 ? l->items->items[at - 1] : jinja_undefined("loop.previtem");
    if (!strcmp(name, "nextitem"))
        return at + 1 < n ? l->items->items[at + 1] : jinja_undefined("loop.nextitem");
    if (!strcmp(name, "cycle") || !strcmp(name, "changed"))
        return new_function(e, FUNCTION_METHOD, name, v);
    return jinja_undefined(name);
}

struct jinja_value eng_jinja_attribute(struct jinja_env *e, struct jinja_value v, const char *name)
{
    struct jinja_value found;
    switch (v.type) {
    case JINJA_UNDEFINED:
        undefined_error(e, v);
    case JINJA_LOOP:
        return loop_attribute(e, v, name);
    case JINJA_NAMESPACE:
        if (eng_jinja_dict_get(e, v.dict, eng_jinja_stringz(e, name), &found))
            return found;
        return jinja_undefined(name);
    default:
        break;
    }
    // As in Jinja an attribute of the object (d.items) goes before the key.
    if (eng_jinja_has_method(v, name))
        return new_function(e, FUNCTION_METHOD, name, v);
    if (v.type == JINJA_DICT && eng_jinja_dict_get(e, v.dict, eng_jinja_stringz(e, name), &found))
        return found;
    return jinja_undefined(name);
}

struct jinja_value eng_jinja_item(struct jinja_env *e, struct jinja_value v, struct jinja_value key)
{
    struct jinja_value found;
    int64_t i;
    if (v.type == JINJA_UNDEFINED)
        undefined_error(e, v);
    if (v.type == JINJA_DICT && key.type <= JINJA_TUPLE && key.type != JINJA_LIST &&
        eng_jinja_dict_get(e, v.dict, key, &found))
        return found;
    if ((jinja_is_list(v) || v.type == JINJA_STRING) && jinja_get_int(key, &i)) {
        int64_t n = eng_jinja_length(e, v);
        i = i < 0 ? i + n : i;
        if (i < 0 || i >= n)
            return jinja_undefined("list item");
        if (jinja_is_list(v))
            return v.list->items[i];
        int64_t end = i + 1;
        return eng_jinja_slice(e, v, &i, &end, 1);
    }
    // And a key that is missing may still be an attribute.
    if (key.type == JINJA_STRING)
        return eng_jinja_attribute(e, v, eng_jinja_cstr(e, key.s));
    return jinja_undefined("item");
}

static struct jinja_value eval_slice(struct jinja_env *e, struct jinja_value v, const struct jinja_node *slice)
{
    int64_t bounds[3] = {0, 0, 1};
    const int64_t *given[3] = {NULL, NULL, NULL};
    if (v.type == JINJA_UNDEFINED)
        undefined_error(e, v);
    for (int i = 0; i < 3; i++) {
        if (!slice->items[i])
            continue;
        struct jinja_value bound = eng_jinja_eval(e, slice->items[i]);
        if (bound.type == JINJA_NONE)
            continue;
        if (!jinja_get_int(bound, &bounds[i]))
            eng_jinja_fail(e, ENG_EINVAL, "slice indices must be integers, not %s", eng_jinja_type_name(bound));
        given[i] = &bounds[i];
    }
    return eng_jinja_slice(e, v, given[0], given[1], bounds[2]);
}

// ---- calls ----------------------------------------------------------------------------------------------------------

struct jinja_args eng_jinja_args(struct jinja_env *e, const struct jinja_node *n)
{
    struct jinja_args args = {.n = n->n_items, .n_named = n->n_named};
    args.values = eng_jinja_alloc(e, args.n * sizeof *args.values);
    args.named = eng_jinja_alloc(e, args.n_named * sizeof *args.named);
    for (size_t i = 0; i < args.n; i++)
        args.values[i] = eng_jinja_eval(e, n->items[i]);
    for (size_t i = 0; i < args.n_named; i++)
        args.named[i] = (struct jinja_named){n->names[i], eng_jinja_eval(e, n->named[i])};
    return args;
}

struct jinja_value eng_jinja_call(struct jinja_env *e, struct jinja_value f, const struct jinja_args *args)
{
    if (f.type == JINJA_UNDEFINED)
        undefined_error(e, f);
    if (f.type != JINJA_FUNCTION)
        eng_jinja_fail(e, ENG_EINVAL, "'%s' object is not callable", eng_jinja_type_name(f));
    switch (f.function->kind) {
    case FUNCTION_MACRO:
        return eng_jinja_call_macro(e, f.function, args);
    case FUNCTION_METHOD:
        return eng_jinja_call_method(e, f.function->self, f.function->name, args);
    default:
        return eng_jinja_call_global(e, f.function->name, args);
    }
}

// filters: a chain whose innermost input is NULL. NULL: no filter.
struct jinja_value eng_jinja_apply(struct jinja_env *e, const struct jinja_node *filters, struct jinja_value input)
{
    if (!filters)
        return input;
    input = eng_jinja_apply(e, filters->a, input);
    struct jinja_args args = eng_jinja_args(e, filters);
    return filters->filter(e, input, &args);
}

// ---- operators ------------------------------------------------------------------------------------------------------

static _Noreturn void bad_operands(struct jinja_env *e, const char *op, struct jinja_value a, struct jinja_value b)
{
    if (a.type == JINJA_UNDEFINED)
        undefined_error(e, a);
    if (b.type == JINJA_UNDEFINED)
        undefined_error(e, b);
    eng_jinja_fail(e, ENG_EINVAL, "unsupported operand types for %s: %s and %s", op, eng_jinja_type_name(a),
                   eng_jinja_type_name(b));
}

static struct jinja_value concatenate(struct jinja_env *e, const struct jinja_string *a, const struct jinja_string *b)
{
    struct jinja_builder out = {0};
    eng_jinja_add_string(e, &out, a);
    eng_jinja_add_string(e, &out, b);
    return eng_jinja_built(e, &out);
}

static struct jinja_value add_lists(struct jinja_env *e, struct jinja_value a, struct jinja_value b)
{
    struct jinja_value out = eng_jinja_list(e, a.type, a.list->n + b.list->n);
    eng_jinja_steps(e, a.list->n + b.list->n);
    for (size_t i = 0; i < a.list->n; i++)
        eng_jinja_push(e, out.list, a.list->items[i]);
    for (size_t i = 0; i < b.list->n; i++)
        eng_jinja_push(e, out.list, b.list->items[i]);
    return out;
}

static struct jinja_value repeat(struct jinja_env *e, struct jinja_value v, int64_t times)
{
    struct jinja_builder b = {0};
    struct jinja_value list = eng_jinja_list(e, v.type == JINJA_TUPLE ? JINJA_TUPLE : JINJA_LIST, 0);
    for (int64_t i = 0; i < times; i++) {
        eng_jinja_steps(e, 1);
        if (v.type == JINJA_STRING) {
            eng_jinja_add_string(e, &b, v.s);
        } else {
            eng_jinja_steps(e, v.list->n);
            for (size_t k = 0; k < v.list->n; k++)
                eng_jinja_push(e, list.list, v.list->items[k]);
        }
    }
    return v.type == JINJA_STRING ? eng_jinja_built(e, &b) : list;
}

static struct jinja_value operate_floats(struct jinja_env *e, enum jinja_operator op, double x, double y)
{
    if (y == 0 && (op == OP_DIV || op == OP_FLOOR_DIV || op == OP_MOD))
        eng_jinja_fail(e, ENG_EINVAL, "division by zero");
    if (op == OP_POW && x == 0 && y < 0)
        eng_jinja_fail(e, ENG_EINVAL, "zero cannot be raised to a negative power");
    switch (op) {
    case OP_ADD:
        return jinja_float(x + y);
    case OP_SUB:
        return jinja_float(x - y);
    case OP_MUL:
        return jinja_float(x * y);
    case OP_DIV:
        return jinja_float(x / y);
    case OP_FLOOR_DIV:
        return jinja_float(floor(x / y));
    case OP_MOD: {
        double r = fmod(x, y);
        return jinja_float(r != 0 && (r < 0) != (y < 0) ? r + y : r);
    }
    default:
        return jinja_float(pow(x, y));
    }
}

static struct jinja_value power(struct jinja_env *e, int64_t x, int64_t y)
{
    if (y < 0)
        return operate_floats(e, OP_POW, (double)x, (double)y);
    int64_t result = 1;
    while (y) {
        if (y & 1 && __builtin_mul_overflow(result, x, &result))
            eng_jinja_fail(e, ENG_ELIMIT, "an integer is too large");
        y >>= 1;
        if (y && __builtin_mul_overflow(x, x, &x))
            eng_jinja_fail(e, ENG_ELIMIT, "an integer is too large");
    }
    return jinja_int(result);
}

static struct jinja_value operate_ints(struct jinja_env *e, enum jinja_operator op, int64_t x, int64_t y)
{
    int64_t result = 0;
    bool overflow = false;
    if (y == 0 && (op == OP_FLOOR_DIV || op == OP_MOD))
        eng_jinja_fail(e, ENG_EINVAL, "division by zero");
    if (y == -1 && op == OP_MOD)
        return jinja_int(0);
    switch (op) {
    case OP_ADD:
        overflow = __builtin_add_overflow(x, y, &result);
        break;
    case OP_SUB:
        overflow = __builtin_sub_overflow(x, y, &result);
        break;
    case OP_MUL:
        overflow = __builtin_mul_overflow(x, y, &result);
        break;
    case OP_FLOOR_DIV:
        if (y == -1)
            overflow = __builtin_sub_overflow((int64_t)0, x, &result);
        else
            result = x / y - (x % y != 0 && (x < 0) != (y < 0));
        break;
    case OP_MOD:
        result = x % y;
        result += result != 0 && (result < 0) != (y < 0) ? y : 0;
        break;
    case OP_POW:
        return power(e, x, y);
    default:
        return operate_floats(e, op, (double)x, (double)y);
    }
    if (overflow)
        eng_jinja_fail(e, ENG_ELIMIT, "an integer is too large");
    return jinja_int(result);
}

static bool is_nan(struct jinja_value v)
{
    return v.type == JINJA_FLOAT && isnan(v.f);
}

struct jinja_value eng_jinja_operate(struct jinja_env *e, enum jinja_operator op, struct jinja_value a,
                                     struct jinja_value b)
{
    static const char *const texts[] = {"+", "-", "*", "/", "//", "%", "**", "~"};
    int64_t i = 0, j = 0;
    bool a_int = jinja_get_int(a, &i), b_int = jinja_get_int(b, &j);
    // NaN has no order: neither <= nor >= anything.
    if (op >= OP_LT && op <= OP_GE && (is_nan(a) || is_nan(b)) && (a_int || a.type == JINJA_FLOAT) &&
        (b_int || b.type == JINJA_FLOAT))
        return jinja_bool(false);
    switch (op) {
    case OP_CONCAT:
        return concatenate(e, eng_jinja_text(e, a).s, eng_jinja_text(e, b).s);
    case OP_EQ:
        return jinja_bool(eng_jinja_equal(e, a, b));
    case OP_NE:
        return jinja_bool(!eng_jinja_equal(e, a, b));
    case OP_LT:
        return jinja_bool(eng_jinja_compare(e, a, b) < 0);
    case OP_LE:
        return jinja_bool(eng_jinja_compare(e, a, b) <= 0);
    case OP_GT:
        return jinja_bool(eng_jinja_compare(e, a, b) > 0);
    case OP_GE:
        return jinja_bool(eng_jinja_compare(e, a, b) >= 0);
    case OP_IN:
        return jinja_bool(eng_jinja_contains(e, b, a));
    case OP_NOT_IN:
        return jinja_bool(!eng_jinja_contains(e, b, a));
    default:
        break;
    }
    if (a_int && b_int)
        return operate_ints(e, op, i, j);
    if ((a_int || a.type == JINJA_FLOAT) && (b_int || b.type == JINJA_FLOAT))
        return operate_floats(e, op, a_int ? (double)i : a.f, b_int ? (double)j : b.f);
    if (op == OP_ADD && a.type == JINJA_STRING && b.type == JINJA_STRING)
        return concatenate(e, a.s, b.s);
    if (op == OP_ADD && jinja_is_list(a) && a.type == b.type)
        return add_lists(e, a, b);
    if (op == OP_MUL && b_int && (a.type == JINJA_STRING || jinja_is_list(a)))
        return repeat(e, a, j);
    if (op == OP_MUL && a_int && (b.type == JINJA_STRING || jinja_is_list(b)))
        return repeat(e, b, i);
    bad_operands(e, texts[op], a, b);
}

static struct jinja_value negate(struct jinja_env *e, struct jinja_value v)
{
    if (v.type == JINJA_FLOAT)
        return jinja_float(-v.f);
    return eng_jinja_operate(e, OP_SUB, jinja_int(0), v);
}

static struct jinja_value compare_chain(struct jinja_env *e, const struct jinja_node *n)
{
    struct jinja_value left = eng_jinja_eval(e, n->a), result = jinja_bool(true);
    for (size_t i = 0; i < n->n_items && eng_jinja_truth(result); i++) {
        struct jinja_value right = eng_jinja_eval(e, n->items[i]);
        result = eng_jinja_operate(e, n->ops[i], left, right);
        left = right;
    }
    return result;
}

// ---- all expressions ------------------------------------------------------------------------------------------------

static struct jinja_value eval_list(struct jinja_env *e, const struct jinja_node *n)
{
    struct jinja_value v = eng_jinja_list(e, n->kind == NODE_TUPLE ? JINJA_TUPLE : JINJA_LIST, n->n_items);
    for (size_t i = 0; i < n->n_items; i++)
        eng_jinja_push(e, v.list, eng_jinja_eval(e, n->items[i]));
    return v;
}

static struct jinja_value eval_dict(struct jinja_env *e, const struct jinja_node *n)
{
    struct jinja_value v = eng_jinja_dict(e, JINJA_DICT);
    for (size_t i = 0; i + 1 < n->n_items; i += 2) {
        struct jinja_value key = eng_jinja_eval(e, n->items[i]);
        eng_jinja_dict_set(e, v.dict, key, eng_jinja_eval(e, n->items[i + 1]));
    }
    return v;
}

static struct jinja_value eval_call(struct jinja_env *e, const struct jinja_node *n)
{
    struct jinja_value f = eng_jinja_eval(e, n->a);
    struct jinja_args args = eng_jinja_args(e, n);
    e->line = n->line;
    return eng_jinja_call(e, f, &args);
}

static struct jinja_value eval_inner(struct jinja_env *e, const struct jinja_node *n)
{
    struct jinja_value v;
    struct jinja_args args;
    switch (n->kind) {
    case NODE_CONSTANT:
        return n->value;
    case NODE_NAME:
        return look_up(e, n->name);
    case NODE_LIST:
    case NODE_TUPLE:
        return eval_list(e, n);
    case NODE_DICT:
        return eval_dict(e, n);
    case NODE_ATTRIBUTE:
        return eng_jinja_attribute(e, eng_jinja_eval(e, n->a), n->name);
    case NODE_ITEM:
        v = eng_jinja_eval(e, n->a);
        return n->b->kind == NODE_SLICE ? eval_slice(e, v, n->b) : eng_jinja_item(e, v, eng_jinja_eval(e, n->b));
    case NODE_CALL:
        return eval_call(e, n);
    case NODE_FILTER:
        v = eng_jinja_eval(e, n->a);
        args = eng_jinja_args(e, n);
        e->line = n->line;
        return n->filter(e, v, &args);
    case NODE_TEST:
        v = eng_jinja_eval(e, n->a);
        args = eng_jinja_args(e, n);
        return jinja_bool(n->test(e, v, &args));
    case NODE_NOT:
        return jinja_bool(!eng_jinja_truth(eng_jinja_eval(e, n->a)));
    case NODE_NEGATE:
        return negate(e, eng_jinja_eval(e, n->a));
    case NODE_PLUS:
        return eng_jinja_operate(e, OP_ADD, jinja_int(0), eng_jinja_eval(e, n->a));
    case NODE_AND:
        v = eng_jinja_eval(e, n->a);
        return eng_jinja_truth(v) ? eng_jinja_eval(e, n->b) : v;
    case NODE_OR:
        v = eng_jinja_eval(e, n->a);
        return eng_jinja_truth(v) ? v : eng_jinja_eval(e, n->b);
    case NODE_BINARY:
        v = eng_jinja_eval(e, n->a);
        return eng_jinja_operate(e, n->op, v, eng_jinja_eval(e, n->b));
    case NODE_COMPARE:
        return compare_chain(e, n);
    case NODE_CONDITIONAL:
        if (eng_jinja_truth(eng_jinja_eval(e, n->b)))
            return eng_jinja_eval(e, n->a);
        return n->c ? eng_jinja_eval(e, n->c) : jinja_undefined("the inline if");
    default:
        eng_jinja_fail(e, ENG_EINVAL, "not an expression");
    }
}

struct jinja_value eng_jinja_eval(struct jinja_env *e, const struct jinja_node *n)
{
    eng_jinja_enter(e);
    e->line = n->line;
    struct jinja_value v = eval_inner(e, n);
    eng_jinja_leave(e);
    return v;
}
