/* peft_pattern - the keys of rank_pattern and alpha_pattern, which are Python's regular
 * expressions: key P applies to a module if ^(.*\.)?(P)$ matches its name. Whether a whole name
 * matches does not depend on the order in which alternatives are tried, so a pattern is a function
 * from the set of places in the name where it may begin to the set of places where it may end: no
 * backtracking, and the work is bounded. Read: literals, escapes, . [..] (..) (?:..) | * + ? {m,n}
 * (lazy or not) ^ $ \A \Z \d \w \s; not read: look-around, back-references, flags, word boundaries.
 * Source: peft utils/other.py get_pattern_key; Python's re. */
#include "peft_pattern.h"
#include <ctype.h>
#include <string.h>

enum {
    PATTERN_NODES = 2048, /* a pattern of more is not read */
    PATTERN_DEPTH = 30,
    PATTERN_TIMES = 1000 /* {m,n} */
};

typedef struct pattern_text {
    const char *at;
    peft_pattern *p;
    int depth;
    bool ok;
} pattern_text;

static int pattern_any(pattern_text *t);

static int pattern_new(pattern_text *t, node_kind kind)
{
    peft_pattern *p = t->p;

    if (p->n == PATTERN_NODES) {
        t->ok = false;
        return 0;
    }
    p->node[p->n] = (pattern_node){.kind = kind, .child = -1, .next = -1};
    return p->n++;
}

/* the next character; 0 at the end, where it stays */
static char pattern_take(pattern_text *t)
{
    return *t->at ? *t->at++ : (char)0;
}

static void set_add(uint64_t set[2], int lo, int hi)
{
    for (int c = lo; c <= hi; c++) {
        set[c >> 6] |= (uint64_t)1 << (c & 63);
    }
}

static void set_not(uint64_t set[2])
{
    set[0] = ~set[0];
    set[1] = ~set[1];
}

/* \d \w \s and their opposites; false = not one of them */
static bool pattern_group(char e, uint64_t set[2])
{
    static const char space[] = " \t\n\r\f\v";
    uint64_t x[2] = {0, 0};

    switch (tolower((unsigned char)e)) {
    case 'w':
        set_add(x, 'a', 'z');
        set_add(x, 'A', 'Z');
        set_add(x, '_', '_');
        set_add(x, '0', '9');
        break;
    case 'd':
        set_add(x, '0', '9');
        break;
    case 's':
        for (const char *c = space; *c; c++) {
            set_add(x, *c, *c);
        }
        break;
    default:
        return false;
    }
    if (isupper((unsigned char)e)) {
        set_not(x);
    }
    set[0] |= x[0];
    set[1] |= x[1];
    return true;
}

/* one end of a range in [..]; -1 = a group such as \d, which was added */
static int pattern_class_char(pattern_text *t, uint64_t set[2])
{
    char c = pattern_take(t);

    if (c != '\\') {
        return c;
    }
    c = pattern_take(t);
    if (c != 0 && pattern_group(c, set)) {
        return -1;
    }
    if (c == 0 || isalnum((unsigned char)c)) {
        t->ok = false;
    }
    return c;
}

/* behind [ */
static int pattern_class(pattern_text *t)
{
    int node = pattern_new(t, NODE_SET);
    uint64_t set[2] = {0, 0};
    bool negated = *t->at == '^', first = true;

    for (t->at += negated; t->ok && (first || *t->at != ']'); first = false) {
        int lo, hi;

        if (*t->at == 0) {
            t->ok = false;
            break;
        }
        lo = hi = pattern_class_char(t, set);
        if (t->ok && t->at[0] == '-' && t->at[1] != ']' && t->at[1] != 0) {
            t->at++;
            hi = pattern_class_char(t, set);
            t->ok = t->ok && lo >= 0 && hi >= lo;
        }
        if (t->ok && lo >= 0) {
            set_add(set, lo, hi);
        }
    }
    if (t->ok) {
        t->at++;
        if (negated) {
            set_not(set);
        }
        memcpy(t->p->node[node].set, set, sizeof set);
    }
    return node;
}

static int pattern_escape(pattern_text *t)
{
    char e = pattern_take(t);
    int node;

    if (e == 'A' || e == 'Z') {
        return pattern_new(t, e == 'A' ? NODE_BEGIN : NODE_END);
    }
    node = pattern_new(t, NODE_SET);
    if (e == 0 || (!pattern_group(e, t->p->node[node].set) && isalnum((unsigned char)e))) {
        t->ok = false;
    } else if (!isalnum((unsigned char)e)) {
        set_add(t->p->node[node].set, e, e);
    }
    return node;
}

static int pattern_atom(pattern_text *t)
{
    char c = pattern_take(t);
    int node;

    switch (c) {
    case '[':
        return pattern_class(t);
    case '\\':
        return pattern_escape(t);
    case '^':
        return pattern_new(t, NODE_BEGIN);
    case '$':
        return pattern_new(t, NODE_END);
    case '(':
        if (t->at[0] == '?' && t->at[1] == ':') {
            t->at += 2;
        }
        node = pattern_any(t); /* (? of other kinds: ? repeats nothing, an error below */
        t->ok = t->ok && *t->at == ')';
        t->at += t->ok;
        return node;
    case '*':
    case '+':
    case '?':
    case '{':
        t->ok = false; /* repeats nothing, or is meant literally, which is rare */
        return 0;
    default:
        node = pattern_new(t, NODE_SET);
        if (c == '.') {
            set_add(t->p->node[node].set, 0, 127);
        } else {
            set_add(t->p->node[node].set, c, c);
        }
        return node;
    }
}

static int pattern_number(pattern_text *t)
{
    int x = 0;

    while (isdigit((unsigned char)*t->at) && x <= PATTERN_TIMES) {
        x = 10 * x + (*t->at++ - '0');
    }
    t->ok = t->ok && x <= PATTERN_TIMES;
    return x;
}

/* {m}, {m,}, {,n}, {m,n}; behind { */
static void pattern_bounds(pattern_text *t, int *least, int *most)
{
    bool given = isdigit((unsigned char)*t->at);

    *least = *most = pattern_number(t);
    if (*t->at == ',') {
        t->at++;
        given = given || isdigit((unsigned char)*t->at);
        *most = isdigit((unsigned char)*t->at) ? pattern_number(t) : -1;
    }
    t->ok = t->ok && given && *t->at == '}' && (*most < 0 || *most >= *least);
    t->at += t->ok;
}

static int pattern_repeated(pattern_text *t)
{
    int atom = pattern_atom(t), least, most, node;
    char c = *t->at;

    if (!t->ok || c == 0 || strchr("*+?{", c) == NULL) {
        return atom;
    }
    t->at++;
    least = c == '+';
    most = c == '?' ? 1 : -1;
    if (c == '{') {
        pattern_bounds(t, &least, &most);
    }
    t->at += t->ok && *t->at == '?'; /* lazy or not, the whole name must match */
    if (t->ok && *t->at != 0 && strchr("*+?{", *t->at)) {
        t->ok = false; /* an error in Python, or possessive */
    }
    node = pattern_new(t, NODE_TIMES);
    t->p->node[node].child = atom;
    t->p->node[node].least = least;
    t->p->node[node].most = most;
    return node;
}

static int pattern_all(pattern_text *t)
{
    int node = pattern_new(t, NODE_ALL), last = -1;

    while (t->ok && *t->at != 0 && *t->at != ')' && *t->at != '|') {
        int next = pattern_repeated(t);

        if (!t->ok) {
            break;
        }
        *(last < 0 ? &t->p->node[node].child : &t->p->node[last].next) = next;
        last = next;
    }
    return node;
}

static int pattern_any(pattern_text *t)
{
    int first, node, last;

    if (++t->depth > PATTERN_DEPTH) {
        t->ok = false;
        return 0;
    }
    first = last = pattern_all(t);
    node = first;
    if (t->ok && *t->at == '|') {
        node = pattern_new(t, NODE_ANY);
        t->p->node[node].child = first;
    }
    while (t->ok && *t->at == '|') {
        int next;

        t->at++;
        next = pattern_all(t);
        if (t->ok) {
            t->p->node[last].next = next;
            last = next;
        }
    }
    t->depth--;
    return node;
}

/* sees whether the pattern is a row of characters, which most are */
static void pattern_see_plain(peft_pattern *p)
{
    const pattern_node *root = &p->node[p->root];

    for (int i = root->child, first = i; i >= 0 && root->kind == NODE_ALL; i = p->node[i].next) {
        const pattern_node *x = &p->node[i];

        p->length += x->kind == NODE_SET;
        p->anchored = p->anchored || x->kind == NODE_BEGIN;
        if (x->kind != NODE_SET && !(x->kind == NODE_BEGIN && i == first) &&
            !(x->kind == NODE_END && x->next < 0)) {
            return;
        }
    }
    p->plain = root->kind == NODE_ALL;
}

peft_pattern *peft_pattern_parse(const char *text)
{
    pattern_text t = {.at = text, .ok = true};

    for (const char *s = text; *s; s++) {
        t.ok = t.ok && (unsigned char)*s < 128;
    }
    t.p = fl_alloc("pattern", 1, sizeof *t.p);
    /* a node or two for each byte */
    t.p->node =
        fl_alloc("pattern", FL_MIN(2 * strlen(text) + 4, (size_t)PATTERN_NODES), sizeof *t.p->node);
    if (t.ok && 2 * strlen(text) + 4 <= PATTERN_NODES) {
        t.p->root = pattern_any(&t);
        t.ok = t.ok && *t.at == 0;
    } else {
        t.ok = false;
    }
    if (!t.ok) {
        peft_pattern_free(&t.p);
        return NULL;
    }
    pattern_see_plain(t.p);
    return t.p;
}

void peft_pattern_free(peft_pattern **p)
{
    if (*p) {
        fl_free((*p)->node);
    }
    fl_free(*p);
    *p = NULL;
}
