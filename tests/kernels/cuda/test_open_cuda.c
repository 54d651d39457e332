// Where the module is looked for, and what is said when it is not there or is something else.
#include "cmocka_util.h"
#include "kernels.h"

#include <stdlib.h>
#include <string.h>

static int open_with(const char *module, char *err, size_t err_size)
{
    struct krn_backend *backend = NULL;
    struct krn_cuda_options options = {.module = module};
    int rc = krn_open_cuda(&options, &backend, err, err_size);
    if (rc == 0)
        backend->close(backend->ctx);
    else
        assert_null(backend);
    return rc;
}

static void test_no_module_is_said_in_one_sentence(void **state)
{
    (void)state;
    char err[300] = "";
    unsetenv("TRIMODE_CUDA_MODULE");
    struct krn_backend *backend = NULL;
    // The test program's folder has no module in any of the usual places.
    assert_int_equal(krn_open_cuda(NULL, &backend, err, sizeof err), KRN_ENOTSUP);
    assert_null(backend);
    assert_string_equal(err, "there is no trimode-cuda.so beside the executable");
    assert_int_equal(krn_open_cuda(NULL, &backend, NULL, 0), KRN_ENOTSUP);
    // An empty name is none: it is not the executable that is opened.
    setenv("TRIMODE_CUDA_MODULE", "", 1);
    assert_int_equal(open_with("", err, sizeof err), KRN_ENOTSUP);
    assert_string_equal(err, "there is no trimode-cuda.so beside the executable");
    unsetenv("TRIMODE_CUDA_MODULE");
}

static void test_a_module_that_does_not_load_is_named(void **state)
{
    (void)state;
    char err[300] = "";
    assert_int_equal(open_with("/nowhere/trimode-cuda.so", err, sizeof err), KRN_ENOTSUP);
    assert_non_null(strstr(err, "/nowhere/trimode-cuda.so"));
    assert_null(strchr(err, '\n'));
}

static void test_the_environment_names_the_module_unless_the_options_do(void **state)
{
    (void)state;
    char err[300] = "";
    setenv("TRIMODE_CUDA_MODULE", "/nowhere/of-the-environment.so", 1);
    assert_int_equal(open_with(NULL, err, sizeof err), KRN_ENOTSUP);
    assert_non_null(strstr(err, "/nowhere/of-the-environment.so"));
    assert_int_equal(open_with("/nowhere/of-the-options.so", err, sizeof err), KRN_ENOTSUP);
    assert_non_null(strstr(err, "/nowhere/of-the-options.so"));
    unsetenv("TRIMODE_CUDA_MODULE");
}

static void test_another_library_is_not_a_module(void **state)
{
    (void)state;
    char err[300] = "";
    assert_int_equal(open_with("libm.so.6", err, sizeof err), KRN_ENOTSUP);
    assert_string_equal(err, "libm.so.6 is not a cuda module of trimode");
}

// The real module, where it was built: without a driver it says so, with one it opens.
static void test_the_module_opens_or_says_why_there_is_no_gpu(void **state)
{
    (void)state;
    char err[300] = "";
    const char *module = getenv("TRIMODE_TEST_CUDA_MODULE");
    if (!module)
        return; // cmocka's skip() is a failure to meson's reader of TAP
    int rc = open_with(module, err, sizeof err);
    if (rc != 0) {
        assert_int_equal(rc, KRN_ENOTSUP);
        assert_non_null(strstr(err, "NVIDIA"));
        assert_null(strchr(err, '\n'));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_no_module_is_said_in_one_sentence),
        cmocka_unit_test(test_a_module_that_does_not_load_is_named),
        cmocka_unit_test(test_the_environment_names_the_module_unless_the_options_do),
        cmocka_unit_test(test_another_library_is_not_a_module),
        cmocka_unit_test(test_the_module_opens_or_says_why_there_is_no_gpu),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
