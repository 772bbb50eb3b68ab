/* method.c - the registry: methods.def read twice (declarations, table), and what `fedlora methods`
 * says. */
#include "fed_internal.h"

#include <string.h>

#define X(name) extern const fl_method fl_method_##name;
#include "../methods/methods.def"
#undef X
#define X(name) &fl_method_##name,
static const fl_method *const methods[] = {
#include "../methods/methods.def"
};
#undef X

int fl_method_count(void)
{
    return (int)FL_COUNT(methods);
}

const fl_method *fl_method_at(int i)
{
    return methods[i];
}

const fl_method *fl_method_find(const char *name)
{
    for (size_t i = 0; i < FL_COUNT(methods); i++) {
        if (strcmp(methods[i]->name, name) == 0) {
            return methods[i];
        }
    }
    return NULL;
}

const fl_section *fl_method_sections(int *n)
{
    static fl_section sections[FL_COUNT(methods)];

    for (size_t i = 0; i < FL_COUNT(methods); i++) {
        sections[i] = (fl_section){
            methods[i]->name, methods[i]->title, methods[i]->config, methods[i]->config_size};
    }
    *n = (int)FL_COUNT(methods);
    return sections;
}

static const struct {
    unsigned flag;
    const char *text;
} needs_text[] = {
    {FL_HETERO, "serves clients of unequal rank (clients.r)"},
    {FL_MERGES, "changes the base weights"},
    {FL_PERSONAL, "clients keep adapters of their own"},
    {FL_EACH, "the server sees single messages (no secure aggregation)"},
    {FL_ONLINE, "needs live clients"},
    {FL_NUMBERS, "the server sees small numbers of single clients"},
    {FL_OWN_START, "starts from factors of its own (not adapter.init: svd)"},
    {FL_SPLITS, "its result may have any rank (fedlora aggregate --r, --energy)"},
    {FL_LORA_ONLY, "needs LoRA factors (not train.what: full)"},
};

void fl_method_describe(const fl_method *m, fl_text *t)
{
    fl_text_add(t, "%s - %s\nsource: %s\n", m->name, m->title, m->source);
    for (size_t i = 0; i < FL_COUNT(needs_text); i++) {
        if ((m->needs & needs_text[i].flag) != 0) {
            fl_text_add(t, "  - %s\n", needs_text[i].text);
        }
    }
    if (m->choice != NULL) {
        fl_text_add(t, "choice: %s\n", m->choice);
    }
    for (const fl_field *f = m->config; f != NULL && f->name != NULL; f++) {
        fl_text_add(t, "  %s.%s (default %s): %s\n", m->name, f->name, f->preset, f->help);
    }
}

void fl_method_list(fl_text *t)
{
    for (size_t i = 0; i < FL_COUNT(methods); i++) {
        fl_text_add(t, "%-14s %s [%s]\n", methods[i]->name, methods[i]->title, methods[i]->source);
    }
}

void fl_method_reference(fl_text *t)
{
    fl_text_add(t, "# Methods\n\nMade by `make reference` from the program. Name one in a deck as "
                   "`method: {name: NAME}`.\n\n");
    fl_text_add(t, "| name | what it does | unequal r | changes the base | personal | `fedlora "
                   "aggregate` |\n| --- | --- | --- | --- | --- | --- |\n");
    for (size_t i = 0; i < FL_COUNT(methods); i++) {
        const fl_method *m = methods[i];

        fl_text_add(t, "| [%s](#%s) | %s | %s | %s | %s | %s |\n", m->name, m->name, m->title,
            (m->needs & FL_HETERO) != 0 ? "yes" : "", (m->needs & FL_MERGES) != 0 ? "yes" : "",
            (m->needs & FL_PERSONAL) != 0 ? "yes" : "",
            (m->needs & (FL_ONLINE | FL_PERSONAL)) == 0 ? "yes" : "");
    }
    for (size_t i = 0; i < FL_COUNT(methods); i++) {
        const fl_method *m = methods[i];

        fl_text_add(t, "\n## %s\n\n%s. Source: %s.\n\n", m->name, m->title, m->source);
        for (size_t k = 0; k < FL_COUNT(needs_text); k++) {
            if ((m->needs & needs_text[k].flag) != 0) {
                fl_text_add(t, "- %s\n", needs_text[k].text);
            }
        }
        if (m->choice != NULL) {
            fl_text_add(t, "\nChoice: %s\n", m->choice);
        }
        for (const fl_field *f = m->config; f != NULL && f->name != NULL; f++) {
            fl_text_add(t, "%s| `%s.%s` | default %s | %s |\n",
                f == m->config ? "\n| key | default | meaning |\n| --- | --- | --- |\n" : "",
                m->name, f->name, f->preset, f->help);
        }
        fl_text_add(t,
            "\nDeck: [inputs/methods/%s.yaml](methods/%s.yaml); code: "
            "[src/methods/%s.c](../src/methods/%s.c).\n",
            m->name, m->name, m->name, m->name);
    }
}
