// Where a model is: a folder, or the name of a bundled one, looked up relative to the executable (the build tree or an
// installed prefix), so that nothing depends on the working directory.
#include <libgen.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "buf.h"
#include "config.h"

static bool is_folder(const char *path)
{
    struct stat st;
    return !stat(path, &st) && S_ISDIR(st.st_mode);
}

// NULL when no bundled model has that name.
static char *find_bundled(const char *name)
{
    static const char *const places[] = {"../config/models", "../../config/models", "../share/trimode/models"};
    char exe[PATH_MAX];
    ssize_t n = readlink("/proc/self/exe", exe, sizeof exe - 1);
    if (n <= 0)
        return NULL;
    exe[n] = 0;
    const char *folder = dirname(exe);
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        struct srv_buf path = {0};
        srv_buf_printf(&path, "%s/%s/%s", folder, places[i], name);
        char *real = path.failed ? NULL : realpath(path.data, NULL);
        srv_buf_free(&path);
        if (real && is_folder(real))
            return real;
        free(real);
    }
    return NULL;
}

int srv_config_model_dir(const char *model, char **ret_dir, char **ret_name, char *err, size_t err_size)
{
    char *dir = !*model || strchr(model, '/') || model[0] == '.' ? NULL : find_bundled(model);
    if (!dir && is_folder(model))
        dir = realpath(model, NULL);
    if (!dir) {
        snprintf(err, err_size,
                 "model: '%s' is neither a folder nor a bundled model; allowed: a Hugging Face folder, or nano", model);
        return -1;
    }
    const char *slash = strrchr(dir, '/');
    char *name = strdup(slash && slash[1] ? slash + 1 : "model");
    if (!name) {
        free(dir);
        snprintf(err, err_size, "out of memory");
        return -1;
    }
    *ret_dir = dir;
    *ret_name = name;
    return 0;
}
