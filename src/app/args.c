/* args.c - the table of commands and of options, from which come parsing, --help and the messages.
 */
#include "app.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static const app_command commands[] = {
    {"run",
        "DECK [--set section.key=value]... [--out DIR] [--resume auto|none|FILE] [--maxh HOURS] "
        "[--dry-run]",
        "a federation, under mpirun or not", 1, 1, app_run,
        "--set --out --resume --maxh --dry-run --requeue-code"},
    {"pretrain", "DECK [--set section.key=value]... [--out DIR]",
        "full-weight training of a base model; writes a Hugging Face folder", 1, 1, app_pretrain,
        "--set --out"},
    {"eval",
        "--model HFDIR --data FILE [--adapter PEFTDIR] [--split train|validation|test] [--set ...]",
        "mean loss and accuracy of a model on a data set", 0, 0, app_eval,
        "--model --data --adapter --split --set"},
    {"export", "CHECKPOINT -o DIR [--client ID] [--merged]",
        "the server's or a client's adapter as a PEFT folder, or the merged model", 1, 1,
        app_export, "--out --client --merged"},
    {"inspect", "FILE", "what a checkpoint, data set, safetensors file or adapter folder holds", 1,
        1, app_inspect, ""},
    {"verify", "FILE", "is it whole", 1, 1, app_verify, ""},
    {"diff", "FILE FILE",
        "first differing field, largest difference per field; exit 1 if different", 2, 2, app_diff,
        ""},
    {"methods", "[NAME]", "the methods, or one method's source, needs, choices and keys", 0, 1,
        app_methods, "--reference"},
    {"deck", "[--method NAME]", "a complete commented deck with defaults", 0, 0, app_show_deck,
        "--method --set --reference"},
    {"explain", "section.key", "one key, or one section", 1, 1, app_explain, ""},
    {"bench", "train|reduce|svd|checkpoint ...", "micro-benchmarks, each with its limit beside it",
        1, 8, app_bench, "--model --out"},
};

const app_command *app_commands(int *n)
{
    *n = (int)FL_COUNT(commands);
    return commands;
}

/* ---- options ---- */
typedef enum option_type { OPT_TEXT, OPT_NUMBER, OPT_INT, OPT_FLAG, OPT_SET } option_type;
static const struct {
    const char *name, *other;
    option_type type;
    size_t at;
} options[] = {
    {"--set", "-s", OPT_SET, 0},
    {"--out", "-o", OPT_TEXT, offsetof(app_args, out)},
    {"--resume", "", OPT_TEXT, offsetof(app_args, resume)},
    {"--model", "", OPT_TEXT, offsetof(app_args, model)},
    {"--data", "", OPT_TEXT, offsetof(app_args, data)},
    {"--adapter", "", OPT_TEXT, offsetof(app_args, adapter)},
    {"--split", "", OPT_TEXT, offsetof(app_args, split)},
    {"--method", "", OPT_TEXT, offsetof(app_args, method)},
    {"--maxh", "", OPT_NUMBER, offsetof(app_args, maxh)},
    {"--requeue-code", "", OPT_INT, offsetof(app_args, requeue_code)},
    {"--client", "", OPT_INT, offsetof(app_args, client)},
    {"--dry-run", "", OPT_FLAG, offsetof(app_args, dry_run)},
    {"--merged", "", OPT_FLAG, offsetof(app_args, merged)},
    {"--reference", "", OPT_FLAG, offsetof(app_args, reference)},
    {"--help", "-h", OPT_FLAG, offsetof(app_args, help)},
};

static bool takes(const app_command *command, const char *name)
{
    const char *at = strstr(command->options, name);
    size_t n = strlen(name);

    return strcmp(name, "--help") == 0 || (at != NULL && (at[n] == ' ' || at[n] == '\0'));
}

static int find_option(const char *word)
{
    for (size_t i = 0; i < FL_COUNT(options); i++) {
        if (strcmp(word, options[i].name) == 0 || strcmp(word, options[i].other) == 0) {
            return (int)i;
        }
    }
    return -1;
}

static fl_err store_value(app_args *args, int i, const char *value)
{
    char *end, *member = (char *)args + options[i].at;

    errno = 0;
    switch (options[i].type) {
    case OPT_SET:
        if (args->nsets == MAX_SETS) {
            return fl_fail(FL_EUSAGE, "more than %d --set", MAX_SETS);
        }
        args->set[args->nsets++] = value;
        return FL_OK;
    case OPT_TEXT:
        memcpy(member, &value, sizeof value);
        return FL_OK;
    case OPT_NUMBER: {
        double x = strtod(value, &end);

        memcpy(member, &x, sizeof x);
        return *end == '\0' && end != value && errno == 0 && x >= 0
                   ? FL_OK
                   : fl_fail(FL_EUSAGE, "%s: '%s' is not a number of at least 0", options[i].name,
                         value);
    }
    default: {
        long x = strtol(value, &end, 10);
        int y = (int)x;

        memcpy(member, &y, sizeof y);
        return *end == '\0' && end != value && errno == 0 && x >= 0 && x < (1L << 31)
                   ? FL_OK
                   : fl_fail(FL_EUSAGE, "%s: '%s' is not a whole number of at least 0",
                         options[i].name, value);
    }
    }
}

fl_err app_parse(int argc, char **argv, const app_command *command, app_args *args)
{
    *args = (app_args){.resume = "auto", .split = "test", .client = -1, .requeue_code = 75};
    for (int i = 0; i < argc; i++) {
        int k = argv[i][0] == '-' && argv[i][1] != '\0' ? find_option(argv[i]) : -1;

        if (argv[i][0] != '-') {
            if (args->nwords == MAX_WORDS) {
                return fl_fail(FL_EUSAGE, "%s: more than %d arguments", command->name, MAX_WORDS);
            }
            args->word[args->nwords++] = argv[i];
        } else if (k < 0 || !takes(command, options[k].name)) {
            return fl_fail(FL_EUSAGE, "%s: unknown option '%s'; usage: fedlora %s %s",
                command->name, argv[i], command->name, command->usage);
        } else if (options[k].type == OPT_FLAG) {
            *((bool *)((char *)args + options[k].at)) = true;
        } else if (i + 1 == argc) {
            return fl_fail(FL_EUSAGE, "%s: %s needs a value", command->name, argv[i]);
        } else {
            FL_TRY(store_value(args, k, argv[++i]));
        }
    }
    if (!args->help && (args->nwords < command->least || args->nwords > command->most)) {
        return fl_fail(FL_EUSAGE, "usage: fedlora %s %s", command->name, command->usage);
    }
    return FL_OK;
}

void app_help(const app_command *command, fl_text *t)
{
    if (command != NULL) {
        fl_text_add(t, "fedlora %s %s\n\n%s\n", command->name, command->usage, command->help);
        return;
    }
    fl_text_add(t,
        "fedlora %s - federated low-rank adaptation of transformers: the same bits on any number "
        "of ranks\n\n",
        FL_VERSION);
    for (size_t i = 0; i < FL_COUNT(commands); i++) {
        fl_text_add(t, "  %-9s %s\n", commands[i].name, commands[i].help);
    }
    fl_text_add(t, "\n  fedlora COMMAND --help   its options\n  fedlora deck             every key "
                   "of a deck with its default\n"
                   "exit codes: 0 done, 2 usage, 3 deck or data, 4 file system, 5 numbers, 70 a "
                   "bug, 75 stopped on purpose: run me again\n");
}
