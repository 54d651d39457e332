#include "cmocka_util.h"
#include "cpu_features.h"
#include "kernels.h"

#include <sched.h>
#include <unistd.h>

static void test_only_known_features_are_reported(void **state)
{
    (void)state;
    assert_int_equal(krn_cpu_features() & ~(uint32_t)(KRN_CPU_AVX2 | KRN_CPU_AVX512), 0);
}

static void test_avx512_comes_with_avx2(void **state)
{
    (void)state;
    if (krn_cpu_features() & KRN_CPU_AVX512)
        assert_true(krn_cpu_features() & KRN_CPU_AVX2);
}

static void test_cores_are_at_most_the_processors_online(void **state)
{
    (void)state;
    assert_in_range(krn_cpu_cores(), 1, sysconf(_SC_NPROCESSORS_ONLN));
}

static void test_cores_respect_the_affinity_mask(void **state)
{
    (void)state;
    cpu_set_t all, one;
    assert_int_equal(sched_getaffinity(0, sizeof all, &all), 0);
    int cpu = 0;
    while (!CPU_ISSET(cpu, &all))
        cpu++;
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    assert_int_equal(sched_setaffinity(0, sizeof one, &one), 0);
    assert_int_equal(krn_cpu_cores(), 1);
    assert_int_equal(sched_setaffinity(0, sizeof all, &all), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_only_known_features_are_reported),
        cmocka_unit_test(test_avx512_comes_with_avx2),
        cmocka_unit_test(test_cores_are_at_most_the_processors_online),
        cmocka_unit_test(test_cores_respect_the_affinity_mask),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
