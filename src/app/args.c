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
    {"scale",
        "DECK --out DIR [--ranks 1,2,4,..] [--mode strong|weak] [--repeat N] [--maxh HOURS] "
        "[--set section.key=value]...",
        "one federation on 1, 2, 4, .. P of the job's ranks: DIR/scaling.csv", 1, 1, app_scale,
        "--set --out --ranks --mode --repeat --maxh --requeue-code"},
    {"sweep",
        "DECK --over section.key=a,b,c [--over section.key=1..5]... [--set section.key=value]... "
        "[--out DIR] [--groups N] [--resume auto|none] [--maxh HOURS] [--dry-run]",
        "every combination of the values of --over as a run, many at a time in one job", 1, 1,
        app_sweep, "--over --set --out --groups --resume --maxh --dry-run --requeue-code"},
    {"pretrain", "DECK [--set section.key=value]... [--out DIR]",
        "full-weight training of a base model; writes a Hugging Face folder", 1, 1, app_pretrain,
        "--set --out"},
    {"eval",
        "--model HFDIR --data FILE [--adapter PEFTDIR] [--split train|validation|test] [--set ...]",
        "mean loss and accuracy of a model on a data set", 0, 0, app_eval,
        "--model --data --adapter --split --set"},
    {"aggregate",
        "--method NAME [--weights 2,1,..|@FILE] [--r R] [--energy E] [--set section.key=value]... "
        "[--dtype f32|f16|bf16] [--stacked] -o DIR PEFTDIR...",
        "finished PEFT adapters in, one out, by a method's server step; @FILE names many", 1,
        MAX_WORDS, app_aggregate,
        "--method --weights --r --energy --set --dtype --stacked --join-prefixes --any-init "
        "--no-audit --out"},
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
    {"bench", "train|reduce|svd|svd-large|checkpoint ...",
        "micro-benchmarks, each with its limit beside it", 1, 8, app_bench, "--model --out"},
};

const app_command *app_commands(int *n)
{
    *n = (int)FL_COUNT(commands);
    return commands;
}

/* ---- options ---- the words after an option are completed by its value: "a|b|c" as they are,
 * capitals are what the user names */
static const app_option options[] = {
    {"--set", "-s", OPT_SET, 0, "section.key=value",
        "changes a key of the deck; any number of times"},
    {"--over", "", OPT_OVER, 0, "section.key=VALUES",
        "a,b,c or 1..5 or 1..9..2; one run for each combination"},
    {"--groups", "", OPT_INT, offsetof(app_args, groups), "N",
        "runs at a time; the ranks are divided among them (0 = as many as there are runs or "
        "ranks)"},
    {"--out", "-o", OPT_TEXT, offsetof(app_args, out), "DIR", "folder for what is written"},
    {"--resume", "", OPT_TEXT, offsetof(app_args, resume), "auto|none|FILE",
        "go on from the newest valid checkpoint (auto), start anew, or go on from FILE"},
    {"--model", "", OPT_TEXT, offsetof(app_args, model), "HFDIR",
        "a Hugging Face folder: config.json and safetensors"},
    {"--data", "", OPT_TEXT, offsetof(app_args, data), "FILE", "a data set, or text, csv, jsonl"},
    {"--adapter", "", OPT_TEXT, offsetof(app_args, adapter), "PEFTDIR", "an adapter folder (PEFT)"},
    {"--split", "", OPT_TEXT, offsetof(app_args, split), "train|validation|test",
        "the part of the data set"},
    {"--method", "", OPT_TEXT, offsetof(app_args, method), "NAME",
        "a method; fedlora methods lists them"},
    {"--weights", "", OPT_TEXT, offsetof(app_args, weights), "2,1,..|@FILE",
        "one per adapter, in their order, of any sum; equal if not given"},
    {"--r", "", OPT_INT, offsetof(app_args, r), "R",
        "rank of the result where an SVD makes it (default: the largest of the adapters)"},
    {"--energy", "", OPT_NUMBER, offsetof(app_args, energy), "E",
        "as many pairs as hold this share of the squared norm, 0 < E <= 1"},
    {"--dtype", "", OPT_TEXT, offsetof(app_args, dtype), "f32|f16|bf16",
        "number format of the result (default: f32)"},
    {"--stacked", "", OPT_FLAG, offsetof(app_args, stacked), "",
        "what a method would merge into the base joins the adapter; else it is written beside it"},
    {"--join-prefixes", "", OPT_FLAG, offsetof(app_args, join_prefixes), "",
        "layers.0.x of one adapter and model.layers.0.x of another are the same module"},
    {"--any-init", "", OPT_FLAG, offsetof(app_args, any_init), "",
        "accept PiSSA, OLoRA and others that change the base: all adapters have the same changed "
        "base"},
    {"--no-audit", "", OPT_FLAG, offsetof(app_args, no_audit), "",
        "leave out the table of what the aggregation cost, which reads the adapters once more"},
    {"--maxh", "", OPT_NUMBER, offsetof(app_args, maxh), "HOURS",
        "stop with a checkpoint and exit code 75 before so many hours are over"},
    {"--requeue-code", "", OPT_INT, offsetof(app_args, requeue_code), "N",
        "exit code in place of 75"},
    {"--client", "", OPT_INT, offsetof(app_args, client), "ID", "this client, not the server"},
    {"--dry-run", "", OPT_FLAG, offsetof(app_args, dry_run), "",
        "check deck, model and data, print what would run, and end"},
    {"--merged", "", OPT_FLAG, offsetof(app_args, merged), "",
        "the base with the adapter added to its weights"},
    {"--reference", "", OPT_FLAG, offsetof(app_args, reference), "",
        "the reference page in Markdown"},
    {"--ranks", "", OPT_TEXT, offsetof(app_args, ranks), "1,2,4",
        "numbers of ranks of the series (default: powers of two and all of the job's)"},
    {"--mode", "", OPT_TEXT, offsetof(app_args, mode), "strong|weak",
        "the same deck everywhere, or clients in proportion to the ranks"},
    {"--repeat", "", OPT_INT, offsetof(app_args, repeat), "N", "runs of every number of ranks"},
    {"--help", "-h", OPT_FLAG, offsetof(app_args, help), "", "this text"},
};

const app_option *app_options(int *n)
{
    *n = (int)FL_COUNT(options);
    return options;
}

bool app_takes(const app_command *command, const char *name)
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
    case OPT_OVER:
        if (args->novers == MAX_OVERS) {
            return fl_fail(FL_EUSAGE, "more than %d --over", MAX_OVERS);
        }
        args->over[args->novers++] = value;
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

static fl_err unknown_option(const app_command *command, const char *word)
{
    const char *near = "--help";

    for (size_t i = 0; i < FL_COUNT(options); i++) {
        if (app_takes(command, options[i].name) &&
            fl_edit_distance(word, options[i].name) < fl_edit_distance(word, near)) {
            near = options[i].name;
        }
    }
    return fl_fail(FL_EUSAGE,
        "%s: unknown option '%s'; did you mean %s? (fedlora %s --help lists them)", command->name,
        word, near, command->name);
}

fl_err app_parse(int argc, char **argv, const app_command *command, app_args *args)
{
    *args = (app_args){.resume = "auto",
        .split = "test",
        .client = -1,
        .requeue_code = 75,
        .mode = "strong",
        .repeat = 1,
        .dtype = "f32"};
    for (int i = 0; i < argc; i++) {
        int k = argv[i][0] == '-' && argv[i][1] != '\0' ? find_option(argv[i]) : -1;

        if (argv[i][0] != '-') {
            if (args->nwords == MAX_WORDS) {
                return fl_fail(FL_EUSAGE, "%s: more than %d arguments", command->name, MAX_WORDS);
            }
            args->word[args->nwords++] = argv[i];
        } else if (k < 0 || !app_takes(command, options[k].name)) {
            return unknown_option(command, argv[i]);
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

static void help_option(const app_option *o, fl_text *t)
{
    fl_text left = {0};

    fl_text_add(&left, "%s%s%s%s%s", o->other, *o->other ? ", " : "", o->name, *o->value ? " " : "",
        o->value);
    fl_text_add(t, "  %-28s %s\n", left.s, o->help);
    fl_text_free(&left);
}

void app_help(const app_command *command, fl_text *t)
{
    if (command != NULL) {
        fl_text_add(t, "fedlora %s %s\n\n%s\n\n", command->name, command->usage, command->help);
        for (size_t i = 0; i < FL_COUNT(options); i++) {
            if (app_takes(command, options[i].name)) {
                help_option(&options[i], t);
            }
        }
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
