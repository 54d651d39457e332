#include "cmocka_util.h"
#include "fake_driver.h"
#include "graphs.h"
#include "ops.h"

#include <string.h>

static int set_up(void **state)
{
    static struct krn_cuda_driver driver;
    assert_int_equal(fake_driver_open(NULL, &driver), 0);
    *state = &driver;
    return 0;
}

static int tear_down(void **state)
{
    struct krn_cuda_driver *driver = *state;
    assert_int_equal(fake_driver_count(driver).graphs, 0);
    driver->close(driver->ctx);
    return 0;
}

static struct krn_cuda_graph *some_graph(const struct krn_cuda_driver *driver)
{
    struct krn_cuda_graph *graph = NULL;
    assert_int_equal(driver->capture_begin(driver->ctx, driver->stream), 0);
    assert_int_equal(driver->capture_end(driver->ctx, driver->stream, &graph), 0);
    return graph;
}

static struct krn_cuda_key key(int32_t rows)
{
    return (struct krn_cuda_key){.rows = rows, .wanted = 1};
}

static void test_a_bucket_holds_its_rows_and_stays_inside_what_is_allocated(void **state)
{
    (void)state;
    assert_int_equal(krn_cuda_bucket(0), 0);
    assert_int_equal(krn_cuda_bucket(1), 1);
    assert_int_equal(krn_cuda_bucket(33), 48);
    assert_int_equal(krn_cuda_bucket(257), 320);
    for (int32_t rows = 1; rows < 2000; rows++) {
        int32_t bucket = krn_cuda_bucket(rows);
        assert_true(bucket >= rows && bucket >= krn_cuda_bucket(rows - 1));
        assert_true(bucket <= KRN_PAD_TO(rows, KRN_ROW_TILE));
        assert_int_equal(krn_cuda_bucket(bucket), bucket);
        // Which kernel makes a product must be the same for all rows of a bucket.
        assert_int_equal(bucket <= 64, rows <= 64);
    }
}

static void test_every_part_of_the_key_tells_graphs_apart(void **state)
{
    struct krn_cuda_driver *driver = *state;
    struct krn_cuda_graphs g;
    const struct krn_cuda_key keys[] = {
        {.rows = 4, .wanted = 2},
        {.rows = 8, .wanted = 2},
        {.rows = 4, .wanted = 4},
        {.rows = 4, .wanted = 2, .adapter = true},
        {.rows = 4, .wanted = 2, .accepts = true},
    };
    enum { N = sizeof keys / sizeof *keys };
    struct krn_cuda_graph *graphs[N];
    krn_cuda_graphs_init(&g, driver, NULL);
    for (int i = 0; i < N; i++) {
        assert_null(krn_cuda_graphs_find(&g, &keys[i]));
        krn_cuda_graphs_add(&g, &keys[i], graphs[i] = some_graph(driver));
    }
    for (int i = 0; i < N; i++)
        assert_ptr_equal(krn_cuda_graphs_find(&g, &keys[i]), graphs[i]);
    krn_cuda_graphs_drop(&g);
    assert_null(krn_cuda_graphs_find(&g, &keys[0]));
}

static void test_the_graph_not_used_for_longest_makes_room(void **state)
{
    struct krn_cuda_driver *driver = *state;
    struct krn_cuda_graphs g;
    krn_cuda_graphs_init(&g, driver, NULL);
    g.most = 3;
    for (int32_t i = 0; i < 3; i++) {
        struct krn_cuda_key k = key(i);
        assert_false(krn_cuda_graphs_full(&g));
        krn_cuda_graphs_make_room(&g); // there is room: nothing happens
        krn_cuda_graphs_add(&g, &k, some_graph(driver));
    }
    struct krn_cuda_key k0 = key(0), k1 = key(1), k2 = key(2), k3 = key(3);
    assert_non_null(krn_cuda_graphs_find(&g, &k0)); // now 1 is the oldest
    assert_true(krn_cuda_graphs_full(&g));
    krn_cuda_graphs_make_room(&g);
    assert_int_equal(fake_driver_count(driver).graphs, 2);
    krn_cuda_graphs_add(&g, &k3, some_graph(driver));
    assert_non_null(krn_cuda_graphs_find(&g, &k0));
    assert_null(krn_cuda_graphs_find(&g, &k1));
    assert_non_null(krn_cuda_graphs_find(&g, &k2));
    assert_non_null(krn_cuda_graphs_find(&g, &k3));
    krn_cuda_graphs_drop(&g);
}

static void test_disabled_graphs_are_not_found_and_keep_the_first_reason(void **state)
{
    struct krn_cuda_driver *driver = *state;
    struct krn_cuda_graphs g;
    struct krn_cuda_key k = key(1);
    krn_cuda_graphs_init(&g, driver, NULL);
    krn_cuda_graphs_add(&g, &k, some_graph(driver));
    krn_cuda_graphs_disable(&g, "the first reason");
    krn_cuda_graphs_disable(&g, "the second");
    assert_null(krn_cuda_graphs_find(&g, &k));
    assert_string_equal(g.reason, "the first reason");
    krn_cuda_graphs_drop(&g);
    krn_cuda_graphs_init(&g, driver, "from the start");
    assert_true(g.disabled);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_a_bucket_holds_its_rows_and_stays_inside_what_is_allocated, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(test_every_part_of_the_key_tells_graphs_apart, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_the_graph_not_used_for_longest_makes_room, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_disabled_graphs_are_not_found_and_keep_the_first_reason, set_up,
                                        tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
