// Inner to jinja*.c: values, syntax tree, the environment of one compilation or rendering.
//
// Memory comes from one arena per compilation or rendering and is never freed singly. An error leaves through longjmp
// (as in Lua): eng_jinja_fail fills the message and jumps to the entry function in jinja.c, which frees the arena. So
// no function here holds anything but arena memory.
#pragma once

#include "base/arena.h"
#include "text/jinja.h"

#include <setjmp.h>
#include <stdbool.h>
#include <stdint.h>

// ---- environment ----------------------------------------------------------------------------------------------------

struct jinja_scope;
struct jinja_builder;

struct jinja_env {
    struct eng_arena *arena;
    size_t max_memory;
    jmp_buf jump;
    int code;
    char *err;
    size_t err_size;
    int line; // of what is being parsed or evaluated
    int depth;
    int64_t steps;
    struct jinja_scope *scope; // innermost
    struct jinja_builder *out; // where output goes now
};

_Noreturn void eng_jinja_fail(struct jinja_env *e, int code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
// Never NULL.
void *eng_jinja_alloc(struct jinja_env *e, size_t size);
char *eng_jinja_dup(struct jinja_env *e, const char *s, size_t len);
// Counts n steps of work; fails when there were too many.
void eng_jinja_steps(struct jinja_env *e, size_t n);
// Bound the recursion of evaluation and of nested values.
void eng_jinja_enter(struct jinja_env *e);
void eng_jinja_leave(struct jinja_env *e);

// ---- values ---------------------------------------------------------------------------------------------------------

enum jinja_type {
    JINJA_UNDEFINED, // name: what was looked up
    JINJA_NONE,
    JINJA_BOOL,
    JINJA_INT,
    JINJA_FLOAT,
    JINJA_STRING,
    JINJA_LIST,
    JINJA_TUPLE,
    JINJA_DICT,
    JINJA_NAMESPACE, // a dict whose attributes can be set
    JINJA_FUNCTION,
    JINJA_LOOP,
};

struct jinja_string {
    const char *data; // not NUL-terminated
    size_t len;
    bool from_input;            // of every byte, when marks is NULL
    const unsigned char *marks; // one byte each: 1 from input
};

struct jinja_value {
    enum jinja_type type;
    union {
        const char *name;
        bool b;
        int64_t i;
        double f;
        const struct jinja_string *s;
        struct jinja_list *list;
        struct jinja_dict *dict;
        struct jinja_function *function;
        struct jinja_loop *loop;
    };
};

struct jinja_list {
    struct jinja_value *items;
    size_t n, cap;
};

struct jinja_entry {
    struct jinja_value key, value;
};

struct jinja_dict { // in order of insertion
    struct jinja_entry *entries;
    size_t n, cap;
};

struct jinja_loop {
    const struct jinja_list *items;
    size_t at;
    struct jinja_list *changed; // what loop.changed() was last given
};

struct jinja_function {
    enum { FUNCTION_GLOBAL, FUNCTION_METHOD, FUNCTION_MACRO } kind;
    const char *name;
    struct jinja_value self;        // METHOD
    const struct jinja_node *macro; // MACRO: its parameters and body
    struct jinja_scope *closure;    // MACRO
};

struct jinja_named {
    const char *name;
    struct jinja_value value;
};

struct jinja_args {
    struct jinja_value *values;
    size_t n;
    struct jinja_named *named;
    size_t n_named;
    struct jinja_function *caller; // of a {% call %} block, else NULL
};

static inline struct jinja_value jinja_undefined(const char *name)
{
    return (struct jinja_value){.type = JINJA_UNDEFINED, .name = name};
}

static inline struct jinja_value jinja_none(void)
{
    return (struct jinja_value){.type = JINJA_NONE};
}

static inline struct jinja_value jinja_bool(bool b)
{
    return (struct jinja_value){.type = JINJA_BOOL, .b = b};
}

static inline struct jinja_value jinja_int(int64_t i)
{
    return (struct jinja_value){.type = JINJA_INT, .i = i};
}

static inline struct jinja_value jinja_float(double f)
{
    return (struct jinja_value){.type = JINJA_FLOAT, .f = f};
}

static inline bool jinja_is_list(struct jinja_value v)
{
    return v.type == JINJA_LIST || v.type == JINJA_TUPLE;
}

static inline bool jinja_is_dict(struct jinja_value v)
{
    return v.type == JINJA_DICT || v.type == JINJA_NAMESPACE;
}

// An int or a bool as Python counts it.
static inline bool jinja_get_int(struct jinja_value v, int64_t *ret)
{
    if (v.type != JINJA_INT && v.type != JINJA_BOOL)
        return false;
    *ret = v.type == JINJA_INT ? v.i : v.b;
    return true;
}

// jinja_value.c
const char *eng_jinja_type_name(struct jinja_value v); // Python's: "str", "dict", ...
struct jinja_value eng_jinja_list(struct jinja_env *e, enum jinja_type type, size_t cap);
void eng_jinja_push(struct jinja_env *e, struct jinja_list *list, struct jinja_value v);
struct jinja_value eng_jinja_dict(struct jinja_env *e, enum jinja_type type);
void eng_jinja_dict_set(struct jinja_env *e, struct jinja_dict *d, struct jinja_value key, struct jinja_value v);
bool eng_jinja_dict_get(struct jinja_env *e, const struct jinja_dict *d, struct jinja_value key,
                        struct jinja_value *ret);
bool eng_jinja_truth(struct jinja_value v);
bool eng_jinja_equal(struct jinja_env *e, struct jinja_value a, struct jinja_value b);
// < 0, 0, > 0; fails for types that have no order.
int eng_jinja_compare(struct jinja_env *e, struct jinja_value a, struct jinja_value b);
bool eng_jinja_contains(struct jinja_env *e, struct jinja_value container, struct jinja_value v);
// What a for loop runs over: a list's items, a dict's keys, a string's characters, nothing for undefined.
const struct jinja_list *eng_jinja_iterate(struct jinja_env *e, struct jinja_value v);
// Length as Python's len; fails for types without one.
int64_t eng_jinja_length(struct jinja_env *e, struct jinja_value v);
struct cJSON;
struct jinja_value eng_jinja_from_json(struct jinja_env *e, const struct cJSON *json, bool from_input);

// ---- strings --------------------------------------------------------------------------------------------------------

struct jinja_builder {
    char *data;
    unsigned char *marks;
    size_t len, cap;
    bool any_input, any_template;
    size_t max; // 0: only the memory is bounded
};

// jinja_string.c
struct jinja_value eng_jinja_string(struct jinja_env *e, const char *data, size_t len, bool from_input); // not copied
struct jinja_value eng_jinja_stringz(struct jinja_env *e, const char *text);                             // not copied
struct jinja_value eng_jinja_substring(struct jinja_env *e, const struct jinja_string *s, size_t begin, size_t end);
void eng_jinja_add(struct jinja_env *e, struct jinja_builder *b, const char *data, size_t len, bool from_input);
void eng_jinja_addz(struct jinja_env *e, struct jinja_builder *b, const char *text); // of the template
void eng_jinja_add_part(struct jinja_env *e, struct jinja_builder *b, const struct jinja_string *s, size_t begin,
                        size_t end);
void eng_jinja_add_string(struct jinja_env *e, struct jinja_builder *b, const struct jinja_string *s);
struct jinja_value eng_jinja_built(struct jinja_env *e, const struct jinja_builder *b);
bool eng_jinja_mark(const struct jinja_string *s, size_t i);
bool eng_jinja_is(const struct jinja_string *s, const char *text);
const char *eng_jinja_cstr(struct jinja_env *e, const struct jinja_string *s); // NUL-terminated copy
size_t eng_jinja_find(const struct jinja_string *s, const struct jinja_string *what, size_t from); // SIZE_MAX: absent
size_t eng_jinja_find_last(const struct jinja_string *s, const struct jinja_string *what, size_t end);
struct jinja_value eng_jinja_strip(struct jinja_env *e, const struct jinja_string *s, const struct jinja_string *chars,
                                   bool left, bool right); // chars NULL: white space
enum jinja_case { CASE_UPPER, CASE_LOWER, CASE_CAPITALIZE, CASE_TITLE, CASE_TITLE_FILTER };
struct jinja_value eng_jinja_case(struct jinja_env *e, const struct jinja_string *s, enum jinja_case how);
struct jinja_value eng_jinja_replace(struct jinja_env *e, const struct jinja_string *s, const struct jinja_string *from,
                                     const struct jinja_string *to, int64_t count); // count < 0: all
struct jinja_value eng_jinja_join(struct jinja_env *e, const struct jinja_list *items, const struct jinja_string *with);
// v[start:stop:step] of a string (by characters) or list; NULL bounds are open.
struct jinja_value eng_jinja_slice(struct jinja_env *e, struct jinja_value v, const int64_t *start, const int64_t *stop,
                                   int64_t step);

// jinja_print.c
struct jinja_value eng_jinja_text(struct jinja_env *e, struct jinja_value v); // Python's str()
struct jinja_json_options {
    int64_t indent; // < 0: one line
    const struct jinja_string *item_separator, *key_separator;
    bool sort_keys, ascii;
};
struct jinja_value eng_jinja_json(struct jinja_env *e, struct jinja_value v, const struct jinja_json_options *o);

// ---- tokens and syntax ----------------------------------------------------------------------------------------------

enum jinja_token_kind {
    TOKEN_END,
    TOKEN_DATA,
    TOKEN_BLOCK_BEGIN,
    TOKEN_BLOCK_END,
    TOKEN_PRINT_BEGIN,
    TOKEN_PRINT_END,
    TOKEN_NAME,
    TOKEN_STRING, // text is unescaped
    TOKEN_INT,
    TOKEN_FLOAT,
    TOKEN_OPERATOR, // text is the operator
};

struct jinja_token {
    enum jinja_token_kind kind;
    int line;
    const char *text; // NUL-terminated
    size_t len;
    int64_t i;
    double f;
};

struct jinja_tokens {
    struct jinja_token *data; // ends with TOKEN_END
    size_t n, cap;
};

enum jinja_node_kind {
    // expressions
    NODE_CONSTANT,    // value
    NODE_NAME,        // name
    NODE_LIST,        // items
    NODE_TUPLE,       // items
    NODE_DICT,        // items: key, value, key, value, ...
    NODE_ATTRIBUTE,   // a.name
    NODE_ITEM,        // a[b]
    NODE_SLICE,       // items: start, stop, step, each may be NULL; only as b of ITEM
    NODE_CALL,        // a(items, named)
    NODE_FILTER,      // a | filter(items, named); a is NULL for what a block has rendered
    NODE_TEST,        // a is test(items); name "not": negated
    NODE_NOT,         // a
    NODE_NEGATE,      // a
    NODE_PLUS,        // a
    NODE_AND,         // a, b
    NODE_OR,          // a, b
    NODE_BINARY,      // a op b
    NODE_COMPARE,     // a, then (op, operand) pairs: items are operands, ops their operators
    NODE_CONDITIONAL, // a if b else c; c may be NULL
    // statements
    NODE_BLOCK,        // items
    NODE_DATA,         // value
    NODE_PRINT,        // a
    NODE_IF,           // if a: b else: c; c may be NULL
    NODE_FOR,          // for a in b if c: items[0] else: items[1]; c and items[1] may be NULL
    NODE_SET,          // a = b
    NODE_SET_BLOCK,    // a = rendered b, through the filters c (NULL: none)
    NODE_MACRO,        // name(named, defaults in items): a
    NODE_CALL_BLOCK,   // b is the call, a the body, named its parameters
    NODE_FILTER_BLOCK, // a through the filters b
    NODE_WITH,         // targets and values alternate in items; a
    NODE_BREAK,
    NODE_CONTINUE,
};

enum jinja_operator {
    OP_ADD,
    OP_SUB,
    OP_MUL,
    OP_DIV,
    OP_FLOOR_DIV,
    OP_MOD,
    OP_POW,
    OP_CONCAT,
    OP_EQ,
    OP_NE,
    OP_LT,
    OP_LE,
    OP_GT,
    OP_GE,
    OP_IN,
    OP_NOT_IN,
};

typedef struct jinja_value (*jinja_filter_fn)(struct jinja_env *e, struct jinja_value v, const struct jinja_args *args);
typedef bool (*jinja_test_fn)(struct jinja_env *e, struct jinja_value v, const struct jinja_args *args);

struct jinja_node {
    enum jinja_node_kind kind;
    int line;
    enum jinja_operator op;
    const char *name;
    struct jinja_value value;
    struct jinja_node *a, *b, *c;
    struct jinja_node **items;
    size_t n_items;
    enum jinja_operator *ops;
    const char **names; // of the named arguments or parameters
    struct jinja_node **named;
    size_t n_named;
    jinja_filter_fn filter;
    jinja_test_fn test;
};

struct jinja_scope {
    struct jinja_scope *parent;
    struct jinja_named *vars;
    size_t n, cap;
};

// jinja_lexer.c: src is valid UTF-8.
struct jinja_tokens eng_jinja_lex(struct jinja_env *e, const char *src, size_t len);

// jinja_parser.c and jinja_expr.c
struct jinja_parser {
    struct jinja_env *e;
    struct jinja_tokens tokens;
    size_t at;
    int loops; // enclosing for loops, for break and continue
};
struct jinja_node *eng_jinja_parse(struct jinja_env *e, struct jinja_tokens tokens);
struct jinja_token *eng_jinja_peek(struct jinja_parser *p); // also sets the environment's line
bool eng_jinja_accept(struct jinja_parser *p, const char *op);
void eng_jinja_expect(struct jinja_parser *p, const char *op);
bool eng_jinja_accept_name(struct jinja_parser *p, const char *name);
bool eng_jinja_at(struct jinja_parser *p, enum jinja_token_kind kind, const char *text);
struct jinja_node *eng_jinja_node(struct jinja_parser *p, enum jinja_node_kind kind);
void eng_jinja_add_item(struct jinja_parser *p, struct jinja_node *n, struct jinja_node *item);
struct jinja_node *eng_jinja_expression(struct jinja_parser *p, bool conditional);
struct jinja_node *eng_jinja_tuple(struct jinja_parser *p, bool conditional);
struct jinja_node *eng_jinja_postfix(struct jinja_parser *p, struct jinja_node *n);
struct jinja_node *eng_jinja_filters(struct jinja_parser *p, struct jinja_node *n);     // | name(...) and is name
struct jinja_node *eng_jinja_filter_name(struct jinja_parser *p, struct jinja_node *n); // name(...)
struct jinja_node *eng_jinja_target(struct jinja_parser *p);                            // what a for or set assigns to

// ---- evaluation -----------------------------------------------------------------------------------------------------

// jinja_eval.c
struct jinja_value eng_jinja_eval(struct jinja_env *e, const struct jinja_node *n);
struct jinja_value eng_jinja_operate(struct jinja_env *e, enum jinja_operator op, struct jinja_value a,
                                     struct jinja_value b);
struct jinja_value eng_jinja_attribute(struct jinja_env *e, struct jinja_value v, const char *name);
struct jinja_value eng_jinja_item(struct jinja_env *e, struct jinja_value v, struct jinja_value key);
struct jinja_value eng_jinja_call(struct jinja_env *e, struct jinja_value f, const struct jinja_args *args);
struct jinja_args eng_jinja_args(struct jinja_env *e, const struct jinja_node *n); // of a call, filter or test
struct jinja_value eng_jinja_apply(struct jinja_env *e, const struct jinja_node *filters, struct jinja_value input);

// jinja_exec.c
enum jinja_flow { FLOW_NORMAL, FLOW_BREAK, FLOW_CONTINUE };
enum jinja_flow eng_jinja_exec(struct jinja_env *e, const struct jinja_node *n);
struct jinja_value eng_jinja_call_macro(struct jinja_env *e, const struct jinja_function *f,
                                        const struct jinja_args *args);
void eng_jinja_set(struct jinja_env *e, const char *name, struct jinja_value v); // in the innermost scope
void eng_jinja_push_scope(struct jinja_env *e, struct jinja_scope *parent);

// jinja_filters.c, jinja_filters_list.c, jinja_tests.c, jinja_methods.c, jinja_globals.c
jinja_filter_fn eng_jinja_find_filter(const char *name); // NULL: unknown
jinja_filter_fn eng_jinja_find_list_filter(const char *name);
jinja_test_fn eng_jinja_find_test(const char *name);
bool eng_jinja_has_method(struct jinja_value v, const char *name);
struct jinja_value eng_jinja_call_method(struct jinja_env *e, struct jinja_value self, const char *name,
                                         const struct jinja_args *args);
bool eng_jinja_has_global(const char *name);
struct jinja_value eng_jinja_call_global(struct jinja_env *e, const char *name, const struct jinja_args *args);
// Binds args to n parameter names; out[i] is undefined for those not given. Fails for others.
void eng_jinja_bind(struct jinja_env *e, const char *function, const struct jinja_args *args, const char *const *names,
                    size_t n, struct jinja_value *out);
// v as a string or integer for a function; fails with the function's name.
const struct jinja_string *eng_jinja_want_string(struct jinja_env *e, const char *function, struct jinja_value v);
int64_t eng_jinja_want_int(struct jinja_env *e, const char *function, struct jinja_value v, int64_t otherwise);
