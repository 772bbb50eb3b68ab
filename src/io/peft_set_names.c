/* peft_set_names - how the modules of an adapter are called: parts of a tensor's name, the
 * spellings of transformers 4 and 5, an index without duplicates. Source: PEFT's checkpoint format;
 * the conversion table of transformers 5 (ViT and the models built like it). */
#include "peft_set.h"
#include <ctype.h>
#include <string.h>

const char *const peft_prefix[PEFT_NPREFIXES] = {
    "model.", "bert.", "roberta.", "vit.", "transformer.", "deit.", "beit.", "vivit.", "dinov2."};

/* ---- index ---- */
static int names_slot(const peft_names *t, const char *name)
{
    uint64_t at = fl_hash_text(name);
    int mask = t->nslots - 1;

    for (int i = (int)(at & (uint64_t)mask);; i = (i + 1) & mask) {
        if (t->slot[i] < 0 || strcmp(t->name[t->slot[i]], name) == 0) {
            return i;
        }
    }
}

int peft_names_find(const peft_names *t, const char *name)
{
    return t->nslots == 0 ? -1 : t->slot[names_slot(t, name)];
}

static void names_grow(peft_names *t)
{
    fl_free(t->slot);
    t->nslots = t->nslots == 0 ? 64 : 2 * t->nslots;
    t->slot = fl_alloc("name index", (size_t)t->nslots, sizeof *t->slot);
    for (int i = 0; i < t->nslots; i++) {
        t->slot[i] = -1;
    }
    for (int i = 0; i < t->n; i++) {
        t->slot[names_slot(t, t->name[i])] = i;
    }
}

int peft_names_add(peft_names *t, const char *name)
{
    int i;

    if (2 * t->n >= t->nslots) {
        names_grow(t);
    }
    i = names_slot(t, name);
    if (t->slot[i] >= 0) {
        return t->slot[i];
    }
    if (t->n == t->room) {
        t->room = 2 * t->room + 64;
        t->name = fl_realloc("names", t->name, (size_t)t->room, sizeof *t->name);
    }
    t->name[t->n] = fl_strdup(name);
    t->slot[i] = t->n;
    return t->n++;
}

void peft_names_free(peft_names *t)
{
    for (int i = 0; i < t->n; i++) {
        fl_free(t->name[i]);
    }
    fl_free(t->name);
    fl_free(t->slot);
    *t = (peft_names){0};
}

int peft_names_compare(const char *a, const char *b)
{
    const char *x = a, *y = b;

    while (*x && *y) {
        if (isdigit((unsigned char)*x) && isdigit((unsigned char)*y)) {
            size_t n, m;
            int order;

            x += strspn(x, "0");
            y += strspn(y, "0");
            n = strspn(x, "0123456789");
            m = strspn(y, "0123456789");
            order = n != m ? (n < m ? -1 : 1) : strncmp(x, y, n);
            if (order != 0) {
                return order;
            }
            x += n;
            y += m;
        } else if (*x != *y) {
            break;
        } else {
            x++;
            y++;
        }
    }
    if (*x != *y) {
        return (unsigned char)*x < (unsigned char)*y ? -1 : 1;
    }
    return strcmp(a, b); /* layers.1 and layers.01 */
}

/* ---- parts of a key ---- */
/* tail without the first segment if that is an adapter's name: ".default.weight" -> ".weight" */
static const char *key_tail(const char *tail, const char *wanted, bool *stray)
{
    const char *dot = tail[0] == '.' ? strchr(tail + 1, '.') : NULL;

    if (strcmp(tail, wanted) == 0) {
        return tail;
    }
    if (*wanted == 0 ? tail[0] == '.' && tail[1] != 0 && dot == NULL
                     : dot != NULL && dot > tail + 1 && strcmp(dot, wanted) == 0) {
        *stray = true;
        return wanted;
    }
    return NULL;
}

static peft_part key_factor(const char *tail, peft_key *k)
{
    static const char embedding[] = "embedding_", magnitude[] = "magnitude_vector";

    if (strncmp(tail, magnitude, sizeof magnitude - 1) == 0) {
        return PEFT_MAGNITUDE;
    }
    if (strncmp(tail, embedding, sizeof embedding - 1) == 0) {
        k->embedding = true;
        tail += sizeof embedding - 1;
    }
    if (tail[0] != 'A' && tail[0] != 'B') {
        return PEFT_STRANGE;
    }
    if (key_tail(tail + 1, k->embedding ? "" : ".weight", &k->stray)) {
        return tail[0] == 'A' ? PEFT_A : PEFT_B;
    }
    return tail[0] == 'B' && key_tail(tail + 1, ".bias", &k->stray) ? PEFT_LORA_BIAS : PEFT_STRANGE;
}

/* classifier.modules_to_save.default.weight, which a state_dict() has, is classifier.weight */
static void key_full(const char *rest, peft_key *k)
{
    static const char wrapper[] = ".modules_to_save.";
    const char *at = strstr(rest, wrapper), *behind;

    snprintf(k->name, sizeof k->name, "%s", rest);
    if (at == NULL) {
        return;
    }
    behind = strchr(at + sizeof wrapper - 1, '.');
    if (behind == NULL) {
        k->part = PEFT_STRANGE;
        return;
    }
    k->stray = true;
    snprintf(k->name, sizeof k->name, "%.*s%s", (int)(at - rest), rest, behind);
}

void peft_key_split(const char *key, peft_key *k)
{
    size_t n = strlen(PEFT_PREFIX);
    const char *at = NULL;

    *k = (peft_key){.part = PEFT_STRANGE};
    if (strncmp(key, PEFT_PREFIX, n) != 0 || strlen(key) > PEFT_LONGEST_KEY) {
        return;
    }
    for (const char *s = key; *s; s++) {
        if (*s < ' ' || *s > '~') {
            return;
        }
    }
    key += n;
    for (const char *s = key; (s = strstr(s, ".lora_")) != NULL; s++) {
        at = s; /* the last one */
    }
    if (at != NULL && at > key) {
        snprintf(k->name, sizeof k->name, "%.*s", (int)(at - key), key);
        k->part = key_factor(at + 6, k);
    } else if (at == NULL && *key != 0 && strncmp(key, "lora_", 5) != 0 &&
               strstr(key, ".original_module.") == NULL) {
        k->part = PEFT_FULL;
        key_full(key, k);
    }
}

/* ---- transformers 4 and 5 ---- */
/* whole: encoder.layer.i became layers.i, too; otherwise the attention alone was renamed */
static const struct {
    const char *prefix;
    bool whole;
} vision[] = {{"vit.", true}, {"deit.", true}, {"beit.", true}, {"vivit.", true},
    {"audio_spectrogram_transformer.", true}, {"dinov2.", false}, {"", true}};
static const struct {
    const char *four, *five;
    bool attention;
} renamed[] = {{"attention.attention.query", "attention.q_proj", true},
    {"attention.attention.key", "attention.k_proj", true},
    {"attention.attention.value", "attention.v_proj", true},
    {"attention.output.dense", "attention.o_proj", true}, {"intermediate.dense", "mlp.fc1", false},
    {"output.dense", "mlp.fc2", false}};

/* what follows `start` in s, NULL if s does not start so */
static const char *behind(const char *s, const char *start)
{
    size_t n = strlen(start);

    return strncmp(s, start, n) == 0 ? s + n : NULL;
}

/* index into renamed of the module that rest begins with; *tail is what follows it */
static int find_renamed(const char *rest, bool to5, bool whole, const char **tail)
{
    for (size_t i = 0; i < FL_COUNT(renamed); i++) {
        const char *t = behind(rest, to5 ? renamed[i].four : renamed[i].five);

        if (t && (*t == 0 || *t == '.') && (whole || renamed[i].attention)) {
            *tail = t;
            return (int)i;
        }
    }
    return -1;
}

static bool rename_layer(const char *name, const char *prefix, bool whole, bool to5, char *out)
{
    static const char layer4[] = "encoder.layer.", layer5[] = "layers.";
    const char *from = to5 || !whole ? layer4 : layer5, *to = !to5 || !whole ? layer4 : layer5;
    const char *number = behind(name, prefix), *tail;
    size_t digits;
    int i;

    number = number ? behind(number, from) : NULL;
    digits = number ? strspn(number, "0123456789") : 0;
    if (digits == 0 || number[digits] != '.') {
        return false;
    }
    i = find_renamed(number + digits + 1, to5, whole, &tail);
    if (i < 0) {
        if (!whole || *prefix == 0) {
            return false; /* other models have encoder.layer, too */
        }
        snprintf(out, PEFT_LONG, "%s%s%s", prefix, to, number);
    } else {
        snprintf(out, PEFT_LONG, "%s%s%.*s%s%s", prefix, to, (int)digits + 1, number,
            to5 ? renamed[i].five : renamed[i].four, tail);
    }
    return true;
}

static bool rename_module(const char *name, bool bare, bool to5, char *out)
{
    for (size_t i = 0; i < FL_COUNT(vision); i++) {
        if ((*vision[i].prefix != 0 || bare) &&
            rename_layer(name, vision[i].prefix, vision[i].whole, to5, out)) {
            return true;
        }
    }
    memcpy(out, name, FL_MIN(strlen(name), (size_t)PEFT_LONG - 1) + 1);
    out[PEFT_LONG - 1] = 0;
    return false;
}

bool peft_name_to5(const char *name, bool bare, char out[PEFT_LONG])
{
    return rename_module(name, bare, true, out);
}

bool peft_name_to4(const char *name, bool bare, char out[PEFT_LONG])
{
    return rename_module(name, bare, false, out);
}

bool peft_name_shows_bare4(const char *name)
{
    const char *number = behind(name, "encoder.layer.");
    size_t digits = number ? strspn(number, "0123456789") : 0;

    return digits > 0 && behind(number + digits, ".attention.attention.") != NULL;
}
