// kernels/cpu/ops_init.c: which version of an op runs.
#include "cmocka_util.h"
#include "kern_util.h"
#include "ops.h"

static void check(uint32_t features, const char *version)
{
    struct krn_ops ops;
    memset(&ops, 0xff, sizeof ops);
    krn_ops_init(&ops, features);
    assert_string_equal(ops.linear_version, version);
    assert_string_equal(ops.attention_version, version);
    assert_true((ops.linear == krn_linear_ref) == !strcmp(version, "ref"));
    assert_true((ops.attention == krn_attention_ref) == !strcmp(version, "ref"));
    assert_true((ops.rms_norm == krn_rms_norm_ref) == !strcmp(version, "ref"));
    assert_true((ops.swiglu == krn_swiglu_ref) == !strcmp(version, "ref"));
    assert_true((ops.add == krn_add_ref) == !strcmp(version, "ref"));
    assert_true((ops.select == krn_select_ref) == !strcmp(version, "ref"));
}

static void test_no_feature_is_the_reference(void **state)
{
    (void)state;
    check(0, "ref");
    check(~(uint32_t)(KRN_CPU_AVX2 | KRN_CPU_AVX512), "ref"); // unknown bits choose nothing
}

static void test_the_best_feature_wins(void **state)
{
    (void)state;
    static const struct {
        uint32_t mask;
        const char *version;
    } cases[] = {{KRN_CPU_AVX2, "avx2"}, {KRN_CPU_AVX2 | KRN_CPU_AVX512, "avx512"}, {~0u, "avx512"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        if ((krn_cpu_features() & (KRN_CPU_AVX2 | KRN_CPU_AVX512)) == (KRN_CPU_AVX2 | KRN_CPU_AVX512))
            check(cases[i].mask, cases[i].version); // elsewhere a build may lack a version
}

static void test_versions_compute_the_same_product(void **state)
{
    (void)state;
    enum { ROWS = 3, COLS = 40, OUTPUTS = 9 };
    struct random random = {.state = 4};
    struct krn_tensor w = tensor_random(&random, KRN_F32, OUTPUTS, COLS);
    float x[ROWS * COLS], expected[ROWS * OUTPUTS], y[ROWS * OUTPUTS];
    fill_random(&random, x, ROWS * COLS);
    struct krn_linear_task task = {.y = expected, .x = x, .w = &w, .rows = ROWS, .ldy = OUTPUTS};
    krn_linear_ref(&task, 0, OUTPUTS);
    task.y = y;
    struct version versions[VERSIONS_MAX];
    int n = versions_here(versions);
    for (int v = 0; v < n; v++) {
        struct krn_ops ops;
        krn_ops_init(&ops, versions[v].mask);
        assert_string_equal(ops.linear_version, versions[v].name);
        ops.linear(&task, 0, OUTPUTS);
        for (int i = 0; i < ROWS * OUTPUTS; i++)
            assert_near(y[i], expected[i], 1e-4);
    }
    tensor_free(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_no_feature_is_the_reference),
        cmocka_unit_test(test_the_best_feature_wins),
        cmocka_unit_test(test_versions_compute_the_same_product),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
