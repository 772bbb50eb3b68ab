/* complete.c - the words a shell may offer: commands, options, their values, deck keys and their
 * choices, all from the tables that the program parses by. jobs/install/completion.bash asks with
 * `fedlora --complete WORD...`. No MPI: a login node may have none.
 */
#include "app.h"

#include <ctype.h>
#include <string.h>

static bool starts(const char *s, const char *with)
{
    return strncmp(s, with, strlen(with)) == 0;
}

/* one line, if it continues what was typed */
static void offer(fl_text *t, const char *typed, const char *before, const char *word)
{
    fl_text whole = {0};

    fl_text_add(&whole, "%s%s", before, word);
    if (starts(whole.s, typed)) {
        fl_text_add(t, "%s\n", whole.s);
    }
    fl_text_free(&whole);
}

static void offer_choices(fl_text *t, const char *typed, const char *before, const char *choices)
{
    char *all = fl_strdup(choices), *save = NULL;

    for (char *c = strtok_r(all, "|", &save); c != NULL; c = strtok_r(NULL, "|", &save)) {
        offer(t, typed, before, c);
    }
    fl_free(all);
}

static void offer_methods(fl_text *t, const char *typed, const char *before)
{
    int n;
    const fl_section *s = fl_method_sections(&n);

    for (int i = 0; i < n; i++) {
        offer(t, typed, before, s[i].name);
    }
}

/* key=... : what the value may be */
static void offer_value(fl_text *t, const char *typed, const char *section, const fl_field *f)
{
    fl_text before = {0};

    fl_text_add(&before, "%s.%s=", section, f->name);
    if (starts(typed, before.s)) {
        if (strcmp(section, "method") == 0 && strcmp(f->name, "name") == 0) {
            offer_methods(t, typed, before.s);
        } else if (f->type == FL_T_BOOL) {
            offer_choices(t, typed, before.s, "true|false");
        } else if (f->type == FL_T_WORD && f->words != NULL) {
            offer_choices(t, typed, before.s, f->words);
        }
    }
    fl_text_free(&before);
}

/* equals: as in --set (section.key=), and then values; otherwise sections and keys */
static void offer_section(fl_text *t, const char *typed, const fl_section *s, bool equals)
{
    fl_text key = {0};

    if (!equals) {
        offer(t, typed, "", s->name);
    }
    for (const fl_field *f = s->fields; f != NULL && f->name != NULL; f++) {
        fl_text_add(&key, "%s.%s%s", s->name, f->name, equals ? "=" : "");
        if (equals && strchr(typed, '=') != NULL) {
            offer_value(t, typed, s->name, f);
        } else {
            offer(t, typed, "", key.s);
        }
        fl_text_free(&key);
    }
}

static void offer_keys(fl_text *t, const char *typed, bool equals)
{
    int n, nextra;
    const fl_section *s = fl_deck_sections(&n), *extra = fl_method_sections(&nextra);

    for (int i = 0; i < n; i++) {
        offer_section(t, typed, &s[i], equals);
    }
    for (int i = 0; i < nextra; i++) {
        offer_section(t, typed, &extra[i], equals);
    }
}

/* value: as in the tables' usage: words in small letters are themselves, capitals are for the user
 * to name */
static void offer_named(fl_text *t, const char *typed, const char *value)
{
    char *all = fl_strdup(value), *save = NULL;

    for (char *c = strtok_r(all, "|", &save); c != NULL; c = strtok_r(NULL, "|", &save)) {
        if (starts(c, "section.key")) {
            offer_keys(t, typed, c[strlen("section.key")] == '=');
        } else if (strcmp(c, "NAME") == 0) {
            offer_methods(t, typed, "");
        } else if (strstr(c, "DIR") != NULL) {
            fl_text_add(t, "@dir\n");
        } else if (strstr(c, "FILE") != NULL || strcmp(c, "DECK") == 0 ||
                   strcmp(c, "CHECKPOINT") == 0) {
            fl_text_add(t, "@file\n");
        } else if (islower((unsigned char)*c)) {
            offer(t, typed, "", c);
        }
    }
    fl_free(all);
}

static const app_option *option_of(const char *word)
{
    int n;
    const app_option *o = app_options(&n);

    for (int i = 0; i < n; i++) {
        if (strcmp(word, o[i].name) == 0 || (*o[i].other && strcmp(word, o[i].other) == 0)) {
            return &o[i];
        }
    }
    return NULL;
}

static void offer_options(fl_text *t, const char *typed, const app_command *command)
{
    int n;
    const app_option *o = app_options(&n);

    for (int i = 0; i < n; i++) {
        if (app_takes(command, o[i].name)) {
            offer(t, typed, "", o[i].name);
        }
    }
}

/* The word of the usage that stands for argument number `at`: "[NAME]" and "a|b" count as one;
 * "FILE..." and "FILE ..." stand for all that follow. Options and their values are left out. */
static void offer_argument(fl_text *t, const char *typed, const app_command *command, int at)
{
    char *all = fl_strdup(command->usage), *save = NULL, *last = NULL;
    bool option = false, found = false;

    for (char *c = strtok_r(all, " ", &save); c != NULL && !found; c = strtok_r(NULL, " ", &save)) {
        char *dots = strstr(c, "...");

        c += *c == '[';
        if (*c == '-') {
            option = strchr(c, ']') == NULL; /* its value follows */
        } else if (option) {
            option = false;
        } else {
            found = at == 0 || dots != NULL;
            at--;
            if (c != dots) {
                last = c;
                c[strcspn(c, "]")] = '\0';
            }
            if (dots != NULL) {
                *dots = '\0';
            }
        }
    }
    if (found && last != NULL) {
        offer_named(t, typed, last);
    }
    fl_free(all);
}

static void complete_command(fl_text *t, const char *typed)
{
    int n;
    const app_command *all = app_commands(&n);

    for (int i = 0; i < n; i++) {
        offer(t, typed, "", all[i].name);
    }
    offer_choices(t, typed, "", "--help|--version");
}

void app_complete(int n, char **words, fl_text *t)
{
    const app_command *command = NULL;
    int ncommands, at = 0;
    const app_command *all = app_commands(&ncommands);

    if (n <= 1) {
        complete_command(t, n == 1 ? words[0] : "");
        return;
    }
    for (int i = 0; i < ncommands; i++) {
        command = strcmp(all[i].name, words[0]) == 0 ? &all[i] : command;
    }
    if (command == NULL) {
        return;
    }
    const char *typed = words[n - 1];

    for (int i = 1; i < n; i++) {
        const app_option *o = option_of(words[i]);

        if (o != NULL && o->type != OPT_FLAG && i + 1 < n) {
            if (i + 2 == n) {
                offer_named(t, typed, o->value);
                return;
            }
            i++;
        } else if (*words[i] != '-' && i + 1 < n) {
            at++;
        }
    }
    if (*typed == '-') {
        offer_options(t, typed, command);
    } else {
        offer_argument(t, typed, command, at);
    }
}
