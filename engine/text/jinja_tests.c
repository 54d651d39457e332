// 2 PARSE: tests of a template: x is defined, x is string, x is divisibleby 3, ...
#include "text/jinja_inner.h"

#include "base/err.h"

#include <string.h>

#define TEST(name) static bool name(struct jinja_env *e, struct jinja_value v, const struct jinja_args *args)

// The one argument that some tests take.
static struct jinja_value argument(struct jinja_env *e, const char *test, const struct jinja_args *args)
{
    if (args->n != 1 || args->n_named)
        eng_jinja_fail(e, ENG_EINVAL, "the test '%s' needs one argument", test);
    return args->values[0];
}

static void no_argument(struct jinja_env *e, const struct jinja_args *args)
{
    if (args->n || args->n_named)
        eng_jinja_fail(e, ENG_EINVAL, "this test takes no argument");
}

// Tests of the value's kind alone.
#define KIND(name, condition) \
    TEST(name)                \
    {                         \
        no_argument(e, args); \
        return (condition);   \
    }
KIND(test_defined, v.type != JINJA_UNDEFINED)
KIND(test_undefined, v.type == JINJA_UNDEFINED)
KIND(test_none, v.type == JINJA_NONE)
KIND(test_string, v.type == JINJA_STRING)
KIND(test_mapping, v.type == JINJA_DICT)
KIND(test_boolean, v.type == JINJA_BOOL)
KIND(test_true, v.type == JINJA_BOOL && v.b)
KIND(test_false, v.type == JINJA_BOOL && !v.b)
KIND(test_integer, v.type == JINJA_INT)
KIND(test_float, v.type == JINJA_FLOAT)
KIND(test_number, v.type == JINJA_INT || v.type == JINJA_FLOAT || v.type == JINJA_BOOL)
// Python's protocols: undefined has them too.
KIND(test_callable, v.type == JINJA_FUNCTION || v.type == JINJA_UNDEFINED)
KIND(test_sequence, jinja_is_list(v) || v.type == JINJA_STRING || v.type == JINJA_DICT || v.type == JINJA_UNDEFINED)
KIND(test_iterable, test_sequence(e, v, args) || v.type == JINJA_LOOP)

// ---- letters --------------------------------------------------------------------------------------------------------

static bool cased(struct jinja_env *e, struct jinja_value v, bool upper)
{
    const struct jinja_string *s = eng_jinja_text(e, v).s;
    bool any = false;
    for (size_t i = 0; i < s->len; i++) {
        char c = s->data[i];
        bool is_upper = c >= 'A' && c <= 'Z', is_lower = c >= 'a' && c <= 'z';
        if (upper ? is_lower : is_upper)
            return false;
        any |= is_upper || is_lower;
    }
    return any;
}

KIND(test_upper, cased(e, v, true))
KIND(test_lower, cased(e, v, false))

// ---- comparisons ----------------------------------------------------------------------------------------------------

#define COMPARE(name, text, op)                                        \
    TEST(name)                                                         \
    {                                                                  \
        return eng_jinja_operate(e, op, v, argument(e, text, args)).b; \
    }
COMPARE(test_eq, "eq", OP_EQ)
COMPARE(test_ne, "ne", OP_NE)
COMPARE(test_lt, "lt", OP_LT)
COMPARE(test_le, "le", OP_LE)
COMPARE(test_gt, "gt", OP_GT)
COMPARE(test_ge, "ge", OP_GE)
COMPARE(test_in, "in", OP_IN)

TEST(test_sameas)
{
    struct jinja_value other = argument(e, "sameas", args);
    return v.type == other.type && v.type != JINJA_UNDEFINED && eng_jinja_equal(e, v, other);
}

static bool divisible(struct jinja_env *e, struct jinja_value v, struct jinja_value by, int64_t rest)
{
    return eng_jinja_equal(e, eng_jinja_operate(e, OP_MOD, v, by), jinja_int(rest));
}

TEST(test_divisibleby)
{
    return divisible(e, v, argument(e, "divisibleby", args), 0);
}

KIND(test_even, divisible(e, v, jinja_int(2), 0))
KIND(test_odd, divisible(e, v, jinja_int(2), 1))

jinja_test_fn eng_jinja_find_test(const char *name)
{
    static const struct {
        const char *name;
        jinja_test_fn fn;
    } tests[] = {
        {"!=", test_ne},
        {"<", test_lt},
        {"<=", test_le},
        {"==", test_eq},
        {">", test_gt},
        {">=", test_ge},
        {"boolean", test_boolean},
        {"callable", test_callable},
        {"defined", test_defined},
        {"divisibleby", test_divisibleby},
        {"eq", test_eq},
        {"equalto", test_eq},
        {"even", test_even},
        {"false", test_false},
        {"float", test_float},
        {"ge", test_ge},
        {"greaterthan", test_gt},
        {"gt", test_gt},
        {"in", test_in},
        {"integer", test_integer},
        {"iterable", test_iterable},
        {"le", test_le},
        {"lessthan", test_lt},
        {"lower", test_lower},
        {"lt", test_lt},
        {"mapping", test_mapping},
        {"ne", test_ne},
        {"none", test_none},
        {"number", test_number},
        {"odd", test_odd},
        {"sameas", test_sameas},
        {"sequence", test_sequence},
        {"string", test_string},
        {"true", test_true},
        {"undefined", test_undefined},
        {"upper", test_upper},
    };
    for (size_t i = 0; i < sizeof tests / sizeof *tests; i++)
        if (!strcmp(tests[i].name, name))
            return tests[i].fn;
    return NULL;
}
