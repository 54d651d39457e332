// server/config_model.c: folders, and bundled models. Those are looked up relative to the executable, so a copy of this
// program inside a made-up installation is asked what it finds there.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "config.h"

static char root[PATH_MAX];

// Runs a shell command inside root.
static void shell(const char *command)
{
    char *line = NULL;
    assert_true(asprintf(&line, "cd '%s' && %s", root, command) > 0);
    if (system(line))
        fail_msg("%s", line);
    free(line);
}

static void expect(const char *model, const char *dir, const char *name)
{
    char *got_dir = NULL, *got_name = NULL, err[300] = "";
    if (srv_config_model_dir(model, &got_dir, &got_name, err, sizeof err))
        fail_msg("%s", err);
    size_t n = strncmp(got_dir, root, strlen(root)) ? 0 : strlen(root);
    assert_string_equal(got_dir + n, dir);
    assert_string_equal(got_name, name);
    free(got_dir);
    free(got_name);
}

static void test_folders(void **state)
{
    (void)state;
    shell("mkdir -p 'a/my model' && ln -s 'a/my model' link && touch file");
    assert_int_equal(chdir(root), 0);
    expect("a/my model", "/a/my model", "my model");
    expect("./a", "/a", "a");
    expect("a", "/a", "a"); // no bundled model has that name
    expect("a/my model/..///my model/", "/a/my model", "my model");
    expect(".", "", strrchr(root, '/') + 1);
    expect("link", "/a/my model", "my model");
    expect("/", "/", "model");
}

static void test_what_is_no_folder(void **state)
{
    (void)state;
    static const char *const models[] = {"no-such-model", "file", "./file", "file/", "/nonexistent", "", "..a"};
    char *dir = NULL, *name = NULL, err[300];
    assert_int_equal(chdir(root), 0);
    for (size_t i = 0; i < sizeof models / sizeof *models; i++) {
        char says[100];
        snprintf(says, sizeof says, "model: '%s' is neither a folder nor a bundled model", models[i]);
        if (srv_config_model_dir(models[i], &dir, &name, err, sizeof err) != -1)
            fail_msg("found: %s", models[i]);
        assert_non_null(strstr(err, says));
    }
    assert_true(!dir && !name);
    char longest[PATH_MAX + 10];
    memset(longest, 'x', sizeof longest - 1);
    longest[sizeof longest - 1] = 0;
    assert_int_equal(srv_config_model_dir(longest, &dir, &name, err, sizeof err), -1);
}

// What the copy at `program` prints for a model: its folder below root, or "none".
static void expect_bundled(const char *program, const char *model, const char *wanted)
{
    char *line = NULL, out[PATH_MAX] = "";
    assert_true(asprintf(&line, "cd '%s/elsewhere' && '%s/%s' --find '%s'", root, root, program, model) > 0);
    FILE *f = popen(line, "r");
    free(line);
    assert_non_null(f);
    assert_non_null(fgets(out, sizeof out, f));
    assert_int_equal(pclose(f), 0);
    size_t n = strncmp(out, root, strlen(root)) ? 0 : strlen(root);
    if (strcmp(out + n, wanted))
        fail_msg("%s --find %s: %s instead of %s", program, model, out + n, wanted);
}

static void test_bundled_models_are_found_from_any_working_directory(void **state)
{
    (void)state;
    char self[PATH_MAX] = "", *copy = NULL;
    assert_true(readlink("/proc/self/exe", self, sizeof self - 1) > 0);
    shell("mkdir -p build/server opt/t/bin elsewhere/own elsewhere/nano config/models/nano "
          "opt/t/share/trimode/models/nano && touch config/models/note");
    assert_true(asprintf(&copy, "cp '%s' build/server/copy && cp '%s' build/copy && cp '%s' opt/t/bin/copy", self, self,
                         self) > 0);
    shell(copy);
    free(copy);
    shell("ln -s opt/t/bin/copy linked");
    expect_bundled("build/copy", "nano", "/config/models/nano");
    expect_bundled("build/server/copy", "nano", "/config/models/nano"); // and not the folder where it is started
    expect_bundled("opt/t/bin/copy", "nano", "/opt/t/share/trimode/models/nano");
    expect_bundled("linked", "nano", "/opt/t/share/trimode/models/nano");
    expect_bundled("build/copy", "./nano", "/elsewhere/nano");
    expect_bundled("build/copy", "own", "/elsewhere/own");
    expect_bundled("build/copy", "note", "none");
    expect_bundled("build/copy", "", "none");
}

// As a copy: prints what it finds.
static int find(const char *model)
{
    char *dir = NULL, *name = NULL, err[300];
    int status = srv_config_model_dir(model, &dir, &name, err, sizeof err);
    printf("%s", status ? "none" : dir);
    free(dir);
    free(name);
    return 0;
}

int main(int argc, char **argv)
{
    if (argc == 3 && !strcmp(argv[1], "--find"))
        return find(argv[2]);
    char made[] = "/tmp/trimode-model-XXXXXX";
    if (!mkdtemp(made) || !realpath(made, root))
        return 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_folders),
        cmocka_unit_test(test_what_is_no_folder),
        cmocka_unit_test(test_bundled_models_are_found_from_any_working_directory),
    };
    int status = cmocka_run_group_tests(tests, NULL, NULL);
    shell("rm -rf \"$PWD\"");
    return status;
}
