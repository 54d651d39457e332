// The program: sub-commands in the style of git. Exit status 0 well, 1 failed, 2 used wrongly, 130 interrupted.
#include <stdio.h>
#include <string.h>

#include "cli.h"
#include "config.h"
#include "log.h"
#include "loop.h"
#include "server.h"

extern char **environ;

static const struct command {
    const char *name, *sub; // sub: the second word, or NULL
    const char *usage, *summary;
    enum srv_command command;
} commands[] = {
    {"serve", NULL, "trimode serve [--flag value ...]", "answer HTTP requests as the OpenAI API does", SRV_SERVE},
    {"generate", NULL, "trimode generate \"text\" [--flag value ...]", "one completion on the terminal", SRV_GENERATE},
    {"chat", NULL, "trimode chat [--flag value ...]", "a conversation on the terminal", SRV_CHAT},
    {"bench", "forward", "trimode bench forward [--flag value ...]", "times of forward passes by rows and context",
     SRV_BENCH},
    {"bench", "serve", "trimode bench serve --url http://HOST:PORT [--flag value ...]",
     "a load on a running server, every stream verified", SRV_BENCH_SERVE},
    {"calibrate", NULL, "trimode calibrate [--flag value ...]", "measure the cost model that serve loads",
     SRV_CALIBRATE},
};

static int usage(FILE *out, int status)
{
    fprintf(out, "usage: trimode COMMAND [--flag value ...]\n\n");
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++) {
        const char *sub = commands[i].sub ? commands[i].sub : "";
        fprintf(out, "  %s%s%-*s %s\n", commands[i].name, *sub ? " " : "",
                14 - (int)strlen(commands[i].name) - (*sub != 0), sub, commands[i].summary);
    }
    fprintf(out, "\n`trimode COMMAND --help` lists the flags of a command; `trimode --version` prints the version.\n");
    return status;
}

// bench without a second word that it knows.
static int bench_usage(const char *second)
{
    if (strcmp(second, "--help") && strcmp(second, "-h")) {
        fprintf(stderr, "trimode bench: expects `forward` or `serve`; --help says more\n");
        return 2;
    }
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
        if (commands[i].sub)
            printf("usage: %s\n  %s\n", commands[i].usage, commands[i].summary);
    printf("\n`trimode bench forward --help` and `trimode bench serve --help` list the flags.\n");
    return 0;
}

static int serve(const struct srv_config *c)
{
    enum srv_log_level level = !strcmp(c->log_level, "debug")  ? SRV_LOG_DEBUG
                               : !strcmp(c->log_level, "info") ? SRV_LOG_INFO
                               : !strcmp(c->log_level, "warn") ? SRV_LOG_WARN
                                                               : SRV_LOG_ERROR;
    srv_log_init(level, !strcmp(c->log_format, "json"), 2);
    if (c->n_arguments) {
        fprintf(stderr, "trimode serve: '%s' is not a flag; --help lists what is allowed\n", c->arguments[0]);
        return 2;
    }
    struct srv_server *server = NULL;
    char err[512] = "", url[320];
    int status = srv_loop_open(c, &server, err, sizeof err);
    if (status) {
        fprintf(stderr, "trimode: %s\n", err);
        return -status;
    }
    // On stdout, for whoever started us with --port 0.
    srv_loop_url(server, url, sizeof url);
    printf("listening on %s\n", url);
    fflush(stdout);
    status = srv_loop_run(server, true);
    srv_loop_close(server);
    return status;
}

static int run(const struct command *command, int argc, char **argv)
{
    struct srv_config config;
    char err[640] = "";
    int status = srv_config_read(&config, command->command, argc, argv, environ, err, sizeof err);
    if (config.help) {
        printf("usage: %s\n%s\n\n", command->usage, command->summary);
        srv_config_help(command->command, stdout);
        status = 0;
    } else if (status) {
        fprintf(stderr, "trimode: %s\n", err);
        status = 2;
    } else if (config.print_config) {
        srv_config_print(&config, command->command, stdout);
    } else if (command->command == SRV_SERVE) {
        status = serve(&config);
    } else if (command->command == SRV_GENERATE) {
        status = srv_cli_generate(&config);
    } else if (command->command == SRV_BENCH) {
        status = srv_cli_bench(&config);
    } else if (command->command == SRV_BENCH_SERVE) {
        status = srv_cli_bench_serve(&config);
    } else if (command->command == SRV_CALIBRATE) {
        status = srv_cli_calibrate(&config);
    } else {
        status = srv_cli_chat(&config);
    }
    srv_config_done(&config);
    return status;
}

int main(int argc, char **argv)
{
    if (argc < 2)
        return usage(stderr, 2);
    if (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h") || !strcmp(argv[1], "help"))
        return usage(stdout, 0);
    if (!strcmp(argv[1], "--version")) {
        printf("trimode %s\n", TRIMODE_VERSION);
        return 0;
    }
    const char *second = argc > 2 ? argv[2] : "";
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
        if (!strcmp(argv[1], commands[i].name) && (!commands[i].sub || !strcmp(second, commands[i].sub)))
            return run(&commands[i], argc - 2, argv + 2);
    if (!strcmp(argv[1], "bench"))
        return bench_usage(second);
    fprintf(stderr, "trimode: there is no command '%s'; allowed: serve, generate, chat, bench, calibrate\n", argv[1]);
    return 2;
}
